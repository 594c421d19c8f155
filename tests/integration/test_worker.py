"""One job from claim to webhook, and everything that can come between."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import pytest
from PIL import Image

import core
from core import models
from handler import jobs, remote_file, s3_models, worker
from handler.jobs import Backend, Job, Lease, State
from handler.settings import Settings
from handler.storage import LocalStorage, S3Storage, Storage, Unavailable
from handler.workspace import PREFIX, workspace
from tests.integration.work import AT_ONCE, Failing, configured, left_behind, picture, queued, result, results, wait_for


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary files of this test go."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return configured(tmp_path, lease_seconds=30)


@pytest.fixture
def local(settings: Settings) -> LocalStorage:
    return LocalStorage(settings.data_dir)


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


def test_the_result_is_what_the_core_makes_of_the_options(local: LocalStorage, settings: Settings) -> None:
    data = picture(24, 16)
    done = ended(local, settings, queued(local, data, "a b.png", width=60, format="jpeg", quality=80))
    assert done.output is not None
    assert (done.output.name, done.output.content_type) == ("a b-60x.jpg", "image/jpeg")
    assert result(local, done) == core.upscale(data, core.Options(width=60, format="jpeg", quality=80)).data


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
    local: LocalStorage, tmp_path: Path, data: bytes, options: dict[str, Any], limits: dict[str, Any], code: str
) -> None:
    done = ended(local, configured(tmp_path, **limits), queued(local, data, **options))
    assert done.state is State.FAILED
    assert done.error is not None
    assert done.error.code == code
    assert done.error.message
    assert str(tmp_path) not in done.error.message
    assert not results(local, done)


def test_an_upload_that_is_gone_and_a_bug_fail_the_job(
    local: LocalStorage, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = queued(local, picture())
    local.delete(job.input.key)
    gone = ended(local, settings, job)
    assert gone.error is not None
    assert gone.error.code == "upload_missing"

    def broken(*_: Any, **__: Any) -> None:
        raise AttributeError("/secret/path")

    monkeypatch.setattr(core, "upscale", broken)
    bug = ended(local, settings, queued(local, picture()))
    assert bug.error is not None
    assert bug.error.code == "internal_error"
    assert "secret" not in bug.error.message


@pytest.mark.parametrize("format", ["JPEG", "TIFF", "BMP"])
def test_the_header_is_read_alone(
    local: LocalStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format: str
) -> None:
    local.put("uploads/large", data := picture(600, 500, format=format), "image/x")
    read = 0

    def read_range(key: str, start: int, length: int) -> bytes:
        nonlocal read
        found = LocalStorage.read_range(local, key, start, length)
        read += len(found)
        return found

    monkeypatch.setattr(local, "read_range", read_range)
    # In local mode the file goes to the process that decodes, all of it: it lies on this disk anyway.
    header = remote_file.probe(local, "uploads/large", configured(tmp_path, bucket="bucket"))
    assert (header.width, header.height, header.bytes) == (600, 500, len(data))
    assert read <= 2 * remote_file.HEADER_BYTES < len(data)


def test_a_header_at_the_end_of_a_file_is_found(local: LocalStorage, tmp_path: Path) -> None:
    data = bytearray(picture(300, 200, format="TIFF"))
    at = int.from_bytes(data[4:8], "little")
    directory = data[at : at + 2 + 12 * int.from_bytes(data[at : at + 2], "little") + 4]
    data[4:8] = (len(data) + 100_000).to_bytes(4, "little")  # moved behind a hole, as writers that stream have it
    data += bytes(100_000) + directory
    local.put("uploads/tiff", bytes(data), "image/tiff")
    assert remote_file.probe(local, "uploads/tiff", configured(tmp_path)).width == 300


def test_a_cancelled_job_ends_between_two_tiles(
    local: LocalStorage, settings: Settings, monkeypatch: pytest.MonkeyPatch, scratch: Path
) -> None:
    monkeypatch.setattr("handler.jobs.changes.HEARTBEAT_SECONDS", 0.0)
    job = queued(local, picture())
    told: list[Job] = []

    def stop() -> bool:
        if jobs.get(local, job.id).estimate:  # the work is about to begin
            jobs.cancel(local, job.id)
        return False

    done = ended(local, settings, job, stop=stop, notify=lambda *told_of: told.append(told_of[2]))
    assert done.state is State.CANCELLED
    assert told == [done]
    assert not results(local, job)
    assert not list(scratch.iterdir())


def test_a_worker_whose_job_was_taken_over_leaves_it_alone(
    local: LocalStorage, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload = LocalStorage.upload
    job = queued(local, picture())
    other = Lease(owner="other", until=jobs.utc_now() + timedelta(minutes=1))

    def taken_over(self: LocalStorage, path: Path, key: str, content_type: str) -> None:
        upload(self, path, key, content_type)
        jobs.change(self, job.id, lambda now: now.model_copy(update={"lease": other}))

    monkeypatch.setattr(LocalStorage, "upload", taken_over)
    assert run(local, settings, job) is None
    now = jobs.get(local, job.id)
    assert now.state is State.RUNNING
    assert now.lease == other
    assert not results(local, job)


def test_a_stopped_worker_hands_the_job_back(local: LocalStorage, settings: Settings) -> None:
    job = queued(local, picture())
    answers = iter([False, False, True])
    back = ended(local, settings, job, stop=lambda: next(answers, True))
    assert (back.state, back.backend, back.lease, back.lost) == (State.QUEUED, Backend.LAMBDA, None, 0)
    done = ended(local, settings, job)
    assert (done.state, done.attempt) == (State.SUCCEEDED, 2)


def test_what_is_too_much_here_is_moved_on_to_batch(
    local: LocalStorage, tmp_path: Path, batch: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = with_batch(tmp_path)
    big = queued(local, picture())
    moved = ended(local, with_batch(tmp_path, lambda_seconds=0), big)
    assert (moved.state, moved.backend, moved.batch_job_id) == (State.QUEUED, Backend.BATCH, "batch-1")
    assert moved.estimate is not None
    assert moved.estimate.route is Backend.BATCH
    assert run(local, settings, big) is None  # it is not Lambda's any more

    late = queued(local, picture())
    assert ended(local, settings, late, seconds=0.0).backend is Backend.BATCH
    stopped = queued(local, picture())
    assert ended(local, settings, stopped, stop=lambda: True).backend is Backend.BATCH
    died = queued(local, picture())
    jobs.claim(local, died.id, "dies", 0.001)
    wait_for(lambda: jobs.claimable(jobs.get(local, died.id), jobs.utc_now()), "the lease to run out")
    assert ended(local, settings, died).backend is Backend.BATCH

    full: list[Job] = []
    for error in (core.OutOfMemory("a"), MemoryError(), core.OutputError("b")):

        def fails(*_: Any, error: Exception = error, **__: Any) -> None:
            raise error

        monkeypatch.setattr(core, "upscale", fails)
        full.append(queued(local, picture()))
        assert ended(local, settings, full[-1]).backend is Backend.BATCH
        alone = ended(local, configured(tmp_path), queued(local, picture()))
        assert alone.error is not None
        assert alone.error.code in ("out_of_memory", "cannot_write")
    assert batch == [job.id for job in (big, late, stopped, died, *full)]

    monkeypatch.undo()
    done = ended(local, settings, big, backend=Backend.BATCH, batch_job_id="batch-1")
    assert (done.state, done.backend, done.attempt) == (State.SUCCEEDED, Backend.BATCH, 2)


def test_lambda_without_batch_tries_as_often_as_events_come(local: LocalStorage, tmp_path: Path) -> None:
    settings = configured(tmp_path, bucket="b")
    slow = queued(local, picture())
    states = [ended(local, settings, slow, stop=lambda: True) for _ in range(worker.TRIES)]
    assert [job.state for job in states] == [State.QUEUED, State.QUEUED, State.FAILED]
    assert states[-1].error is not None
    assert states[-1].error.code == "out_of_time"

    deadly = queued(local, picture())
    for _ in range(worker.TRIES - 1):
        assert jobs.claim(local, deadly.id, "dies", -1)
    failed = ended(local, settings, deadly)
    assert failed.error is not None
    assert failed.error.code == "worker_lost"


def test_a_store_that_fails_for_a_while_is_asked_again(local: LocalStorage, settings: Settings) -> None:
    once = {(name, ""): 1.0 for name in ("get", "head")}
    twice = {(name, ""): 2.0 for name in ("swap", "read_range", "download", "upload")}
    failing = Failing(local, once | twice)
    job = queued(local, picture())
    assert ended(failing, settings, job).state is State.SUCCEEDED
    assert failing.failed == 10


@pytest.mark.parametrize(("method", "prefix"), [("read_range", ""), ("download", ""), ("upload", "results/")])
def test_a_store_that_goes_on_failing_fails_the_job(
    local: LocalStorage, settings: Settings, method: str, prefix: str, scratch: Path
) -> None:
    failing = Failing(local, {(method, prefix): float("inf")})
    done = ended(failing, settings, queued(local, picture()))
    assert done.state is State.FAILED
    assert done.error is not None
    assert done.error.code == "storage_unavailable"
    assert failing.failed == 1 + len(AT_ONCE)
    assert not list(scratch.iterdir())


def test_when_not_even_the_failure_can_be_written_another_worker_takes_over(
    local: LocalStorage, tmp_path: Path
) -> None:
    job = queued(local, picture())
    failing = Failing(local)

    def stop() -> bool:
        failing.times = {(name, ""): float("inf") for name in ("get", "swap", "download", "read_range", "head")}
        return False

    settings = configured(tmp_path, lease_seconds=0.2)
    with pytest.raises(Unavailable):
        run(failing, settings, job, stop=stop)
    assert jobs.get(local, job.id).state is State.RUNNING
    assert worker.wait_until_claimable(local, job.id)
    done = ended(local, settings, job)
    assert (done.state, done.attempt, done.lost) == (State.SUCCEEDED, 2, 1)


def test_a_job_held_by_a_live_worker_does_not_become_free(local: LocalStorage) -> None:
    job = queued(local, picture())
    claimed = jobs.claim(local, job.id, "alive", 3)
    assert claimed
    with jobs.keep_lease(local, claimed, 3) as held:
        assert not worker.wait_until_claimable(local, job.id)
        with pytest.raises(TimeoutError):
            worker.wait_until_claimable(local, job.id, stop=lambda: True)
        jobs.fail(local, held.job, "code", "message")
    assert not worker.wait_until_claimable(local, job.id)


def test_progress_is_written_while_working(
    local: LocalStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("handler.jobs.changes.HEARTBEAT_SECONDS", 0.0)
    job = queued(local, picture(100, 40))
    seen: list[tuple[int, int]] = []

    def stop() -> bool:
        now = jobs.get(local, job.id).progress
        seen.append((now.done, now.total))
        return False

    ended(local, configured(tmp_path, tile_size=48, tile_overlap=8), job, stop=stop)
    total = seen[-1][1]
    assert total > 1
    assert [done for done, of in seen if of] == list(range(total + 1))


def test_the_lease_is_renewed_while_a_tile_takes_long(
    local: LocalStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = queued(local, picture())
    upscale = core.upscale
    rivals: list[Job | None] = []

    def slow(*arguments: Any, **named: Any) -> core.Result:
        until = jobs.get(local, job.id).lease
        while jobs.get(local, job.id).lease == until:
            rivals.append(jobs.claim(local, job.id, "rival", 1))
        return upscale(*arguments, **named)

    monkeypatch.setattr(core, "upscale", slow)
    done = ended(local, configured(tmp_path, lease_seconds=1.5), job)
    assert (done.state, done.attempt) == (State.SUCCEEDED, 1)
    assert rivals
    assert not any(rivals)


def test_a_webhook_is_called_though_the_worker_that_ended_the_job_died(local: LocalStorage, settings: Settings) -> None:
    job = queued(local, picture(), webhook="http://example.com/hook")
    told: list[Job] = []
    ended(local, settings, job, notify=lambda *_: None)
    assert run(local, settings, job, notify=lambda *told_of: told.append(told_of[2])) is None
    assert [job.state for job in told] == [State.SUCCEEDED]


def test_working_folders_of_killed_processes_are_removed_and_others_are_not(scratch: Path) -> None:
    code = "import sys, handler.workspace as w; c = w.workspace(); print(c.__enter__(), flush=True); sys.stdin.read()"
    environment = {**os.environ, "TMPDIR": str(scratch)}
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, text=True
    ) as process:
        assert process.stdout
        held = Path(process.stdout.readline().strip())
        (held / "file").write_text("x")
        strange = scratch / "other-program"
        strange.mkdir()
        with workspace() as mine:
            assert {mine, held, strange} == set(scratch.iterdir())
        assert (held / "file").exists()
        process.kill()
    with workspace() as mine:
        assert {mine, strange} == set(scratch.iterdir())
    assert not left_behind(scratch)


def test_many_threads_make_and_remove_working_folders(scratch: Path) -> None:
    failures: list[BaseException] = []

    def work() -> None:
        try:
            for _ in range(20):
                with workspace() as folder:
                    (folder / "file").write_text("x")
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert not list(scratch.glob(f"{PREFIX}*"))


@pytest.fixture
def model_bucket(moto_bucket: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> tuple[S3Storage, Callable[[], int]]:
    """A bucket with the embedded model under models/mine; and how many objects were downloaded."""
    endpoint, bucket = moto_bucket
    store = S3Storage(bucket, endpoint_url=endpoint)
    for path in (models.WEIGHTS / models.embedded(2, "png")).iterdir():
        if path.suffix in (".json", ".safetensors"):
            store.upload(path, f"models/mine/{path.name}", "application/octet-stream")
    count = 0
    download = S3Storage.download

    def counted(self: S3Storage, key: str, path: Path) -> None:
        nonlocal count
        count += key.startswith("models/")
        download(self, key, path)

    monkeypatch.setattr(S3Storage, "download", counted)
    monkeypatch.setattr(s3_models, "_fetched", {})
    return store, lambda: count


def test_a_model_in_s3_is_fetched_once_and_used(
    model_bucket: tuple[S3Storage, Callable[[], int]], moto: str, tmp_path: Path
) -> None:
    store, downloads = model_bucket
    settings = configured(tmp_path, bucket=store.bucket, s3_endpoint_url=moto)
    name = f"s3://{store.bucket}/models/mine"
    done = [ended(store, settings, queued(store, picture(), model=name)) for _ in range(2)]
    embedded = ended(store, settings, queued(store, picture()))
    assert [(job.model_used, job.degraded, job.error) for job in done] == [(name, False, None)] * 2
    assert result(store, done[0]) == result(store, done[1]) == result(store, embedded)
    assert downloads() == 2  # config.json and the weights


@pytest.mark.parametrize("damage", ["gone", "no weights", "cut", "no config", "nonsense"])
def test_a_model_in_s3_that_does_not_work_is_a_step_down_and_told(
    model_bucket: tuple[S3Storage, Callable[[], int]],
    moto: str,
    tmp_path: Path,
    damage: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(models, "FALLBACKS", ())  # the others would be asked for at the hub
    store, _ = model_bucket
    settings = configured(tmp_path, bucket=store.bucket, s3_endpoint_url=moto)
    name = f"s3://{store.bucket}/models/{damage.replace(' ', '-')}"
    prefix = name.partition("/models/")[2]
    weights = store.get("models/mine/model.safetensors")[0]
    config = store.get("models/mine/config.json")[0]
    if damage not in ("gone", "no config"):
        text = b"{}" if damage == "nonsense" else config
        store.put(f"models/{prefix}/config.json", text, "application/json")
    if damage not in ("gone", "no weights"):
        store.put(f"models/{prefix}/model.safetensors", weights[:-100] if damage == "cut" else weights, "a/b")
    done = ended(store, settings, queued(store, picture(), model=name))
    assert (done.state, done.model_used, done.degraded) == (State.SUCCEEDED, models.embedded(2, "png"), True)
    assert name in done.reason
    assert tempfile.gettempdir() not in done.reason


def test_a_fetched_model_is_gone_with_its_process(
    model_bucket: tuple[S3Storage, Callable[[], int]], moto: str, scratch: Path
) -> None:
    store, _ = model_bucket
    code = (
        "import sys; from handler import s3_models; from handler.settings import get_settings;"
        "print(s3_models.fetch(sys.argv[1], get_settings()))"
    )
    environment = {**os.environ, "TMPDIR": str(scratch), "BUCKET": store.bucket, "S3_ENDPOINT_URL": moto}
    name = f"s3://{store.bucket}/models/mine/"
    found = subprocess.run(
        [sys.executable, "-c", code, name], env=environment, capture_output=True, text=True, check=True
    )
    assert Path(found.stdout.strip()).parent == scratch
    assert not list(scratch.iterdir())


def test_a_full_disk_leaves_nothing(
    local: LocalStorage, settings: Settings, monkeypatch: pytest.MonkeyPatch, scratch: Path
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copyfileobj", full)
    done = ended(local, settings, queued(local, picture()))
    assert done.error is not None
    assert done.error.code == "storage_unavailable"
    assert not list(scratch.iterdir())
