"""TIFF, written band by band: Pillow has no 16-bit colour, and tifffile cannot write the EXIF and GPS directories.

Follows TIFF 6.0 and, for files over 4 GB, BigTIFF.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

import numpy as np

from core.codecs import tiff_samples
from core.codecs.tiff_tags import (
    BITS,
    COMPRESSION,
    EXTRA_SAMPLES,
    FLOAT,
    HEIGHT,
    ICC,
    IPTC,
    MIN_IS_BLACK,
    PHOTOMETRIC,
    PLANAR,
    PREDICTOR,
    RGB,
    ROWS_PER_STRIP,
    SAMPLE_FORMAT,
    SAMPLES,
    SIGNED,
    STRIP_BYTES,
    STRIP_OFFSETS,
    UNSIGNED,
    WIDTH,
    XMP,
)
from core.metadata import geo, ifd
from core.metadata.carried import comment_of
from core.metadata.ifd import Directory, Entry, Order
from core.picture import SampleRange, Scan
from core.pixels.bands import Samples, in_rows

#: Above this many bytes of pixels the file becomes a BigTIFF: offsets of 32 bits end at 4 GiB.
BIG = 0xF000_0000
_STRIP = 1 << 18  # bytes of pixels in one strip of what is written


def write(stream: BinaryIO, scans: Iterator[Scan], pixels: int) -> tuple[str, ...]:
    """Write pages, each with its own profile, resolution and description; returns notes.

    Strips are compressed with deflate and, for integers, horizontal differences.

    Args:
        stream: seekable, open for writing, binary, at its start.
        scans: the pages.
        pixels: that all pages together have at most; decides whether 32-bit offsets will do.
    """
    notes: list[str] = []
    linked: int | None = None  # where the offset of the next directory belongs
    order: Order = "<"
    big = False
    for scan in scans:
        described = Directory(order)
        if scan.meta.exif is not None:
            try:
                described = ifd.read_block(scan.meta.exif)
            except (ValueError, struct.error):
                notes.append("the EXIF block is damaged and was left out")
        if linked is None:
            order = described.order
            big = pixels * _samples(scan) * _stored(scan).itemsize > BIG
            stream.write((b"II" if order == "<" else b"MM") + struct.pack(order + "H", 43 if big else 42))
            stream.write(struct.pack(order + "HHQ", 8, 0, 0) if big else bytes(4))
            linked = 8 if big else 4
        elif described.order != order:
            described = Directory(order)  # values of the other byte order; only a file in two orders has them
        linked = _write_page(stream, scan, described, order, big, linked)
    return tuple(notes)


def _stored(scan: Scan) -> np.dtype[Any]:
    """The type of the samples in the file."""
    return scan.bands.dtype if scan.levels is None else np.dtype(scan.levels.dtype)


def _samples(scan: Scan) -> int:
    """Samples of a pixel in the file: opacity that stands for "no data" is none of them."""
    return scan.bands.channels if scan.levels and scan.levels.nodata is not None else scan.bands.samples


def _in_own_numbers(band: Samples, levels: SampleRange | None, alpha: bool) -> Samples:
    """(rows, w, samples) as they are to be stored: floats and wide integers in their own numbers again."""
    if levels is None:
        return band
    dtype, top = np.dtype(levels.dtype), np.iinfo(band.dtype).max
    opacity = band[:, :, -1] if alpha else None
    # float64: exact for integers of up to 53 bits
    found = tiff_samples.to_numbers(band[:, :, :-1] if alpha else band, levels)
    if levels.nodata is not None and opacity is not None:
        found[opacity <= top // 2] = levels.nodata
    if dtype.kind in "iu":
        info = np.iinfo(dtype)
        most = np.nextafter(float(info.max), 0) if info.bits > 53 else info.max
        found = np.clip(np.rint(np.nan_to_num(found)), float(info.min), most)
    elif dtype.itemsize < 8:
        most = float(np.finfo(dtype).max)
        found = np.clip(found, -most, most, where=np.isfinite(found), out=found)
    if opacity is not None and levels.nodata is None:
        highest = 1.0 if dtype.kind == "f" else float(np.iinfo(dtype).max)
        found = np.dstack([found, opacity * (highest / top)])
    return found.astype(dtype)


def _write_page(stream: BinaryIO, scan: Scan, described: Directory, order: Order, big: bool, linked: int) -> int:
    """Write strips and directory; link the directory from `linked`. Gives where its own successor is to be linked."""
    bands, dtype, count = scan.bands, _stored(scan), _samples(scan)
    height, width, colours = bands.height, bands.width, bands.channels
    kind = {"u": UNSIGNED, "i": SIGNED, "f": FLOAT}[dtype.kind]
    predictor = 2 if kind != FLOAT and dtype.itemsize <= 4 else 1
    rows = max(1, _STRIP // (width * count * dtype.itemsize))
    offsets, sizes = [], []
    for band in in_rows(bands, rows):
        strip = _in_own_numbers(band, scan.levels, bands.alpha)
        if predictor == 2:
            strip = np.concatenate([strip[:, :1], strip[:, 1:] - strip[:, :-1]], axis=1)  # wraps, as it should
        packed = zlib.compress(strip.astype(dtype.newbyteorder(order)).tobytes(), 5)
        offsets.append(stream.tell())
        sizes.append(len(packed))
        stream.write(packed + bytes(len(packed) % 2))
    entries = [
        _field(order, 4, WIDTH, [width]),
        _field(order, 4, HEIGHT, [height]),
        _field(order, 3, BITS, [dtype.itemsize * 8] * count),
        _field(order, 3, COMPRESSION, [8]),
        _field(order, 3, PHOTOMETRIC, [RGB if colours == 3 else MIN_IS_BLACK]),
        _field(order, 16 if big else 4, STRIP_OFFSETS, offsets),
        _field(order, 3, SAMPLES, [count]),
        _field(order, 4, ROWS_PER_STRIP, [rows]),
        _field(order, 16 if big else 4, STRIP_BYTES, sizes),
        _field(order, 3, PLANAR, [1]),
        _field(order, 3, PREDICTOR, [predictor]),
        _field(order, 3, SAMPLE_FORMAT, [kind] * count),
    ]
    if count > colours:
        entries.append(_field(order, 3, EXTRA_SAMPLES, [2]))
    meta = scan.meta
    for tag, block in ((ICC, meta.icc), (XMP, meta.xmp), (IPTC, meta.iptc)):
        if block:
            entries.append(Entry(tag, 1 if tag == XMP else 7, len(block), block))
    if meta.dpi is not None:
        entries += ifd.resolution(meta.dpi, order)
    kept = [entry for entry in described.entries if entry.tag in ifd.DESCRIPTIVE]
    kept += geo.fields(meta.tiff, order)
    if scan.levels is not None and scan.levels.nodata is not None:
        kept = [entry for entry in kept if entry.tag != geo.NODATA]
        kept.append(ifd.text(geo.NODATA, f"{scan.levels.nodata:.17g}"))
    comment = comment_of(meta)
    if comment and not any(entry.tag == ifd.IMAGE_DESCRIPTION for entry in kept):
        kept.append(ifd.text(ifd.IMAGE_DESCRIPTION, comment))
    at = stream.tell()
    directory, successor = ifd.pack(Directory(order, entries + kept, described.subdirectories), at, big)
    stream.write(directory)
    end = stream.tell()
    stream.seek(linked)
    stream.write(struct.pack(order + ("Q" if big else "I"), at))
    stream.seek(end)
    if end % 2:
        stream.write(b"\0")
    return at + successor


def _field(order: Order, kind: int, tag: int, values: Sequence[int]) -> Entry:
    letter = {3: "H", 4: "I", 16: "Q"}[kind]
    return Entry(tag, kind, len(values), struct.pack(f"{order}{len(values)}{letter}", *values))
