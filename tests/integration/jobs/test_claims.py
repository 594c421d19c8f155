"""Claims: one winner, workers that go silent, and jobs that move on."""

from __future__ import annotations

import uuid
from concurrent.futures import ThreadPoolExecutor

import pytest

from handler import jobs
from handler.jobs import Backend, State, StoredFile
from handler.storage import LocalStorage, S3Storage, Storage
from tests.integration.jobs.support import LEASE, REQUEST, TTL, Time, claimed, queued, results, worker_calls, written
from tests.integration.together import Together


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
