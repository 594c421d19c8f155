"""Finished bands of a result, kept until it is complete, so that an interrupted run goes on where it was.

They lie in a `BandStore`, with a key of everything that they depend on: of a file in a hidden folder beside it,
`.name.part` (with another key the bands in it are of no use and are removed); of a service wherever it says. A band is
used only if its checksum is right.
"""

from __future__ import annotations

import hashlib
import os
import re
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from core.atomic import locked
from core.errors import InputError
from core.limits import free_bytes

Samples = npt.NDArray[Any]

_HEAD = struct.Struct(">4sIIIBBI")  # signature, index, rows, width, channels, bytes of a sample, checksum
_SIGNATURE = b"band"
_NAME = re.compile(r"(\d{6})\.band")
_OURS = re.compile(r"\d{6}\.band(\.new)?|key(\.new)?|lock")
_LEVEL = 1  # of deflate: a band is read once, and by most runs never


class BandStore(Protocol):
    """Where bands lie, each under a name. What it loses is made again; half of one must never be there.

    Whatever it raises besides OSError ends the run as it is.
    """

    def names(self) -> Iterable[str]:
        """Of all that is there. Raises: OSError."""

    def read(self, name: str) -> bytes | None:
        """What lies under a name; None for nothing, or where it cannot be read."""

    def write(self, name: str, data: bytes) -> None:
        """Put it there in place of what was. Raises: OSError: it cannot; nothing more is kept then."""


@dataclass(frozen=True)
class Keeping:
    """Where whoever runs the core keeps the bands of one result, in place of a folder beside it.

    Attributes:
        open: the store of the bands that have this key, given how many there will be; it is called once.
        version: names the version of the input, such as an ETag: times of files differ from machine to machine.
        anywhere: whether bands are taken that a machine of another kind has made, so that a few numbers may differ by
            one grey level from those of one machine.
    """

    open: Callable[[str, int], BandStore]
    version: str
    anywhere: bool = False


class KeptBands:
    """The kept bands of one result, from which some may be missing."""

    def __init__(self, store: BandStore, room: bool = True) -> None:
        """Args: store: of bands that have the right key; room: whether there is any for more. Raises: OSError."""
        self._store = store
        self._full = not room  # nothing more can be kept
        self._there = {int(found[1]) for name in store.names() if (found := _NAME.fullmatch(name))}

    def __contains__(self, index: int) -> bool:
        """Whether there is a band of this number; `load` says whether it is of use."""
        return index in self._there

    def load(self, index: int) -> Samples | None:
        """A band: (rows, width, channels), uint8 or uint16. None where it is missing or damaged."""
        data = self._store.read(_name(index)) if index in self._there else None
        if data is None or len(data) < _HEAD.size:
            return None
        signature, *numbers, checksum = _HEAD.unpack_from(data)
        packed = memoryview(data)[_HEAD.size :]
        right = zlib.crc32(packed, zlib.crc32(repr(tuple(numbers)).encode())) == checksum
        if signature != _SIGNATURE or numbers[0] != index or not right:
            return None
        _, rows, width, channels, size = numbers
        rises = np.frombuffer(zlib.decompress(packed), f"<u{size}").reshape(rows, width, channels)
        return np.cumsum(rises, axis=0, dtype=f"u{size}")

    def save(self, index: int, band: Samples) -> None:
        """Keep a band. Where that cannot be done (a full disk), nothing is kept from here on."""
        if self._full:
            return
        # As the difference of each row from the one above, a photo takes half the room and half the time.
        rises = np.empty(band.shape, band.dtype.newbyteorder("<"))
        rises[:1] = band[:1]
        np.subtract(band[1:], band[:-1], out=rises[1:], casting="unsafe")
        packed = zlib.compress(rises.data, _LEVEL)
        numbers = (index, *band.shape, band.dtype.itemsize)
        head = _HEAD.pack(_SIGNATURE, *numbers, zlib.crc32(packed, zlib.crc32(repr(numbers).encode())))
        try:
            self._store.write(_name(index), head + packed)
        except OSError:
            self._full = True
        else:
            self._there.add(index)


class FolderStore:
    """Bands as files of a folder. A file appears under its name when it is complete."""

    def __init__(self, folder: Path) -> None:
        """Args: folder: that is there."""
        self._folder = folder

    def names(self) -> Iterable[str]:
        """See `BandStore`."""
        return [path.name for path in self._folder.iterdir()]

    def read(self, name: str) -> bytes | None:
        """See `BandStore`."""
        try:
            return (self._folder / name).read_bytes()
        except OSError:
            return None

    def write(self, name: str, data: bytes) -> None:
        """See `BandStore`."""
        try:
            _write(self._folder / name, data)
        except OSError:
            with suppress(OSError):
                (self._folder / f"{name}.new").unlink(missing_ok=True)
            raise


@contextmanager
def kept_bands(target: Path, key: str, room: bool = True) -> Iterator[KeptBands | None]:
    """The bands that an earlier run for the same result kept, and a place for more.

    The folder is removed when the caller is done, and stays when it was interrupted.

    Args:
        target: the file that will be made.
        key: of all that the bands depend on; see `key_of`.
        room: whether there is any for more bands; see `room_for_bands`.

    Yields:
        The bands, or None where nothing can be kept: the folder cannot be written, or another run is at work in it.
    """
    target = Path(os.path.realpath(target))
    folder = _folder(target)
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
            bands = KeptBands(FolderStore(folder), room)
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


def room_for_bands(target: Path, result: int, bands: int) -> bool:
    """Whether there is room beside a file for its bands: what is kept must not take the room of the result.

    Args:
        target: the file that will be made.
        result: its size, bytes.
        bands: size of all bands, bytes; what is kept of them already is counted as room.
    """
    target = Path(os.path.realpath(target))
    free = free_bytes(target.parent)
    with suppress(OSError):
        bands -= sum(path.stat().st_size for path in _folder(target).iterdir())
    return free is None or result + max(0, bands) <= free


def _folder(target: Path) -> Path:
    start = os.fsdecode(os.fsencode(target.name)[:200])  # a name ends at 255 bytes, not characters
    return target.with_name(f".{start}.part")


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


def _name(index: int) -> str:
    return f"{index:06}.band"
