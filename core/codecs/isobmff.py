"""The boxes of AVIF and HEIF that their decoders do not hand on as they are: EXIF to the byte, crops, code points.

Follows ISO/IEC 14496-12 (boxes, items) and ISO/IEC 23008-12 (HEIF: properties of items, clap).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

from core.metadata.carried import MAX_BLOCK

_MAX_PROPERTIES = 10_000


@dataclass(frozen=True)
class Crop:
    """The part of a picture that is shown (clap), before it is turned.

    Attributes:
        left: pixels.
        top: pixels.
        width: pixels.
        height: pixels.
    """

    left: int
    top: int
    width: int
    height: int


@dataclass(frozen=True)
class Primary:
    """What a file says of its primary picture.

    Attributes:
        bits: of a sample; 8 where nothing is said.
        code_points: colour primaries and transfer characteristics (ITU-T H.273), or None.
        crop: which part is shown; None for all.
        crop_at: where the crop's 32 bytes lie in the file; 0 without a crop.
        size: width and height as coded.
        exif: the block, without what is before its byte order, or None.
        still: False when there is no primary picture, as in a file that holds a sequence only.
    """

    bits: int = 8
    code_points: tuple[int, int] | None = None
    crop: Crop | None = None
    crop_at: int = 0
    size: tuple[int, int] = (0, 0)
    exif: bytes | None = None
    still: bool = False


def _boxes(data: bytes, start: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Type, and begin and end of the content, of each box."""
    at = start
    while at + 8 <= end:
        size, kind = struct.unpack_from(">I4s", data, at)
        head = 8
        if size == 1 and at + 16 <= end:
            (size,), head = struct.unpack_from(">Q", data, at + 8), 16
        size = size or end - at
        if size < head or at + size > end:
            return
        yield kind, at + head, at + size
        at += size


def read(data: bytes) -> Primary:
    """What a whole file says of its primary picture; what cannot be understood is as if it were not said."""
    try:
        return _read(data)
    except (struct.error, IndexError, ValueError, ZeroDivisionError):
        return Primary()


def _read(data: bytes) -> Primary:
    meta = next(((at + 4, end) for kind, at, end in _boxes(data, 0, len(data)) if kind == b"meta"), None)
    if meta is None:
        return Primary()
    boxes = {kind: (at, end) for kind, at, end in _boxes(data, *meta)}
    if b"pitm" not in boxes:
        return Primary()
    at, _ = boxes[b"pitm"]
    item = int.from_bytes(data[at + 4 : at + (8 if data[at] else 6)], "big")
    bits, code_points, crop, crop_at, size = 8, None, None, 0, (0, 0)
    for kind, begin, end in _properties(data, *boxes[b"iprp"], item):
        if kind == b"ispe":
            size = struct.unpack_from(">II", data, begin + 4)
        elif kind == b"pixi" and data[begin + 4]:
            bits = max(data[begin + 5 : begin + 5 + data[begin + 4]])
        elif kind == b"av1C" and data[begin + 2] & 0x40:
            bits = 12 if data[begin + 2] & 0x20 else 10
        elif kind == b"colr" and data[begin : begin + 4] == b"nclx":
            code_points = struct.unpack_from(">HH", data, begin + 4)
        elif kind == b"clap" and end - begin >= 32:
            crop_at = begin
    if crop_at:
        crop = _crop(struct.unpack_from(">8i", data, crop_at), size)
    return Primary(bits, code_points, crop, crop_at, size, _exif(data, boxes), True)


def _properties(data: bytes, start: int, end: int, item: int) -> Iterator[tuple[bytes, int, int]]:
    """The property boxes that belong to an item."""
    inside = {kind: (begin, stop) for kind, begin, stop in _boxes(data, start, end)}
    every = list(_boxes(data, *inside[b"ipco"]))[:_MAX_PROPERTIES]
    at = inside[b"ipma"][0]
    version, wide = data[at], data[at + 3] & 1
    (count,) = struct.unpack_from(">I", data, at + 4)
    at += 8
    for _ in range(min(count, _MAX_PROPERTIES)):
        size = 4 if version else 2
        found = int.from_bytes(data[at : at + size], "big")
        number = data[at + size]
        at += size + 1
        for _ in range(number):
            index = int.from_bytes(data[at : at + 1 + wide], "big") & (0x7FFF if wide else 0x7F)
            at += 1 + wide
            if found == item and 0 < index <= len(every):
                yield every[index - 1]


def _crop(numbers: tuple[int, ...], size: tuple[int, int]) -> Crop | None:
    """A crop in whole pixels that lies in the picture, or None: its middle is given from the picture's middle."""
    width, height, across, down = (Fraction(numbers[at], numbers[at + 1]) for at in (0, 2, 4, 6))
    left = round(across + Fraction(size[0] - 1, 2) - (width - 1) / 2)
    top = round(down + Fraction(size[1] - 1, 2) - (height - 1) / 2)
    right, bottom = min(left + round(width), size[0]), min(top + round(height), size[1])
    left, top = max(left, 0), max(top, 0)
    if right <= left or bottom <= top or (left, top, right, bottom) == (0, 0, *size):
        return None
    return Crop(left, top, right - left, bottom - top)


def without_crop(data: bytes, primary: Primary) -> bytes:
    """The same file showing all of its picture: decoders ignore crops, or refuse the picture for an odd one."""
    whole = bytearray(data)
    numbers = (primary.size[0], 1, primary.size[1], 1, 0, 1, 0, 1)
    struct.pack_into(">8I", whole, primary.crop_at, *numbers)
    return bytes(whole)


def _exif(data: bytes, boxes: dict[bytes, tuple[int, int]]) -> bytes | None:
    """The EXIF block of the first item of that type."""
    at, end = boxes.get(b"iinf", (0, 0))
    item = None
    for kind, begin, _ in _boxes(data, at + (8 if at and data[at] else 6), end):
        size = 4 if data[begin] == 3 else 2
        if kind == b"infe" and data[begin] >= 2 and data[begin + 6 + size : begin + 10 + size] == b"Exif":
            item = int.from_bytes(data[begin + 4 : begin + 4 + size], "big")
            break
    block = None if item is None or b"iloc" not in boxes else _located(data, boxes, item)
    if block is None or len(block) < 8:
        return None
    skip = int.from_bytes(block[:4], "big")  # to the TIFF header
    return block[4 + skip :].removeprefix(b"Exif\0\0") or None


def _located(data: bytes, boxes: dict[bytes, tuple[int, int]], wanted: int) -> bytes | None:
    """The bytes of an item (iloc, methods 0 and 1)."""
    at = boxes[b"iloc"][0]
    version = data[at]
    sizes = data[at + 4] >> 4, data[at + 4] & 15, data[at + 5] >> 4, data[at + 5] & 15 if version else 0
    at += 6

    def number(size: int) -> int:
        nonlocal at
        at += size
        return int.from_bytes(data[at - size : at], "big")

    for _ in range(number(4 if version == 2 else 2)):
        item = number(4 if version == 2 else 2)
        method = number(2) & 15 if version else 0
        number(2)
        base = number(sizes[2])
        parts = b""
        for _ in range(number(2)):
            number(sizes[3])
            offset, length = base + number(sizes[0]), number(sizes[1])
            if method == 1:
                offset += boxes.get(b"idat", (0, 0))[0]
            if item == wanted and len(parts) + length <= MAX_BLOCK:
                parts += data[offset : offset + length]
        if item == wanted:
            return parts
    return None


_RESERVED = b"II*\0\x08\0\0\0" + bytes(6) + b"EXIF to come"


def reserved(exif: bytes) -> bytes:
    """A block as long as another, which Pillow passes on as it is: it writes one with an orientation anew.

    Written anew, maker notes break, and letters beyond ASCII are lost.
    """
    return _RESERVED.ljust(len(exif), b"\0") if len(exif) >= len(_RESERVED) else exif


def with_exif(data: bytes, exif: bytes | None) -> bytes:
    """A file with the block that `reserved` kept the place of."""
    at = -1 if exif is None else data.find(reserved(exif))
    return data if exif is None or at < 0 else data[:at] + exif + data[at + len(exif) :]
