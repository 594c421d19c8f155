"""A picture that JSON names by its URL, or holds in itself as a data URI or base64.

A URL is a stranger's choice: `handler.safe_http` says what is not called, and the setting FETCH_URLS whether any is.
"""

from __future__ import annotations

import base64
import json
import re
import time
from functools import partial
from tempfile import SpooledTemporaryFile
from typing import Any, BinaryIO, cast
from urllib.parse import unquote_to_bytes

import anyio.to_thread
from fastapi import Request
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile

from handler import safe_http
from handler.web.problems import Problem
from handler.web.schemas import PictureSource
from handler.web.service import Service, client_of

#: Bytes of a picture that are kept in memory; more are on disk.
IN_MEMORY = 1 << 20
#: How long a picture may take to come from where its URL leads. API Gateway waits for 29 seconds in all.
SECONDS, SECONDS_IN_AWS = 60.0, 6.0

_DATA = re.compile(r"data:([^,;]*)((?:;[^,;]*)*),", re.IGNORECASE)
_OFF = "url: this service fetches no pictures: send the picture itself; who runs the service can allow it (FETCH_URLS)"


def parse(body: BinaryIO) -> tuple[PictureSource, dict[str, Any]]:
    """What a JSON body says: the picture, and all other fields.

    Raises:
        Problem: not JSON, or no or several pictures.
    """
    try:
        found = json.load(body)
    except (ValueError, RecursionError):
        raise Problem("malformed_request", "the body is not JSON") from None
    if not isinstance(found, dict):
        raise Problem("bad_request", 'the body must be a JSON object, such as {"url": "https://…"}')
    given = {name: found.pop(name, None) for name in PictureSource.model_fields}
    for name, value in given.items():
        if not isinstance(value, str | None):
            raise Problem("bad_request", f"{name}: must be a string")
    return PictureSource(**given), found


async def receive(request: Request, service: Service, source: PictureSource) -> UploadFile:
    """The picture, on disk where it is large; the caller closes it.

    Raises:
        Problem: no or several pictures, one that cannot be had, or too large.
        ClientDisconnect.
    """
    if source.url is not None and source.image is not None:
        raise Problem("several_files", "give the picture's address as 'url', or the picture as 'image': not both")
    if not source.url and not source.image:
        raise Problem("no_file", "give the picture's address as 'url', or the picture itself as 'image'")
    held = source.image or (source.url if source.url and _DATA.match(source.url) else None)
    target = SpooledTemporaryFile(max_size=IN_MEMORY)  # noqa: SIM115 - whoever gets it closes it
    file = cast(BinaryIO, target)
    try:
        if held is not None:
            name = await run_in_threadpool(_decode, held, file, service.settings.max_upload_bytes)
        else:
            async with service.fetches.enter(1, client_of(request), request.is_disconnected):
                name = await anyio.to_thread.run_sync(partial(_fetch, service, str(source.url), file))
        size = target.tell()
        target.seek(0)
    except OSError as error:
        target.close()
        raise Problem("storage_unavailable", "there is no room for pictures at the moment") from error
    except BaseException:
        target.close()
        raise
    return UploadFile(file, size=size, filename=source.filename or name)


def _decode(text: str, target: BinaryIO, most: int) -> str:
    """Write what a data URI (RFC 2397) or base64 holds; an empty name."""
    head = _DATA.match(text[:1000])
    data = text[head.end() :] if head else text
    try:
        if head and ";base64" not in head[2].lower():
            decoded = unquote_to_bytes(data)
        else:  # with or without padding, of either alphabet
            data = "".join(data.split()).rstrip("=").replace("-", "+").replace("_", "/")
            decoded = base64.b64decode(data + "=" * (-len(data) % 4), validate=True)
    except ValueError:
        raise Problem("malformed_request", "image: neither a data: URI nor base64") from None
    if len(decoded) > most:
        raise Problem("too_large", f"the input is over the limit of {most:,} bytes")
    target.write(decoded)
    return ""


def _fetch(service: Service, url: str, target: BinaryIO) -> str:
    """Download what a URL leads to; its name."""
    settings = service.settings
    if settings.fetched_urls == "none":
        raise Problem("bad_url", _OFF)
    end = time.monotonic() + (SECONDS if settings.local else SECONDS_IN_AWS)
    most = settings.max_upload_bytes
    try:
        found = safe_http.fetch(url, target, most, end, allow_private=settings.fetched_urls == "all")
    except safe_http.Refused as refused:
        raise Problem("bad_url", f"url: {refused}") from None
    except safe_http.NotFetched as failure:
        raise Problem("not_fetched", f"url: {failure}") from None
    except safe_http.TooLong:
        raise Problem("too_large", f"the input is over the limit of {most:,} bytes") from None
    if found.media_type.startswith("text/"):
        raise Problem("not_fetched", f"url: the server gave {found.media_type[:60]}, not a picture")
    return found.name
