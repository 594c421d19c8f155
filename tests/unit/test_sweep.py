"""The verdict on a job that may have been lost: a table, by a clock that stands still."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from handler import sweep
from handler.jobs import Backend, Failure, Job, Lease, State, StoredFile
from handler.sweep import Fail, Forget, Start, Surroundings, Wait, verdict

NOW = datetime(2026, 11, 27, 12, tzinfo=UTC)
HOUR, MINUTE = timedelta(hours=1), timedelta(minutes=1)
ID = "6f9619ff-8b86-4011-b42d-00c04fc964ff"


def job(state: State, *, age: timedelta = HOUR, over: timedelta | None = None, **news: Any) -> Job:
    """A job that was last written so long ago; `over`: how long its lease has run out."""
    lease = None if over is None else Lease(owner="w", until=NOW - over)
    return Job(
        id=ID, state=state, input=StoredFile(key=f"uploads/{ID}/a.png", name="a.png", content_type="image/png"),
        created=NOW - age, updated=NOW - age, expires=NOW + 24 * HOUR, lease=lease, **news,
    )  # fmt: skip


def on_batch(state: State, **news: Any) -> Job:
    return job(state, **{"backend": Backend.BATCH, "batch_job_id": "b", **news})


def around(status: str = "", *, age: timedelta = HOUR, works: bool = True, wait: bool = False) -> Surroundings:
    """Batch knows the container `b` in this state, created so long ago."""
    detail = {"status": status, "createdAt": int((NOW - age).timestamp() * 1000)}
    return Surroundings(NOW, wait, works, {"b": detail} if status else {}, lambda _: ("batch_failed", "why"))


@pytest.mark.parametrize(
    ("found", "where", "expected"),
    [
        pytest.param(job(State.SUCCEEDED), around(), Forget, id="done"),
        pytest.param(job(State.FAILED, error=Failure(code="x", message="y")), around(), Forget, id="failed"),
        pytest.param(job(State.QUEUED).model_copy(update={"expires": NOW}), around(), Fail, id="expired"),
        # Lambda
        pytest.param(job(State.RUNNING, over=-MINUTE), around(), Wait, id="somebody is at it"),
        pytest.param(job(State.RUNNING, over=MINUTE), around(), Wait, id="its message may bring it back"),
        pytest.param(job(State.RUNNING, over=HOUR), around(), Start, id="its worker died"),
        pytest.param(job(State.RUNNING, over=HOUR), around(wait=True), Start, id="died, while others wait"),
        pytest.param(job(State.QUEUED), around(), Wait, id="handed back lately"),
        pytest.param(job(State.QUEUED, age=3 * HOUR), around(), Start, id="nothing brings it back"),
        pytest.param(job(State.QUEUED, age=3 * HOUR), around(wait=True), Wait, id="its turn may come"),
        pytest.param(job(State.AWAITING_UPLOAD), around(), Wait, id="the file may come"),
        pytest.param(job(State.AWAITING_UPLOAD, age=24 * HOUR), around(), Forget, id="the link is over"),
        # Batch
        pytest.param(on_batch(State.QUEUED, batch_job_id=None), around(), Start, id="never submitted"),
        pytest.param(
            on_batch(State.QUEUED, batch_job_id=None, age=MINUTE), around(), Wait, id="being submitted, perhaps"
        ),
        pytest.param(on_batch(State.QUEUED), around("RUNNABLE"), Wait, id="waits its turn"),
        pytest.param(on_batch(State.QUEUED), around("RUNNABLE", works=False), Fail, id="a quota of zero"),
        pytest.param(on_batch(State.QUEUED), around("RUNNABLE", works=False, age=MINUTE), Wait, id="a machine starts"),
        pytest.param(on_batch(State.QUEUED), around("STARTING"), Wait, id="starts"),
        pytest.param(on_batch(State.QUEUED), around("FAILED"), Fail, id="its event was lost"),
        pytest.param(on_batch(State.QUEUED), around("SUCCEEDED"), Start, id="ended without ending it"),
        pytest.param(on_batch(State.QUEUED), around(), Start, id="forgotten there"),
        pytest.param(on_batch(State.RUNNING, over=-MINUTE), around("FAILED"), Wait, id="another container is at it"),
        pytest.param(on_batch(State.RUNNING, over=HOUR), around("FAILED"), Fail, id="its container died"),
        pytest.param(on_batch(State.RUNNING, over=HOUR), around("RUNNABLE"), Wait, id="another attempt is due"),
    ],
)
def test_verdict(found: Job, where: Surroundings, expected: type) -> None:
    given = verdict(found, where)
    assert isinstance(given, expected), given
    if isinstance(given, Wait):
        assert NOW <= given.until <= NOW + sweep.AWAITED


def test_an_upload_that_nobody_reported_is_started() -> None:
    late = job(State.AWAITING_UPLOAD, age=3 * HOUR)
    assert isinstance(verdict(late, around(), arrived=True), Start)
    assert isinstance(verdict(late, around(wait=True), arrived=True), Wait)


def test_a_failed_container_says_why() -> None:
    assert verdict(on_batch(State.QUEUED), around("FAILED")) == Fail("batch_failed", "why")
    no_machine = verdict(on_batch(State.QUEUED), around("RUNNABLE", works=False))
    assert isinstance(no_machine, Fail)
    assert "quota" in no_machine.message
