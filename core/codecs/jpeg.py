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
from core.picture import Scan
from core.pixels.bands import in_rows

_XMP = b"http://ns.adobe.com/xap/1.0/\0"
_ICC = b"ICC_PROFILE\0"
_MOST = 65_533  # bytes in a segment
_LEAST_QUALITY = 85
#: A progressive JPEG has about ten scans. Each goes over the whole picture, so thousands in a small file are a trap.
_MAX_SCANS = 200
#: Bytes of XMP that there is a place for.
MAX_XMP = _MOST - len(_XMP)


def write(stream: BinaryIO, scan: Scan, quality: int | None) -> None:
    """Write a picture without alpha, band by band.

    Each band is coded as a JPEG that stands alone, and their scans are joined by restart markers (ITU-T T.81, E.1.4),
    at which a decoder begins anew: the coefficients are those of the picture coded at once.

    Args:
        stream: open for writing, binary.
        scan: uint8; its metadata fits into segments.
        quality: 1 to 100, as libjpeg counts; None takes the input's, at least 85, with its subsampling, else 95.
    """
    import imagecodecs

    if quality is None and scan.quality is not None:
        quality, subsampling = max(_LEAST_QUALITY, scan.quality), scan.subsampling
    else:
        quality = quality or USUAL_QUALITY
        subsampling = scan.subsampling or ("4:4:4" if quality >= 90 else "4:2:0")
    bands = scan.bands
    chosen = None if bands.channels == 1 else (subsampling or "4:4:4").replace(":", "")
    wide, tall = _BLOCKS[chosen]
    units = -(-bands.width // wide)  # in a row; what a restart interval counts
    rows = max(1, min(_ROWS // tall, 0xFFFF // units))
    for index, band in enumerate(in_rows(bands, rows * tall)):
        samples = np.ascontiguousarray(band[:, :, 0] if bands.channels == 1 else band)
        data = memoryview(imagecodecs.jpeg8_encode(samples, quality, subsampling=chosen, optimize=False))
        start = _scan_of(data)
        if index:
            stream.write(bytes([0xFF, 0xD0 + (index - 1) % 8]))
        else:
            interval = rows * units if rows * tall < bands.height else 0
            stream.write(_header(data[:start], bands.height, interval, scan.meta))
        stream.write(data[start:-2])  # without EOI
    stream.write(b"\xff\xd9")


#: Pixels of the unit that is coded at once, by subsampling (ITU-T T.81, A.2.3).
_BLOCKS = {None: (8, 8), "444": (8, 8), "422": (16, 8), "420": (16, 16)}
_ROWS = 128  # coded at once


def _scan_of(data: memoryview) -> int:
    """Where the coded pixels of a JPEG begin."""
    at = 2
    while data[at + 1] != 0xDA:
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")


def _header(head: memoryview, height: int, interval: int, meta: Metadata) -> bytes:
    """All before the coded pixels of a JPEG of `height` rows, made from one of its first rows.

    Args:
        head: of that one.
        height: pixels.
        interval: units from one restart to the next; 0 for none.
        meta: what is carried beside the pixels.
    """
    parts = [bytearray(head[:20])]  # SOI and the JFIF segment
    if meta.dpi is not None and max(meta.dpi) < 65_535.5:
        parts[0][13:18] = struct.pack(">BHH", 1, *(round(value) for value in meta.dpi))
    parts += [bytearray(segment) for segment in _segments(meta)]
    at = 20
    while at < len(head):
        length = 2 + int.from_bytes(head[at + 2 : at + 4], "big")
        segment = bytearray(head[at : at + length])
        if segment[1] in (0xC0, 0xC1):  # the frame
            segment[5:7] = struct.pack(">H", height)
        elif segment[1] == 0xDA and interval:
            parts.append(bytearray(struct.pack(">BBHH", 0xFF, 0xDD, 4, interval)))
        parts.append(segment)
        at += length
    return b"".join(parts)


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
