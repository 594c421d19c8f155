"""The card's path without a card: batches on the CPU, and the card's way through Swin2SR."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from core import models
from core.engine import batches as cuda
from core.engine import run as engine
from core.engine.tiling import plan
from core.models import make_job
from core.networks import swin2sr
from core.networks.compact import Compact
from core.networks.compact_config import CompactConfig
from core.picture import Pixels
from core.pixels.resize import Rows
from tests.unit.networks.test_swin2sr import AUX, DIRECT, SMALL, ours, picture, psnr, random_state

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Networks this small only wait for each other's threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    engine._warm.clear()
    yield
    torch.set_num_threads(before)
    engine._warm.clear()


@pytest.fixture(scope="module")
def model() -> engine.Model:
    """A network like the embedded one, with random weights, that takes milliseconds."""
    config = CompactConfig(scale=2, width=8, blocks=2)
    torch.manual_seed(0)
    net = Compact(config).eval().requires_grad_(False).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    spec = models._spec("small", "", config, "")
    return engine.Model(spec, net, CPU, torch.float32, 1 << 20)


@pytest.mark.parametrize("change", [{"upsampler": "pixelshuffle"}, {"upsampler": DIRECT}, {"upsampler": AUX}], ids=str)
def test_all_windows_at_once_equal_chunks(change: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """On a card Swin2SR takes PyTorch's operators, and all windows of a batch as one chunk."""
    raw = SMALL | {"upscale": 4} | change
    net, x = ours(raw, random_state(raw)), picture(3, 40, 24)
    with torch.inference_mode():
        expected = net(x)
        monkeypatch.setattr(swin2sr, "_onednn", lambda x: False)
        monkeypatch.setattr(swin2sr, "_chunk", lambda config: 3 * 40 * 24 // 64)
        monkeypatch.setattr(swin2sr._Layer, "_attend_by_head", swin2sr._Layer._attend)
        assert psnr(net(x), expected) >= 110


def test_fp32_on_a_card_is_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nn.Module, "to", lambda self, *_, **__: self)  # there is no card to go to
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    try:
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = True
        engine.load("compact-x2", torch.device("cuda"), torch.float32)
        assert (torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32) == (False, False)
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


def noise(height: int, width: int, dtype: type = np.uint8, channels: int = 3) -> Pixels:
    top = np.iinfo(dtype).max
    made: Pixels = np.random.default_rng(0).integers(0, top + 1, (height, width, channels), dtype)
    return made


def in_batches(model: engine.Model, pixels: Pixels, batch: int, monkeypatch: pytest.MonkeyPatch) -> Rows:
    """The engine's way over a picture on a card, taken on the CPU."""
    job = make_job(model.spec, model.spec.scale, exact=True, tile=48)
    with monkeypatch.context() as patch:
        patch.setattr(cuda, "batch_size", lambda *_: batch)
        patch.setattr(engine, "_infer_all", engine._infer_batches)
        return np.concatenate(list(engine.upscale_strips(model, pixels, job)))


def alone(model: engine.Model, pixels: Pixels) -> Rows:
    return np.concatenate(
        list(engine.upscale_strips(model, pixels, make_job(model.spec, model.spec.scale, exact=True, tile=48)))
    )


@pytest.mark.parametrize("batch", [1, 2, 4, 100])
@pytest.mark.parametrize(("dtype", "channels"), [(np.uint8, 3), (np.uint16, 3), (np.uint8, 1), (np.uint16, 1)])
def test_batches_equal_single_tiles(
    batch: int, dtype: type, channels: int, model: engine.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = noise(100, 150, dtype, channels)
    assert np.array_equal(in_batches(model, pixels, batch, monkeypatch), alone(model, pixels))


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
    how: Callable[[Tensor], None], batch: int, model: engine.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = noise(100, 150)
    expected = alone(model, pixels)
    tiles = sum(map(len, plan(100, 150, 48, model.spec.halo, 1)))
    assert tiles >= 6
    for tile in range(tiles):
        faulty = Failing(model.net, tile, how)
        made = in_batches(replace(model, net=faulty, notes=[]), pixels, batch, monkeypatch)
        assert faulty.failed == 1
        assert np.array_equal(made, expected), tile


def test_memory_for_few_tiles_at_once(model: engine.Model, monkeypatch: pytest.MonkeyPatch) -> None:
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
    small = Small(model.net, 2)
    assert np.array_equal(in_batches(replace(model, net=small), pixels, 5, monkeypatch), alone(model, pixels))
    assert small.sizes[:2] == [5, 2], "halved until it fits"
    assert max(small.sizes[1:]) == 2, "and not tried larger again"


def test_an_error_that_is_not_about_memory_is_raised(model: engine.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    faulty = Failing(model.net, 5, defect)
    with pytest.raises(RuntimeError, match="a defect"):
        in_batches(replace(model, net=faulty), noise(100, 150), 4, monkeypatch)


def test_the_size_of_a_batch() -> None:
    assert cuda.batch_size(8, 8, 2, CPU) * 64 == cuda.BATCH_PIXELS
    assert cuda.batch_size(10_000, 10_000, 2, CPU) == 1
