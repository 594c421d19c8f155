"""How long and how much memory, before a request runs.

Seconds are the model's operations on this picture, halos included, divided by a rate that is measured once per
machine, model, device and thread count, and kept in the user's cache directory. Decoding and encoding are counted by
the pixel. What is only known once the pixels are decoded is taken at its most: that transparency varies, and that no
frame equals the one before.
"""

from __future__ import annotations

import json
import os
import platform
from pathlib import Path

from core import models
from core.engine import tiling
from core.models import ModelSpec
from core.options import Estimate, Options
from core.picture import Probe, frames_kept

#: Operations a second on a machine that nothing is known of: half of what two 2024 server cores reached.
DEFAULT_RATES = {"compact": 100e9, "swin2sr": 40e9, "lanczos": 1e9}
_DEFAULT_CUDA = 50.0  # times as fast
_DEEP_SLOWDOWN = 2.0  # of fp32 against bf16, while no picture of more than eight bits has told
_DECODE_SECONDS = 3e-8  # a pixel
_LANCZOS_SECONDS = 20e-8  # a pixel, of input and result
#: Seconds and bytes that encoding takes for a pixel, measured on photos: opaque, and with transparency.
_ENCODING = {
    "jpeg": ((1e-8, 1), (1e-8, 1)),
    "png": ((8e-8, 2), (15e-8, 6)),
    "webp": ((20e-8, 26), (120e-8, 43)),
    "tiff": ((5e-8, 4), (8e-8, 8)),
    "bmp": ((1e-8, 4), (1e-8, 4)),
    "avif": ((170e-8, 45), (400e-8, 48)),
}
_BASE_MEMORY = 300e6  # interpreter, torch and a model, bytes
_BANDS_BYTES = 140e6  # what a compact network has in work, whatever the picture
_HIDDEN_BYTES = 20  # an input pixel, while transparent ones are given a colour

_measured: dict[str, float] = {}


def _cache_file() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "serverless-upscaler" / "rates.json"


def _rate_key(spec: ModelSpec, device: str, deep: bool) -> str:
    precision = " fp32" if deep else ""
    cpu = f"{platform.machine()} {platform.processor()} x{os.cpu_count()}"
    return f"{cpu} {device} {spec.name} {spec.operations:.0f}{precision}"


def known_rate(spec: ModelSpec, device: str, *, deep: bool = False) -> float | None:
    """Operations a second from an earlier measurement on this machine, or None.

    Args:
        spec: the model.
        device: "cpu" or "cuda".
        deep: for pictures of more than eight bits, which are computed in fp32.
    """
    if not _measured:
        try:
            kept = json.loads(_cache_file().read_text(encoding="utf-8"))
            _measured.update({key: float(value) for key, value in kept.items() if float(value) > 0})
        except (OSError, ValueError, AttributeError, TypeError):
            pass  # nothing measured yet, or a cache that somebody damaged: it is measured anew
    return _measured.get(_rate_key(spec, device, deep))


def keep_rate(spec: ModelSpec, device: str, rate: float, *, deep: bool = False) -> None:
    """Remember a measured rate (operations a second) for this process, and on disk where that can be written."""
    known_rate(spec, device)
    _measured[_rate_key(spec, device, deep)] = rate
    file = _cache_file()
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        part = file.with_suffix(f".{os.getpid()}.part")
        part.write_text(json.dumps(_measured, indent=1), encoding="utf-8")
        part.replace(file)
    except OSError:
        pass  # a read-only machine measures once per process


def learn_rate(spec: ModelSpec, device: str, rate: float, *, deep: bool = False) -> None:
    """Move the known rate towards one seen in real work (operations a second): machines are busy or idle by turns."""
    known = known_rate(spec, device, deep=deep)
    mixed = rate if known is None else (known + rate) / 2
    if known is None or abs(mixed / known - 1) > 0.1:
        keep_rate(spec, device, mixed, deep=deep)


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

    Raises:
        OptionsError: the options do not fit this picture.
        ModelError: only without `measure`: there is no such model. With it, the fall-back chain applies.
    """
    options = options or Options()
    picture = picture or Probe("png", width, height, 0, "RGB")
    out_width, out_height = options.output_size(width, height)
    device = "cpu" if options.device == "cpu" else _device()
    wanted = options.factor(width, height)
    chain = models.fallback_chain(options.model, wanted, picture.format)
    spec = models.spec_of(chain[0])
    rate = known_rate(spec, device)
    if rate is None and measure:
        from core.engine import run as engine

        loaded = engine.load_first(chain, engine.pick_device(options.device))
        spec, device = (loaded.model.spec, loaded.model.device.type) if loaded.model else (models.LANCZOS, "cpu")
        rate = known_rate(spec, device)
        if rate is None and loaded.model:
            rate = engine.measure_rate(loaded.model)
            keep_rate(spec, device, rate)
    measured = rate is not None or spec.kind == "lanczos"
    if rate is None:
        rate = DEFAULT_RATES[spec.kind] * (_DEFAULT_CUDA if device == "cuda" else 1)
    if picture.bits > 8:  # computed in fp32
        slowdown = _DEEP_SLOWDOWN if _multiplies_bf16(device) else 1
        rate = known_rate(spec, device, deep=True) or rate / slowdown

    format = options.format or picture.result_format
    frames = frames_kept(format, picture)
    in_pixels, out_pixels = width * height, out_width * out_height
    passes = 2 if picture.alpha else 1  # alpha takes as many tiles as colour
    if spec.kind == "lanczos":
        seconds, tiles, working = passes * _LANCZOS_SECONDS * (in_pixels + out_pixels), 1, 0.0
    else:
        job = models.make_job(spec, wanted, exact=options.exact, tile=options.tile, halo=options.halo)
        plan = [tile for row in tiling.plan(height, width, job.tile, job.halo, spec.window) for tile in row]
        regions = [tile.rows.size * tile.columns.size for tile in plan]
        seconds, tiles = passes * sum(regions) * models.operations(spec, job) / rate, passes * len(plan)
        resampled = (out_width, out_height) != (width * job.scale, height * job.scale)
        strip = resampled * max(tile.rows.size for tile in plan) * width * job.scale**2 * 3 * 4  # bytes
        bands = _BANDS_BYTES if spec.kind == "compact" else 0.0
        working = bands + 2 * strip + max(regions) * spec.tile_bytes * spec.scale ** (2 * (job.passes - 1))
    encode_seconds, encode_bytes = _ENCODING[format][picture.alpha]
    seconds += _DECODE_SECONDS * in_pixels + encode_seconds * out_pixels
    held = (in_pixels + out_pixels) * (4 if picture.alpha else 3) * (2 if picture.bits > 8 else 1)
    encoding = out_pixels * encode_bytes
    if picture.alpha:
        working = max(working, _HIDDEN_BYTES * in_pixels)
    if frames > 1:
        held *= 2  # the frame before, to see what changed
        if format in ("webp", "avif"):
            held += 4 * out_pixels * frames  # Pillow takes all frames at once
    whole = picture.pixels / in_pixels if picture.pixels and frames > 1 else frames  # pages may differ in size
    return Estimate(
        width=out_width,
        height=out_height,
        model=spec.name,
        seconds=seconds * whole,
        memory=int(_BASE_MEMORY + held + max(working, encoding)),
        tiles=tiles * frames,
        megapixels=in_pixels / 1e6,
        device=device,
        measured=measured,
    )


def _multiplies_bf16(device: str) -> bool:
    """As `engine.pick_dtype` decides, without torch."""
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        flags = ""
    return device == "cuda" or "avx512_bf16" in flags or "amx_tile" in flags


def _device() -> str:
    """The device that "auto" stands for, without importing torch where it is not imported yet."""
    import sys

    if "torch" not in sys.modules:
        return "cuda" if Path("/dev/nvidiactl").exists() else "cpu"
    from core.engine import run as engine

    return engine.pick_device("auto").type
