"""Archives over HTTP: who may ask for what, how far it is, cancelled, killed, in AWS by the sweep."""

from __future__ import annotations

import csv
import io
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import boto3
import httpx
import pytest
from aws_lambda_powertools.utilities.typing import LambdaContext
from starlette.testclient import TestClient

from bench.archive import Killed, MemoryStorage
from handler import batch as aws_batch
from handler import batch_event, batch_job, jobs, local, upload_queue
from handler.archive import document, order, planning, steps
from handler.archive.order import OrderState
from handler.local import Workers
from handler.settings import Settings
from handler.storage import LocalStorage, Storage
from handler.web.app import build
from tests.integration.web.support import check_problem, served
from tests.integration.web.support import local as configured
from tests.integration.work import Context, event, picture, upscaling_by_copying

OPEN = {"archive_sources": "scans, more/of", "archive_targets": "upscaled"}
ASKED = {"source": "scans", "target": "upscaled/2026"}
ONE, OTHER = {"X-API-Key": "one"}, {"X-API-Key": "other"}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Upscaling by copying; steps without pauses."""
    monkeypatch.setattr(local, "STEP_SECONDS", 0.02)
    return upscaling_by_copying(monkeypatch)


def refused(response: Any, status: int, code: str) -> str:
    """`check_problem` of the answer to a TestClient, whose type is that of another package."""
    return check_problem(response, status, code)


def fill(store: Storage, count: int) -> set[str]:
    """So many pictures, and what is none; the keys of their results."""
    for number in range(count):
        store.put(f"scans/{number % 2}/é {number}.png", picture(8, 8), "image/png")
    store.put("scans/readme.txt", b"no picture", "text/plain")
    return {f"upscaled/2026/{number % 2}/é {number}-x2.png" for number in range(count)}


@pytest.fixture
def service(tmp_path: Path) -> Iterator[tuple[httpx.Client, LocalStorage]]:
    """The service on one machine, with two keys."""
    settings, store = configured(tmp_path, api_key="one,other", **OPEN), LocalStorage(tmp_path)
    workers = Workers(store, settings)
    workers.start()
    try:
        with served(settings, store, workers.put) as client:
            yield client, store
    finally:
        workers.stop(10)


def until(client: httpx.Client, id: str, *states: str) -> dict[str, Any]:
    for _ in range(500):
        found: dict[str, Any] = client.get(f"/archives/{id}", headers=ONE).json()
        if found["state"] in states:
            return found
        time.sleep(0.02)
    raise AssertionError(f"not {states}: {found}")


def test_an_archive_is_estimated_and_made(service: tuple[httpx.Client, LocalStorage]) -> None:
    client, store = service
    wanted = fill(store, 5)
    store.put("scans/broken.png", b"no picture", "image/png")
    made = client.post("/archives", json={**ASKED, "estimate_only": True}, headers=ONE)
    assert made.status_code == 201
    id = made.json()["id"]
    assert made.headers["location"] == f"archives/{id}"
    planned = until(client, id, "planned")
    assert (planned["pictures"], planned["estimate"]["passed_over"]) == (6, {".txt": 1})
    assert planned["estimate"]["seconds"] > 0
    assert not list(store.list("upscaled/"))
    again = client.post("/archives", json=ASKED, headers=ONE)
    assert (again.status_code, again.json()["id"]) == (200, id)
    done = until(client, id, "succeeded")
    assert (done["done"], done["failed"], done["parts_done"]) == (5, 1, done["parts"])
    assert {found.key for found in store.list("upscaled/")} == wanted
    manifest = client.get(done["manifest_url"])
    assert manifest.status_code == 200, manifest.text
    rows = list(csv.DictReader(io.StringIO(manifest.text, newline="")))
    assert {row["source"]: row["error"] for row in rows if row["error"]} == {"scans/broken.png": "unreadable_image"}
    assert "owner" not in done
    check_problem(client.delete(f"/archives/{id}", headers=ONE), 409, "already_final")

    store.put("scans/broken.png", picture(8, 8), "image/png")  # what failed, once more
    new = client.post("/archives", json={**ASKED, "run": "again"}, headers=ONE).json()["id"]
    assert new != id
    assert (until(client, new, "succeeded")["done"], len(list(store.list("upscaled/")))) == (6, 6)


def test_keys_see_their_own_archives(service: tuple[httpx.Client, LocalStorage]) -> None:
    client, store = service
    fill(store, 1)
    id = client.post("/archives", json=ASKED, headers=ONE).json()["id"]
    check_problem(client.get(f"/archives/{id}", headers=OTHER), 404, "archive_not_found")
    check_problem(client.delete(f"/archives/{id}", headers=OTHER), 404, "archive_not_found")
    assert client.post("/archives", json=ASKED, headers=OTHER).json()["id"] != id
    check_problem(client.get(f"/archives/{id}"), 401, "unauthorized")
    check_problem(client.get(f"/archives/{uuid.uuid4()}", headers=ONE), 404, "archive_not_found")
    check_problem(client.get("/archives/orders", headers=ONE), 422, "invalid_id")
    until(client, id, "succeeded")


@pytest.mark.parametrize(
    ("source", "target", "status", "code"),
    [
        ("jobs", "upscaled", 403, "archives_refused"),
        ("scan", "upscaled", 403, "archives_refused"),
        ("scansion", "upscaled", 403, "archives_refused"),
        ("more", "upscaled", 403, "archives_refused"),
        ("scans", "results", 403, "archives_refused"),
        ("scans", "scans/out", 403, "archives_refused"),
        ("/", "upscaled", 403, "archives_refused"),
        ("scans/../jobs", "upscaled", 422, "bad_request"),
        ("scans//a", "upscaled", 422, "bad_request"),
        ("scans", "upscaled/../jobs", 422, "bad_request"),
        ("scans/\0", "upscaled", 422, "bad_request"),
    ],
)
def test_other_prefixes_are_refused(source: str, target: str, status: int, code: str, tmp_path: Path) -> None:
    client = TestClient(build(configured(tmp_path, **OPEN), LocalStorage(tmp_path)))
    refused(client.post("/archives", json={"source": source, "target": target}), status, code)
    assert not list(LocalStorage(tmp_path).list("archives/"))


def test_what_nobody_has_opened_is_closed(tmp_path: Path) -> None:
    for some in ({}, {"archive_sources": "scans"}, {"archive_targets": "upscaled"}):
        client = TestClient(build(configured(tmp_path, **some), LocalStorage(tmp_path)))
        refused(client.post("/archives", json=ASKED), 403, "archives_refused")
    client = TestClient(build(configured(tmp_path, bucket="b", **OPEN), LocalStorage(tmp_path)))
    assert "Batch" in refused(client.post("/archives", json=ASKED), 403, "archives_refused")
    opened = TestClient(build(configured(tmp_path, **OPEN), LocalStorage(tmp_path)))
    refused(opened.post("/archives", json={**ASKED, "options": {"scale": 99}}), 422, "bad_options")
    refused(opened.post("/archives", json={**ASKED, "names": "all.png"}), 422, "bad_options")
    for number in range(10):
        assert opened.post("/archives", json={**ASKED, "run": str(number)}).status_code == 201
    refused(opened.post("/archives", json={**ASKED, "run": "one more"}), 503, "busy")


def asked(store: Storage, **more: Any) -> str:
    """The id of an archive that was asked for."""
    now = jobs.utc_now()
    new = order.Order(
        id=str(uuid.uuid4()), state=OrderState.PLANNING, source="scans/", target="upscaled/2026/",
        names="{path}{stem}{suffix}{ending}", created=now, updated=now, **more,
    )  # fmt: skip
    return order.create(store, new)[0].id


def test_an_archive_that_is_cancelled_ends_its_jobs(tmp_path: Path, quick: list[Path]) -> None:
    """Two parts are begun, one is done, and the other is waiting when the archive is cancelled."""
    settings, store = configured(tmp_path, max_concurrency=2, **OPEN), LocalStorage(tmp_path)
    fill(store, 6)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(planning, "MOST_PICTURES", 2)
        id = asked(store)
        started: list[jobs.Job] = []
        now = steps.advance(store, settings, id, started.append)
    assert (now.state, now.parts, now.parts_done, len(started)) == (OrderState.RUNNING, 3, 0, 2)
    assert {steps.archive_of(job) for job in started} == {id}
    run(store, settings, started[0].id)
    client = TestClient(build(settings, store))
    order.change(store, id, lambda now: now.model_copy(update={"owner": "testclient"}))
    assert client.delete(f"/archives/{id}").json()["state"] == "cancelling"
    now = steps.advance(store, settings, id, started.append)
    assert (now.state, now.done, now.failed, len(started)) == (OrderState.CANCELLED, 2, 2, 2)
    assert jobs.get(store, started[1].id).state is jobs.State.CANCELLED
    assert len(quick) == 2
    assert client.get(f"/archives/{id}").json()["manifest_url"]


def test_nothing_to_make_and_too_much_to_list_are_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings, store = configured(tmp_path, **OPEN), LocalStorage(tmp_path)
    now = steps.advance(store, settings, asked(store), print)
    assert (now.state, now.error) == (OrderState.FAILED, "there are no pictures under scans/")
    fill(store, 1)
    id = asked(store)
    states = [steps.advance(store, settings, id, print, stop=lambda: True).state for _ in range(steps.TRIES + 1)]
    assert states == [OrderState.PLANNING] * steps.TRIES + [OrderState.FAILED]
    assert order.get(store, id).error.startswith("there are too many pictures")


def run(store: Storage, settings: Settings, id: str) -> None:
    """What a container does."""
    assert batch_job.run(store, settings, id, threading.Event()) == batch_job.ENDED


class Dying:
    """A store whose user dies at the so-many-th call, before it or after it was done."""

    def __init__(self, storage: Storage, at: int) -> None:
        self.storage, self.left, self.after = storage, at, at % 2

    def __getattr__(self, name: str) -> Callable[..., Any]:
        real = getattr(self.storage, name)

        def call(*arguments: Any, **named: Any) -> Any:
            self.left -= 1
            if self.left == 0 and not self.after:
                raise Killed
            found = real(*arguments, **named)
            if self.left == 0:
                raise Killed
            return found

        return call


def test_steps_that_are_killed_anywhere_lose_nothing(
    tmp_path: Path, quick: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """At every call of the store in turn; the containers are those that were started, each once."""
    monkeypatch.setattr(planning, "MOST_PICTURES", 2)
    settings = configured(tmp_path, max_concurrency=2, **OPEN)
    at = 0
    while True:
        at += 1
        store = MemoryStorage()
        wanted = fill(store, 5)
        quick.clear()
        id, started, killed = asked(store), list[jobs.Job](), False
        for _ in range(8):
            dying = Dying(store, 0 if killed else at)  # only the first step that is long enough is killed
            try:
                now = steps.advance(cast(Storage, dying), settings, id, started.append)
            except Killed:
                killed = True
            else:
                if now.state.final:
                    break
            for job in started:
                if not jobs.get(store, job.id).state.final:
                    run(store, settings, job.id)
        assert now.state is OrderState.SUCCEEDED
        assert (now.done, now.failed, len(quick), len({job.id for job in started})) == (5, 0, 5, 3)
        assert {found.key for found in store.list("upscaled/")} == wanted
        assert store.get(document.manifest_key(id))[0].count(b"\n") == 6
        if not killed:
            break
    assert at > 20


def test_in_aws_the_sweep_and_each_container_that_ends_take_the_steps(
    tmp_path: Path, batch: dict[str, str], monkeypatch: pytest.MonkeyPatch, quick: list[Path]
) -> None:
    """Batch is moto's server, which takes jobs and runs none: the test runs what it was told to run."""
    monkeypatch.setattr(planning, "MOST_PICTURES", 2)
    upload_queue.sqs_client.cache_clear()
    queue = boto3.client("sqs").create_queue(QueueName=uuid.uuid4().hex)["QueueUrl"]
    settings = configured(tmp_path, bucket="b", archive_at_once=2, upload_queue_url=queue, **OPEN, **batch)
    store = LocalStorage(tmp_path)
    wanted = fill(store, 7)
    submitted: list[str] = []
    submit = aws_batch.submit

    def noted(storage: Storage, settings: Settings, job: jobs.Job) -> jobs.Job:
        submitted.append(job.id)
        return submit(storage, settings, job)

    monkeypatch.setattr(aws_batch, "submit", noted)
    monkeypatch.setattr(batch_event, "open_from_environment", lambda: (settings, store))
    client = TestClient(build(settings, store))
    id = client.post("/archives", json=ASKED).json()["id"]
    context = cast(LambdaContext, Context())
    batch_event.handler({"detail-type": "Scheduled Event"}, context)
    assert len(submitted) == 2
    batch_event.handler({"detail-type": "Scheduled Event"}, context)
    assert len(submitted) == 2, "as many as may be at once"
    done = 0
    while done < len(submitted):
        run(store, settings, submitted[done])
        ended = event("batch_failed.json")
        ended["detail"]["status"] = "SUCCEEDED"
        ended["detail"]["container"]["command"][-1] = submitted[done]
        assert batch_event.handler(ended, context) == {"id": submitted[done], "state": "succeeded"}
        done += 1
    assert (done, len(quick)) == (4, 7)
    now = order.get(store, id)
    assert (now.state, now.done, now.estimate is not None and now.estimate.cost is not None) == ("succeeded", 7, True)
    assert {found.key for found in store.list("upscaled/")} == wanted
    upload_queue.sqs_client.cache_clear()


def test_keys_of_the_gateway_are_told_apart(tmp_path: Path) -> None:
    """As Mangum hands the event of API Gateway on."""
    settings, store = configured(tmp_path, **OPEN), LocalStorage(tmp_path)
    app = build(settings, store)

    def client(key: str) -> TestClient:
        async def with_event(scope: Any, receive: Any, send: Any) -> None:
            event = {"requestContext": {"identity": {"apiKeyId": key}}}
            await app({**scope, "aws.event": event}, receive, send)

        return TestClient(with_event)

    id = client("a").post("/archives", json=ASKED).json()["id"]
    assert client("a").get(f"/archives/{id}").status_code == 200
    refused(client("b").get(f"/archives/{id}"), 404, "archive_not_found")
