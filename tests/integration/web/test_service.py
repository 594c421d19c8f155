"""Estimates, models and pages; keys, rates, defects, and too much work."""

from __future__ import annotations

import errno
import logging
import re
import shutil
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

import core
from core.formats import FORMATS, READABLE
from handler import api
from handler.storage import LocalStorage, Unavailable
from handler.turns import LEAST_SECONDS
from tests.integration.web.support import PNG, ROOT, UUID, WANTED, Slow, check_problem, local, send, served
from tests.integration.work import PATIENCE, wait_for


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
    embedded = {"compact-x2", "compact-x3", "compact-x4", "photo-x2", "photo-x4", "detail-x4"}
    assert set(found) == embedded, "what needs no download"
    assert [name for name, model in found.items() if model["default"]] == ["compact-x2", "photo-x2"]
    assert found["compact-x2"]["embedded"]
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
    assert "<script>" not in answer.text
    assert "<style" not in answer.text
    assert " style=" not in answer.text
    for path in re.findall('(?:src|href)="(static/[^"]+)"', answer.text):
        assert client.get(path).status_code == 200


def test_static_files(client: httpx.Client) -> None:
    script = client.get("/static/main.js")
    assert script.headers["content-type"].startswith("text/javascript")
    again = client.get("/static/main.js", headers={"if-none-match": script.headers["etag"]})
    assert again.status_code == 304
    imports = set(re.findall(r'from "\./([^"]+)"', script.text))
    assert len(imports) > 5
    for name in imports | {"swagger-ui.css", "swagger-ui-bundle.js", "redoc.js"}:
        assert client.get(f"/static/{name}").status_code == 200, name
    assert "cdn.redoc" not in client.get("/static/redoc.js").text
    check_problem(client.get("/static/nothing.js"), 404, "no_such_path")
    check_problem(client.get("/static/..%2fpage.py"), 404, "no_such_path")
    refused = client.post("/static/main.js")
    check_problem(refused, 405, "method_not_allowed")
    assert refused.headers["allow"] == "GET, HEAD"


def test_health(client: httpx.Client) -> None:
    assert client.get("/health").json() == {
        "status": "ok",
        "version": api.app.version,
        "mode": "local",
        "storage": "ok",
    }
    assert client.get("/ready").status_code == 200


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
        assert client.get("/openapi.json").json()["security"] == [{"ApiKey": []}, {"Bearer": []}]
        for path in ("/health", "/", "/docs", "/static/main.js"):
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


@pytest.mark.parametrize(
    ("number", "code"), [(errno.EMFILE, "busy"), (errno.ENOSPC, "storage_unavailable"), (errno.EIO, "internal_error")]
)
def test_what_the_machine_has_no_more_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, number: int, code: str
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError(number, "the cause")

    monkeypatch.setattr(core, "probe", fail)
    with served(local(tmp_path)) as client:
        answer = client.post("/upscale", files={"file": ("a.png", PNG)})
        assert "cause" not in check_problem(answer, 500 if code == "internal_error" else 503, code)
    assert "the cause" in caplog.text


def test_a_store_that_does_not_answer(tmp_path: Path) -> None:
    with served(local(tmp_path), Broken(tmp_path, Unavailable("PutObject at 10.0.0.1"))) as client:
        answer = client.get(f"/jobs/{UUID}")
        assert "10.0.0.1" not in check_problem(answer, 503, "storage_unavailable")
        assert int(answer.headers["retry-after"]) > 0


def test_a_directory_that_fails_is_told_and_comes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Issue 16: a disk that was full, or a directory that was gone, was a bare 503 and nothing in the log."""
    monkeypatch.setattr("handler.web.service.CHECK_SECONDS", 0.0)
    with served(local(tmp_path / "data")) as client:
        assert client.get("/ready").status_code == 200
        for folder in (tmp_path / "data").iterdir():
            shutil.rmtree(folder) if folder.is_dir() else folder.unlink()
        (tmp_path / "data").rmdir()
        (tmp_path / "data").write_text("in the way")
        check_problem(client.get("/ready"), 503, "storage_unavailable")
        health = client.get("/health")
        assert (health.status_code, health.json()["storage"]) == (200, "failing")
        check_problem(client.post("/jobs", json=WANTED), 503, "storage_unavailable")
        assert any(
            "ot a directory" in record.getMessage() or "exists" in record.getMessage() for record in caplog.records
        )
        (tmp_path / "data").unlink()
        assert client.get("/ready").status_code == 200, "and nothing had to be started anew"
        assert client.post("/jobs", json=WANTED).status_code == 201


def test_work_is_bounded_and_the_queue_is_short(tmp_path: Path, slow: Slow) -> None:
    room = 10  # of the least seconds; one client may have half of them
    settings = local(tmp_path, max_concurrency=2, queue_seconds=room * LEAST_SECONDS)
    with served(settings) as client, ThreadPoolExecutor(room + 5) as pool:
        calls = [pool.submit(client.post, "/upscale", files={"file": ("a.png", PNG)}) for _ in range(room + 5)]
        wait_for(lambda: sum(call.done() for call in calls) == 5, "the refusals")
        wait_for(lambda: slow.running == 3, "those at work")
        slow.go.set()
        answers = [call.result() for call in calls]
    assert sorted(answer.status_code for answer in answers) == [200] * room + [503] * 5
    assert slow.most == 3, "two, and one besides for short ones"
    for answer in answers:
        if answer.status_code == 503:
            check_problem(answer, 503, "busy")
            assert 1 <= int(answer.headers["retry-after"]) <= 120


def test_work_stops_when_the_client_is_gone(tmp_path: Path, slow: Slow) -> None:
    with served(local(tmp_path)) as client:
        with socket.create_connection((client.base_url.host, client.base_url.port or 0)) as raw:
            head = b"POST /upscale HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: %d\r\n\r\n"
            raw.sendall(head % len(PNG) + PNG)
            wait_for(lambda: slow.running, "the work")
        assert slow.cancelled.wait(PATIENCE)
        slow.go.set()  # and the place is free again
        assert client.post("/upscale", files={"file": ("a.png", PNG)}).status_code == 200


def test_the_event_loop_stays_free_during_work(tmp_path: Path, slow: Slow) -> None:
    with served(local(tmp_path)) as client, ThreadPoolExecutor(1) as pool:
        call = pool.submit(client.post, "/upscale", files={"file": ("a.png", PNG)})
        wait_for(lambda: slow.running, "the work")
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
