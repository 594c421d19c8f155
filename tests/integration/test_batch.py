"""The Batch container, killed and interrupted, and the events that Batch sends of its end."""

from __future__ import annotations

import json
import signal
import subprocess
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from aws_lambda_powertools.utilities.typing import LambdaContext

import core
from handler import batch, batch_event, batch_job, jobs, logs, worker
from handler.jobs import Backend, Job, Request, State
from handler.settings import Settings, get_settings
from handler.storage import LocalStorage, S3Storage, Unavailable
from tests.integration.work import (
    PATIENCE,
    TTL,
    Context,
    Failing,
    Start,
    containers,
    event,
    left_behind,
    picture,
    queued,
    result,
    results,
    wait_for,
)

#: A container that makes one tile, and no other until it is told to stop.
HELD = "import sys; from tests.integration import work; from handler import batch_job; work.one_tile_only();"
HELD += "sys.exit(batch_job.main(sys.argv[1:]))"
#: What the example events speak of.
JOB, BATCH_JOB = "6f9619ff-8b86-4011-b42d-00c04fc964ff", "4c7599ae-0a82-49aa-ba5a-4727fcce14a8"


def for_batch(store: LocalStorage | S3Storage, data: bytes, **named: Any) -> Job:
    """A job that waits for its container."""
    job = queued(store, data, **named)
    news = {"backend": Backend.BATCH, "batch_job_id": BATCH_JOB}
    return jobs.change(store, job.id, lambda now: now.model_copy(update=news))


def run(store: LocalStorage, settings: Settings, job: Job, stopped: threading.Event | None = None) -> int:
    return batch_job.run(store, settings, job.id, stopped or threading.Event())


@pytest.fixture
def container(tmp_path: Path) -> Iterator[Start]:
    """Start the container's command; what still runs at the end of the test is killed."""
    (tmp_path / "scratch").mkdir()
    batch = {"TMPDIR": str(tmp_path / "scratch"), "AWS_BATCH_JOB_ID": BATCH_JOB, "AWS_BATCH_JOB_ATTEMPT": "1"}
    with containers() as begin:

        def start(job: Job, code: str = "", **variables: str) -> subprocess.Popen[bytes]:
            return begin([*(["-c", code] if code else ["-m", "handler.batch_job"]), "--job", job.id], batch | variables)

        yield start


def test_the_container_does_the_job(seaweedfs_bucket: tuple[str, str], container: Start, tmp_path: Path) -> None:
    endpoint, bucket = seaweedfs_bucket
    store = S3Storage(bucket, endpoint_url=endpoint)
    job = for_batch(store, data := picture())
    assert container(job, BUCKET=bucket, S3_ENDPOINT_URL=endpoint).wait(PATIENCE) == batch_job.ENDED
    done = jobs.get(store, job.id)
    assert (done.state, done.backend, done.batch_job_id) == (State.SUCCEEDED, Backend.BATCH, BATCH_JOB)
    assert result(store, done) == core.upscale(data).data
    assert not left_behind(tmp_path / "scratch")


def test_a_spot_instance_that_is_taken_away_hands_the_job_back(
    store: LocalStorage, settings: Settings, container: Start, tmp_path: Path
) -> None:
    job = for_batch(store, data := picture(120, 90))
    process = container(job, HELD, DATA_DIR=str(settings.data_dir), BUCKET="", TILE_SIZE="48")
    wait_for(lambda: jobs.get(store, job.id).progress.done or process.poll() is not None, "the first tile")
    process.send_signal(signal.SIGTERM)
    assert process.wait(PATIENCE) == batch_job.REPEAT
    back = jobs.get(store, job.id)
    assert (back.state, back.backend, back.batch_job_id, back.lost) == (State.QUEUED, Backend.BATCH, BATCH_JOB, 0)
    assert not left_behind(tmp_path / "scratch")

    assert run(store, settings, job) == batch_job.ENDED
    done = jobs.get(store, job.id)
    assert (done.state, done.attempt) == (State.SUCCEEDED, 2)
    assert result(store, done) == core.upscale(data).data
    assert len(results(store, done)) == 1


def test_a_repetition_waits_for_the_lease_of_the_container_that_was_killed(
    store: LocalStorage, settings: Settings
) -> None:
    job = for_batch(store, picture())
    assert jobs.claim(store, job.id, "killed", 1.0, backend=Backend.BATCH)
    assert run(store, settings, job) == batch_job.ENDED
    done = jobs.get(store, job.id)
    assert (done.state, done.attempt, done.lost) == (State.SUCCEEDED, 2, 1)


def test_a_repetition_that_is_stopped_while_it_waits_is_repeated(store: LocalStorage, settings: Settings) -> None:
    job = for_batch(store, picture())
    assert jobs.claim(store, job.id, "killed", 60, backend=Backend.BATCH)
    stopped = threading.Event()
    stopped.set()
    assert run(store, settings, job, stopped) == batch_job.REPEAT


def test_a_second_container_leaves_the_first_alone(store: LocalStorage, settings: Settings) -> None:
    job = for_batch(store, picture())
    claimed = jobs.claim(store, job.id, "first", 9, backend=Backend.BATCH)
    assert claimed
    with jobs.keep_lease(store, claimed, 9):
        assert run(store, settings, job) == batch_job.ENDED
        assert jobs.get(store, job.id).attempt == 1


def test_the_container_that_claims_is_the_one_that_is_named(
    store: LocalStorage, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_BATCH_JOB_ID", "another")
    job = for_batch(store, picture())
    assert run(store, settings, job) == batch_job.ENDED
    assert jobs.get(store, job.id).batch_job_id == "another"


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, settings: Settings) -> Iterator[Callable[..., int]]:
    """The command line in this process."""
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(logs, "setup", lambda _: None)
    monkeypatch.setenv("DATA_DIR", str(settings.data_dir))
    get_settings.cache_clear()
    yield lambda *arguments: batch_job.main(arguments)
    get_settings.cache_clear()
    signal.signal(signal.SIGTERM, before)


def test_exit_codes(command: Callable[..., int], store: LocalStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    bad = for_batch(store, b"no picture")
    assert command("--job", bad.id) == batch_job.ENDED  # nobody need be woken for that
    assert jobs.get(store, bad.id).state is State.FAILED
    assert command("--job", bad.id) == batch_job.ENDED  # repeated all the same
    defect = for_batch(store, picture())
    jobs.fail_unclaimed(store, defect.id, "internal_error", "something went wrong here")
    assert command("--job", defect.id) == batch_job.FAILED
    cancelled = for_batch(store, picture())
    jobs.cancel(store, cancelled.id)
    assert command("--job", cancelled.id) == batch_job.ENDED
    assert command("--job", str(uuid.uuid4())) == batch_job.USAGE
    assert command("--job", "../../x") == batch_job.USAGE
    with pytest.raises(SystemExit) as ended:
        command()
    assert ended.value.code == batch_job.USAGE

    def down(*_: Any, **__: Any) -> None:
        raise Unavailable("the store failed: 503")

    monkeypatch.setattr(worker, "run_job", down)
    assert command("--job", bad.id) == batch_job.REPEAT
    get_settings.cache_clear()
    monkeypatch.setenv("REQUIRE_GPU", "true")
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert command("--job", bad.id) == batch_job.NO_GPU
    get_settings.cache_clear()
    monkeypatch.setenv("LEASE_SECONDS", "-1")
    assert command("--job", bad.id) == batch_job.USAGE


@pytest.fixture
def call(store: LocalStorage, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    """The handler of Batch's events, as Lambda calls it."""

    def handle(sent: dict[str, Any], storage: Any = store) -> Any:
        monkeypatch.setattr(batch_event, "open_from_environment", lambda: (settings, storage))
        return batch_event.handler(sent, cast(LambdaContext, Context()))

    yield handle
    batch_event.metrics.clear_metrics()


def known(store: LocalStorage, **news: Any) -> Job:
    """The job that the example events speak of, claimed by its container."""
    request = Request(filename="photo.png", content_type="image/png")
    jobs.put(store, JOB, request, ttl=TTL)
    jobs.uploaded(store, JOB)
    news = {"backend": Backend.BATCH, "batch_job_id": BATCH_JOB, **news}
    jobs.change(store, JOB, lambda now: now.model_copy(update=news))
    job = jobs.claim(store, JOB, "container", 60)
    assert job
    return job


@pytest.mark.parametrize(
    ("name", "code", "words"),
    [
        ("batch_failed.json", "batch_failed", "exit code 139"),
        ("batch_out_of_memory.json", "out_of_memory", "memory"),
        ("batch_timed_out.json", "batch_timeout", "longer"),
    ],
)
def test_a_container_that_died_fails_its_job(
    call: Callable[..., Any], store: LocalStorage, name: str, code: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    known(store)
    assert call(event(name)) == {"id": JOB, "state": "failed"}
    job = jobs.get(store, JOB)
    assert (job.state, job.lease) == (State.FAILED, None)
    assert job.error is not None
    assert job.error.code == code
    assert words in job.error.message
    assert call(event(name)) == {"id": JOB, "state": "failed"}
    assert jobs.get(store, JOB) == job
    assert lost(capsys.readouterr().out) == 1


def lost(output: str) -> float:
    """How many jobs a call of the handler counted as lost."""
    counted = [json.loads(line)["Lost"] for line in output.splitlines() if '"_aws"' in line and '"Lost"' in line]
    return sum(sum(values) if isinstance(values, list) else values for values in counted)


def test_a_cancelled_job_and_a_bad_picture_wake_nobody(
    call: Callable[..., Any], store: LocalStorage, capsys: pytest.CaptureFixture[str]
) -> None:
    known(store)
    jobs.cancel(store, JOB)
    sent = event("batch_failed.json")
    sent["detail"] |= {"statusReason": batch.CANCELLED}
    assert call(sent) == {"id": JOB, "state": "cancelled"}
    assert lost(capsys.readouterr().out) == 0
    sent["detail"]["container"]["exitCode"] = batch_job.FAILED  # a defect of ours
    call(sent)
    assert lost(capsys.readouterr().out) == 1


@pytest.mark.parametrize("name", ["batch_spot_retry.json", "batch_succeeded.json", "s3_put.json", "s3_test_event.json"])
def test_events_that_end_nothing(call: Callable[..., Any], store: LocalStorage, name: str) -> None:
    job = known(store)
    assert call(event(name)) == {}
    assert jobs.get(store, JOB) == job


def test_a_job_that_has_ended_or_belongs_to_another_container_stays(
    call: Callable[..., Any], store: LocalStorage
) -> None:
    job = known(store, batch_job_id="another")
    assert call(event("batch_failed.json")) == {"id": JOB, "state": "running"}
    assert jobs.get(store, JOB) == job
    cancelled = jobs.cancel(store, JOB)
    call(event("batch_failed.json"))
    assert jobs.get(store, JOB) == cancelled


def test_a_container_whose_id_nobody_wrote_down_fails_its_job_too(
    call: Callable[..., Any], store: LocalStorage
) -> None:
    known(store, batch_job_id=None)
    assert call(event("batch_failed.json")) == {"id": JOB, "state": "failed"}


def test_other_peoples_containers_and_jobs_that_are_gone(call: Callable[..., Any], store: LocalStorage) -> None:
    sent = event("batch_failed.json")
    assert call(sent) == {}
    for container in ({"command": ["sleep", "1"]}, {"command": ["--job"]}, {"command": ["--job", "../x"]}, {}, None):
        sent["detail"]["container"] = container
        assert call(sent) == {}


def test_a_store_that_fails_has_the_event_repeated(call: Callable[..., Any], store: LocalStorage) -> None:
    known(store)
    with pytest.raises(Unavailable):
        call(event("batch_failed.json"), Failing(store, {("swap", ""): 1}))
    call(event("batch_failed.json"))
    assert jobs.get(store, JOB).state is State.FAILED


def test_a_failure_without_words_is_told_as_such() -> None:
    assert batch_event.reason({}) == ("batch_failed", "AWS Batch gave up: no reason given")
    long = {"statusReason": "x" * 10_000}
    assert len(batch_event.reason(long)[1]) == 500
    assert json.dumps(batch_event.reason(long))
