"""Work on one job, wherever that is: in the HTTP process, in Lambda, or in a Batch container.

    claim -> read the header -> estimate and route -> download -> core.upscale -> store the result -> end -> webhook

A worker may die at any of these arrows. What it leaves is a lease that runs out, perhaps a result that no document
names (the next try deletes it), and a working folder that nobody holds (the next `workspace` deletes it).
"""

from __future__ import annotations

import io
import logging
import math
import os
import random
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import core
from core.formats import MEDIA_TYPES
from handler import dispatch, jobs, options, s3_models, webhook
from handler.jobs import Backend, Job, Picture, Progress, State, WebhookState
from handler.settings import Settings
from handler.storage import NotFound, Storage, StorageError, Unavailable
from handler.workspace import workspace

log = logging.getLogger(__name__)
T = TypeVar("T")

#: Seconds before each repetition of a storage call, on top of the store's own retries.
PAUSES = (1.0, 4.0, 16.0)
#: How often Lambda delivers an event at most.
TRIES = 3
#: Bytes of the first ranged read; headers are mostly within it.
HEADER_BYTES = 64 * 1024
_MOST_AT_ONCE = 8 * 1024 * 1024


def notify(storage: Storage, settings: Settings, job: Job) -> threading.Thread | None:
    """Start the delivery of a final job's webhook in the background; None where there is nothing to deliver."""
    if not job.state.final or job.webhook is None or job.webhook.state is not WebhookState.WAITING:
        return None
    secret = settings.webhook_secret.get_secret_value()
    return webhook.in_background(storage, job.id, secret, allow_private=settings.webhook_allow_private)


def run_job(
    storage: Storage,
    settings: Settings,
    job_id: str,
    *,
    backend: Backend,
    worker: str,
    stop: Callable[[], bool] = lambda: False,
    seconds: float = math.inf,
    batch_job_id: str | None = None,
    notify: Callable[[Storage, Settings, Job], object] = notify,
    pauses: Sequence[float] = PAUSES,
) -> Job | None:
    """Claim a job, do it, and end it.

    Args:
        storage: where jobs and pictures are.
        settings: of the service.
        job_id: of the job.
        backend: where this runs; a job meant for another backend is left alone.
        worker: a name for logs, such as host and process id.
        stop: asked between tiles; True hands the job back as queued, for Batch where there is one.
        seconds: that the work may take here; a job estimated to take longer is moved on.
        batch_job_id: the AWS Batch job that this is part of, written into the document with the claim.
        notify: called with the job when it has reached its final state.
        pauses: seconds before each repetition of a storage call.

    Returns:
        The job as it was left: succeeded, failed, cancelled, or queued (handed back, or moved on to another backend).
        None when there was nothing to do (it is final, another worker holds it, it is meant for another backend), or
        when another worker took it over.

    Raises:
        storage.NotFound: no such job.
        storage.Unavailable: the store fails so long that not even the failure could be written. The lease runs out,
            so calling again later is right.
        botocore.exceptions.ClientError: a job moved on to Batch was refused there; see `submit`.
    """
    job = _patiently(lambda: jobs.claim(storage, job_id, worker, settings.lease_seconds, backend=backend), pauses)
    if job is None:
        # The worker that ended it may have died before it told anybody.
        notify(storage, settings, jobs.get(storage, job_id))
        return None
    log.info("job %s claimed, attempt %d", job.id, job.attempt)
    with jobs.lease(storage, job, settings.lease_seconds) as held:
        left = _end(_Try(storage, settings, held, backend, stop, seconds, batch_job_id, pauses))
    if left is None:
        log.warning("job %s was taken over by another worker", job_id)
        return None
    log.info("job %s is %s", left.id, left.state)
    if left.state is State.QUEUED and left.backend is Backend.BATCH and backend is not Backend.BATCH:
        return submit(storage, settings, left)
    notify(storage, settings, left)
    return left


def submit(storage: Storage, settings: Settings, job: Job) -> Job:
    """Start a job that is queued for Batch there, and write down its id of AWS Batch.

    Raises:
        botocore.exceptions.ClientError: Batch refused, or did not answer; the job stays queued, so call again.
    """
    batch_job_id = dispatch.submit_batch(job, settings)

    def record(now: Job) -> Job:
        if now.state is not State.QUEUED or now.backend is not Backend.BATCH or now.batch_job_id:
            return now  # the container was faster, or somebody else submitted it too
        return now.model_copy(update={"batch_job_id": batch_job_id})

    return jobs.change(storage, job.id, record)


def becomes_free(storage: Storage, job_id: str, *, stop: Callable[[], bool] = lambda: False) -> bool:
    """After `run_job` gave None: whether there is something to do all the same, now or in a moment.

    The job may be held by a worker that is dead. A live one renews its lease when a third of it has gone by, so watch
    that long: False as soon as the lease is renewed, True when it has run out or the job was handed back.

    Raises:
        storage.NotFound: no such job.
        TimeoutError: `stop` came before it was clear.
    """
    first = jobs.get(storage, job_id)
    job = first
    while not jobs.claimable(job, jobs.utc_now()):
        if job.lease is None or job.lease != first.lease or jobs.expired(job, jobs.utc_now()):
            return False  # it has ended, or somebody is at it
        if stop():
            raise TimeoutError("another worker holds the job, and may be dead")
        time.sleep(0.5)
        job = jobs.get(storage, job_id)
    return True


class _Stopped(Exception):
    """The worker was asked to stop, or has not the time."""


class _TooMuchHere(Exception):
    """The job needs more than this kind of worker has. One line for people."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True)
class _Try:
    """One claim of one job, and what `run_job` was told about it."""

    storage: Storage
    settings: Settings
    held: jobs.Held
    backend: Backend
    stop: Callable[[], bool]
    seconds: float
    batch_job_id: str | None
    pauses: Sequence[float]

    @property
    def larger(self) -> Backend | None:
        """Where a job goes that is too much for here."""
        return Backend.BATCH if self.settings.has_batch and self.backend is not Backend.BATCH else None

    @property
    def in_lambda(self) -> bool:
        """Whether events bring the job here, and only `TRIES` times; a local worker looks for its jobs itself."""
        return self.backend is Backend.LAMBDA and not self.settings.local

    def check(self) -> None:
        """Raises: jobs.Lost, jobs.Cancelled, _Stopped."""
        self.held.check()
        if self.stop():
            raise _Stopped

    def progress(self, done: int, total: int) -> None:
        """`check`, between two tiles."""
        self.held.progress(done, total)
        if self.stop():
            raise _Stopped

    def patiently(self, action: Callable[[], T]) -> T:
        """A storage call, repeated while the job is ours."""
        return _patiently(action, self.pauses, self.check)


def _end(this: _Try) -> Job | None:
    """Do a claimed job and bring its document to what came of it; None if it is not ours any more."""
    job = this.held.job

    def fail(code: str, message: str) -> Job:
        log.warning("job %s: %s: %s", job.id, code, message)
        return _patiently(lambda: jobs.fail(this.storage, this.held.job, code, message), this.pauses)

    def hand_over() -> Job:
        return _patiently(lambda: jobs.release(this.storage, this.held.job, backend=this.larger), this.pauses)

    def move_on(code: str, message: str) -> Job:
        log.warning(
            "job %s: too much for %s: %s",
            job.id,
            this.backend,
            message,
            exc_info=code in ("out_of_memory", "cannot_write"),
        )
        return hand_over() if this.larger else fail(code, message)

    try:
        try:
            return _work(this)
        except _Stopped:
            log.warning("job %s is handed back", job.id)
            if this.in_lambda and not this.larger and job.attempt >= TRIES:
                return fail("out_of_time", "the job takes longer than there is time for here: try a smaller scale")
            return hand_over()
        except _TooMuchHere as much:
            return move_on(much.code, str(much))
        except (core.OutOfMemory, MemoryError):
            return move_on("out_of_memory", "the job does not fit into memory: try a smaller picture or scale")
        except core.OutputError:
            return move_on("cannot_write", "the result does not fit on the worker's disk: try a smaller scale")
        except core.UpscaleError as error:
            return fail(error.code, str(error))
        except NotFound:
            return fail("upload_missing", "the uploaded file is gone: send it again")
        except StorageError:
            log.exception("job %s: the store failed", job.id)
            return fail("storage_unavailable", "the store did not answer for some time: try again later")
        except (jobs.Lost, jobs.Cancelled):
            raise
        except Exception:
            log.exception("job %s: unexpected", job.id)
            return fail("internal_error", "something went wrong here: the log says what, under this job's id")
    except jobs.Lost:
        return None
    except jobs.Cancelled:
        return jobs.get(this.storage, job.id)


def _work(this: _Try) -> Job:
    """Everything between claim and success; gives the job as succeeded."""
    storage, settings, job = this.storage, this.settings, this.held.job
    this.check()
    if job.lost and (this.larger or (this.in_lambda and job.attempt >= TRIES)):
        # Nobody would come back for the job if this last delivery of the event died of it, too.
        raise _TooMuchHere("worker_lost", "workers were lost on this job, probably out of memory: try a smaller scale")
    start = time.perf_counter()
    asked = options.parse(job.options, settings)
    chosen, missing = with_local_model(asked, settings)
    header = this.patiently(lambda: _probe(storage, job.input.key, settings))
    _plan(this, header, chosen)

    with workspace() as folder:
        source, output = folder / "input", folder / "output"
        this.patiently(lambda: storage.download(job.input.key, source))
        read = time.perf_counter() - start
        made = core.upscale(source, chosen, output=output, limits=options.limits(settings), progress=this.progress)
        for note in made.notes:
            log.info("job %s: %s", job.id, note)

        start = time.perf_counter()
        name = options.result_name(job.input.name, chosen, made.format)
        key = jobs.result_key(job, name)
        this.patiently(lambda: storage.upload(output, key, made.media_type))
        result = Picture(
            key=key,
            name=name,
            content_type=made.media_type,
            bytes=output.stat().st_size,
            width=made.width,
            height=made.height,
        )
    timings = {"read": read, "load": made.load_seconds, "work": made.seconds, "write": time.perf_counter() - start}
    # A model from S3 ran as a directory; people know it by the name that they gave.
    folder_name, model_name = str(chosen.model), str(asked.model)
    reason = missing or made.reason.replace(folder_name, model_name)
    if made.degraded:
        log.warning("job %s: made by %s, a fallback: %s", job.id, made.model, reason)
    # Not `this.patiently`: the result is there, so what could still stop the job comes too late.
    return _patiently(
        lambda: jobs.succeed(
            storage,
            this.held.job,
            result,
            model_used=model_name if made.model == folder_name else made.model,
            degraded=made.degraded,
            reason=reason,
            timings={stage: round(taken, 3) for stage, taken in timings.items()},
        ),
        this.pauses,
    )


def _plan(this: _Try, header: core.Probe, chosen: core.Options) -> None:
    """Write the estimate into the document, and see whether this is the place for it.

    Raises:
        _TooMuchHere, _Stopped: it is not.
        core.TooLarge, core.OptionsError: no place is.
    """
    estimate = dispatch.plan(header, chosen, this.settings)
    known: dict[str, object] = {"estimate": estimate, "progress": Progress(total=estimate.tiles)}
    if this.batch_job_id:
        known["batch_job_id"] = this.batch_job_id
    seen: dict[str, object] = {"bytes": header.bytes, "width": header.width, "height": header.height}
    seen["content_type"] = MEDIA_TYPES[header.format]

    def describe(now: Job) -> Job:
        if now.state.final:  # cancelled meanwhile
            return now
        return now.model_copy(update={**known, "input": now.input.model_copy(update=seen)})

    this.patiently(lambda: jobs.change(this.storage, this.held.job.id, describe))
    if this.backend is not Backend.BATCH and estimate.route is Backend.BATCH:
        raise _TooMuchHere("too_large", "the job needs more time or memory than there is here")
    if estimate.seconds > this.seconds:
        raise _Stopped


def with_local_model(asked: core.Options, settings: Settings) -> tuple[core.Options, str]:
    """The options with an S3 prefix replaced by a directory, and why that could not be done (empty when it was)."""
    if asked.model is None or not asked.model.startswith(s3_models.SCHEME):
        return asked, ""
    try:
        return replace(asked, model=str(s3_models.fetch(asked.model, settings))), ""
    except core.ModelError as error:
        return asked, str(error)  # a name that the core does not know: it steps down its fall-back chain


def _patiently(action: Callable[[], T], pauses: Sequence[float], check: Callable[[], None] = lambda: None) -> T:
    """Repeat a call while the store is unavailable. `check` may raise in between, to give up early."""
    for pause in pauses:
        try:
            return action()
        except Unavailable as error:
            log.warning("%s; again in about %g s", error, pause)
        time.sleep(pause * random.uniform(0.5, 1.5))  # noqa: S311 - so that many workers do not return at once
        check()
    return action()


def _probe(storage: Storage, key: str, settings: Settings) -> core.Probe:
    """The header of a stored picture, by ranged reads.

    Raises:
        core.InputError: as `core.probe`.
        storage.StorageError: as `Storage.read_range`.
    """
    remote = _RemoteFile(storage, key, storage.head(key).size)
    try:
        return core.probe(io.BufferedReader(remote, HEADER_BYTES), options.limits(settings))
    except core.InputError:
        if remote.failure:  # to a decoder a store that fails looks like a damaged file
            raise remote.failure from None
        raise


class _RemoteFile(io.RawIOBase):
    """A stored object as a seekable file, so that a decoder fetches only what it looks at.

    Reads that follow each other fetch twice as much each time: a header costs one small request, a format whose
    decoder wants the whole file a few large ones.
    """

    def __init__(self, storage: Storage, key: str, size: int) -> None:
        self.failure: StorageError | None = None
        self._storage, self._key, self._size = storage, key, size
        self._at = 0
        self._start, self._block, self._next = 0, b"", HEADER_BYTES

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        self._at = max(0, base + offset)
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        if not self._start <= self._at < self._start + len(self._block):
            if self._at >= self._size:
                return 0
            try:
                self._block = self._storage.read_range(self._key, self._at, max(self._next, len(buffer)))
            except StorageError as error:
                self.failure = error
                raise OSError("the store failed") from error
            self._start, self._next = self._at, min(2 * self._next, _MOST_AT_ONCE)
        offset = self._at - self._start
        data = self._block[offset : offset + len(buffer)]
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)
