"""Estimates: pure numbers, kept rates, and no torch."""

from __future__ import annotations

import importlib
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import core
from core import models
from core.engine import load, rates

ROOT = Path(__file__).parents[2]
module = importlib.import_module("core.estimation")  # the package gives the function of this name


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(rates, "_measured", {})


def test_twice_the_rate_is_half_the_time_of_the_network() -> None:
    spec = models.MODELS["compact-x2"]
    rates.keep_rate(spec, "cpu", 1e9)
    slow = core.estimate(1000, 1000, core.Options(device="cpu"))
    rates.keep_rate(spec, "cpu", 2e9)
    fast = core.estimate(1000, 1000, core.Options(device="cpu"))
    assert slow.measured
    assert slow.seconds / fast.seconds == pytest.approx(2, rel=0.01)


def of(picture: core.Probe, **options: Any) -> core.Estimate:
    """The estimate of what was read, by the embedded model on the CPU."""
    return core.estimate(picture.width, picture.height, core.Options(device="cpu", **options), picture=picture)


def test_without_a_header_it_is_one_opaque_picture() -> None:
    assert core.estimate(300, 200, core.Options(device="cpu")) == of(core.Probe("png", 300, 200, 0, "RGB"))


def test_all_frames_that_are_kept_count() -> None:
    still = of(core.Probe("png", 300, 200, 0, "RGBA", alpha=True))
    animation = core.Probe("png", 300, 200, 0, "RGBA", frames=7, plays=0, alpha=True)
    assert of(animation).seconds == pytest.approx(7 * still.seconds)
    assert of(animation).tiles == 7 * still.tiles
    assert of(animation, format="jpeg").tiles == still.tiles, "a JPEG holds the first"
    longer = replace(animation, frames=70)
    assert of(longer).memory == of(animation).memory, "a PNG is written frame by frame"
    more = of(longer, format="webp").memory - of(animation, format="webp").memory
    assert more == 63 * 4 * 600 * 400, "Pillow holds all frames of a WebP"


def test_pages_of_different_sizes() -> None:
    alike = core.Probe("tiff", 300, 200, 0, "RGB", frames=4)
    smaller = replace(alike, pixels=2 * 300 * 200)
    assert of(smaller).seconds == pytest.approx(of(alike).seconds / 2)


def test_transparency_goes_through_the_network_too() -> None:
    opaque, transparent = (core.Probe("png", 300, 200, 0, "", alpha=alpha) for alpha in (False, True))
    assert of(transparent).seconds > 1.9 * of(opaque).seconds
    assert of(transparent).tiles == 2 * of(opaque).tiles
    assert of(transparent).memory > of(opaque).memory


def test_deep_pictures_are_computed_in_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = models.MODELS["compact-x2"]
    flat, deep = (core.Probe("png", 3000, 2000, 0, "", bits=bits) for bits in (8, 16))
    rates.keep_rate(spec, "cpu", 1e9)
    monkeypatch.setattr(module, "_multiplies_bf16", lambda spec, device: False)
    assert of(deep).seconds == pytest.approx(of(flat).seconds, rel=0.01)
    monkeypatch.setattr(module, "_multiplies_bf16", lambda spec, device: True)
    assert of(deep).seconds == pytest.approx(2 * of(flat).seconds, rel=0.01)
    rates.learn_rate(spec, "cpu", 0.2e9, deep=True)
    assert of(deep).seconds == pytest.approx(5 * of(flat).seconds, rel=0.01), "measured is better than assumed"
    assert rates.known_rate(spec, "cpu") == 1e9, "what was learned of deep pictures says nothing about others"
    assert of(deep).memory > of(flat).memory


def test_the_processor_is_judged_as_the_engine_does() -> None:
    for name in ("compact-x2", "swin2sr-lightweight-x2"):
        spec = models.MODELS[name]
        assert module._multiplies_bf16(spec, "cpu") == (load.pick_dtype(spec, "cpu") == "bfloat16")


def test_an_estimate_is_for_the_model_that_will_run(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = core.Options(model="swin2sr-lightweight-x2")
    assert core.estimate(100, 100, asked).model == "swin2sr-lightweight-x2"
    monkeypatch.setattr(load, "has_torch", lambda: False)
    assert core.estimate(100, 100, asked).model == "compact-x2"
    assert core.estimate(100, 100, core.Options(model="owner/of-a-hub-id")).model == "compact-x2"


ENCODE = """
import sys
from pathlib import Path
import numpy as np
from PIL import Image
from core.codecs import encode
from core.picture import Picture

def resident(name):
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name)]
    return int(line.split()[1]) * 1024

photo = np.asarray(Image.open("samples/astronaut.jpg").convert("RGB"))
pixels = np.tile(photo, (4, 4, 1))[:1500, :2000].copy()
alpha = pixels[:, :, 0].copy() if sys.argv[2] == "True" else None
Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
before = resident("VmRSS:")
with open(sys.argv[3], "wb+") as stream:
    encode.encode([Picture(pixels, alpha, lossless=sys.argv[4] == "True")], stream, sys.argv[1], pixels=3_000_000)
print((resident("VmHWM:") - before) / 3e6)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peak memory is read from Linux's /proc")
@pytest.mark.parametrize(
    ("format", "alpha", "lossless"),
    [("png", True, True), ("webp", False, True), ("webp", True, False), ("avif", False, False), ("tiff", True, True)],
)
def test_what_encoding_takes_is_what_is_expected(format: str, alpha: bool, lossless: bool, tmp_path: Path) -> None:
    command = [sys.executable, "-c", ENCODE, format, str(alpha), str(tmp_path / "out"), str(lossless)]
    printed = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT, timeout=300).stdout
    expected = module._ENCODING[format][alpha][1]
    if not expected:  # band by band: the same for any picture, and this one has 3 megapixels
        assert float(printed) * 3e6 < module._CODING_MEMORY
        return
    assert 0.5 * expected < float(printed) < 1.3 * expected


def test_memory_does_not_grow_with_height() -> None:
    short, tall = (of(core.Probe("png", 8000, height, 0, "RGB")) for height in (3000, 100_000))
    assert tall.memory < 1.05 * short.memory
    assert tall.file_bytes > 30 * short.file_bytes
    held = of(core.Probe("webp", 8000, 100_000, 0, "RGB", streams=False), format="png")
    assert held.memory > tall.memory + 2_000_000_000


def test_more_pixels_take_longer_and_more_memory() -> None:
    sizes = [(100, 100), (1000, 1000), (4000, 3000)]
    found = [core.estimate(*size, core.Options(device="cpu")) for size in sizes]
    assert [e.seconds for e in found] == sorted(e.seconds for e in found)
    assert [e.memory for e in found] == sorted(e.memory for e in found)
    assert found[2].megapixels == 12
    assert (found[2].width, found[2].height) == (8000, 6000)


def test_exact_costs_more_for_window_attention() -> None:
    fast = core.estimate(2000, 2000, core.Options(model="swin2sr-classical-x2", device="cpu"))
    exact = core.estimate(2000, 2000, core.Options(model="swin2sr-classical-x2", device="cpu", exact=True))
    assert exact.seconds > 2 * fast.seconds


def test_no_torch_for_an_estimate() -> None:
    code = "import sys, core; core.estimate(1000, 1000); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)
