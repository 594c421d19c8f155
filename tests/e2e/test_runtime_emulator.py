"""The functions as Lambda runs them: its runtime protocol, its events, its limits; pictures on a real S3 server."""

from __future__ import annotations

import base64
import email.policy
import io
import json
import socket
import threading
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from email.parser import BytesParser
from pathlib import Path
from typing import Any

import pytest

import core
from handler import jobs
from handler.jobs import Backend, Job, State
from handler.storage import S3Storage
from tests.e2e.emulator import Function, function
from tests.integration.work import PATIENCE, TTL, as_stored, event, picture, queued, result, results

pytestmark = pytest.mark.slow

#: The bucket of the example events.
BUCKET = "upscaler-example"
UPSCALES = ["rest_upscale.json", "http_upscale.json", "function_url_upscale.json"]


@pytest.fixture(scope="module")
def storage(seaweedfs: str) -> S3Storage:
    found = S3Storage(BUCKET, endpoint_url=seaweedfs)
    found.client.create_bucket(Bucket=BUCKET)
    return found


@pytest.fixture(scope="module")
def environment(storage: S3Storage) -> dict[str, str]:
    # Nothing depends on how busy this machine is: whatever fits is done at once.
    return {
        "BUCKET": BUCKET,
        "S3_ENDPOINT_URL": storage.endpoint_url or "",
        "INLINE_SECONDS": "900",
        "LAMBDA_SECONDS": "900",
        "LEASE_SECONDS": "3",
    }


@pytest.fixture(scope="module")
def api(environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Function]:
    with function("handler.api.handler", tmp_path_factory.mktemp("api"), environment) as found:
        yield found


@pytest.fixture(scope="module")
def uploads(environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Function]:
    with function("handler.s3_event.handler", tmp_path_factory.mktemp("uploads"), environment) as found:
        yield found


def sent_picture(sent: Mapping[str, Any]) -> bytes:
    """The file in a request's multipart form, read by the standard library."""
    headers = {name.lower(): value for name, value in sent["headers"].items()}
    head = f"Content-Type: {headers['content-type']}\r\n\r\n".encode()
    form = BytesParser(policy=email.policy.HTTP).parsebytes(head + base64.b64decode(sent["body"]))
    [part] = form.iter_parts()
    data = part.get_payload(decode=True)
    assert isinstance(data, bytes)
    return data


def request(data: bytes, query: Mapping[str, str], **headers: str) -> dict[str, Any]:
    """A REST request to /upscale with a picture of our own."""
    body = b'--cut\r\nContent-Disposition: form-data; name="file"; filename="photo.png"\r\n'
    body += b"Content-Type: image/png\r\n\r\n" + data + b"\r\n--cut--\r\n"
    sent = event("rest_upscale.json")
    sent["headers"] = {"Content-Type": "multipart/form-data; boundary=cut", "Host": "example.com", **headers}
    sent["multiValueHeaders"] = {name: [value] for name, value in sent["headers"].items()}
    sent["queryStringParameters"] = dict(query)
    sent["multiValueQueryStringParameters"] = {name: [value] for name, value in query.items()}
    sent["body"] = base64.b64encode(body).decode()
    return sent


def headers(answer: Mapping[str, Any]) -> dict[str, str]:
    many = {name.lower(): values[0] for name, values in answer.get("multiValueHeaders", {}).items()}
    return many | {name.lower(): value for name, value in answer.get("headers", {}).items()}


def upscaled(data: bytes, **options: Any) -> bytes:
    """What `core` makes of a picture in this process."""
    made = core.upscale(io.BytesIO(data), core.Options(**options))
    assert made.data is not None
    return made.data


def read(storage: S3Storage, id: str) -> Job:
    return jobs.get(storage, id)


@pytest.mark.parametrize("name", UPSCALES)
def test_a_picture_goes_in_and_comes_out_byte_for_byte(api: Function, name: str) -> None:
    answer = api(name)
    assert answer["statusCode"] == 200, answer
    assert answer["isBase64Encoded"] is True
    assert base64.b64decode(answer["body"]) == upscaled(sent_picture(event(name)), scale=2)
    assert headers(answer)["content-type"] == "image/png"
    assert headers(answer)["x-upscale-degraded"] == "false"


def test_an_upload_arrives_byte_for_byte(api: Function, storage: S3Storage) -> None:
    data = picture(64, 48)
    assert len(set(data)) == 256  # every byte value, so that no step may take it for text
    answer = api(request(data, {}, Prefer="respond-async"))
    assert answer["statusCode"] == 202, answer
    job = json.loads(answer["body"])
    assert storage.get(job["input"]["key"])[0] == data


def test_a_result_that_a_response_can_just_carry(api: Function) -> None:
    """4.48 of the 4.5 million bytes that a response may have, and the emulator's own limit of 6 MB lets it pass."""
    data = picture(611, 611, format="PNG")
    answer = api(request(data, {"format": "bmp"}))
    assert answer["statusCode"] == 200, answer
    body = base64.b64decode(answer["body"])
    assert 4_400_000 < len(body) <= 4_500_000
    assert body == upscaled(data, scale=2, format="bmp")


def test_a_result_beyond_the_limit_is_redirected_to(api: Function) -> None:
    data = picture(720, 611, format="PNG")
    answer = api(request(data, {"format": "bmp"}))
    assert answer["statusCode"] == 303, answer
    assert len(json.dumps(answer)) < 10_000
    with urllib.request.urlopen(headers(answer)["location"]) as found:
        body = found.read()
        assert found.headers["Content-Type"] == "image/bmp"
        assert "photo-x2.bmp" in found.headers["Content-Disposition"]
    assert len(body) > 4_500_000
    assert body == upscaled(data, scale=2, format="bmp")


def test_errors_are_text(api: Function) -> None:
    answer = api(request(b"no picture", {}))
    assert answer["statusCode"] == 400
    assert answer["isBase64Encoded"] is False
    assert json.loads(answer["body"])["code"] == "unreadable_image"


def test_uploads_with_odd_keys(uploads: Function, storage: S3Storage) -> None:
    """Decoded, worked on, each with its own job; and the model is loaded for the first of them only."""
    keys = ["uploads/a+b %.jpg", "uploads/été/фото 1.png"]
    for seed, key in enumerate(keys):
        storage.put(key, picture(seed=seed), "image/png")
    odd = as_stored(storage, event("s3_put_odd_keys.json"))
    assert uploads(odd) == {"batchItemFailures": []}
    done = {job.input.key: job for job in jobs.every(storage) if job.input.key in keys}
    assert {key: job.state for key, job in done.items()} == dict.fromkeys(keys, State.SUCCEEDED)
    for seed, key in enumerate(keys):
        assert result(storage, done[key]) == upscaled(picture(seed=seed), scale=2)
    assert [done[key].timings["load"] > 0 for key in keys] == [True, False]

    # Another invocation of the same process, and the same event again.
    job = queued(storage, picture(seed=2))
    sent = event("s3_put.json")
    sent["Records"][0]["s3"]["object"]["key"] = job.input.key
    before = {key: read(storage, found.id) for key, found in done.items()}
    for event_ in (as_stored(storage, sent), odd):
        assert uploads(event_) == {"batchItemFailures": []}
    assert read(storage, job.id).state is State.SUCCEEDED
    assert read(storage, job.id).timings["load"] == 0
    assert {key: read(storage, found.id) for key, found in done.items()} == before


def test_batch_tells_of_a_dead_container(environment: dict[str, str], storage: S3Storage, tmp_path: Path) -> None:
    sent = event("batch_failed.json")
    id, batch_job_id = sent["detail"]["container"]["command"][-1], sent["detail"]["jobId"]
    wanted = jobs.Request(filename="photo.png", content_type="image/png")
    jobs.put(storage, id, wanted, ttl=TTL)
    jobs.uploaded(storage, id)
    jobs.change(
        storage, id, lambda job: job.model_copy(update={"backend": Backend.BATCH, "batch_job_id": batch_job_id})
    )
    with function("handler.batch_event.handler", tmp_path, environment) as tell:
        assert tell("batch_succeeded.json") == {}
        assert tell("batch_failed.json") == {"id": id, "state": "failed"}
    job = read(storage, id)
    assert job.state is State.FAILED
    assert job.error
    assert job.error.code == "batch_failed"
    assert "139" in job.error.message


class Stalling:
    """Passes bytes on to a server, but lets reads of uploads hang."""

    def __init__(self, port: int) -> None:
        self.hangs = threading.Event()
        self._port = port
        self._over = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._threads: list[threading.Thread] = []
        self._run(self._accept)

    def close(self) -> None:
        self._over.set()
        self._listener.shutdown(socket.SHUT_RDWR)  # wakes up accept
        self._listener.close()
        for thread in self._threads:
            thread.join(10)

    def _run(self, work: Callable[..., None], *arguments: Any) -> None:
        thread = threading.Thread(target=work, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        with suppress(OSError):  # closed
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(("127.0.0.1", self._port))
                self._run(self._pass, client, server, b"GET /" + BUCKET.encode() + b"/uploads/")
                self._run(self._pass, server, client, b"nothing begins like this")

    def _pass(self, source: socket.socket, target: socket.socket, hanging: bytes) -> None:
        with source, suppress(OSError):
            while data := source.recv(65536):
                if data.startswith(hanging):
                    self.hangs.set()
                    self._over.wait(PATIENCE)
                    break
                target.sendall(data)
        with suppress(OSError):
            target.shutdown(socket.SHUT_RDWR)  # the other direction ends, too


def test_a_time_out_leaves_no_job_stuck(
    environment: dict[str, str], storage: S3Storage, uploads: Function, tmp_path: Path
) -> None:
    """Lambda kills the worker in the middle of a job; the event comes again, and the job is done."""
    proxy = Stalling(int((storage.endpoint_url or "").rpartition(":")[2]))
    job = queued(storage, picture(seed=3))
    sent = event("s3_put.json")
    sent["Records"][0]["s3"]["object"]["key"] = job.input.key
    sent = as_stored(storage, sent)
    try:
        slow = {**environment, "S3_ENDPOINT_URL": proxy.url}
        # Of which its start takes some, too.
        with function("tests.e2e.hasty.handler", tmp_path, slow, seconds=12) as killed:
            answer = killed(sent)
        assert "timed out" in json.dumps(answer).lower(), answer
        assert proxy.hangs.is_set()
    finally:
        proxy.close()
    assert read(storage, job.id).state is State.RUNNING
    assert uploads(sent) == {"batchItemFailures": []}
    done = read(storage, job.id)
    assert (done.state, done.attempt, done.lost) == (State.SUCCEEDED, 2, 1)
    assert results(storage, done) == [done.output.key if done.output else ""]
    assert result(storage, done) == upscaled(picture(seed=3), scale=2)
