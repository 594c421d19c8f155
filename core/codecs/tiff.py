"""TIFF, which holds more than any one library carries through: pages, 16 bits, floats, EXIF directories, over 4 GB.

Reading: directories are parsed in `core.codecs.tiff_tags`, so that sizes are known before any decoder runs; samples are
decoded and interpreted in `core.codecs.tiff_samples`. Writing is done here: Pillow has no 16-bit colour, and tifffile
cannot write the EXIF and GPS directories.

Follows TIFF 6.0 and, for files over 4 GB, BigTIFF.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from core.codecs import tiff_samples
from core.codecs.base import decoder_errors
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
    PHOTOSHOP,
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
    Page,
    read_pages,
)
from core.errors import UnreadableImage
from core.limits import Limits
from core.metadata import geo, ifd
from core.metadata.carried import Metadata, bounded, comment_of
from core.metadata.ifd import Directory, Entry, Order
from core.metadata.iptc import iptc_of
from core.metadata.resolution import dpi_of
from core.picture import Picture, Probe

Samples = npt.NDArray[Any]

#: Above this many bytes of pixels the file becomes a BigTIFF: offsets of 32 bits end at 4 GiB.
BIG = 0xF000_0000
_STRIP = 1 << 18  # bytes of pixels in one strip of what is written


def open_tiff(stream: BinaryIO, size: int, limits: Limits) -> tuple[Probe, Callable[[], Iterator[Picture]]]:
    """The header of a TIFF, and a function that decodes its pages.

    Raises:
        UnreadableImage: damaged, or of a kind that is not read.
        TooLarge: over a limit.
    """
    file = read_pages(stream, limits)
    first = file.pages[0]
    mode = {1: "L", 3: "RGB", 4: "CMYK"}[first.colours]
    bits = max(8, *(page.bits for page in file.pages))
    alpha = first.samples > first.colours
    mode += "A" if alpha else ""
    pixels = sum(page.width * page.height for page in file.pages)
    found = Probe("tiff", first.width, first.height, size, mode, len(file.pages), None, alpha, bits, pixels)

    def decode_pages() -> Iterator[Picture]:
        for page in file.pages:
            with decoder_errors():
                meta, notes = _metadata(stream, page, file.big)
                picture = tiff_samples.read(stream, page, meta)
                if picture.pixels.shape[:2] != (page.height, page.width):
                    raise UnreadableImage("the picture is damaged: it is not of the size that its header says")
                said = file.notes if page is first else ()
                picture = replace(picture, notes=said + notes + picture.notes)
            yield picture

    return found, decode_pages


def _metadata(stream: BinaryIO, page: Page, big: bool) -> tuple[Metadata, tuple[str, ...]]:
    order = page.fields.order
    notes: tuple[str, ...] = ()
    block = bound = None
    try:
        described = ifd.read_tiff(stream, page.offset, order, big)
        bound, described.entries, notes = geo.separated(
            ifd.read_fields(stream, page.offset, order, big, geo.TAGS, ifd.MAX_BYTES)[0],
            described.entries,
            page.orientation,
        )
        if described.entries or described.subdirectories:
            block = ifd.write_block(described)
    except (ValueError, struct.error):
        notes = ("the description of the picture is damaged and was left out",)
    iptc = page.block(IPTC) or iptc_of(page.block(PHOTOSHOP) or b"")
    if page.block(PHOTOSHOP) and len(page.block(PHOTOSHOP) or b"") > len(iptc or b"") + 64:
        notes += ("Photoshop's own blocks were left out",)
    found = Metadata(page.block(ICC), block, page.block(XMP), iptc, dpi_of(page.fields), tiff=bound)
    found, said = bounded(found)
    return found, notes + said


def write(stream: BinaryIO, pictures: Iterator[Picture], pixels: int) -> tuple[str, ...]:
    """Write pages, each with its own profile, resolution and description; returns notes.

    Strips are compressed with deflate and, for integers, horizontal differences.

    Args:
        stream: seekable, open for writing, binary, at its start.
        pictures: the pages.
        pixels: that all pages together have at most; decides whether 32-bit offsets will do.
    """
    notes: list[str] = []
    linked: int | None = None  # where the offset of the next directory belongs
    order: Order = "<"
    big = False
    for picture in pictures:
        samples = _samples(picture)
        described = Directory(order)
        if picture.meta.exif is not None:
            try:
                described = ifd.read_block(picture.meta.exif)
            except (ValueError, struct.error):
                notes.append("the EXIF block is damaged and was left out")
        if linked is None:
            order = described.order
            big = pixels * samples.shape[2] * samples.dtype.itemsize > BIG
            stream.write((b"II" if order == "<" else b"MM") + struct.pack(order + "H", 43 if big else 42))
            stream.write(struct.pack(order + "HHQ", 8, 0, 0) if big else bytes(4))
            linked = 8 if big else 4
        elif described.order != order:
            described = Directory(order)  # values of the other byte order; only a file in two orders has them
        linked = _write_page(stream, picture, samples, described, order, big, linked)
    return tuple(notes)


def _samples(picture: Picture) -> Samples:
    """(h, w, samples) as they are to be stored: alpha last, floats and wide integers in their own numbers again."""
    layers, alpha, levels = picture.pixels, picture.alpha, picture.levels
    if levels is None:
        return layers if alpha is None else np.dstack([layers, alpha])
    dtype = np.dtype(levels.dtype)
    found = tiff_samples.to_numbers(layers, levels)  # float64: exact for integers of up to 53 bits
    if levels.nodata is not None and alpha is not None:  # alpha stood for "no data"
        found[alpha <= np.iinfo(alpha.dtype).max // 2] = levels.nodata
    if dtype.kind in "iu":
        info = np.iinfo(dtype)
        most = np.nextafter(float(info.max), 0) if info.bits > 53 else info.max
        found = np.clip(np.rint(np.nan_to_num(found)), float(info.min), most)
    elif dtype.itemsize < 8:
        most = float(np.finfo(dtype).max)
        found = np.clip(found, -most, most, where=np.isfinite(found), out=found)
    if alpha is not None and levels.nodata is None:
        top = 1.0 if dtype.kind == "f" else float(np.iinfo(dtype).max)
        found = np.dstack([found, alpha * (top / np.iinfo(alpha.dtype).max)])
    return found.astype(dtype)


def _write_page(
    stream: BinaryIO, picture: Picture, samples: Samples, described: Directory, order: Order, big: bool, linked: int
) -> int:
    """Write strips and directory; link the directory from `linked`. Gives where its own successor is to be linked."""
    height, width, count = samples.shape
    kind = {"u": UNSIGNED, "i": SIGNED, "f": FLOAT}[samples.dtype.kind]
    predictor = 2 if kind != FLOAT and samples.dtype.itemsize <= 4 else 1
    rows = max(1, _STRIP // (width * count * samples.dtype.itemsize))
    offsets, sizes = [], []
    for row in range(0, height, rows):
        strip = samples[row : row + rows]
        if predictor == 2:
            strip = np.concatenate([strip[:, :1], strip[:, 1:] - strip[:, :-1]], axis=1)  # wraps, as it should
        packed = zlib.compress(strip.astype(samples.dtype.newbyteorder(order)).tobytes(), 5)
        offsets.append(stream.tell())
        sizes.append(len(packed))
        stream.write(packed + bytes(len(packed) % 2))
    colours = picture.pixels.shape[2]
    entries = [
        _field(order, 4, WIDTH, [width]),
        _field(order, 4, HEIGHT, [height]),
        _field(order, 3, BITS, [samples.dtype.itemsize * 8] * count),
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
    meta = picture.meta
    for tag, block in ((ICC, meta.icc), (XMP, meta.xmp), (IPTC, meta.iptc)):
        if block:
            entries.append(Entry(tag, 1 if tag == XMP else 7, len(block), block))
    if meta.dpi is not None:
        entries += ifd.resolution(meta.dpi, order)
    kept = [entry for entry in described.entries if entry.tag in ifd.DESCRIPTIVE]
    kept += geo.fields(meta.tiff, order)
    if picture.levels is not None and picture.levels.nodata is not None:
        kept = [entry for entry in kept if entry.tag != geo.NODATA]
        kept.append(ifd.text(geo.NODATA, f"{picture.levels.nodata:.17g}"))
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
