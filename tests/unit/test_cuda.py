"""The card's path without a card: batches on the CPU, and the card's Swin2SR in PyTorch's operators."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from core import cuda, engine
from core.image import Pixels
from core.models import make_job
from core.resize import Rows
from core.swin2sr_cuda import Swin2SRCuda
from core.tiling import plan
from tests.unit.test_swin2sr import AUX, DIRECT, NEAREST, SMALL, ours, picture, psnr, random_state

ROOT = Path(__file__).parents[2]
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


@pytest.mark.parametrize(
    ("change", "size"),
    [
        ({"upsampler": "pixelshuffle"}, (2, 24, 40)),
        ({"upsampler": "pixelshuffle", "upscale": 4, "qkv_bias": False, "mlp_ratio": 1.5}, (1, 8, 16)),
        ({"upsampler": "pixelshuffle", "upscale": 3, "resi_connection": "3conv", "img_range": 255.0}, (2, 16, 24)),
        ({"upsampler": DIRECT, "embed_dim": 60, "num_heads": [6, 6]}, (1, 24, 16)),
        ({"upsampler": DIRECT, "window_size": 7, "upscale": 3}, (2, 35, 21)),
        ({"upsampler": NEAREST, "upscale": 4}, (1, 16, 24)),
        ({"upsampler": AUX, "upscale": 4, "resi_connection": "3conv", "window_size": 5}, (1, 25, 30)),
        ({"upsampler": "pixelshuffle", "embed_dim": 180, "num_heads": [6], "depths": [2]}, (1, 24, 16)),
    ],
    ids=str,
)
def test_equals_the_network_for_the_cpu(change: dict[str, Any], size: tuple[int, int, int]) -> None:
    raw = SMALL | change
    state, x = random_state(raw, logits=1.0), picture(*size)
    reference = ours(raw, state)
    net = Swin2SRCuda(reference.config, state)
    with torch.inference_mode():
        expected = reference(x)
        assert psnr(net(x), expected) >= 110
        assert psnr(net.to(torch.bfloat16)(x), expected) >= 55


def test_without_a_card_there_are_no_kernels() -> None:
    raw = SMALL | {"upsampler": DIRECT}
    net = Swin2SRCuda(ours(raw, state := random_state(raw)).config, state).to(torch.bfloat16)
    assert cuda.prepare(net) == ""
    assert cuda.prepare(nn.Identity()) == ""


#: Run by Triton's interpreter, which has to be asked for before Triton is imported; it knows fp32 better than bf16.
KERNELS = """
import torch
from core import swin2sr_triton as kernels
from core.swin2sr_cuda import Swin2SRCuda, _layer_norm
from tests.unit.test_swin2sr import DIRECT, SMALL, ours, psnr, random_state

for dim, heads in ((180, 6), (60, 6), (24, 3)):
    raw = SMALL | {"upsampler": DIRECT, "embed_dim": dim, "num_heads": [heads], "depths": [2]}
    state = random_state(raw, logits=1.0)
    net = Swin2SRCuda(ours(raw, state).config, state)
    x = torch.zeros(2, 24, 16, -(-dim // 64) * 64)
    x[..., :dim] = torch.randn(2, 24, 16, dim, generator=torch.Generator().manual_seed(dim))
    for layer in net.stages[0].layers:
        expected = layer(x)
        attended = kernels.run_attend(x, layer.weight, layer.bias, layer.position, layer.gain, layer.shift)
        assert psnr(attended, layer._attended(x)) >= 110
        matrices = (layer.project, layer.expand, layer.reduce)
        made = kernels.run_feed(x, attended, *matrices, layer.vectors, layer.hidden_bias, layer.dim, layer.eps)
        assert psnr(made, expected) >= 110
        assert not made[..., dim:].any()
    norm = net.norm
    made = kernels.run_norm(x, norm.weight, norm.bias, norm.dim, norm.eps)
    assert psnr(made, _layer_norm(x, norm.weight, norm.bias, norm.dim, norm.eps)) >= 110
"""


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs Triton, which comes with torch for CUDA")
def test_kernels_equal_the_operators() -> None:
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", KERNELS], cwd=ROOT, env=environment, capture_output=True, text=True)
    if "0-dimensional arrays can be converted" in done.stderr:
        pytest.skip("this Triton's interpreter does not work with this numpy")
    assert done.returncode == 0, done.stderr


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
def test_batches_equal_single_tiles(batch: int, dtype: type, channels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = engine.load("compact-x2", CPU, torch.float32)
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
    how: Callable[[Tensor], None], batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, _ = engine.load("compact-x2", CPU, torch.float32)
    pixels = noise(100, 150)
    expected = alone(model, pixels)
    tiles = sum(map(len, plan(100, 150, 48, 21, 1)))
    assert tiles >= 6
    for tile in range(tiles):
        faulty = Failing(model.net, tile, how)
        made = in_batches(replace(model, net=faulty, notes=[]), pixels, batch, monkeypatch)
        assert faulty.failed == 1
        assert np.array_equal(made, expected), tile


def test_memory_for_few_tiles_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
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

    model, _ = engine.load("compact-x2", CPU, torch.float32)
    pixels = noise(100, 150)
    small = Small(model.net, 2)
    assert np.array_equal(in_batches(replace(model, net=small), pixels, 5, monkeypatch), alone(model, pixels))
    assert small.sizes[:2] == [5, 2], "halved until it fits"
    assert max(small.sizes[1:]) == 2, "and not tried larger again"


def test_an_error_that_is_not_about_memory_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = engine.load("compact-x2", CPU, torch.float32)
    faulty = Failing(model.net, 5, defect)
    with pytest.raises(RuntimeError, match="a defect"):
        in_batches(replace(model, net=faulty), noise(100, 150), 4, monkeypatch)


def test_the_size_of_a_batch() -> None:
    assert cuda.batch_size(8, 8, 2, CPU) * 64 == cuda.BATCH_PIXELS
    assert cuda.batch_size(10_000, 10_000, 2, CPU) == 1
