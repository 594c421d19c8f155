"""The grid of tiles: it covers everything once, keeps to the model's window, and gives each pixel its halo."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from core.engine.tiling import (
    COLUMN_STEP,
    NARROWEST,
    Span,
    Tile,
    cheapest_rows,
    region_side,
    round_up,
    spans,
    split,
    tile_rows,
)

lengths = st.integers(1, 700)
tiles = st.integers(8, 300)
halos = st.integers(0, 60)
windows = st.sampled_from([1, 8])


def check(found: list[Span], start: int, stop: int, length: int, tile: int, halo: int, window: int) -> None:
    assert found[0].start == start
    assert found[-1].stop == stop
    for left, right in itertools.pairwise(found):
        assert left.stop == right.start
    for span in found:
        assert span.start < span.stop
        assert span.origin % window == 0
        assert span.size % window == 0
        assert span.size <= region_side(tile, halo, window)
        assert span.size >= min(NARROWEST, length)
        # At the picture's edges a region has no halo outside, and owns that much more.
        assert span.stop - span.start <= region_side(tile, halo, window)
        assert span.size == found[0].size
        assert span.origin >= 0
        assert span.origin + span.size <= round_up(length, window)
        # The halo, or the picture's own edge.
        assert span.origin <= max(0, span.start - halo)
        assert span.origin + span.size >= min(length, span.stop + halo)


@given(lengths, tiles, halos, windows)
def test_spans_cover_a_whole_axis(length: int, tile: int, halo: int, window: int) -> None:
    check(spans(length, tile, halo, window), 0, length, length, tile, halo, window)


@given(lengths, tiles, halos, windows, st.data())
def test_spans_cover_a_part_of_an_axis(length: int, tile: int, halo: int, window: int, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, (length - 1) // window)) * window
    stop = data.draw(st.integers(start // window + 1, round_up(length, window) // window)) * window
    stop = min(stop, length)
    check(spans(length, tile, halo, window, start, stop), start, stop, length, tile, halo, window)


@given(st.integers(1, 200), st.integers(1, 200), tiles, halos, windows)
def test_a_plan_owns_every_pixel_once(height: int, width: int, tile: int, halo: int, window: int) -> None:
    owned = [[0] * width for _ in range(height)]
    for row in tile_rows(height, width, tile, halo, window):
        for part in row:
            for y in range(part.rows.start, part.rows.stop):
                for x in range(part.columns.start, part.columns.stop):
                    owned[y][x] += 1
    assert all(count == 1 for line in owned for count in line)


@given(st.integers(1, 400), st.integers(1, 400), windows)
def test_a_split_owns_the_same_rectangle(height: int, width: int, window: int) -> None:
    for row in tile_rows(height, width, 128, 16, window):
        for whole in row:
            parts = split(whole, height, width, 64, 16, window)
            area = sum((p.rows.stop - p.rows.start) * (p.columns.stop - p.columns.start) for p in parts)
            assert area == (whole.rows.stop - whole.rows.start) * (whole.columns.stop - whole.columns.start)
            assert all(whole.rows.start <= p.rows.start and p.rows.stop <= whole.rows.stop for p in parts)
            assert all(whole.columns.start <= p.columns.start and p.columns.stop <= whole.columns.stop for p in parts)


def test_one_region_when_it_fits() -> None:
    assert spans(100, 512, 21, 1) == [Span(0, 100, 0, 100)]
    assert spans(100, 512, 16, 8) == [Span(0, 100, 0, 104)]


@given(lengths, lengths, st.integers(20_000, 90_000), halos, windows, st.integers(1, 5))
def test_the_cheapest_tiles_cover_a_picture(
    height: int, width: int, largest: int, halo: int, window: int, at_once: int
) -> None:
    rows = cheapest_rows(height, width, largest, halo, window, at_once)
    unlimited = 10_000
    check([row[0].rows for row in rows], 0, height, height, unlimited, halo, window)
    for row in rows:
        assert len({tile.rows for tile in row}) == 1
        check([tile.columns for tile in row], 0, width, width, unlimited, halo, window)
    least = region_side(window, halo, window) ** 2
    assert rows[0][0].rows.size * rows[0][0].columns.size <= max(largest, least)


def test_the_cheapest_tiles_are() -> None:
    def cost(rows: list[list[Tile]], at_once: int) -> int:
        count = len(rows) * len(rows[0])
        return -(-count // at_once) * rows[0][0].rows.size * rows[0][0].columns.size

    assert len(cheapest_rows(200, 300, 90_000, 21, 1, 1)) == 1, "what fits at once has no halo to compute twice"
    assert [len(row) for row in cheapest_rows(200, 300, 90_000, 21, 1, 2)] == [2], "one for each thread"
    for height, width in ((512, 512), (1000, 1000), (333, 1234)):
        for at_once in (1, 2, 4):
            square = tile_rows(height, width, 300 - 42, 21, 1)
            rows = cheapest_rows(height, width, 90_000, 21, 1, at_once)
            wide = rows[0][0].columns.size
            assert wide == width or wide % COLUMN_STEP == 0
            # Widths are rounded up to what runtimes are quick at, which is a little more to compute.
            assert cost(rows, at_once) <= 1.03 * cost(square, at_once), (height, width, at_once)
