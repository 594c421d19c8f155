"""IPTC-IIM records in the wrappings that file formats carry them in.

Follows Adobe's Photoshop image resources (8BIM) and ImageMagick's convention for PNG.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator

#: Number of the image resource that holds IPTC records.
IPTC_RESOURCE = 0x0404
_PHOTOSHOP = b"Photoshop 3.0\0"


def photoshop_block(iptc: bytes) -> bytes:
    """IPTC records as the Photoshop image resource that JPEG and PNG carry them in."""
    padded = iptc + bytes(len(iptc) % 2)
    return b"8BIM" + struct.pack(">HHI", IPTC_RESOURCE, 0, len(iptc)) + padded


def iptc_of(resources: bytes) -> bytes | None:
    """IPTC records in Photoshop image resources, or None."""
    return next((content for kind, content in _resources(resources) if kind == IPTC_RESOURCE), None)


def has_others(resources: bytes) -> bool:
    """True when Photoshop image resources hold more than IPTC records and what tells of these and of resolution."""
    return any(kind not in (IPTC_RESOURCE, 0x0425, 0x03ED, 0x0404) for kind, _ in _resources(resources))


def _resources(resources: bytes) -> Iterator[tuple[int, bytes]]:
    """Number and content of each resource."""
    at = 0
    while resources[at : at + 4] == b"8BIM" and at + 12 <= len(resources):
        (kind,) = struct.unpack_from(">H", resources, at + 4)
        name = resources[at + 6]
        at += 6 + (name + 2) // 2 * 2
        if at + 4 > len(resources):
            break
        (size,) = struct.unpack_from(">I", resources, at)
        yield kind, resources[at + 4 : at + 4 + size]
        at += 4 + size + size % 2


#: Datasets of record 2 that name places: content location, city, sublocation, province, country (IPTC-IIM 4.2).
_PLACES = frozenset([26, 27, 90, 92, 95, 100, 101])


def without_places(records: bytes) -> bytes | None:
    """IPTC records without those that name places; None when they cannot be told apart, or none is left."""
    at, kept = 0, bytearray()
    while at + 5 <= len(records) and records[at] == 0x1C:
        (size,) = struct.unpack_from(">H", records, at + 3)
        if size & 0x8000:  # an extended length, which no caption has
            return None
        if not (records[at + 1] == 2 and records[at + 2] in _PLACES):
            kept += records[at : at + 5 + size]
        at += 5 + size
    if records[at:].strip(b"\0"):
        return None
    return bytes(kept) or None


def jpeg_segment(iptc: bytes) -> bytes:
    """The APP13 segment of a JPEG that carries IPTC records."""
    data = _PHOTOSHOP + photoshop_block(iptc)
    return b"\xff\xed" + struct.pack(">H", len(data) + 2) + data


def raw_profile(iptc: bytes) -> str:
    """IPTC records as the text "Raw profile type iptc", ImageMagick's convention for PNG, which ExifTool reads too."""
    data = photoshop_block(iptc)
    lines = data.hex()
    return f"\niptc\n{len(data):8d}\n" + "\n".join(lines[at : at + 72] for at in range(0, len(lines), 72)) + "\n"


def from_raw_profile(value: str) -> bytes | None:
    """The bytes of a text "Raw profile type ...": a name of any words, a length, and hexadecimal digits."""
    found = re.match(r"\s*[^\n]*\n\s*(\d{1,9})\s*\n", value)
    if found is None:
        return None
    try:
        data = bytes.fromhex(value[found.end() :])
    except ValueError:
        return None
    return data[: int(found[1])] or None
