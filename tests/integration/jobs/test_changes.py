"""The job document: its states, and who may change them."""

from __future__ import annotations

import itertools
from datetime import timedelta

import pytest

from handler import jobs
from handler.jobs import Job, State, StoredFile
from handler.storage import LocalStorage, NotFound, Storage
from tests.integration.jobs.support import LEASE, REQUEST, TTL, Time, claimed, queued, results, worker_calls, written


def test_the_life_of_a_job(storage: Storage, clock: Time) -> None:
    id = jobs.new_id()
    request = REQUEST.model_copy(update={"webhook": "https://example.com/", "options": {"model": "compact-x2"}})
    job, new = jobs.put(storage, id, request, ttl=TTL, clock=clock)
    assert new
    assert (job.id, job.state, job.attempt, job.model) == (id, State.AWAITING_UPLOAD, 0, "compact-x2")
    assert job.input == StoredFile(
        key=f"uploads/{id}/photo.jpg", name="photo.jpg", content_type="image/jpeg", bytes=1000
    )
    assert (job.created, job.expires) == (clock.now, clock.now + TTL)
    assert jobs.claim(storage, id, "worker", LEASE, clock=clock) is None, "there is nothing to work on yet"

    clock.sleep(1)
    job = jobs.uploaded(storage, id, size=900, width=30, height=20, version="v1", clock=clock)
    assert job.state is State.QUEUED
    assert (job.input.bytes, job.input.width, job.input.height, job.input.version) == (900, 30, 20, "v1")

    clock.sleep(1)
    job = claimed(storage, id, clock)
    assert (job.state, job.attempt, job.started) == (State.RUNNING, 1, clock.now)
    assert job.lease is not None
    assert job.lease.until == clock.now + timedelta(seconds=LEASE)

    clock.sleep(3)
    job = jobs.progress(storage, job, 3, 10, clock=clock)
    assert (job.progress.done, job.progress.total) == (3, 10)
    assert jobs.get(storage, id) == job

    clock.sleep(3)
    output = written(storage, job)
    assert output.key == f"results/{id}/1/photo-x2.png"
    job = jobs.succeed(
        storage, job, output, model_used="lanczos", degraded=True, reason="why", timings={"run": 1.5}, clock=clock
    )
    assert (job.state, job.output, job.lease, job.finished) == (State.SUCCEEDED, output, None, clock.now)
    assert (job.model_used, job.degraded, job.reason, job.timings) == ("lanczos", True, "why", {"run": 1.5})
    assert (job.progress.done, job.progress.total) == (10, 10)
    assert jobs.get(storage, id) == job
    assert jobs.loads(jobs.dumps(job)) == job
    assert jobs.claim(storage, id, "worker", LEASE, clock=clock) is None
    assert results(storage, id) == [output.key]


def test_what_clients_see(local: LocalStorage) -> None:
    id = queued(local)
    seen = claimed(local, id).public()
    assert seen["state"] == "running"
    assert seen["options"] == {"scale": 2}
    assert not {"lease", "request_hash", "revision"} & seen.keys()


def test_put_again(storage: Storage, clock: Time) -> None:
    id = jobs.new_id()
    first, new = jobs.put(storage, id, REQUEST, ttl=TTL, clock=clock)
    assert new
    jobs.uploaded(storage, id, clock=clock)
    clock.sleep(100)
    again, new = jobs.put(storage, id, REQUEST, ttl=TTL, clock=clock)
    assert not new
    assert again.created == first.created
    assert again.state is State.QUEUED, "the job as it is now"
    for other in (
        {"filename": "other.jpg"},
        {"content_type": "image/png"},
        {"bytes": 1001},
        {"options": {"scale": 3}},
        {"webhook": "https://example.com/"},
    ):
        with pytest.raises(jobs.Conflict):
            jobs.put(storage, id, REQUEST.model_copy(update=other), ttl=TTL, clock=clock)


@pytest.mark.parametrize(
    "id", ["", "1", "../secret", "6F9619FF-8B86-4011-B42D-00C04FC964FF", "6f9619ff8b864011b42d00c04fc964ff", "x" * 9999]
)
def test_ids_are_uuids(local: LocalStorage, id: str) -> None:
    for call in (jobs.get, jobs.cancel, jobs.uploaded):
        with pytest.raises(jobs.InvalidId):
            call(local, id)
    with pytest.raises(jobs.InvalidId):
        jobs.put(local, id, REQUEST, ttl=TTL)
    with pytest.raises(jobs.InvalidId):
        jobs.claim(local, id, "worker", LEASE)


def test_no_such_job(storage: Storage) -> None:
    for call in (jobs.get, jobs.cancel, jobs.uploaded):
        with pytest.raises(NotFound):
            call(storage, jobs.new_id())
    with pytest.raises(NotFound):
        jobs.claim(storage, jobs.new_id(), "worker", LEASE)


@pytest.mark.parametrize("name", ["../../etc/passwd", "a/b.jpg", "\0", "n" * 10_000 + ".jpg"])
def test_names_cannot_leave_the_jobs_folder(local: LocalStorage, name: str) -> None:
    job = jobs.create(local, REQUEST.model_copy(update={"filename": name}), ttl=TTL)
    assert job.input.key.startswith(f"uploads/{job.id}/")
    assert job.input.key.count("/") == 2
    local.put(job.input.key, b"", "image/jpeg")


def test_every(local: LocalStorage) -> None:
    ids = {queued(local) for _ in range(3)}
    local.put("jobs/readme.txt", b"not a job", "text/plain")
    local.put(jobs.job_key(jobs.new_id()), b"{broken", "application/json")
    assert {job.id for job in jobs.every(local)} == ids


ALLOWED = {
    "awaiting_upload": {"queued", "failed", "cancelled"},
    "queued": {"running", "failed", "cancelled"},
    "running": {"queued", "succeeded", "failed", "cancelled"},
    "succeeded": set[str](),
    "failed": set[str](),
    "cancelled": set[str](),
}


@pytest.mark.parametrize(("old", "new"), list(itertools.permutations(State, 2)))
def test_transitions(local: LocalStorage, old: State, new: State) -> None:
    job = jobs.create(local, REQUEST, ttl=TTL)
    local.put(jobs.job_key(job.id), jobs.dumps(job.model_copy(update={"state": old})), "application/json")

    def step(job: Job) -> Job:
        return job.model_copy(update={"state": new})

    if new.value in ALLOWED[old.value]:
        assert jobs.change(local, job.id, step).state is new
    else:
        with pytest.raises(jobs.IllegalTransition, match=f"{old}.* {new}"):
            jobs.change(local, job.id, step)
        assert jobs.get(local, job.id).state is old


def test_a_final_job_does_not_change(local: LocalStorage) -> None:
    id = queued(local)
    jobs.cancel(local, id)
    with pytest.raises(jobs.IllegalTransition):
        jobs.change(local, id, lambda job: job.model_copy(update={"reason": "another"}))
    before = jobs.get(local, id)
    assert jobs.change(local, id, lambda job: job) == before, "what is unchanged is not written"


def test_cancel(storage: Storage) -> None:
    id = queued(storage)
    assert jobs.cancel(storage, id).state is State.CANCELLED
    assert jobs.cancel(storage, id).state is State.CANCELLED
    assert jobs.claim(storage, id, "worker", LEASE) is None
    for end in (jobs.succeed, jobs.fail):
        id = queued(storage)
        job = claimed(storage, id)
        if end is jobs.succeed:
            jobs.succeed(storage, job, written(storage, job), model_used="m")
        else:
            jobs.fail(storage, job, "code", "message")
        with pytest.raises(jobs.IllegalTransition):
            jobs.cancel(storage, id)


def test_cancel_while_working(storage: Storage, clock: Time) -> None:
    id = queued(storage, clock)
    job = claimed(storage, id, clock)
    output = written(storage, job)
    jobs.cancel(storage, id, clock=clock)
    output = written(storage, job)
    clock.sleep(5)
    for call in worker_calls(storage, job, output, clock):
        with pytest.raises(jobs.Cancelled):
            call()
    assert jobs.get(storage, id).state is State.CANCELLED
    assert results(storage, id) == []


def test_fail(storage: Storage, clock: Time) -> None:
    id = queued(storage, clock)
    job = claimed(storage, id, clock)
    written(storage, job)
    failed = jobs.fail(storage, job, "unreadable_image", "no image", clock=clock)
    assert failed.error == jobs.Failure(code="unreadable_image", message="no image")
    assert (failed.state, failed.finished, failed.lease) == (State.FAILED, clock.now, None)
    assert jobs.fail(storage, job, "unreadable_image", "no image", clock=clock) == failed
    with pytest.raises(jobs.Lost):
        jobs.fail(storage, job, "another", "reason", clock=clock)
    assert results(storage, id) == []


def test_fail_from_outside(local: LocalStorage) -> None:
    id = queued(local)
    job = claimed(local, id)
    jobs.change(local, id, lambda job: job.model_copy(update={"batch_job_id": "two"}))
    assert jobs.fail_unclaimed(local, id, "batch", "died", batch_job_id="one").state is State.RUNNING
    failed = jobs.fail_unclaimed(local, id, "batch", "died", batch_job_id="two")
    assert failed.state is State.FAILED
    assert jobs.fail_unclaimed(local, id, "other", "reason") == failed
    with pytest.raises(jobs.Lost):
        jobs.succeed(local, job, written(local, job), model_used="m")
    assert results(local, id) == []
