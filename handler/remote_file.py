"""A stored object as a seekable file, to read a picture's header without its pixels."""

from __future__ import annotations

import io
import os
from dataclasses import replace

import core
from core.codecs import jpeg
from handler.options import limits
from handler.settings import Settings
from handler.storage import Storage, StorageError

#: Bytes of the first ranged read; headers are mostly within it.
HEADER_BYTES = 64 * 1024
_MOST_AT_ONCE = 8 * 1024 * 1024


def probe(storage: Storage, key: str, settings: Settings) -> core.Probe:
    """The header of a stored picture, by ranged reads.

    Raises:
        core.InputError: as `core.probe`.
        storage.StorageError: as `Storage.read_range`.
    """
    remote = RemoteFile(storage, key, storage.head(key).size)
    allowed = limits(settings)
    try:
        stream = io.BufferedReader(remote, HEADER_BYTES)
        # A decoder looks for the end of a JPEG, which says nothing of its size.
        if remote.size <= allowed.input_bytes and (header := jpeg.header_alone(stream)) is not None:
            return replace(core.probe(header, allowed), bytes=remote.size)
        stream.seek(0)
        return core.probe(stream, allowed)
    except (core.InputError, OSError):
        if remote.failure:  # to a decoder a store that fails looks like a damaged file
            raise remote.failure from None
        raise


class RemoteFile(io.RawIOBase):
    """A stored object as a seekable file, so that a decoder fetches only what it looks at.

    Reads that follow each other fetch twice as much each time: a header costs one small request, a format whose
    decoder wants the whole file a few large ones.

    Args:
        storage: where the object is.
        key: of the object.
        size: of the object in bytes.
        etag: of the version that is read, and no other; empty for whatever is there.

    Attributes:
        size: of the object in bytes.
        failure: why the last read failed, None while none has.
    """

    def __init__(self, storage: Storage, key: str, size: int, etag: str = "") -> None:
        self.failure: StorageError | None = None
        self._storage, self._key, self.size, self._etag = storage, key, size, etag
        self._at = 0
        self._start, self._block, self._next = 0, b"", HEADER_BYTES

    def readable(self) -> bool:
        """True."""
        return True

    def seekable(self) -> bool:
        """True."""
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move, as in any file; asks nothing of the store."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self.size}[whence]
        self._at = max(0, base + offset)
        return self._at

    def tell(self) -> int:
        """Where the next read begins."""
        return self._at

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        """Fill the buffer from the block at hand, or from a new one.

        Raises:
            OSError, with the cause in `failure`.
        """
        if not self._start <= self._at < self._start + len(self._block):
            if self._at >= self.size:
                return 0
            if self._at != self._start + len(self._block):  # elsewhere: perhaps only a little
                self._next = HEADER_BYTES
            wanted = max(self._next, len(buffer))
            try:
                self._block = self._storage.read_range(self._key, self._at, wanted, self._etag)
            except StorageError as error:
                self.failure = error
                raise OSError("the store failed") from error
            self._start, self._next = self._at, min(2 * self._next, _MOST_AT_ONCE)
        offset = self._at - self._start
        data = self._block[offset : offset + len(buffer)]
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)
