"""Resolution, dots an inch, as directories and EXIF blocks state it."""

from __future__ import annotations

import struct

from core.metadata import ifd

#: Horizontal and vertical, dots an inch.
Dpi = tuple[float, float]


def valid_dpi(dpi: object) -> Dpi | None:
    """A resolution as two sensible numbers, or None for anything else that a file may state."""
    try:
        horizontal, vertical = (float(value) for value in dpi)  # type: ignore[attr-defined]
    except (TypeError, ValueError, ZeroDivisionError, OverflowError):
        return None
    return (horizontal, vertical) if 0 < horizontal < 1e5 and 0 < vertical < 1e5 else None


def exif_dpi(block: bytes | None) -> Dpi | None:
    """The resolution that an EXIF block states, for formats that have no other place for it."""
    if block is None:
        return None
    try:
        directory = ifd.read_block(block.removeprefix(b"Exif\0\0"))
    except (ValueError, struct.error):
        return None
    return dpi_of(directory)


def dpi_of(directory: ifd.Directory) -> Dpi | None:
    """The resolution that a directory states in inches or centimetres."""
    values = {entry.tag: entry.value for entry in directory.entries if entry.number == 1}
    sides = []
    for tag in (ifd.X_RESOLUTION, ifd.Y_RESOLUTION):
        raw = values.get(tag, b"")
        if len(raw) != 8:
            return None
        numerator, denominator = struct.unpack(directory.order + "II", raw)
        if not denominator:
            return None
        sides.append(numerator / denominator)
    raw = values.get(ifd.RESOLUTION_UNIT, b"")
    unit = struct.unpack(directory.order + "H", raw)[0] if len(raw) == 2 else 2
    if unit not in (2, 3):
        return None
    factor = 2.54 if unit == 3 else 1.0
    return valid_dpi((sides[0] * factor, sides[1] * factor))
