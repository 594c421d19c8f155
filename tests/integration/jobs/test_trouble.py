"""Answers of the store that are lost, and workers killed at any moment."""

from __future__ import annotations

import pytest

from handler import jobs
from handler.jobs import Job, State
from handler.storage import LocalStorage, Storage, Unavailable
from tests.integration.jobs.support import LEASE, REQUEST, TTL, Time, Trouble, claimed, queued, results, written


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


@pytest.mark.slow
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
