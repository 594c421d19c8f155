"""Many machines for one picture: what one container of an array job does.

    read the header -> download (of a TIFF only the strips or tiles that are needed) -> core.upscale_part, which keeps
    each finished band under work/ -> done

Nobody claims the job meanwhile: the job after the array does, and puts the bands together (`worker`, as if it went on
after an interruption). A container that is killed or taken away is repeated alone, and finds the bands that it has
made. What lies in the picture or the request ends the job for all.
"""

from __future__ import annotations

import io
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, TypeVar

import core
from handler import bands, jobs, options, remote_file, routing, s3_models, webhook
from handler.attempt import RETRY_DELAYS, Stopped, with_retries
from handler.jobs import Job
from handler.names import without_folders
from handler.settings import Settings
from handler.storage import Changed, NotFound, Storage, Unavailable
from handler.worker import REPLACED, Replaced, check_version
from handler.workspace import workspace

log = logging.getLogger(__name__)
T = TypeVar("T")

#: Seconds between two looks at the job, and writes of the progress of all parts.
SHARE_SECONDS = 30.0


@dataclass
class _Part:
    """One part of a picture in work, and what `run_part` was given for it."""

    storage: Storage
    settings: Settings
    job: Job
    stop: Callable[[], bool]
    retry_delays: Sequence[float]
    kept: bands.JobBands | None = None
    said: float = field(default=-SHARE_SECONDS)

    def check(self) -> None:
        """Whether to go on. Raises: Stopped: not."""
        if self.stop():
            raise Stopped

    def progress(self, _done: int, total: int) -> None:
        """Between two tiles: `check`, and now and then how far all parts are, by the bands that are there.

        Raises:
            Stopped.
            jobs.Lost, jobs.Cancelled: the job has ended, or is put together already.
        """
        self.check()
        if self.kept is None or time.monotonic() - self.said < SHARE_SECONDS:
            return
        self.said = time.monotonic()
        try:
            there = sum(1 for _ in self.storage.list(self.kept.prefix))
            done = total * min(there, self.kept.count) // self.kept.count
            jobs.share(self.storage, self.job.id, done, total, 3 * SHARE_SECONDS + self.settings.lease_seconds)
        except Unavailable:
            log.warning("progress of job %s not written", self.job.id, exc_info=True)

    def with_retries(self, action: Callable[[], T]) -> T:
        """A storage call, repeated."""
        return with_retries(action, self.retry_delays, self.check)

    def opened(self, kept: bands.JobBands) -> None:
        """The core has said which bands there will be."""
        self.kept = kept


def run_part(
    storage: Storage,
    settings: Settings,
    job_id: str,
    part: tuple[int, int],
    *,
    stop: Callable[[], bool] = lambda: False,
    retry_delays: Sequence[float] = RETRY_DELAYS,
) -> Job:
    """Make one part of a job's picture, and leave its bands in the store.

    Args:
        storage: where jobs and pictures are.
        settings: of the service.
        job_id: of the job.
        part: (which, of how many), counted from 0.
        stop: asked between tiles.
        retry_delays: seconds before each repetition of a storage call.

    Returns:
        The job as it is then: not final where all is well, failed where this part found why nothing will come of it.

    Raises:
        Stopped: `stop` said so; a repetition goes on.
        storage.NotFound: no such job.
        storage.Unavailable: the store fails; a repetition goes on.
    """
    job = jobs.get(storage, job_id)
    try:
        if not (job.state is jobs.State.QUEUED or jobs.shared(job)):
            raise jobs.Lost("the job has ended, or its parts are being put together")
        _make(_Part(storage, settings, job, stop, retry_delays), part)
        return jobs.get(storage, job_id)
    except (jobs.Lost, jobs.Cancelled) as end:
        log.info("job %s: nothing to do for part %d: %s", job_id, part[0], end)
        return _left(storage, job_id)
    except Stopped:
        if (job := _left(storage, job_id)).state.final:  # that is why
            return job
        raise
    except Unavailable:
        raise
    except (core.OutOfMemory, MemoryError):
        code, message = "out_of_memory", "the job does not fit into memory: try a smaller picture or scale"
    except core.OutputError:
        code, message = "cannot_write", "the result does not fit on the worker's disk: try a smaller scale"
    except core.UpscaleError as error:
        code, message = error.code, without_folders(str(error))
    except Replaced:
        code, message = REPLACED
    except NotFound:
        code, message = "upload_missing", "the uploaded file is gone: send it again"
    except Exception:
        log.exception("job %s: unexpected", job_id)
        code, message = "internal_error", "something went wrong here: the log says what, under this job's id"
    log.warning("job %s: part %d of %d: %s: %s", job_id, *part, code, message)
    ended = with_retries(lambda: jobs.fail_unclaimed(storage, job_id, code, message), retry_delays)
    webhook.notify(storage, settings, ended)
    return ended


def _left(storage: Storage, job_id: str) -> Job:
    """The job that this part is not needed for any more; bands that it has kept since the job ended are deleted."""
    job = jobs.get(storage, job_id)
    if job.state.final:
        jobs.tidy(storage, job)
    return job


def _make(part: _Part, which: tuple[int, int]) -> None:
    """Everything between the job's document and the last band of the part."""
    storage, settings, job = part.storage, part.settings, part.job
    asked = options.parse(job.options, settings)
    chosen, _ = s3_models.with_local_model(asked, settings)
    version = part.with_retries(lambda: check_version(storage, job))
    header = part.with_retries(lambda: remote_file.probe(storage, job.input.key, settings))
    routing.plan(header, chosen, settings)  # what no machine can do is refused here, too
    with suppress(Unavailable):  # it is running: not only once its first tile is done
        jobs.share(storage, job.id, 0, job.progress.total, 3 * SHARE_SECONDS + settings.lease_seconds)
    with workspace() as folder, _source(part, header, version, folder / "input") as source:
        core.upscale_part(
            source,
            chosen,
            bands.keeping(storage, job, version, part.with_retries, needed=True, opened=part.opened),
            which,
            folder=folder,
            limits=options.limits(settings),
            progress=part.progress,
        )


@contextmanager
def _source(part: _Part, header: core.Probe, version: str, path: Path) -> Iterator[Path | BinaryIO]:
    """The picture: of a TIFF only what is read of it, from the store; else all of it, as a file.

    Raises:
        Replaced: it is another version by now.
    """
    storage, key = part.storage, part.job.input.key
    if header.format != "tiff":
        part.with_retries(lambda: storage.download(key, path))
        if part.with_retries(lambda: check_version(storage, part.job)) != version:
            raise Replaced
        yield path
        return
    remote = remote_file.RemoteFile(storage, key, storage.head(key).size, version)
    try:
        yield io.BufferedReader(remote, remote_file.HEADER_BYTES)
    except (core.InputError, OSError):
        if isinstance(remote.failure, Changed):
            raise Replaced from None
        if remote.failure:  # to a decoder a store that fails looks like a damaged file
            raise remote.failure from None
        raise
