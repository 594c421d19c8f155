"""How long and how much memory, before a request runs.

Seconds are the model's operations on this picture, halos included, divided by a rate that is measured once per
machine, model, device and thread count, and kept in the user's cache directory. Decoding and encoding are counted by
the pixel.
"""

from __future__ import annotations

import json
import os
import platform
from pathlib import Path

from core import models, tiling
from core.models import ModelSpec
from core.options import Estimate, Options

#: Operations a second on a machine that nothing is known of: half of what two 2024 server cores reached.
DEFAULT_RATES = {"compact": 100e9, "swin2sr": 40e9, "lanczos": 1e9}
_DEFAULT_CUDA = 50.0  # times as fast
_CODEC_SECONDS = 6e-8  # a pixel, decode and encode, of the larger side
_BASE_MEMORY = 350e6  # interpreter and torch, bytes
_TILE_BYTES = {"compact": 48 * 4 * 6, "swin2sr": 180 * 4 * 12, "lanczos": 16}  # an input pixel of a tile

_measured: dict[str, float] = {}


def _cache_file() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "serverless-upscaler" / "rates.json"


def _rate_key(spec: ModelSpec, device: str) -> str:
    return f"{platform.machine()} {platform.processor()} x{os.cpu_count()} {device} {spec.name} {spec.operations:.0f}"


def known_rate(spec: ModelSpec, device: str) -> float | None:
    """Operations a second from an earlier measurement on this machine, or None."""
    if not _measured:
        try:
            kept = json.loads(_cache_file().read_text(encoding="utf-8"))
            _measured.update({key: float(value) for key, value in kept.items() if float(value) > 0})
        except (OSError, ValueError, AttributeError, TypeError):
            pass  # nothing measured yet, or a cache that somebody damaged: it is measured anew
    return _measured.get(_rate_key(spec, device))


def keep_rate(spec: ModelSpec, device: str, rate: float) -> None:
    """Remember a measured rate (operations a second) for this process, and on disk where that can be written."""
    known_rate(spec, device)
    _measured[_rate_key(spec, device)] = rate
    file = _cache_file()
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        part = file.with_suffix(f".{os.getpid()}.part")
        part.write_text(json.dumps(_measured, indent=1), encoding="utf-8")
        part.replace(file)
    except OSError:
        pass  # a read-only machine measures once per process


def learn_rate(spec: ModelSpec, device: str, rate: float) -> None:
    """Move the known rate towards one seen in real work (operations a second): machines are busy or idle by turns."""
    known = known_rate(spec, device)
    mixed = rate if known is None else (known + rate) / 2
    if known is None or abs(mixed / known - 1) > 0.1:
        keep_rate(spec, device, mixed)


def estimate(width: int, height: int, options: Options | None = None, *, measure: bool = False) -> Estimate:
    """Seconds, memory and size of a request.

    Args:
        width: of the input, pixels, orientation applied.
        height: of the input, pixels.
        options: as for `upscale`.
        measure: load the model and measure its rate now when it is not known for this machine.

    Raises:
        OptionsError: the options do not fit this picture.
        ModelError: only without `measure`: there is no such model. With it, the fall-back chain applies.
    """
    options = options or Options()
    out_width, out_height = options.output_size(width, height)
    device = "cpu" if options.device == "cpu" else _device()
    spec = models.spec_of(models.fallback_chain(options.model)[0])
    rate = known_rate(spec, device)
    if rate is None and measure:
        from core import engine

        loaded = engine.load_first(models.fallback_chain(options.model), engine.pick_device(options.device))
        spec, device = (loaded.model.spec, loaded.model.device.type) if loaded.model else (models.LANCZOS, "cpu")
        rate = known_rate(spec, device)
        if rate is None and loaded.model:
            rate = engine.measure_rate(loaded.model)
            keep_rate(spec, device, rate)
    measured = rate is not None
    if rate is None:
        rate = DEFAULT_RATES[spec.kind] * (_DEFAULT_CUDA if device == "cuda" else 1)
    if spec.kind == "lanczos":
        return _lanczos(width, height, out_width, out_height)

    wanted = max(out_width / width, out_height / height)
    job = models.make_job(spec, wanted, exact=options.exact, tile=options.tile, halo=options.halo)
    tiles = [tile for row in tiling.plan(height, width, job.tile, job.halo, spec.window) for tile in row]
    computed = sum(tile.rows.size * tile.columns.size for tile in tiles)
    operations = computed * models.operations(spec, job)
    seconds = operations / rate + _CODEC_SECONDS * (width * height + out_width * out_height)
    tallest = max(tile.rows.size for tile in tiles)
    side = max(tile.rows.size * tile.columns.size for tile in tiles)
    strip = tallest * width * job.scale**2 * 3 * 4
    memory = _BASE_MEMORY + 3 * width * height + 2 * 3 * out_width * out_height + 2 * strip
    memory += side * _TILE_BYTES[spec.kind] * spec.scale ** (2 * (job.passes - 1))
    return Estimate(
        out_width, out_height, spec.name, seconds, int(memory), len(tiles), width * height / 1e6, device, measured
    )


def _lanczos(width: int, height: int, out_width: int, out_height: int) -> Estimate:
    pixels = width * height + out_width * out_height
    memory = int(_BASE_MEMORY + 16 * pixels)
    return Estimate(out_width, out_height, "lanczos", pixels * 2e-7, memory, 1, width * height / 1e6, "cpu", True)


def _device() -> str:
    """The device that "auto" stands for, without importing torch where it is not imported yet."""
    import sys

    if "torch" not in sys.modules:
        return "cuda" if Path("/dev/nvidiactl").exists() else "cpu"
    from core import engine

    return engine.pick_device("auto").type
