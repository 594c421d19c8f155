"""The lease of a claimed job, renewed by a thread while the job is worked on."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

from handler.jobs import changes
from handler.jobs.document import SHARED, Cancelled, Clock, Job, Lease, Lost, Progress, State, shared, utc_now
from handler.storage import NotFound, Storage, StorageError

log = logging.getLogger(__name__)


def share(storage: Storage, id: str, done: int, total: int, seconds: float, *, clock: Clock = utc_now) -> Job:
    """Say for several workers that a job is worked on, each at a part, and how far all of them are together.

    None of them ends the job: whoever puts the parts together claims it.

    Args:
        storage: where the job is.
        id: of the job.
        done: tiles, of all workers.
        total: tiles in all.
        seconds: until the next of these calls is due at the latest.
        clock: gives the time.

    Returns:
        The job as it is now.

    Raises:
        Lost: it has ended, or somebody has claimed it.
        Cancelled.
        storage.NotFound: no such job.
    """

    def describe(now: Job) -> Job:
        if now.state is State.CANCELLED:
            raise Cancelled("the job was cancelled")
        if now.state is not State.QUEUED and not shared(now):
            raise Lost("the job has ended, or its parts are being put together")
        news = {
            "state": State.RUNNING,
            "started": now.started or clock(),
            "lease": Lease(owner=SHARED, until=clock() + timedelta(seconds=seconds)),
            "progress": Progress(done=max(done, now.progress.done), total=total, at=clock()),
        }
        return now.model_copy(update=news)

    return changes.change(storage, id, describe, clock=clock)


class LeasedJob:
    """A claimed job while it is worked on; given by `keep_lease`.

    Attributes:
        job: the document as this worker last saw it; pass it to `succeed`, `fail` or `release`.
    """

    def __init__(self, storage: Storage, job: Job, clock: Clock) -> None:
        self.job = job
        self._storage = storage
        self._clock = clock
        self._due = clock() + timedelta(seconds=changes.HEARTBEAT_SECONDS)
        self._end: Lost | Cancelled | None = None

    def check(self) -> None:
        """Call between tiles. Reads the document at most every `HEARTBEAT_SECONDS`; a failing store is passed over.

        Raises:
            Lost, Cancelled.
        """

        def look(job: Job) -> Job:
            try:
                now = changes.get(self._storage, job.id)
            except NotFound:
                raise Lost("the job is gone") from None
            changes.check_owner(now, job)
            return now

        self._ask(look)

    def progress(self, done: int, total: int) -> None:
        """Call between tiles, in place of `check`: also writes progress, at most every `HEARTBEAT_SECONDS`.

        Raises:
            Lost, Cancelled.
        """
        self._ask(lambda job: changes.progress(self._storage, job, done, total, clock=self._clock))

    def _ask(self, fn: Callable[[Job], Job]) -> None:
        if self._end is None and self._clock() >= self._due:
            try:
                self.job = fn(self.job)
            except (Lost, Cancelled) as end:
                self._end = end
            except StorageError:
                log.warning("job %s not read or written while working", self.job.id, exc_info=True)
            self._due = self._clock() + timedelta(seconds=changes.HEARTBEAT_SECONDS)
        if self._end is not None:
            raise type(self._end)(*self._end.args)


@contextmanager
def keep_lease(storage: Storage, job: Job, lease_seconds: float, *, clock: Clock = utc_now) -> Iterator[LeasedJob]:
    """Work on a claimed job: a thread renews the lease until the block is left, whatever happens in it.

    The block itself ends the job, with `succeed`, `fail` or `release`; a block left otherwise leaves a running job
    whose lease runs out. While the store fails the work goes on: if somebody takes the job over, `succeed` says so.

    Args:
        storage: where the job is.
        job: as claimed.
        lease_seconds: how long this worker may stay silent.
        clock: gives the time.

    Yields:
        The job, to be asked between tiles.
    """
    leased = LeasedJob(storage, job, clock)
    left = threading.Event()

    def keep() -> None:
        while not left.wait(lease_seconds / 3):
            try:
                leased.job = changes.renew(storage, leased.job, lease_seconds, clock=clock)
            except (Lost, Cancelled) as end:
                leased._end = end
                return
            except Exception:
                log.warning("lease of job %s not renewed", job.id, exc_info=True)

    thread = threading.Thread(target=keep, name=f"lease-{job.id}", daemon=True)
    thread.start()
    try:
        yield leased
    finally:
        left.set()
        thread.join(1)  # a store that hangs must not hold up the worker; a late renewal finds the job ended
