"""One job from claim to webhook, and everything that can come between."""

from __future__ import annotations

import io
import shutil
import time
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import pytest
from PIL import Image

import core
from core import models
from handler import jobs, remote_file, worker
from handler.jobs import Backend, Job, Lease, State
from handler.settings import Settings
from handler.storage import LocalStorage, Storage, Unavailable
from tests.integration.work import AT_ONCE, Failing, configured, picture, queued, result, results, wait_for


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return configured(tmp_path, lease_seconds=30)


@pytest.fixture
def batch(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Batch that takes every job; the ids of our jobs that were sent there."""
    sent: list[str] = []

    def submit(job: Job, _: Settings) -> str:
        sent.append(job.id)
        return f"batch-{len(sent)}"

    monkeypatch.setattr("handler.batch.submit_batch", submit)
    return sent


def run(storage: Storage | Failing, settings: Settings, job: Job, **named: Any) -> Job | None:
    named = {"backend": Backend.LAMBDA, "retry_delays": AT_ONCE, **named}
    return worker.run_job(cast(Storage, storage), settings, job.id, worker="test", **named)


def ended(storage: Storage | Failing, settings: Settings, job: Job, **named: Any) -> Job:
    done = run(storage, settings, job, **named)
    assert done is not None
    assert done == jobs.get(cast(Storage, storage), job.id)
    return done


def with_batch(folder: Path, **values: Any) -> Settings:
    return configured(folder, bucket="b", batch_queue="queue", batch_job_definition="definition", **values)


def test_a_job_is_done_once_in_every_store(storage: Storage, settings: Settings, scratch: Path) -> None:
    job = queued(storage, picture(24, 16))
    done = ended(storage, settings, job)
    assert done.state is State.SUCCEEDED
    assert done.backend is Backend.LAMBDA
    assert done.output is not None
    assert (done.output.name, done.output.content_type) == ("photo-x2.png", "image/png")
    assert (done.output.width, done.output.height) == (48, 32)
    assert Image.open(io.BytesIO(result(storage, done))).size == (48, 32)
    assert len(result(storage, done)) == done.output.bytes
    assert storage.head(done.output.key).content_type == "image/png"
    assert (done.model_used, done.degraded, done.reason) == (models.embedded(2, "png"), False, "")
    assert (done.input.width, done.input.height) == (24, 16)
    assert done.estimate is not None
    assert done.progress.done == done.progress.total == 1
    assert set(done.timings) == {"read", "load", "work", "write"}
    assert results(storage, done) == [done.output.key]
    assert run(storage, settings, job) is None
    assert jobs.get(storage, job.id) == done
    assert not list(scratch.iterdir())


def test_the_result_is_what_the_core_makes_of_the_options(store: LocalStorage, settings: Settings) -> None:
    data = picture(24, 16)
    done = ended(store, settings, queued(store, data, "a b.png", width=60, format="jpeg", quality=80))
    assert done.output is not None
    assert (done.output.name, done.output.content_type) == ("a b-60x.jpg", "image/jpeg")
    assert result(store, done) == core.upscale(data, core.Options(width=60, format="jpeg", quality=80)).data


@pytest.mark.parametrize(
    ("data", "options", "limits", "code"),
    [
        (b"no picture", {}, {}, "unreadable_image"),
        (picture()[:60], {}, {}, "unreadable_image"),
        (picture(), {"scale": 9}, {}, "bad_options"),
        (picture(), {"colour": "red"}, {}, "bad_options"),
        (picture(), {"width": 3}, {}, "bad_options"),
        (picture(), {}, {"max_pixels": 100}, "too_large"),
        (picture(), {}, {"max_output_pixels": 400}, "too_large"),
        (picture(), {}, {"max_upload_bytes": 100}, "too_large"),
        (picture(), {}, {"bucket": "b", "lambda_seconds": 0}, "too_large"),
    ],
)
def test_what_cannot_be_done_fails_with_the_reason(
    store: LocalStorage, tmp_path: Path, data: bytes, options: dict[str, Any], limits: dict[str, Any], code: str
) -> None:
    done = ended(store, configured(tmp_path, **limits), queued(store, data, **options))
    assert done.state is State.FAILED
    assert done.error is not None
    assert done.error.code == code
    assert done.error.message
    assert str(tmp_path) not in done.error.message
    assert not results(store, done)


def test_an_upload_that_is_gone_and_a_bug_fail_the_job(
    store: LocalStorage, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = queued(store, picture())
    store.delete(job.input.key)
    gone = ended(store, settings, job)
    assert gone.error is not None
    assert gone.error.code == "upload_missing"

    def broken(*_: Any, **__: Any) -> None:
        raise AttributeError("/secret/path")

    monkeypatch.setattr(core, "upscale", broken)
    bug = ended(store, settings, queued(store, picture()))
    assert bug.error is not None
    assert bug.error.code == "internal_error"
    assert "secret" not in bug.error.message


@pytest.mark.parametrize("format", ["JPEG", "TIFF", "BMP"])
def test_the_header_is_read_alone(
    store: LocalStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format: str
) -> None:
    store.put("uploads/large", data := picture(600, 500, format=format), "image/x")
    read = 0

    def read_range(key: str, start: int, length: int, etag: str = "") -> bytes:
        nonlocal read
        found = LocalStorage.read_range(store, key, start, length, etag)
        read += len(found)
        return found

    monkeypatch.setattr(store, "read_range", read_range)
    # In local mode the file goes to the process that decodes, all of it: it lies on this disk anyway.
    header = remote_file.probe(store, "uploads/large", configured(tmp_path, bucket="bucket"))
    assert (header.width, header.height, header.bytes) == (600, 500, len(data))
    assert read <= 2 * remote_file.HEADER_BYTES < len(data)


def test_a_header_at_the_end_of_a_file_is_found(store: LocalStorage, tmp_path: Path) -> None:
    data = bytearray(picture(300, 200, format="TIFF"))
    at = int.from_bytes(data[4:8], "little")
    directory = data[at : at + 2 + 12 * int.from_bytes(data[at : at + 2], "little") + 4]
    data[4:8] = (len(data) + 100_000).to_bytes(4, "little")  # moved behind a hole, as writers that stream have it
    data += bytes(100_000) + directory
    store.put("uploads/tiff", bytes(data), "image/tiff")
    assert remote_file.probe(store, "uploads/tiff", configured(tmp_path)).width == 300


def test_a_cancelled_job_ends_between_two_tiles(
    store: LocalStorage, settings: Settings, monkeypatch: pytest.MonkeyPatch, scratch: Path
) -> None:
    monkeypatch.setattr("handler.jobs.changes.HEARTBEAT_SECONDS", 0.0)
    job = queued(store, picture())
    told: list[Job] = []

    def stop() -> bool:
        if jobs.get(store, job.id).estimate:  # the work is about to begin
            jobs.cancel(store, job.id)
        return False

    done = ended(store, settings, job, stop=stop, notify=lambda *told_of: told.append(told_of[2]))
    assert done.state is State.CANCELLED
    assert told == [done]
    assert not results(store, job)
    assert not list(scratch.iterdir())


def test_a_worker_whose_job_was_taken_over_leaves_it_alone(
    store: LocalStorage, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload = LocalStorage.upload
    job = queued(store, picture())
    other = Lease(owner="other", until=jobs.utc_now() + timedelta(minutes=1))

    def taken_over(self: LocalStorage, path: Path, key: str, content_type: str) -> None:
        upload(self, path, key, content_type)
        jobs.change(self, job.id, lambda now: now.model_copy(update={"lease": other}))

    monkeypatch.setattr(LocalStorage, "upload", taken_over)
    assert run(store, settings, job) is None
    now = jobs.get(store, job.id)
    assert now.state is State.RUNNING
    assert now.lease == other
    assert not results(store, job)


def test_a_stopped_worker_hands_the_job_back(store: LocalStorage, settings: Settings) -> None:
    job = queued(store, picture())
    answers = iter([False, False, True])
    back = ended(store, settings, job, stop=lambda: next(answers, True))
    assert (back.state, back.backend, back.lease, back.lost) == (State.QUEUED, Backend.LAMBDA, None, 0)
    done = ended(store, settings, job)
    assert (done.state, done.attempt) == (State.SUCCEEDED, 2)


def test_what_is_too_much_here_is_moved_on_to_batch(
    store: LocalStorage, tmp_path: Path, batch: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = with_batch(tmp_path)
    big = queued(store, picture())
    moved = ended(store, with_batch(tmp_path, lambda_seconds=0), big)
    assert (moved.state, moved.backend, moved.batch_job_id) == (State.QUEUED, Backend.BATCH, "batch-1")
    assert moved.estimate is not None
    assert moved.estimate.route is Backend.BATCH
    assert run(store, settings, big) is None  # it is not Lambda's any more

    late = queued(store, picture())
    assert ended(store, settings, late, seconds=0.0).backend is Backend.BATCH
    stopped = queued(store, picture())
    assert ended(store, settings, stopped, stop=lambda: True).backend is Backend.BATCH
    died = queued(store, picture())
    jobs.claim(store, died.id, "dies", 0.001)
    wait_for(lambda: jobs.claimable(jobs.get(store, died.id), jobs.utc_now()), "the lease to run out")
    assert ended(store, settings, died).backend is Backend.BATCH

    full: list[Job] = []
    for error in (core.OutOfMemory("a"), MemoryError(), core.OutputError("b")):

        def fails(*_: Any, error: Exception = error, **__: Any) -> None:
            raise error

        monkeypatch.setattr(core, "upscale", fails)
        full.append(queued(store, picture()))
        assert ended(store, settings, full[-1]).backend is Backend.BATCH
        alone = ended(store, configured(tmp_path), queued(store, picture()))
        assert alone.error is not None
        assert alone.error.code in ("out_of_memory", "cannot_write")
    assert batch == [job.id for job in (big, late, stopped, died, *full)]

    monkeypatch.undo()
    done = ended(store, settings, big, backend=Backend.BATCH, batch_job_id="batch-1")
    assert (done.state, done.backend, done.attempt) == (State.SUCCEEDED, Backend.BATCH, 2)


def test_lambda_without_batch_tries_as_often_as_events_come(store: LocalStorage, tmp_path: Path) -> None:
    settings = configured(tmp_path, bucket="b")
    slow = queued(store, picture())
    states = [ended(store, settings, slow, stop=lambda: True) for _ in range(worker.TRIES)]
    assert [job.state for job in states] == [State.QUEUED, State.QUEUED, State.FAILED]
    assert states[-1].error is not None
    assert states[-1].error.code == "out_of_time"

    deadly = queued(store, picture())
    for _ in range(worker.TRIES - 1):
        assert jobs.claim(store, deadly.id, "dies", -1)
    failed = ended(store, settings, deadly)
    assert failed.error is not None
    assert failed.error.code == "worker_lost"


def test_a_store_that_fails_for_a_while_is_asked_again(store: LocalStorage, settings: Settings) -> None:
    once = {(name, ""): 1.0 for name in ("get", "head")}
    twice = {(name, ""): 2.0 for name in ("swap", "read_range", "download", "upload")}
    failing = Failing(store, once | twice)
    job = queued(store, picture())
    assert ended(failing, settings, job).state is State.SUCCEEDED
    assert failing.failed == 10


@pytest.mark.parametrize(("method", "prefix"), [("read_range", ""), ("download", ""), ("upload", "results/")])
def test_a_store_that_goes_on_failing_fails_the_job(
    store: LocalStorage, settings: Settings, method: str, prefix: str, scratch: Path
) -> None:
    failing = Failing(store, {(method, prefix): float("inf")})
    done = ended(failing, settings, queued(store, picture()))
    assert done.state is State.FAILED
    assert done.error is not None
    assert done.error.code == "storage_unavailable"
    assert failing.failed == 1 + len(AT_ONCE)
    assert not list(scratch.iterdir())


def test_when_not_even_the_failure_can_be_written_another_worker_takes_over(
    store: LocalStorage, tmp_path: Path
) -> None:
    job = queued(store, picture())
    failing = Failing(store)

    def stop() -> bool:
        failing.times = {(name, ""): float("inf") for name in ("get", "swap", "download", "read_range", "head")}
        return False

    settings = configured(tmp_path, lease_seconds=0.2)
    with pytest.raises(Unavailable):
        run(failing, settings, job, stop=stop)
    assert jobs.get(store, job.id).state is State.RUNNING
    assert worker.wait_until_claimable(store, job.id)
    done = ended(store, settings, job)
    assert (done.state, done.attempt, done.lost) == (State.SUCCEEDED, 2, 1)


def test_a_job_held_by_a_live_worker_does_not_become_free(store: LocalStorage) -> None:
    job = queued(store, picture())
    claimed = jobs.claim(store, job.id, "alive", 9)
    assert claimed
    with jobs.keep_lease(store, claimed, 9) as held:
        assert not worker.wait_until_claimable(store, job.id)
        with pytest.raises(TimeoutError):
            worker.wait_until_claimable(store, job.id, stop=lambda: True)
        jobs.fail(store, held.job, "code", "message")
    assert not worker.wait_until_claimable(store, job.id)


def test_progress_is_written_while_working(
    store: LocalStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("handler.jobs.changes.HEARTBEAT_SECONDS", 0.0)
    job = queued(store, picture(100, 40))
    seen: list[tuple[int, int]] = []

    def stop() -> bool:
        now = jobs.get(store, job.id).progress
        seen.append((now.done, now.total))
        return False

    ended(store, configured(tmp_path, tile_size=48, tile_overlap=8), job, stop=stop)
    total = seen[-1][1]
    assert total > 1
    assert [done for done, of in seen if of] == list(range(total + 1))


def test_the_lease_is_renewed_while_a_tile_takes_long(
    store: LocalStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = queued(store, picture())
    upscale = core.upscale
    rivals: list[Job | None] = []

    def slow(*arguments: Any, **named: Any) -> core.Result:
        until = jobs.get(store, job.id).lease
        while jobs.get(store, job.id).lease == until:
            rivals.append(jobs.claim(store, job.id, "rival", 1))
            time.sleep(0.01)  # who renews it needs a processor, too
        return upscale(*arguments, **named)

    monkeypatch.setattr(core, "upscale", slow)
    done = ended(store, configured(tmp_path, lease_seconds=9), job)
    assert (done.state, done.attempt) == (State.SUCCEEDED, 1)
    assert rivals
    assert not any(rivals)


def test_a_webhook_is_called_though_the_worker_that_ended_the_job_died(store: LocalStorage, settings: Settings) -> None:
    job = queued(store, picture(), webhook="http://example.com/hook")
    told: list[Job] = []
    ended(store, settings, job, notify=lambda *_: None)
    assert run(store, settings, job, notify=lambda *told_of: told.append(told_of[2])) is None
    assert [job.state for job in told] == [State.SUCCEEDED]


def test_a_full_disk_leaves_nothing(
    store: LocalStorage, settings: Settings, monkeypatch: pytest.MonkeyPatch, scratch: Path
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copyfileobj", full)
    done = ended(store, settings, queued(store, picture()))
    assert done.error is not None
    assert done.error.code == "storage_unavailable"
    assert not list(scratch.iterdir())
