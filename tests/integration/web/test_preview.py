"""Small pictures of what browsers cannot show."""

from __future__ import annotations

import httpx

from tests.integration.web.support import PNG, UUID, WANTED, check_problem, finished, picture, send
from tests.unit.pictures import corners, saved


def test_of_a_file(client: httpx.Client) -> None:
    answer = client.post("/preview", files={"file": saved(corners(100, 150), "TIFF")})
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "image/jpeg"
    assert (answer.headers["x-picture-width"], answer.headers["x-picture-height"]) == ("150", "100")
    assert picture(answer).size == (150, 100)


def test_of_no_picture(client: httpx.Client) -> None:
    check_problem(client.post("/preview", files={"file": b"nothing"}), 400, "unreadable_image")
    check_problem(client.post("/preview", files={"file": saved(corners(600, 600), "PNG")}), 413, "too_large")
    check_problem(client.post("/preview"), 415, "unsupported_media_type")
    picture = {"file": saved(corners(), "PNG")}
    check_problem(client.post("/preview", files=picture, data={"scale": "2"}), 422, "bad_request")


def test_of_a_result(client: httpx.Client) -> None:
    check_problem(client.get(f"/jobs/{UUID}/preview"), 404, "job_not_found")
    job = client.post("/jobs", json={**WANTED, "options": {"scale": 2, "format": "tiff"}}).json()
    check_problem(client.get(f"/jobs/{job['id']}/preview"), 409, "not_finished")
    send(client, job["upload"], PNG)
    finished(client, job["id"])
    answer = client.get(f"/jobs/{job['id']}/preview")
    assert answer.status_code == 200
    assert picture(answer).size == (40, 24)
