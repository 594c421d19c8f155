"""Local mode: threads of the server do what Lambda does in AWS, on jobs in a local directory."""

from __future__ import annotations

import logging
import math
import os
import re
import threading
import time
from contextlib import suppress
from datetime import timedelta

from handler import archive, jobs, webhook, worker
from handler.archive import steps
from handler.archive.planning import PART_SECONDS
from handler.jobs import Backend, Job, State
from handler.servers import Server
from handler.settings import Settings
from handler.storage import LocalStorage, NotFound, Storage, StorageError
from handler.turns import Turn, TurnQueue
from handler.workspace import workspace

log = logging.getLogger(__name__)

#: Seconds between two removals of what has expired.
SWEEP_SECONDS = 3600.0
#: Seconds between two steps of archives.
STEP_SECONDS = 2.0
#: Jobs of at most so many seconds of estimated work need not wait until a long one is done: one thread is for them.
EXPRESS_SECONDS = 10.0
#: What is assumed of a picture whose header nobody has read yet: a photo of a megabyte has about three megapixels.
_SECONDS_PER_BYTE = 3e-6
_OWNER = re.compile(r"\S+ ([0-9a-f]{32}) \d+#")


class Workers:
    """Threads that work on jobs, and one that looks for jobs which a crash left behind and for what has expired.

    Args:
        storage: where the jobs are.
        settings: of the service; MAX_CONCURRENCY threads work, and one besides on short jobs.
    """

    def __init__(self, storage: Storage, settings: Settings) -> None:
        self._storage, self._settings = storage, settings
        self._queue = TurnQueue()
        self._running: dict[int, Turn] = {}
        self._stop = threading.Event()
        self._server = Server(settings.data_dir)
        self._threads = [
            threading.Thread(
                target=self._work,
                args=(number, EXPRESS_SECONDS if number == settings.max_concurrency else math.inf),
                name=f"worker-{number}",
                daemon=True,
            )
            for number in range(settings.max_concurrency + 1)
        ]
        self._threads.append(threading.Thread(target=self._look_after, name="janitor", daemon=True))
        if all(settings.archive_prefixes):
            self._threads.append(threading.Thread(target=self._take_steps, name="archives", daemon=True))

    def start(self) -> None:
        """Begin, with the jobs that are waiting in the store."""
        with workspace():  # opening one removes those of processes that were killed
            pass
        for thread in self._threads:
            thread.start()

    def put(self, job_id: str) -> None:
        """Have a queued job done. One that is put twice is done once: a second worker finds nothing to claim."""
        if job_id in self._queue:  # it need not be read again with every look for jobs
            return
        try:
            job = jobs.get(self._storage, job_id)
        except NotFound:
            return
        except StorageError:  # the janitor finds it again
            log.exception("job %s could not be read", job_id)
            return
        self._put(job)

    def queued(self) -> list[Turn]:
        """The jobs that wait or are worked on here."""
        return [*self._queue.all(), *list(self._running.values())]

    def ask_to_stop(self) -> None:
        """Take no more jobs, and hand running ones back after the tile that they are at."""
        self._stop.set()
        self._queue.close()

    def stop(self, seconds: float) -> bool:
        """Ask to stop, and wait so long for it; jobs whose tile takes longer are handed back as they are.

        Returns:
            Whether all threads have ended. Where not, Python must not end under them: see `os._exit`.
        """
        self.ask_to_stop()
        end = time.monotonic() + seconds
        for thread in self._threads:
            thread.join(max(0.0, end - time.monotonic()))
        ended = not any(thread.is_alive() for thread in self._threads)
        if not ended:
            for turn in list(self._running.values()):
                self._hand_back(turn.name)
        self._server.close()
        return ended

    def _put(self, job: Job) -> None:
        seconds = job.estimate.seconds if job.estimate else (job.input.bytes or 0) * _SECONDS_PER_BYTE
        if job.pictures:  # a part of an archive
            seconds = PART_SECONDS
        self._queue.put(Turn(job.id, job.owner, seconds, time.monotonic()))

    def _work(self, number: int, at_most: float) -> None:
        name = f"{os.uname().nodename} {self._server.name} {number}"
        while (turn := self._queue.get(time.monotonic, at_most)) is not None and not self._stop.is_set():
            self._running[number] = turn
            try:
                part = jobs.get(self._storage, turn.name).pictures is not None
                work = archive.run_part if part else worker.run_job
                work(
                    self._storage,
                    self._settings,
                    turn.name,
                    backend=Backend.BATCH if part else Backend.LAMBDA,
                    worker=name,
                    stop=self._stop.is_set,
                )
            except NotFound:
                log.info("job %s is gone", turn.name)
            except Exception:  # one job must not end the thread; the janitor finds it again
                log.exception("job %s could not be worked on", turn.name)
            finally:
                self._running.pop(number, None)

    def _look_after(self) -> None:
        swept = -SWEEP_SECONDS
        while True:
            try:
                if isinstance(self._storage, LocalStorage):
                    self._storage.check()
                # First the work: a server that was restarted goes on with it at once.
                self._look_for_jobs()
                if time.monotonic() - swept >= SWEEP_SECONDS:
                    swept = time.monotonic()
                    removed = self._storage.sweep(jobs.utc_now() - timedelta(days=self._settings.job_ttl_days))
                    if removed:
                        log.info("%d expired objects removed", removed)
            except StorageError as error:
                log.error("the store fails: %s: %s", error, error.__cause__)
            # A job whose worker hangs is free when its lease has run out, so that is how often to look.
            if self._stop.wait(self._settings.lease_seconds):
                return

    def _take_steps(self) -> None:
        """Bring archives further that were asked for over HTTP."""
        while not self._stop.wait(STEP_SECONDS):
            try:
                steps.advance_all(self._storage, self._settings, lambda job: self.put(job.id), stop=self._stop.is_set)
            except StorageError as error:
                log.error("the store fails: %s: %s", error, error.__cause__)

    def _look_for_jobs(self) -> None:
        """Put what can be claimed, and deliver the webhooks that are due."""
        now = jobs.utc_now()
        for job in jobs.every(self._storage):
            if job.state is State.RUNNING and self._owner_is_dead(job):
                job = jobs.take_back(self._storage, job)
            if jobs.claimable(job, now):
                self._put(job)
            elif job.state is State.AWAITING_UPLOAD:
                self._queue_if_uploaded(job)
            elif jobs.webhook_due(job, now) and webhook.under_way() < webhook.AT_ONCE:
                webhook.notify(self._storage, self._settings, job)

    def _owner_is_dead(self, job: Job) -> bool:
        """Whether the server that has claimed the job is known to be gone."""
        owner = _OWNER.match(job.lease.owner) if job.lease else None
        return owner is not None and self._server.is_dead(owner[1])

    def _hand_back(self, job_id: str) -> None:
        """A job that a thread of ours is still at, and whose result nobody will see."""
        with suppress(StorageError, jobs.JobError):
            job = jobs.get(self._storage, job_id)
            owner = _OWNER.match(job.lease.owner) if job.lease else None
            if owner is not None and owner[1] == self._server.name:
                jobs.take_back(self._storage, job)
                log.warning("job %s is handed back in the middle of a tile", job_id)

    def _queue_if_uploaded(self, job: Job) -> None:
        """A crash may have come between the upload and the change of the job."""
        try:
            found = self._storage.head(job.input.key)
        except NotFound:
            return
        self._put(jobs.uploaded(self._storage, job.id, size=found.size, version=found.etag))
