"""What the tests of jobs share: a request, a clock, and short ways to a job in some state."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

from handler import jobs
from handler.jobs import Job, Request, StoredFile
from handler.storage import Changed, Exists, Storage, Unavailable

TTL = timedelta(days=7)
REQUEST = Request(filename="photo.jpg", content_type="image/jpeg", bytes=1000, options={"scale": 2})
LEASE = 60.0


class Time:
    """A clock that moves when told to."""

    def __init__(self) -> None:
        self.now = datetime(2030, 1, 1, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)


def queued(storage: Storage, clock: jobs.Clock = jobs.utc_now, **request: Any) -> str:
    """A job that waits for a worker; its id."""
    job = jobs.create(storage, REQUEST.model_copy(update=request), ttl=TTL, clock=clock)
    jobs.uploaded(storage, job.id, clock=clock)
    return job.id


def claimed(storage: Storage, id: str, clock: jobs.Clock = jobs.utc_now) -> Job:
    job = jobs.claim(storage, id, "worker", LEASE, clock=clock)
    assert job is not None
    return job


def written(storage: Storage, job: Job, data: bytes = b"result") -> StoredFile:
    """A result, stored as a worker does."""
    key = jobs.result_key(job, "photo-x2.png")
    storage.put(key, data, "image/png")
    return StoredFile(key=key, name="photo-x2.png", content_type="image/png", bytes=len(data))


def results(storage: Storage, id: str) -> list[str]:
    return [found.key for found in storage.list(f"results/{id}/")]


class Trouble:
    """A store in which chosen calls go wrong. `plan(name, number)` is asked before each call (numbered from 0).

    It may return "lie" (the write is done, and reported as having come second), "after" (done, then the worker dies),
    "before" (the worker dies first), "down" (not done, store unavailable), "deaf" (done, and reported as down).
    """

    class Killed(BaseException):
        """The process ends here."""

    def __init__(self, storage: Storage, plan: Callable[[str, int], str | None] = lambda *_: None) -> None:
        self._storage = storage
        self.plan = plan
        self.calls: list[str] = []

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._storage, name)
        if not callable(method):
            return method

        def call(*args: Any, **kwargs: Any) -> Any:
            what = self.plan(name, len(self.calls))
            self.calls.append(name)
            if what == "before":
                raise Trouble.Killed
            if what == "down":
                raise Unavailable("down")
            value = method(*args, **kwargs)
            if what == "after":
                raise Trouble.Killed
            if what == "lie":
                raise (Exists if name == "create" else Changed)("not you")
            if what == "deaf":
                raise Unavailable("no answer")
            return value

        return call


def worker_calls(storage: Storage, job: Job, output: StoredFile, clock: Time) -> list[Callable[[], object]]:
    """Everything that only the holder of a claim may do."""
    return [
        lambda: jobs.renew(storage, job, LEASE, clock=clock),
        lambda: jobs.progress(storage, job, 1, 2, clock=clock),
        lambda: jobs.release(storage, job, clock=clock),
        lambda: jobs.fail(storage, job, "code", "message", clock=clock),
        lambda: jobs.succeed(storage, job, output, model_used="m", clock=clock),
    ]
