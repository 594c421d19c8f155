"""JPEG: written here, from the pixels as they are, as Pillow would copy them first, four bytes for each.

Pillow reads it (`core.codecs.pillow`); what to know of a file's scans and of its coding is here.

Follows JFIF 1.02 and its neighbours: EXIF 2.32 (APP1), XMP part 3 (APP1), ICC.1 annex B (APP2), IPTC in Photoshop's
image resources (APP13).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np
from PIL import Image, JpegImagePlugin

from core.codecs.base import USUAL_QUALITY
from core.errors import UnreadableImage
from core.metadata.carried import Metadata, comment_of
from core.metadata.iptc import jpeg_segment
from core.picture import Picture

_XMP = b"http://ns.adobe.com/xap/1.0/\0"
_ICC = b"ICC_PROFILE\0"
_MOST = 65_533  # bytes in a segment
_LEAST_QUALITY = 85
#: A progressive JPEG has about ten scans. Each goes over the whole picture, so thousands in a small file are a trap.
_MAX_SCANS = 200
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
        yield jpeg_segment(meta.iptc)
    if comment := comment_of(meta):
        yield segment(0xFE, comment.encode())


def check_scans(stream: BinaryIO) -> None:
    """Refuse a JPEG with absurdly many scans before it is decoded.

    Raises:
        UnreadableImage: it has more than any camera writes.
    """
    stream.seek(0)
    scans = 0
    while block := stream.read(1 << 20):
        scans += block.count(b"\xff\xda")
    if scans > _MAX_SCANS:
        raise UnreadableImage(f"the picture has {scans} scans, which no camera writes")


def coding(image: Image.Image) -> tuple[int | None, str | None]:
    """Quality, 1 to 100 as libjpeg counts it, and subsampling of a JPEG that Pillow has opened; None where unknown."""
    tables = getattr(image, "quantization", None) or {}
    table = tables.get(0)
    subsampling = {0: "4:4:4", 1: "4:2:2", 2: "4:2:0"}.get(JpegImagePlugin.get_sampling(image))
    if not table:
        return None, subsampling
    # libjpeg scales the table of the standard (Annex K, sum 3,679) by 50 / q below 50, and by 2 - q / 50 above.
    factor = sum(table) / 3679
    quality = 50 / factor if factor > 1 else 100 - 50 * factor
    return max(1, min(100, round(quality))), subsampling
