"""The job document: its states, and every change to it by compare-and-swap.

    awaiting_upload -> queued -> running -> succeeded | failed | cancelled

A document is one JSON object in the store, `jobs/<id>.json`. A worker *claims* a queued job: the job is then running
and carries the worker's lease. The worker renews the lease; when it goes silent and the lease runs out, another worker
may claim the job. Each claim counts `attempt` up by one, so that (id, attempt) names one worker's try and no other.

Exactly once: a worker writes its result to `results/<id>/<attempt>/<name>`, which nobody else writes to, and then
swaps the document to succeeded with that key as its output. The swap is the moment at which the result exists for the
world; it is refused (`Lost`) for a worker whose lease was taken over, whose orphaned result is then deleted. A result
that is half-written, or written by a worker that came second, is never named by a document. What a killed worker left
is deleted by the one that ends the job.

The answer to a write can be lost although the write was done. So each write carries a fresh `revision`, by which its
writer recognises it.

JobError
├── InvalidId           not a UUID
├── Conflict            the same id was used for another request
├── IllegalTransition   the job's state does not allow this
├── Lost                another worker holds the job now
└── Cancelled           the job was cancelled while it was worked on

A job that does not exist is `storage.NotFound`; a store that fails is `storage.Unavailable`.
"""

from __future__ import annotations

import hashlib
import json
import logging
import random
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from enum import StrEnum

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from handler.storage import Changed, Exists, NotFound, Storage, StorageError, Unavailable, file_name

log = logging.getLogger(__name__)

#: Ids of jobs that nobody asked for by id follow from their upload within this name space.
UPLOAD_NAMESPACE = uuid.UUID("5f4b36a2-0c3e-4a53-9e0b-6d8f6a0c7a11")
#: How many leases of a job may run out before it is failed instead of tried again.
MAX_LOST = 3
#: Seconds between two writes of progress, and between two reads while working.
BEAT_SECONDS = 2.0

Clock = Callable[[], datetime]


class State(StrEnum):
    """Where a job stands."""

    AWAITING_UPLOAD = "awaiting_upload"
    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def final(self) -> bool:
        """Whether nothing follows."""
        return self in (State.SUCCEEDED, State.FAILED, State.CANCELLED)


#: The states that may follow a state, besides itself.
TRANSITIONS: Mapping[State, frozenset[State]] = {
    State.AWAITING_UPLOAD: frozenset({State.QUEUED, State.FAILED, State.CANCELLED}),
    State.QUEUED: frozenset({State.RUNNING, State.FAILED, State.CANCELLED}),
    State.RUNNING: frozenset({State.QUEUED, State.SUCCEEDED, State.FAILED, State.CANCELLED}),
    State.SUCCEEDED: frozenset(),
    State.FAILED: frozenset(),
    State.CANCELLED: frozenset(),
}


class Backend(StrEnum):
    """Where a job is worked on."""

    INLINE = "inline"
    LAMBDA = "lambda"
    BATCH = "batch"


class JobError(Exception):
    """Base of the tree."""


class InvalidId(JobError):
    """A job's id must be a UUID."""


class Conflict(JobError):
    """The id belongs to a job that was asked for with another request."""


class IllegalTransition(JobError):
    """The job's state does not allow this."""


class Lost(JobError):
    """The job is no longer this worker's: its lease ran out and was taken over, or the job is gone or handed back."""


class Cancelled(JobError):
    """The job was cancelled while this worker was at it."""


class _Document(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class Picture(_Document):
    """An input or an output: an object of the store. What is not known yet is null."""

    key: str = Field(description="Name of the object in the store.")
    name: str = Field(description="File name to show and to save under.")
    content_type: str = Field(description="Media type.", examples=["image/jpeg"])
    bytes: int | None = Field(default=None, ge=0, description="Size of the file.")
    width: int | None = Field(default=None, ge=1, description="Pixels, orientation applied.")
    height: int | None = Field(default=None, ge=1, description="Pixels, orientation applied.")
    version: str = Field(
        default="", description="The object's version or ETag when it was uploaded; empty where unknown."
    )


class Estimate(_Document):
    """What a job will take, before it runs."""

    route: Backend = Field(description="Where it will run.")
    seconds: float = Field(ge=0, description="Seconds of work, starting up not counted.")
    memory: int = Field(ge=0, description="Bytes of memory at the peak.")
    tiles: int = Field(ge=0, description="Pieces of work.")
    width: int = Field(ge=1, description="Pixels of the result.")
    height: int = Field(ge=1, description="Pixels of the result.")
    model: str = Field(description="The model that runs if nothing goes wrong.")
    cost: float | None = Field(
        default=None, ge=0, description="US dollars; null where it costs nothing extra or is unknown."
    )
    measured: bool = Field(default=False, description="Whether the rate was measured on this kind of machine.")


class Progress(_Document):
    """Tiles done, and tiles in all; total is 0 while it is unknown."""

    done: int = Field(default=0, ge=0, description="Tiles done.")
    total: int = Field(default=0, ge=0, description="Tiles in all; 0 while unknown.")
    at: datetime | None = Field(default=None, description="When this was written.")


class Failure(_Document):
    """Why a job failed."""

    code: str = Field(description="Stable name for programs.", examples=["too_large"])
    message: str = Field(description="One sentence for people.")


class Lease(_Document):
    """Who works on a job, and until when nobody else may."""

    owner: str = Field(description="Names one claim of one worker.")
    until: datetime = Field(description="When another worker may take over.")


class WebhookState(StrEnum):
    """How far the one delivery is."""

    WAITING = "waiting"
    SENDING = "sending"
    DELIVERED = "delivered"
    FAILED = "failed"


class Webhook(_Document):
    """Who is told of the final state, and whether that worked."""

    url: str = Field(description="Called once with POST on the final state.")
    state: WebhookState = Field(default=WebhookState.WAITING, description="waiting, sending, delivered or failed.")
    attempts: int = Field(default=0, ge=0, description="Requests made.")
    status: int | None = Field(default=None, description="HTTP status of the last answer.")
    error: str = Field(default="", description="Why the last request failed; empty otherwise.")
    at: datetime | None = Field(default=None, description="When the delivery ended.")


class Request(_Document):
    """What a client asks for; the same request again means the same job."""

    filename: str = Field(description="Name of the picture's file.", examples=["photo.jpg"])
    content_type: str = Field(description="Media type of the file.", examples=["image/jpeg"])
    bytes: int | None = Field(default=None, ge=1, description="Size of the file, the most that the upload link takes.")
    options: dict[str, JsonValue] = Field(default_factory=dict, description="By the names of the query options.")
    webhook: str | None = Field(default=None, description="URL called once on the final state.")


class Job(_Document):
    """One job, as it is stored."""

    id: str = Field(description="UUID.")
    state: State
    backend: Backend | None = Field(default=None, description="Where it is queued or runs; null until that is decided.")
    options: dict[str, JsonValue] = Field(default_factory=dict, description="As requested.")
    input: Picture
    output: Picture | None = Field(default=None, description="Set when succeeded.")
    model: str | None = Field(default=None, description="The model asked for; null: the default.")
    model_used: str | None = Field(default=None, description="The model that made the result.")
    degraded: bool = Field(default=False, description="Whether that is a fallback.")
    reason: str = Field(default="", description="Why it is a fallback; empty otherwise.")
    progress: Progress = Progress()
    estimate: Estimate | None = None
    error: Failure | None = Field(default=None, description="Set when failed.")
    timings: dict[str, float] = Field(default_factory=dict, description="Seconds by stage.")
    attempt: int = Field(default=0, ge=0, description="How often a worker has claimed the job.")
    lost: int = Field(default=0, ge=0, description="How many of these workers went silent.")
    lease: Lease | None = Field(default=None, description="Set while running.")
    batch_job_id: str | None = Field(default=None, description="Of AWS Batch.")
    webhook: Webhook | None = None
    created: datetime
    updated: datetime
    started: datetime | None = Field(default=None, description="First claim.")
    finished: datetime | None = Field(default=None, description="When the final state was reached.")
    expires: datetime = Field(description="When the job, its upload and its result may be gone.")
    request_hash: str = Field(default="", description="SHA-256 of the request, for idempotency.")
    revision: str = Field(default="", description="Names this write of the document.")

    def public(self) -> dict[str, JsonValue]:
        """What clients may see, ready for JSON: all but the lease, the hash and the revision."""
        return self.model_dump(mode="json", exclude={"lease", "request_hash", "revision"})


def utc_now() -> datetime:
    """The time, with its zone."""
    return datetime.now(UTC)


def new_id() -> str:
    """A fresh random id."""
    return str(uuid.uuid4())


def check_id(id: str) -> str:
    """The id, if it is a UUID in the usual spelling: lower case, with hyphens. Raises: InvalidId."""
    try:
        if str(uuid.UUID(id)) == id:
            return id
    except ValueError:
        pass
    raise InvalidId("a job's id is a UUID, such as 6f9619ff-8b86-4011-b42d-00c04fc964ff, in lower case")


def job_key(id: str) -> str:
    """`jobs/<id>.json`. Raises: InvalidId."""
    return f"jobs/{check_id(id)}.json"


def upload_key(id: str, name: str) -> str:
    """`uploads/<id>/<name>`, the name made safe by `storage.file_name`. Raises: InvalidId."""
    return f"uploads/{check_id(id)}/{file_name(name)}"


def result_key(job: Job, name: str) -> str:
    """`results/<id>/<attempt>/<name>`: where the worker that claimed this job writes its result."""
    return f"results/{job.id}/{job.attempt}/{file_name(name)}"


def dumps(job: Job) -> bytes:
    """The document as JSON."""
    return job.model_dump_json().encode()


def loads(data: bytes) -> Job:
    """The job of a document. Raises: ValueError."""
    return Job.model_validate_json(data)


def create(
    storage: Storage,
    request: Request,
    *,
    ttl: timedelta,
    backend: Backend | None = None,
    estimate: Estimate | None = None,
    clock: Clock = utc_now,
) -> Job:
    """A new job with a random id, awaiting its upload."""
    return put(storage, new_id(), request, ttl=ttl, backend=backend, estimate=estimate, clock=clock)[0]


def put(
    storage: Storage,
    id: str,
    request: Request,
    *,
    ttl: timedelta,
    backend: Backend | None = None,
    estimate: Estimate | None = None,
    clock: Clock = utc_now,
) -> tuple[Job, bool]:
    """The job of this id and request, awaiting its upload, and whether it is new.

    Raises:
        InvalidId: not a UUID.
        Conflict: the id was used for another request.
    """
    name = file_name(request.filename)
    model = request.options.get("model")
    now = clock()
    return _create(
        storage,
        Job(
            id=check_id(id),
            state=State.AWAITING_UPLOAD,
            backend=backend,
            options=request.options,
            model=model if isinstance(model, str) else None,
            input=Picture(key=upload_key(id, name), name=name, content_type=request.content_type, bytes=request.bytes),
            estimate=estimate,
            webhook=Webhook(url=request.webhook) if request.webhook else None,
            created=now,
            updated=now,
            expires=now + ttl,
            request_hash=_hash(request.model_dump(mode="json")),
            revision=uuid.uuid4().hex,
        ),
    )


def get(storage: Storage, id: str) -> Job:
    """The job as it is now. Raises: InvalidId, storage.NotFound."""
    return loads(storage.get(job_key(id))[0])


def every(storage: Storage) -> Iterator[Job]:
    """All jobs, in no order that means anything; for a local worker that looks for work."""
    for found in storage.list("jobs/"):
        try:
            yield get(storage, found.key.removeprefix("jobs/").removesuffix(".json"))
        except NotFound:  # expired while we look
            continue
        except (InvalidId, ValueError):
            log.warning("not a job: %r", found.key)


def change(storage: Storage, id: str, fn: Callable[[Job], Job], *, clock: Clock = utc_now) -> Job:
    """Apply a function to the job, again and again until nobody came between. Gives the job as written.

    `fn` may be called several times, each time with a newer job, and may raise to leave the job alone; what it returns
    unchanged is not written.

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
        _check_transition(job, new)
        mine = uuid.uuid4().hex
        new = new.model_copy(update={"revision": mine, "updated": clock()})
        try:
            storage.swap(key, dumps(new), etag)
        except Changed:
            time.sleep(random.random() * min(0.5, 0.01 * 2**tries))  # noqa: S311 - so that rivals spread out
        else:
            return new
    raise Unavailable("the job is being changed by others all the time")


def uploaded(
    storage: Storage,
    id: str,
    *,
    size: int | None = None,
    width: int | None = None,
    height: int | None = None,
    version: str = "",
    clock: Clock = utc_now,
) -> Job:
    """The upload is there: awaiting_upload becomes queued. A job that is further already stays as it is.

    Args:
        storage: where the job is.
        id: of the job.
        size: bytes of the upload.
        width: pixels, if known by now.
        height: pixels, if known by now.
        version: of the uploaded object.
        clock: gives the time.

    Raises:
        storage.NotFound: no such job.
    """
    known = {"bytes": size, "width": width, "height": height, "version": version or None}
    known = {name: value for name, value in known.items() if value is not None}

    def queue(job: Job) -> Job:
        if job.state is not State.AWAITING_UPLOAD:
            return job
        return job.model_copy(update={"state": State.QUEUED, "input": job.input.model_copy(update=known)})

    return change(storage, id, queue, clock=clock)


def find_or_create_for_upload(
    storage: Storage,
    bucket: str,
    key: str,
    version: str,
    *,
    ttl: timedelta,
    content_type: str = "application/octet-stream",
    size: int | None = None,
    options: Mapping[str, JsonValue] | None = None,
    clock: Clock = utc_now,
) -> Job:
    """The job that an uploaded object belongs to, queued if it was waiting for it.

    That is the job named by `uploads/<id>/…` if it declared this key, else one whose id follows from bucket, key and
    version (UUID 5), so that a repeated event finds the same job.

    Args:
        storage: where jobs are.
        bucket: that the object is in.
        key: of the object, decoded.
        version: the object's version id, or its ETag where the bucket has no versions.
        ttl: how long a new job lives.
        content_type: of the object, for a new job.
        size: of the object in bytes.
        options: for a new job.
        clock: gives the time.
    """
    folders = key.split("/")
    if folders[0] == "uploads" and len(folders) == 3:
        with suppress(InvalidId, NotFound):
            if get(storage, folders[1]).input.key == key:
                return uploaded(storage, folders[1], size=size, version=version, clock=clock)
    now = clock()
    job = Job(
        id=str(uuid.uuid5(UPLOAD_NAMESPACE, "\0".join((bucket, key, version)))),
        state=State.QUEUED,
        options=dict(options or {}),
        input=Picture(key=key, name=file_name(key), content_type=content_type, bytes=size, version=version),
        created=now,
        updated=now,
        expires=now + ttl,
        # The id says it all: two events for one upload may differ in the rest without being a conflict.
        request_hash=_hash([bucket, key, version]),
        revision=uuid.uuid4().hex,
    )
    return _create(storage, job)[0]


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
    job is final and has a webhook: `webhook.once` does.

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
        lost = job.lost + (job.state is State.RUNNING)
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
                "progress": Progress(),
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
        _tidy(storage, job)
    return None


def renew(storage: Storage, job: Job, lease_seconds: float, *, clock: Clock = utc_now) -> Job:
    """Prolong the lease of a claimed job. Raises: Lost, Cancelled."""

    def prolong(now: Job) -> Job:
        lease = Lease(owner=_owner(job), until=clock() + timedelta(seconds=lease_seconds))
        return now.model_copy(update={"lease": lease})

    return _change_as_owner(storage, job, prolong, clock)


def progress(storage: Storage, job: Job, done: int, total: int, *, clock: Clock = utc_now) -> Job:
    """Write how far a claimed job is, unless that was done in the last `BEAT_SECONDS`: then give the job unchanged.

    Pass the job that the last call gave.

    Raises: Lost, Cancelled.
    """
    now = clock()
    if job.progress.at and now - job.progress.at < timedelta(seconds=BEAT_SECONDS):
        return job
    new = Progress(done=done, total=total, at=now)
    return _change_as_owner(storage, job, lambda now: now.model_copy(update={"progress": new}), clock)


def succeed(
    storage: Storage,
    job: Job,
    output: Picture,
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
    _tidy(storage, ended)
    return ended


def fail(storage: Storage, job: Job, code: str, message: str, *, clock: Clock = utc_now) -> Job:
    """End a claimed job with a reason; again by the same claim, it gives the same job. Raises: Lost, Cancelled."""
    error = Failure(code=code, message=message)

    def done(now: Job) -> bool:
        return now.error == error and now.attempt == job.attempt

    ended = _change_as_owner(storage, job, lambda now: _ended(now, State.FAILED, clock(), error), clock, done)
    _tidy(storage, ended)
    return ended


def fail_unclaimed(
    storage: Storage, id: str, code: str, message: str, *, batch_job_id: str | None = None, clock: Clock = utc_now
) -> Job:
    """End a job from outside (its Batch job died, its upload never came), whoever holds it; final jobs stay as is.

    With `batch_job_id`, only while the job is still that Batch job's.

    Raises: InvalidId, storage.NotFound.
    """

    def end(job: Job) -> Job:
        if job.state.final or (batch_job_id is not None and job.batch_job_id != batch_job_id):
            return job
        return _ended(job, State.FAILED, clock(), Failure(code=code, message=message))

    job = change(storage, id, end, clock=clock)
    if job.state.final:
        _tidy(storage, job)
    return job


def release(storage: Storage, job: Job, *, backend: Backend | None = None, clock: Clock = utc_now) -> Job:
    """Hand a claimed job back as queued, for another backend if one is given. Not counted as a loss.

    Raises: Lost, Cancelled.
    """

    def hand_back(now: Job) -> Job:
        update: dict[str, object] = {"state": State.QUEUED, "lease": None, "progress": Progress()}
        if backend and backend is not now.backend:
            update |= {"backend": backend, "batch_job_id": None}
        return now.model_copy(update=update)

    return _change_as_owner(storage, job, hand_back, clock)


def cancel(storage: Storage, id: str, *, clock: Clock = utc_now) -> Job:
    """Cancel a job that is not final; its worker notices between two tiles. Again on a cancelled job: no change.

    Raises:
        IllegalTransition: it has succeeded or failed.
        InvalidId, storage.NotFound.
    """

    def end(job: Job) -> Job:
        return job if job.state is State.CANCELLED else _ended(job, State.CANCELLED, clock())

    job = change(storage, id, end, clock=clock)
    _tidy(storage, job)
    return job


def expired(job: Job, now: datetime) -> bool:
    """Whether the job's time is over: it is to be treated as gone."""
    return now >= job.expires


def claimable(job: Job, now: datetime) -> bool:
    """Whether there is something to do: the job is queued, or running under a lease that ran out."""
    if expired(job, now):
        return False
    return job.state is State.QUEUED or (job.state is State.RUNNING and (job.lease is None or job.lease.until <= now))


class Held:
    """A claimed job while it is worked on; given by `lease`.

    Attributes:
        job: the document as this worker last saw it; pass it to `succeed`, `fail` or `release`.
    """

    def __init__(self, storage: Storage, job: Job, clock: Clock) -> None:
        self.job = job
        self._storage = storage
        self._clock = clock
        self._due = clock() + timedelta(seconds=BEAT_SECONDS)
        self._end: Lost | Cancelled | None = None

    def check(self) -> None:
        """Call between tiles. Reads the document at most every `BEAT_SECONDS`; a failing store is passed over.

        Raises: Lost, Cancelled.
        """

        def look(job: Job) -> Job:
            try:
                now = get(self._storage, job.id)
            except NotFound:
                raise Lost("the job is gone") from None
            _check_owner(now, job)
            return now

        self._ask(look)

    def progress(self, done: int, total: int) -> None:
        """Call between tiles, in place of `check`: also writes progress, at most every `BEAT_SECONDS`.

        Raises: Lost, Cancelled.
        """
        self._ask(lambda job: progress(self._storage, job, done, total, clock=self._clock))

    def _ask(self, fn: Callable[[Job], Job]) -> None:
        if self._end is None and self._clock() >= self._due:
            try:
                self.job = fn(self.job)
            except (Lost, Cancelled) as end:
                self._end = end
            except StorageError:
                log.warning("job %s not read or written while working", self.job.id, exc_info=True)
            self._due = self._clock() + timedelta(seconds=BEAT_SECONDS)
        if self._end is not None:
            raise type(self._end)(*self._end.args)


@contextmanager
def lease(storage: Storage, job: Job, lease_seconds: float, *, clock: Clock = utc_now) -> Iterator[Held]:
    """Work on a claimed job: a thread renews the lease until the block is left, whatever happens in it.

    The block itself ends the job, with `succeed`, `fail` or `release`; a block left otherwise leaves a running job
    whose lease runs out. While the store fails the work goes on: if somebody takes the job over, `succeed` says so.
    """
    held = Held(storage, job, clock)
    left = threading.Event()

    def keep() -> None:
        while not left.wait(lease_seconds / 3):
            try:
                held.job = renew(storage, held.job, lease_seconds, clock=clock)
            except (Lost, Cancelled) as end:
                held._end = end
                return
            except Exception:
                log.warning("lease of job %s not renewed", job.id, exc_info=True)

    thread = threading.Thread(target=keep, name=f"lease-{job.id}", daemon=True)
    thread.start()
    try:
        yield held
    finally:
        left.set()
        thread.join(1)  # a store that hangs must not hold up the worker; a late renewal finds the job ended


class _NothingToDo(Exception):
    """Ends a change that would change nothing."""

    def __init__(self, job: Job) -> None:
        self.job = job


def _hash(value: JsonValue | list[str]) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _create(storage: Storage, job: Job) -> tuple[Job, bool]:
    """Store a new job, or give the one that is there, and whether it is new. Raises: Conflict."""
    try:
        storage.create(job_key(job.id), dumps(job))
    except Exists:
        found = get(storage, job.id)
        if found.request_hash != job.request_hash:
            raise Conflict("this id belongs to a job that was asked for with another request") from None
        return found, found.revision == job.revision
    return job, True


def _check_transition(old: Job, new: Job) -> None:
    if new.state is not old.state and new.state not in TRANSITIONS[old.state]:
        raise IllegalTransition(f"a job that is {old.state} cannot become {new.state}")
    if old.state.final and new.model_copy(update={"webhook": old.webhook}) != old:
        raise IllegalTransition(f"a job that is {old.state} does not change any more")


def _owner(job: Job) -> str:
    if job.lease is None:
        raise ValueError("this job was not claimed")
    return job.lease.owner


def _check_owner(now: Job, claimed: Job) -> None:
    """Raises: Lost, Cancelled."""
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
        _check_owner(now, claimed)
        return fn(now)

    try:
        return change(storage, claimed.id, checked, clock=clock)
    except NotFound:
        raise Lost("the job is gone") from None


def _ended(job: Job, state: State, now: datetime, error: Failure | None = None) -> Job:
    return job.model_copy(update={"state": state, "lease": None, "finished": now, "error": error})


def _tidy(storage: Storage, job: Job) -> None:
    """Delete what tries that came to nothing have left; the bucket's lifecycle does it otherwise."""
    keep = job.output.key if job.output else None
    with suppress(StorageError):
        for found in storage.list(f"results/{job.id}/"):
            if found.key != keep:
                storage.delete(found.key)
