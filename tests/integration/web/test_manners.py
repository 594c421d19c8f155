"""What HTTP lets clients do in several ways: each of them is understood, or told in a sentence."""

from __future__ import annotations

import contextlib
import gzip
import re
from pathlib import Path

import httpx
import pytest
from PIL import Image

from handler import jobs
from handler.storage import LocalStorage
from handler.web.app import build
from handler.web.preferences import accepted, preferred
from tests.integration.web.support import (
    FORM,
    PNG,
    WANTED,
    check_problem,
    finished,
    local,
    picture,
    send,
    served,
    serving,
)
from tests.integration.work import wait_for


def part(disposition: str, data: bytes = PNG, end: bytes = b"\r\n--x--\r\n") -> bytes:
    return f"--x\r\nContent-Disposition: form-data; {disposition}\r\n\r\n".encode() + data + end


@pytest.mark.parametrize(
    ("disposition", "name"),
    [
        ('name="file"', "image-x2.png"),
        ('name="image"; filename="a.png"', "a-x2.png"),
        ("name=\"file\"; filename*=UTF-8''%C3%A4.png", "%C3%A4-x2.png"),
    ],
)
def test_parts_as_clients_send_them(client: httpx.Client, disposition: str, name: str) -> None:
    answer = client.post("/upscale", content=part(disposition), headers=FORM)
    assert answer.status_code == 200, answer.text
    assert name in answer.headers["content-disposition"]


def test_the_picture_as_the_body(client: httpx.Client) -> None:
    answer = client.post("/upscale?scale=3", content=PNG, headers={"content-type": "image/png"})
    assert answer.status_code == 200, answer.text
    assert picture(answer).size == (60, 36)
    check_problem(client.post("/upscale", content=b"", headers={"content-type": "image/png"}), 400, "no_file")


def test_what_was_cut_off_or_packed_is_said(client: httpx.Client) -> None:
    cut = client.post("/upscale", content=part('name="file"; filename="a.png"', end=b""), headers=FORM)
    assert "cut off" in check_problem(cut, 400, "malformed_request")
    packed = {**FORM, "content-encoding": "gzip"}
    answer = client.post("/upscale", content=gzip.compress(part('name="file"')), headers=packed)
    assert "Content-Encoding" in check_problem(answer, 415, "unsupported_media_type")


def test_the_format_by_accept(client: httpx.Client) -> None:
    sent = {"file": ("a.png", PNG)}
    assert client.post("/upscale", files=sent, headers={"accept": "image/webp"}).headers["content-type"] == "image/webp"
    kept = client.post("/upscale?format=bmp", files=sent, headers={"accept": "image/webp"})
    assert kept.headers["content-type"] == "image/bmp"
    assert accepted("text/html, image/png;q=0.5, image/jpeg") == "jpeg"
    assert accepted("image/webp, */*;q=0.1") is None
    assert accepted("image/nothing;q=x") is None


def test_how_long_a_client_waits(tmp_path: Path) -> None:
    assert preferred("respond-async, wait=10") == (True, 10)
    assert preferred("wait=soon") == (False, None)
    with served(local(tmp_path, inline_seconds=0)) as client:
        sent = {"file": ("a.png", PNG)}
        assert client.post("/upscale", files=sent).status_code == 202
        waited = client.post("/upscale", files=sent, headers={"prefer": "wait=60"})
        assert waited.status_code == 200
        assert client.post("/upscale", files=sent, headers={"prefer": "wait=0"}).status_code == 202


def test_head(client: httpx.Client) -> None:
    for path in ("/health", "/models", "/"):
        answer = client.head(path)
        assert (answer.status_code, answer.content) == (200, b"")
    assert client.head("/nothing").status_code == 404


def test_a_result_is_not_sent_twice_and_its_link_dies(client: httpx.Client, folder: Path) -> None:
    created = client.post("/jobs", json=WANTED).json()
    assert send(client, created["upload"]).status_code == 204
    assert "used up" in check_problem(send(client, created["upload"]), 403, "link_refused")
    job = finished(client, created["id"])
    first = client.get(job["result_url"])
    again = client.get(job["result_url"], headers={"if-none-match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert client.head(job["result_url"]).headers["content-length"] == str(len(first.content))
    part = client.get(job["result_url"], headers={"range": "bytes=0-3"})
    assert (part.status_code, part.content) == (206, first.content[:4])
    for odd in ("bytes=5-2", "bytes=a-b", "pixels=0-3", "bytes="):
        whole = client.get(job["result_url"], headers={"range": odd})
        assert (whole.status_code, whole.content) == (200, first.content), "what is no range is passed over"
    for beyond in ("bytes=99999999-", "bytes=-0", "bytes=99999998-99999999, 99999999-"):
        refused = client.get(job["result_url"], headers={"range": beyond})
        check_problem(refused, 416, "no_such_range")
        assert re.fullmatch(r"bytes \*/\d+", refused.headers["content-range"])
    assert client.get(job["result_url"], headers={"range": "bytes=99999999-, -2"}).content == first.content
    since = {"range": "bytes=0-3", "if-range": '"another"'}
    assert client.get(job["result_url"], headers=since).status_code == 200

    assert client.delete(f"/jobs/{created['id']}").status_code == 200
    check_problem(client.get(f"/jobs/{created['id']}"), 404, "job_not_found")
    check_problem(client.get(job["result_url"]), 403, "link_refused")
    assert not [path for path in folder.rglob("*") if created["id"] in str(path) and path.is_file()]


def test_a_cancelled_job_takes_no_file(client: httpx.Client) -> None:
    created = client.post("/jobs", json=WANTED).json()
    client.delete(f"/jobs/{created['id']}")
    assert "cancelled" in check_problem(send(client, created["upload"]), 403, "link_refused")


def test_several_keys(tmp_path: Path) -> None:
    with served(local(tmp_path, api_key="one, two")) as client:
        refused = client.get("/models")
        check_problem(refused, 401, "unauthorized")
        assert refused.headers["www-authenticate"].startswith("Bearer")
        one, two = {"x-api-key": "one"}, {"authorization": "Bearer two"}
        assert client.get("/models", headers=two).status_code == 200
        job = client.post("/jobs", json=WANTED, headers=one).json()
        assert client.get(f"/jobs/{job['id']}", headers=one).status_code == 200
        for call in (client.get, client.delete):
            check_problem(call(f"/jobs/{job['id']}", headers=two), 404, "job_not_found")
        assert [found["id"] for found in client.get("/jobs", headers=one).json()["jobs"]] == [job["id"]]
        assert client.get("/jobs", headers=two).json() == {"jobs": [], "next": None}
        check_problem(client.put(f"/jobs/{job['id']}", json=WANTED, headers=two), 409, "conflict")
        stored = jobs.get(LocalStorage(tmp_path), job["id"])
        assert "one" not in stored.owner.removeprefix("key-"), "the key itself is written nowhere"


def test_guessing_keys_is_slow(tmp_path: Path) -> None:
    with served(local(tmp_path, api_key="one")) as client:
        codes = [client.get("/models", headers={"x-api-key": str(guess)}).status_code for guess in range(30)]
        assert codes.count(401) == 20
        assert codes[-1] == 429
        assert client.get("/models", headers={"x-api-key": "one"}).status_code == 200


@pytest.mark.parametrize(
    ("headers", "settings", "refused"),
    [
        ({"origin": "https://evil.example"}, {}, True),
        ({"origin": "http://evil.example", "host": "evil.example"}, {}, True),  # DNS rebinding
        ({"origin": "null"}, {}, True),
        ({"origin": "http://localhost:8000", "host": "localhost:8000"}, {}, False),
        ({"origin": "https://page.example"}, {"cors_origins": "https://page.example"}, False),
        ({"origin": "https://me.example", "host": "10.0.0.1"}, {"public_url": "https://me.example/x"}, False),
        ({"origin": "http://home:8000", "host": "home:8000"}, {"host": "0.0.0.0"}, False),
        ({}, {}, False),
    ],
)
def test_pages_of_others(tmp_path: Path, headers: dict[str, str], settings: dict[str, str], refused: bool) -> None:
    with served(local(tmp_path, **settings)) as client:
        answer = client.post("/estimate", json={"width": 10, "height": 10}, headers=headers)
        if refused:
            check_problem(answer, 403, "foreign_page")
        else:
            assert answer.status_code == 200
        assert client.get("/health", headers=headers).status_code == 200


def test_links_have_the_public_address(tmp_path: Path) -> None:
    with served(local(tmp_path, public_url="https://example.org/upscaler/")) as client:
        job = client.post("/jobs", json=WANTED).json()
        assert job["upload"]["url"].startswith("https://example.org/upscaler/storage/upload?token=")


def test_jobs_by_the_page(client: httpx.Client) -> None:
    made = [client.post("/jobs", json=WANTED).json()["id"] for _ in range(5)]
    first = client.get("/jobs?limit=2").json()
    assert [job["id"] for job in first["jobs"]] == made[:2:-1]
    second = client.get("/jobs", params={"limit": 2, "after": first["next"]}).json()
    assert [job["id"] for job in second["jobs"]] == made[2:0:-1]
    check_problem(client.get("/jobs?after=x"), 422, "bad_request")
    check_problem(client.get("/jobs?limit=0"), 422, "bad_request")
    assert client.get(f"/jobs?after=0-{made[0]}").json() == {"jobs": [], "next": None}


def test_events_of_a_job(client: httpx.Client) -> None:
    created = client.post("/jobs", json=WANTED).json()
    with client.stream("GET", f"/jobs/{created['id']}/events") as events:
        assert events.headers["content-type"].startswith("text/event-stream")
        lines = events.iter_lines()
        assert next(lines) == "event: job"
        send(client, created["upload"])
        states = [line.split('"state": "')[1].split('"')[0] for line in lines if line.startswith("data: ")]
    assert states[0] == "awaiting_upload"
    assert states[-1] == "succeeded"


def test_listeners_leave_room_for_others(tmp_path: Path) -> None:
    """Issue 16: each holds a connection for up to an hour, and connections are few."""
    app = build(local(tmp_path))
    app.state.service.most_listeners = 8
    with serving(app) as client, contextlib.ExitStack() as stack:
        id = client.post("/jobs", json=WANTED).json()["id"]

        def listen() -> httpx.Response:
            return stack.enter_context(client.stream("GET", f"/jobs/{id}/events"))

        assert [listen().status_code for _ in range(4)] == [200, 200, 503, 503], "a quarter is for one client"
        assert int(client.get(f"/jobs/{id}/events").headers["retry-after"]) > 0
        stack.close()
        wait_for(lambda: not app.state.service.listeners, "the places of those who hung up")


def test_a_picture_of_any_name_of_its_format(client: httpx.Client) -> None:
    answer = client.post("/upscale?format=JPG", files={"file": ("a.png", PNG)})
    assert answer.headers["content-type"] == "image/jpeg"
    assert isinstance(picture(answer), Image.Image)
