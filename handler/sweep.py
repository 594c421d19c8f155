"""Look for jobs that nobody works on any more, and for those that AWS Batch will never start.

A worker that dies in Lambda, an event that is lost, a quota of no machines: none of them reports itself. So every
quarter of an hour each job document that was last written since the sweep before (and not in the last minutes) is read
once. What has ended is forgotten then, unless its webhook waits for an answer; what has not is kept in mind until it
has, with the time of the next look at it. That costs a listing, and one read for each job.

`verdict` says what is to be done with one job, and touches nothing.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

from handler import batch, jobs, upload_queue, webhook
from handler.jobs import Backend, Clock, Job, State, utc_now
from handler.settings import Settings
from handler.storage import JSON, NotFound, Storage

log = logging.getLogger(__name__)

#: Where a sweep writes how far it came.
KEY = "sweep/last.json"
#: A document that was written more recently is left to the next sweep; also covers clocks that differ.
SETTLED = timedelta(minutes=5)
#: How long a lease may have run out before the job is started again: its message may bring it back sooner.
LEASE_OVER = timedelta(minutes=10)
#: How long a job may wait where nothing else waits: more than a message stays hidden.
QUEUED = timedelta(hours=2)
#: How long a file may take to arrive after its job was made: more than a link for it lives.
AWAITED = timedelta(hours=13)
#: How long a job may wait for a machine while no machine works for its queue at all.
NO_MACHINE = timedelta(hours=1)
#: How soon to look again at what waits its turn.
PATIENCE = timedelta(hours=1)
#: Documents that are read at the same time.
READERS = 16
_NO_MACHINE = (
    "no GPU machine could be had for an hour: the account's quota for them may be 0, or the region has none left; "
    "ask whoever runs the service, then try again"
)


@dataclass(frozen=True)
class Forget:
    """The job has ended."""


@dataclass(frozen=True)
class Wait:
    """Somebody is at it, or it waits its turn: look again then."""

    until: datetime


@dataclass(frozen=True)
class Start:
    """Nobody is at it: have it worked on."""

    why: str


@dataclass(frozen=True)
class Fail:
    """Nothing will come of it."""

    code: str
    message: str


Verdict = Forget | Wait | Start | Fail


@dataclass(frozen=True)
class Surroundings:
    """What a verdict needs besides the job.

    Attributes:
        now: the time.
        uploads_wait: whether the queue of uploads holds anything.
        batch_works: whether a machine works for the queue of Batch.
        containers: what Batch knows of its jobs, by their ids there.
        reason: code and message of a container that failed.
    """

    now: datetime
    uploads_wait: bool = False
    batch_works: bool = False
    containers: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    reason: Callable[[Mapping[str, Any]], tuple[str, str]] = lambda detail: ("batch_failed", str(detail))


def verdict(job: Job, around: Surroundings, *, arrived: bool = False) -> Verdict:
    """What is to be done with a job. A pure function.

    Args:
        job: as it is stored.
        around: what else there is to know.
        arrived: of a job that awaits its upload: whether the file is there.
    """
    now = around.now
    if job.state.final:
        return Forget()
    if jobs.expired(job, now):
        return Fail("expired", "the job was not done in the time that jobs are kept")
    if job.backend is Backend.BATCH and job.state is not State.AWAITING_UPLOAD:
        return _verdict_on_batch(job, around)
    if job.state is State.RUNNING:
        if job.lease and job.lease.until + LEASE_OVER > now:
            return Wait(job.lease.until + LEASE_OVER)
        return Start("its worker is gone")
    if around.uploads_wait:  # and it may be among them
        return Wait(now + PATIENCE)
    if job.state is State.QUEUED:
        return Start("nothing brings it back") if job.updated + QUEUED <= now else Wait(job.updated + QUEUED)
    if job.updated + QUEUED > now:
        return Wait(job.updated + QUEUED)
    if arrived:
        return Start("its upload was not reported")
    return Forget() if job.updated + AWAITED <= now else Wait(job.updated + AWAITED)


def _verdict_on_batch(job: Job, around: Surroundings) -> Verdict:
    now = around.now
    if job.state is State.RUNNING and job.lease and job.lease.until + LEASE_OVER > now:
        return Wait(job.lease.until + LEASE_OVER)
    if job.batch_job_id is None:
        settled = job.updated + SETTLED
        return Start("it was never submitted") if settled <= now else Wait(settled)
    array = around.containers.get(job.batch_array_id or "", {})
    if array.get("status") == "FAILED":
        return Fail(*around.reason(array))
    detail = around.containers.get(job.batch_job_id)
    if detail is None or detail["status"] == "SUCCEEDED":  # forgotten there, or ended without ending the job
        return Start("its container is gone")
    if detail["status"] == "FAILED":
        return Fail(*around.reason(detail))
    if "RUNNABLE" in (detail["status"], *_of_parts(array)) and not around.batch_works:
        since = datetime.fromtimestamp(detail["createdAt"] / 1000, UTC)
        return Fail("no_machine", _NO_MACHINE) if since + NO_MACHINE <= now else Wait(since + NO_MACHINE)
    return Wait(now)  # it waits its turn, starts, or works: the next sweep asks again


def _of_parts(array: Mapping[str, Any]) -> list[str]:
    """The states of an array's containers."""
    summary = (array.get("arrayProperties") or {}).get("statusSummary") or {}
    return [state for state, count in summary.items() if count]


def sweep(
    storage: Storage,
    settings: Settings,
    reason: Callable[[Mapping[str, Any]], tuple[str, str]],
    *,
    stop: Callable[[], bool] = lambda: False,
    clock: Clock = utc_now,
) -> Counter[str]:
    """Look at every job that may need it, and do what `verdict` says.

    Args:
        storage: where jobs are.
        settings: of the service.
        reason: code and message of a container that failed, from what Batch says of it.
        stop: asked between jobs; True leaves the rest to the next sweep.
        clock: gives the time.

    Returns:
        How many were `seen`, `started`, `failed` and `reported`, `errors` where that could not be done, and how many
        wait and run on Batch.

    Raises:
        storage.Unavailable, botocore.exceptions.ClientError: S3, SQS or Batch does not answer; the next sweep does it.
    """
    last, open_ = _read(storage)
    now = clock()
    counts: Counter[str] = Counter()
    around = _look_around(settings, now, reason, counts)
    written = sorted(
        (found.modified, _id(found.key)) for found in storage.list("jobs/") if last < found.modified <= now - SETTLED
    )
    due = {id: last for id, when in open_.items() if when <= now}
    # S3 knows seconds: what was written in the same one may not have been looked at yet.
    marks = due | {id: modified - timedelta(seconds=1) for modified, id in written if id}
    ids = list(marks)
    with ThreadPoolExecutor(READERS) as pool:
        for first in range(0, len(ids), 100):
            read = dict(
                zip(ids[first : first + 100], pool.map(partial(_get, storage), ids[first : first + 100]), strict=True)
            )
            around = _ask_batch(around, [job for job in read.values() if job])
            for id, job in read.items():
                if stop():
                    log.warning("%d jobs are left to the next sweep", len(ids) - counts["seen"])
                    return _write(storage, last, open_, counts)
                counts["seen"] += 1
                if job is None:  # gone meanwhile
                    open_.pop(id, None)
                else:
                    _treat_or_note(storage, settings, job, around, open_, counts)
                last = max(last, marks[id])
    return _write(storage, max(last, now - SETTLED), open_, counts)


def _treat_or_note(
    storage: Storage,
    settings: Settings,
    job: Job,
    around: Surroundings,
    open_: dict[str, datetime],
    counts: Counter[str],
) -> None:
    """`_treat`; where it fails the next sweep tries again, and the other jobs do not wait for that."""
    try:
        _treat(storage, settings, job, around, open_, counts)
    except Exception:
        log.exception("job %s could not be looked after", job.id)
        counts["errors"] += 1
        open_[job.id] = around.now


def _write(storage: Storage, last: datetime, open_: Mapping[str, datetime], counts: Counter[str]) -> Counter[str]:
    """Write how far a sweep came; gives what it did."""
    kept = {"last": last.isoformat(), "open": {id: when.isoformat() for id, when in open_.items()}}
    storage.put(KEY, json.dumps(kept).encode(), JSON)
    return counts


def _treat(
    storage: Storage,
    settings: Settings,
    job: Job,
    around: Surroundings,
    open_: dict[str, datetime],
    counts: Counter[str],
) -> None:
    """Do what the verdict on one job says, and keep in mind when to look again."""
    found = verdict(job, around, arrived=_arrived(storage, job))
    match found:
        case Forget():
            open_.pop(job.id, None)
            # Its receiver did not answer, or its sender died.
            if jobs.webhook_due(job, around.now) and webhook.under_way() < webhook.AT_ONCE:
                counts["reported"] += webhook.notify(storage, settings, job) is not None
            if job.webhook and job.webhook.state in (jobs.WebhookState.WAITING, jobs.WebhookState.SENDING):
                open_[job.id] = job.webhook.next or around.now
        case Wait(until):
            open_[job.id] = until
        case Start(why):
            log.warning("job %s: %s: started again", job.id, why)
            counts["started"] += 1
            _start(storage, settings, job)
            open_[job.id] = around.now + PATIENCE
        case Fail(code, message):
            log.warning("job %s: %s: %s", job.id, code, message)
            ended = jobs.fail_unclaimed(storage, job.id, code, message)
            counts["failed"] += ended.error is not None and ended.error.code == code
            if job.backend is Backend.BATCH and (code in ("no_machine", "expired") or job.batch_array_id):
                batch.terminate_batch(job, reason=code)
            webhook.notify(storage, settings, ended)
            open_.pop(job.id, None)


def _start(storage: Storage, settings: Settings, job: Job) -> None:
    """Bring a job to a worker, whatever was known of the one before."""

    def free(now: Job) -> Job:
        if now.batch_job_id == job.batch_job_id and (now.state is State.QUEUED or jobs.shared(now)):
            return now.model_copy(update={"batch_job_id": None, "batch_array_id": None})  # submitted anew, and recorded
        return now

    if job.state is State.AWAITING_UPLOAD:
        head = storage.head(job.input.key)
        job = jobs.uploaded(storage, job.id, size=head.size, version=head.etag.strip('"'))
    elif job.batch_job_id:
        job = jobs.change(storage, job.id, free)
    if job.backend is Backend.BATCH:
        batch.submit(storage, settings, job)
    else:
        upload_queue.send(settings, job.id)


def _arrived(storage: Storage, job: Job) -> bool:
    if job.state is not State.AWAITING_UPLOAD:
        return False
    try:
        storage.head(job.input.key)
    except NotFound:
        return False
    return True


def _look_around(
    settings: Settings, now: datetime, reason: Callable[[Mapping[str, Any]], tuple[str, str]], counts: Counter[str]
) -> Surroundings:
    """Ask SQS and Batch how they are."""
    works = False
    if settings.has_batch:
        counts["batch_waiting"] = batch.count_batch(settings, "RUNNABLE")
        counts["batch_running"] = batch.count_batch(settings, "RUNNING")
        works = bool(counts["batch_running"]) or batch.count_batch(settings, "STARTING") > 0
    return Surroundings(now, upload_queue.waiting(settings) > 0, works, {}, reason)


def _ask_batch(around: Surroundings, read: list[Job]) -> Surroundings:
    """With what Batch knows of the containers of these jobs."""
    open_ = [job for job in read if not job.state.final]
    ids = {id for job in open_ for id in (job.batch_job_id, job.batch_array_id) if id}
    return replace(around, containers=batch.describe_batch(sorted(ids)) if ids else {})


def _get(storage: Storage, id: str) -> Job | None:
    try:
        return jobs.get(storage, id)
    except NotFound:
        return None
    except ValueError:
        log.warning("not a job: %r", id)
        return None


def _id(key: str) -> str:
    """The id of a document's key; empty for what is no document of a job."""
    try:
        return jobs.check_id(key.removeprefix("jobs/").removesuffix(".json"))
    except jobs.InvalidId:
        return ""


def _read(storage: Storage) -> tuple[datetime, dict[str, datetime]]:
    """How far the last sweep came, and when to look again at which job."""
    try:
        kept = json.loads(storage.get(KEY)[0])
    except NotFound:
        return datetime.min.replace(tzinfo=UTC), {}
    return datetime.fromisoformat(kept["last"]), dict(_times(kept["open"]))


def _times(open_: Mapping[str, str]) -> Iterator[tuple[str, datetime]]:
    for id, when in open_.items():
        yield id, datetime.fromisoformat(when)
