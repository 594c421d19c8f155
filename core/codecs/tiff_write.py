"""TIFF, written band by band: Pillow has no 16-bit colour, and tifffile cannot write the EXIF and GPS directories.

Small files are strips, which every reader knows. A BigTIFF is written in tiles: who reads the one reads the other, and
to show a part of a gigapixel from strips as wide as the picture takes minutes. A pyramid's smaller copies follow their
page in the chain of directories, marked as such (NewSubfileType 1): OpenSlide, GDAL with QGIS, IIIF servers, libvips
and tifffile find them there, while only some of these look into subdirectories. In a document of several pages they
are subdirectories all the same (Technical Note 1), as libvips has it: the pages keep their numbers.

Follows TIFF 6.0 and, for files over 4 GB, BigTIFF.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from typing import BinaryIO

from core.codecs.tiff_levels import Level, has_differences, stored_samples, stored_type, write_levels
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
    SUBDIRECTORIES,
    SUBFILE_KIND,
    TILE_BYTES,
    TILE_HEIGHT,
    TILE_OFFSETS,
    TILE_WIDTH,
    UNSIGNED,
    WIDTH,
    XMP,
)
from core.metadata import geo, ifd
from core.metadata.carried import comment_of
from core.metadata.ifd import Directory, Entry, Order
from core.picture import Scan

#: Above this many bytes of pixels the file becomes a BigTIFF: offsets of 32 bits end at 4 GiB.
BIG = 0xF000_0000
_DEFLATE, _REDUCED = 8, 1


def write(
    stream: BinaryIO, scans: Iterator[Scan], pixels: int, *, pyramid: bool = False, pages: int = 1
) -> tuple[str, ...]:
    """Write pages, each with its own profile, resolution and description; returns notes.

    Strips and tiles are compressed with deflate and, for integers, horizontal differences.

    Args:
        stream: seekable, open for writing, binary, at its start.
        scans: the pages.
        pixels: that all pages together have at most; decides whether 32-bit offsets will do.
        pyramid: write smaller copies of each page for viewers.
        pages: how many there will be; decides where these copies are found.
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
            size = pixels * stored_samples(scan) * stored_type(scan).itemsize
            big = size * (4 / 3 if pyramid else 1) > BIG
            stream.write((b"II" if order == "<" else b"MM") + struct.pack(order + "H", 43 if big else 42))
            stream.write(struct.pack(order + "HHQ", 8, 0, 0) if big else bytes(4))
            linked = 8 if big else 4
        elif described.order != order:
            described = Directory(order)  # values of the other byte order; only a file in two orders has them
        levels = write_levels(stream, scan, order, tiled=big, pyramid=pyramid)
        copies = [Directory(order, _reduced(scan, level, order, big)) for level in levels[1:]]
        page = Directory(
            order, _storage(scan, levels[0], order, big) + _description(scan, described), described.subdirectories
        )
        if copies and pages > 1:
            places = [_append(stream, copy, big)[0] for copy in copies]
            page.entries.append(_field(order, 18 if big else 13, SUBDIRECTORIES, places))
            copies = []
        for directory in (page, *copies):
            at, successor = _append(stream, directory, big)
            _link(stream, linked, at, order, big)
            linked = successor
    return tuple(notes)


def _storage(scan: Scan, level: Level, order: Order, big: bool) -> list[Entry]:
    """How the pixels of a page, or of a smaller copy of it, are stored and what they stand for."""
    dtype, count, colours = stored_type(scan), stored_samples(scan), scan.bands.channels
    kind = {"u": UNSIGNED, "i": SIGNED, "f": FLOAT}[dtype.kind]
    wide = 16 if big else 4
    entries = [
        _field(order, 4, WIDTH, [level.width]),
        _field(order, 4, HEIGHT, [level.height]),
        _field(order, 3, BITS, [dtype.itemsize * 8] * count),
        _field(order, 3, COMPRESSION, [_DEFLATE]),
        _field(order, 3, PHOTOMETRIC, [RGB if colours == 3 else MIN_IS_BLACK]),
        _field(order, 3, SAMPLES, [count]),
        _field(order, 3, PLANAR, [1]),
        _field(order, 3, PREDICTOR, [2 if has_differences(dtype) else 1]),
        _field(order, 3, SAMPLE_FORMAT, [kind] * count),
    ]
    if level.columns:
        entries += [_field(order, 3, TILE_WIDTH, [level.columns]), _field(order, 3, TILE_HEIGHT, [level.rows])]
    else:
        entries.append(_field(order, 4, ROWS_PER_STRIP, [level.rows]))
    places, sizes = (TILE_OFFSETS, TILE_BYTES) if level.columns else (STRIP_OFFSETS, STRIP_BYTES)
    entries += [_field(order, wide, places, level.offsets), _field(order, wide, sizes, level.sizes)]
    if count > colours:
        entries.append(_field(order, 3, EXTRA_SAMPLES, [2]))
    if scan.meta.icc:
        entries.append(Entry(ICC, 7, len(scan.meta.icc), scan.meta.icc))
    if scan.meta.dpi is not None:
        across, down = level.width / scan.bands.width, level.height / scan.bands.height
        entries += ifd.resolution((scan.meta.dpi[0] * across, scan.meta.dpi[1] * down), order)
    if scan.levels is not None and scan.levels.nodata is not None:
        entries.append(ifd.text(geo.NODATA, f"{scan.levels.nodata:.17g}"))
    return entries


def _reduced(scan: Scan, level: Level, order: Order, big: bool) -> list[Entry]:
    """The fields of a smaller copy."""
    return [_field(order, 4, SUBFILE_KIND, [_REDUCED]), *_storage(scan, level, order, big)]


def _description(scan: Scan, described: Directory) -> list[Entry]:
    """Who, when, where and with what: of the page itself only."""
    meta = scan.meta
    entries = [
        Entry(tag, 1 if tag == XMP else 7, len(block), block)
        for tag, block in ((XMP, meta.xmp), (IPTC, meta.iptc))
        if block
    ]
    entries += [entry for entry in described.entries if entry.tag in ifd.DESCRIPTIVE]
    given = geo.fields(meta.tiff, described.order)
    nodata = scan.levels is not None and scan.levels.nodata is not None  # stated with the pixels then
    entries += [entry for entry in given if not (nodata and entry.tag == geo.NODATA)]
    comment = comment_of(meta)
    if comment and not any(entry.tag == ifd.IMAGE_DESCRIPTION for entry in entries):
        entries.append(ifd.text(ifd.IMAGE_DESCRIPTION, comment))
    return entries


def _append(stream: BinaryIO, directory: Directory, big: bool) -> tuple[int, int]:
    """Write a directory at the end; gives where it lies, and where the offset of its successor belongs."""
    at = stream.tell()
    packed, successor = ifd.pack(directory, at, big)
    stream.write(packed + bytes(len(packed) % 2))
    return at, at + successor


def _link(stream: BinaryIO, place: int, at: int, order: Order, big: bool) -> None:
    """Write the offset of a directory to where it is looked for."""
    end = stream.tell()
    stream.seek(place)
    stream.write(struct.pack(order + ("Q" if big else "I"), at))
    stream.seek(end)


def _field(order: Order, kind: int, tag: int, values: Sequence[int]) -> Entry:
    letter = {3: "H", 4: "I", 13: "I", 16: "Q", 18: "Q"}[kind]
    return Entry(tag, kind, len(values), struct.pack(f"{order}{len(values)}{letter}", *values))
