"""Image file directories, the structure that TIFF files and EXIF blocks share: read and written.

They come from strangers: every offset and count is checked before it is used.

Follows TIFF 6.0, BigTIFF and EXIF 2.32 (CIPA DC-008).
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from typing import BinaryIO, Literal, NamedTuple

Order = Literal["<", ">"]
#: A block that is larger is left out; cameras write at most 64 kB.
MAX_BYTES = 1 << 20
MAX_ENTRIES = 1000

ORIENTATION, X_RESOLUTION, Y_RESOLUTION, RESOLUTION_UNIT = 0x0112, 0x011A, 0x011B, 0x0128
EXIF_POINTER, GPS_POINTER, INTEROP_POINTER = 0x8769, 0x8825, 0xA005
IMAGE_DESCRIPTION = 0x010E
#: Tags of a TIFF's own directory that describe the picture, not how this file stores it.
DESCRIPTIVE = frozenset(
    [
        *(0x010D, 0x010E, 0x010F, 0x0110, 0x011D, 0x0129, 0x0131, 0x0132, 0x013B, 0x013C, 0x4746, 0x4749, 0x8298),
        *(0x9C9B, 0x9C9C, 0x9C9D, 0x9C9E, 0x9C9F, EXIF_POINTER, GPS_POINTER),
    ]
)
#: Bytes of one value by field type; the last three are of BigTIFF.
SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
SHORT, LONG, RATIONAL = 3, 4, 5


class Entry(NamedTuple):
    """One field of a directory: tag, field type, how many values, and the values in the directory's byte order."""

    tag: int
    type: int
    number: int
    value: bytes


@dataclass
class Directory:
    """An image file directory.

    Attributes:
        order: "<" or ">", of every value in it and in its subdirectories.
        entries: its fields, without pointers to subdirectories.
        subdirectories: the directories that it points to, by pointer tag.
    """

    order: Order = "<"
    entries: list[Entry] = field(default_factory=list)
    subdirectories: dict[int, Directory] = field(default_factory=dict)


def order_of(head: bytes | bytearray) -> Order:
    """The byte order that a TIFF structure's first four bytes state.

    Raises:
        ValueError: it is no TIFF structure.
    """
    if head[:4] in (b"II*\0", b"II+\0"):
        return "<"
    if head[:4] in (b"MM\0*", b"MM\0+"):
        return ">"
    raise ValueError("not a TIFF structure")


def read_block(block: bytes) -> Directory:
    """The first directory of a block, with what it points to.

    Raises:
        ValueError: the block is damaged.
    """
    stream = io.BytesIO(block)
    order = order_of(stream.read(4))
    (offset,) = struct.unpack(order + "I", _exactly(stream, 4))
    return _read(stream, offset, order, big=False, depth=0, budget=[MAX_BYTES])


def read_tiff(stream: BinaryIO, offset: int, order: Order, big: bool) -> Directory:
    """The descriptive fields of a TIFF page's directory: who, when, where, with which camera; not how it is stored.

    Args:
        stream: the TIFF file; its position is changed.
        offset: of the page's directory, bytes.
        order: of the file.
        big: True for BigTIFF.

    Raises:
        ValueError: the directory is damaged.
    """
    return _read(stream, offset, order, big, depth=0, budget=[MAX_BYTES], only=DESCRIPTIVE)


def read_fields(
    stream: BinaryIO, offset: int, order: Order, big: bool, tags: frozenset[int], budget: int
) -> tuple[Directory, int]:
    """Certain fields of one directory of a TIFF file, and the offset of the next directory or 0.

    Args:
        stream: the TIFF file; its position is changed.
        offset: of the directory, bytes.
        order: of the file.
        big: True for BigTIFF.
        tags: which fields.
        budget: bytes that their values may take together.

    Raises:
        ValueError: the directory is damaged.
    """
    found = _read(stream, offset, order, big, depth=2, budget=[budget], only=tags)
    stream.seek(offset)
    (count,) = struct.unpack(order + ("Q" if big else "H"), _exactly(stream, 8 if big else 2))
    stream.seek(count * (20 if big else 12), io.SEEK_CUR)
    following = stream.read(8 if big else 4)  # some writers end the file before it
    return found, int.from_bytes(following, "little" if order == "<" else "big")


def _seek(stream: BinaryIO, offset: int) -> None:
    if offset >> 62:  # more than a seek can take, and than any file has
        raise ValueError("directory outside of the file")
    stream.seek(offset)


def _exactly(stream: BinaryIO, size: int) -> bytes:
    found = stream.read(size)
    if len(found) != size:
        raise ValueError("directory outside of the file")
    return found


def _read(
    stream: BinaryIO,
    offset: int,
    order: Order,
    big: bool,
    depth: int,
    budget: list[int],
    only: frozenset[int] = frozenset(),
) -> Directory:
    """`budget` is what is left of the bytes that all values together may take."""
    _seek(stream, offset)
    (count,) = struct.unpack(order + ("Q" if big else "H"), _exactly(stream, 8 if big else 2))
    if count > MAX_ENTRIES:
        raise ValueError("too many fields")
    inline, step = (8, 20) if big else (4, 12)
    raw = _exactly(stream, count * step)
    found = Directory(order)
    for at in range(0, len(raw), step):
        tag, kind, number = struct.unpack_from(order + ("HHQ" if big else "HHI"), raw, at)
        if (only and tag not in only) or kind not in SIZES:
            continue
        size = SIZES[kind] * number
        value = raw[at + 4 + inline :][:inline]
        if size > inline:
            budget[0] -= size
            if budget[0] < 0:
                raise ValueError("values too large")
            _seek(stream, struct.unpack(order + ("Q" if big else "I"), value)[0])
            value = _exactly(stream, size)
        value = value[:size]
        if tag in (EXIF_POINTER, GPS_POINTER, INTEROP_POINTER):
            pointer = int.from_bytes(value, "little" if order == "<" else "big")
            if depth < 2 and pointer and tag not in found.subdirectories:
                found.subdirectories[tag] = _read(stream, pointer, order, big, depth + 1, budget)
        elif kind < 16:  # the others cannot be written to a classic block
            found.entries.append(Entry(tag, kind, number, value))
    return found


def write_block(directory: Directory) -> bytes:
    """A classic TIFF structure that holds a directory and what it points to."""
    head = b"II*\0" if directory.order == "<" else b"MM\0*"
    return head + struct.pack(directory.order + "I", 8) + pack(directory, 8, big=False)[0]


def pack(directory: Directory, offset: int, big: bool) -> tuple[bytes, int]:
    """A directory as bytes that are to lie at an offset of a file, values and subdirectories included.

    Returns:
        The bytes, which begin with the directory itself, and the place in them of the pointer to the next directory.
    """
    order = directory.order
    entries = list(directory.entries)
    width, size = (8, 20) if big else (4, 12)
    count = len(entries) + len(directory.subdirectories)
    head = (8 if big else 2) + size * count
    tail = bytearray()

    def place(data: bytes) -> int:
        tail.extend(bytes(len(tail) % 2))  # values begin at even offsets
        at = offset + head + width + len(tail)
        tail.extend(data)
        return at

    for tag, inner in directory.subdirectories.items():
        at = offset + head + width + len(tail) + len(tail) % 2
        place(pack(inner, at, big)[0])
        entries.append(Entry(tag, 16 if big else LONG, 1, struct.pack(order + ("Q" if big else "I"), at)))
    out = bytearray(struct.pack(order + ("Q" if big else "H"), count))
    for tag, kind, number, value in sorted(entries):
        if len(value) > width:
            value = struct.pack(order + ("Q" if big else "I"), place(value))
        out += struct.pack(order + ("HHQ" if big else "HHI"), tag, kind, number) + value.ljust(width, b"\0")
    return bytes(out + bytes(width) + tail), head


def text(tag: int, value: str) -> Entry:
    """An ASCII field; other letters are written in UTF-8, as most readers expect."""
    data = value.encode("utf-8", "replace").replace(b"\0", b" ") + b"\0"
    return Entry(tag, 2, len(data), data)


def resolution(dpi: tuple[float, float], order: Order = "<") -> Iterator[Entry]:
    """The three fields that state a resolution, horizontal and vertical dots an inch."""
    yield Entry(X_RESOLUTION, RATIONAL, 1, rational(dpi[0], order))
    yield Entry(Y_RESOLUTION, RATIONAL, 1, rational(dpi[1], order))
    yield Entry(RESOLUTION_UNIT, SHORT, 1, struct.pack(order + "H", 2))


def rational(value: float, order: Order) -> bytes:
    """A RATIONAL, 8 bytes."""
    fraction = Fraction(value).limit_denominator(10_000)
    return struct.pack(order + "II", fraction.numerator, fraction.denominator)
