"""Many machines for one picture: the containers of an array as processes, and the job that puts their parts together.

Neither moto nor anything else here runs an array of AWS Batch: each process is given AWS_BATCH_JOB_ARRAY_INDEX by the
test, which the containers have from Batch.
"""

from __future__ import annotations

import io
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import pytest
import tifffile

import core
from core import enlarge
from handler import array_child, batch, batch_event, batch_job, jobs, routing, sweep, worker
from handler.attempt import Stopped
from handler.jobs import Backend, Estimate, Job, State
from handler.settings import Settings
from handler.storage import LocalStorage, S3Storage, Storage, Unavailable
from tests.integration.work import (
    AT_ONCE,
    PATIENCE,
    Context,
    Failing,
    Start,
    configured,
    containers,
    event,
    queued,
    result,
)

PARTS = 3
#: A container of a small picture, which is not worth it by itself; with a number of bands it dies after so many.
CONTAINER = """
import os, signal, sys
from core import enlarge, kept
from handler import batch_job

enlarge.KEPT_WORK = 0
save, left = kept.KeptBands.save, int(sys.argv[1])

def dying(self, index, band):
    global left
    save(self, index, band)
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)

kept.KeptBands.save = dying
sys.exit(batch_job.main(sys.argv[2:]))
"""
ARRAY, LAST = "0a0b6a2c-52c0-4d3c-a1a0-1c2c7ac0f5a1", "4c7599ae-0a82-49aa-ba5a-4727fcce14a8"


def scan(rows: int = 330, seed: int = 0) -> bytes:
    """A TIFF in strips, with something in it everywhere."""
    stream = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (rows, 40, 3), np.uint8)
    tifffile.imwrite(stream, pixels, photometric="rgb", rowsperstrip=16, compression="zlib")
    return stream.getvalue()


DATA = scan()


def split(store: Storage, data: bytes = DATA, **options: Any) -> Job:
    """A job that was submitted as an array of `PARTS` containers, and one after them."""
    job = queued(store, data, "scan.tif", **options)
    known = Estimate(
        route=Backend.BATCH, seconds=9, memory=1, tiles=7, width=1, height=1, model="compact-x2", machines=PARTS
    )
    etag = store.head(job.input.key).etag
    news: dict[str, Any] = {"backend": Backend.BATCH, "batch_job_id": LAST, "batch_array_id": ARRAY, "estimate": known}
    news["input"] = job.input.model_copy(update={"version": etag})
    return jobs.change(store, job.id, lambda now: now.model_copy(update=news))


@pytest.fixture
def start(seaweedfs_bucket: tuple[str, str], tmp_path: Path) -> Iterator[Start]:
    """Start a container; what still runs at the end of the test is killed."""
    with containers() as begin:

        def start(job: Job, part: int | None = None, dies_after: int = -1) -> subprocess.Popen[bytes]:
            variables = {
                "S3_ENDPOINT_URL": seaweedfs_bucket[0],
                "BUCKET": seaweedfs_bucket[1],
                "AWS_BATCH_JOB_ID": LAST,
            }
            variables |= {"TMPDIR": str(tmp_path), "TILE_SIZE": "48"}
            command = ["-c", CONTAINER, str(dies_after), "--job", job.id]
            if part is not None:
                variables |= {"AWS_BATCH_JOB_ID": f"{ARRAY}:{part}", "AWS_BATCH_JOB_ARRAY_INDEX": str(part)}
                command += ["--parts", str(PARTS)]
            return begin(command, variables)

        yield start


def test_parts_made_by_processes_in_any_order_and_one_killed_are_one_machines_result(
    seaweedfs_bucket: tuple[str, str], start: Start
) -> None:
    store = S3Storage(seaweedfs_bucket[1], endpoint_url=seaweedfs_bucket[0])
    job = split(store, scale=1.7)
    others = [start(job, 2), start(job, 0)]
    killed = start(job, 1, dies_after=1)
    assert killed.wait(PATIENCE) == -signal.SIGKILL
    assert [process.wait(PATIENCE) for process in others] == [batch_job.ENDED] * 2
    before = {found.key: found.etag for found in store.list(f"work/{job.id}/")}
    now = jobs.get(store, job.id)
    assert jobs.shared(now)
    assert now.started
    assert start(job, 1).wait(PATIENCE) == batch_job.ENDED
    after = {found.key: found.modified for found in store.list(f"work/{job.id}/")}
    assert before.keys() < after.keys(), "only what was missing"
    assert start(job).wait(PATIENCE) == batch_job.ENDED
    done = jobs.get(store, job.id)
    assert (done.state, done.error, done.attempt, done.lost) == (State.SUCCEEDED, None, 1, 0)
    assert result(store, done) == core.upscale(DATA, core.Options(scale=1.7, tile=48)).data
    assert not list(store.list("work/"))


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setattr(enlarge, "KEPT_WORK", 0)
    monkeypatch.setattr(array_child, "SHARE_SECONDS", 0.0)
    return configured(tmp_path, lease_seconds=3, tile_size=48)


def part(store: Any, settings: Settings, job: Job, number: int, **named: Any) -> Job:
    return array_child.run_part(store, settings, job.id, (number, PARTS), **{"retry_delays": AT_ONCE, **named})


def bands(store: Storage, job: Job) -> list[str]:
    return [found.key for found in store.list(f"work/{job.id}/")]


def test_the_document_shows_all_parts_together(store: LocalStorage, settings: Settings) -> None:
    job = split(store)
    seen = [0.0]
    for number in (1, 2, 0):
        now = part(store, settings, job, number)
        assert now.state is State.RUNNING
        assert now.progress.total
        seen.append(now.progress.done / now.progress.total)
    assert seen == sorted(set(seen)), "it only grows"
    assert seen[-1] > 0.6  # a part writes it before it ends
    worker.run_job(store, settings, job.id, backend=Backend.BATCH, worker="last", retry_delays=AT_ONCE)
    done = jobs.get(store, job.id)
    assert done.state is State.SUCCEEDED
    assert done.progress.done == done.progress.total
    assert done.estimate
    assert done.estimate.machines == PARTS


def test_a_part_that_is_taken_away_is_repeated_alone(store: LocalStorage, settings: Settings) -> None:
    job = split(store)
    with pytest.raises(Stopped):
        part(store, settings, job, 0, stop=lambda: len(bands(store, job)) >= 1)
    assert len(bands(store, job)) == 1
    first = store.head(bands(store, job)[0]).etag
    part(store, settings, job, 0)
    assert len(bands(store, job)) == 2
    assert store.head(sorted(bands(store, job))[0]).etag == first
    failing = Failing(store, {("put", "work/"): 1 + len(AT_ONCE)})
    with pytest.raises(Unavailable):
        part(failing, settings, job, 1)
    assert jobs.get(store, job.id).state is State.RUNNING


def test_the_last_job_makes_what_is_missing_or_damaged(store: LocalStorage, settings: Settings) -> None:
    """Its parts may be gone by the time: the rule for work/, or somebody's hand."""
    job = split(store)
    for number in range(PARTS):
        part(store, settings, job, number)
    first, second, *_ = sorted(bands(store, job))
    store.delete(second)
    store.put(first, store.get(first)[0][:40], "")
    worker.run_job(store, settings, job.id, backend=Backend.BATCH, worker="last", retry_delays=AT_ONCE)
    done = jobs.get(store, job.id)
    assert result(store, done) == core.upscale(DATA, core.Options(tile=48)).data
    assert part(store, settings, job, 0) == done, "a part that comes late finds nothing to do"
    assert not bands(store, job)


def test_two_workers_on_one_band_leave_one(store: LocalStorage, settings: Settings) -> None:
    job = split(store)
    names: list[list[str]] = []

    def late() -> bool:
        if not names:
            names.append(bands(store, job))
            part(store, settings, job, 0)  # another one makes all of them meanwhile
            names.append(bands(store, job))
        return False

    part(store, settings, job, 0, stop=late)
    assert names[0] == []
    assert sorted(bands(store, job)) == sorted(names[1])


@pytest.mark.parametrize("cancelled", [True, False])
def test_a_job_that_has_ended_stops_its_parts(store: LocalStorage, settings: Settings, cancelled: bool) -> None:
    job = split(store)

    def end() -> bool:
        if len(bands(store, job)) == 1:
            if cancelled:
                jobs.cancel(store, job.id)
            else:
                jobs.fail_unclaimed(store, job.id, "batch_failed", "another part")
        return False

    left = part(store, settings, job, 0, stop=end)
    assert left.state is (State.CANCELLED if cancelled else State.FAILED)
    assert not bands(store, job)


def test_a_source_that_is_replaced_while_parts_read_it_ends_the_job(store: LocalStorage, settings: Settings) -> None:
    job = split(store)
    part(store, settings, job, 0)
    store.put(job.input.key, scan(seed=1), "image/tiff")
    left = part(store, settings, job, 1)
    assert left.error
    assert (left.state, left.error.code) == (State.FAILED, "upload_replaced")
    assert not bands(store, job)
    assert part(store, settings, job, 2) == left


def test_a_picture_that_is_damaged_at_its_end_ends_the_job(store: LocalStorage, settings: Settings) -> None:
    stream = io.BytesIO()  # small ones are read whole before the first band
    tifffile.imwrite(stream, np.zeros((330, 800, 3), np.uint8), photometric="rgb", rowsperstrip=16)
    job = split(store, stream.getvalue()[:-100])
    assert part(store, settings, job, 0).state is State.RUNNING
    left = part(store, settings, job, PARTS - 1)
    assert left.error
    assert (left.state, left.error.code) == (State.FAILED, "unreadable_image")
    assert not bands(store, job)


def test_a_disk_that_is_too_small_for_the_result_is_found_by_the_first_part(
    store: LocalStorage, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = split(store)
    usage = shutil.disk_usage(store.root)._replace(free=10**4)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    left = part(store, settings, job, 0)
    assert left.error
    assert (left.state, left.error.code) == (State.FAILED, "cannot_write")


# ------------------------------------------------------------------------------------------------ Batch


def test_a_large_picture_becomes_an_array_and_a_job_after_it(
    store: LocalStorage, tmp_path: Path, batch: dict[str, str]
) -> None:
    job = queued(store, DATA, "scan.tif")
    settings = configured(tmp_path, bucket="b", lambda_seconds=0, **batch)
    plan = routing.plan(core.probe(DATA), core.Options(tile=48), settings)
    assert (plan.route, plan.machines) == (Backend.BATCH, 1)
    smaller = settings.model_copy(update={"batch_split_seconds": plan.seconds / 2.5})
    plan = routing.plan(core.probe(DATA), core.Options(tile=48), smaller)
    assert plan.machines == PARTS
    news = {"backend": Backend.BATCH, "estimate": plan}
    job = jobs.change(store, job.id, lambda now: now.model_copy(update=news))
    job = submitted(store, smaller, job)
    assert job.batch_array_id
    assert job.batch_job_id
    [array, last] = boto3.client("batch").describe_jobs(jobs=[job.batch_array_id, job.batch_job_id])["jobs"]
    assert array["arrayProperties"]["size"] == PARTS
    assert array["container"]["command"][-4:] == ["--job", job.id, "--parts", str(PARTS)]
    assert [found["jobId"] for found in last["dependsOn"]] == [job.batch_array_id]
    assert last["container"]["command"][-2:] == ["--job", job.id]
    assert submitted(store, smaller, job) == job, "submitted twice, recorded once"


def submitted(store: Storage, settings: Settings, job: Job) -> Job:
    return batch.submit(store, settings, job)


def test_what_cannot_end_well_is_refused_before(tmp_path: Path) -> None:
    settings = configured(tmp_path, bucket="b", batch_queue="q", batch_job_definition="d", lambda_seconds=0)
    header, asked = core.Probe("tiff", 9000, 9000, 1000, "RGB", streams=True), core.Options()
    plan = routing.plan(header, asked, settings)
    short = settings.model_copy(update={"batch_seconds": plan.seconds / 4, "batch_split_seconds": 0})
    with pytest.raises(core.TooLarge, match="would take"):
        routing.plan(header, asked, short)
    shared = short.model_copy(update={"batch_split_seconds": plan.seconds / 5})
    assert routing.plan(header, asked, shared).machines == 5
    small = settings.model_copy(update={"batch_memory_mb": 128})
    with pytest.raises(core.TooLarge, match="memory"):
        routing.plan(header, asked, small)


@pytest.fixture
def ended(monkeypatch: pytest.MonkeyPatch) -> list[str | None]:
    """Ids of AWS Batch whose containers were ended."""
    found: list[str | None] = []
    monkeypatch.setattr(
        batch, "terminate_batch", lambda job, reason="": found.extend([job.batch_array_id, job.batch_job_id])
    )
    return found


def report(store: Storage, settings: Settings, monkeypatch: pytest.MonkeyPatch, job: Job, **detail: Any) -> Any:
    sent = event("batch_failed.json")
    sent["detail"] |= detail
    sent["detail"]["container"]["command"] = ["python", "-m", "handler.batch_job", "--job", job.id, "--parts", "3"]
    monkeypatch.setattr(batch_event, "open_from_environment", lambda: (settings, store))
    try:
        return batch_event.handler(sent, Context())
    finally:
        batch_event.metrics.clear_metrics()


def test_a_part_that_fails_for_good_ends_all(
    store: LocalStorage, settings: Settings, monkeypatch: pytest.MonkeyPatch, ended: list[str | None]
) -> None:
    job = split(store)
    part(store, settings, job, 0)
    assert report(store, settings, monkeypatch, job, jobId=LAST, statusReason="Dependent Job failed") == {}
    report(store, settings, monkeypatch, job, jobId="another:1")
    assert jobs.get(store, job.id).state is State.RUNNING
    report(store, settings, monkeypatch, job, jobId=f"{ARRAY}:1")
    left = jobs.get(store, job.id)
    assert left.error
    assert (left.state, left.error.code) == (State.FAILED, "batch_failed")
    assert ended == [ARRAY, LAST]
    assert not bands(store, job)


def test_cancelling_ends_them_all(monkeypatch: pytest.MonkeyPatch, store: LocalStorage) -> None:
    ids: list[str] = []

    class Client:
        """Stands in for Batch, whose moto has no array to end."""

        def terminate_job(self, *, jobId: str, reason: str) -> None:  # noqa: N803 - boto3's
            ids.append(jobId)

    monkeypatch.setattr(batch, "batch_client", Client)
    batch.terminate_batch(split(store))
    assert ids == [ARRAY, LAST]


def test_the_sweep_knows_arrays(store: LocalStorage, settings: Settings) -> None:
    job = split(store)
    job = part(store, settings, job, 0)
    later = jobs.utc_now().replace(year=jobs.utc_now().year + 1)
    job = job.model_copy(update={"expires": later.replace(year=later.year + 1)})

    def verdict(array: dict[str, Any], last: str, works: bool = True) -> sweep.Verdict:
        containers: dict[str, Any] = {ARRAY: {"createdAt": 0, **array}, LAST: {"status": last, "createdAt": 0}}
        return sweep.verdict(job, sweep.Surroundings(later, batch_works=works, containers=containers))

    waiting = {"status": "PENDING", "arrayProperties": {"statusSummary": {"RUNNABLE": 3, "RUNNING": 0}}}
    assert isinstance(verdict(waiting, "PENDING"), sweep.Wait)
    assert isinstance(verdict(waiting, "PENDING", works=False), sweep.Fail)
    assert isinstance(verdict({"status": "FAILED"}, "PENDING"), sweep.Fail)
    assert isinstance(verdict({"status": "SUCCEEDED"}, "RUNNING"), sweep.Wait)
    assert isinstance(verdict({"status": "SUCCEEDED"}, "SUCCEEDED"), sweep.Start)


class Reading:
    """A store that counts the bytes of an upload that are read; `before` is called before each read."""

    def __init__(self, storage: Storage) -> None:
        self.storage, self.count = storage, 0
        self.before: Callable[[], object] = lambda: None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.storage, name)

    def read_range(self, key: str, start: int, length: int, etag: str = "") -> bytes:
        self.before()
        found = self.storage.read_range(key, start, length, etag)
        self.count += len(found)
        return found


def large() -> bytes:
    stream = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (1200, 240, 3), np.uint8)
    tifffile.imwrite(stream, pixels, photometric="rgb", rowsperstrip=16)
    return stream.getvalue()


def test_a_part_of_a_tiff_reads_its_strips_only(store: LocalStorage, settings: Settings) -> None:
    data = large()
    aws = settings.model_copy(update={"bucket": "b", "tile_size": 64})  # a container decodes in its own process
    job = split(store, data)
    reading = Reading(store)
    array_child.run_part(reading, aws, job.id, (5, 6), retry_delays=AT_ONCE)
    assert bands(store, job)
    assert reading.count < len(data) / 2

    changed = split(store, data)
    reading = Reading(store)
    reading.before = lambda: reading.count > 150_000 and store.put(changed.input.key, data, "image/tiff")
    left = array_child.run_part(reading, aws, changed.id, (5, 6), retry_delays=AT_ONCE)
    assert left.error
    assert left.error.code == "upload_replaced", "another version, even of the same pixels"
