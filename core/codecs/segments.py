"""The strips and tiles of a TIFF, decoded one row of them after the other by tifffile.

A file that is one compressed strip has to be decoded at once: there is no place in it to begin or to stop.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any, BinaryIO

import numpy as np

from core.codecs import tiff_numbers
from core.codecs.tiff_tags import (
    BITS,
    COLOURS,
    MIN_IS_BLACK,
    PLANAR,
    RGB,
    ROWS_PER_STRIP,
    TILE_HEIGHT,
    TILE_WIDTH,
    YCBCR,
    Page,
)
from core.errors import UnreadableImage
from core.pixels.bands import Samples

#: Compressions that tifffile is let decode: none, LZW, deflate (two numbers), PackBits, LZMA, Zstandard; and JPEG.
COMPRESSIONS = frozenset([1, 5, 8, 32946, 32773, 34925, 50000])
JPEG = 7
#: Pixels of a page that is rather held than decoded twice.
HELD = 1 << 22
_BAND_BYTES = 1 << 22  # of an uncompressed strip that are read at once


def streams(page: Page) -> bool:
    """Whether a page is decoded from top to bottom, upright.

    Where what a pixel means depends on all of them, they are decoded twice, or once and held where there are few.
    """
    plain = page.numbers(PLANAR, (1,))[0] == 1 and page.photometric in (MIN_IS_BLACK, RGB, YCBCR) and page.bits == 8
    fits = page.photometric in COLOURS and 0 <= page.samples - page.colours <= 4
    return (
        (page.compression in COMPRESSIONS or (page.compression == JPEG and plain and page.samples == page.colours))
        and (page.photometric != YCBCR or page.compression == JPEG)
        and set(page.numbers(BITS, (1,))) in ({8}, {16}, {32}, {64})
        and (page.width * page.height > HELD or not tiff_numbers.need_survey(page, page.photometric))
        and page.orientation <= 2
        and fits
    )


def pixels_at_once(page: Page) -> int:
    """Pixels of a strip or tile; 0 where it needs not be decoded at once."""
    if page.numbers(TILE_WIDTH, (0,))[0]:
        return page.numbers(TILE_WIDTH, (0,))[0] * page.numbers(TILE_HEIGHT, (0,))[0]
    if page.compression == 1:
        return 0
    return page.width * min(page.height, page.numbers(ROWS_PER_STRIP, (page.height,))[0])


def left_out(stream: BinaryIO, page: Page) -> tuple[str, ...]:
    """A note when strips or tiles of a page are not stored: sparse files (GDAL) leave out those that are empty."""
    import tifffile

    logging.getLogger("tifffile").setLevel(logging.CRITICAL + 1)  # it reports every oddity of a file
    stream.seek(0)
    with tifffile.TiffFile(stream, name="input") as file:
        found = file.pages[page.index]
        sizes = found.databytecounts
    missing = sizes.count(0)
    if not missing:
        return ()
    return (f"{missing} of {len(sizes)} strips or tiles are not stored: there the picture is empty",)


def read_rows(stream: BinaryIO, page: Page, start: int = 0) -> Iterator[Samples]:
    """Samples as they are stored, from top to bottom.

    Args:
        stream: the file; read from anywhere in between.
        page: one that streams.
        start: row to begin with; strips and tiles above it are not read.

    Yields:
        (rows, width, samples) uint8 or uint16.

    Raises:
        UnreadableImage: its directory contradicts itself, or the file ends early.
    """
    import tifffile

    logging.getLogger("tifffile").setLevel(logging.CRITICAL + 1)  # it reports every oddity of a file
    stream.seek(0)
    with tifffile.TiffFile(stream, name="input") as file:
        found = file.pages[page.index]
        if not isinstance(found, tifffile.TiffPage) or found.dtype is None or found.imagedepth != 1:
            raise UnreadableImage("this kind of TIFF is not read: save it uncompressed, in grey, RGB or CMYK")
        if (found.imagelength, found.imagewidth, found.samplesperpixel) != (page.height, page.width, page.samples):
            raise UnreadableImage("the picture is damaged: its directory contradicts itself")
        for rows in _read(stream, found, start):
            yield rows.astype(rows.dtype.newbyteorder("="), copy=False)


def _read(stream: BinaryIO, page: Any, start: int) -> Iterator[Samples]:
    height, width, samples = page.imagelength, page.imagewidth, page.samplesperpixel
    planes = samples if page.planarconfig == 2 and samples > 1 else 1
    tall = min(page.tilelength if page.is_tiled else page.rowsperstrip, height) or height
    across = -(-width // page.tilewidth) if page.is_tiled else 1
    down = -(-height // (page.tilelength if page.is_tiled else tall))
    if len(page.dataoffsets) < planes * down * across or len(page.databytecounts) < planes * down * across:
        raise UnreadableImage("the picture is damaged: it has too few strips or tiles")
    plain = page.compression == 1 and page.predictor == 1 and page.fillorder == 1 and not page.is_tiled
    if plain and page.bitspersample == 8 * page.dtype.itemsize:
        yield from _uncompressed(stream, page, planes, down, tall, start)
        return
    tables = {"jpegtables": page.jpegtables, "jpegheader": page.jpegheader} if page.compression == 7 else {}
    for y in range(start // (page.tilelength if page.is_tiled else tall), down):
        top = y * (page.tilelength if page.is_tiled else tall)
        rows = min(page.tilelength if page.is_tiled else tall, height - top)
        band = np.full((rows, width, samples), page.nodata, page.dtype)
        for plane in range(planes):
            place = band[:, :, plane : plane + 1] if planes > 1 else band
            for x in range(across):
                segment = (plane * down + y) * across + x
                data = _bytes(stream, page.dataoffsets[segment], page.databytecounts[segment])
                if data is None:
                    continue  # sparse
                values, (_, _, _, left, _), _ = page.decode(data, segment, **tables)
                values = values[0][:rows, : width - left]
                place[: len(values), left : left + values.shape[1]] = values
        yield band[max(0, start - top) :]


def _bytes(stream: BinaryIO, offset: int, count: int) -> bytes | None:
    if not count:
        return None
    stream.seek(offset)
    data = stream.read(count)
    if len(data) < count:
        raise UnreadableImage("the picture is damaged: it ends before its last strip or tile")
    return data


def _uncompressed(stream: BinaryIO, page: Any, planes: int, down: int, tall: int, start: int) -> Iterator[Samples]:
    """Strips as large as they may be, as many rows at once as are easily held."""
    dtype = np.dtype(page.parent.byteorder + page.dtype.char)
    contiguous = page.samplesperpixel // planes
    line = page.imagewidth * contiguous * dtype.itemsize
    most = max(1, _BAND_BYTES // (line * planes))
    for y in range(start // tall, down):
        rows = min(tall, page.imagelength - y * tall)
        for top in range(max(0, start - y * tall), rows, most):
            count = min(most, rows - top)
            parts = []
            for plane in range(planes):
                offset = page.dataoffsets[plane * down + y]
                stored = page.databytecounts[plane * down + y] > 0
                data = _bytes(stream, offset + top * line, count * line if stored else 0)
                if data is None:
                    parts.append(np.full((count, page.imagewidth, contiguous), page.nodata, dtype))
                else:
                    parts.append(np.frombuffer(data, dtype).reshape(count, page.imagewidth, contiguous))
            yield parts[0] if planes == 1 else np.concatenate(parts, axis=2)
