"""A file appears under its name when it is complete, and not before."""

from __future__ import annotations

import io
import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from core.errors import OutputError, describe


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """A file that appears under its name only when it is complete; nothing is left behind on failure.

    What is no file (a device, a pipe) is written to, and links are followed.

    Raises:
        OutputError: the directory is missing or not writable, or the disk is full.
    """
    path = Path(os.path.realpath(path))
    if path.exists() and not path.is_file() and not path.is_dir():
        buffer = io.BytesIO()
        yield buffer
        try:
            with path.open("wb") as stream:
                stream.write(buffer.getbuffer())
        except OSError as error:
            raise OutputError(f"cannot write {path}: {describe(error)}") from error
        return
    # A name ends at 255 bytes, not characters.
    start = os.fsdecode(os.fsencode(path.name)[:200])
    part = path.with_name(f".{start}.{os.getpid()}-{threading.get_ident():x}.part")
    try:
        _remove_abandoned(path.parent, start)
        stream = part.open("wb")
        locked(stream.fileno())
    except (OSError, ValueError) as error:
        raise OutputError(f"cannot write to {path.parent}: {describe(error)}") from error
    try:
        with stream:
            yield stream
        part.replace(path)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {describe(error)}") from error
    finally:
        part.unlink(missing_ok=True)


def locked(descriptor: int) -> bool:
    """Take a file for this process; False when another has it.

    The system lets go of it when the process ends, however that is.
    """
    try:
        import fcntl
    except ImportError:  # Windows: two runs for one file are the user's own affair there
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _remove_abandoned(folder: Path, start: str) -> None:
    """Remove what runs for the same file left behind when they were killed; nobody has it locked any more."""
    ours = re.compile(re.escape(f".{start}.") + r"\d+-[0-9a-f]+\.part")
    if os.name == "nt":
        return
    for other in folder.iterdir():
        if ours.fullmatch(other.name):
            with suppress(OSError), other.open("rb") as stream:
                if locked(stream.fileno()):
                    other.unlink()
