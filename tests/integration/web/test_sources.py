"""Pictures by their URL, and in JSON: against servers that give them, and servers that mean no good."""

from __future__ import annotations

import base64
import gzip
import threading
import zlib
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import httpx
import pytest

from handler import jobs
from handler.storage import LocalStorage
from handler.web import guard, sources
from tests.integration.receiver import Receiver
from tests.integration.web.support import PNG, check_problem, finished, local, picture, served
from tests.integration.work import PATIENCE, wait_for
from tests.unit.pictures import corners, saved

URI = "data:image/png;base64," + base64.b64encode(PNG).decode()


def give(body: bytes = PNG, status: int = 200, **headers: str) -> Callable[[BaseHTTPRequestHandler], None]:
    """An answer with a body; underscores in names of headers are hyphens."""

    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        for name, value in {"Content_Length": str(len(body)), **headers}.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(body)

    return answer


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """A service that may fetch from this machine, where the test's servers are; it has no workers."""
    settings = local(tmp_path_factory.mktemp("home"), fetch_urls="all", max_upload_bytes=100_000)
    with served(settings, LocalStorage(settings.data_dir)) as client:
        yield client


def at(server: Receiver, path: str = "/photo.png") -> str:
    return f"http://127.0.0.1:{server.port}{path}"


def test_a_picture_by_its_url(home: httpx.Client) -> None:
    with Receiver(give(Content_Type="image/png")) as server:
        answer = home.post("/upscale", json={"url": at(server), "scale": 3, "format": "webp", "strip": True})
        assert answer.status_code == 200, answer.text
        assert (picture(answer).size, picture(answer).format) == ((60, 36), "WEBP")
        assert answer.headers["content-disposition"] == 'attachment; filename="photo-x3.webp"'
        [(method, path, headers, body)] = server.requests
        assert (method, path, body) == ("GET", "/photo.png", b"")
        assert headers["Accept-Encoding"] == "identity"
        # Its name, options in the query, and the way to a job.
        named = home.post("/upscale?scale=4", json={"url": at(server), "filename": "mine.png"})
        assert named.headers["content-disposition"] == 'attachment; filename="mine-x4.png"'
        later = home.post("/upscale", json={"url": at(server)}, headers={"prefer": "respond-async"})
        assert (later.status_code, later.json()["state"]) == (202, "queued")
        small = home.post("/preview", json={"url": at(server)})
        assert (small.status_code, small.headers["x-picture-width"]) == (200, "20")
        found = home.post("/estimate", json={"url": at(server), "options": {"scale": 3}}).json()
        assert (found["width"], found["height"]) == (60, 36)


@pytest.mark.parametrize(
    "body",
    [
        {"image": URI},
        {"url": URI},
        {"image": URI.partition(",")[2]},
        {"image": URI.partition(",")[2].rstrip("=").replace("+", "-").replace("/", "_")},
        {"image": "data:," + "".join(f"%{byte:02x}" for byte in PNG)},
    ],
    ids=["data URI", "as url", "base64", "base64url", "percent"],
)
def test_a_picture_in_json(home: httpx.Client, body: dict[str, str]) -> None:
    answer = home.post("/upscale", json={**body, "scale": 2})
    assert answer.status_code == 200, answer.text
    assert picture(answer).size == (40, 24)


def test_a_picture_in_json_needs_no_server_that_fetches(tmp_path: Path) -> None:
    with served(local(tmp_path, fetch_urls="none")) as client:
        assert client.post("/upscale", json={"image": URI}).status_code == 200
        said = check_problem(client.post("/upscale", json={"url": "http://1.1.1.1/"}), 422, "bad_url")
        assert "FETCH_URLS" in said
    assert (local(tmp_path).fetched_urls, local(tmp_path, bucket="b").fetched_urls) == ("public", "none")


@pytest.mark.parametrize(
    ("body", "status", "code", "word"),
    [
        ({}, 400, "no_file", "'url'"),
        ({"url": None, "scale": 2}, 400, "no_file", "'image'"),
        ({"url": "http://1.1.1.1/", "image": URI}, 400, "several_files", "not both"),
        ({"url": 1}, 422, "bad_request", "url: must be a string"),
        ([URI], 422, "bad_request", "object"),
        ({"image": "data:image/png;base64,***"}, 400, "malformed_request", "base64"),
        ({"image": base64.b64encode(b"text").decode()}, 400, "unreadable_image", "picture"),
        ({"image": base64.b64encode(bytes(200_000)).decode()}, 413, "too_large", "limit"),
        ({"image": URI, "scale": 9}, 422, "bad_options", "scale"),
        ({"image": URI, "scale": "much"}, 422, "bad_options", "scale"),
        ({"image": URI, "colour": "red"}, 422, "bad_options", "colour"),
        ({"url": "ftp://example.com/a.png"}, 422, "bad_url", "http"),
        ({"url": "file:///etc/passwd"}, 422, "bad_url", "http"),
        ({"url": "photo.png"}, 422, "bad_url", "http"),
        ({"url": "http://user:word@1.1.1.1/"}, 422, "bad_url", "password"),
    ],
)
def test_what_json_cannot_say(home: httpx.Client, body: Any, status: int, code: str, word: str) -> None:
    assert word in check_problem(home.post("/upscale", json=body), status, code)


def test_a_json_body_has_a_limit_and_must_be_json(home: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    kind = {"content-type": "application/json"}
    check_problem(home.post("/upscale", content=b'{"url": ', headers=kind), 400, "malformed_request")
    check_problem(home.post("/upscale", content=b"[" * 100_000, headers=kind), 400, "malformed_request")
    said = check_problem(home.post("/upscale", content=b" " * 400_000, headers=kind), 413, "too_large")
    assert "multipart form" in said
    said = check_problem(home.post("/jobs", content=b" " * (guard.OVERHEAD + 1), headers=kind), 413, "too_large")
    assert "/upscale" in said


def test_private_addresses_are_not_called(client: httpx.Client) -> None:
    """As set up by default, in local mode."""
    with Receiver(give()) as server:
        for host in ("127.0.0.1", "localhost", "[::ffff:127.0.0.1]", "2130706433", "169.254.169.254", "10.0.0.1"):
            url = f"http://{host}:{server.port}/"
            for path in ("/upscale", "/preview", "/jobs", "/estimate"):
                assert "private" in check_problem(client.post(path, json={"url": url}), 422, "bad_url"), url
        assert server.requests == []


def test_nor_are_those_that_a_redirect_leads_to(client: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    from handler import safe_http

    # Everything is public but 127.0.0.2: there is no public server here.
    monkeypatch.setattr(safe_http, "is_public", lambda address: address != "127.0.0.2")
    with Receiver(give(), address="127.0.0.2") as secret, Receiver((302, {"Location": secret.url})) as server:
        assert "private" in check_problem(client.post("/upscale", json={"url": server.url}), 422, "bad_url")
        assert (len(server.requests), secret.requests) == (1, [])
    with Receiver((302, {"Location": "/there.png"}), give()) as server:
        assert client.post("/upscale", json={"url": server.url}).status_code == 200
    with Receiver((302, {"Location": "/again"})) as server:
        assert "redirects" in check_problem(client.post("/upscale", json={"url": server.url}), 422, "bad_url")


@pytest.mark.parametrize(
    ("answer", "status", "code", "word"),
    [
        (404, 422, "not_fetched", "404"),
        (give(b"<html>", Content_Type="text/html; charset=utf-8"), 422, "not_fetched", "text/html"),
        (give(b"no picture"), 400, "unreadable_image", "picture"),
        (give(bytes(100_001)), 413, "too_large", "100,000"),
        (give(gzip.compress(bytes(10_000_000)), Content_Encoding="gzip"), 413, "too_large", "100,000"),
        (give(PNG, Content_Length=str(len(PNG) + 1)), 422, "not_fetched", "cut off"),
        (give(gzip.compress(PNG)[:-20], Content_Encoding="gzip"), 422, "not_fetched", "cut off"),
        (give(PNG, Content_Encoding="br"), 422, "not_fetched", "packed as br"),
        (give(PNG, Content_Encoding="gzip"), 422, "not_fetched", "not answer as it should"),
        (lambda handler: handler.wfile.write(b"\x15\x03\x01\r\n\r\n"), 422, "not_fetched", "not answer as it should"),
    ],
    ids=["404", "html", "text", "long", "bomb", "cut", "cut gzip", "brotli", "no gzip", "no HTTP"],
)
def test_what_servers_give_instead(home: httpx.Client, answer: Any, status: int, code: str, word: str) -> None:
    with Receiver(answer) as server:
        assert word in check_problem(home.post("/upscale", json={"url": at(server)}), status, code)


@pytest.mark.parametrize(("encoding", "pack"), [("gzip", gzip.compress), ("deflate", zlib.compress)])
def test_a_server_that_packs_what_it_should_not(home: httpx.Client, encoding: str, pack: Any) -> None:
    with Receiver(give(pack(PNG), Content_Encoding=encoding)) as server:
        assert home.post("/upscale", json={"url": at(server)}).status_code == 200


def test_nobody_there(home: httpx.Client) -> None:
    assert "answer" in check_problem(home.post("/upscale", json={"url": "http://127.0.0.1:9/"}), 422, "not_fetched")


def test_a_server_that_never_ends(
    home: httpx.Client, patience: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a length, each byte in time for any limit of a single read, and while the service answers others."""

    def drip(handler: BaseHTTPRequestHandler) -> None:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\n\r\n")
        while not patience.wait(0.02):
            handler.wfile.write(b"x")

    monkeypatch.setattr(sources, "SECONDS", 0.7)
    with Receiver(drip) as server:
        assert "in time" in check_problem(home.post("/upscale", json={"url": at(server)}), 422, "not_fetched")
    assert not patience.is_set(), "we hung up, not the server"
    poured: list[object] = []

    def pour(handler: BaseHTTPRequestHandler) -> None:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\n\r\n")
        while len(poured) < 1000:
            poured.append(handler.wfile.write(bytes(1 << 20)))

    monkeypatch.setattr(sources, "SECONDS", PATIENCE)
    with Receiver(pour) as server:
        check_problem(home.post("/upscale", json={"url": at(server)}), 413, "too_large")
    assert len(poured) < 100, "we hung up at the byte that was too many"


def test_strangers_servers_hold_up_nobody_else(home: httpx.Client, patience: threading.Event) -> None:
    answers: list[httpx.Response] = []

    def ask() -> None:
        answers.append(home.post("/upscale", json={"url": at(server)}))

    with Receiver(lambda _: patience.wait(PATIENCE)) as server:
        threads = [threading.Thread(target=ask) for _ in range(12)]
        for thread in threads:
            thread.start()
        # Who would wait too long is sent away.
        wait_for(lambda: any(answer.status_code == 503 for answer in answers), "the refusal")
        assert home.post("/upscale", files={"file": ("a.png", PNG)}).status_code == 200
        assert home.get("/models").status_code == 200
        assert not [answer for answer in answers if answer.status_code != 503], "nobody waited for them"
        patience.set()
        for thread in threads:
            thread.join()
    assert {answer.json()["code"] for answer in answers} == {"busy", "not_fetched"}


def test_a_job_by_url(client: httpx.Client, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from handler import safe_http

    monkeypatch.setattr(safe_http, "is_public", lambda _: True)
    id = jobs.new_id()
    with Receiver(give()) as server:
        wanted = {"url": at(server), "options": {"scale": 3}}
        made = client.put(f"/jobs/{id}", json=wanted)
        assert made.status_code == 201, made.text
        assert (made.json()["upload"], made.json()["input"]["name"]) == (None, "photo.png")
        assert made.json()["estimate"]["width"] == 60
        assert finished(client, id)["state"] == "succeeded"
        assert client.put(f"/jobs/{id}", json=wanted).status_code == 200, "the same again is the same job"
        assert len(server.requests) == 1, "and nothing is fetched again"
        check_problem(client.put(f"/jobs/{id}", json={**wanted, "options": {}}), 409, "conflict")
    result = client.get(f"/jobs/{id}/result", follow_redirects=True)
    assert picture(result).size == (60, 36)
    assert 'filename="photo-x3.png"' in result.headers["content-disposition"]
    answer = client.post("/jobs", json={"image": URI, "filename": "mine.png"})
    assert finished(client, answer.json()["id"])["output"]["name"] == "mine-x2.png"
    assert answer.headers["location"] == f"jobs/{answer.json()['id']}"


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"url": "http://127.0.0.1:9/"}, 422, "bad_url"),
        ({"image": "AAAA"}, 400, "unreadable_image"),
        ({"image": URI, "options": {"scale": 9}}, 422, "bad_options"),
        ({"image": URI, "options": {"colour": 9}}, 422, "bad_options"),
        ({"image": URI, "content_type": "image/png"}, 422, "bad_request"),
        ({"image": URI, "webhook": "http://127.0.0.1/"}, 422, "bad_webhook"),
        ({"image": base64.b64encode(saved(corners(600, 600), "PNG")).decode()}, 413, "too_large"),
    ],
)
def test_what_makes_no_job(client: httpx.Client, folder: Path, body: Any, status: int, code: str) -> None:
    before = sorted(folder.rglob("*.json"))
    check_problem(client.post("/jobs", json=body), status, code)
    assert sorted(folder.rglob("*.json")) == before
