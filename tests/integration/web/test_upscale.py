"""POST /upscale: the picture, the job, the redirect, and every refusal."""

from __future__ import annotations

import json
import socket
import uuid
from pathlib import Path
from typing import Any

import httpx
import pytest

import core
from handler.settings import Settings
from handler.storage import open_storage
from handler.web import guard
from tests.integration.web.support import FORM, PNG, check_problem, finished, local, picture, served
from tests.integration.work import PATIENCE
from tests.servers import make_bucket
from tests.unit.pictures import huge_png


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
        ({"files": {"x": (None, "y")}}, 400, "no_file", "part 'file'"),
        ({"files": {"file": (None, "y")}}, 400, "unreadable_image", "give JPEG, PNG"),
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
        ({"json": {}}, 400, "no_file", "'url'"),
        ({"content": b"{}", "headers": {"content-type": "text/plain"}}, 415, "unsupported_media_type", "multipart"),
        ({}, 415, "unsupported_media_type", "multipart"),
        ({"params": {"scale": "0"}}, 422, "bad_options", "at least 1 and at most 8, not 0"),
        ({"params": {"scale": "9"}}, 422, "bad_options", "at least 1 and at most 8, not 9"),
        ({"params": {"scale": "NaN"}}, 422, "bad_options", "at least 1 and at most 8, not nan"),
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
        with socket.create_connection((client.base_url.host, client.base_url.port or 0), timeout=PATIENCE) as raw:
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
        with socket.create_connection((client.base_url.host, client.base_url.port or 0), timeout=PATIENCE) as raw:
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


def test_a_model_that_cannot_be_had_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(hub_id: str, *files: tuple[str, ...]) -> None:
        raise core.ModelError("offline")

    monkeypatch.setattr("core.models._snapshot", offline)
    with served(local(tmp_path, models="nobody/*")) as client:
        answer = client.post("/upscale", params={"model": "nobody/nothing"}, files={"file": ("a.png", PNG)})
    assert answer.status_code == 200, answer.text
    assert (answer.headers["x-upscale-model"], answer.headers["x-upscale-degraded"]) == ("compact-x2", "true")


def test_a_fallback_is_counted_in_aws(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(hub_id: str, *files: tuple[str, ...]) -> None:
        raise core.ModelError("offline")

    monkeypatch.setattr("core.models._snapshot", offline)
    with served(Settings(bucket="b", models="nobody/nothing")) as client:
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
