"""Work on one job, wherever that is: in the HTTP process, in Lambda, or in a Batch container.

    claim -> read the header -> estimate and route -> download -> core.upscale -> store the result -> end -> webhook

A worker may die at any of these arrows. What it leaves is a lease that runs out, perhaps a result that no document
names (the next attempt deletes it), and a working folder that nobody holds (the next `workspace` deletes it).
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import core
from core.formats import MEDIA_TYPES
from core.limits import free_bytes
from handler import bands, batch, jobs, options, remote_file, routing, s3_models, webhook
from handler.attempt import RETRY_DELAYS, Attempt, Stopped, with_retries
from handler.jobs import Backend, Job, Progress, State, StoredFile
from handler.names import MAX_NAME, file_name, without_folders
from handler.settings import Settings
from handler.storage import NotFound, Storage, StorageError
from handler.workspace import workspace

log = logging.getLogger(__name__)

#: Of the result, at most.
_PIXEL_BYTES = 8
#: How often Lambda delivers an event at most.
TRIES = 3


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
    notify: Callable[[Storage, Settings, Job], object] = webhook.notify,
    retry_delays: Sequence[float] = RETRY_DELAYS,
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
        retry_delays: seconds before each repetition of a storage call.

    Returns:
        The job as it was left: succeeded, failed, cancelled, or queued (handed back, or moved on to another backend).
        None when there was nothing to do (it is final, another worker holds it, it is meant for another backend), or
        when another worker took it over.

    Raises:
        storage.NotFound: no such job.
        storage.Unavailable: the store fails so long that not even the failure could be written. The lease runs out,
            so calling again later is right.
        botocore.exceptions.ClientError: a job moved on to Batch was refused there; see `batch.submit`.
    """
    job = with_retries(
        lambda: jobs.claim(storage, job_id, worker, settings.lease_seconds, backend=backend), retry_delays
    )
    if job is None:
        # The worker that ended it may have died before it reported that.
        notify(storage, settings, jobs.get(storage, job_id))
        return None
    log.info("job %s claimed, attempt %d", job.id, job.attempt)
    with jobs.keep_lease(storage, job, settings.lease_seconds) as leased:
        left = _end(_Attempt(storage, settings, leased, stop, batch_job_id, retry_delays, backend, seconds))
    if left is None:
        log.warning("job %s was taken over by another worker", job_id)
        return None
    log.info("job %s is %s", left.id, left.state)
    if left.state is State.QUEUED and left.backend is Backend.BATCH and backend is not Backend.BATCH:
        return batch.submit(storage, settings, left)
    notify(storage, settings, left)
    return left


def wait_until_claimable(storage: Storage, job_id: str, *, stop: Callable[[], bool] = lambda: False) -> bool:
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


#: Code and message of a job whose upload is another one now.
REPLACED = "upload_replaced", "another file was uploaded in its place meanwhile: that one has its own job"


class Replaced(Exception):
    """The upload is no longer the file that the job was made for."""


class _TooMuchHere(Exception):
    """The job needs more than this kind of worker has. One line for people."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True)
class _Attempt(Attempt):
    """One claim of one job, and what else `run_job` was given for it."""

    backend: Backend
    seconds: float

    @property
    def larger(self) -> Backend | None:
        """Where a job goes that is too much for here."""
        return Backend.BATCH if self.settings.has_batch and self.backend is not Backend.BATCH else None

    @property
    def in_lambda(self) -> bool:
        """Whether events bring the job here, and only `TRIES` times; a local worker looks for its jobs itself."""
        return self.backend is Backend.LAMBDA and not self.settings.local

    def keeps(self, width: int, height: int) -> bool:
        """Whether finished bands of long work are kept; what Lambda has the time for is not long.

        Args:
            width: of the result, pixels.
            height: of the result, pixels.
        """
        if not self.settings.local:
            return self.backend is Backend.BATCH
        free = free_bytes(self.settings.data_dir)
        # On one disk there may be bands, the result as it is written, and its copy in the store.
        return free is not None and free > 3 * _PIXEL_BYTES * width * height

    def progress(self, done: int, total: int) -> None:
        """`check`, between two tiles."""
        if self.leased.job.batch_array_id:  # what its machines have made is done
            done = max(done, min(self.leased.job.progress.done, total))
        self.leased.progress(done, total)
        if self.stop():
            raise Stopped


def _end(attempt: _Attempt) -> Job | None:
    """Do a claimed job and bring its document to what came of it; None if it is not ours any more."""
    job = attempt.leased.job

    def fail(code: str, message: str) -> Job:
        log.warning("job %s: %s: %s", job.id, code, message)
        return with_retries(
            lambda: jobs.fail(attempt.storage, attempt.leased.job, code, without_folders(message)), attempt.retry_delays
        )

    def hand_over() -> Job:
        return with_retries(
            lambda: jobs.release(attempt.storage, attempt.leased.job, backend=attempt.larger), attempt.retry_delays
        )

    def move_on(code: str, message: str) -> Job:
        log.warning(
            "job %s: too much for %s: %s",
            job.id,
            attempt.backend,
            message,
            exc_info=code in ("out_of_memory", "cannot_write"),
        )
        return hand_over() if attempt.larger else fail(code, message)

    try:
        try:
            return _work(attempt)
        except Stopped:
            log.warning("job %s is handed back", job.id)
            if attempt.in_lambda and not attempt.larger and job.attempt >= TRIES:
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
        except Replaced:
            return fail(*REPLACED)
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
        return jobs.get(attempt.storage, job.id)


def _work(attempt: _Attempt) -> Job:
    """Everything between claim and success.

    Returns:
        The job as succeeded.
    """
    storage, settings, job = attempt.storage, attempt.settings, attempt.leased.job
    attempt.check()
    if job.lost and (attempt.larger or (attempt.in_lambda and job.attempt >= TRIES)):
        # Nobody would come back for the job if this last delivery of the event died of it, too.
        raise _TooMuchHere("worker_lost", "workers were lost on this job, probably out of memory: try a smaller scale")
    start = time.perf_counter()
    asked = options.parse(job.options, settings)
    chosen, missing = s3_models.with_local_model(asked, settings)
    version = attempt.with_retries(lambda: check_version(storage, job))
    header = attempt.with_retries(lambda: remote_file.probe(storage, job.input.key, settings))
    _plan(attempt, header, chosen)
    keeps = attempt.keeps(*chosen.output_size(header.width, header.height))

    with workspace() as folder:
        source, output = folder / "input", folder / "output"
        attempt.with_retries(lambda: storage.download(job.input.key, source))
        if attempt.with_retries(lambda: check_version(storage, job)) != version:
            raise Replaced
        read = time.perf_counter() - start
        made = core.upscale(
            source,
            chosen,
            output=output,
            limits=options.limits(settings),
            progress=attempt.progress,
            keeping=bands.keeping(storage, job, version, attempt.with_retries) if keeps else None,
        )
        for note in made.notes:
            log.info("job %s: %s", job.id, note)

        start = time.perf_counter()
        name = chosen.result_name(file_name(job.input.name), made.format, max_bytes=MAX_NAME)
        key = jobs.result_key(job, name)
        attempt.with_retries(lambda: storage.upload(output, key, made.media_type))
        result = StoredFile(
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
    reason = without_folders(missing or made.reason.replace(folder_name, model_name))
    if made.degraded:
        log.warning("job %s: made by %s, a fallback: %s", job.id, made.model, reason)
    # Not `attempt.with_retries`: the result is there, so what could still stop the job comes too late.
    return with_retries(
        lambda: jobs.succeed(
            storage,
            attempt.leased.job,
            result,
            model_used=without_folders(model_name if made.model == folder_name else made.model),
            degraded=made.degraded,
            reason=reason,
            timings={stage: round(taken, 3) for stage, taken in timings.items()},
        ),
        attempt.retry_delays,
    )


def check_version(storage: Storage, job: Job) -> str:
    """Whether what lies under the input's key is what was uploaded for this job, by its ETag where that is known.

    Returns:
        The ETag, without quotes.

    Raises:
        Replaced: it is not.
    """
    wanted, found = job.input.version.strip('"'), storage.head(job.input.key).etag.strip('"')
    if wanted and found != wanted:
        raise Replaced
    return found


def _plan(attempt: _Attempt, header: core.Probe, chosen: core.Options) -> None:
    """Write the estimate into the document, and see whether this is the place for it.

    Raises:
        _TooMuchHere, Stopped: it is not.
        core.TooLarge, core.OptionsError: no place is.
    """
    estimate = routing.plan(header, chosen, attempt.settings)
    job = attempt.leased.job
    if attempt.backend is Backend.BATCH:
        shared = job.estimate.machines if job.estimate and job.batch_array_id else 1
        estimate = estimate.model_copy(update={"machines": shared})
        if not routing.fits_batch(estimate, shared, attempt.settings):  # by this machine's own speed
            raise core.TooLarge(
                f"this would take about {estimate.seconds:,.0f} s, more than AWS Batch gives a job: try a smaller scale"
            )
    known: dict[str, object] = {"estimate": estimate}
    if not job.batch_array_id:
        known["progress"] = Progress(total=estimate.tiles)
    if attempt.batch_job_id:
        known["batch_job_id"] = attempt.batch_job_id
    seen: dict[str, object] = {"bytes": header.bytes, "width": header.width, "height": header.height}
    seen["content_type"] = MEDIA_TYPES[header.format]

    def describe(now: Job) -> Job:
        if now.state.final:  # cancelled meanwhile
            return now
        return now.model_copy(update={**known, "input": now.input.model_copy(update=seen)})

    attempt.with_retries(lambda: jobs.change(attempt.storage, attempt.leased.job.id, describe))
    if attempt.backend is not Backend.BATCH and estimate.route is Backend.BATCH:
        raise _TooMuchHere("too_large", "the job needs more time or memory than there is here")
    if estimate.seconds > attempt.seconds:
        raise Stopped
