"""The pixels of a TIFF's page as they are written: strips or tiles, and smaller copies for viewers made on the way.

A row of tiles of each level is held, no more: twice what one row of the page's own tiles takes, in all.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import numpy as np

from core.codecs import tiff_numbers
from core.metadata.ifd import Order
from core.picture import SampleRange, Scan
from core.pixels.bands import Samples, in_rows
from core.pixels.resize import halved

#: Side of a tile, pixels. What OpenSlide, IIIF servers and GDAL like best: 512 would double the memory that rows of
#: tiles take, and what a viewer fetches for the edge of its window.
TILE = 256
_STRIP = 1 << 18  # bytes of pixels in one strip
_BLOCK = 1 << 22  # bytes of strips that are compressed side by side
_THREADS = min(4, os.cpu_count() or 1)  # that compress
_LEVEL = 4  # of libdeflate: as small as zlib makes it at its 5, in a third of the time


@dataclass(frozen=True)
class Level:
    """One resolution of a page, and where its strips or tiles lie in the file.

    Attributes:
        height: pixels.
        width: pixels.
        rows: of a strip or tile.
        columns: of a tile; 0 for strips, which are as wide as the picture.
        offsets: of the strips or tiles, bytes.
        sizes: of the strips or tiles, bytes.
    """

    height: int
    width: int
    rows: int
    columns: int
    offsets: list[int] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)


def stored_type(scan: Scan) -> np.dtype[Any]:
    """The type of the samples in the file."""
    return scan.bands.dtype if scan.levels is None else np.dtype(scan.levels.dtype)


def stored_samples(scan: Scan) -> int:
    """Samples of a pixel in the file: opacity that stands for "no data" is none of them."""
    return scan.bands.channels if scan.levels and scan.levels.nodata is not None else scan.bands.samples


def has_differences(dtype: np.dtype[Any]) -> bool:
    """Whether samples of a type are stored as horizontal differences (TIFF 6.0, section 14)."""
    return dtype.kind != "f" and dtype.itemsize <= 4


def write_levels(stream: BinaryIO, scan: Scan, order: Order, *, tiled: bool, pyramid: bool) -> list[Level]:
    """Write the pixels of a page, compressed with deflate.

    Args:
        stream: where; at an even position.
        scan: the page; its bands are read once.
        order: of the bytes in a sample.
        tiled: write tiles of `TILE` pixels, else strips.
        pyramid: write smaller copies as well, each half as high and wide as the one before (rounded up), until one
            fits into a tile; means of 2x2 pixels, weighted by their opacity.

    Returns:
        The page itself and its smaller copies, the largest first.
    """
    bands, dtype = scan.bands, stored_type(scan)
    row_bytes = bands.width * stored_samples(scan) * dtype.itemsize
    rows, columns = (TILE, TILE) if tiled or pyramid else (max(1, _STRIP // row_bytes), 0)
    levels = [Level(bands.height, bands.width, rows, columns)]
    while pyramid and max(levels[-1].height, levels[-1].width) > TILE:
        levels.append(Level(-(-levels[-1].height // 2), -(-levels[-1].width // 2), TILE, TILE))
    with ThreadPoolExecutor(_THREADS, "deflate") as pool:
        passing = iter(bands)
        for level in levels[:-1]:
            passing = _halved(_written(stream, scan, order, level, passing, pool), bands.alpha)
        for _ in _written(stream, scan, order, levels[-1], passing, pool):
            pass
    return levels


def _halved(bands: Iterator[Samples], alpha: bool) -> Iterator[Samples]:
    for band in bands:
        yield halved(band, alpha)
        del band  # else it is held while the next is made


def _written(
    stream: BinaryIO, scan: Scan, order: Order, level: Level, bands: Iterator[Samples], pool: ThreadPoolExecutor
) -> Iterator[Samples]:
    """The same rows, an even number at a time but for the last, once they are in the file."""
    together = level.rows
    if not level.columns:
        together *= max(1, _BLOCK // (level.rows * scan.bands.row_bytes))
    for block in in_rows(bands, together):
        pieces = _pieces(block, level)
        while some := list(itertools.islice(pieces, 4 * _THREADS)):  # so that few compressed ones are held
            for packed in pool.map(lambda piece: _packed(piece, scan, order), some):
                level.offsets.append(stream.tell())
                level.sizes.append(len(packed))
                stream.write(packed + bytes(len(packed) % 2))
        yield block
        del block


def _pieces(block: Samples, level: Level) -> Iterator[Samples]:
    """Strips, or tiles, which are filled up with the last column and row."""
    if not level.columns:
        yield from (block[top : top + level.rows] for top in range(0, len(block), level.rows))
        return
    for left in range(0, level.width, level.columns):
        tile = block[:, left : left + level.columns]
        missing = [(0, level.rows - len(tile)), (0, level.columns - tile.shape[1]), (0, 0)]
        yield np.pad(tile, missing, mode="edge") if missing[0][1] or missing[1][1] else tile


def _packed(piece: Samples, scan: Scan, order: Order) -> bytes:
    import imagecodecs

    values = _in_own_numbers(piece, scan.levels, scan.bands.alpha)
    if has_differences(values.dtype):
        values = np.concatenate([values[:, :1], values[:, 1:] - values[:, :-1]], axis=1)  # wraps, as it should
    values = values.astype(values.dtype.newbyteorder(order), copy=False)
    return bytes(imagecodecs.deflate_encode(values.tobytes(), _LEVEL))


def _in_own_numbers(band: Samples, levels: SampleRange | None, alpha: bool) -> Samples:
    """(rows, w, samples) as they are to be stored: floats and wide integers in their own numbers again."""
    if levels is None:
        return band
    dtype, top = np.dtype(levels.dtype), np.iinfo(band.dtype).max
    opacity = band[:, :, -1] if alpha else None
    # float64: exact for integers of up to 53 bits
    found = tiff_numbers.to_numbers(band[:, :, :-1] if alpha else band, levels)
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
