"""The job document: its states and the changes that they allow.

    awaiting_upload -> queued -> running -> succeeded | failed | cancelled

A document is one JSON object in the store, `jobs/<id>.json`. A worker *claims* a queued job: the job is then running
and carries the worker's lease. The worker renews the lease; when it goes silent and the lease runs out, another worker
may claim the job. Each claim counts `attempt` up by one, so that (id, attempt) names one worker's attempt and no other.

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

import uuid
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from enum import StrEnum

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from handler.names import file_name

#: Ids of jobs that nobody asked for by id follow from their upload, or from another job, within this name space.
UPLOAD_NAMESPACE = uuid.UUID("5f4b36a2-0c3e-4a53-9e0b-6d8f6a0c7a11")

Clock = Callable[[], datetime]

#: Who holds a lease that several workers share while each makes a part; whoever puts the parts together may take it.
SHARED = "several workers"
#: How long a delivery of a webhook may take before its sender counts as dead.
SENDING = timedelta(minutes=5)


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


class StoredFile(_Document):
    """An input or an output: an object of the store. What is not known yet is null."""

    key: str = Field(description="Name of the object in the store.")
    name: str = Field(description="File name to show and to save under.")
    content_type: str = Field(description="Media type.", examples=["image/jpeg"])
    bytes: int | None = Field(default=None, ge=0, description="Size of the file.")
    width: int | None = Field(default=None, ge=1, description="Pixels, orientation applied.")
    height: int | None = Field(default=None, ge=1, description="Pixels, orientation applied.")
    version: str = Field(default="", description="The object's ETag when it was uploaded; empty where unknown.")


class Estimate(_Document):
    """What a job will take, before it runs."""

    route: Backend = Field(description="Where it will run.")
    seconds: float = Field(ge=0, description="Seconds of work, starting up not counted.")
    memory: int = Field(ge=0, description="Bytes of memory at the peak.")
    tiles: int = Field(ge=0, description="Pieces of work.")
    machines: int = Field(default=1, ge=1, description="How many share the work, each making a part of the picture.")
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
    """How far the delivery is: waiting also between two tries that are minutes or hours apart."""

    WAITING = "waiting"
    SENDING = "sending"
    DELIVERED = "delivered"
    FAILED = "failed"


class Webhook(_Document):
    """Where the final state is reported, and whether that worked."""

    url: str = Field(description="Called with POST on the final state, until it answers.")
    state: WebhookState = Field(default=WebhookState.WAITING, description="waiting, sending, delivered or failed.")
    attempts: int = Field(default=0, ge=0, description="Requests made.")
    status: int | None = Field(default=None, description="HTTP status of the last answer.")
    error: str = Field(default="", description="Why the last request failed; empty otherwise.")
    at: datetime | None = Field(default=None, description="When the last delivery began or ended.")
    next: datetime | None = Field(default=None, description="When it is tried again; null unless it is waiting for it.")


class Request(_Document):
    """What a client asks for; the same request again means the same job."""

    filename: str = Field(description="Name of the picture's file.", examples=["photo.jpg"])
    content_type: str = Field(description="Media type of the file.", examples=["image/jpeg"])
    bytes: int | None = Field(default=None, ge=1, description="Size of the file, the most that the upload link takes.")
    options: dict[str, JsonValue] = Field(default_factory=dict, description="By the names of the query options.")
    webhook: str | None = Field(default=None, description="URL called on the final state.")
    source: str | None = Field(default=None, description="URL of the picture, or the picture; null: it is uploaded.")


class Job(_Document):
    """One job, as it is stored."""

    id: str = Field(description="UUID.")
    state: State
    backend: Backend | None = Field(default=None, description="Where it is queued or runs; null until that is decided.")
    options: dict[str, JsonValue] = Field(default_factory=dict, description="As requested.")
    input: StoredFile
    pictures: int | None = Field(
        default=None, ge=1, description="Of a part of an archive, whose input is a list; null: the input is a picture."
    )
    output: StoredFile | None = Field(default=None, description="Set when succeeded.")
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
    batch_array_id: str | None = Field(
        default=None, description="Of AWS Batch: the array of machines that make parts, which that job puts together."
    )
    webhook: Webhook | None = None
    created: datetime
    updated: datetime
    started: datetime | None = Field(default=None, description="First claim.")
    finished: datetime | None = Field(default=None, description="When the final state was reached.")
    expires: datetime = Field(description="When the job, its upload and its result may be gone.")
    owner: str = Field(default="", description="Whose job it is: names a key or an address.")
    request_hash: str = Field(default="", description="SHA-256 of the request, for idempotency.")
    revision: str = Field(default="", description="Names this write of the document.")

    def public(self) -> dict[str, JsonValue]:
        """What clients may see, ready for JSON: all but the lease, the owner, the hash and the revision."""
        return self.model_dump(mode="json", exclude={"lease", "owner", "request_hash", "revision"})


def utc_now() -> datetime:
    """The time, with its zone."""
    return datetime.now(UTC)


def new_id() -> str:
    """A fresh random id."""
    return str(uuid.uuid4())


def check_id(id: str) -> str:
    """The id, if it is a UUID in the usual spelling: lower case, with hyphens.

    Raises:
        InvalidId.
    """
    try:
        if str(uuid.UUID(id)) == id:
            return id
    except ValueError:
        pass
    raise InvalidId("a job's id is a UUID, such as 6f9619ff-8b86-4011-b42d-00c04fc964ff, in lower case")


def job_key(id: str) -> str:
    """`jobs/<id>.json`.

    Raises:
        InvalidId.
    """
    return f"jobs/{check_id(id)}.json"


def upload_key(id: str, name: str) -> str:
    """`uploads/<id>/<name>`, the name made safe by `names.file_name`.

    Raises:
        InvalidId.
    """
    return f"uploads/{check_id(id)}/{file_name(name)}"


def retry_id(id: str) -> str:
    """The id of the job that does again what the job of this id should have done."""
    return str(uuid.uuid5(UPLOAD_NAMESPACE, f"{id}\0retry"))


def work_prefix(id: str) -> str:
    """`work/<id>/`: where finished bands of a result are kept until the job has ended."""
    return f"work/{check_id(id)}/"


def result_key(job: Job, name: str) -> str:
    """`results/<id>/<attempt>/<name>`: where the worker that claimed this job writes its result."""
    return f"results/{job.id}/{job.attempt}/{file_name(name)}"


def dumps(job: Job) -> bytes:
    """The document as JSON."""
    return job.model_dump_json().encode()


def loads(data: bytes) -> Job:
    """The job of a document.

    Raises:
        ValueError.
    """
    return Job.model_validate_json(data)


def expired(job: Job, now: datetime) -> bool:
    """Whether the job's time is over: it is to be treated as gone."""
    return now >= job.expires


def claimable(job: Job, now: datetime) -> bool:
    """Whether there is something to do: the job is queued, or running under a lease that ran out."""
    if expired(job, now):
        return False
    if job.state is State.QUEUED or shared(job):
        return True
    return job.state is State.RUNNING and (job.lease is None or job.lease.until <= now)


def shared(job: Job) -> bool:
    """Whether several workers make parts of the job, and nobody puts them together yet."""
    return job.state is State.RUNNING and job.lease is not None and job.lease.owner == SHARED


def webhook_due(job: Job, now: datetime) -> bool:
    """Whether the job is final and its webhook is to be called now.

    So it is where nobody has begun to, where it is time to try again, and where whoever began is silent for so long
    that it must have died.
    """
    hook = job.webhook
    if not job.state.final or hook is None:
        return False
    if hook.state is WebhookState.SENDING:
        return hook.at is None or hook.at + SENDING <= now
    return hook.state is WebhookState.WAITING and (hook.next is None or hook.next <= now)


def check_transition(old: Job, new: Job) -> None:
    """Whether a job may change from the one document to the other.

    Raises:
        IllegalTransition: `TRANSITIONS` does not allow it, or a final job changes in more than its webhook.
    """
    if new.state is not old.state and new.state not in TRANSITIONS[old.state]:
        raise IllegalTransition(f"a job that is {old.state} cannot become {new.state}")
    if old.state.final and new.model_copy(update={"webhook": old.webhook}) != old:
        raise IllegalTransition(f"a job that is {old.state} does not change any more")
