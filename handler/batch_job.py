"""What the AWS Batch container runs: python -m handler.batch_job --job ID [--parts N]

With --parts it is one of the containers of an array, which AWS_BATCH_JOB_ARRAY_INDEX counts: see `array_child`.

The exit code tells Batch whether to start the container again (`retryStrategy` of the job definition):

    0   the job has ended, well or with a reason that lies in the picture or the request, or another worker is at it
    1   the job failed for a reason that lies in the service: do not repeat, and tell whoever runs it
    2   wrong use: no such job, or settings that make no sense: do not repeat
    75  handed back after SIGTERM (a Spot instance that is taken away), or the store did not answer: repeat
    76  no GPU was found where one is required (REQUIRE_GPU): repeat, on another machine

A repetition claims the same job again; if the container before it was killed without a word, it waits until that
one's lease has run out. SIGTERM is heeded between two tiles, so the grace period must be longer than a tile takes.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from pydantic import ValidationError

from core.engine import allocator
from handler import archive, array_child, batch, jobs, logs, webhook, worker
from handler.attempt import Stopped
from handler.jobs import Backend, InvalidId, State
from handler.settings import Settings, get_settings
from handler.storage import NotFound, Storage, StorageError, open_storage

ENDED, FAILED, USAGE, REPEAT, NO_GPU = batch.ENDED, batch.FAILED, batch.USAGE, batch.REPEAT, batch.NO_GPU
#: Codes of failures that nobody outside can help.
DEFECTS = frozenset({"internal_error", "storage_unavailable", "worker_lost", "cannot_write"})

log = logging.getLogger("handler.batch_job")


def run(storage: Storage, settings: Settings, job_id: str, stopped: threading.Event) -> int:
    """Work on a job until it has ended or `stopped` is set; the exit code, as above.

    Raises:
        storage.StorageError, jobs.InvalidId.
    """
    batch_job_id = os.environ.get("AWS_BATCH_JOB_ID")
    work = archive.run_part if jobs.get(storage, job_id).pictures else worker.run_job
    while True:
        job = work(
            storage,
            settings,
            job_id,
            backend=Backend.BATCH,
            worker=f"batch-{batch_job_id or os.getpid()}-{os.environ.get('AWS_BATCH_JOB_ATTEMPT', '1')}",
            stop=stopped.is_set,
            batch_job_id=batch_job_id,
        )
        if job is not None:
            break
        try:
            if not worker.wait_until_claimable(storage, job_id, stop=stopped.is_set):
                job = jobs.get(storage, job_id)
                break
        except TimeoutError:
            return REPEAT
    webhook.wait()
    if job.state is State.QUEUED and job.backend is Backend.BATCH:
        return REPEAT
    return FAILED if job.error and job.error.code in DEFECTS else ENDED


def run_part(storage: Storage, settings: Settings, job_id: str, parts: int, stopped: threading.Event) -> int:
    """Make this container's part of a picture; the exit code, as above.

    Raises:
        storage.StorageError, jobs.InvalidId.
    """
    which = int(os.environ.get("AWS_BATCH_JOB_ARRAY_INDEX", "0"))
    try:
        job = array_child.run_part(storage, settings, job_id, (which, parts), stop=stopped.is_set)
    except Stopped:
        return REPEAT
    webhook.wait()
    return FAILED if job.error and job.error.code in DEFECTS else ENDED


def gpu_is_missing() -> str:
    """Why torch has no GPU here; empty where it has one. The driver's version is for whoever reads the log."""
    import torch

    if torch.cuda.is_available():
        return ""
    try:
        driver = Path("/proc/driver/nvidia/version").read_text().splitlines()[0]
    except OSError:
        driver = "there is no driver"
    return f"torch {torch.__version__} (CUDA {torch.version.cuda or 'none'}) finds no GPU: {driver}"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line.

    Returns:
        The exit code.
    """
    allocator.share_heap()
    parser = argparse.ArgumentParser(prog="python -m handler.batch_job", description="Work on one job in AWS Batch.")
    parser.add_argument("--job", required=True, metavar="ID", help="the job's id, a UUID")
    parser.add_argument("--parts", type=int, default=1, metavar="N", help="make one of so many parts of its picture")
    given = parser.parse_args(arguments)
    id, parts = given.job, given.parts
    try:
        settings = get_settings()
    except ValidationError as error:
        print(error, file=sys.stderr)
        return USAGE
    logs.setup(settings.log_level)
    if settings.require_gpu and (why := gpu_is_missing()):
        log.error("%s", why)
        return NO_GPU
    stopped = threading.Event()

    def stop(_number: int, _frame: FrameType | None) -> None:
        stopped.set()  # and nothing else: it interrupts whatever the main thread is at

    signal.signal(signal.SIGTERM, stop)
    try:
        if parts > 1:
            return run_part(open_storage(settings), settings, id, parts, stopped)
        return run(open_storage(settings), settings, id, stopped)
    except (InvalidId, NotFound) as error:
        log.error("%s", error)
        return USAGE
    except StorageError:
        log.exception("the store does not answer")
        return REPEAT


if __name__ == "__main__":
    sys.exit(main())
