"""How long and how much memory, before a request runs.

Seconds are the model's operations on this picture, halos included, divided by a rate that is measured once per
machine, model, device and thread count (`core.engine.rates`). Decoding and encoding are counted by the pixel. What is
only known once the pixels are decoded is taken at its most: that transparency varies, and that no frame equals the one
before.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from core import model_folder, models
from core.engine import load, onnx
from core.engine.plan import lay_out, make_plan, operations
from core.engine.rates import keep_rate, known_rate, steady_rate
from core.formats import STREAMED, stored_bytes
from core.models import ModelSpec
from core.options import Estimate, Options
from core.picture import Probe, frames_kept

#: Operations a second on a machine that nothing is known of: half of what two 2024 server cores reached.
DEFAULT_RATES = {
    "compact": 100e9, "swin2sr": 40e9, "rrdbnet": 100e9, "srvgg": 80e9, "span": 60e9, "lanczos": 1e9
}  # fmt: skip
_DEFAULT_CUDA = 50.0  # times as fast
_DEEP_SLOWDOWN = 2.0  # of fp32 against bf16, while no picture of more than eight bits was measured
_DECODE_SECONDS = 3e-8  # a pixel
_LANCZOS_SECONDS = 4e-8  # a pixel, of input and result
_DEEP_LANCZOS_SECONDS = 20e-8  # the same of more than eight bits, which are computed in floats
#: Seconds and bytes that encoding takes for a pixel, measured on photos: opaque, and with transparency. What is written
#: from top to bottom takes some megabytes, whatever the picture.
_ENCODING = {
    "jpeg": ((1e-8, 0), (1e-8, 0)),
    "png": ((8e-8, 0), (15e-8, 0)),
    "webp": ((20e-8, 26), (120e-8, 43)),
    "tiff": ((3e-8, 0), (5e-8, 0)),
    "bmp": ((1e-8, 0), (1e-8, 0)),
    "avif": ((170e-8, 45), (400e-8, 48)),
}
_BASE_MEMORY = 140e6  # interpreter, codecs, ONNX Runtime and a model, bytes
_TORCH_MEMORY = 160e6  # what PyTorch takes on top
_BANDS_BYTES = 100e6  # what RRDBNet has in work while it enlarges in bands, whatever the picture
_CODING_MEMORY = 40e6  # bands that are decoded and encoded
_LANCZOS_ROWS = 256  # of input that are in work where no network cuts the picture into strips


@dataclass(frozen=True)
class _Speed:
    """The model that will run if nothing goes wrong, where, at how many operations a second; measured or assumed.

    `steady` is the rate as it usually is (`core.engine.rates.steady_rate`).
    """

    spec: ModelSpec
    device: str
    rate: float
    steady: float
    measured: bool


@dataclass(frozen=True)
class _Work:
    """What one frame takes between decoding and encoding: seconds, tiles, and bytes beside the picture itself."""

    seconds: float
    tiles: int
    memory: float


def estimate(
    width: int, height: int, options: Options | None = None, *, picture: Probe | None = None, measure: bool = False
) -> Estimate:
    """Seconds, memory and size of a request.

    Args:
        width: of the input, pixels, orientation applied.
        height: of the input, pixels.
        options: as for `upscale`.
        picture: what its header says, when that is known: its frames, transparency and depth count, and its format
            where the options name none. Otherwise it is one opaque picture of eight bits, and becomes a PNG.
        measure: load the model and measure its rate now when it is not known for this machine.

    Returns:
        What `upscale` is expected to take.

    Raises:
        OptionsError: the options do not fit this picture.
        ModelError: only without `measure`: there is no such model. With it, the fallback chain applies.
    """
    options = model_folder.fit_scale(options or Options())
    picture = picture or Probe("png", width, height, 0, "RGB")
    out_width, out_height = options.output_size(width, height)
    chain = models.fallback_chain(options.model, options.factor(width, height), picture.format)
    speed = _speed(chain, options.device, deep=picture.bits > 8, measure=measure)
    in_pixels, out_pixels = width * height, out_width * out_height
    layers = 2 if picture.alpha else 1  # alpha takes as many tiles as colour
    pixel = (4 if picture.alpha else 3) * (2 if picture.bits > 8 else 1)  # bytes
    if speed.spec.kind == "lanczos":
        rows = _LANCZOS_ROWS * out_height / height  # of the result
        work = _Work(
            layers * (_DEEP_LANCZOS_SECONDS if picture.bits > 8 else _LANCZOS_SECONDS) * (in_pixels + out_pixels),
            1,
            3 * rows * out_width * layers * 4,
        )
    else:
        work = _network_work(width, height, options, speed, layers, pixel)

    format = options.format or picture.result_format
    frames = frames_kept(format, picture)
    encode_seconds, encode_bytes = _ENCODING[format][picture.alpha]
    seconds = work.seconds + _DECODE_SECONDS * in_pixels + encode_seconds * out_pixels
    streamed = format in STREAMED and frames == 1
    held = pixel * ((0 if picture.streams else in_pixels) + (0 if streamed else out_pixels))
    encoding = out_pixels * encode_bytes
    if frames > 1:
        held = 2 * pixel * (in_pixels + out_pixels)  # with the frame before, to see what changed
        if format in ("webp", "avif"):
            held += 4 * out_pixels * frames  # Pillow takes all frames at once
    whole = picture.pixels / in_pixels if picture.pixels and frames > 1 else frames  # pages may differ in size
    return Estimate(
        width=out_width,
        height=out_height,
        model=speed.spec.name,
        seconds=seconds * whole,
        memory=int(_BASE_MEMORY + _CODING_MEMORY + held + max(work.memory, encoding)),
        tiles=work.tiles * frames,
        megapixels=in_pixels / 1e6,
        device=speed.device,
        measured=speed.measured,
        file_bytes=stored_bytes(
            format, round(out_pixels * whole), alpha=picture.alpha, bits=picture.bits, pyramid=options.pyramid
        ),
        mood=speed.steady / speed.rate,
    )


def _speed(chain: tuple[str, ...], wish: str, *, deep: bool, measure: bool) -> _Speed:
    """Find the rate of the first model of a chain; `measure` loads models until one works, and measures it."""
    device = wish if wish in ("cpu", "cuda") else _device()  # also for a card that another machine has
    spec = models.spec_of(next(filter(load.has_runtime, chain), chain[-1]))
    rate = known_rate(spec, device)
    if rate is None and measure:
        from core.engine import run

        loaded = load.load_first(chain, load.pick_device(wish))
        spec, device = (loaded.model.spec, loaded.model.device) if loaded.model else (models.LANCZOS, "cpu")
        rate = known_rate(spec, device)
        if rate is None and loaded.model:
            rate = run.measure_rate(loaded.model)
            keep_rate(spec, device, rate)
    measured = rate is not None or spec.kind == "lanczos"
    if rate is None:
        rate = DEFAULT_RATES[spec.kind] * (_DEFAULT_CUDA if device == "cuda" else 1)
    steady = steady_rate(spec, device) or rate
    if deep:  # computed in fp32
        slowdown = _DEEP_SLOWDOWN if _multiplies_bf16(spec, device) else 1
        rate = known_rate(spec, device, deep=True) or rate / slowdown
        steady = steady_rate(spec, device, deep=True) or steady / slowdown
    return _Speed(spec, device, rate, steady, measured)


def _network_work(width: int, height: int, options: Options, speed: _Speed, layers: int, pixel: int) -> _Work:
    """What the tiles of one frame take, each of its layers (colour, alpha) in turn; pixels of so many bytes."""
    spec = speed.spec
    out_size = options.output_size(width, height)
    wanted = options.factor(width, height)
    plan = make_plan(spec, wanted, exact=options.exact, tile=options.tile, halo=options.halo)
    dtype = "bfloat16" if _multiplies_bf16(spec, speed.device) else "float32"
    at_once = load.tiles_at_once(spec, speed.device, dtype)
    tiles = [tile for row in lay_out(spec, plan, height, width, at_once=at_once) for tile in row]
    regions = [tile.rows.size * tile.columns.size for tile in tiles]
    resampled = out_size != (width * plan.scale, height * plan.scale)
    # A row of tiles: one in work, one between, one with the encoder; or in floats, and then its bands.
    rows = max(tile.rows.stop - tile.rows.start for tile in tiles) * width * plan.scale**2
    strips = 1.5 * rows * (2 + layers) * 4 if resampled else 3 * rows * pixel
    window = 2 * max(tile.rows.size for tile in tiles) * width * pixel
    side_by_side = min(max(at_once, 1), len(tiles))
    largest = side_by_side * max(regions) * spec.tile_bytes * spec.scale ** (2 * (plan.passes - 1))
    seconds = layers * sum(regions) * operations(spec, plan) / speed.rate
    torch = 0.0 if at_once else _TORCH_MEMORY
    bands = _BANDS_BYTES if spec.kind == "rrdbnet" else 0.0
    return _Work(seconds, layers * len(tiles), torch + bands + strips + window + largest)


def _multiplies_bf16(spec: ModelSpec, device: str) -> bool:
    """Decide as `core.engine.load.pick_dtype` does, without torch."""
    if load.runs_from_file(spec, device):
        return onnx.multiplies_bf16()
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        flags = ""
    return device == "cuda" or "avx512_bf16" in flags or "amx_tile" in flags


def _device() -> str:
    """Find the device that "auto" stands for, without importing torch where it is not imported yet."""
    if "torch" not in sys.modules:
        return "cuda" if load.may_have_card() else "cpu"
    return load.pick_device("auto")
