"""TIFF, which holds more than any one library carries through: pages, 16 bits, floats, EXIF directories, over 4 GB.

Reading: directories are parsed in `core.codecs.tiff_tags`, so that sizes are known before any decoder runs; samples are
interpreted in `core.codecs.tiff_samples`. Where the meaning of a number depends on all of them (floats, wide integers,
"no data"), they are gone over once before (`core.codecs.tiff_numbers`). Writing is in `core.codecs.tiff_write`.

Follows TIFF 6.0 and, for files over 4 GB, BigTIFF.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import BinaryIO

import numpy as np

from core.codecs import segments, tiff_samples
from core.codecs.base import decoder_errors
from core.codecs.tiff_tags import ICC, IPTC, PHOTOSHOP, RGB, XMP, YCBCR, Page, read_pages
from core.errors import TooLarge, UnreadableImage
from core.limits import Limits, check_held
from core.metadata import geo, ifd
from core.metadata.carried import Metadata, bounded
from core.metadata.iptc import iptc_of
from core.metadata.resolution import dpi_of
from core.picture import Picture, Probe, Scan, description
from core.pixels.bands import Bands, Samples, mirrored


def open_tiff(stream: BinaryIO, size: int, limits: Limits) -> tuple[Probe, Callable[[], Iterator[Picture | Scan]]]:
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
    down = [segments.streams(page) for page in file.pages]
    for page, streams in zip(file.pages, down, strict=True):
        if not streams:
            check_held(page.width * page.height, limits)
        elif segments.pixels_at_once(page) > max(min(limits.input_pixels, limits.held_pixels), 1 << 20):
            raise TooLarge("the picture's strips or tiles are larger than memory may hold: save it with smaller ones")
    found = Probe("tiff", first.width, first.height, size, mode, len(file.pages), None, alpha, bits, pixels, all(down))

    def decode_pages() -> Iterator[Picture | Scan]:
        for page in file.pages:
            with decoder_errors():
                meta, notes = _metadata(stream, page, file.big)
                notes += segments.left_out(stream, page)
                said = file.notes if page is first else ()
                if segments.streams(page):
                    scan = _scan(stream, page, meta)
                    yield replace(scan, notes=said + notes + scan.notes)
                    continue
                picture = tiff_samples.read(stream, page, meta)
                if picture.pixels.shape[:2] != (page.height, page.width):
                    raise UnreadableImage("the picture is damaged: it is not of the size that its header says")
                picture = replace(picture, notes=said + notes + picture.notes)
            yield picture

    return found, decode_pages


def _scan(stream: BinaryIO, page: Page, meta: Metadata) -> Scan:
    """A page that is decoded from top to bottom."""
    photometric = RGB if page.photometric == YCBCR else page.photometric  # of a JPEG, decoded to RGB
    levels = tiff_samples.levels_of(segments.read_rows(stream, page), page, photometric)

    def shown(values: Samples) -> Picture:
        return tiff_samples.interpreted(values, page, photometric, meta, levels)

    def read(start: int = 0) -> Iterator[Samples]:
        with decoder_errors():
            for values in segments.read_rows(stream, page, start):
                picture = shown(values)
                yield picture.pixels if picture.alpha is None else np.dstack([picture.pixels, picture.alpha])

    first = shown(next(segments.read_rows(stream, page))[:1])
    channels, alpha = first.pixels.shape[2], first.alpha is not None
    bands = Bands(page.height, page.width, channels, alpha, first.pixels.dtype, read, lambda row: (row, read(row)))
    if page.orientation == 2:
        bands = mirrored(bands)
    return Scan(bands=bands, **description(replace(first, lossless=page.compression != segments.JPEG)))


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
