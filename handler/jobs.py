"""The job document: its states, and every change to it by compare-and-swap.

    awaiting_upload -> queued -> running -> succeeded | failed | cancelled

A document is one JSON object in the store, `jobs/<id>.json`. A worker *claims* a queued job: the job is then running
and carries the worker's lease. The worker renews the lease; when it goes silent and the lease runs out, another worker
may claim the job. Each claim counts `attempt` up by one, so that (id, attempt) names one worker's try and no other.

Exactly once: a worker writes its result to `results/<id>/<attempt>/<name>`, which nobody else writes to, and then
swaps the document to succeeded with that key as its output. The swap is the moment at which the result exists for the
world; it is refused (`Lost`) for a worker whose lease was taken over, whose orphaned result is then deleted. A result
that is half-written, or written by a worker that came second, is never named by a document.

JobError
├── InvalidId           not a UUID
├── Conflict            the same id was used for another request
├── IllegalTransition   the job's state does not allow this
├── Lost                another worker holds the job now
└── Cancelled           the job was cancelled while it was worked on

A job that does not exist is `storage.NotFound`; a store that fails is `storage.Unavailable`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from handler.storage import Storage

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
    raise NotImplementedError


def check_id(id: str) -> str:
    """The id in its usual spelling (lower case, hyphens). Raises: InvalidId."""
    raise NotImplementedError


def job_key(id: str) -> str:
    """`jobs/<id>.json`. Raises: InvalidId."""
    raise NotImplementedError


def upload_key(id: str, name: str) -> str:
    """`uploads/<id>/<name>`, the name made safe by `storage.file_name`."""
    raise NotImplementedError


def result_key(job: Job, name: str) -> str:
    """`results/<id>/<attempt>/<name>`: where the worker that claimed this job writes its result."""
    raise NotImplementedError


def dumps(job: Job) -> bytes:
    """The document as JSON."""
    raise NotImplementedError


def loads(data: bytes) -> Job:
    """The job of a document. Raises: ValueError."""
    raise NotImplementedError


def create(storage: Storage, request: Request, **known: Any) -> Job:
    """A new job with a random id; `known` as for `put`."""
    raise NotImplementedError


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
    raise NotImplementedError


def get(storage: Storage, id: str) -> Job:
    """The job as it is now. Raises: InvalidId, storage.NotFound."""
    raise NotImplementedError


def every(storage: Storage) -> Iterator[Job]:
    """All jobs, in no order that means anything; for a local worker that looks for work."""
    raise NotImplementedError


def change(storage: Storage, id: str, fn: Callable[[Job], Job], *, clock: Clock = utc_now) -> Job:
    """Apply a pure function to the job, again and again until nobody came between. Gives the job as written.

    `fn` may be called several times, each time with a newer job, and may raise to leave the job alone; what it returns
    unchanged is not written.

    Raises:
        storage.NotFound: no such job.
        IllegalTransition: `TRANSITIONS` does not allow it, or a final job is changed in more than its webhook.
    """
    raise NotImplementedError


def uploaded(storage: Storage, id: str, *, size: int | None = None, version: str = "", clock: Clock = utc_now) -> Job:
    """The upload is there: awaiting_upload becomes queued. A job that is further already stays as it is."""
    raise NotImplementedError


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
    """
    raise NotImplementedError


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

    None if there is nothing to do: it is final, awaits its upload, another worker's lease is alive, or it is queued for
    another backend than the one given. The job of a lease that ran out is taken over; when that happened `MAX_LOST`
    times the job is failed instead (code `worker_lost`), and None is given: look whether it is final and has a webhook.
    """
    raise NotImplementedError


def renew(storage: Storage, job: Job, lease_seconds: float, *, clock: Clock = utc_now) -> Job:
    """Prolong the lease of a claimed job. Raises: Lost, Cancelled."""
    raise NotImplementedError


def progress(storage: Storage, job: Job, done: int, total: int, *, clock: Clock = utc_now) -> Job:
    """Write how far a claimed job is, unless that was done in the last `BEAT_SECONDS`. Raises: Lost, Cancelled."""
    raise NotImplementedError


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
    """End a claimed job with its result, which lies under `result_key(job, …)`; other tries' results are deleted.

    Called twice by the same claim, the second call gives the same job. On Lost and Cancelled this claim's result is
    deleted.

    Raises: Lost, Cancelled.
    """
    raise NotImplementedError


def fail(storage: Storage, job: Job, code: str, message: str, *, clock: Clock = utc_now) -> Job:
    """End a claimed job with a reason. Raises: Lost, Cancelled."""
    raise NotImplementedError


def fail_unclaimed(
    storage: Storage, id: str, code: str, message: str, *, batch_job_id: str | None = None, clock: Clock = utc_now
) -> Job:
    """End a job from outside (its Batch job died, its upload is no image), whoever holds it; final jobs stay as is.

    With `batch_job_id`, only while the job is still that Batch job's.
    """
    raise NotImplementedError


def release(storage: Storage, job: Job, *, backend: Backend | None = None, clock: Clock = utc_now) -> Job:
    """Hand a claimed job back as queued, for another backend if one is given. Not counted as a loss.

    Raises: Lost, Cancelled.
    """
    raise NotImplementedError


def cancel(storage: Storage, id: str, *, clock: Clock = utc_now) -> Job:
    """Cancel a job that is not final; its worker notices between two tiles. Again on a cancelled job: no change.

    Raises:
        IllegalTransition: it has succeeded or failed.
    """
    raise NotImplementedError


def expired(job: Job, now: datetime) -> bool:
    """Whether the job's time is over: it is to be treated as gone."""
    raise NotImplementedError


def claimable(job: Job, now: datetime) -> bool:
    """Whether `claim` would find something to do: queued, or running under a lease that ran out."""
    raise NotImplementedError


class Held:
    """A claimed job while it is worked on; given by `lease`.

    Attributes:
        job: the document as this worker last saw it; pass it to `succeed`, `fail` or `release`.
    """

    job: Job

    def check(self) -> None:
        """Call between tiles. Reads the document at most every `BEAT_SECONDS`. Raises: Lost, Cancelled."""
        raise NotImplementedError

    def progress(self, done: int, total: int) -> None:
        """`check`, and write progress at most every `BEAT_SECONDS`. A failing store is passed over.

        Raises: Lost, Cancelled.
        """
        raise NotImplementedError


@contextmanager
def lease(storage: Storage, job: Job, lease_seconds: float, *, clock: Clock = utc_now) -> Iterator[Held]:
    """Work on a claimed job: a thread renews the lease until the block is left, whatever happens in it.

    The block itself ends the job, with `succeed`, `fail` or `release`; a block left otherwise leaves a running job
    whose lease runs out.
    """
    raise NotImplementedError
    yield
