"""The bands of one picture, enlarged: opacity, network, exact size; and the bands that an earlier run has kept."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from core import models
from core.engine import tiling
from core.engine.plan import UpscalePlan, make_plan, operations
from core.kept import KeptBands
from core.options import Options, Progress
from core.pixels.alpha import Opacity, extend_edges_of, keep_flat, rows_near, survey
from core.pixels.bands import ROWS, Bands, RowBuffer, Samples, ahead, from_row
from core.pixels.resize import resize_rows, rows_from, support_above

if TYPE_CHECKING:
    from core.engine.load import Model

#: Operations of a network from which on finished bands are kept: some minutes of a processor.
KEPT_WORK = 5e13
#: Times as many on a card, which has done those in seconds.
_CARD = 50


@dataclass(frozen=True)
class Keep:
    """What becomes of finished bands.

    Attributes:
        open: gives the bands kept for a result that depends on the facts of the first argument, is made by a machine of
            the second, and has so many bands; None where none can be kept.
        part: (which, of how many): make only the bands of this part, keep them, and yield nothing; None for all.
    """

    open: Callable[[tuple[object, ...], tuple[object, ...], int], KeptBands | None]
    part: tuple[int, int] | None = None


@dataclass(frozen=True)
class _Layout:
    """The bands of a result: one for each row of tiles.

    Attributes:
        rows: of tiles, from top to bottom.
        tops: row of the result that each band begins with, and at the end the height of the result.
        layers: that each tile is computed for: colour, and opacity.
    """

    rows: list[list[tiling.Tile]]
    tops: list[int]
    layers: int

    def height(self, index: int) -> int:
        """Rows of a band; 0 where Lanczos needs the next row of tiles, too, to make any."""
        return self.tops[index + 1] - self.tops[index]

    def tiles(self, row: int) -> int:
        """Tiles above a row of them, each layer counted."""
        return self.layers * sum(map(len, self.rows[:row]))


def enlarge(
    bands: Bands,
    out_width: int,
    out_height: int,
    options: Options,
    model: Model | None,
    progress: Progress,
    keep: Keep | None = None,
) -> Iterator[Samples]:
    """Enlarge a picture from top to bottom; only the bands in work are held.

    Args:
        bands: the picture; read twice when it has opacity.
        out_width: of the result, pixels.
        out_height: of the result, pixels.
        options: what was asked for.
        model: from `core.engine.load`; None for Lanczos.
        progress: called with tiles done and tiles in all; what it raises stops the work.
        keep: where finished bands are kept, and those of an interrupted run are; None for nowhere.

    Yields:
        (rows, out_width, channels + alpha) of the picture's type; nothing where `keep` asks for a part.

    Raises:
        UpscaleError: the picture is damaged further down, or the network failed.
    """
    kept: KeptBands | None = None
    layout: _Layout | None = None
    part = keep.part if keep is not None else None
    plan = None if model is None else _plan(bands, out_width, out_height, options, model.spec)
    if keep is not None and model is not None and plan is not None:
        work = (1 + bands.alpha) * bands.height * bands.width * operations(model.spec, plan)
        if work >= KEPT_WORK * (1 if model.device == "cpu" else _CARD):
            layout = _lay_out(bands, out_width, out_height, model, plan)
            facts = (out_width, out_height, options.exact, plan, *_identity(model, layout))
            machine = options.device, str(model.device), str(model.dtype)
            kept = keep.open(facts, machine, sum(layout.height(index) > 0 for index in range(len(layout.rows))))
    opacity: Opacity | None = None
    furthest = 0

    def report(done: int, total: int) -> None:
        nonlocal furthest  # Lanczos needs rows of tiles again that are above the band which it goes on with
        furthest = max(furthest, done)
        progress(furthest, total)

    def make(first: int, done: int) -> Generator[Samples]:
        nonlocal opacity
        if bands.alpha and opacity is None:
            opacity = survey(bands)
        rows = layout.rows if layout else None
        return _opaque(bands, out_width, out_height, model, plan, report, opacity, first, done, rows)

    if kept is not None and layout is not None:
        yield from _kept_or_made(kept, layout, make, report, part)
    elif part is None:
        yield from make(0, 0)


def _kept_or_made(
    kept: KeptBands,
    layout: _Layout,
    make: Callable[[int, int], Generator[Samples]],
    progress: Progress,
    part: tuple[int, int] | None,
) -> Iterator[Samples]:
    """The bands that are kept, as they are; those that are missing, damaged or of another shape are made and kept.

    `make` gives the bands from one on, which begins with a given row of the result. Of a part nothing is yielded, and
    what is kept is not looked at: whoever puts the parts together will.
    """
    count = len(layout.rows)
    index, last = 0, count
    if part is not None:
        index, last = (count * number // part[1] for number in (part[0], part[0] + 1))
    while index < last:
        if layout.height(index) == 0 or (part is not None and index in kept):
            index += 1
            continue
        found = kept.load(index) if part is None else None
        if found is not None and len(found) == layout.height(index):
            progress(layout.tiles(index + 1), layout.tiles(count))
            yield found
            index += 1
            del found
            continue
        with closing(make(index, layout.tops[index])) as parts:
            for index, band in _whole(parts, layout, index):  # noqa: B020 - it goes on where it is
                kept.save(index, band)
                if part is None:
                    yield band
                del band
                following = next((one for one in range(index + 1, count) if layout.height(one)), count)
                if following < count and (following >= last or following in kept):
                    break  # after the very last one there are progress, and what was learned of the machine
        index += 1


def _whole(parts: Iterator[Samples], layout: _Layout, index: int) -> Iterator[tuple[int, Samples]]:
    """Bands from number `index` on, each with its number, from parts of them."""
    held: list[Samples] = []
    rows = 0
    for part in parts:
        while layout.height(index) == 0:
            index += 1
        held.append(part)
        rows += len(part)
        if rows > layout.height(index):
            raise RuntimeError(f"band {index} has {rows} rows in place of {layout.height(index)}")
        if rows == layout.height(index):
            band = held[0] if len(held) == 1 else np.concatenate(held)
            held, rows = [], 0
            yield index, band
            index += 1
            del band
        del part


def _lay_out(bands: Bands, out_width: int, out_height: int, model: Model, plan: UpscalePlan) -> _Layout:
    """Where each band of the result begins: with its row of tiles, or as soon as Lanczos has the rows for it."""
    from core.engine import run

    rows = run.tile_rows(model, bands.height, bands.width, plan)
    height, width = bands.height * plan.scale, bands.width * plan.scale
    ends = [row[0].rows.stop * plan.scale for row in rows]
    if (height, width) != (out_height, out_width):
        ends = [rows_from(end, height, out_height) for end in ends]
    return _Layout(rows, [0, *ends], 1 + bands.alpha)


def _plan(bands: Bands, out_width: int, out_height: int, options: Options, spec: models.ModelSpec) -> UpscalePlan:
    wanted = max(out_height / bands.height, out_width / bands.width)
    return make_plan(spec, wanted, exact=options.exact, tile=options.tile, halo=options.halo)


def _identity(model: Model, layout: _Layout) -> tuple[object, ...]:
    """What tells results of a model from those of another, or of another way over the picture."""
    path = Path(model.spec.source)
    path = path if path.exists() else models.fetch(model.spec)
    files = sorted(file for file in path.iterdir() if file.is_file()) if path.is_dir() else [path]
    weights = [(file.suffix, hashlib.sha256(file.read_bytes()).hexdigest()) for file in files]
    tiles = [(row[0].rows, [tile.columns for tile in row]) for row in layout.rows]
    return model.spec.kind, weights, layout.layers, tiles


def _opaque(
    bands: Bands,
    out_width: int,
    out_height: int,
    model: Model | None,
    plan: UpscalePlan | None,
    progress: Progress,
    opacity: Opacity | None,
    first: int,
    done: int,
    layout: list[list[tiling.Tile]] | None,
) -> Generator[Samples]:
    """Bands, or parts of them, from row `done` of the result on, with which the row of tiles `first` begins."""
    constant = opacity is not None and not opacity.varies
    with ExitStack() as stack:
        near: RowBuffer | None = None

        def read_from(row: int) -> tuple[int, Iterator[Samples]]:
            nonlocal near
            # What shines through is spread from the top.
            top, below = from_row(bands, row) if opacity is None else (0, iter(bands))
            decoded: Iterator[Samples] = stack.enter_context(closing(ahead(below)))
            if opacity is not None:
                decoded, alpha = itertools.tee(decoded)
                if not constant:
                    near = RowBuffer(band[:, :, -1:] for band in alpha)
                decoded = extend_edges_of(decoded, opacity)
            return top, (band[:, :, :-1] for band in decoded) if constant else decoded

        alpha = bands.alpha and not constant
        shown = replace(bands, alpha=alpha, read=lambda: read_from(0)[1], read_from=read_from)
        y = done
        for band in _resampled(shown, out_width, out_height, model, plan, progress, first, done, layout):
            if opacity is not None and constant:
                band = np.dstack([band, np.full(band.shape[:2], opacity.first, band.dtype)])
            elif near is not None:
                top, bottom = rows_near(y, y + len(band), out_height, bands.height)
                keep_flat(band[:, :, -1], y, out_height, near.rows(top, bottom)[:, :, 0], top, bands.height)
            y += len(band)
            yield band
            del band


def _resampled(
    bands: Bands,
    out_width: int,
    out_height: int,
    model: Model | None,
    plan: UpscalePlan | None,
    progress: Progress,
    first: int,
    done: int,
    layout: list[list[tiling.Tile]] | None,
) -> Iterator[Samples]:
    """Bands through the network, and to the exact size where that is no multiple; opacity like colour."""
    height, width, highest = bands.height, bands.width, np.iinfo(bands.dtype).max
    strips: Iterator[Samples]
    if model is None or plan is None:
        strips = _in_floats(bands, progress)
    else:
        from core.engine import run

        layout = layout or run.tile_rows(model, height, width, plan)
        height, width = height * plan.scale, width * plan.scale
        if (height, width) == (out_height, out_width):
            made = run.upscale_bands(model, bands, plan, progress, rounded=True, first=first, layout=layout)
            yield from (strip for _, strip in made)
            return
        row = support_above(done, height, out_height)
        start = next(index for index, tiles in enumerate(layout) if tiles[0].rows.stop * plan.scale > row)
        strips = _strips_from(row, run.upscale_bands(model, bands, plan, progress, first=start, layout=layout))
    for rows in resize_rows(strips, height, width, out_height, out_width, done):
        if rows.dtype != bands.dtype:
            rows = np.multiply(rows, highest)
            rows = np.clip(np.rint(rows, out=rows), 0, highest, out=rows).astype(bands.dtype)
        yield rows
        del rows


def _strips_from(row: int, strips: Iterator[tuple[int, Samples]]) -> Iterator[Samples]:
    """Strips from a row of the network's result on; given with the row that each begins with."""
    for top, strip in strips:
        yield strip[max(0, row - top) :]
        del strip  # else it is held while the next is made


def _in_floats(bands: Bands, progress: Progress) -> Iterator[Samples]:
    """What Lanczos works on: numbers of eight bits as they are, deeper ones in floats from 0 to 1."""
    done = 0
    for band in bands:
        yield band if band.dtype == np.uint8 else np.divide(band, np.iinfo(band.dtype).max, dtype=np.float32)
        done += len(band)
        progress(-(-done // ROWS), -(-bands.height // ROWS))
