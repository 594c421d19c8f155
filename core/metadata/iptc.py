"""IPTC-IIM records in the wrappings that file formats carry them in.

Follows Adobe's Photoshop image resources (8BIM) and ImageMagick's convention for PNG.
"""

from __future__ import annotations

import struct

#: Number of the image resource that holds IPTC records.
IPTC_RESOURCE = 0x0404
_PHOTOSHOP = b"Photoshop 3.0\0"


def photoshop_block(iptc: bytes) -> bytes:
    """IPTC records as the Photoshop image resource that JPEG and PNG carry them in."""
    padded = iptc + bytes(len(iptc) % 2)
    return b"8BIM" + struct.pack(">HHI", IPTC_RESOURCE, 0, len(iptc)) + padded


def iptc_of(resources: bytes) -> bytes | None:
    """IPTC records in Photoshop image resources, or None."""
    at = 0
    while resources[at : at + 4] == b"8BIM" and at + 12 <= len(resources):
        (kind,) = struct.unpack_from(">H", resources, at + 4)
        name = resources[at + 6]
        at += 6 + (name + 2) // 2 * 2
        if at + 4 > len(resources):
            break
        (size,) = struct.unpack_from(">I", resources, at)
        if kind == IPTC_RESOURCE:
            return resources[at + 4 : at + 4 + size]
        at += 4 + size + size % 2
    return None


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
    """IPTC records in the text "Raw profile type iptc", or None."""
    parts = value.split()
    try:
        data = bytes.fromhex("".join(parts[2:]))
    except ValueError:
        return None
    return iptc_of(data) if data.startswith(b"8BIM") else data or None
