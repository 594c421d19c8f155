"""Finished bands of a job's result, kept in the store under `work/<id>/` until the job has ended.

    work/<id>/<key>/000012.band

The key names all that a band depends on, so that bands of another version of the input, of other options or of another
kind of machine are not found. Whoever ends the job deletes them (`jobs.changes`), and what is left has a lifecycle rule
of its own.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import core
from handler import jobs
from handler.jobs import Job
from handler.storage import NotFound, Storage, StorageError

log = logging.getLogger(__name__)
T = TypeVar("T")

CONTENT_TYPE = "application/octet-stream"


class Repeat(Protocol):
    """Makes a call of the store, more than once where that helps."""

    def __call__(self, action: Callable[[], Any], /) -> Any:
        """What the call gives."""


@dataclass(frozen=True)
class JobBands:
    """The bands of one result: a `core.BandStore`.

    Attributes:
        storage: where they are.
        prefix: of their keys.
        count: how many there will be.
        repeat: makes each call of the store.
        needed: whether a band that cannot be kept ends the run; else it is only worked for again, should that be
            interrupted.
    """

    storage: Storage
    prefix: str
    count: int
    repeat: Repeat
    needed: bool

    def names(self) -> list[str]:
        """See `core.BandStore`. Raises: storage.StorageError, as the next two."""

        def look() -> list[str]:
            return [found.key.removeprefix(self.prefix) for found in self.storage.list(self.prefix)]

        found: list[str] = self.repeat(look)
        return found

    def read(self, name: str) -> bytes | None:
        """See `core.BandStore`."""
        try:
            found: bytes = self.repeat(lambda: self.storage.get(self.prefix + name)[0])
        except NotFound:
            return None
        return found

    def write(self, name: str, data: bytes) -> None:
        """See `core.BandStore`."""
        if self.needed:
            self.repeat(lambda: self.storage.put(self.prefix + name, data, CONTENT_TYPE))
            return
        try:
            self.storage.put(self.prefix + name, data, CONTENT_TYPE)
        except StorageError:  # and the work does not wait until it could be
            log.warning("band %s%s is not kept", self.prefix, name, exc_info=True)


def keeping(
    storage: Storage,
    job: Job,
    version: str,
    repeat: Repeat,
    *,
    needed: bool = False,
    opened: Callable[[JobBands], object] = lambda _: None,
) -> core.Keeping:
    """Where the core keeps the bands of a job.

    Args:
        storage: where jobs are.
        job: whose result it is.
        version: ETag of the input.
        repeat: makes each call of the store.
        needed: as in `JobBands`.
        opened: is given the store once it is known which bands it is for.
    """

    def open(key: str, count: int) -> JobBands:
        found = JobBands(storage, f"{jobs.work_prefix(job.id)}{key[:32]}/", count, repeat, needed)
        opened(found)
        return found

    # What several machines make is put together whatever cards they have. Their array may begin before its id is known.
    shared = job.batch_array_id is not None or needed
    return core.Keeping(open, version.strip('"'), anywhere=shared)
