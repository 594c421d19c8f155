"""What the routes share: the settings, the store, and the limit of pictures in work."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from functools import cached_property
from typing import Annotated

from fastapi import Depends, Request

from handler.settings import Settings
from handler.storage import Storage, open_storage
from handler.web.guard import ConcurrencyLimiter

#: Requests that may wait for a picture in work to be finished; more are sent away with 503.
WAITING = 8


class Service:
    """One service, as `app.state.service`.

    Args:
        settings: of the service.
        storage: where pictures and jobs are kept; opened at the first request that needs it when None.
        start: called with the id of a job that is queued.

    Attributes:
        limiter: pictures that are answered with the result itself.
        previews: previews; each holds a whole picture in memory, so one at a time.
    """

    def __init__(self, settings: Settings, storage: Storage | None, start: Callable[[str], None]) -> None:
        self.settings = settings
        self.start = start
        self.limiter = ConcurrencyLimiter(settings.max_concurrency, WAITING * settings.max_concurrency)
        self.previews = ConcurrencyLimiter(1, WAITING)
        self._given = storage

    @cached_property
    def storage(self) -> Storage:
        """Where pictures and jobs are kept."""
        return self._given or open_storage(self.settings)

    @property
    def ttl(self) -> timedelta:
        """How long a job lives."""
        return timedelta(days=self.settings.job_ttl_days)


async def _service(request: Request) -> Service:
    found: Service = request.app.state.service
    return found


#: As a route's parameter: the service that it belongs to.
Shared = Annotated[Service, Depends(_service)]
