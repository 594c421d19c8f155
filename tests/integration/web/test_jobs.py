"""Jobs over HTTP."""

from __future__ import annotations

import time
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import httpx
import pytest

from handler import jobs
from handler.storage import DOWNLOAD_PATH, UPLOAD_PATH, LocalStorage
from tests.integration.receiver import Receiver
from tests.integration.web.support import PNG, UUID, WANTED, check_problem, finished, local, picture, send, served


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
    answer = client.delete(f"/jobs/{job['id']}")
    assert (answer.status_code, answer.json()["state"]) == (200, "cancelled")
    assert "cancelled" in check_problem(client.get(f"/jobs/{job['id']}/result"), 409, "no_result")
    assert client.delete(f"/jobs/{job['id']}").status_code == 200, "it is deleted"
    check_problem(client.get(f"/jobs/{job['id']}"), 404, "job_not_found")


def test_deleting_a_job_leaves_the_file_to_the_one_that_does_it_again(tmp_path: Path) -> None:
    with served(local(tmp_path), LocalStorage(tmp_path)) as client:
        first = client.post("/jobs", json=WANTED).json()
        client.delete(f"/jobs/{first['id']}")
        storage = LocalStorage(tmp_path)
        storage.put(first["input"]["key"], PNG, "image/png")
        again = client.post(f"/jobs/{first['id']}/retry").json()
        assert client.delete(f"/jobs/{first['id']}").status_code == 200
        assert storage.get(first["input"]["key"])[0] == PNG
        client.delete(f"/jobs/{again['id']}")  # cancelled
        client.delete(f"/jobs/{again['id']}")  # deleted, and with it the file that nobody needs any more
        assert not list(storage.list("uploads/"))


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
    assert (answer.json()["webhook"]["state"], answer.json()["webhook"]["status"]) == ("waiting", 503)


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
        check_problem(client.get(storage.download_link("results/x", "x.png", 60)), 403, "link_refused")


def test_a_job_that_failed_is_done_once_more(client: httpx.Client, folder: Path) -> None:
    """As a new job of the same file; the old one stays as it was reported."""
    storage = LocalStorage(folder)
    waits = client.post("/jobs", json=WANTED).json()
    check_problem(client.post(f"/jobs/{waits['id']}/retry"), 409, "not_finished")
    assert send(client, waits["upload"], b"no picture").status_code == 204
    failed = finished(client, waits["id"])
    assert failed["state"] == "failed"
    storage.put(failed["input"]["key"], PNG, "image/png")  # what was wrong with it is mended
    answer = client.post(f"/jobs/{failed['id']}/retry")
    assert answer.status_code == 201
    again = answer.json()
    assert answer.url.join(answer.headers["location"]).path == f"/jobs/{again['id']}"
    assert again["id"] != failed["id"]
    assert again["input"]["key"] == failed["input"]["key"]
    repeated = client.post(f"/jobs/{failed['id']}/retry")
    assert (repeated.status_code, repeated.json()["id"]) == (200, again["id"])
    assert finished(client, again["id"])["state"] == "succeeded"
    assert client.get(f"/jobs/{failed['id']}").json() == failed


def test_what_cannot_be_done_once_more(client: httpx.Client, folder: Path) -> None:
    check_problem(client.post(f"/jobs/{UUID}/retry"), 404, "job_not_found")
    done = client.post("/jobs", json=WANTED).json()
    send(client, done["upload"])
    assert finished(client, done["id"])["state"] == "succeeded"
    check_problem(client.post(f"/jobs/{done['id']}/retry"), 409, "already_final")
    gone = client.post("/jobs", json=WANTED).json()
    client.delete(f"/jobs/{gone['id']}")
    check_problem(client.post(f"/jobs/{gone['id']}/retry"), 409, "upload_missing")
    LocalStorage(folder).put(gone["input"]["key"], PNG, "image/png")  # as if it had arrived before the job's end
    again = client.post(f"/jobs/{gone['id']}/retry").json()
    assert finished(client, again["id"])["state"] == "succeeded"
