"""A file appears under its name when it is complete, and not before."""

from __future__ import annotations

import io
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
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
        stream = part.open("wb")
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
