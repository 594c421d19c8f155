"""The job document: its states, and who may change them when several want to."""

from __future__ import annotations

import itertools
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from handler import jobs
from handler.jobs import Backend, Job, Request, State, StoredFile
from handler.storage import Changed, Exists, LocalStorage, NotFound, S3Storage, Storage, Unavailable
from tests.integration.together import Together

TTL = timedelta(days=7)
REQUEST = Request(filename="photo.jpg", content_type="image/jpeg", bytes=1000, options={"scale": 2})
LEASE = 60.0


class Time:
    """A clock that moves when told to."""

    def __init__(self) -> None:
        self.now = datetime(2030, 1, 1, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)


@pytest.fixture
def clock() -> Time:
    return Time()


@pytest.fixture
def local(tmp_path: Path) -> LocalStorage:
    return LocalStorage(tmp_path / "store")


@pytest.fixture
def atomic(storage: Storage, request: pytest.FixtureRequest) -> Storage:
    """A store whose conditional writes are one step."""
    if "moto" in request.node.name:
        pytest.skip("moto checks the condition and writes in two steps, so a race on it proves nothing")
    return storage


def queued(storage: Storage, clock: jobs.Clock = jobs.utc_now, **request: Any) -> str:
    """A job that waits for a worker; its id."""
    job = jobs.create(storage, REQUEST.model_copy(update=request), ttl=TTL, clock=clock)
    jobs.uploaded(storage, job.id, clock=clock)
    return job.id


def claimed(storage: Storage, id: str, clock: jobs.Clock = jobs.utc_now) -> Job:
    job = jobs.claim(storage, id, "worker", LEASE, clock=clock)
    assert job is not None
    return job


def written(storage: Storage, job: Job, data: bytes = b"result") -> StoredFile:
    """A result, stored as a worker does."""
    key = jobs.result_key(job, "photo-x2.png")
    storage.put(key, data, "image/png")
    return StoredFile(key=key, name="photo-x2.png", content_type="image/png", bytes=len(data))


def results(storage: Storage, id: str) -> list[str]:
    return [found.key for found in storage.list(f"results/{id}/")]


# Documents


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


# States


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


# Claims


def claim_often(number: int, storage: Storage, id: str, times: int) -> list[tuple[int, str]]:
    """Claim `times` times at once in this process; the claims that were granted."""
    with ThreadPoolExecutor(times) as pool:
        found = list(pool.map(lambda _: jobs.claim(storage, id, f"worker-{number}", LEASE), range(times)))
    return [(job.attempt, job.lease.owner) for job in found if job and job.lease]


def test_twenty_claims_at_once(atomic: Storage, four: Together) -> None:
    fresh = S3Storage(atomic.bucket, endpoint_url=atomic.endpoint_url) if isinstance(atomic, S3Storage) else atomic
    for _ in range(3):
        id = queued(atomic)
        granted = [claim for claims in four(claim_often, fresh, id, 5) for claim in claims]
        assert len(granted) == 1
        job = jobs.get(atomic, id)
        assert job.lease is not None
        assert granted == [(1, job.lease.owner)]


def put_one(number: int, storage: Storage, id: str) -> bool:
    return jobs.put(storage, id, REQUEST, ttl=TTL)[1]


def find_one(number: int, storage: Storage, key: str) -> str:
    return jobs.find_or_create_for_upload(storage, "bucket", key, "version", ttl=TTL).id


def test_one_of_many_puts_makes_the_job(atomic: Storage, four: Together) -> None:
    fresh = S3Storage(atomic.bucket, endpoint_url=atomic.endpoint_url) if isinstance(atomic, S3Storage) else atomic
    for _ in range(3):
        assert sorted(four(put_one, fresh, jobs.new_id())) == [False, False, False, True]
    [found] = set(four(find_one, fresh, f"uploads/{uuid.uuid4()}.jpg"))
    assert jobs.get(atomic, found).state is State.QUEUED


def worker_calls(storage: Storage, job: Job, output: StoredFile, clock: Time) -> list[Callable[[], object]]:
    """Everything that only the holder of a claim may do."""
    return [
        lambda: jobs.renew(storage, job, LEASE, clock=clock),
        lambda: jobs.progress(storage, job, 1, 2, clock=clock),
        lambda: jobs.release(storage, job, clock=clock),
        lambda: jobs.fail(storage, job, "code", "message", clock=clock),
        lambda: jobs.succeed(storage, job, output, model_used="m", clock=clock),
    ]


def test_a_silent_worker_is_replaced(storage: Storage, clock: Time) -> None:
    id = queued(storage, clock)
    first = claimed(storage, id, clock)
    clock.sleep(LEASE - 1)
    first = jobs.renew(storage, first, LEASE, clock=clock)
    clock.sleep(LEASE - 1)
    assert jobs.claim(storage, id, "other", LEASE, clock=clock) is None, "renewed"
    clock.sleep(1)
    second = claimed(storage, id, clock)
    assert (second.attempt, second.lost, second.started) == (2, 1, first.started)

    stale, good = written(storage, first, b"stale"), written(storage, second, b"good")
    assert stale.key != good.key
    clock.sleep(5)
    for call in worker_calls(storage, first, stale, clock):
        with pytest.raises(jobs.Lost):
            call()
    assert jobs.get(storage, id) == second, "the one that came back has changed nothing"
    assert results(storage, id) == [good.key], "and its result is gone"

    stale = written(storage, first, b"stale, written late")
    jobs.succeed(storage, second, good, model_used="m", clock=clock)
    assert results(storage, id) == [good.key]
    stale = written(storage, first, b"stale, written after the end")
    with pytest.raises(jobs.Lost):
        jobs.succeed(storage, first, stale, model_used="m", clock=clock)
    assert results(storage, id) == [good.key]
    assert storage.get(good.key)[0] == b"good"


def test_a_lease_that_ran_out_is_good_until_somebody_takes_over(local: LocalStorage, clock: Time) -> None:
    job = claimed(local, queued(local, clock), clock)
    clock.sleep(10 * LEASE)
    assert jobs.succeed(local, job, written(local, job), model_used="m", clock=clock).state is State.SUCCEEDED


def test_a_job_that_kills_its_workers_fails(storage: Storage, clock: Time) -> None:
    id = queued(storage, clock)
    for attempt in (1, 2, 3):
        job = claimed(storage, id, clock)
        assert (job.attempt, job.lost) == (attempt, attempt - 1)
        written(storage, job)
        clock.sleep(LEASE)
    assert jobs.claim(storage, id, "worker", LEASE, clock=clock) is None
    job = jobs.get(storage, id)
    assert (job.state, job.lost, job.lease) == (State.FAILED, 3, None)
    assert job.error is not None
    assert job.error.code == "worker_lost"
    assert "3 times" in job.error.message
    assert results(storage, id) == []


def test_handing_back_is_no_loss(local: LocalStorage, clock: Time) -> None:
    id = queued(local, clock)
    for attempt in range(1, 10):
        job = claimed(local, id, clock)
        assert (job.attempt, job.lost) == (attempt, 0)
        back = jobs.release(local, job, clock=clock)
        assert (back.state, back.lease, back.progress.done) == (State.QUEUED, None, 0)


def test_a_job_moves_to_another_backend(local: LocalStorage, clock: Time) -> None:
    id = queued(local, clock)
    job = jobs.claim(local, id, "worker", LEASE, backend=Backend.LAMBDA, clock=clock)
    assert job is not None
    assert job.backend is Backend.LAMBDA
    jobs.release(local, job, backend=Backend.BATCH, clock=clock)
    jobs.change(local, id, lambda job: job.model_copy(update={"batch_job_id": "b"}), clock=clock)
    assert jobs.claim(local, id, "worker", LEASE, backend=Backend.LAMBDA, clock=clock) is None
    job = jobs.claim(local, id, "worker", LEASE, backend=Backend.BATCH, clock=clock)
    assert job is not None
    assert jobs.release(local, job, backend=Backend.BATCH, clock=clock).batch_job_id == "b", "a Spot interruption"


def test_expired_jobs_are_left_alone(local: LocalStorage, clock: Time) -> None:
    id = queued(local, clock)
    clock.sleep(TTL.total_seconds() - 1)
    assert jobs.claimable(jobs.get(local, id), clock.now)
    clock.sleep(1)
    job = jobs.get(local, id)
    assert jobs.expired(job, clock.now)
    assert not jobs.claimable(job, clock.now)
    assert jobs.claim(local, id, "worker", LEASE, clock=clock) is None


def test_what_can_be_claimed(local: LocalStorage, clock: Time) -> None:
    id = queued(local, clock)
    assert jobs.claimable(jobs.get(local, id), clock.now)
    claimed(local, id, clock)
    assert not jobs.claimable(jobs.get(local, id), clock.now)
    clock.sleep(LEASE)
    assert jobs.claimable(jobs.get(local, id), clock.now)
    jobs.cancel(local, id, clock=clock)
    assert not jobs.claimable(jobs.get(local, id), clock.now)


def test_results_lie_where_their_claim_says(local: LocalStorage) -> None:
    job = claimed(local, queued(local))
    for key in (f"results/{job.id}/2/x.png", f"results/{job.id}/x.png", f"results/{job.id}/11/x.png"):
        with pytest.raises(ValueError, match="lies under"):
            jobs.succeed(local, job, StoredFile(key=key, name="x", content_type="image/png"), model_used="m")


# Uploads


def test_an_upload_without_a_job_gets_one(storage: Storage) -> None:
    key = f"uploads/{uuid.uuid4().hex[:8]}/a+b %.jpg"
    job = jobs.find_or_create_for_upload(
        storage, "bucket", key, "v1", ttl=TTL, content_type="image/jpeg", size=5, options={"scale": 3}
    )
    assert (job.state, job.options) == (State.QUEUED, {"scale": 3})
    assert job.input == StoredFile(key=key, name="a+b %.jpg", content_type="image/jpeg", bytes=5, version="v1")
    again = jobs.find_or_create_for_upload(storage, "bucket", key, "v1", ttl=TTL, size=6)
    assert again == job
    others = [("bucket", key, "v2"), ("other", key, "v1"), ("bucket", key + "x", "v1"), ("bucket", key[:-1], "gv1")]
    ids = {jobs.find_or_create_for_upload(storage, *other, ttl=TTL).id for other in others}
    assert len(ids | {job.id}) == 5


def test_an_upload_to_a_job_is_that_job(storage: Storage) -> None:
    job = jobs.create(storage, REQUEST, ttl=TTL)
    for _ in range(2):
        found = jobs.find_or_create_for_upload(storage, "bucket", job.input.key, "v1", ttl=TTL, size=77)
        assert (found.id, found.state) == (job.id, State.QUEUED)
        assert (found.input.bytes, found.input.version) == (77, "v1")
    running = claimed(storage, job.id)
    assert jobs.find_or_create_for_upload(storage, "bucket", job.input.key, "v1", ttl=TTL) == running
    beside = jobs.find_or_create_for_upload(storage, "bucket", f"uploads/{job.id}/other.jpg", "v1", ttl=TTL)
    assert beside.id != job.id, "not the file that this job declared"
    for key in (f"uploads/{uuid.uuid4()}/photo.jpg", "uploads/photo.jpg", f"uploads/{job.id}/deep/photo.jpg"):
        assert jobs.find_or_create_for_upload(storage, "bucket", key, "v1", ttl=TTL).input.key == key


# Storage in trouble


class Trouble:
    """A store in which chosen calls go wrong. `plan(name, number)` is asked before each call (numbered from 0).

    It may return "lie" (the write is done, and reported as having come second), "after" (done, then the worker dies),
    "before" (the worker dies first), "down" (not done, store unavailable), "deaf" (done, and reported as down).
    """

    class Killed(BaseException):
        """The process ends here."""

    def __init__(self, storage: Storage, plan: Callable[[str, int], str | None] = lambda *_: None) -> None:
        self._storage = storage
        self.plan = plan
        self.calls: list[str] = []

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._storage, name)
        if not callable(method):
            return method

        def call(*args: Any, **kwargs: Any) -> Any:
            what = self.plan(name, len(self.calls))
            self.calls.append(name)
            if what == "before":
                raise Trouble.Killed
            if what == "down":
                raise Unavailable("down")
            value = method(*args, **kwargs)
            if what == "after":
                raise Trouble.Killed
            if what == "lie":
                raise (Exists if name == "create" else Changed)("not you")
            if what == "deaf":
                raise Unavailable("no answer")
            return value

        return call


def test_writes_whose_answer_was_lost_are_recognised(local: LocalStorage, clock: Time) -> None:
    """A retried request finds its own first try in the store, and is told that it came second."""
    liar = Trouble(local, lambda name, _: "lie" if name in ("create", "swap") else None)
    id = jobs.new_id()
    assert jobs.put(liar, id, REQUEST, ttl=TTL, clock=clock)[1], "it is new"
    assert jobs.uploaded(liar, id, clock=clock).state is State.QUEUED
    job = jobs.claim(liar, id, "worker", LEASE, clock=clock)
    assert job is not None
    assert job.attempt == 1
    clock.sleep(5)
    job = jobs.progress(liar, jobs.renew(liar, job, LEASE, clock=clock), 1, 2, clock=clock)
    assert job.progress.done == 1

    def count(job: Job) -> Job:
        return job.model_copy(update={"timings": {"changes": job.timings.get("changes", 0) + 1}})

    assert jobs.change(liar, id, count, clock=clock).timings == {"changes": 1}
    assert jobs.succeed(liar, job, written(local, job), model_used="m", clock=clock).state is State.SUCCEEDED
    assert local.get(f"results/{id}/1/photo-x2.png")[0] == b"result"


@pytest.mark.parametrize("trouble", ["down", "deaf"])
def test_the_end_can_be_told_again(local: LocalStorage, trouble: str) -> None:
    id = queued(local)
    job = claimed(local, id)
    output = written(local, job)
    store = Trouble(local, lambda name, _: trouble if name == "swap" else None)
    with pytest.raises(Unavailable):
        jobs.succeed(store, job, output, model_used="m")
    assert results(local, id) == [output.key], "the result is kept: it may be the job's"
    ended = jobs.succeed(local, job, output, model_used="m")
    assert jobs.succeed(local, job, output, model_used="m") == ended
    assert ended.output == output


def work(storage: Storage, key: str, clock: Time, data: bytes = b"result") -> None:
    """What a worker does when it is told of an upload."""
    job = jobs.find_or_create_for_upload(storage, "bucket", key, "v1", ttl=TTL, clock=clock)
    mine = jobs.claim(storage, job.id, "worker", LEASE, clock=clock)
    if mine is None:
        return
    clock.sleep(5)
    mine = jobs.progress(storage, mine, 1, 2, clock=clock)
    mine = jobs.renew(storage, mine, LEASE, clock=clock)
    jobs.succeed(storage, mine, written(storage, mine, data), model_used="m", clock=clock)


def test_killed_at_any_moment(local: LocalStorage, clock: Time) -> None:
    """Before and after every single call to the store, once and then twice; the event is delivered again each time."""
    undisturbed = Trouble(local)
    work(undisturbed, "uploads/undisturbed.jpg", clock)
    steps = len(undisturbed.calls)
    assert steps > 10
    moments: list[list[tuple[int, str]]] = [[(n, when)] for n in range(steps) for when in ("before", "after")]
    moments += [[(n, "after"), (m, "after")] for n in range(steps) for m in range(n % 5, steps, 5)]
    for number, kills in enumerate(moments):
        key = f"uploads/{number}.jpg"
        for at, when in kills:
            store = Trouble(local, lambda _, n, at=at, when=when: when if n == at else None)  # type: ignore[misc]
            try:
                work(store, key, clock)
            except Trouble.Killed:
                clock.sleep(LEASE)
        work(local, key, clock)
        job = jobs.find_or_create_for_upload(local, "bucket", key, "v1", ttl=TTL, clock=clock)
        assert job.state is State.SUCCEEDED, kills
        assert job.output is not None
        assert results(local, job.id) == [job.output.key], kills
        assert local.get(job.output.key)[0] == b"result"
        assert len(list(jobs.every(local))) == number + 2
    assert list((local.root / ".tmp").iterdir()) == []


# Working


def test_progress_is_written_every_two_seconds(local: LocalStorage, clock: Time) -> None:
    store = Trouble(local)
    job = claimed(local, queued(local, clock), clock)
    with jobs.keep_lease(store, job, LEASE, clock=clock) as held:
        for tile in range(100):  # ten a second
            held.progress(tile, 100)
            clock.sleep(0.1)
    assert store.calls.count("swap") == 4
    assert jobs.get(local, job.id).progress.done == 80

    job = claimed(local, queued(local, clock), clock)
    writes = 0
    for tile in range(100):
        new = jobs.progress(local, job, tile, 100, clock=clock)
        writes += new is not job
        job = new
        clock.sleep(0.1)
    assert writes == 5


def test_the_document_is_read_every_two_seconds(local: LocalStorage, clock: Time) -> None:
    store = Trouble(local)
    job = claimed(local, queued(local, clock), clock)
    with jobs.keep_lease(store, job, LEASE, clock=clock) as held:
        for _ in range(100):
            held.check()
            clock.sleep(0.1)
        assert store.calls == ["get"] * 4
        jobs.cancel(local, job.id, clock=clock)
        clock.sleep(2)
        for _ in range(3):
            with pytest.raises(jobs.Cancelled):
                held.check()
        with pytest.raises(jobs.Cancelled):
            held.progress(1, 2)


@pytest.mark.parametrize("how", ["check", "progress"])
def test_losing_the_job_while_working(local: LocalStorage, clock: Time, how: str) -> None:
    def tile(held: jobs.LeasedJob) -> None:
        held.check() if how == "check" else held.progress(1, 2)

    job = claimed(local, queued(local, clock), clock)
    with jobs.keep_lease(local, job, LEASE, clock=clock) as held:
        clock.sleep(LEASE)
        other = claimed(local, job.id, clock)
        with pytest.raises(jobs.Lost):
            tile(held)
    assert jobs.get(local, job.id) == other

    job = claimed(local, queued(local, clock), clock)
    with jobs.keep_lease(local, job, LEASE, clock=clock) as held:
        clock.sleep(5)
        local.delete(jobs.job_key(job.id))
        with pytest.raises(jobs.Lost):
            tile(held)


def test_a_store_that_fails_does_not_stop_the_work(local: LocalStorage, clock: Time) -> None:
    store = Trouble(local, lambda *_: "down")
    job = claimed(local, queued(local, clock), clock)
    with jobs.keep_lease(store, job, LEASE, clock=clock) as held:
        for _ in range(100):
            held.check()
            held.progress(1, 2)
            clock.sleep(0.1)
    assert len(store.calls) == 4, "and is not asked all the time"


def until(condition: Callable[[], bool]) -> None:
    for _ in range(1000):
        if condition():
            return
        time.sleep(0.02)
    pytest.fail("this does not happen")


def threads() -> Iterator[threading.Thread]:
    return (thread for thread in threading.enumerate() if thread.name.startswith("lease-"))


def test_the_lease_is_renewed_while_working(storage: Storage) -> None:
    job = jobs.claim(storage, queued(storage), "worker", 0.6)
    assert job is not None
    with jobs.keep_lease(storage, job, 0.6) as held:
        for _ in range(3):
            before = held.job
            until(lambda before=before: held.job is not before)  # type: ignore[misc]
        assert held.job.lease is not None
        assert job.lease is not None
        assert held.job.lease.until > job.lease.until
        assert jobs.get(storage, job.id).lost == 0
        jobs.succeed(storage, held.job, written(storage, held.job), model_used="m")
    until(lambda: not any(threads()))
    assert jobs.get(storage, job.id).state is State.SUCCEEDED


def test_the_thread_notices_too(local: LocalStorage) -> None:
    job = claimed(local, queued(local))
    with jobs.keep_lease(local, job, 0.3) as held:
        jobs.cancel(local, job.id)
        until(lambda: not any(threads()))
        with pytest.raises(jobs.Cancelled):
            held.check()


def test_the_lease_is_tried_again_after_trouble(local: LocalStorage) -> None:
    store = Trouble(local, lambda _, number: "down" if number < 3 else None)
    job = claimed(local, queued(local))
    with jobs.keep_lease(store, job, 0.3) as held:
        until(lambda: held.job is not job)
    assert len(store.calls) >= 4


def test_leaving_the_work_leaves_the_job(local: LocalStorage) -> None:
    job = claimed(local, queued(local))
    with pytest.raises(ZeroDivisionError), jobs.keep_lease(local, job, LEASE):
        raise ZeroDivisionError
    assert jobs.get(local, job.id).state is State.RUNNING
    until(lambda: not any(threads()))
