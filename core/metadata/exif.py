"""EXIF blocks made true of the result.

A block is corrected where it lies: values are patched in place and nothing is moved, because maker notes hold offsets
into the block that only their maker knows. Blocks are TIFF structures without the "Exif" prefix that JPEG puts before
them. They come from strangers: every offset and count is checked before it is used.

Follows EXIF 2.32 (CIPA DC-008) and TIFF 6.0.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from core.metadata.ifd import (
    EXIF_POINTER,
    GPS_POINTER,
    LONG,
    MAX_BYTES,
    MAX_ENTRIES,
    ORIENTATION,
    RATIONAL,
    RESOLUTION_UNIT,
    SHORT,
    SIZES,
    X_RESOLUTION,
    Y_RESOLUTION,
    Order,
    order_of,
    rational,
    resolution,
)

_WIDTHS, _HEIGHTS = (0x0100, 0xA002), (0x0101, 0xA003)
_THUMBNAIL_OFFSET, _THUMBNAIL_LENGTH = 0x0201, 0x0202


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
    if count > MAX_ENTRIES or end > len(block):
        raise ValueError("directory outside of the block")
    found = []
    for at in range(offset + 2, end, 12):
        tag, kind, number = struct.unpack_from(order + "HHI", block, at)
        size = SIZES.get(kind, 1) * number
        value_at = at + 8 if size <= 4 else struct.unpack_from(order + "I", block, at + 8)[0]
        if value_at + size > len(block):
            raise ValueError("value outside of the block")
        found.append(_Slot(tag, kind, at, value_at, size))
    return found, end


def _number(block: bytes | bytearray, slot: _Slot, order: Order) -> int:
    """A SHORT or LONG, else 0."""
    if slot.size != SIZES.get(slot.type) or slot.type not in (SHORT, LONG):
        return 0
    value: int = struct.unpack_from(order + ("H" if slot.type == SHORT else "I"), block, slot.value_at)[0]
    return value


def _set_number(block: bytearray, slot: _Slot, order: Order, value: int) -> None:
    """Put one LONG into a field's own four bytes, whatever it held."""
    struct.pack_into(order + "HIHH" if value <= 0xFFFF else order + "HII", block, slot.at + 2,
                     *((SHORT, 1, value, 0) if value <= 0xFFFF else (LONG, 1, value)))  # fmt: skip


def orientation_of(block: bytes | None) -> int:
    """What is left to be turned (EXIF 2.32, tag 0x0112), 1 to 8; 1 where nothing is said."""
    data = (block or b"").removeprefix(b"Exif\0\0")
    try:
        order = order_of(data)
        (first,) = struct.unpack_from(order + "I", data, 4)
        (count,) = struct.unpack_from(order + "H", data, first)
        for at in range(first + 2, first + 2 + 12 * min(count, MAX_ENTRIES), 12):
            tag, kind, number = struct.unpack_from(order + "HHI", data, at)
            if tag == ORIENTATION and number == 1 and kind in (1, SHORT, LONG):
                (value,) = struct.unpack_from(order + {1: "B", SHORT: "H", LONG: "I"}[kind], data, at + 8)
                return value if 1 <= value <= 8 else 1
    except (ValueError, struct.error):
        pass
    return 1


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
        order = order_of(data)
        (first,) = struct.unpack_from(order + "I", data, 4)
        slots, next_at = _slots(data, first, order)
        gone = _blank_thumbnail(data, order, next_at)
        for slot in slots:
            _correct(data, order, slot, width, height, dpi)
        inner = next((_number(data, slot, order) for slot in slots if slot.tag == EXIF_POINTER), 0)
        for slot in _slots(data, inner, order)[0] if inner else ():
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


def with_resolution(block: bytes, dpi: tuple[float, float]) -> bytes:
    """A block that states a resolution, in place of any that it had; the same where it is damaged.

    The first directory is written anew behind the block, so that all else stays where maker notes expect it.
    """
    try:
        order = order_of(block)
        (first,) = struct.unpack_from(order + "I", block, 4)
        slots, end = _slots(block, first, order)
    except (ValueError, struct.error):
        return block
    at = len(block) + len(block) % 2
    stated = list(resolution(dpi, order))
    tags = {entry.tag for entry in stated}
    kept = [(slot.tag, block[slot.at : slot.at + 12]) for slot in slots if slot.tag not in tags]
    values = at + 2 + 12 * (len(kept) + len(stated)) + 4
    tail = b""
    for entry in stated:
        value = entry.value.ljust(4, b"\0")
        if len(value) > 4:
            value = struct.pack(order + "I", values + len(tail))
            tail += entry.value
        kept.append((entry.tag, struct.pack(order + "HHI", entry.tag, entry.type, entry.number) + value))
    following = block[end : end + 4].ljust(4, b"\0")
    directory = struct.pack(order + "H", len(kept)) + b"".join(field for _, field in sorted(kept)) + following + tail
    return block[:4] + struct.pack(order + "I", at) + block[8:].ljust(at - 8, b"\0") + directory


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
    elif dpi is not None and slot.tag in (X_RESOLUTION, Y_RESOLUTION) and slot.type == RATIONAL and slot.size == 8:
        data[slot.value_at : slot.value_at + 8] = rational(dpi[slot.tag == Y_RESOLUTION], order)


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
