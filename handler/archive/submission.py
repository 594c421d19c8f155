"""All parts of an archive done: a job for each, so many at once, and those that failed tried again."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta

from handler import jobs
from handler.archive import document, part
from handler.archive.document import CONTENT_TYPE, Plan
from handler.jobs import Job, State, StoredFile
from handler.settings import Settings
from handler.storage import NotFound, Storage

#: Jobs of one part before its pictures are given up; each is a new one, of which Batch starts several containers.
TRIES = 3
DONE = document.done_key(".jsonl")


class Interrupted(Exception):
    """Asked to stop; the same call goes on later."""


@dataclass(frozen=True)
class Standing:
    """How far an archive is: parts closed, parts in all, jobs at work."""

    closed: int
    parts: int
    running: int


def submit_all(
    storage: Storage,
    settings: Settings,
    plan: Plan,
    start: Callable[[Job], object],
    *,
    at_once: int,
    poll_seconds: float,
    stop: Callable[[], bool] = lambda: False,
    report: Callable[[Standing], object] = lambda _: None,
) -> None:
    """Have every part of a plan done, and return when all are closed.

    It holds the names of `at_once` jobs, and no more of the archive. Killed and called again, it finds closed parts by
    one listing, and running jobs by their ids, which follow from the parts.

    Args:
        storage: where all of it is.
        settings: of the service.
        plan: what to do.
        start: has a queued job done: submits it, or does it before it returns.
        at_once: jobs in flight at most.
        poll_seconds: between two looks at them.
        stop: asked between two steps.
        report: called when something has changed.

    Raises:
        Interrupted: `stop` said so.
        storage.Unavailable: the store fails.
        botocore.exceptions.ClientError: Batch refuses.
    """
    total, closed = plan.parts, _closed(storage, plan)
    waiting = _others(plan, closed)
    done, flying = len(closed), set[str]()

    def advance(key: str) -> None:
        nonlocal done
        if stop():
            raise Interrupted
        if _advance(storage, settings, plan, key, start):
            flying.add(key)
        else:
            flying.discard(key)
            done += 1
            report(Standing(done, total, len(flying)))

    report(Standing(done, total, 0))
    while True:
        while len(flying) < at_once and (key := next(waiting, None)):
            advance(key)
        if not flying:
            return
        end = time.monotonic() + poll_seconds
        while (left := end - time.monotonic()) > 0:
            if stop():
                raise Interrupted
            time.sleep(min(0.2, left))
        for key in sorted(flying):
            advance(key)


def submit_some(
    storage: Storage,
    settings: Settings,
    plan: Plan,
    start: Callable[[Job], object],
    *,
    at_once: int,
    stop: Callable[[], bool] = lambda: False,
) -> Standing:
    """Have parts begun, in their order, until so many are at work, and return at once; arguments as of `submit_all`.

    Raises:
        storage.Unavailable, botocore.exceptions.ClientError: as `submit_all`.
    """
    closed = _closed(storage, plan)
    done, running = len(closed), 0
    for key in _others(plan, closed):
        if running >= at_once or stop():
            break
        if _advance(storage, settings, plan, key, start):
            running += 1
        else:
            done += 1
    return Standing(done, plan.parts, running)


def open_parts(storage: Storage, plan: Plan) -> Iterator[str]:
    """The parts that are not closed.

    Yields:
        The key of each, in their order.
    """
    yield from _others(plan, _closed(storage, plan))


def last_job(storage: Storage, key: str) -> Job | None:
    """The job that was started last for a part, None where none was."""
    found = None
    with suppress(NotFound):
        for tries in range(TRIES):
            found = jobs.get(storage, document.job_id(key, tries))
    return found


def _others(plan: Plan, closed: set[tuple[str, str]]) -> Iterator[str]:
    """The parts but for these."""
    return (key for round in plan.rounds for key in plan.part_keys(round) if _number(round.name, key) not in closed)


def _closed(storage: Storage, plan: Plan) -> set[tuple[str, str]]:
    """Which parts are closed, by listings: one request for about five hundred parts."""
    found = set()
    for round in plan.rounds:
        for info in storage.list(document.round_prefix(plan.id, round.name)):
            if info.key.endswith(DONE):
                found.add(_number(round.name, info.key.removesuffix(DONE) + ".jsonl"))
    return found


def _number(round: str, part: str) -> tuple[str, str]:
    return round, part.rpartition("/")[2]


def _advance(storage: Storage, settings: Settings, plan: Plan, key: str, start: Callable[[Job], object]) -> bool:
    """Bring a part one step further; whether it is still at work."""
    code, message = "part_failed", "its job failed"
    for tries in range(TRIES):
        job = _job(storage, settings, plan, key, document.job_id(key, tries))
        # Batch itself starts its containers again; who works here may have been killed under a lease that ran out.
        if jobs.claimable(job, jobs.utc_now()) and job.batch_job_id is None:
            start(job)
            job = jobs.get(storage, job.id)
        if job.state is State.SUCCEEDED:
            return False
        if job.state is State.CANCELLED:
            code, message = "cancelled", "its job was cancelled"
            break
        if job.error:
            code, message = job.error.code, job.error.message
        elif not jobs.expired(job, jobs.utc_now()):
            return True
    part.give_up(storage, key, code, message)
    return False


def _job(storage: Storage, settings: Settings, plan: Plan, key: str, id: str) -> Job:
    """The job of this id, made if it is not there."""
    try:
        return jobs.get(storage, id)
    except NotFound:
        data, etag = storage.get(key)
    list_of = StoredFile(key=key, name=key.rpartition("/")[2], content_type=CONTENT_TYPE, bytes=len(data), version=etag)
    return jobs.create_part(
        storage,
        id,
        list_of,
        pictures=data.count(b"\n"),
        options=plan.options,
        ttl=timedelta(days=settings.job_ttl_days),
    )
