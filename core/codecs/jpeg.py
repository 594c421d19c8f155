"""Writing JPEG, from the pixels as they are: Pillow would copy them first, four bytes for each.

Follows JFIF 1.02 and its neighbours: EXIF 2.32 (APP1), XMP part 3 (APP1), ICC.1 annex B (APP2), IPTC in Photoshop's
image resources (APP13).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np

from core.codecs.decode import Picture
from core.metadata import carried as metadata
from core.metadata.carried import Metadata

_XMP = b"http://ns.adobe.com/xap/1.0/\0"
_ICC = b"ICC_PROFILE\0"
_MOST = 65_533  # bytes in a segment
_LEAST_QUALITY = 85
#: Where nobody asks for another, in all lossy formats.
USUAL_QUALITY = 95
#: Bytes of XMP that there is a place for.
MAX_XMP = _MOST - len(_XMP)


def write(stream: BinaryIO, picture: Picture, quality: int | None) -> None:
    """Write a picture without alpha.

    Args:
        stream: open for writing, binary.
        picture: uint8; its metadata fits into segments.
        quality: 1 to 100, as libjpeg counts; None takes the input's, at least 85, with its subsampling, else 95.
    """
    import imagecodecs

    if quality is None and picture.quality is not None:
        quality, subsampling = max(_LEAST_QUALITY, picture.quality), picture.subsampling
    else:
        quality = quality or USUAL_QUALITY
        subsampling = picture.subsampling or ("4:4:4" if quality >= 90 else "4:2:0")
    grey = picture.pixels.shape[2] == 1
    samples = np.ascontiguousarray(picture.pixels[:, :, 0] if grey else picture.pixels)
    chosen = None if grey else (subsampling or "4:4:4").replace(":", "")
    data = memoryview(imagecodecs.jpeg8_encode(samples, quality, subsampling=chosen, optimize=False))
    head = bytearray(data[:20])  # SOI and the JFIF segment
    dpi = picture.meta.dpi
    if dpi is not None and max(dpi) < 65_535.5:
        head[13:18] = struct.pack(">BHH", 1, *(round(value) for value in dpi))
    stream.write(head)
    for segment in _segments(picture.meta):
        stream.write(segment)
    stream.write(data[20:])


def _segments(meta: Metadata) -> Iterator[bytes]:
    def segment(marker: int, content: bytes) -> bytes:
        return struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content

    if meta.exif is not None:
        yield segment(0xE1, b"Exif\0\0" + meta.exif)
    if meta.xmp is not None:
        yield segment(0xE1, _XMP + meta.xmp)
    if meta.icc is not None:
        room = _MOST - len(_ICC) - 2
        parts = [meta.icc[at : at + room] for at in range(0, len(meta.icc), room)]
        for index, part in enumerate(parts, start=1):
            yield segment(0xE2, _ICC + bytes([index, len(parts)]) + part)
    if meta.iptc is not None:
        yield metadata.jpeg_segment(meta.iptc)
    if comment := metadata.comment_of(meta):
        yield segment(0xFE, comment.encode())
