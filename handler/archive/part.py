"""Work on one part of an archive: one job, one container, many pictures.

    claim -> list -> for each picture: download its version -> name -> core.upscale -> create the result -> rows -> end

A worker that dies leaves results, each of which says in its metadata what it was made from, and rows that are up to
`FLUSH_SECONDS` old. The next one passes over what has a row, and takes a result that it finds for what it is.

A picture that kills its worker would do so again. So once a worker was lost, the next ones write down each picture
before they begin it (`TRIED`), and one that is found begun and not ended is failed instead of tried again.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import core
from handler import bands, jobs, options, s3_models
from handler.archive import document
from handler.archive.document import CONTENT_TYPE, LEFT, MADE_BY, MADE_FROM, MADE_IN, TRIED, Picture, Row
from handler.archive.targets import with_ending
from handler.attempt import RETRY_DELAYS, Attempt, Stopped, with_retries
from handler.jobs import Backend, Job, Progress, StoredFile
from handler.settings import Settings
from handler.storage import Changed, Exists, InvalidKey, NotFound, Storage, StorageError, Unavailable
from handler.workspace import workspace

log = logging.getLogger(__name__)

#: Seconds between two writes of rows, and of progress.
FLUSH_SECONDS = 30.0


def run_part(
    storage: Storage,
    settings: Settings,
    job_id: str,
    *,
    backend: Backend,
    worker: str,
    stop: Callable[[], bool] = lambda: False,
    batch_job_id: str | None = None,
    retry_delays: Sequence[float] = RETRY_DELAYS,
) -> Job | None:
    """Claim the job of a part, make its pictures, and end it; as `worker.run_job` does with one picture.

    Args:
        storage: where all of it is.
        settings: of the service.
        job_id: of the job.
        backend: where this runs.
        worker: a name for logs.
        stop: asked between pictures and tiles; True hands the job back as queued.
        batch_job_id: the AWS Batch job that this is part of.
        retry_delays: seconds before each repetition of a storage call.

    Returns:
        The job as it was left; succeeded also where pictures failed, each of which has a row that says so. None when
        there was nothing to do, or another worker took it over.

    Raises:
        storage.NotFound: no such job.
        storage.Unavailable: the store fails; what was done is not lost, and calling again later is right.
    """
    job = with_retries(
        lambda: jobs.claim(storage, job_id, worker, settings.lease_seconds, backend=backend), retry_delays
    )
    if job is None:
        return None
    log.info("job %s claimed, attempt %d", job.id, job.attempt)
    with jobs.keep_lease(storage, job, settings.lease_seconds) as leased:
        attempt = _Attempt(storage, settings, leased, stop, batch_job_id, retry_delays)
        try:
            try:
                return _work(attempt)
            except Stopped:
                return with_retries(lambda: jobs.release(storage, leased.job), retry_delays)
            except NotFound:
                return jobs.fail(storage, leased.job, "upload_missing", "the list of pictures is gone")
            except core.UpscaleError as error:  # the options, which are the same for all
                return jobs.fail(storage, leased.job, error.code, str(error))
            except (jobs.Lost, jobs.Cancelled):
                raise
            except Unavailable:
                with suppress(StorageError):
                    jobs.release(storage, leased.job)
                raise
            except Exception:
                log.exception("job %s: unexpected", job.id)
                return jobs.fail(storage, leased.job, "internal_error", "something went wrong here: the log says what")
        except jobs.Lost:
            log.warning("job %s was taken over by another worker", job_id)
            return None
        except jobs.Cancelled:
            return jobs.get(storage, job_id)


class _Attempt(Attempt):
    """One claim of one part."""

    def tell(self, done: int, total: int) -> None:
        """Write progress, in pictures."""

        def describe(now: Job) -> Job:
            if now.state.final:
                return now
            news: dict[str, object] = {"progress": Progress(done=done, total=total, at=jobs.utc_now())}
            if self.batch_job_id:
                news["batch_job_id"] = self.batch_job_id
            return now.model_copy(update=news)

        jobs.change(self.storage, self.leased.job.id, describe)


@dataclass
class _Rows:
    """What was written down of a part: by workers before, and by this one, which adds files that nobody else names."""

    storage: Storage
    part: str
    name: str
    ended: dict[str, Row] = field(default_factory=dict)
    begun: set[str] = field(default_factory=set)
    waiting: list[Row] = field(default_factory=list)
    files: int = 0

    def read(self) -> int:
        """What is there, in the order in which it was written; how many files that was."""
        found = sorted(found.key for found in self.storage.list(document.rows_prefix(self.part)))
        for key in found:
            for row in document.load_rows(self.storage.get(key)[0]):
                self.put(row)
        return len(found)

    def put(self, row: Row) -> None:
        """Take a row into account."""
        if row.error == TRIED:
            self.begun.add(row.source)
        elif row.error == LEFT:
            self.begun.discard(row.source)
        else:
            self.ended[row.source] = row

    def add(self, row: Row) -> None:
        """Take a row into account, and write it with the next `flush`."""
        self.put(row)
        self.waiting.append(row)

    def flush(self) -> None:
        """Write what is waiting."""
        if not self.waiting:
            return
        key = f"{document.rows_prefix(self.part)}{self.name}-{self.files:05}.jsonl"
        with suppress(Exists):  # this very write, whose answer was lost
            self.storage.create(key, document.dump_lines(self.waiting), CONTENT_TYPE)
        self.files += 1
        self.waiting = []


def _work(attempt: _Attempt) -> Job:
    """Everything between claim and end.

    Returns:
        The job as succeeded.
    """
    storage, job, part = attempt.storage, attempt.leased.job, attempt.leased.job.input.key
    attempt.check()
    chosen, missing = s3_models.with_local_model(options.parse(job.options, attempt.settings), attempt.settings)

    pictures = document.load_pictures(attempt.with_retries(lambda: storage.get(part))[0])
    rows = _Rows(storage, part, f"{job.created:%Y%m%dT%H%M%S%f}-{job.attempt:03}")
    careful = bool(attempt.with_retries(rows.read)) or job.lost > 0
    attempt.with_retries(lambda: attempt.tell(len(rows.ended), len(pictures)))
    begun, told = "", time.monotonic()
    try:
        with workspace() as folder:
            for picture in pictures:
                if picture.source in rows.ended:
                    continue
                attempt.check()
                if picture.source in rows.begun:
                    rows.add(Row(picture.source, error="worker_lost", message="a worker was lost on this picture"))
                    continue
                if careful:
                    begun = picture.source
                    rows.add(Row(picture.source, error=TRIED))
                    attempt.with_retries(rows.flush)  # with what came of the picture before
                rows.add(_make(attempt, picture, chosen, missing, folder))
                if time.monotonic() - told >= FLUSH_SECONDS:
                    told = time.monotonic()
                    attempt.with_retries(rows.flush)
                    attempt.with_retries(lambda: attempt.tell(len(rows.ended), len(pictures)))
    except (Stopped, jobs.Cancelled, Unavailable):
        if begun in rows.begun and begun not in rows.ended:  # by this worker, and it is not the picture's fault
            rows.add(Row(begun, error=LEFT))
        with suppress(StorageError):
            rows.flush()
        raise
    attempt.with_retries(rows.flush)
    ended = [rows.ended[picture.source] for picture in pictures]
    data = document.dump_lines(ended)
    attempt.with_retries(lambda: close(storage, part, data))
    result = StoredFile(
        key=jobs.result_key(job, "pictures.jsonl"), name="pictures.jsonl", content_type=CONTENT_TYPE, bytes=len(data)
    )
    attempt.with_retries(lambda: storage.put(result.key, data, CONTENT_TYPE))
    models = sorted({row.model for row in ended if row.model})
    return with_retries(
        lambda: jobs.succeed(storage, attempt.leased.job, result, model_used=", ".join(models)), attempt.retry_delays
    )


def close(storage: Storage, part: str, data: bytes) -> None:
    """Say for good what came of a part, unless that was said; what its workers wrote meanwhile is deleted."""
    with suppress(Exists):
        storage.create(document.done_key(part), data, CONTENT_TYPE)
    for found in storage.list(document.rows_prefix(part)):
        storage.delete(found.key)


def give_up(storage: Storage, part: str, code: str, message: str) -> None:
    """Close a part whose job failed for good: what has no row failed with it."""
    rows = _Rows(storage, part, "")
    rows.read()
    pictures = document.load_pictures(storage.get(part)[0])
    ended = [rows.ended.get(p.source) or Row(p.source, error=code, message=message) for p in pictures]
    close(storage, part, document.dump_lines(ended))


def _make(attempt: _Attempt, picture: Picture, chosen: core.Options, missing: str, folder: Path) -> Row:
    """Make one picture.

    Returns:
        What came of it, well or badly.

    Raises:
        jobs.Lost, jobs.Cancelled, Stopped, storage.Unavailable: nothing came of it yet.
    """
    source, output = folder / "input", folder / "output"
    try:
        return _upscale(attempt, picture, chosen, missing, source, output)
    except (jobs.Lost, jobs.Cancelled, Stopped, Unavailable):
        raise
    except (core.OutOfMemory, MemoryError):
        code, message = "out_of_memory", "it does not fit into memory: try a larger machine or a smaller scale"
    except core.UpscaleError as error:
        code, message = error.code, str(error)
    except NotFound:
        code, message = "source_missing", "the source is gone"
    except Changed:
        code, message = "source_changed", "the source was replaced after it was listed"
    except InvalidKey as error:
        code, message = "bad_key", str(error)
    except StorageError as error:
        code, message = "cannot_write", str(error)
    except Exception:
        log.exception("unexpected: %r", picture.source)
        code, message = "internal_error", "something went wrong here: the log says what"
    finally:
        source.unlink(missing_ok=True)
        output.unlink(missing_ok=True)
    log.warning("%r: %s: %s", picture.source, code, message)
    return Row(picture.source, error=code, message=message)


def _upscale(
    attempt: _Attempt, picture: Picture, chosen: core.Options, missing: str, source: Path, output: Path
) -> Row:
    storage, limits = attempt.storage, options.limits(attempt.settings)
    mark = document.made_from(picture, attempt.leased.job.options)

    attempt.with_retries(lambda: storage.download_version(picture.source, source, picture.etag))
    header = core.probe(source, limits)
    key = with_ending(picture.target, chosen.format or header.result_format)
    if found := attempt.with_retries(lambda: _found(storage, picture, key, mark)):
        return found

    def progress(_done: int, _total: int) -> None:
        attempt.check()

    # Bands of a long picture, from which another machine goes on; here the next process would have to begin it anew.
    keeps = picture.etag and not attempt.settings.local
    made = core.upscale(
        source,
        chosen,
        output=output,
        limits=limits,
        progress=progress,
        keeping=bands.keeping(storage, attempt.leased.job, picture.etag, attempt.with_retries) if keeps else None,
    )
    key = with_ending(picture.target, made.format)
    model, reason = made.model, missing or made.reason
    if model == str(chosen.model):  # a model from S3 ran as a directory; people know it by the name that they gave
        model = str(attempt.leased.job.model or attempt.settings.model or model)
    metadata = {MADE_FROM: mark, MADE_BY: _ascii(model), MADE_IN: f"{made.seconds:.3f}"}
    try:
        attempt.with_retries(lambda: storage.create_file(output, key, made.media_type, metadata))
    except Exists:
        found = attempt.with_retries(lambda: _found(storage, picture, key, mark))
        return found or Row(picture.source, error="target_taken", message=f"{key} came and went: try again")
    return Row(picture.source, key, model, round(made.seconds, 3), message=reason if made.degraded else "")


def _found(storage: Storage, picture: Picture, key: str, mark: str) -> Row | None:
    """What lies where the result goes, None where nothing does."""
    try:
        metadata = storage.head(key).metadata
    except NotFound:
        return None
    if metadata.get(MADE_FROM) == mark:  # by a worker that was lost before it wrote that down
        return Row(picture.source, key, metadata.get(MADE_BY, ""), float(metadata.get(MADE_IN, 0)))
    whose = "the result of another version or other options" if MADE_FROM in metadata else "a file of somebody else"
    return Row(picture.source, error="target_taken", message=f"{key} is {whose}, and is not replaced")


def _ascii(text: str) -> str:
    return "".join(c if " " <= c <= "~" else "?" for c in text)[:200]
