"""From POST /jobs to the downloaded result: the service over HTTP, uploads in Lambda's emulator, a real S3 server.

The client knows nothing but HTTP and the links that it is given. Nobody tells SeaweedFS's events to Lambda, so the test
does, with what S3 would say.
"""

from __future__ import annotations

import base64
import io
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote_plus

import httpx
import numpy as np
import pytest
from PIL import Image

from handler.settings import Settings
from handler.storage import S3Storage
from tests.e2e.emulator import ROOT, Function, function
from tests.integration.web.support import served
from tests.integration.work import event, picture
from tests.servers import make_bucket

pytestmark = pytest.mark.slow

NAME = "été photo+1 %.png"


@pytest.fixture(scope="module")
def storage(seaweedfs: str) -> S3Storage:
    return S3Storage(make_bucket(seaweedfs), endpoint_url=seaweedfs)


@pytest.fixture(scope="module")
def settings(storage: S3Storage) -> Settings:
    return Settings(bucket=storage.bucket, s3_endpoint_url=storage.endpoint_url or "", warm_model="none")


@pytest.fixture(scope="module")
def service(settings: Settings) -> Iterator[httpx.Client]:
    with served(settings) as client:
        yield client


@pytest.fixture(scope="module")
def uploads(settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Function]:
    environment = {"BUCKET": settings.bucket, "S3_ENDPOINT_URL": settings.s3_endpoint_url, "LAMBDA_SECONDS": "900"}
    with function("handler.s3_event.handler", tmp_path_factory.mktemp("uploads"), environment) as found:
        yield found


def wanted(data: bytes) -> dict[str, Any]:
    return {"filename": NAME, "content_type": "image/png", "bytes": len(data), "options": {"scale": 2.5}}


def created(service: httpx.Client, data: bytes) -> dict[str, Any]:
    """A job that waits for exactly this picture."""
    answer = service.post("/jobs", json=wanted(data))
    assert answer.status_code == 201, answer.text
    job: dict[str, Any] = answer.json()
    assert (job["state"], job["upload"]["max_bytes"]) == ("awaiting_upload", len(data))
    return job


def send(upload: dict[str, Any], data: bytes, **changed: str) -> int:
    """Post a file to the signed link; the status. `changed` are fields of the form."""
    fields = {**upload["fields"], **changed}
    return httpx.post(upload["url"], data=fields, files={"file": ("x", data)}, trust_env=False).status_code


def told(storage: S3Storage, key: str) -> dict[str, Any]:
    """What S3 says of an object that has arrived."""
    sent, head = event("s3_put.json"), storage.head(key)
    [record] = sent["Records"]
    record["s3"]["bucket"]["name"] = storage.bucket
    record["s3"]["object"] = {
        "key": quote_plus(key, safe="/"),
        "size": head.size,
        "eTag": head.etag.strip('"'),
        "sequencer": "0A1B2C3D4E5F678901",
    }
    return sent


def pixels(data: bytes) -> np.ndarray[Any, np.dtype[np.uint8]]:
    with Image.open(io.BytesIO(data)) as found:
        assert found.format == "PNG"
        return np.asarray(found)


def test_a_job_from_request_to_download(
    service: httpx.Client, uploads: Function, storage: S3Storage, tmp_path: Path
) -> None:
    data = picture(61, 47)
    job = created(service, data)
    assert send(job["upload"], data) in (200, 201, 204)
    assert uploads(told(storage, job["input"]["key"])) == {"batchItemFailures": []}

    job = service.get(f"/jobs/{job['id']}").json()
    assert (job["state"], job["backend"], job["degraded"]) == ("succeeded", "lambda", False), job
    answer = service.get(f"/jobs/{job['id']}/result")
    assert answer.status_code == 307
    link = answer.headers["location"]
    assert link.startswith(storage.endpoint_url or "-")
    downloaded = httpx.get(link, trust_env=False)
    assert downloaded.status_code == 200
    assert "%C3%A9t%C3%A9%20photo+1%20%25-x2.5.png" in downloaded.headers["content-disposition"]

    photo, made = tmp_path / "photo.png", tmp_path / "made.png"
    photo.write_bytes(data)
    command = [sys.executable, "-m", "core", str(photo), "--scale", "2.5", "--output", str(made)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    expected = pixels(made.read_bytes())
    assert expected.shape == (118, 152, 3)
    assert np.array_equal(pixels(downloaded.content), expected)

    # The link opens this result, until when it says, and nothing else.
    for forged in (
        link.replace("X-Amz-Expires=3600", "X-Amz-Expires=360000"),
        link.replace("/results/", "/uploads/"),
        link.partition("?")[0],
    ):
        assert forged != link
        assert httpx.get(forged, trust_env=False).status_code == 403


def longer(fields: dict[str, str]) -> dict[str, str]:
    """The policy rewritten to allow any length; its signature stays."""
    policy = json.loads(base64.b64decode(fields["policy"]))
    policy["conditions"] = [
        ["content-length-range", 1, 10**9] if "content-length-range" in condition else condition
        for condition in policy["conditions"]
    ]
    return {"policy": base64.b64encode(json.dumps(policy).encode()).decode()}


def elsewhere(fields: dict[str, str]) -> dict[str, str]:
    """Another job's place."""
    return {"key": "uploads/6f9619ff-8b86-4011-b42d-00c04fc964ff/photo.png"}


@pytest.mark.parametrize(
    ("extra", "changed"),
    [
        pytest.param(b"1", lambda fields: {}, id="a byte too long"),
        pytest.param(b"1", longer, id="tampered policy"),
        pytest.param(b"", elsewhere, id="tampered key"),
        pytest.param(b"", lambda fields: {"x-amz-signature": "0" * 64}, id="tampered signature"),
        pytest.param(b"", lambda fields: {"Content-Type": "image/svg+xml"}, id="wrong type"),
    ],
)
def test_the_server_refuses_what_was_not_agreed(
    service: httpx.Client, storage: S3Storage, extra: bytes, changed: Callable[[dict[str, str]], dict[str, str]]
) -> None:
    data = picture()
    job = created(service, data)
    upload = job["upload"]
    assert send(upload, data + extra, **changed(upload["fields"])) in (400, 403)
    assert not list(storage.list(f"uploads/{job['id']}/"))
    assert not list(storage.list(elsewhere({})["key"]))
    assert service.get(f"/jobs/{job['id']}").json()["state"] == "awaiting_upload"
    assert send(upload, data) in (200, 201, 204), "it was that, and nothing else"


def test_the_server_refuses_an_upload_that_comes_too_late(settings: Settings, storage: S3Storage) -> None:
    data = picture()
    with served(settings.model_copy(update={"link_seconds": 1})) as service:  # less than settings take
        job = created(service, data)
        time.sleep(2.1)
        assert send(job["upload"], data) == 403
        assert not list(storage.list(f"uploads/{job['id']}/"))
        renewed = service.put(f"/jobs/{job['id']}", json=wanted(data)).json()["upload"]
        assert send(renewed, data) in (200, 201, 204), "it was the time, and nothing else"
