"""Every change to a job after its beginning, by compare-and-swap."""

from __future__ import annotations

import logging
import random
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from datetime import datetime, timedelta

from handler.jobs.document import (
    Backend,
    Cancelled,
    Clock,
    Failure,
    InvalidId,
    Job,
    Lease,
    Lost,
    Progress,
    State,
    StoredFile,
    check_transition,
    claimable,
    dumps,
    job_key,
    loads,
    result_key,
    retry_id,
    shared,
    utc_now,
    work_prefix,
)
from handler.storage import Changed, NotFound, Storage, StorageError, Unavailable

log = logging.getLogger(__name__)

#: How many leases of a job may run out before it is failed instead of tried again.
MAX_LOST = 3
#: How often a job may be claimed before a dead server counts as a loss, too.
MAX_RESTARTS = 20
#: Seconds between two writes of progress, and between two reads while working.
HEARTBEAT_SECONDS = 2.0


def get(storage: Storage, id: str) -> Job:
    """The job as it is now.

    Raises:
        InvalidId, storage.NotFound.
    """
    return loads(storage.get(job_key(id))[0])


def every(storage: Storage) -> Iterator[Job]:
    """All jobs; for a local worker that looks for work.

    Yields:
        Each job, in no order that means anything.
    """
    for found in storage.list("jobs/"):
        try:
            yield get(storage, found.key.removeprefix("jobs/").removesuffix(".json"))
        except NotFound:  # expired while we look
            continue
        except (InvalidId, ValueError):
            log.warning("not a job: %r", found.key)


def change(storage: Storage, id: str, fn: Callable[[Job], Job], *, clock: Clock = utc_now) -> Job:
    """Apply a function to the job, again and again until nobody came between.

    `fn` may be called several times, each time with a newer job, and may raise to leave the job alone; what it returns
    unchanged is not written.

    Returns:
        The job as written.

    Raises:
        storage.NotFound: no such job.
        IllegalTransition: `TRANSITIONS` does not allow it, or a final job is changed in more than its webhook.
    """
    key = job_key(id)
    mine = ""
    for tries in range(100):
        data, etag = storage.get(key)
        job = loads(data)
        if job.revision == mine:  # our last write was done, only the answer said otherwise
            return job
        new = fn(job)
        if new == job:
            return job
        check_transition(job, new)
        mine = uuid.uuid4().hex
        new = new.model_copy(update={"revision": mine, "updated": clock()})
        try:
            storage.swap(key, dumps(new), etag)
        except Changed:
            time.sleep(random.random() * min(0.5, 0.01 * 2**tries))  # noqa: S311 - so that rivals spread out
        else:
            return new
    raise Unavailable("the job is being changed by others all the time")


def claim(
    storage: Storage,
    id: str,
    worker: str,
    lease_seconds: float,
    *,
    backend: Backend | None = None,
    clock: Clock = utc_now,
) -> Job | None:
    """Take the job for one worker: it is running then, and the job returned is the proof for `renew` … `fail`.

    None if there is nothing to do: it is final, expired, awaits its upload, another worker's lease is alive, or it is
    meant for another backend than the one given. The job of a lease that ran out is taken over; when that happened
    `MAX_LOST` times the job is failed instead (code `worker_lost`) and None is given. So after None, look whether the
    job is final and has a webhook: `webhook.deliver_once` does.

    Args:
        storage: where the job is.
        id: of the job.
        worker: a name for logs, such as host and process id; each claim adds something unique.
        lease_seconds: how long the worker may stay silent.
        backend: claim only a job for this backend, or for none in particular.
        clock: gives the time.

    Raises:
        InvalidId, storage.NotFound.
    """
    owner = f"{worker}#{uuid.uuid4().hex}"

    def take(job: Job) -> Job:
        now = clock()
        if job.lease and job.lease.owner == owner:
            return job
        if not claimable(job, now) or (backend and job.backend not in (None, backend)):
            raise _NothingToDo(job)
        lost = job.lost + (job.state is State.RUNNING and not shared(job))
        if lost >= MAX_LOST:
            message = f"the worker was lost {lost} times, probably out of memory: try a smaller picture or scale"
            return _ended(
                job.model_copy(update={"lost": lost}), State.FAILED, now, Failure(code="worker_lost", message=message)
            )
        return job.model_copy(
            update={
                "state": State.RUNNING,
                "backend": backend or job.backend,
                "attempt": job.attempt + 1,
                "lost": lost,
                "lease": Lease(owner=owner, until=now + timedelta(seconds=lease_seconds)),
                "progress": job.progress if shared(job) else Progress(),
                "started": job.started or now,
            }
        )

    try:
        job = change(storage, id, take, clock=clock)
    except _NothingToDo as nothing:
        job = nothing.job
    if job.lease and job.lease.owner == owner:
        return job
    if job.state.final and job.attempt > 1:  # whoever ended it may have been killed before it could tidy up
        tidy(storage, job)
    return None


def renew(storage: Storage, job: Job, lease_seconds: float, *, clock: Clock = utc_now) -> Job:
    """Prolong the lease of a claimed job.

    Raises:
        Lost, Cancelled.
    """

    def prolong(now: Job) -> Job:
        lease = Lease(owner=_owner(job), until=clock() + timedelta(seconds=lease_seconds))
        return now.model_copy(update={"lease": lease})

    return _change_as_owner(storage, job, prolong, clock)


def progress(storage: Storage, job: Job, done: int, total: int, *, clock: Clock = utc_now) -> Job:
    """Write how far a claimed job is; the job unchanged where that was done in the last `HEARTBEAT_SECONDS`.

    Pass the job that the last call gave.

    Raises:
        Lost, Cancelled.
    """
    now = clock()
    if job.progress.at and now - job.progress.at < timedelta(seconds=HEARTBEAT_SECONDS):
        return job
    new = Progress(done=done, total=total, at=now)
    return _change_as_owner(storage, job, lambda now: now.model_copy(update={"progress": new}), clock)


def succeed(
    storage: Storage,
    job: Job,
    output: StoredFile,
    *,
    model_used: str,
    degraded: bool = False,
    reason: str = "",
    timings: Mapping[str, float] | None = None,
    clock: Clock = utc_now,
) -> Job:
    """End a claimed job with its result; what other tries left is deleted.

    Called again by the same claim, it gives the same job. On Lost and Cancelled the result is deleted.

    Args:
        storage: where the job is.
        job: as claimed.
        output: the result, stored under `result_key(job, …)` before this call.
        model_used: the model that made it.
        degraded: whether that is a fallback.
        reason: why.
        timings: seconds by stage.
        clock: gives the time.

    Raises:
        Lost, Cancelled.
        ValueError: the output's key is not this claim's.
    """
    if not output.key.startswith(result_key(job, "x").removesuffix("x")):
        raise ValueError(f"a result of this claim lies under {result_key(job, '…')!r}, not {output.key!r}")
    news = {
        "output": output,
        "model_used": model_used,
        "degraded": degraded,
        "reason": reason,
        "timings": {**job.timings, **(timings or {})},
    }

    def end(now: Job) -> Job:
        tiles = max(now.progress.total, now.progress.done)
        news["progress"] = Progress(done=tiles, total=tiles, at=clock())
        return _ended(now.model_copy(update=news), State.SUCCEEDED, clock())

    def done(now: Job) -> bool:
        return now.output is not None and now.output.key == output.key

    try:
        ended = _change_as_owner(storage, job, end, clock, done)
    except (Lost, Cancelled):
        with suppress(StorageError):
            storage.delete(output.key)
        raise
    tidy(storage, ended)
    return ended


def fail(storage: Storage, job: Job, code: str, message: str, *, clock: Clock = utc_now) -> Job:
    """End a claimed job with a reason; again by the same claim, it gives the same job.

    Raises:
        Lost, Cancelled.
    """
    error = Failure(code=code, message=message)

    def done(now: Job) -> bool:
        return now.error == error and now.attempt == job.attempt

    ended = _change_as_owner(storage, job, lambda now: _ended(now, State.FAILED, clock(), error), clock, done)
    tidy(storage, ended)
    return ended


def fail_unclaimed(
    storage: Storage, id: str, code: str, message: str, *, batch_job_id: str | None = None, clock: Clock = utc_now
) -> Job:
    """End a job from outside (its Batch job died, its upload never came), whoever holds it; final jobs stay as is.

    With `batch_job_id`, only while the job is still that Batch job's.

    Raises:
        InvalidId, storage.NotFound.
    """

    def end(job: Job) -> Job:
        if job.state.final or (batch_job_id is not None and job.batch_job_id != batch_job_id):
            return job
        return _ended(job, State.FAILED, clock(), Failure(code=code, message=message))

    job = change(storage, id, end, clock=clock)
    if job.state.final:
        tidy(storage, job)
    return job


def release(storage: Storage, job: Job, *, backend: Backend | None = None, clock: Clock = utc_now) -> Job:
    """Hand a claimed job back as queued, for another backend if one is given. Not counted as a loss.

    Raises:
        Lost, Cancelled.
    """

    def hand_back(now: Job) -> Job:
        update: dict[str, object] = {"state": State.QUEUED, "lease": None, "progress": Progress()}
        if backend and backend is not now.backend:
            update |= {"backend": backend, "batch_job_id": None}
        return now.model_copy(update=update)

    return _change_as_owner(storage, job, hand_back, clock)


def take_back(storage: Storage, job: Job, *, clock: Clock = utc_now) -> Job:
    """Queue a running job whose worker's process is known to be dead or dying; for whoever knows that.

    That is not counted as a loss: a server that is restarted is not a job that kills its worker. A job that has been
    claimed `MAX_RESTARTS` times is left to its lease all the same, for it may be why the server dies.

    Args:
        storage: where the job is.
        job: as seen with the lease of that worker.
        clock: gives the time.

    Returns:
        The job as it is now; unchanged where it is no longer that worker's.
    """

    def queue(now: Job) -> Job:
        if now.state is not State.RUNNING or now.lease != job.lease or now.attempt >= MAX_RESTARTS:
            return now
        return now.model_copy(update={"state": State.QUEUED, "lease": None, "progress": Progress()})

    return change(storage, job.id, queue, clock=clock)


def cancel(storage: Storage, id: str, *, clock: Clock = utc_now) -> Job:
    """Cancel a job that is not final; its worker notices between two tiles. Again on a cancelled job: no change.

    Raises:
        IllegalTransition: it has succeeded or failed.
        InvalidId, storage.NotFound.
    """

    def end(job: Job) -> Job:
        return job if job.state is State.CANCELLED else _ended(job, State.CANCELLED, clock())

    job = change(storage, id, end, clock=clock)
    tidy(storage, job)
    return job


def _needs_upload(storage: Storage, id: str, key: str) -> bool:
    """Whether there is a job of this id that is made, or could be made again, from this upload."""
    try:
        return get(storage, id).input.key == key
    except (NotFound, InvalidId):
        return False


def delete(storage: Storage, job: Job) -> None:
    """Remove a final job with its upload and its results; the document first, so that nothing names what is gone.

    Raises:
        storage.Unavailable.
    """
    storage.delete(job_key(job.id))
    if not any(_needs_upload(storage, id, job.input.key) for id in (job.input.key.split("/")[1], retry_id(job.id))):
        storage.delete(job.input.key)
    for found in list(storage.list(f"results/{job.id}/")):
        storage.delete(found.key)


class _NothingToDo(Exception):
    """Ends a change that would change nothing."""

    def __init__(self, job: Job) -> None:
        self.job = job


def _owner(job: Job) -> str:
    if job.lease is None:
        raise ValueError("this job was not claimed")
    return job.lease.owner


def check_owner(now: Job, claimed: Job) -> None:
    """Whether a job is still held by the claim that gave `claimed`.

    Raises:
        Lost, Cancelled: it is not.
    """
    if now.state is State.CANCELLED:
        raise Cancelled("the job was cancelled")
    if now.state is not State.RUNNING or now.lease is None or now.lease.owner != _owner(claimed):
        raise Lost("another worker holds the job now, or it has ended")


def _change_as_owner(
    storage: Storage,
    claimed: Job,
    fn: Callable[[Job], Job],
    clock: Clock,
    done: Callable[[Job], bool] = lambda _: False,
) -> Job:
    """Change a job only while this claim holds it; where `done` says that the change was made already, leave it."""

    def checked(now: Job) -> Job:
        if done(now):
            return now
        check_owner(now, claimed)
        return fn(now)

    try:
        return change(storage, claimed.id, checked, clock=clock)
    except NotFound:
        raise Lost("the job is gone") from None


def _ended(job: Job, state: State, now: datetime, error: Failure | None = None) -> Job:
    return job.model_copy(update={"state": state, "lease": None, "finished": now, "error": error})


def tidy(storage: Storage, job: Job) -> None:
    """Delete what tries that came to nothing have left; the bucket's lifecycle does it otherwise."""
    keep = job.output.key if job.output else None
    with suppress(StorageError):
        for found in storage.list(f"results/{job.id}/"):
            if found.key != keep:
                storage.delete(found.key)
        _delete_bands(storage, job)


def _delete_bands(storage: Storage, job: Job) -> None:
    for found in storage.list(work_prefix(job.id)):
        storage.delete(found.key)
