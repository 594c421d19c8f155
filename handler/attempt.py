"""One claim of one job: what its worker was given, when it has to stop, and calls of the store that are repeated."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from handler import jobs
from handler.settings import Settings
from handler.storage import Storage, Unavailable

log = logging.getLogger(__name__)
T = TypeVar("T")

#: Seconds before each repetition of a storage call, on top of the store's own retries.
RETRY_DELAYS = (1.0, 4.0, 16.0)


class Stopped(Exception):
    """The worker was asked to stop, or has not the time."""


@dataclass(frozen=True)
class Attempt:
    """One claim of one job.

    Attributes:
        storage: where jobs and pictures are.
        settings: of the service.
        leased: the job.
        stop: asked between tiles; True hands the job back.
        batch_job_id: the AWS Batch job that this is part of.
        retry_delays: seconds before each repetition of a storage call.
    """

    storage: Storage
    settings: Settings
    leased: jobs.LeasedJob
    stop: Callable[[], bool]
    batch_job_id: str | None
    retry_delays: Sequence[float]

    def check(self) -> None:
        """Whether to go on.

        Raises:
            jobs.Lost, jobs.Cancelled, Stopped: not.
        """
        self.leased.check()
        if self.stop():
            raise Stopped

    def with_retries(self, action: Callable[[], T]) -> T:
        """A storage call, repeated while the job is ours."""
        return with_retries(action, self.retry_delays, self.check)


def with_retries(action: Callable[[], T], retry_delays: Sequence[float], check: Callable[[], None] = lambda: None) -> T:
    """Repeat a call while the store is unavailable. `check` may raise in between, to give up early."""
    for pause in retry_delays:
        try:
            return action()
        except Unavailable as error:
            log.warning("%s; again in about %g s", error, pause)
        time.sleep(pause * random.uniform(0.5, 1.5))  # noqa: S311 - so that many workers do not return at once
        check()
    return action()
