"""The lease and the progress of a job that is worked on."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest

from handler import jobs
from handler.jobs import State
from handler.storage import LocalStorage, Storage
from tests.integration.jobs.support import LEASE, Time, Trouble, claimed, queued, written
from tests.integration.work import wait_for


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
    wait_for(condition, "the lease")


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
