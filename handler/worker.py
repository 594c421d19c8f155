"""Work on one job, wherever that is: in the HTTP process, in Lambda, or in a Batch container.

    claim -> read the header -> estimate and route -> download -> core.upscale -> store the result -> end -> webhook

A worker may die at any of these arrows. What it leaves is a lease that runs out, perhaps a result that no document
names (the next try deletes it), and a working folder that nobody holds (the next worker's `workspace` deletes it).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from pydantic import JsonValue

import core
from handler.jobs import Backend, Job
from handler.settings import Settings
from handler.storage import Storage

#: Seconds to wait before each repetition of a storage call, on top of the store's own retries.
PAUSES = (1.0, 4.0, 16.0)


def notify(storage: Storage, settings: Settings, job: Job) -> object:
    """Start the delivery of a final job's webhook in the background; nothing where it has none."""
    raise NotImplementedError


def run_job(
    storage: Storage,
    settings: Settings,
    job_id: str,
    *,
    backend: Backend,
    worker: str,
    stop: Callable[[], bool] = lambda: False,
    seconds: float = math.inf,
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
        stop: asked between tiles; True hands the job back as queued.
        seconds: that the work may take here; a job estimated to take longer is moved on.
        notify: called with a job that has reached its final state.
        pauses: seconds before each repetition of a storage call.

    Returns:
        The job as it was left: succeeded, failed, cancelled, or queued (handed back, or moved on to another backend).
        None when there was nothing to do (it is final, another worker holds it, it is meant for another backend), or
        when another worker took it over.

    Raises:
        storage.NotFound: no such job.
        storage.Unavailable: the store fails so long that not even the failure could be written. The lease runs out,
            so calling again later is right.
    """
    raise NotImplementedError


def core_options(settings: Settings, options: Mapping[str, JsonValue]) -> core.Options:
    """A request's options, by the names of `core.Options`, with the settings' defaults where it names none.

    Raises:
        core.OptionsError: an unknown name, a value of a wrong type or outside its range.
    """
    raise NotImplementedError


def limits(settings: Settings) -> core.Limits:
    """What is refused before any work."""
    return core.Limits(settings.max_upload_bytes, settings.max_pixels, settings.max_output_pixels)


def result_name(name: str, options: core.Options, format: str) -> str:
    """photo.jpg becomes photo-x2.jpg; in another format, photo-x2.png."""
    raise NotImplementedError


@contextmanager
def workspace() -> Iterator[Path]:
    """A temporary folder of this process's own, removed at the end; those of processes that were killed are, too."""
    raise NotImplementedError
    yield
