"""A network over a picture, tile by tile, and recovery of single tiles.

A tile that does not fit into memory is redone smaller, a tile with NaN or infinity is redone in fp32, and nothing is
ever pasted that this very tile did not compute (Real-ESRGAN #516 and #633 paste the previous tile instead).
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch import Tensor, nn

from core import models
from core.engine import batches, tiling
from core.engine.load import Model, build, pick_dtype
from core.engine.plan import UpscalePlan, make_plan, operations
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
    if model.device.type == "cuda":
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
    height, width = pixels.shape[:2]
    return tiling.tile_rows(height, width, min(plan.tile, model.side - 2 * plan.halo), plan.halo, model.spec.window)


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
        learn_rate(model.spec, model.device.type, rate, deep=pixels.dtype.itemsize > 1)


def _infer_all(
    model: Model, pixels: Pixels, plan: UpscalePlan, tiles: list[tiling.Tile]
) -> Iterator[Iterable[TileResult]]:
    """All tiles, each in parts; on a card in batches, and alone only what went wrong in its batch."""
    if model.device.type != "cuda":
        for tile in tiles:
            yield _infer_parts(model, pixels, plan, tile)
        return
    yield from _infer_batches(model, pixels, plan, tiles)


def _infer_batches(
    model: Model, pixels: Pixels, plan: UpscalePlan, tiles: list[tiling.Tile]
) -> Iterator[Iterable[TileResult]]:
    """`_infer_all` in batches, on any device."""
    net, dtype = model.net, model.dtype

    def forward(x: Tensor) -> Tensor:
        return _passes(net, x.to(dtype), plan)

    regions = (_cut(pixels, tile) for tile in tiles)
    batch = batches.batch_size(tiles[0].rows.size, tiles[0].columns.size, plan.scale, model.device)
    results = batches.run(forward, regions, batch, model.device, _is_out_of_memory)
    for tile, values in zip(tiles, results, strict=True):
        if values is None:
            yield _infer_parts(model, pixels, plan, tile)
        else:
            yield [(tile, values[tiling.crop_halo(tile, plan.scale)])]


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
    if model.device.type == "cuda":
        torch.cuda.empty_cache()
    if side > smallest:
        model.side = max(smallest, side * 3 // 4)
        model.notes.append(f"out of memory with a tile of {side} px, halo included; redone with {model.side} px")
    elif model.device.type != "cpu":
        model.device = torch.device("cpu")
        # fp32 stays: on a card that multiplies bf16 it was chosen for a picture of more than eight bits.
        model.dtype = model.dtype if model.dtype == torch.float32 else pick_dtype(model.device)
        # Read again, not moved: a batch on its way may still need the one on the card.
        model.net = build(model.spec, models.fetch(model.spec)).to(model.dtype)
        model.notes.append("out of memory on the GPU with the smallest tile, went on on the CPU")
    else:
        raise OutOfMemory(f"not enough memory for a tile of {side} px: close other programs or use a smaller model")


def _infer(model: Model, pixels: Pixels, plan: UpscalePlan, tile: tiling.Tile) -> Rows:
    """The owned part of a tile: (rows * scale, columns * scale, 3) float32 in [0, 1]."""
    cut = _cut(pixels, tile)  # (h, w, 1 or 3)
    region = torch.from_numpy(np.divide(cut, np.iinfo(cut.dtype).max, dtype=np.float32))
    region = region.permute(2, 0, 1).unsqueeze(0).expand(1, 3, -1, -1)  # (1, 3, h, w), channels_last in memory
    values = _forward(model, model.net, region, plan, tile, model.dtype)
    if not bool(values.isfinite().all()):
        model.notes.append("a tile was not finite and was redone in fp32")
        values = _forward(model, _in_fp32(model), region, plan, tile, torch.float32)
        if not bool(values.isfinite().all()):
            raise NonFiniteOutput(f"{model.spec.name} gave no finite values for a tile: its weights may be damaged")
    return values.clamp(0, 1).permute(1, 2, 0).numpy()  # clipped only now: it would hide infinity


def _in_fp32(model: Model) -> nn.Module:
    """The model's network in fp32: itself, or read again for a tile that lower precision could not do."""
    if model.dtype == torch.float32:
        return model.net
    return build(model.spec, models.fetch(model.spec)).to(model.device)


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


def _forward(
    model: Model, net: nn.Module, x: Tensor, plan: UpscalePlan, tile: tiling.Tile, dtype: torch.dtype
) -> Tensor:
    """Run all passes on a region and cut out the owned part: (3, rows * scale, columns * scale) float32."""
    with torch.inference_mode():
        x = x.to(device=model.device, dtype=dtype, memory_format=torch.channels_last)
        return _passes(net, x, plan)[0, :, *tiling.crop_halo(tile, plan.scale)].float().cpu()


def _passes(net: nn.Module, x: Tensor, plan: UpscalePlan) -> Tensor:
    """(n, 3, h, w) -> (n, 3, plan.scale * h, plan.scale * w)."""
    for index in range(plan.passes):
        # Clipping would make white of infinity: taking x from itself makes NaN of it, and 0 of all else.
        x = net(x if index == 0 else (x + (x - x)).clamp(0, 1))
    return x


def _is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(
        sign in text for sign in ("out of memory", "can't allocate memory", "not enough memory", "cannot allocate")
    )
