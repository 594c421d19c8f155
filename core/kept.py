"""Finished bands of a result, kept beside it until it is complete, so that an interrupted run goes on where it was.

They lie in a hidden folder, `.name.part`, with a key of everything that they depend on. With another key (the input,
the options or the model changed) they are of no use and are removed. A band appears under its name when it is
complete, and is used only if its checksum is right.
"""

from __future__ import annotations

import hashlib
import os
import re
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from core.atomic import locked
from core.errors import InputError

Samples = npt.NDArray[Any]

_HEAD = struct.Struct(">4sIIIBBI")  # signature, index, rows, width, channels, bytes of a sample, checksum
_SIGNATURE = b"band"
_OURS = re.compile(r"\d{6}\.band(\.new)?|key(\.new)?|lock")
_LEVEL = 1  # of deflate: a band is read once, and by most runs never


class KeptBands:
    """The kept bands of one result.

    Attributes:
        count: bands that are there, from the first on without a gap.
        rows: of the result that they hold.
    """

    def __init__(self, folder: Path) -> None:
        """Args: folder: of bands that have the right key."""
        self._folder = folder
        self._full = False  # nothing more can be kept
        self.count = self.rows = 0
        while (band := self._packed(self.count)) is not None:
            self.rows += band[0][0]
            self.count += 1

    def load(self, index: int) -> Samples:
        """One of the first `count` bands: (rows, width, channels), uint8 or uint16."""
        found = self._packed(index)
        if found is None:
            raise OSError(f"a finished band is gone from {self._folder}: run it again")
        (rows, width, channels, size), packed = found
        return np.frombuffer(zlib.decompress(packed), f"u{size}").reshape(rows, width, channels)

    def save(self, index: int, band: Samples) -> None:
        """Keep a band. Where that cannot be done (a full disk), nothing is kept from here on."""
        if self._full:
            return
        packed = zlib.compress(np.ascontiguousarray(band).data, _LEVEL)
        numbers = (index, *band.shape, band.dtype.itemsize)
        head = _HEAD.pack(_SIGNATURE, *numbers, zlib.crc32(packed, zlib.crc32(repr(numbers).encode())))
        try:
            _write(self._path(index), head + packed)
        except OSError:
            self._full = True
            with suppress(OSError):
                self._path(index).with_suffix(".band.new").unlink(missing_ok=True)

    def _path(self, index: int) -> Path:
        return self._folder / f"{index:06}.band"

    def _packed(self, index: int) -> tuple[tuple[int, int, int, int], bytes] | None:
        try:
            data = self._path(index).read_bytes()
        except OSError:
            return None
        if len(data) < _HEAD.size:
            return None
        signature, *numbers, checksum = _HEAD.unpack_from(data)
        packed = data[_HEAD.size :]
        right = zlib.crc32(packed, zlib.crc32(repr(tuple(numbers)).encode())) == checksum
        if signature != _SIGNATURE or numbers[0] != index or not right:
            return None
        return (numbers[1], numbers[2], numbers[3], numbers[4]), packed


@contextmanager
def kept_bands(target: Path, key: str) -> Iterator[KeptBands | None]:
    """The bands that an earlier run for the same result kept, and a place for more.

    The folder is removed when the caller is done, and stays when it was interrupted.

    Args:
        target: the file that will be made.
        key: of all that the bands depend on; see `key_of`.

    Yields:
        The bands, or None where nothing can be kept: the folder cannot be written, or another run is at work in it.
    """
    target = Path(os.path.realpath(target))
    start = os.fsdecode(os.fsencode(target.name)[:200])  # a name ends at 255 bytes, not characters
    folder = target.with_name(f".{start}.part")
    try:
        folder.mkdir(exist_ok=True)
        lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError:
        yield None
        return
    try:
        if not locked(lock):
            yield None
            return
        try:
            if not _has_key(folder, key):
                _empty(folder)
                _write(folder / "key", key.encode())
            bands = KeptBands(folder)
        except OSError:
            yield None
            return
        try:
            yield bands
        except InputError:  # the picture is at fault: there is nothing to go on with
            _remove(folder)
            raise
        _remove(folder)
    finally:
        os.close(lock)


def key_of(*facts: object) -> str:
    """A key of facts that have a stable `repr`."""
    return hashlib.sha256(repr(facts).encode()).hexdigest()


def _has_key(folder: Path, key: str) -> bool:
    try:
        return (folder / "key").read_bytes() == key.encode()
    except OSError:
        return False


def _remove(folder: Path) -> None:
    """Remove the folder, unless something is in it that this program did not make."""
    with suppress(OSError):
        _empty(folder)
        (folder / "lock").unlink(missing_ok=True)
        folder.rmdir()


def _empty(folder: Path) -> None:
    """Remove what this program made, but for the lock."""
    for path in folder.iterdir():
        if _OURS.fullmatch(path.name) and path.name != "lock":
            path.unlink(missing_ok=True)


def _write(path: Path, data: bytes) -> None:
    new = path.with_name(f"{path.name}.new")
    new.write_bytes(data)
    new.replace(path)
