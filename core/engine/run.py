"""A network over a picture, tile by tile, and recovery of single tiles.

A tile that does not fit into memory is redone smaller, a tile with NaN or infinity is redone in fp32, and nothing is
ever pasted that this very tile did not compute (Real-ESRGAN #516 and #633 paste the previous tile instead).
"""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from core.engine import tiling
from core.engine.load import Model, is_out_of_memory, open_network, pick_dtype
from core.engine.onnx import Network
from core.engine.plan import UpscalePlan, lay_out, make_plan, operations
from core.engine.rates import learn_rate
from core.errors import NonFiniteOutput, OutOfMemory
from core.options import Progress
from core.picture import Pixels
from core.pixels.bands import Bands, RowBuffer, Samples, bands_of, from_row
from core.pixels.resize import Rows

#: A tile, and its own part of the result.
TileResult = tuple[tiling.Tile, Rows]

#: Input pixels from which a picture says how fast this machine is; below, starting up is most of the time.
_TELLING_PIXELS = 60_000


@dataclass(frozen=True)
class _Window:
    """What the tiles of one row are computed from.

    Attributes:
        pixels: (rows, width, 1 or 3), uint8 or uint16.
        top: row of the picture that is its first.
        height: of the whole picture, pixels.
    """

    pixels: Pixels
    top: int
    height: int


#: A tile, and what it is computed from.
Job = tuple[_Window, tiling.Tile]


def upscale_bands(
    model: Model,
    bands: Bands,
    plan: UpscalePlan,
    progress: Progress | None = None,
    *,
    rounded: bool = False,
    first: int = 0,
    layout: list[list[tiling.Tile]] | None = None,
) -> Iterator[tuple[int, Samples]]:
    """Run a model over a picture, from top to bottom, and hold only the rows that a row of tiles needs.

    Alpha goes through the same network as colour: on logos and letters the embedded one measured 5 to 8 dB over
    Lanczos, Swin2SR 13 to 18.

    Args:
        model: from `core.engine.load`.
        bands: the picture.
        plan: from `core.engine.plan.make_plan`.
        progress: called with tiles done and tiles in all; what it raises stops the work.
        rounded: give what the bands have, uint8 or uint16, which takes a quarter of the memory of floats.
        first: row of tiles to begin with; those above are skipped, and counted as done.
        layout: all rows of tiles; None for those that `tile_rows` gives now, which change when memory was too little.

    Yields:
        For each row of tiles its first row in the result, and (rows, width * plan.scale, bands.samples), float32 in
        [0, 1] unless rounded.

    Raises:
        NonFiniteOutput: a tile is not finite in fp32 either.
        OutOfMemory: a tile of the smallest size does not fit on the CPU.
    """
    rows = (layout or tile_rows(model, bands.height, bands.width, plan))[first:]
    layers = [slice(0, bands.channels)] + [slice(bands.channels, None)] * bands.alpha
    done = first * len(rows[0]) * len(layers) if rows else 0
    # A card can round, too, unless the mean of three channels is wanted.
    parts = _run(model, bands, plan, rows, layers, progress, done, rounded and bands.samples == bands.channels == 3)
    width, highest = bands.width * plan.scale, np.float32(np.iinfo(bands.dtype).max)
    for row in rows:
        top, bottom = row[0].rows.start * plan.scale, row[0].rows.stop * plan.scale
        strip = np.empty((bottom - top, width, bands.samples), bands.dtype if rounded else np.float32)
        for layer in layers:
            place, missing = strip[:, :, layer], len(strip) * width
            while missing:
                part, values = next(parts)
                y, x = part.rows.start * plan.scale - top, part.columns.start * plan.scale
                if place.shape[2] == 1:
                    values = values.mean(axis=2, keepdims=True)
                if rounded and values.dtype == np.float32:
                    values = np.clip(np.rint(values * highest), 0, highest)
                place[y : y + len(values), x : x + values.shape[1]] = values
                missing -= len(values) * values.shape[1]
                del values  # else it is held while the next is made
        yield top, strip
        del strip, place  # else they are held beside the next
    for _ in parts:  # nothing is left, but what it has learned of the machine is kept at its end
        pass


def upscale_strips(model: Model, pixels: Pixels, plan: UpscalePlan, progress: Progress | None = None) -> Iterator[Rows]:
    """`upscale_bands` for a picture that is held.

    Args:
        model: as for `upscale_bands`.
        pixels: (height, width, 1 or 3), uint8 or uint16.
        plan: as for `upscale_bands`.
        progress: as for `upscale_bands`.

    Yields:
        (rows, width * plan.scale, as many channels) float32 in [0, 1], one for each row of tiles.

    Raises:
        NonFiniteOutput: as `upscale_bands`.
        OutOfMemory: as `upscale_bands`.
    """
    for _, strip in upscale_bands(model, bands_of(pixels), plan, progress):
        yield strip


def tile_rows(model: Model, height: int, width: int, plan: UpscalePlan) -> list[list[tiling.Tile]]:
    """The rows of tiles that `upscale_bands` gives strips of.

    Args:
        model: as for `upscale_bands`.
        height: of the picture, pixels.
        width: of the picture, pixels.
        plan: as for `upscale_bands`.

    Returns:
        As `core.engine.plan.lay_out`.
    """
    return lay_out(model.spec, plan, height, width, at_once=model.at_once, side=model.side)


def measure_rate(model: Model) -> float:
    """Measure a warm model on a tile of usual size.

    Args:
        model: from `core.engine.load`.

    Returns:
        Operations a second: the best of three runs.

    Raises:
        NonFiniteOutput: as `upscale_bands`.
        OutOfMemory: as `upscale_bands`.
    """
    side = 256 if model.spec.kind == "compact" else 64
    if model.device == "cuda":
        side = model.spec.tile
    pixels = np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)
    plan = make_plan(model.spec, model.spec.scale, exact=False, tile=side)
    best = float("inf")
    for _ in range(3):  # the first also compiles kernels and fills caches
        start = time.perf_counter()
        for _ in upscale_strips(model, pixels, plan):
            pass
        best = min(best, time.perf_counter() - start)
    return side * side * operations(model.spec, plan) / best


def _run(
    model: Model,
    bands: Bands,
    plan: UpscalePlan,
    tile_rows: list[list[tiling.Tile]],
    layers: list[slice],
    progress: Progress | None,
    done: int,
    rounded: bool,
) -> Iterator[TileResult]:
    """Yield the parts of all tiles, each row layer by layer; at the end the machine's rate is remembered."""
    total = done + len(layers) * sum(map(len, tile_rows))
    if progress:
        progress(done, total)
    computed, busy = 0, 0.0
    jobs = _windows(bands, tile_rows, layers)
    # Who stops early ends the threads of the tiles here, and not in whichever thread collects the garbage.
    with closing(_infer_all(model, jobs, plan, total - done, rounded)) as made:
        while True:
            start = time.perf_counter()  # tiles that are computed side by side are waited for here
            tile, parts = next(made, (None, ()))
            if tile is None:
                break
            for part in parts:
                busy += time.perf_counter() - start
                yield part
                start = time.perf_counter()
            busy += time.perf_counter() - start
            computed += tile.rows.size * tile.columns.size
            done += 1
            if progress:
                progress(done, total)
    if computed >= _TELLING_PIXELS:
        rate = computed * operations(model.spec, plan) / busy
        learn_rate(model.spec, model.device, rate, deep=bands.dtype.itemsize > 1)


def _windows(bands: Bands, tile_rows: list[list[tiling.Tile]], layers: list[slice]) -> Iterator[Job]:
    """Each tile with what it is computed from; bands are read no further than the row of tiles needs."""
    if not tile_rows:
        return
    top, below = from_row(bands, tile_rows[0][0].rows.origin)
    rows = RowBuffer(below, top)
    for row in tile_rows:
        span = row[0].rows
        pixels = rows.rows(span.origin, min(span.origin + span.size, bands.height))
        for layer in layers:
            window = _Window(pixels[:, :, layer], span.origin, bands.height)
            for tile in row:
                yield window, tile


def _infer_all(
    model: Model, jobs: Iterator[Job], plan: UpscalePlan, count: int, rounded: bool
) -> Generator[tuple[tiling.Tile, Iterable[TileResult]]]:
    """All tiles, each in parts; several at once where that is faster, and alone only what went wrong there."""
    results: Generator[tuple[Job, Samples | None]]
    if model.device == "cuda":
        results = _in_batches(model, jobs, plan, rounded)
    elif model.at_once > 1 and count > 1:
        results = _side_by_side(model, jobs, plan)
    else:
        results = ((job, None) for job in jobs)
    with closing(results):
        for (window, tile), values in results:
            yield tile, _infer_parts(model, window, plan, tile) if values is None else [(tile, values)]


def _in_batches(
    model: Model, jobs: Iterator[Job], plan: UpscalePlan, rounded: bool
) -> Generator[tuple[Job, Samples | None]]:
    """The results of tiles in batches, in PyTorch on any device; None for those to be done alone."""
    from core.engine import batches, pytorch

    def regions() -> Iterator[Pixels]:
        for job in itertools.chain([first], jobs):
            waiting.append(job)
            cut = _cut(*job)
            yield np.broadcast_to(cut, (*cut.shape[:2], 3))  # grey and alpha in one batch with colour

    net = model.net
    assert isinstance(net, pytorch.TorchNetwork)  # noqa: S101  # for mypy: only those run on a card
    first = next(jobs)
    waiting: deque[Job] = deque()  # cut, and not back yet
    batch = batches.batch_size(first[1].rows.size, first[1].columns.size, plan.scale, net.device)
    made = batches.run(
        lambda x: net.passes(x, plan.passes), regions(), batch, net.device, is_out_of_memory, rounded=rounded
    )
    for values in made:
        job = waiting.popleft()
        yield job, None if values is None else values[tiling.crop_halo(job[1], plan.scale)]


def _side_by_side(model: Model, jobs: Iterator[Job], plan: UpscalePlan) -> Generator[tuple[Job, Rows | None]]:
    """The results of tiles on threads, each tile on one; None for those that did not fit beside the others."""

    def attempt(window: _Window, tile: tiling.Tile) -> Rows | None:
        if max(tile.rows.size, tile.columns.size) > model.side:  # one before it did not fit
            return None
        try:
            return _infer(model, window, plan, tile)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
        return None

    started: deque[tuple[Job, Future[Rows | None]]] = deque()
    with ThreadPoolExecutor(model.at_once, "tile") as pool:
        try:
            while True:
                # One more than there are threads, so that none waits while the caller is busy with a result.
                while len(started) <= model.at_once and (job := next(jobs, None)) is not None:
                    started.append((job, pool.submit(attempt, *job)))
                if not started:
                    return
                job, future = started.popleft()
                yield job, future.result()
                del job, future  # else they are held while the next is waited for
        finally:  # the caller may have stopped early
            for _, future in started:
                future.cancel()


def _infer_parts(model: Model, window: _Window, plan: UpscalePlan, tile: tiling.Tile) -> Iterator[TileResult]:
    """One tile, in as many parts as memory makes necessary."""
    height, width = window.height, window.pixels.shape[1]
    grid = model.spec.window
    side, smallest = max(tile.rows.size, tile.columns.size), tiling.region_side(grid, plan.halo, grid)
    if side > max(model.side, smallest):
        for part in tiling.split(tile, height, width, model.side - 2 * plan.halo, plan.halo, grid):
            yield from _infer_parts(model, window, plan, part)
        return
    try:
        values = _infer(model, window, plan, tile)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
    else:
        yield tile, values
        return
    # Outside of the handler, so that the traceback no longer holds the failed tile's tensors.
    _make_room(model, side, smallest)
    yield from _infer_parts(model, window, plan, tile)


def _make_room(model: Model, side: int, smallest: int) -> None:
    """After a tile of this side did not fit: a smaller tile from now on, or the CPU."""
    if model.device == "cuda":
        from core.engine import batches

        batches.give_back()
    if side > smallest:
        model.side = max(smallest, side * 3 // 4)
        model.notes.append(f"out of memory with a tile of {side} px, halo included; redone with {model.side} px")
    elif model.device != "cpu":
        # fp32 stays: on a card that multiplies bf16 it was chosen for a picture of more than eight bits.
        dtype = model.dtype if model.dtype == "float32" else pick_dtype(model.spec, "cpu")
        # Read again, not moved: a batch on its way may still need the one on the card.
        model.net = open_network(model.spec, "cpu", dtype)
        model.device, model.dtype = "cpu", dtype
        model.notes.append("out of memory on the GPU with the smallest tile, went on on the CPU")
    else:
        raise OutOfMemory(f"not enough memory for a tile of {side} px: close other programs or use a smaller model")


def _infer(model: Model, window: _Window, plan: UpscalePlan, tile: tiling.Tile) -> Rows:
    """The owned part of a tile: (rows * scale, columns * scale, 3) float32 in [0, 1]."""
    cut = _cut(window, tile)  # (h, w, 1 or 3)
    region = np.empty((1, 3, *cut.shape[:2]), np.float32)
    np.divide(cut.transpose(2, 0, 1), np.iinfo(cut.dtype).max, out=region[0], dtype=np.float32)
    owned = (0, slice(None), *tiling.crop_halo(tile, plan.scale))
    values = _passes(model.net, region, plan)[owned]
    if not np.isfinite(values).all():
        model.notes.append("a tile was not finite and was redone in fp32")
        values = _passes(_in_fp32(model), region, plan)[owned]
        if not np.isfinite(values).all():
            raise NonFiniteOutput(f"{model.spec.name} gave no finite values for a tile: its weights may be damaged")
    return np.clip(values, 0, 1).transpose(1, 2, 0)  # clipped only now: it would hide infinity


def _in_fp32(model: Model) -> Network:
    """The model's network in fp32: itself, or read again for a tile that lower precision could not do."""
    return model.net if model.dtype == "float32" else open_network(model.spec, model.device, "float32")


def _cut(window: _Window, tile: tiling.Tile) -> Pixels:
    """The pixels that a tile is computed from, (h, w, 1 or 3), padded at the picture's lower right."""
    rows, columns = tile.rows, tile.columns
    top = rows.origin - window.top
    cut = window.pixels[top : top + rows.size, columns.origin : columns.origin + columns.size]
    below, right = rows.size - cut.shape[0], columns.size - cut.shape[1]
    if below or right:
        # Reflection, as the reference pads; a picture smaller than the pad has nothing to reflect.
        small = cut.shape[0] <= below or cut.shape[1] <= right
        cut = np.pad(cut, ((0, below), (0, right), (0, 0)), mode="edge" if small else "reflect")
    return cut


def _passes(net: Network, x: NDArray[np.float32], plan: UpscalePlan) -> NDArray[np.float32]:
    """(1, 3, h, w) -> (1, 3, plan.scale * h, plan.scale * w)."""
    for index in range(plan.passes):
        if index:
            with np.errstate(invalid="ignore"):
                # Clipping would make white of infinity: taking x from itself makes NaN of it, and 0 of all else.
                x = np.clip(x + (x - x), 0, 1)
        x = net(x)
    return x
