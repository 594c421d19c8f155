"""Networks at work: device and dtype, one warm model per process, and recovery of single tiles.

A tile that does not fit into memory is redone smaller, a tile with NaN or infinity is redone in fp32, and nothing is
ever pasted that this very tile did not compute (Real-ESRGAN #516 and #633 paste the previous tile instead).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from core import models
from core.engine import allocator, tiling
from core.errors import ModelError, NonFiniteOutput, OptionsError, OutOfMemory
from core.estimation import learn_rate
from core.models import Job, ModelSpec, operations
from core.networks.compact import Compact
from core.networks.compact_config import CompactConfig
from core.picture import Pixels
from core.pixels.resize import Rows

Progress = Callable[[int, int], None]
#: Row and column in the result, and what belongs there: (rows, columns, 3).
Part = tuple[int, int, Rows]

#: Input pixels from which a picture tells how fast this machine is; below, starting up is most of the time.
_TELLING_PIXELS = 60_000


@dataclass
class Model:
    """A network in memory.

    Attributes:
        spec: its declared numbers.
        net: (1, 3, h, w) in [0, 1] to (1, 3, scale * h, scale * w), in evaluation mode.
        device: where it runs.
        dtype: what it computes in.
        side: largest side of a region, halo included, that may be tried, in pixels; lowered when one did not fit.
        notes: what had to be redone, one line each, newest last.
    """

    spec: ModelSpec
    net: nn.Module
    device: torch.device
    dtype: torch.dtype
    side: int
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Loaded:
    """The outcome of walking down the fall-back chain.

    Attributes:
        model: the first that loaded, or None when only Lanczos is left.
        name: of that model, or "lanczos".
        degraded: True when it is not the one asked for.
        reason: why each earlier one failed, in one line.
        seconds: spent here; 0 when the model was warm.
    """

    model: Model | None
    name: str
    degraded: bool
    reason: str
    seconds: float


def pick_device(wish: str) -> torch.device:
    """ "auto" is CUDA where there is a usable card, else the CPU.

    Raises:
        OptionsError: "cuda" was asked for and there is none.
    """
    if wish == "cpu":
        return torch.device("cpu")
    if torch.cuda.is_available():
        return torch.device("cuda")
    if wish == "cuda":
        raise OptionsError("no CUDA device on this machine: use device auto or cpu")
    return torch.device("cpu")


def pick_dtype(device: torch.device) -> torch.dtype:
    """bf16 where the hardware multiplies it natively, else fp32. Never fp16: Swin2SR overflows in it."""
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if native else torch.float32


def _read_weights(directory: Path) -> dict[str, Tensor]:
    """Tensors by name in fp32.

    Raises:
        ModelError: the file is damaged.
    """
    file = next(directory / name for name in models.WEIGHT_FILES if (directory / name).is_file())
    try:
        if file.suffix == ".safetensors":
            from safetensors.torch import load_file

            state = load_file(file)
        else:
            state = torch.load(file, map_location="cpu", weights_only=True)  # never runs code from the file
        return {name: value.float() if value.is_floating_point() else value for name, value in state.items()}
    except Exception as error:  # safetensors, pickle and zip each raise their own on a damaged file
        detail = str(error).strip().splitlines()
        raise ModelError(f"{file} is damaged: {detail[0] if detail else type(error).__name__}") from error


def build(spec: ModelSpec, directory: Path) -> nn.Module:
    """The network of a model directory, in fp32 on the CPU.

    Raises:
        ModelError: the configuration or the weights are damaged, or do not belong together.
    """
    config = models.read_config(directory)
    state = _read_weights(directory)
    net: nn.Module
    if isinstance(config, CompactConfig):
        net = Compact(config)
        try:
            net.load_state_dict(state)
        except RuntimeError as error:
            raise ModelError(f"the weights in {directory} do not fit its config.json") from error
    else:
        from core.networks.swin2sr import Swin2SR

        net = swin = Swin2SR(config)
        swin.load(state)
    if not all(bool(value.isfinite().all()) for value in state.values() if value.is_floating_point()):
        raise ModelError(f"the weights of {spec.name} hold NaN or infinity: the file is damaged")
    return net.eval().requires_grad_(False).to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


_lock = threading.Lock()
_warm: dict[tuple[str, str, torch.dtype], Model] = {}


def load(name: str, device: torch.device, dtype: torch.dtype | None = None) -> tuple[Model, float]:
    """A model by name, and the seconds it took. One model is kept per process, shared by concurrent calls.

    Raises:
        ModelError: it cannot be found, fetched or loaded.
    """
    dtype = dtype or pick_dtype(device)
    key = (name, device.type, dtype)
    with _lock:  # a second caller waits for the first one's load and then finds it warm
        if key in _warm:
            return _warm[key], 0.0
        start = time.perf_counter()
        allocator.keep_freed()
        spec = models.spec_of(name)
        if device.type == "cuda":
            from core.engine import batches as cuda

            cuda.full_precision()
        net = build(spec, models.fetch(spec)).to(device=device, dtype=dtype)
        model = Model(spec, net, device, dtype, 1 << 20)
        if spec.kind != "compact":  # the embedded ones are so small that they may stay side by side
            for other in [other for other, kept in _warm.items() if kept.spec.kind != "compact"]:
                del _warm[other]  # running calls keep their own reference until they end
        _warm[key] = model
        return model, time.perf_counter() - start


def load_first(chain: tuple[str, ...], device: torch.device) -> Loaded:
    """Walk down a fall-back chain; Lanczos when nothing loads. Each failed step is told in the reason."""
    failures: list[str] = []
    for name in chain:
        try:
            model, seconds = load(name, device)
        except ModelError as error:
            failures.append(f"{name}: {error}")
            continue
        return Loaded(model, name, bool(failures), "; ".join(failures), seconds)
    return Loaded(None, models.LANCZOS.name, True, "; ".join(failures), 0.0)


def _is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(
        sign in text for sign in ("out of memory", "can't allocate memory", "not enough memory", "cannot allocate")
    )


def upscale_parts(model: Model, pixels: Pixels, job: Job, progress: Progress | None = None) -> Iterator[Part]:
    """Run a model over a picture, from top to bottom.

    Args:
        model: from `load`.
        pixels: (height, width, 1 or 3), uint8 or uint16.
        job: from `make_job`.
        progress: called with tiles done and tiles in all; what it raises stops the work.

    Yields:
        Row and column in the result, and (rows, columns, 3) float32 in [0, 1] that belongs there. All parts together
        are the result of (height * job.scale, width * job.scale, 3), each of its pixels once.

    Raises:
        NonFiniteOutput: a tile is not finite in fp32 either.
        OutOfMemory: a tile of the smallest size does not fit on the CPU.
    """
    return _run(model, pixels, job, _plan(model, pixels, job), progress)


def upscale_strips(model: Model, pixels: Pixels, job: Job, progress: Progress | None = None) -> Iterator[Rows]:
    """The same in strips as wide as the result: (rows, width * job.scale, 3), one for each row of tiles."""
    plan = _plan(model, pixels, job)
    rows, missing, width = iter(plan), 0, pixels.shape[1] * job.scale
    for y, x, values in _run(model, pixels, job, plan, progress):
        if not missing:
            span = next(rows)[0].rows
            top, missing = span.start * job.scale, (span.stop - span.start) * job.scale * width
            strip = np.full((missing // width, width, 3), np.nan, np.float32)
        strip[y - top : y - top + len(values), x : x + values.shape[1]] = values
        missing -= len(values) * values.shape[1]
        if not missing:
            yield strip
            del strip  # else it is held beside the next


def _plan(model: Model, pixels: Pixels, job: Job) -> list[list[tiling.Tile]]:
    height, width = pixels.shape[:2]
    return tiling.plan(height, width, min(job.tile, model.side - 2 * job.halo), job.halo, model.spec.window)


def _run(
    model: Model, pixels: Pixels, job: Job, plan: list[list[tiling.Tile]], progress: Progress | None
) -> Iterator[Part]:
    """The parts of all tiles of a plan, in its order; at the end the machine's rate is remembered."""
    tiles = [tile for row in plan for tile in row]
    if progress:
        progress(0, len(tiles))
    computed, busy = 0, 0.0
    made = _infer_all(model, pixels, job, tiles)
    for done, tile in enumerate(tiles, 1):
        start = time.perf_counter()
        for part, values in next(made):
            busy += time.perf_counter() - start
            yield part.rows.start * job.scale, part.columns.start * job.scale, values
            start = time.perf_counter()
        busy += time.perf_counter() - start
        computed += tile.rows.size * tile.columns.size
        if progress:
            progress(done, len(tiles))
    if computed >= _TELLING_PIXELS:
        rate = computed * operations(model.spec, job) / busy
        learn_rate(model.spec, model.device.type, rate, deep=pixels.dtype.itemsize > 1)


def _infer_all(
    model: Model, pixels: Pixels, job: Job, tiles: list[tiling.Tile]
) -> Iterator[Iterable[tuple[tiling.Tile, Rows]]]:
    """All tiles, each in parts; on a card in batches, and alone only what went wrong in its batch."""
    if model.device.type != "cuda":
        for tile in tiles:
            yield _infer_parts(model, pixels, job, tile)
        return
    yield from _infer_batches(model, pixels, job, tiles)


def _infer_batches(
    model: Model, pixels: Pixels, job: Job, tiles: list[tiling.Tile]
) -> Iterator[Iterable[tuple[tiling.Tile, Rows]]]:
    """`_infer_all` in batches, on any device."""
    from core.engine import batches as cuda

    net, dtype = model.net, model.dtype

    def forward(x: Tensor) -> Tensor:
        return _passes(net, x.to(dtype), job)

    regions = (_cut(pixels, tile) for tile in tiles)
    batch = cuda.batch_size(tiles[0].rows.size, tiles[0].columns.size, job.scale, model.device)
    results = cuda.run(forward, regions, batch, model.device, _is_out_of_memory)
    for tile, values in zip(tiles, results, strict=True):
        if values is None:
            yield _infer_parts(model, pixels, job, tile)
        else:
            yield [(tile, values[_owned(tile, job)])]


def _infer_parts(model: Model, pixels: Pixels, job: Job, tile: tiling.Tile) -> Iterator[tuple[tiling.Tile, Rows]]:
    """One tile, in as many parts as memory makes necessary."""
    height, width = pixels.shape[:2]
    window = model.spec.window
    side, smallest = max(tile.rows.size, tile.columns.size), tiling.region_side(window, job.halo, window)
    if side > max(model.side, smallest):
        for part in tiling.split(tile, height, width, model.side - 2 * job.halo, job.halo, window):
            yield from _infer_parts(model, pixels, job, part)
        return
    try:
        values = _infer(model, pixels, job, tile)
    except Exception as error:
        if not _is_out_of_memory(error):
            raise
    else:
        yield tile, values
        return
    # Outside of the handler, so that the traceback no longer holds the failed tile's tensors.
    _make_room(model, side, smallest)
    yield from _infer_parts(model, pixels, job, tile)


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


def _infer(model: Model, pixels: Pixels, job: Job, tile: tiling.Tile) -> Rows:
    """The owned part of a tile: (rows * scale, columns * scale, 3) float32 in [0, 1]."""
    cut = _cut(pixels, tile)  # (h, w, 1 or 3)
    region = torch.from_numpy(np.divide(cut, np.iinfo(cut.dtype).max, dtype=np.float32))
    region = region.permute(2, 0, 1).unsqueeze(0).expand(1, 3, -1, -1)  # (1, 3, h, w), channels_last in memory
    values = _forward(model, model.net, region, job, tile, model.dtype)
    if not bool(values.isfinite().all()):
        model.notes.append("a tile was not finite and was redone in fp32")
        values = _forward(model, _in_fp32(model), region, job, tile, torch.float32)
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


def _forward(model: Model, net: nn.Module, x: Tensor, job: Job, tile: tiling.Tile, dtype: torch.dtype) -> Tensor:
    """Run all passes on a region and cut out the owned part: (3, rows * scale, columns * scale) float32."""
    with torch.inference_mode():
        x = x.to(device=model.device, dtype=dtype, memory_format=torch.channels_last)
        return _passes(net, x, job)[0, :, *_owned(tile, job)].float().cpu()


def _passes(net: nn.Module, x: Tensor, job: Job) -> Tensor:
    """(n, 3, h, w) -> (n, 3, job.scale * h, job.scale * w)."""
    for index in range(job.passes):
        # Clipping would make white of infinity: taking x from itself makes NaN of it, and 0 of all else.
        x = net(x if index == 0 else (x + (x - x)).clamp(0, 1))
    return x


def _owned(tile: tiling.Tile, job: Job) -> tuple[slice, slice]:
    """Where in a region's result its tile's own part is."""
    spans = ((span.start - span.origin, span.stop - span.origin) for span in (tile.rows, tile.columns))
    rows, columns = (slice(start * job.scale, stop * job.scale) for start, stop in spans)
    return rows, columns


def measure_rate(model: Model) -> float:
    """Operations a second of a warm model on a tile of usual size."""
    side = 256 if model.spec.kind == "compact" else 64
    if model.device.type == "cuda":
        side = model.spec.tile
    pixels = np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)
    job = models.make_job(model.spec, model.spec.scale, exact=False, tile=side)
    best = float("inf")
    for _ in range(3):  # the first also compiles kernels and fills caches
        start = time.perf_counter()
        for _ in upscale_parts(model, pixels, job):
            pass
        best = min(best, time.perf_counter() - start)
    return side * side * operations(model.spec, job) / best
