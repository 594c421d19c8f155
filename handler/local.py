"""Local mode: threads of the server do what Lambda does in AWS, on jobs in a local directory."""

from __future__ import annotations

import logging
import os
import queue
import threading
import time
from datetime import timedelta

from handler import jobs, webhook, worker
from handler.jobs import Backend, State
from handler.settings import Settings
from handler.storage import NotFound, Storage, StorageError
from handler.workspace import workspace

log = logging.getLogger(__name__)

#: Seconds between two removals of what has expired.
SWEEP_SECONDS = 3600.0


class Workers:
    """Threads that work on jobs, and one that looks for jobs which a crash left behind and for what has expired.

    Args:
        storage: where the jobs are.
        settings: of the service; MAX_CONCURRENCY threads work.
    """

    def __init__(self, storage: Storage, settings: Settings) -> None:
        self._storage, self._settings = storage, settings
        self._queue: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._queued: set[str] = set()
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._work, args=(number,), name=f"worker-{number}", daemon=True)
            for number in range(settings.max_concurrency)
        ]
        self._threads.append(threading.Thread(target=self._look_after, name="janitor", daemon=True))

    def start(self) -> None:
        """Begin, with the jobs that are waiting in the store."""
        with workspace():  # opening one removes those of processes that were killed
            pass
        for thread in self._threads:
            thread.start()

    def put(self, job_id: str) -> None:
        """Have a queued job done. One that is put twice is done once: a second worker finds nothing to claim."""
        if job_id not in self._queued:  # a long queue does not grow with every look for jobs
            self._queued.add(job_id)
            self._queue.put(job_id)

    def stop(self, seconds: float) -> None:
        """Hand running jobs back after the tile that they are at, and wait so long for it."""
        self._stop.set()
        for _ in self._threads:
            self._queue.put(None)
        end = time.monotonic() + seconds
        for thread in self._threads:
            thread.join(max(0.0, end - time.monotonic()))

    def _work(self, number: int) -> None:
        name = f"{os.uname().nodename} {os.getpid()} {number}"
        while (job_id := self._queue.get()) is not None and not self._stop.is_set():
            self._queued.discard(job_id)
            try:
                worker.run_job(
                    self._storage,
                    self._settings,
                    job_id,
                    backend=Backend.LAMBDA,
                    worker=name,
                    stop=self._stop.is_set,
                )
            except NotFound:
                log.info("job %s is gone", job_id)
            except Exception:  # one job must not end the thread; the janitor finds it again
                log.exception("job %s could not be worked on", job_id)

    def _look_after(self) -> None:
        swept = -SWEEP_SECONDS
        while True:
            try:
                if time.monotonic() - swept >= SWEEP_SECONDS:
                    swept = time.monotonic()
                    removed = self._storage.sweep(jobs.utc_now() - timedelta(days=self._settings.job_ttl_days))
                    if removed:
                        log.info("%d expired objects removed", removed)
                self._look_for_jobs()
            except StorageError:
                log.exception("the store could not be looked through")
            # A job of a process that died is free when its lease has run out, so that is how often to look.
            if self._stop.wait(self._settings.lease_seconds):
                return

    def _look_for_jobs(self) -> None:
        """Put what can be claimed, and deliver the webhooks that are due."""
        now = jobs.utc_now()
        for job in jobs.every(self._storage):
            if jobs.claimable(job, now):
                self.put(job.id)
            elif job.state is State.AWAITING_UPLOAD:
                self._queue_if_uploaded(job)
            elif jobs.webhook_due(job):
                webhook.notify(self._storage, self._settings, job)

    def _queue_if_uploaded(self, job: jobs.Job) -> None:
        """A crash may have come between the upload and the change of the job."""
        try:
            found = self._storage.head(job.input.key)
        except NotFound:
            return
        jobs.uploaded(self._storage, job.id, size=found.size, version=found.etag)
        self.put(job.id)
