"""Estimates: pure numbers, kept rates, and no torch."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import core
from core import models

module = importlib.import_module("core.estimate")  # the package gives the function of this name


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(module, "_measured", {})


def test_twice_the_rate_is_half_the_time_of_the_network() -> None:
    spec = models.MODELS["compact-x2"]
    module.keep_rate(spec, "cpu", 1e9)
    slow = core.estimate(1000, 1000, core.Options(device="cpu"))
    module.keep_rate(spec, "cpu", 2e9)
    fast = core.estimate(1000, 1000, core.Options(device="cpu"))
    assert slow.measured
    assert slow.seconds / fast.seconds == pytest.approx(2, rel=0.01)


def test_a_measured_rate_is_kept_for_the_next_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = models.MODELS["compact-x2"]
    module.keep_rate(spec, "cpu", 123e9)
    monkeypatch.setattr(module, "_measured", {})
    assert module.known_rate(spec, "cpu") == 123e9
    (file,) = tmp_path.rglob("rates.json")
    file.write_text("damaged")
    monkeypatch.setattr(module, "_measured", {})
    assert module.known_rate(spec, "cpu") is None


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


def test_an_estimate_of_the_operations_of_real_convolutions() -> None:
    """What the configuration says is what PyTorch counts."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from core import engine

    spec = models.MODELS["compact-x2"]
    net = engine.build(spec, models.fetch(spec))
    with FlopCounterMode(display=False) as counter:
        net(torch.zeros(1, 3, 32, 32))
    assert counter.get_total_flops() / 32**2 == pytest.approx(spec.operations, rel=0.01)


def test_no_torch_for_an_estimate() -> None:
    code = "import sys, core; core.estimate(1000, 1000); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_the_rate_follows_real_work() -> None:
    spec = models.MODELS["compact-x2"]
    module.learn_rate(spec, "cpu", 100e9)
    assert module.known_rate(spec, "cpu") == 100e9
    module.learn_rate(spec, "cpu", 300e9)
    assert module.known_rate(spec, "cpu") == 200e9
    module.learn_rate(spec, "cpu", 201e9)
    assert module.known_rate(spec, "cpu") == 200e9, "not written for every small change"
