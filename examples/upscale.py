#!/usr/bin/env python3
"""Make a picture larger with the service: examples/upscale.py photo.jpg gives photo-x2.jpg beside it.

Python's standard library is enough. Files are streamed, so several gigabytes need no memory; S3 takes 5 GB in one
upload. Address and key of the service come from UPSCALE_URL and UPSCALE_KEY, or from the command line. Ends with
0 when the result is there, 1 with a message when the service refused or the job failed, 2 on wrong use.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Iterator, Mapping
from http.client import HTTPResponse
from pathlib import Path
from typing import Any

#: Bytes of a request that API Gateway takes, with room for what is around the picture.
DIRECT = 4_000_000
_CHUNK = 1 << 20


class Refused(Exception):
    """The service said no, or the job failed; one line for people."""


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Leaves a redirect to the caller: the key must not go on to S3."""

    def redirect_request(self, *_: Any) -> None:
        return None


class Service:
    """The service at an address.

    Args:
        url: of its page.
        key: for X-API-Key; empty for none.
        end: `time.monotonic` at which to give up.
    """

    def __init__(self, url: str, key: str, end: float) -> None:
        self._url = url.rstrip("/") + "/"
        self._key = key
        self._end = end
        self._opener = urllib.request.build_opener(_NoRedirect)

    def call(
        self, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> HTTPResponse | urllib.error.HTTPError:
        """Send a request; asked to wait (429, 503), wait and send it again.

        Raises:
            Refused: an error of the client, or of the service.
        """
        request = urllib.request.Request(self._url + path, body, dict(headers or {}), method=method)  # noqa: S310
        if self._key:
            request.add_header("X-API-Key", self._key)
        while True:
            try:
                answer: HTTPResponse = self._opener.open(request, timeout=60)
                return answer
            except urllib.error.HTTPError as error:
                if error.code in (303, 307):
                    return error
                if error.code not in (429, 503):
                    raise Refused(f"refused with {error.code}: {_reason(error)}") from error
                seconds = error.headers.get("Retry-After", "5")
                self.pause(float(seconds) if seconds.isdigit() else 5.0)

    def pause(self, seconds: float) -> None:
        """Wait.

        Raises:
            Refused: the time is over.
        """
        if time.monotonic() + seconds > self._end:
            raise Refused("not done in time")
        time.sleep(seconds)


def _reason(error: urllib.error.HTTPError) -> str:
    """What a refusal says: a problem's detail, or a gateway's message."""
    data = error.read()
    try:
        found = json.loads(data)
        return str(found.get("detail") or found.get("message") or error.reason)
    except (ValueError, AttributeError):
        return str(error.reason)


def _form(fields: Mapping[str, str], photo: Path) -> tuple[str, Iterator[bytes], int]:
    """A multipart form with the fields first and then the file: content type, body in pieces, and its length."""
    boundary = uuid.uuid4().hex
    head = b"".join(
        f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()
        for name, value in fields.items()
    )
    name = photo.name.replace('"', "%22")
    head += f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\n\r\n'.encode()
    tail = f"\r\n--{boundary}--\r\n".encode()

    def body() -> Iterator[bytes]:
        yield head
        with photo.open("rb") as file:
            while piece := file.read(_CHUNK):
                yield piece
        yield tail

    return f"multipart/form-data; boundary={boundary}", body(), len(head) + photo.stat().st_size + len(tail)


def _save(source: Any, target: Path) -> None:
    """Write a body to a file that appears when it is complete."""
    part = target.with_name(f".{target.name}.part")
    try:
        with part.open("wb") as file:
            shutil.copyfileobj(source, file, _CHUNK)
        part.rename(target)
    finally:
        part.unlink(missing_ok=True)


def _fetch(url: str, target: Path) -> None:
    with urllib.request.urlopen(url, timeout=60) as source:  # noqa: S310 - a link that the service gave
        _save(source, target)


def upscale(service: Service, photo: Path, target: Path, options: Mapping[str, Any]) -> None:
    """Make one picture larger, by whatever way it needs.

    Args:
        service: to ask.
        photo: the picture.
        target: where the result goes.
        options: as in `POST /jobs`.

    Raises:
        Refused: with the reason.
    """
    id = ""
    if photo.stat().st_size <= DIRECT:
        kind, pieces, _ = _form({}, photo)
        query = urllib.parse.urlencode(options)
        try:
            answer = service.call("POST", f"upscale?{query}", b"".join(pieces), {"Content-Type": kind})
        except Refused as refused:
            if not str(refused).startswith("refused with 413"):
                raise
        else:
            with answer:
                if answer.status == 200:
                    return _save(answer, target)
                location = answer.headers["Location"]
                if answer.status == 303:
                    return _fetch(location, target)
                id = location.rpartition("/")[2]  # 202: a job
    if not id:
        id = _announce(service, photo, options)
    while True:
        with service.call("GET", f"jobs/{id}") as answer:
            job = json.load(answer)
        if job["state"] == "succeeded":
            break
        if job["state"] in ("failed", "cancelled"):
            raise Refused(f"the job has {job['state']}: {(job['error'] or {}).get('message', '')}")
        service.pause(2)
    with service.call("GET", f"jobs/{id}/result") as answer:
        location = answer.headers["Location"]
    return _fetch(location, target)


def _announce(service: Service, photo: Path, options: Mapping[str, Any]) -> str:
    """Make a job and send it its file, straight to where it is kept; gives the job's id."""
    size = photo.stat().st_size
    wanted = {"filename": photo.name, "content_type": "application/octet-stream", "bytes": size, "options": options}
    body = json.dumps(wanted).encode()
    with service.call("POST", "jobs", body, {"Content-Type": "application/json"}) as answer:
        job = json.load(answer)
    upload = job["upload"]
    kind, pieces, length = _form(upload["fields"], photo)
    headers = {"Content-Type": kind, "Content-Length": str(length)}
    request = urllib.request.Request(upload["url"], pieces, headers, method="POST")  # noqa: S310
    try:
        urllib.request.urlopen(request, timeout=300).close()  # noqa: S310
    except urllib.error.HTTPError as error:
        raise Refused(f"the file was not taken: {error.code} {error.read()[:300].decode(errors='replace')}") from error
    return str(job["id"])


def main() -> int:
    """The command line; gives the exit code."""
    parser = argparse.ArgumentParser(description="Make a picture larger with the service.")
    parser.add_argument("photo", type=Path)
    parser.add_argument("--scale", type=float, default=2)
    parser.add_argument("--format", help="jpeg, png, webp, tiff, bmp or avif")
    parser.add_argument("--output", type=Path, help="photo-x2.jpg beside the picture unless given")
    parser.add_argument("--url", default=os.environ.get("UPSCALE_URL", "http://127.0.0.1:8000/"))
    parser.add_argument("--key", default=os.environ.get("UPSCALE_KEY", ""))
    parser.add_argument("--wait", type=float, default=3600, metavar="SECONDS", help="for a job, at most")
    asked = parser.parse_args()
    photo: Path = asked.photo
    if not photo.is_file():
        parser.error(f"there is no file {photo}")
    suffix = f".{asked.format}" if asked.format else photo.suffix
    target: Path = asked.output or photo.with_name(f"{photo.stem}-x{asked.scale:g}{suffix}")
    if target.exists():
        parser.error(f"{target} is there already: move it away first")
    options = {"scale": asked.scale, **({"format": asked.format} if asked.format else {})}
    try:
        upscale(Service(asked.url, asked.key, time.monotonic() + asked.wait), photo, target, options)
    except Refused as refused:
        print(refused, file=sys.stderr)
        return 1
    except OSError as error:
        print(f"no answer: {error}", file=sys.stderr)
        return 1
    print(target)
    return 0


if __name__ == "__main__":
    sys.exit(main())
