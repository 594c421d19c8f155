"""Every call of the HTTP interface, over real connections to a server in this process."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import logging
import re
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from PIL import Image

import core
from core.formats import FORMATS, READABLE
from handler import api, jobs, options, routing
from handler.local import Workers
from handler.settings import Settings
from handler.storage import DOWNLOAD_PATH, UPLOAD_PATH, LocalStorage, Storage, Unavailable, open_storage
from handler.web import guard, problems
from handler.web.app import build
from handler.web.service import WAITING
from handler.web.warm import warm
from tests.integration.receiver import Receiver
from tests.servers import make_bucket
from tests.unit.pictures import corners, huge_png, saved

PNG = saved(corners(), "PNG")  # 20 x 12
FORM = {"content-type": "multipart/form-data; boundary=x"}
ROOT = Path(__file__).parents[2]
UUID = "6f9619ff-8b86-4011-b42d-00c04fc964ff"


@contextmanager
def served(
    settings: Settings, storage: Storage | None = None, start: Callable[[str], None] = lambda _: None
) -> Iterator[httpx.Client]:
    """A running server, and a client that knows its address."""
    app = build(settings, storage, start)
    server = uvicorn.Server(uvicorn.Config(app, lifespan="off", ws="none", log_config=None, access_log=False))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            url = f"http://127.0.0.1:{listener.getsockname()[1]}"
            with httpx.Client(base_url=url, timeout=60, trust_env=False) as client:
                yield client
        finally:
            server.should_exit = True
            thread.join()


def local(folder: Path, **values: Any) -> Settings:
    return Settings(**{"data_dir": folder, "rate_limit": "none", "warm_model": "none", "bucket": "", **values})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def client(folder: Path) -> Iterator[httpx.Client]:
    """The service in local mode, its workers included."""
    settings, storage = local(folder, max_pixels=300_000), LocalStorage(folder)
    workers = Workers(storage, settings)
    workers.start()
    try:
        with served(settings, storage, workers.put) as client:
            yield client
    finally:
        workers.stop(30)


def picture(response: httpx.Response) -> Image.Image:
    return Image.open(io.BytesIO(response.content))


def check_problem(response: httpx.Response, status: int, code: str) -> str:
    """The detail of an answer that is a problem as RFC 9457 has it."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == problems.MEDIA_TYPE
    found = response.json()
    assert set(found) == {"type", "title", "status", "detail", "code", "request_id"}
    assert (found["status"], found["code"], found["type"]) == (status, code, "about:blank")
    assert found["request_id"] == response.headers["x-request-id"]
    detail = found["detail"]
    assert isinstance(detail, str)
    assert detail
    assert "\n" not in detail
    return detail


def finished(client: httpx.Client, id: str) -> dict[str, Any]:
    for _ in range(600):
        job: dict[str, Any] = client.get(f"/jobs/{id}").json()
        if jobs.State(job["state"]).final:
            return job
        time.sleep(0.1)
    raise AssertionError(f"not finished: {job}")


# -- POST /upscale ----------------------------------------------------------------------------------------------------


def test_upscale(client: httpx.Client) -> None:
    answer = client.post("/upscale", files={"file": ("photo.png", PNG)})
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "image/png"
    assert answer.headers["content-disposition"] == 'attachment; filename="photo-x2.png"'
    assert answer.headers["x-upscale-model"] == "compact-x2"
    assert answer.headers["x-upscale-degraded"] == "false"
    assert int(answer.headers["x-upscale-milliseconds"]) >= 0
    assert uuid.UUID(answer.headers["x-request-id"])
    assert picture(answer).size == (40, 24)
    direct = core.upscale(PNG).data
    assert answer.content == direct


@pytest.mark.parametrize("place", ["query", "form"])
def test_options_in_the_query_or_in_the_form(client: httpx.Client, place: str) -> None:
    asked = {"scale": "2.5", "format": "webp", "quality": "80", "exact": "true", "model": "compact-x2"}
    given: dict[str, Any] = {"params": asked} if place == "query" else {"data": asked}
    answer = client.post("/upscale", files={"file": ("photo.png", PNG)}, **given)
    assert answer.status_code == 200, answer.text
    assert (picture(answer).size, picture(answer).format) == ((50, 30), "WEBP")
    assert answer.headers["content-disposition"] == 'attachment; filename="photo-x2.5.webp"'


def test_width(client: httpx.Client) -> None:
    answer = client.post("/upscale?width=33", files={"file": ("photo.png", PNG)})
    assert picture(answer).size == (33, 20)


@pytest.mark.parametrize(
    ("sent", "saved_as"),
    [
        ("../../x.png", "x-x2.png"),
        ("C:\\pictures\\x.png", "x-x2.png"),
        ("a\x01\x7fb.png", "ab-x2.png"),
        ("été.png", "été-x2.png"),
        ("..", "image-x2.png"),
        ("x" * 3000 + ".png", None),
    ],
)
def test_file_names_are_made_safe(client: httpx.Client, sent: str, saved_as: str | None) -> None:
    # By hand: clients escape some of these, others do not.
    part = f'--x\r\nContent-Disposition: form-data; name="file"; filename="{sent}"\r\n\r\n'.encode()
    answer = client.post("/upscale", content=part + PNG + b"\r\n--x--\r\n", headers=FORM)
    assert answer.status_code == 200, answer.text
    header = answer.headers["content-disposition"]
    assert "/" not in header
    assert len(header) < 1000
    if saved_as is not None and saved_as.isascii():
        assert header == f'attachment; filename="{saved_as}"'
    if saved_as == "été-x2.png":
        assert "filename*=UTF-8''%C3%A9t%C3%A9-x2.png" in header


def test_a_name_of_ten_kilobytes_is_refused(client: httpx.Client) -> None:
    answer = client.post("/upscale", files={"file": ("x" * 10_000 + ".png", PNG)})
    assert "header" in check_problem(answer, 400, "malformed_request").lower()


@pytest.mark.parametrize(
    ("sent", "status", "code", "sentence"),
    [
        ({"files": {"other": ("a", b"")}, "params": {}}, 400, "no_file", "part 'file'"),
        ({"files": {"image": ("a.png", PNG)}}, 400, "no_file", "not 'image'"),
        ({"files": {"x": (None, "y")}}, 400, "no_file", "part 'file'"),
        ({"files": {"file": (None, "y")}}, 400, "no_file", "part 'file'"),
        ({"files": {"file": ("", b"")}}, 400, "no_file", "part 'file'"),
        ({"files": [("file", ("a.png", PNG)), ("file", ("b.png", PNG))]}, 400, "several_files", "one picture"),
        ({"files": [("file", ("a.png", PNG)), ("b", ("b.png", PNG))]}, 400, "several_files", "one picture"),
        ({"files": {"file": ("a.png", b"")}}, 400, "unreadable_image", "empty"),
        ({"files": {"file": ("a.jpg", b"some text")}}, 400, "unreadable_image", "give JPEG, PNG"),
        ({"files": {"file": ("a.png", PNG[:60])}}, 400, "unreadable_image", "damaged"),
        ({"files": {"file": ("a.png", huge_png())}}, 413, "too_large", "50000x50000 pixels"),
        ({"content": b"nonsense", "headers": FORM}, 400, "malformed_request", "cannot be read"),
        ({"content": PNG, "headers": {"content-type": "multipart/form-data"}}, 400, "malformed_request", "boundary"),
        ({"content": b"--x\r\nA: b\r\n\r\n\r\n--x--\r\n", "headers": FORM}, 400, "malformed_request", "name"),
        ({"content": b"", "headers": FORM}, 400, "no_file", "part 'file'"),
        ({"content": PNG, "headers": {"content-type": "image/png"}}, 415, "unsupported_media_type", "multipart"),
        ({"json": {}}, 415, "unsupported_media_type", "multipart"),
        ({}, 415, "unsupported_media_type", "multipart"),
        ({"params": {"scale": "0"}}, 422, "bad_options", "more than 1 and at most 8, not 0"),
        ({"params": {"scale": "9"}}, 422, "bad_options", "more than 1 and at most 8, not 9"),
        ({"params": {"scale": "NaN"}}, 422, "bad_options", "more than 1 and at most 8, not nan"),
        ({"params": {"scale": "two"}}, 422, "bad_options", "scale: input should be a valid number"),
        ({"params": {"scale": ""}}, 422, "bad_options", "scale: input should be a valid number"),
        ({"params": {"size": "2"}}, 422, "bad_options", "there is no 'size': the options are model, scale"),
        ({"params": {"scale": ["2", "3"]}}, 422, "bad_options", "given twice"),
        ({"params": {"scale": "2"}, "data": {"scale": "2"}}, 422, "bad_options", "given twice"),
        ({"params": {"scale": "2", "width": "50"}}, 422, "bad_options", "either scale or width"),
        ({"params": {"width": "10"}}, 422, "bad_options", "larger"),
        ({"params": {"format": "gif"}}, 422, "bad_options", "jpeg, png"),
        ({"params": {"model": "nothing"}}, 422, "bad_options", "compact-x2"),
        ({"params": {"model": "/etc"}}, 422, "bad_options", "compact-x2"),
        ({"data": {"siez": "3"}}, 422, "bad_options", "there is no 'siez'"),
        ({"data": {"model": "x" * 9000}}, 400, "malformed_request", "maximum size"),
        ({"data": {f"f{n}": "1" for n in range(30)}}, 400, "malformed_request", "too many fields"),
    ],
)
def test_bad_requests(client: httpx.Client, sent: dict[str, Any], status: int, code: str, sentence: str) -> None:
    if ("params" in sent or "data" in sent) and "files" not in sent:
        sent = sent | {"files": {"file": ("a.png", PNG)}}
    detail = check_problem(client.post("/upscale", **sent), status, code)
    assert sentence.lower() in detail.lower()


def test_a_body_that_is_too_long_is_refused_while_it_is_read(tmp_path: Path) -> None:
    """Neither length declared nor body ended: the answer comes at the byte that is too many."""
    limit = 300_000
    with served(local(tmp_path, max_upload_bytes=limit)) as client:
        with socket.create_connection((client.base_url.host, client.base_url.port or 0), timeout=30) as raw:
            raw.sendall(
                b"POST /upscale HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n"
                b"Content-Type: multipart/form-data; boundary=x\r\n\r\n"
            )
            start = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.png"\r\n\r\n'
            for part in (start, bytes(limit + guard.OVERHEAD)):
                raw.sendall(b"%x\r\n%b\r\n" % (len(part), part))
            answer = b""
            while not answer.endswith(b"}"):
                part = raw.recv(65536)
                assert part, answer
                answer += part
        assert answer.startswith(b"HTTP/1.1 413")
        assert b'"code":"too_large"' in answer
        with socket.create_connection((client.base_url.host, client.base_url.port or 0), timeout=30) as raw:
            raw.sendall(b"POST /upscale HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999\r\n\r\n")
            assert raw.recv(65536).startswith(b"HTTP/1.1 413")
        # Between the limit of the picture and that of the whole form, the picture decides.
        answers = {
            size: client.post("/upscale", files={"file": ("a.png", PNG + bytes(size - len(PNG)))}).status_code
            for size in (limit, limit + 1)
        }
        assert answers == {limit: 200, limit + 1: 413}
        is_json = {"content-type": "application/json"}
        for size, status, code in ((guard.OVERHEAD + 1, 413, "too_large"), (guard.OVERHEAD, 400, "malformed_request")):
            check_problem(client.post("/jobs", content=b"[" * size, headers=is_json), status, code)


def test_a_model_that_cannot_be_had_is_told(client: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(hub_id: str, files: tuple[str, ...]) -> None:
        raise core.ModelError("offline")

    monkeypatch.setattr("core.models._snapshot", offline)
    answer = client.post("/upscale", params={"model": "nobody/nothing"}, files={"file": ("a.png", PNG)})
    assert answer.status_code == 200, answer.text
    assert (answer.headers["x-upscale-model"], answer.headers["x-upscale-degraded"]) == ("compact-x2", "true")


def test_a_fallback_is_counted_in_aws(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(hub_id: str, files: tuple[str, ...]) -> None:
        raise core.ModelError("offline")

    monkeypatch.setattr("core.models._snapshot", offline)
    with served(Settings(bucket="b")) as client:
        asked = {"model": "nobody/nothing"}
        client.post("/upscale", params=asked, files={"file": ("a.png", PNG)}).raise_for_status()
        client.post("/upscale", files={"file": ("a.png", PNG)}).raise_for_status()
    [line] = [line for line in capsys.readouterr().out.splitlines() if "CloudWatchMetrics" in line]
    assert json.loads(line)["Fallback"] == [1.0]


@pytest.mark.parametrize("prefer", ["respond-async", "wait=10, Respond-Async; x=1"])
def test_work_on_request_as_a_job(client: httpx.Client, prefer: str) -> None:
    sent = {"file": ("photo.png", PNG)}
    answer = client.post("/upscale", params={"scale": 3}, files=sent, headers={"prefer": prefer})
    assert answer.status_code == 202
    assert answer.headers["preference-applied"] == "respond-async"
    job = answer.json()
    assert job["options"] == {"scale": 3.0}
    assert answer.url.join(answer.headers["location"]).path == f"/jobs/{job['id']}"
    job = finished(client, job["id"])
    assert (job["state"], job["model_used"], job["output"]["name"]) == ("succeeded", "compact-x3", "photo-x3.png")
    result = client.get(f"/jobs/{job['id']}/result")
    assert result.status_code == 307
    loaded = client.get(result.headers["location"])
    assert loaded.headers["content-disposition"] == 'attachment; filename="photo-x3.png"'
    assert loaded.headers["content-type"] == "image/png"
    assert picture(loaded).size == (60, 36)
    assert client.get(job["result_url"]).content == loaded.content


def test_work_over_the_budget_becomes_a_job(tmp_path: Path) -> None:
    started: list[str] = []
    with served(local(tmp_path, inline_seconds=0), start=started.append) as client:
        answer = client.post("/upscale", files={"file": ("photo.png", PNG)})
        assert answer.status_code == 202
        assert "preference-applied" not in answer.headers
        assert started == [answer.json()["id"]]
        assert answer.json()["state"] == "queued"
        problem = client.get(f"/jobs/{started[0]}/result")
        assert "queued" in check_problem(problem, 409, "not_finished")
        assert int(problem.headers["retry-after"]) > 0


def test_results_over_the_limit_of_a_response_are_stored(seaweedfs: str) -> None:
    bucket = make_bucket(seaweedfs)
    settings = Settings(bucket=bucket, s3_endpoint_url=seaweedfs, max_response_bytes=200)
    with served(settings) as client:
        answer = client.post("/upscale", files={"file": ("photo.png", PNG)})
        assert answer.status_code == 303
        assert answer.headers["x-upscale-model"] == "compact-x2"
        loaded = httpx.get(answer.headers["location"], trust_env=False)
        assert loaded.status_code == 200
        assert loaded.headers["content-disposition"] == 'attachment; filename="photo-x2.png"'
        assert picture(loaded).size == (40, 24)
        followed = client.post("/upscale", files={"file": ("photo.png", PNG)}, follow_redirects=True)
        assert followed.content == loaded.content


def test_a_job_in_s3_waits_for_the_upload_event(seaweedfs: str) -> None:
    settings = Settings(bucket=make_bucket(seaweedfs), s3_endpoint_url=seaweedfs)
    with served(settings) as client:
        job = client.post("/upscale", files={"file": ("photo.png", PNG)}, headers={"prefer": "respond-async"}).json()
        assert job["state"] == "awaiting_upload"
        client.get(f"/jobs/{job['id']}").raise_for_status()
        assert open_storage(settings).get(job["input"]["key"])[0] == PNG


# -- the clients that must go on working ------------------------------------------------------------------------------


def test_curl(client: httpx.Client, tmp_path: Path) -> None:
    (tmp_path / "photo.png").write_bytes(PNG)
    command = ["curl", "-sS", "--noproxy", "*", "-F", "file=@photo.png", f"{client.base_url}/upscale"]
    subprocess.run([*command, "--output", "x.png"], cwd=tmp_path, check=True)
    with Image.open(tmp_path / "x.png") as made:
        assert made.size == (40, 24)


def test_requests(client: httpx.Client) -> None:
    requests = pytest.importorskip("requests", reason="requests is not installed")
    with requests.Session() as session:
        session.trust_env = False
        answer = session.post(f"{client.base_url}/upscale", files={"file": io.BytesIO(PNG)})
    assert answer.status_code == 200
    assert picture(answer).size == (40, 24)


def test_fetch_across_origins(tmp_path: Path) -> None:
    """What a browser looks at when a page of another origin sends a FormData, with and without a preflight."""
    page = {"origin": "https://page.example"}
    ask = page | {"access-control-request-method": "POST", "access-control-request-headers": "x-api-key,prefer"}
    with served(local(tmp_path, cors_origins="https://page.example, https://other.example")) as client:
        answer = client.post("/upscale", files={"file": ("photo.png", PNG)}, headers=page)
        assert answer.headers["access-control-allow-origin"] == "https://page.example"
        assert "X-Upscale-Model" in answer.headers["access-control-expose-headers"]
        assert client.options("/upscale", headers=ask).status_code == 200
        refused = client.post("/upscale?scale=9", files={"file": ("photo.png", PNG)}, headers=page)
        check_problem(refused, 422, "bad_options")
        assert refused.headers["access-control-allow-origin"] == "https://page.example"
        stranger = client.post("/estimate", json={"width": 9, "height": 9}, headers={"origin": "https://evil.example"})
        assert "access-control-allow-origin" not in stranger.headers


def test_other_origins_are_shut_out_unless_configured(client: httpx.Client) -> None:
    answer = client.post("/upscale", files={"file": ("a.png", PNG)}, headers={"origin": "https://page.example"})
    assert "access-control-allow-origin" not in answer.headers
    check_problem(client.options("/upscale"), 405, "method_not_allowed")


# -- jobs -------------------------------------------------------------------------------------------------------------


WANTED = {"filename": "photo.png", "content_type": "image/png", "bytes": len(PNG), "options": {"scale": 2}}


def send(client: httpx.Client, upload: dict[str, Any], data: bytes = PNG) -> httpx.Response:
    return client.request(upload["method"], upload["url"], data=upload["fields"], files={"file": ("any", data)})


def test_a_job_from_beginning_to_end(client: httpx.Client) -> None:
    answer = client.post("/jobs", json=WANTED | {"width": 20, "height": 12})
    assert answer.status_code == 201, answer.text
    job = answer.json()
    assert answer.url.join(answer.headers["location"]).path == f"/jobs/{job['id']}"
    assert (job["state"], job["estimate"]["width"], job["upload"]["max_bytes"]) == ("awaiting_upload", 40, len(PNG))
    assert not {"lease", "request_hash", "revision"} & set(job)
    check_problem(client.get(f"/jobs/{job['id']}/result"), 409, "not_finished")
    assert send(client, job["upload"]).status_code == 204
    job = finished(client, job["id"])
    assert job["state"] == "succeeded"
    assert (job["input"]["width"], job["output"]["width"], job["output"]["name"]) == (20, 40, "photo-x2.png")
    assert job["upload"] is None
    assert job["progress"]["done"] == job["progress"]["total"] or job["progress"]["total"] == 0
    loaded = client.get(f"/jobs/{job['id']}/result", follow_redirects=True)
    assert picture(loaded).size == (40, 24)
    part = client.get(job["result_url"], headers={"range": "bytes=0-7"})
    assert (part.status_code, part.content) == (206, b"\x89PNG\r\n\x1a\n")
    check_problem(client.delete(f"/jobs/{job['id']}"), 409, "already_final")


def test_put_is_idempotent(client: httpx.Client) -> None:
    id = jobs.new_id()
    first = client.put(f"/jobs/{id}", json=WANTED)
    again = client.put(f"/jobs/{id}", json=WANTED)
    other = client.put(f"/jobs/{id}", json=WANTED | {"options": {"scale": 3}})
    assert (first.status_code, again.status_code) == (201, 200)
    assert first.json()["created"] == again.json()["created"]
    assert first.url.join(first.headers["location"]).path == f"/jobs/{id}"
    check_problem(other, 409, "conflict")
    assert send(client, again.json()["upload"]).status_code == 204
    assert finished(client, id)["state"] == "succeeded"
    assert client.put(f"/jobs/{id}", json=WANTED).json()["state"] == "succeeded"


def test_cancel(client: httpx.Client) -> None:
    job = client.post("/jobs", json=WANTED).json()
    for _ in range(2):
        answer = client.delete(f"/jobs/{job['id']}")
        assert (answer.status_code, answer.json()["state"]) == (200, "cancelled")
    assert "cancelled" in check_problem(client.get(f"/jobs/{job['id']}/result"), 409, "no_result")


def test_in_aws_the_webhook_of_a_cancelled_job_is_sent_before_the_answer(tmp_path: Path) -> None:
    """Lambda freezes the process when the answer is out; a thread that still had to send would stand still with it.

    A directory stands in for the bucket.
    """

    def slowly(handler: BaseHTTPRequestHandler) -> None:
        time.sleep(0.5)
        handler.send_response(204)
        handler.end_headers()

    settings = local(tmp_path, bucket="b", webhook_allow_private=True)
    with Receiver(slowly) as receiver, served(settings, LocalStorage(tmp_path)) as client:
        job = client.post("/jobs", json=WANTED | {"webhook": receiver.url}).json()
        answer = client.delete(f"/jobs/{job['id']}").json()
        assert (answer["state"], answer["webhook"]["state"]) == ("cancelled", "delivered")
        [(_, _, headers, _)] = receiver.requests
        assert headers["X-Upscale-Job"] == job["id"]
        assert client.delete(f"/jobs/{job['id']}").json() == answer
        assert len(receiver.requests) == 1


def test_in_aws_a_webhook_that_fails_does_not_fail_the_cancelling(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("handler.web.jobs.ATTEMPTS", 1)
    settings = local(tmp_path, bucket="b", webhook_allow_private=True)
    with Receiver(503) as receiver, served(settings, LocalStorage(tmp_path)) as client:
        job = client.post("/jobs", json=WANTED | {"webhook": receiver.url}).json()
        answer = client.delete(f"/jobs/{job['id']}")
    assert (answer.status_code, answer.json()["state"]) == (200, "cancelled")
    assert (answer.json()["webhook"]["state"], answer.json()["webhook"]["status"]) == ("failed", 503)


def test_a_job_whose_upload_is_no_picture_fails(client: httpx.Client) -> None:
    job = client.post("/jobs", json=WANTED | {"bytes": 100}).json()
    assert send(client, job["upload"], b"some text").status_code == 204
    job = finished(client, job["id"])
    assert (job["state"], job["error"]["code"]) == ("failed", "unreadable_image")
    assert "not a picture" in check_problem(client.get(f"/jobs/{job['id']}/result"), 409, "no_result")


@pytest.mark.parametrize(
    ("body", "status", "code", "sentence"),
    [
        ({}, 422, "bad_request", "field required"),
        (WANTED | {"filename": ""}, 422, "bad_request", "filename"),
        (WANTED | {"content_type": "text/html"}, 422, "bad_request", "content_type"),
        (WANTED | {"bytes": 0}, 422, "bad_request", "bytes"),
        (WANTED | {"bytes": 10**12}, 413, "too_large", "limit"),
        (WANTED | {"more": 1}, 422, "bad_request", "no field 'more'"),
        (WANTED | {"options": {"scale": 9}}, 422, "bad_options", "at most 8"),
        (WANTED | {"options": {"size": 9}}, 422, "bad_options", "there is no 'size'"),
        (WANTED | {"options": {"scale": "x"}}, 422, "bad_options", "scale: input should be a valid number"),
        (WANTED | {"width": 50_000, "height": 50_000}, 413, "too_large", "50000x50000"),
        (WANTED | {"webhook": "ftp://example.com"}, 422, "bad_webhook", "http"),
        (WANTED | {"webhook": "http://127.0.0.1/"}, 422, "bad_webhook", "private"),
        ([], 422, "bad_request", "body"),
    ],
)
def test_bad_jobs(client: httpx.Client, body: Any, status: int, code: str, sentence: str) -> None:
    assert sentence in check_problem(client.post("/jobs", json=body), status, code)


def test_names_of_uploads_are_made_safe(client: httpx.Client) -> None:
    for name in ("../../x", "a/b\\c\x00.png", "x" * 10_000):
        job = client.post("/jobs", json=WANTED | {"filename": name}).json()
        folder, _, last = job["input"]["key"].rpartition("/")
        assert folder == f"uploads/{job['id']}"
        assert 0 < len(last) <= 200
        assert ".." not in last


@pytest.mark.parametrize("path", ["/jobs/{}", "/jobs/{}/result"])
@pytest.mark.parametrize(
    ("id", "status", "code"),
    [("7", 422, "invalid_id"), (UUID.upper(), 422, "invalid_id"), (UUID, 404, "job_not_found")],
)
def test_bad_ids(client: httpx.Client, path: str, id: str, status: int, code: str) -> None:
    check_problem(client.get(path.format(id)), status, code)
    if path == "/jobs/{}":
        check_problem(client.delete(path.format(id)), status, code)


def test_an_expired_job_is_gone(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path)
    with served(local(tmp_path), storage) as client:
        id = client.post("/jobs", json=WANTED).json()["id"]
        data, etag = storage.get(jobs.job_key(id))
        late = jobs.loads(data).model_copy(update={"expires": jobs.utc_now()})
        storage.swap(jobs.job_key(id), jobs.dumps(late), etag)
        check_problem(client.get(f"/jobs/{id}"), 404, "job_not_found")


def test_links_hold_what_they_say(client: httpx.Client) -> None:
    upload = client.post("/jobs", json=WANTED).json()["upload"]
    wrong_type = upload | {"fields": {"Content-Type": "image/jpeg"}}
    assert "image/png" in check_problem(send(client, wrong_type), 403, "link_refused")
    assert str(len(PNG)) in check_problem(send(client, upload, PNG + b"x"), 403, "link_refused")
    check_problem(send(client, upload, b""), 403, "link_refused")
    token = upload["url"].partition("token=")[2]
    for bad in ("", "x", token + "0", token.replace(".", "")):
        check_problem(client.get(DOWNLOAD_PATH, params={"token": bad}), 403, "link_refused")
        check_problem(client.post(UPLOAD_PATH, params={"token": bad}, files={"file": PNG}), 403, "link_refused")
    check_problem(client.get(DOWNLOAD_PATH, params={"token": token}), 403, "link_refused")  # for uploads only
    check_problem(client.post(upload["url"]), 415, "unsupported_media_type")


def test_a_result_that_was_swept_away(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path)
    with served(local(tmp_path), storage) as client:
        check_problem(client.get(storage.download_link("results/x", "x.png", 60)), 404, "not_found")


# -- the rest ---------------------------------------------------------------------------------------------------------


def test_estimate(client: httpx.Client) -> None:
    answer = client.post("/estimate", json={"width": 100, "height": 50, "options": {"scale": 3}})
    assert answer.status_code == 200
    found = answer.json()
    assert (found["width"], found["height"], found["route"], found["model"]) == (300, 150, "inline", "compact-x3")
    check_problem(client.post("/estimate", json={"width": 1000, "height": 1000}), 413, "too_large")
    check_problem(client.post("/estimate", json={"width": 10}), 422, "bad_request")
    is_json = {"content-type": "application/json"}
    check_problem(client.post("/estimate", content=b"{", headers=is_json), 400, "malformed_request")
    check_problem(client.post("/estimate", content=b"\xff", headers=is_json), 400, "malformed_request")
    for wrong in ({}, {"content-type": "application/x-www-form-urlencoded"}):
        answer = client.post("/estimate", content=b'{"width": 10, "height": 10}', headers=wrong)
        assert "application/json" in check_problem(answer, 415, "unsupported_media_type")


def test_models(client: httpx.Client) -> None:
    found = {model["name"]: model for model in client.get("/models").json()}
    assert set(found) == set(core.models.MODELS)
    assert [name for name, model in found.items() if model["default"]] == ["compact-x2", "photo-x2"]
    assert found["compact-x2"]["embedded"]
    assert not found["swin2sr-classical-x2"]["embedded"]
    assert str(ROOT) not in client.get("/models").text


def test_pages(client: httpx.Client) -> None:
    for path in ("/docs", "/redoc", "/"):
        answer = client.get(path)
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/html")


def test_the_page_needs_nothing_from_elsewhere(client: httpx.Client) -> None:
    answer = client.get("/")
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "http" not in answer.text + policy
    assert READABLE in answer.text
    for format in FORMATS:
        assert f'<option value="{format}">' in answer.text
    for tag in ("script", "style"):
        [text] = re.findall(f"<{tag}>(.*?)</{tag}>", answer.text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy


def test_health(client: httpx.Client) -> None:
    assert client.get("/health").json() == {"status": "ok", "version": api.app.version, "mode": "local"}


def test_paths_and_methods_that_are_not(client: httpx.Client) -> None:
    check_problem(client.get("/nothing"), 404, "no_such_path")
    check_problem(client.get("/jobs/"), 404, "no_such_path")
    refused = client.delete("/health")
    check_problem(refused, 405, "method_not_allowed")
    assert refused.headers["allow"] == "GET"
    assert client.post(f"/jobs/{UUID}").headers["allow"] == "DELETE, GET, PUT"


def test_the_key(tmp_path: Path) -> None:
    with served(local(tmp_path, api_key="opensesame")) as client:
        for path in ("/models", f"/jobs/{UUID}", "/nothing"):
            check_problem(client.get(path), 401, "unauthorized")
            check_problem(client.get(path, headers={"x-api-key": "opensesam"}), 401, "unauthorized")
            check_problem(client.get(path, headers=[(b"x-api-key", b"\xe9")]), 401, "unauthorized")
        check_problem(client.post("/upscale", files={"file": PNG}), 401, "unauthorized")
        key = {"x-api-key": "opensesame"}
        assert client.get("/models", headers=key).status_code == 200
        assert client.get("/openapi.json").json()["security"] == [{"ApiKey": []}]
        for path in ("/health", "/", "/docs"):
            assert client.get(path).status_code == 200
        upload = client.post("/jobs", json=WANTED, headers=key).json()["upload"]
        assert send(client, upload).status_code == 204  # the link is signed


def test_the_rate_limit(tmp_path: Path) -> None:
    with served(local(tmp_path, rate_limit="3/hour")) as client:
        ask = {"width": 10, "height": 10}
        assert [client.post("/estimate", json=ask).status_code for _ in range(4)] == [200, 200, 200, 429]
        refused = client.post("/upscale", files={"file": PNG})
        assert "3 requests a hour" in check_problem(refused, 429, "rate_limited")
        assert 0 < int(refused.headers["retry-after"]) <= 3601
        assert client.get("/models").status_code == 200  # costs nothing


class Broken(LocalStorage):
    """A store that fails."""

    def __init__(self, root: Path, error: Exception) -> None:
        super().__init__(root)
        self.error = error

    def get(self, key: str) -> tuple[bytes, str]:
        raise self.error


def test_a_defect_shows_nothing_of_the_inside(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with served(local(tmp_path, cors_origins="*"), Broken(tmp_path, RuntimeError("the secret"))) as client:
        answer = client.get(f"/jobs/{UUID}", headers={"origin": "https://page.example"})
        check_problem(answer, 500, "internal_error")
        assert "secret" not in answer.text
        assert answer.headers["access-control-allow-origin"] == "*"
    [record] = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert record.__dict__["request_id"] == answer.json()["request_id"]
    assert "the secret" in str(record.exc_info)


def test_a_store_that_does_not_answer(tmp_path: Path) -> None:
    with served(local(tmp_path), Broken(tmp_path, Unavailable("PutObject at 10.0.0.1"))) as client:
        answer = client.get(f"/jobs/{UUID}")
        assert "10.0.0.1" not in check_problem(answer, 503, "storage_unavailable")
        assert int(answer.headers["retry-after"]) > 0


class Slow:
    """Stands in for `core.upscale`: takes until it is told, and counts."""

    def __init__(self) -> None:
        self.go, self.cancelled = threading.Event(), threading.Event()
        self.lock, self.running, self.most = threading.Lock(), 0, 0
        self.real = core.upscale

    def __call__(self, *args: Any, progress: Callable[[int, int], None], **kwargs: Any) -> core.Result:
        with self.lock:
            self.running += 1
            self.most = max(self.most, self.running)
        try:
            while not self.go.wait(0.01):
                progress(0, 1)
        except core.Cancelled:
            self.cancelled.set()
            raise
        finally:
            with self.lock:
                self.running -= 1
        return self.real(*args, **kwargs)


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> Slow:
    found = Slow()
    monkeypatch.setattr(core, "upscale", found)
    return found


def test_work_is_bounded_and_the_queue_is_short(tmp_path: Path, slow: Slow) -> None:
    room = 2 + 2 * WAITING
    with served(local(tmp_path, max_concurrency=2)) as client, ThreadPoolExecutor(room + 5) as pool:
        calls = [pool.submit(client.post, "/upscale", files={"file": ("a.png", PNG)}) for _ in range(room + 5)]
        while sum(call.done() for call in calls) < 5:
            time.sleep(0.01)
        slow.go.set()
        answers = [call.result() for call in calls]
    assert sorted(answer.status_code for answer in answers) == [200] * room + [503] * 5
    assert slow.most == 2
    for answer in answers:
        if answer.status_code == 503:
            check_problem(answer, 503, "busy")
            assert 1 <= int(answer.headers["retry-after"]) <= 120


def test_work_stops_when_the_client_is_gone(tmp_path: Path, slow: Slow) -> None:
    with served(local(tmp_path)) as client:
        with pytest.raises(httpx.ReadTimeout):
            client.post("/upscale", files={"file": ("a.png", PNG)}, timeout=0.5)
        assert slow.cancelled.wait(30)
        slow.go.set()  # and the place is free again
        assert client.post("/upscale", files={"file": ("a.png", PNG)}).status_code == 200


def test_the_event_loop_stays_free_during_work(tmp_path: Path, slow: Slow) -> None:
    with served(local(tmp_path)) as client, ThreadPoolExecutor(1) as pool:
        call = pool.submit(client.post, "/upscale", files={"file": ("a.png", PNG)})
        while not slow.running:
            time.sleep(0.01)
        assert client.get("/health").status_code == 200
        assert not call.done()
        slow.go.set()
        assert call.result().status_code == 200


def test_out_of_memory_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise core.OutOfMemory("not enough memory for a tile")

    monkeypatch.setattr(core, "upscale", fail)
    with served(local(tmp_path)) as client:
        check_problem(client.post("/upscale", files={"file": ("a.png", PNG)}), 503, "out_of_memory")


# -- the description --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def openapi(client: httpx.Client) -> dict[str, Any]:
    found: dict[str, Any] = client.get("/openapi.json").json()
    return found


def test_every_call_is_described(openapi: dict[str, Any]) -> None:
    calls = {f"{method.upper()} {path}" for path, found in openapi["paths"].items() for method in found}
    assert calls == {
        "POST /upscale",
        "POST /estimate",
        "GET /models",
        "GET /health",
        "POST /jobs",
        "PUT /jobs/{id}",
        "GET /jobs/{id}",
        "DELETE /jobs/{id}",
        "GET /jobs/{id}/result",
    }


def test_every_code_is_described(openapi: dict[str, Any]) -> None:
    """All but those of paths that are in no description: no such path or method, and the local links."""
    described = set()
    for path in openapi["paths"].values():
        for operation in path.values():
            for status, answer in operation["responses"].items():
                examples = answer.get("content", {}).get(problems.MEDIA_TYPE, {}).get("examples", {})
                for code, example in examples.items():
                    assert problems.CODES[code].status == int(status) == example["value"]["status"]
                    assert example["value"]["code"] == code
                    assert set(example["value"]) == set(openapi["components"]["schemas"]["Problem"]["properties"])
                    described.add(code)
    assert set(problems.CODES) - described == {"no_such_path", "method_not_allowed", "link_refused", "not_found"}


def resolve(openapi: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    while "$ref" in schema:
        schema = openapi["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    return schema


def test_examples_are_accepted(client: httpx.Client, openapi: dict[str, Any]) -> None:
    """Each body made of the examples of its fields, and each example of a query parameter, works."""
    tried = 0
    for path, method in (("/jobs", "post"), ("/jobs/{id}", "put"), ("/estimate", "post")):
        schema = openapi["paths"][path][method]["requestBody"]["content"]["application/json"]["schema"]
        fields = resolve(openapi, schema)["properties"]
        body = {name: field["examples"][0] for name, field in fields.items() if "examples" in field}
        assert body
        answer = client.request(method, path.format(id=jobs.new_id()), json=body)
        assert answer.is_success, answer.text
        tried += 1
    for parameter in openapi["paths"]["/upscale"]["post"]["parameters"]:
        for example in parameter["schema"].get("examples", []) + list(parameter.get("examples", [])):
            place = "params" if parameter["in"] == "query" else "headers"
            given: dict[str, Any] = {place: {parameter["name"]: str(example)}}
            answer = client.post("/upscale", files={"file": ("a.png", PNG)}, **given)
            assert answer.is_success, answer.text
            tried += 1
    assert tried >= 7


def test_the_curl_line_of_the_description(client: httpx.Client, openapi: dict[str, Any], tmp_path: Path) -> None:
    [line] = re.findall(r"^ +(curl .*)$", openapi["info"]["description"], re.MULTILINE)
    (tmp_path / "photo.jpg").write_bytes(saved(corners(), "JPEG"))
    line = line.replace("http://127.0.0.1:8000", str(client.base_url))
    subprocess.run(["sh", "-c", f"{line} -sS --noproxy '*'"], cwd=tmp_path, check=True)
    with Image.open(tmp_path / "photo-x2.jpg") as made:
        assert made.size == (40, 24)


# -- the cold path, and Lambda ----------------------------------------------------------------------------------------


def in_new_process(code: str, folder: Path, **environment: str) -> Any:
    environment |= {"PATH": "", "PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(folder)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    return json.loads(done.stdout)


def test_the_import_is_light(tmp_path: Path) -> None:
    heavy = ["torch", "transformers", "scipy", "boto3", "limits.storage.redis", "uvicorn", "huggingface_hub"]
    code = f"import sys, json, handler.api; print(json.dumps([m for m in {heavy} if m in sys.modules]))"
    assert in_new_process(code, tmp_path, DATA_DIR=str(tmp_path / "never")) == []
    assert not (tmp_path / "never").exists()


def test_warming_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert warm(local(tmp_path)) is None
    thread = warm(local(tmp_path, warm_model="compact-x2"))
    assert thread
    thread.join()
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert routing.plan(core.Probe("png", 64, 64, 0, ""), core.Options(), local(tmp_path)).measured


LAMBDA = {"AWS_LAMBDA_FUNCTION_NAME": "f", "BUCKET": "b"}


def test_lambda_can_do_without_warming_up(tmp_path: Path) -> None:
    code = "import json, threading, handler.api; print(json.dumps([t.name for t in threading.enumerate()]))"
    assert in_new_process(code, tmp_path, WARM_MODEL="none", **LAMBDA) == ["MainThread"]


def test_lambda_warms_up_beside_its_start_and_gives_binary_as_base64(tmp_path: Path) -> None:
    """Events as API Gateway (REST and HTTP) and function URLs send them, through Mangum."""
    events = [ROOT / "tests" / "events" / f"{kind}_upscale.json" for kind in ("rest", "http", "function_url")]
    code = f"""
import json, sys, threading, handler.api
[thread] = [thread for thread in threading.enumerate() if thread.name == "warm"]
thread.join()
from core.engine import load
warm = [name for name, _, _ in load._warm]
class Context: aws_request_id = "the-id-of-lambda"
answers = [handler.api.handler(json.load(open(path)), Context()) for path in {[str(path) for path in events]}]
print(json.dumps([warm, answers]))
"""
    warm, answers = in_new_process(code, tmp_path, **LAMBDA)
    assert warm == ["photo-x2"]
    for answer in answers:
        headers = {name: values[0] for name, values in answer.get("multiValueHeaders", {}).items()}
        headers |= answer.get("headers", {})
        assert (answer["statusCode"], answer["isBase64Encoded"]) == (200, True)
        assert Image.open(io.BytesIO(base64.b64decode(answer["body"]))).size == (32, 24)
        assert headers["x-request-id"] == "the-id-of-lambda"
        assert headers["content-type"] == "image/png"


def test_options_of_a_job_are_those_of_the_query() -> None:
    """What is kept in a job document is read back as what was asked for."""
    settings = Settings()
    asked = {"scale": "2.5", "format": "webp", "quality": "80", "exact": "true"}
    kept = options.RequestOptions.model_validate(asked).model_dump(exclude_none=True)
    assert options.parse(json.loads(json.dumps(kept)), settings) == options.parse(asked, settings)
    assert replace(options.parse(kept, settings), scale=2) != options.parse(asked, settings)
