"""What the routes share: the settings, the store, and the limit of pictures in work."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import Counter
from collections.abc import Callable
from datetime import timedelta
from functools import cached_property
from typing import Annotated

from anyio import CapacityLimiter
from fastapi import Depends, Request

from handler.settings import Settings
from handler.storage import LocalStorage, Storage, StorageError, open_storage
from handler.turns import LEAST_SECONDS, Turn, seconds_until_room
from handler.web.limiter import ConcurrencyLimiter
from handler.web.problems import Problem

log = logging.getLogger(__name__)

#: Seconds between two looks at whether the store works.
CHECK_SECONDS = 2.0
#: Requests that wait for the download of a model at the same time.
DOWNLOADS = 4
#: Who may follow jobs by events at the same time; one client a quarter of them. Each holds a connection.
LISTENERS = 128
#: Previews that may wait for the one in work.
PREVIEWS = 16
#: Pictures that are fetched by their URL at the same time, and that may wait for that: no more threads hang on servers
#: of strangers.
FETCHES, FETCHES_WAITING = 4, 16


class Service:
    """One service, as `app.state.service`.

    Args:
        settings: of the service.
        storage: where pictures and jobs are kept; opened at the first request that needs it when None.
        start: called with the id of a job that is queued.

    Attributes:
        stopping: set when the server ends: nobody may be kept waiting then.
        downloads: threads that wait for models.
        headers: threads that have headers read, each by a process that may hold much of the file in memory.
        queued: gives the jobs that wait or are worked on here; nothing where something else counts them.
        listeners: by client, who follows a job by events; at most `most_listeners` together.
        limiter: pictures that are answered with the result itself.
        previews: previews; each holds a whole picture in memory, so one at a time.
        fetches: pictures that are fetched by their URL.
        json: the thread that reads JSON bodies with pictures in them, which takes memory: one at a time.
    """

    def __init__(self, settings: Settings, storage: Storage | None, start: Callable[[str], None]) -> None:
        self.settings = settings
        self.start = start
        self.queued: Callable[[], list[Turn]] = list
        self.limiter = ConcurrencyLimiter(settings.max_concurrency, settings.queue_seconds)
        self.previews = ConcurrencyLimiter(1, PREVIEWS, express=0)
        self.fetches = ConcurrencyLimiter(FETCHES, FETCHES_WAITING / FETCHES, express=0)
        self.json = CapacityLimiter(1)
        self.stopping = threading.Event()
        self.downloads = CapacityLimiter(DOWNLOADS)
        self.headers = CapacityLimiter(settings.max_concurrency + 1)
        self.listeners: Counter[str] = Counter()
        self.most_listeners = LISTENERS
        self._given = storage
        self._checking = threading.Lock()
        self._check_again, self._works = 0.0, True

    @cached_property
    def storage(self) -> Storage:
        """Where pictures and jobs are kept."""
        return self._given or open_storage(self.settings)

    def check_jobs(self, client: str, seconds: float = LEAST_SECONDS) -> None:
        """Whether one more job may be queued on this machine.

        Args:
            client: whose it is.
            seconds: of estimated work.

        Raises:
            Problem (busy): with the seconds after which there is room.
        """
        most, places = self.settings.job_queue_seconds, self.settings.max_concurrency
        wait = seconds_until_room(self.queued(), client, seconds, in_all=most * places, places=places)
        if wait:
            later = str(math.ceil(wait))
            raise Problem("busy", f"too many jobs are queued: try again in {later} s", {"Retry-After": later})

    def check_listeners(self, client: str) -> None:
        """Whether one more may follow a job by events.

        Raises:
            Problem (busy).
        """
        most = self.most_listeners
        if self.listeners.total() >= most or self.listeners[client] >= max(1, most // 4):
            raise Problem("busy", "too many follow jobs at the moment: ask for the job itself", {"Retry-After": "5"})

    def storage_works(self) -> bool:
        """Whether the directory of local mode can be written to; looked at every few seconds at most."""
        with self._checking:
            if time.monotonic() >= self._check_again:
                try:
                    if isinstance(self.storage, LocalStorage):
                        self.storage.check()
                    self._works = True
                except StorageError as error:
                    log.error("the store fails: %s: %s", error, error.__cause__)
                    self._works = False
                    self.__dict__.pop("storage", None)
                self._check_again = time.monotonic() + CHECK_SECONDS
            return self._works

    @property
    def ttl(self) -> timedelta:
        """How long a job lives."""
        return timedelta(days=self.settings.job_ttl_days)


def client_of(request: Request) -> str:
    """Whose request it is: the key that came with it, else the address."""
    return getattr(request.state, "owner", "") or (request.client.host if request.client else "")


async def _service(request: Request) -> Service:
    found: Service = request.app.state.service
    return found


#: As a route's parameter: the service that it belongs to.
Shared = Annotated[Service, Depends(_service)]
