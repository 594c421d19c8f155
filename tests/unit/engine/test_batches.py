"""The card's path without a card: batches on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from core.engine import batches, run
from core.engine.load import Model
from core.engine.plan import make_plan
from core.engine.pytorch import TorchNetwork
from core.engine.tiling import tile_rows
from core.picture import Pixels
from core.pixels.bands import bands_of
from core.pixels.resize import Rows
from tests.unit.engine.small import CPU, noise, upscaled


@pytest.fixture
def model(small_compact: Model) -> Model:
    return small_compact


@pytest.fixture
def module(model: Model) -> nn.Module:
    assert isinstance(model.net, TorchNetwork)
    return model.net.module


def in_batches(model: Model, pixels: Pixels, batch: int, monkeypatch: pytest.MonkeyPatch) -> Rows:
    """The engine's way over a picture on a card, taken on the CPU."""
    with monkeypatch.context() as patch:
        patch.setattr(batches, "batch_size", lambda *_: batch)
        patch.setattr(run, "_side_by_side", partial(run._in_batches, rounded=False))
        return upscaled(replace(model, at_once=2), pixels, 48)


def alone(model: Model, pixels: Pixels) -> Rows:
    return upscaled(model, pixels, 48)


@pytest.mark.parametrize("batch", [1, 2, 4, 100])
@pytest.mark.parametrize(("dtype", "channels"), [(np.uint8, 3), (np.uint16, 3), (np.uint8, 1), (np.uint16, 1)])
def test_batches_equal_single_tiles(
    batch: int, dtype: type, channels: int, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = noise(100, 150, channels, dtype)
    assert np.array_equal(in_batches(model, pixels, batch, monkeypatch), alone(model, pixels))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("how", [None, "out_of_memory", "not_finite"])
def test_a_card_rounds_as_the_processor_does(
    dtype: type, how: str | None, model: Model, module: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = noise(100, 150, 3, dtype)
    plan = make_plan(model.spec, 2, exact=True, tile=48)
    expected = np.concatenate([strip for _, strip in run.upscale_bands(model, bands_of(pixels), plan, rounded=True)])
    if how:
        net = Failing(module, 3, {"out_of_memory": out_of_memory, "not_finite": not_finite}[how])
        model = replace(model, net=TorchNetwork(net, "cpu"), notes=[])
    monkeypatch.setattr(batches, "batch_size", lambda *_: 4)
    monkeypatch.setattr(run, "_side_by_side", partial(run._in_batches, rounded=True))
    seen, compute = list[bool](), batches._compute

    def watched(forward: batches.Forward, x: Tensor, top: float, rounded: bool) -> tuple[Tensor, Tensor]:
        seen.append(rounded)
        return compute(forward, x, top, rounded)

    monkeypatch.setattr(batches, "_compute", watched)
    strips = run.upscale_bands(replace(model, at_once=2), bands_of(pixels), plan, rounded=True)
    made = np.concatenate([strip for _, strip in strips])
    assert made.dtype == dtype
    assert np.array_equal(made, expected)
    assert seen
    assert all(seen)


class Failing(nn.Module):
    """A network that fails once, at the tile with a given number."""

    def __init__(self, net: nn.Module, fail_at: int, how: Callable[[Tensor], None]) -> None:
        super().__init__()
        self.net, self.seen, self.fail_at, self.how, self.failed = net, 0, fail_at, how, 0

    def forward(self, x: Tensor) -> Tensor:
        first, self.seen = self.seen, self.seen + len(x)
        made: Tensor = self.net(x)
        if first <= self.fail_at < self.seen and not self.failed:
            self.failed += 1
            self.seen = first if self.how is out_of_memory else self.seen
            made = made.clone()
            self.how(made[self.fail_at - first])
        return made


def out_of_memory(made: Tensor) -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 byte")


def not_finite(made: Tensor) -> None:
    made[:, made.shape[1] // 2, made.shape[2] // 2] = float("nan")


def defect(made: Tensor) -> None:
    raise RuntimeError("a defect")


@pytest.mark.parametrize("batch", [1, 3, 4])
@pytest.mark.parametrize("how", [out_of_memory, not_finite])
def test_a_failure_at_every_tile_changes_nothing(
    how: Callable[[Tensor], None], batch: int, model: Model, module: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = noise(100, 150)
    expected = alone(model, pixels)
    tiles = sum(map(len, tile_rows(100, 150, 48, model.spec.halo, 1)))
    assert tiles >= 6
    for tile in range(tiles):
        faulty = Failing(module, tile, how)
        made = in_batches(replace(model, net=TorchNetwork(faulty, CPU), notes=[]), pixels, batch, monkeypatch)
        assert faulty.failed == 1
        assert np.array_equal(made, expected), tile


def test_memory_for_few_tiles_at_once(model: Model, module: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    class Small(nn.Module):
        def __init__(self, net: nn.Module, fits: int) -> None:
            super().__init__()
            self.net, self.fits, self.sizes = net, fits, list[int]()

        def forward(self, x: Tensor) -> Tensor:
            self.sizes.append(len(x))
            if len(x) > self.fits:
                raise torch.OutOfMemoryError("CUDA out of memory")
            made: Tensor = self.net(x)
            return made

    pixels = noise(100, 150)
    small = Small(module, 2)
    assert np.array_equal(
        in_batches(replace(model, net=TorchNetwork(small, CPU)), pixels, 5, monkeypatch),
        alone(model, pixels),
    )
    assert small.sizes[:2] == [5, 2], "halved until it fits"
    assert max(small.sizes[1:]) == 2, "and not tried larger again"


def test_an_error_that_is_not_about_memory_is_raised(
    model: Model, module: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    faulty = TorchNetwork(Failing(module, 5, defect), CPU)
    with pytest.raises(RuntimeError, match="a defect"):
        in_batches(replace(model, net=faulty), noise(100, 150), 4, monkeypatch)


def test_the_size_of_a_batch() -> None:
    assert batches.batch_size(8, 8, 2, torch.device(CPU)) * 64 == batches.BATCH_PIXELS
    assert batches.batch_size(10_000, 10_000, 2, torch.device(CPU)) == 1
