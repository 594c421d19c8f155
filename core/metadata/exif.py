"""EXIF blocks, and the tags of a TIFF that describe the picture: read, corrected, written.

A block is corrected where it lies: values are patched in place and nothing is moved, because maker notes hold offsets
into the block that only their maker knows. Blocks are TIFF structures without the "Exif" prefix that JPEG puts before
them. They come from strangers: every offset and count is checked before it is used.

Follows EXIF 2.32 (CIPA DC-008) and TIFF 6.0.
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
_MAX_ENTRIES = 1000

ORIENTATION, X_RESOLUTION, Y_RESOLUTION, RESOLUTION_UNIT = 0x0112, 0x011A, 0x011B, 0x0128
EXIF_POINTER, GPS_POINTER, INTEROP_POINTER = 0x8769, 0x8825, 0xA005
IMAGE_DESCRIPTION = 0x010E
_WIDTHS, _HEIGHTS = (0x0100, 0xA002), (0x0101, 0xA003)
_THUMBNAIL_OFFSET, _THUMBNAIL_LENGTH = 0x0201, 0x0202
#: Tags of a TIFF's own directory that describe the picture, not how this file stores it.
DESCRIPTIVE = frozenset(
    [
        *(0x010D, 0x010E, 0x010F, 0x0110, 0x011D, 0x0129, 0x0131, 0x0132, 0x013B, 0x013C, 0x4746, 0x4749, 0x8298),
        *(0x9C9B, 0x9C9C, 0x9C9D, 0x9C9E, 0x9C9F, EXIF_POINTER, GPS_POINTER),
    ]
)
#: Bytes of one value by field type; the last three are of BigTIFF.
_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_SHORT, _LONG, _RATIONAL = 3, 4, 5


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
        order: "<" or ">", of every value in it and below.
        entries: its fields, without pointers to directories below.
        below: the directories that it points to, by pointer tag.
    """

    order: Order = "<"
    entries: list[Entry] = field(default_factory=list)
    below: dict[int, Directory] = field(default_factory=dict)


def _order_of(head: bytes | bytearray) -> Order:
    if head[:4] in (b"II*\0", b"II+\0"):
        return "<"
    if head[:4] in (b"MM\0*", b"MM\0+"):
        return ">"
    raise ValueError("not a TIFF structure")


class _Slot(NamedTuple):
    """Where a field lies in a classic block: its 12 bytes, and its values."""

    tag: int
    type: int
    at: int
    value_at: int
    size: int


def _slots(block: bytes | bytearray, offset: int, order: Order) -> tuple[list[_Slot], int]:
    """Fields of the directory at an offset, and where its pointer to the next directory lies.

    Raises:
        ValueError: the directory or a value reaches beyond the block.
    """
    if not 8 <= offset <= len(block) - 2:
        raise ValueError("directory outside of the block")
    (count,) = struct.unpack_from(order + "H", block, offset)
    end = offset + 2 + 12 * count
    if count > _MAX_ENTRIES or end > len(block):
        raise ValueError("directory outside of the block")
    found = []
    for at in range(offset + 2, end, 12):
        tag, kind, number = struct.unpack_from(order + "HHI", block, at)
        size = _SIZES.get(kind, 1) * number
        value_at = at + 8 if size <= 4 else struct.unpack_from(order + "I", block, at + 8)[0]
        if value_at + size > len(block):
            raise ValueError("value outside of the block")
        found.append(_Slot(tag, kind, at, value_at, size))
    return found, end


def _number(block: bytes | bytearray, slot: _Slot, order: Order) -> int:
    """A SHORT or LONG, else 0."""
    if slot.size != _SIZES.get(slot.type) or slot.type not in (_SHORT, _LONG):
        return 0
    value: int = struct.unpack_from(order + ("H" if slot.type == _SHORT else "I"), block, slot.value_at)[0]
    return value


def _set_number(block: bytearray, slot: _Slot, order: Order, value: int) -> None:
    """Put one LONG into a field's own four bytes, whatever it held."""
    struct.pack_into(order + "HIHH" if value <= 0xFFFF else order + "HII", block, slot.at + 2,
                     *((_SHORT, 1, value, 0) if value <= 0xFFFF else (_LONG, 1, value)))  # fmt: skip


def corrected(
    block: bytes,
    width: int,
    height: int,
    dpi: tuple[float, float] | None = None,
    drop_gps: bool = False,
) -> bytes | None:
    """A block that is true of the result: upright, of its size, without the thumbnail of another picture.

    Args:
        block: a classic TIFF structure, with or without the prefix "Exif".
        width: of the result, pixels; put where the block states a width.
        height: of the result, pixels.
        dpi: put where the block states a resolution; None leaves it.
        drop_gps: take the GPS directory out, its bytes included.

    Returns:
        The corrected block without prefix, or None when the block is too large or damaged: a wrong one is worse than
        none.
    """
    data = bytearray(block.removeprefix(b"Exif\0\0"))
    try:
        if len(data) > MAX_BYTES:
            return None
        order = _order_of(data)
        (first,) = struct.unpack_from(order + "I", data, 4)
        slots, next_at = _slots(data, first, order)
        gone = _blank_thumbnail(data, order, next_at)
        for slot in slots:
            _correct(data, order, slot, width, height, dpi)
        below = next((_number(data, slot, order) for slot in slots if slot.tag == EXIF_POINTER), 0)
        for slot in _slots(data, below, order)[0] if below else ():
            _correct(data, order, slot, width, height, dpi)
        if drop_gps:
            place = next((_number(data, slot, order) for slot in slots if slot.tag == GPS_POINTER), 0)
            gone += _blank(data, order, place) if place else []
            _remove(data, order, first, GPS_POINTER)
    except (ValueError, struct.error):
        return None
    # What was blanked at the end of the block can go; before that it must stay, so that nothing moves.
    for start, end in sorted(gone, reverse=True):
        if len(data) - end <= 1:
            del data[start:]
    return bytes(data)


def _correct(
    data: bytearray, order: Order, slot: _Slot, width: int, height: int, dpi: tuple[float, float] | None
) -> None:
    if slot.tag == ORIENTATION:
        _set_number(data, slot, order, 1)
    elif slot.tag in _WIDTHS:
        _set_number(data, slot, order, width)
    elif slot.tag in _HEIGHTS:
        _set_number(data, slot, order, height)
    elif dpi is not None and slot.tag == RESOLUTION_UNIT:
        _set_number(data, slot, order, 2)  # inch
    elif dpi is not None and slot.tag in (X_RESOLUTION, Y_RESOLUTION) and slot.type == _RATIONAL and slot.size == 8:
        data[slot.value_at : slot.value_at + 8] = rational(dpi[slot.tag == Y_RESOLUTION], order)


def rational(value: float, order: Order) -> bytes:
    """A RATIONAL, 8 bytes."""
    fraction = Fraction(value).limit_denominator(10_000)
    return struct.pack(order + "II", fraction.numerator, fraction.denominator)


def _blank(data: bytearray, order: Order, offset: int) -> list[tuple[int, int]]:
    """Overwrite a directory and its values with zeros; gives the ranges."""
    slots, end = _slots(data, offset, order)
    ranges = [(offset, min(end + 4, len(data)))]
    ranges += [(slot.value_at, slot.value_at + slot.size) for slot in slots if slot.size > 4]
    found = {slot.tag: _number(data, slot, order) for slot in slots}
    start, length = found.get(_THUMBNAIL_OFFSET, 0), found.get(_THUMBNAIL_LENGTH, 0)
    if 8 < start < len(data):
        ranges.append((start, min(start + length, len(data))))
    for start, end in ranges:
        data[start:end] = bytes(end - start)
    return ranges


def _blank_thumbnail(data: bytearray, order: Order, next_at: int) -> list[tuple[int, int]]:
    """Unlink and overwrite the second directory, which holds a thumbnail of the picture as it was."""
    if next_at + 4 > len(data):
        return []  # some writers leave the pointer out
    (offset,) = struct.unpack_from(order + "I", data, next_at)
    data[next_at : next_at + 4] = bytes(4)
    return _blank(data, order, offset) if offset else []


def _remove(data: bytearray, order: Order, offset: int, tag: int) -> None:
    """Take one field out of a directory; the later fields and the pointer to the next directory move up."""
    slots, end = _slots(data, offset, order)
    stop = min(end + 4, len(data))
    for slot in reversed(slots):
        if slot.tag == tag:
            data[slot.at : stop] = data[slot.at + 12 : stop] + bytes(12)
            (count,) = struct.unpack_from(order + "H", data, offset)
            struct.pack_into(order + "H", data, offset, count - 1)


def read_block(block: bytes) -> Directory:
    """The first directory of a block, with what it points to.

    Raises:
        ValueError: the block is damaged.
    """
    stream = io.BytesIO(block)
    order = _order_of(stream.read(4))
    (offset,) = struct.unpack(order + "I", _exactly(stream, 4))
    return _read(stream, offset, order, big=False, depth=0, room=[MAX_BYTES])


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
    return _read(stream, offset, order, big, depth=0, room=[MAX_BYTES], only=DESCRIPTIVE)


def read_fields(
    stream: BinaryIO, offset: int, order: Order, big: bool, tags: frozenset[int], room: int
) -> tuple[Directory, int]:
    """Certain fields of one directory of a TIFF file, and the offset of the next directory or 0.

    Args:
        stream: the TIFF file; its position is changed.
        offset: of the directory, bytes.
        order: of the file.
        big: True for BigTIFF.
        tags: which fields.
        room: bytes that their values may take together.

    Raises:
        ValueError: the directory is damaged.
    """
    found = _read(stream, offset, order, big, depth=2, room=[room], only=tags)
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
    room: list[int],
    only: frozenset[int] = frozenset(),
) -> Directory:
    """`room` is what is left of the bytes that all values together may take."""
    _seek(stream, offset)
    (count,) = struct.unpack(order + ("Q" if big else "H"), _exactly(stream, 8 if big else 2))
    if count > _MAX_ENTRIES:
        raise ValueError("too many fields")
    inline, step = (8, 20) if big else (4, 12)
    raw = _exactly(stream, count * step)
    found = Directory(order)
    for at in range(0, len(raw), step):
        tag, kind, number = struct.unpack_from(order + ("HHQ" if big else "HHI"), raw, at)
        if (only and tag not in only) or kind not in _SIZES:
            continue
        size = _SIZES[kind] * number
        value = raw[at + 4 + inline :][:inline]
        if size > inline:
            room[0] -= size
            if room[0] < 0:
                raise ValueError("values too large")
            _seek(stream, struct.unpack(order + ("Q" if big else "I"), value)[0])
            value = _exactly(stream, size)
        value = value[:size]
        if tag in (EXIF_POINTER, GPS_POINTER, INTEROP_POINTER):
            pointer = int.from_bytes(value, "little" if order == "<" else "big")
            if depth < 2 and pointer and tag not in found.below:
                found.below[tag] = _read(stream, pointer, order, big, depth + 1, room)
        elif kind < 16:  # the others cannot be written to a classic block
            found.entries.append(Entry(tag, kind, number, value))
    return found


def write_block(directory: Directory) -> bytes:
    """A classic TIFF structure that holds a directory and what it points to."""
    head = b"II*\0" if directory.order == "<" else b"MM\0*"
    return head + struct.pack(directory.order + "I", 8) + written(directory, 8, big=False)[0]


def written(directory: Directory, offset: int, big: bool) -> tuple[bytes, int]:
    """A directory as bytes that are to lie at an offset of a file, values and directories below included.

    Returns:
        The bytes, which begin with the directory itself, and the place in them of the pointer to the next directory.
    """
    order = directory.order
    entries = list(directory.entries)
    width, size = (8, 20) if big else (4, 12)
    count = len(entries) + len(directory.below)
    head = (8 if big else 2) + size * count
    tail = bytearray()

    def place(data: bytes) -> int:
        tail.extend(bytes(len(tail) % 2))  # values begin at even offsets
        at = offset + head + width + len(tail)
        tail.extend(data)
        return at

    for tag, inner in directory.below.items():
        at = offset + head + width + len(tail) + len(tail) % 2
        place(written(inner, at, big)[0])
        entries.append(Entry(tag, 16 if big else _LONG, 1, struct.pack(order + ("Q" if big else "I"), at)))
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
    """The three fields that state a resolution."""
    yield Entry(X_RESOLUTION, _RATIONAL, 1, rational(dpi[0], order))
    yield Entry(Y_RESOLUTION, _RATIONAL, 1, rational(dpi[1], order))
    yield Entry(RESOLUTION_UNIT, _SHORT, 1, struct.pack(order + "H", 2))
