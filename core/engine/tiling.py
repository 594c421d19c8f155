"""Where tiles lie: aligned, with a halo, cropped and pasted without blending.

A tile owns a part of the picture and is computed from a larger region around it. Origins and sizes of regions are
multiples of the model's window, because a window-attention network computes something else when its grid moves
(about 21 dB of difference, whatever the overlap). With a halo of at least the receptive field, the owned part does not
depend on where the region ends, so the pasted result equals the untiled one.

All regions of a picture have the same size: at the picture's edges a region is moved inwards instead of being cut, so
that kernels, chosen by shape, are the same for each tile. The picture's own edges stay region edges.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterator
from dataclasses import dataclass

#: Smallest side of a region where the picture has as much: for narrower ones runtimes take other kernels, with other
#: bits (OpenVINO in bf16).
NARROWEST = 48

#: Widths of regions are multiples, in pixels: OpenVINO in bf16 takes up to four times as long for some that are not.
COLUMN_STEP = 8

#: What a tile costs beside its pixels, in pixels: threads are woken, kernels begin.
_TILE_COST = 1 << 11


@dataclass(frozen=True)
class Span:
    """One axis of a tile, in input pixels.

    Attributes:
        start: first owned pixel.
        stop: one past the last owned pixel.
        origin: first pixel of the region that is computed; a multiple of the window.
        size: length of the region; a multiple of the window, and may reach past the picture by less than a window.
    """

    start: int
    stop: int
    origin: int
    size: int


@dataclass(frozen=True)
class Tile:
    """A rectangle of the picture (`rows` x `columns`) and the region that it is computed from."""

    rows: Span
    columns: Span


def round_up(value: int, window: int) -> int:
    """The smallest multiple of window that is at least value."""
    return -(-value // window) * window


def region_side(tile: int, halo: int, window: int) -> int:
    """Side of the region that a tile in the middle of a picture is computed from, in pixels."""
    return max(max(window, tile // window * window) + 2 * round_up(halo, window), round_up(NARROWEST, window))


def spans(length: int, tile: int, halo: int, window: int, start: int = 0, stop: int | None = None) -> list[Span]:
    """Cut [start, stop) of an axis into owned parts with regions of equal size.

    Args:
        length: of the whole axis, in pixels; at least 1.
        tile: largest owned length, halo not counted; a window at least.
        halo: context that every owned pixel gets on both sides, except beyond the picture's edges.
        window: grid of the model; origins and sizes are multiples of it.
        start: first pixel to cover; a multiple of the window.
        stop: one past the last pixel to cover; a multiple of the window, or length (the default).

    Returns:
        One span for each part, in order; together they own each pixel of [start, stop) once.
    """
    stop = length if stop is None else stop
    halo = round_up(halo, window)
    padded = round_up(length, window)
    # Context that lies beyond the picture does not exist: [low, high) is all that can influence [start, stop).
    low, high = max(0, start - halo), min(padded, round_up(stop, window) + halo)
    lack = min(padded, round_up(NARROWEST, window)) - (high - low)
    if lack > 0:  # more of the picture than the halo is
        low = max(0, low - lack)
        high = max(high, min(padded, low + round_up(NARROWEST, window)))
    need = high - low
    size = min(need, region_side(tile, halo, window))
    if size == need:
        return [Span(start, stop, low, size)]
    count = 1 + -(-(need - size) // (size - 2 * halo))
    return _evenly(count, low, high, halo, window, start, stop)


def _evenly(count: int, low: int, high: int, halo: int, window: int, start: int, stop: int) -> list[Span]:
    """Cut [start, stop) into parts with regions of equal size in [low, high), each as large as that number needs."""
    size = _even_size(count, high - low, halo, window)
    found = []
    own = start
    for index in range(count):
        origin = min(low + index * (size - 2 * halo), high - size)
        end = stop if index == count - 1 else origin + size - halo
        found.append(Span(own, end, origin, size))
        own = end
    return found


def _even_size(count: int, need: int, halo: int, window: int) -> int:
    even = round_up(-(-(need + 2 * halo * (count - 1)) // count), window)
    return min(need, max(even, round_up(NARROWEST, window)))


def cheapest_rows(
    height: int, width: int, largest: int, halo: int, window: int, at_once: int, most_rows: int | None = None
) -> list[list[Tile]]:
    """Cut a whole picture into the tiles that take the least time.

    Args:
        height: of the picture, pixels.
        width: of the picture, pixels.
        largest: pixels of a region, at most.
        halo: context around the owned part, pixels.
        window: the model's grid, pixels.
        at_once: how many tiles are computed side by side, each in a time that goes by its region's pixels.
        most_rows: as for `tile_rows`.

    Returns:
        Rows of tiles from top to bottom, each row from left to right.
    """
    halo = round_up(halo, window)
    high, wide = round_up(height, window), round_up(width, window)

    step = math.lcm(window, COLUMN_STEP)

    def counts(need: int, step: int) -> Iterator[tuple[int, int]]:
        """How many parts there may be, and how large their regions are then: fewer of the same size cost less."""
        yield 1, need
        last = need
        for count in range(2, need):
            size = _even_size(count, need, halo, step)
            if size < last:
                yield count, size
                last = size
            if size <= region_side(window, halo, window):
                return

    def cost(rows: tuple[int, int], columns: tuple[int, int]) -> int:
        return -(-rows[0] * columns[0] // at_once) * (rows[1] * columns[1] + _TILE_COST)

    # The more columns, the smaller a region: the first that fit, and some more, of which one may fill all threads.
    columns = list(counts(wide, step))
    best: tuple[int, int, int] | None = None
    for rows in counts(high, window):
        if most_rows is not None and rows[1] > round_up(most_rows, window) + 2 * halo:
            continue
        first = bisect.bisect_left(columns, -largest, key=lambda column: -rows[1] * column[1])
        for column in columns[first : first + at_once + 1]:
            found = cost(rows, column), rows[0], column[0]
            best = found if best is None else min(best, found)
    if best is None:  # no region is that small: the smallest there are
        return tile_rows(height, width, window, halo, window, most_rows)
    columns_of = _evenly(best[2], 0, wide, halo, step, 0, width)
    return [[Tile(row, column) for column in columns_of] for row in _evenly(best[1], 0, high, halo, window, 0, height)]


def tile_rows(
    height: int, width: int, tile: int, halo: int, window: int, most_rows: int | None = None
) -> list[list[Tile]]:
    """Cut a whole picture into tiles.

    Args:
        height: of the picture, pixels.
        width: of the picture, pixels.
        tile: largest owned side, pixels.
        halo: context around the owned part, pixels.
        window: the model's grid, pixels.
        most_rows: largest owned height, where that is less than `tile`: a row of tiles is held, however wide it is.

    Returns:
        Rows of tiles from top to bottom, each row from left to right.
    """
    columns = spans(width, tile, halo, window)
    tall = tile if most_rows is None else min(tile, most_rows)
    return [[Tile(row, column) for column in columns] for row in spans(height, tall, halo, window)]


def split(part: Tile, height: int, width: int, tile: int, halo: int, window: int) -> list[Tile]:
    """Cut a tile that did not fit into memory into smaller ones.

    Args:
        part: the tile.
        height: of the whole picture, pixels.
        width: of the whole picture, pixels.
        tile: largest owned side, pixels.
        halo: context around the owned part, pixels.
        window: the model's grid, pixels.

    Returns:
        Tiles that own together what `part` owns.
    """
    rows = spans(height, tile, halo, window, part.rows.start, part.rows.stop)
    columns = spans(width, tile, halo, window, part.columns.start, part.columns.stop)
    return [Tile(row, column) for row in rows for column in columns]


def crop_halo(tile: Tile, scale: int) -> tuple[slice, slice]:
    """Find where in the result of a tile's region the part that the tile owns is.

    Args:
        tile: in input pixels.
        scale: of the result.

    Returns:
        Rows and columns, in output pixels.
    """
    inside = ((span.start - span.origin, span.stop - span.origin) for span in (tile.rows, tile.columns))
    rows, columns = (slice(start * scale, stop * scale) for start, stop in inside)
    return rows, columns
