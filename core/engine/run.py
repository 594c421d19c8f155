"""A network over a picture, tile by tile, and recovery of single tiles.

A tile that does not fit into memory is redone smaller, a tile with NaN or infinity is redone in fp32, and nothing is
ever pasted that this very tile did not compute (Real-ESRGAN #516 and #633 paste the previous tile instead).
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from core.engine import tiling
from core.engine.load import Model, open_network, pick_dtype
from core.engine.onnx import Network
from core.engine.plan import UpscalePlan, lay_out, make_plan, operations
from core.engine.rates import learn_rate
from core.errors import NonFiniteOutput, OutOfMemory
from core.options import Progress
from core.picture import Pixels
from core.pixels.resize import Rows

#: Row and column in the result, and what belongs there: (rows, columns, 3).
Part = tuple[int, int, Rows]
#: A tile, and its own part of the result.
TileResult = tuple[tiling.Tile, Rows]

#: Input pixels from which a picture says how fast this machine is; below, starting up is most of the time.
_TELLING_PIXELS = 60_000


def upscale_parts(model: Model, pixels: Pixels, plan: UpscalePlan, progress: Progress | None = None) -> Iterator[Part]:
    """Run a model over a picture, from top to bottom.

    Args:
        model: from `core.engine.load`.
        pixels: (height, width, 1 or 3), uint8 or uint16.
        plan: from `core.engine.plan.make_plan`.
        progress: called with tiles done and tiles in all; what it raises stops the work.

    Yields:
        Row and column in the result, and (rows, columns, 3) float32 in [0, 1] that belongs there. All parts together
        are the result of (height * plan.scale, width * plan.scale, 3), each of its pixels once.

    Raises:
        NonFiniteOutput: a tile is not finite in fp32 either.
        OutOfMemory: a tile of the smallest size does not fit on the CPU.
    """
    return _run(model, pixels, plan, _lay_out(model, pixels, plan), progress)


def upscale_strips(model: Model, pixels: Pixels, plan: UpscalePlan, progress: Progress | None = None) -> Iterator[Rows]:
    """Run a model over a picture, and give strips as wide as the result.

    Args:
        model: as for `upscale_parts`.
        pixels: as for `upscale_parts`.
        plan: as for `upscale_parts`.
        progress: as for `upscale_parts`.

    Yields:
        (rows, width * plan.scale, 3) float32 in [0, 1], one for each row of tiles.

    Raises:
        NonFiniteOutput: as `upscale_parts`.
        OutOfMemory: as `upscale_parts`.
    """
    tile_rows = _lay_out(model, pixels, plan)
    rows, missing, width = iter(tile_rows), 0, pixels.shape[1] * plan.scale
    for y, x, values in _run(model, pixels, plan, tile_rows, progress):
        if not missing:
            span = next(rows)[0].rows
            top, missing = span.start * plan.scale, (span.stop - span.start) * plan.scale * width
            strip = np.full((missing // width, width, 3), np.nan, np.float32)
        strip[y - top : y - top + len(values), x : x + values.shape[1]] = values
        missing -= len(values) * values.shape[1]
        if not missing:
            yield strip
            del strip  # else it is held beside the next


def measure_rate(model: Model) -> float:
    """Measure a warm model on a tile of usual size.

    Args:
        model: from `core.engine.load`.

    Returns:
        Operations a second: the best of three runs.

    Raises:
        NonFiniteOutput: as `upscale_parts`.
        OutOfMemory: as `upscale_parts`.
    """
    side = 256 if model.spec.kind == "compact" else 64
    if model.device == "cuda":
        side = model.spec.tile
    pixels = np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)
    plan = make_plan(model.spec, model.spec.scale, exact=False, tile=side)
    best = float("inf")
    for _ in range(3):  # the first also compiles kernels and fills caches
        start = time.perf_counter()
        for _ in upscale_parts(model, pixels, plan):
            pass
        best = min(best, time.perf_counter() - start)
    return side * side * operations(model.spec, plan) / best


def _lay_out(model: Model, pixels: Pixels, plan: UpscalePlan) -> list[list[tiling.Tile]]:
    return lay_out(model.spec, plan, *pixels.shape[:2], at_once=model.at_once, side=model.side)


def _run(
    model: Model, pixels: Pixels, plan: UpscalePlan, tile_rows: list[list[tiling.Tile]], progress: Progress | None
) -> Iterator[Part]:
    """Yield the parts of all tiles, in their order; at the end the machine's rate is remembered."""
    tiles = [tile for row in tile_rows for tile in row]
    if progress:
        progress(0, len(tiles))
    computed, busy = 0, 0.0
    made = _infer_all(model, pixels, plan, tiles)
    for done, tile in enumerate(tiles, 1):
        start = time.perf_counter()
        for part, values in next(made):
            busy += time.perf_counter() - start
            yield part.rows.start * plan.scale, part.columns.start * plan.scale, values
            start = time.perf_counter()
        busy += time.perf_counter() - start
        computed += tile.rows.size * tile.columns.size
        if progress:
            progress(done, len(tiles))
    if computed >= _TELLING_PIXELS:
        rate = computed * operations(model.spec, plan) / busy
        learn_rate(model.spec, model.device, rate, deep=pixels.dtype.itemsize > 1)


def _infer_all(
    model: Model, pixels: Pixels, plan: UpscalePlan, tiles: list[tiling.Tile]
) -> Iterator[Iterable[TileResult]]:
    """All tiles, each in parts; several at once where that is faster, and alone only what went wrong there."""
    if model.device == "cuda":
        results = _in_batches(model, pixels, plan, tiles)
    elif model.at_once > 1 and len(tiles) > 1:
        results = _side_by_side(model, pixels, plan, tiles)
    else:
        results = (None for _ in tiles)
    for tile, values in zip(tiles, results, strict=True):
        yield _infer_parts(model, pixels, plan, tile) if values is None else [(tile, values)]


def _in_batches(model: Model, pixels: Pixels, plan: UpscalePlan, tiles: list[tiling.Tile]) -> Iterator[Rows | None]:
    """The results of tiles in batches, in PyTorch on any device; None for those to be done alone."""
    from core.engine import batches, pytorch

    net = model.net
    assert isinstance(net, pytorch.TorchNetwork)  # noqa: S101  # for mypy: only those run on a card
    regions = (_cut(pixels, tile) for tile in tiles)
    batch = batches.batch_size(tiles[0].rows.size, tiles[0].columns.size, plan.scale, net.device)
    results = batches.run(lambda x: net.passes(x, plan.passes), regions, batch, net.device, _is_out_of_memory)
    for tile, values in zip(tiles, results, strict=True):
        yield None if values is None else values[tiling.crop_halo(tile, plan.scale)]


def _side_by_side(model: Model, pixels: Pixels, plan: UpscalePlan, tiles: list[tiling.Tile]) -> Iterator[Rows | None]:
    """The results of tiles on threads, each tile on one; None for those that did not fit beside the others."""

    def attempt(tile: tiling.Tile) -> Rows | None:
        if max(tile.rows.size, tile.columns.size) > model.side:  # one before it did not fit
            return None
        try:
            return _infer(model, pixels, plan, tile)
        except Exception as error:
            if not _is_out_of_memory(error):
                raise
        return None

    started: deque[Future[Rows | None]] = deque()
    rest = iter(tiles)
    with ThreadPoolExecutor(model.at_once, "tile") as pool:
        try:
            for _ in tiles:
                # One more than there are threads, so that none waits while the caller is busy with a result.
                while len(started) <= model.at_once and (tile := next(rest, None)) is not None:
                    started.append(pool.submit(attempt, tile))
                yield started.popleft().result()
        finally:  # the caller may have stopped early
            for future in started:
                future.cancel()


def _infer_parts(model: Model, pixels: Pixels, plan: UpscalePlan, tile: tiling.Tile) -> Iterator[TileResult]:
    """One tile, in as many parts as memory makes necessary."""
    height, width = pixels.shape[:2]
    window = model.spec.window
    side, smallest = max(tile.rows.size, tile.columns.size), tiling.region_side(window, plan.halo, window)
    if side > max(model.side, smallest):
        for part in tiling.split(tile, height, width, model.side - 2 * plan.halo, plan.halo, window):
            yield from _infer_parts(model, pixels, plan, part)
        return
    try:
        values = _infer(model, pixels, plan, tile)
    except Exception as error:
        if not _is_out_of_memory(error):
            raise
    else:
        yield tile, values
        return
    # Outside of the handler, so that the traceback no longer holds the failed tile's tensors.
    _make_room(model, side, smallest)
    yield from _infer_parts(model, pixels, plan, tile)


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


def _infer(model: Model, pixels: Pixels, plan: UpscalePlan, tile: tiling.Tile) -> Rows:
    """The owned part of a tile: (rows * scale, columns * scale, 3) float32 in [0, 1]."""
    cut = _cut(pixels, tile)  # (h, w, 1 or 3)
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


def _cut(pixels: Pixels, tile: tiling.Tile) -> Pixels:
    """The pixels that a tile is computed from, (h, w, 1 or 3), padded at the picture's lower right."""
    rows, columns = tile.rows, tile.columns
    cut = pixels[rows.origin : rows.origin + rows.size, columns.origin : columns.origin + columns.size]
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


def _is_out_of_memory(error: BaseException) -> bool:
    """By its text, where it is not a MemoryError: PyTorch, ONNX Runtime and OpenVINO have classes of their own."""
    signs = ("out of memory", "can't allocate memory", "not enough memory", "cannot allocate", "failed to allocate")
    text = f"{type(error).__name__} {error}".lower()
    return isinstance(error, MemoryError) or any(sign in text for sign in (*signs, "bad_alloc", "bad allocation"))
