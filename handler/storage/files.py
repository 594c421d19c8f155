"""How the local store lays keys on disk, and what the system's errors become."""

from __future__ import annotations

import errno
import mimetypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import cache
from pathlib import Path, PurePosixPath
from urllib.parse import quote, unquote

from handler.storage.base import InvalidKey, NotFound, ObjectInfo, Unavailable

#: Longer names are cut into folders; file systems take 255 bytes.
_NAME_BYTES = 200


def encode(key: str) -> Path:
    """The relative path of a key. Reversible: `+` occurs in no encoded name, so it can mark a name that goes on."""
    pieces = []
    for part in key.split("/"):
        name = quote(part, safe="")
        while len(name) > _NAME_BYTES:
            pieces.append(name[:_NAME_BYTES] + "+")
            name = name[_NAME_BYTES:]
        pieces.append(name)
    # What a cut leaves may begin with a dot too, or be "..".
    return Path(*("%2E" + piece[1:] if piece.startswith(".") else piece for piece in pieces))


def decode(path: Path) -> str:
    """The key of a relative path."""
    return unquote("/".join(path.parts).replace("+/", ""))


def etag_of(status: os.stat_result) -> str:
    """The mark of a file's content: another after each write."""
    return f'"{status.st_ino:x}-{status.st_mtime_ns:x}-{status.st_size:x}"'


def info_of(key: str, status: os.stat_result) -> ObjectInfo:
    """What is known of an object from its file."""
    return ObjectInfo(key, status.st_size, etag_of(status), datetime.fromtimestamp(status.st_mtime, UTC))


@cache
def _types() -> mimetypes.MimeTypes:
    return mimetypes.MimeTypes()  # Python's own table, and not the files of the machine, which could change


def guess_type(key: str) -> str:
    """The media type that a key's suffix tells."""
    return _types().guess_type("x" + PurePosixPath(key).suffix)[0] or "application/octet-stream"


def move_synced(source: Path, target: Path) -> None:
    """Move a synced file to its place, so that a power cut leaves the old or the new one."""
    while True:
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            source.replace(target)
        except FileNotFoundError:
            if not source.exists():
                raise
            continue  # a deletion took the empty folder away
        folder = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
        return


@contextmanager
def os_errors(key: str, *, writing: bool = False) -> Iterator[None]:
    """Turn the system's errors into ours."""
    try:
        yield
    except OSError as error:
        if isinstance(error, (FileExistsError, NotADirectoryError, IsADirectoryError)) and writing:
            raise InvalidKey(f"{key!r} would be an object and a folder at once") from error
        if isinstance(error, (FileNotFoundError, NotADirectoryError, IsADirectoryError)) and not writing:
            raise NotFound(f"nothing is stored under {key!r}") from error
        if error.errno == errno.ENAMETOOLONG:
            raise InvalidKey("the key is too long for this directory") from error
        raise Unavailable(f"the store failed: {error.strerror}") from error
