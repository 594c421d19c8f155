"""The bands of one picture, enlarged: opacity, network, exact size; and the bands that an earlier run has kept."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from core import models
from core.engine import tiling
from core.engine.plan import UpscalePlan, make_plan, operations
from core.kept import KeptBands
from core.options import Options, Progress
from core.pixels.alpha import Opacity, extend_edges_of, keep_flat, rows_near, survey
from core.pixels.bands import ROWS, Bands, RowBuffer, Samples, ahead
from core.pixels.resize import resize_rows, support_above

if TYPE_CHECKING:
    from core.engine.load import Model

#: Gives the bands kept for a result that depends on these facts, or None where none can be kept.
Keep = Callable[..., KeptBands | None]

#: Operations of a network from which on finished bands are kept: some minutes of a processor.
KEPT_WORK = 5e13


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
        (rows, out_width, channels + alpha) of the picture's type.

    Raises:
        UpscaleError: the picture is damaged further down, or the network failed.
    """
    kept: KeptBands | None = None
    first = done = 0
    plan = None if model is None else _plan(bands, out_width, out_height, options, model.spec)
    if keep is not None and model is not None and plan is not None:
        layers = 1 + bands.alpha
        if layers * bands.height * bands.width * operations(model.spec, plan) >= KEPT_WORK:
            kept = keep(out_width, out_height, options.exact, options.device, plan, *_identity(model, bands, plan))
    if kept is not None:
        for index in range(kept.count):
            yield kept.load(index)
        first, done = kept.count, kept.rows
        if done == out_height:  # only the encoding was interrupted
            progress(first, first)
            return
    opacity = survey(bands) if bands.alpha else None
    number, parts = first, list[Samples]()
    with closing(_opaque(bands, out_width, out_height, model, plan, progress, opacity, first, done)) as made:
        for index, band in made:
            if kept is None:
                yield band
            else:
                if index != number and parts:
                    yield _saved(kept, number, parts)
                    parts = []
                number = index
                parts.append(band)
            del band
    if kept is not None and parts:
        yield _saved(kept, number, parts)


def _saved(kept: KeptBands, index: int, parts: list[Samples]) -> Samples:
    whole = parts[0] if len(parts) == 1 else np.concatenate(parts)
    kept.save(index, whole)
    return whole


def _plan(bands: Bands, out_width: int, out_height: int, options: Options, spec: models.ModelSpec) -> UpscalePlan:
    wanted = max(out_height / bands.height, out_width / bands.width)
    return make_plan(spec, wanted, exact=options.exact, tile=options.tile, halo=options.halo)


def _identity(model: Model, bands: Bands, plan: UpscalePlan) -> tuple[object, ...]:
    """What tells results of a model from those of another, or of another way over the picture."""
    from core.engine import run

    path = Path(model.spec.source)
    path = path if path.exists() else models.fetch(model.spec)
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    weights = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    rows = run.tile_rows(model, bands.height, bands.width, plan)
    layout = [(row[0].rows, [tile.columns for tile in row]) for row in rows]
    return model.spec.name, weights, str(model.device), str(model.dtype), layout


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
) -> Generator[tuple[int, Samples]]:
    """Bands from row `done` of the result on, and which row of tiles each comes from, `first` being the first one."""
    constant = opacity is not None and not opacity.varies
    with closing(ahead(iter(bands))) as read:
        decoded: Iterator[Samples] = read
        near: RowBuffer | None = None
        if opacity is not None:
            decoded, alpha = itertools.tee(decoded)
            near = RowBuffer(band[:, :, -1:] for band in alpha)
            decoded = extend_edges_of(decoded, opacity)
        if constant:
            near = None
            decoded = (band[:, :, :-1] for band in decoded)
        shown = replace(bands, alpha=bands.alpha and not constant, read=lambda: decoded)
        y = done
        for index, band in _resampled(shown, out_width, out_height, model, plan, progress, first, done):
            if opacity is not None and constant:
                band = np.dstack([band, np.full(band.shape[:2], opacity.first, band.dtype)])
            elif near is not None:
                top, bottom = rows_near(y, y + len(band), out_height, bands.height)
                keep_flat(band[:, :, -1], y, out_height, near.rows(top, bottom)[:, :, 0], top, bands.height)
            y += len(band)
            yield index, band
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
) -> Iterator[tuple[int, Samples]]:
    """Bands through the network, and to the exact size where that is no multiple; opacity like colour."""
    height, width, highest = bands.height, bands.width, np.iinfo(bands.dtype).max
    strips: Iterator[tuple[int, Samples]]
    if model is None or plan is None:
        strips = _in_floats(bands, progress)
    else:
        from core.engine import run

        height, width = height * plan.scale, width * plan.scale
        if (height, width) == (out_height, out_width):
            made = run.upscale_bands(model, bands, plan, progress, rounded=True, first=first)
            yield from zip(itertools.count(first), (strip for _, strip in made), strict=False)
            return
        strips = _strips_from(
            support_above(done, height, out_height),
            run.tile_rows(model, bands.height, bands.width, plan),
            plan.scale,
            lambda start: run.upscale_bands(model, bands, plan, progress, first=start),
        )
    current = 0

    def fed() -> Iterator[Samples]:
        nonlocal current
        for index, strip in strips:
            current = index
            yield strip
            del strip  # else it is held while the next is made

    for rows in resize_rows(fed(), height, width, out_height, out_width, done):
        if rows.dtype != bands.dtype:
            rows = np.multiply(rows, highest)
            rows = np.clip(np.rint(rows, out=rows), 0, highest, out=rows).astype(bands.dtype)
        yield current, rows
        del rows


def _strips_from(
    row: int, rows: list[list[tiling.Tile]], scale: int, run: Callable[[int], Iterator[tuple[int, Samples]]]
) -> Iterator[tuple[int, Samples]]:
    """Strips from a row of the network's result on, each with the number of its row of tiles."""
    start = next(index for index, tiles in enumerate(rows) if tiles[0].rows.stop * scale > row)
    for index, (top, strip) in enumerate(run(start), start):
        yield index, strip[max(0, row - top) :]
        del strip


def _in_floats(bands: Bands, progress: Progress) -> Iterator[tuple[int, Samples]]:
    """What Lanczos works on: numbers of eight bits as they are, deeper ones in floats from 0 to 1."""
    done = 0
    for band in bands:
        yield 0, band if band.dtype == np.uint8 else np.divide(band, np.iinfo(band.dtype).max, dtype=np.float32)
        done += len(band)
        progress(-(-done // ROWS), -(-bands.height // ROWS))
