"""Exact tiling, and recovery of single tiles."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import core
from core import models
from core.codecs.read import decode
from core.engine import load, run
from core.engine.load import Model
from core.engine.plan import UpscalePlan
from core.engine.run import upscale_strips
from core.engine.tiling import tile_rows
from tests.unit.engine.small import CPU, noise, upscaled

SHARED = Path(__file__).parents[3] / "../shared"
LIGHTWEIGHT = SHARED / "models/swin2SR-lightweight-x2-64"
needs_checkpoint = pytest.mark.skipif(not LIGHTWEIGHT.is_dir(), reason="needs ../shared/models, which is not here")

EMBEDDED = sorted(name for name, spec in models.MODELS.items() if spec.kind == "compact")


@pytest.mark.parametrize("size", [(233, 197), (1, 1), (3, 300), (65, 129)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_compact_tiles_equal_the_whole(size: tuple[int, int], dtype: torch.dtype) -> None:
    model, _ = load.load("compact-x2", CPU, dtype)
    pixels = noise(*size)
    if dtype == torch.bfloat16:
        pixels = pixels[:70, :90]  # slow where bf16 is emulated
    whole = upscaled(model, pixels, 4096)
    for tile in (48, 64, 128, 256):
        assert np.array_equal(upscaled(model, pixels, tile), whole), tile


@pytest.mark.parametrize("name", EMBEDDED)
def test_every_embedded_network_in_tiles_equals_the_whole(name: str) -> None:
    model, _ = load.load(name, CPU, torch.float32)
    pixels = noise(65, 129)
    assert np.array_equal(upscaled(model, pixels, 48), upscaled(model, pixels, 4096))


def test_two_passes_of_tiles_equal_the_whole() -> None:
    model, _ = load.load("compact-x2", CPU)
    pixels = noise(90, 75)
    assert np.array_equal(upscaled(model, pixels, 48, passes=2), upscaled(model, pixels, 4096, passes=2))


@pytest.mark.parametrize("size", [(233, 197), (1, 1), (3, 300), (65, 129)])
def test_swin2sr_tiles_equal_the_whole(small_swin2sr: Path, size: tuple[int, int]) -> None:
    model, _ = load.load(str(small_swin2sr), CPU, torch.float32)
    pixels = noise(*size)
    whole = upscaled(model, pixels, 4096)
    for tile in (48, 64, 128, 256):
        assert np.array_equal(upscaled(model, pixels, tile), whole), tile


def test_swin2sr_with_too_little_halo_is_not_equal(small_swin2sr: Path) -> None:
    """The check above can fail: without its halo the same grid gives something else."""
    model, _ = load.load(str(small_swin2sr), CPU, torch.float32)
    pixels = noise(100, 100)
    plan = UpscalePlan(passes=1, scale=2, halo=8, tile=32)
    tiled = np.concatenate(list(upscale_strips(model, pixels, plan)))
    assert not np.array_equal(tiled, upscaled(model, pixels, 4096))


@needs_checkpoint
def test_the_real_checkpoint_in_tiles() -> None:
    """Exact is equal; the default halo of 16 measures at least 70 dB on a photo."""
    model, _ = load.load(str(LIGHTWEIGHT), CPU, torch.float32)
    photo = decode(SHARED / "bench/Set5/butterfly.png").pixels[:128, :]
    photo = np.concatenate([photo, photo[:, ::-1]], axis=1)  # wider than a tile and its halo of 104
    whole = upscaled(model, photo, 4096)
    assert np.array_equal(upscaled(model, photo, 48), whole)
    fast = upscaled(model, photo, 64, exact=False)
    error = float(np.mean((fast.astype(np.float64) - whole) ** 2))
    assert 10 * np.log10(1 / error) >= 70


class Failing(nn.Module):
    """A network that fails once, at the call with a given number. Stands in for a full or faulty device."""

    def __init__(self, net: nn.Module, fail_at: int, how: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.net, self.calls, self.fail_at, self.how = net, 0, fail_at, how

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        made: Tensor = self.net(x)
        return self.how(made) if self.calls == self.fail_at + 1 else made


def out_of_memory(made: Tensor) -> Tensor:
    raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")


def not_finite(made: Tensor) -> Tensor:
    made = made.clone()
    made[..., made.shape[2] // 2, made.shape[3] // 2] = float("nan")  # not in the halo, which is cut away
    return made


@pytest.mark.parametrize("how", [out_of_memory, not_finite])
def test_a_failure_at_every_tile_changes_nothing(how: Callable[[Tensor], Tensor], small_compact: Model) -> None:
    model = small_compact
    pixels = noise(100, 150)
    undisturbed = upscaled(model, pixels, 48)
    tiles = sum(len(row) for row in tile_rows(100, 150, 48, model.spec.halo, 1))
    assert tiles >= 6
    for position in range(tiles):
        faulty = replace(model, net=Failing(model.net, position, how), notes=[])
        assert np.array_equal(upscaled(faulty, pixels, 48), undisturbed), position
        assert faulty.notes
        if how is out_of_memory:
            assert faulty.side < model.side


def test_a_smaller_tile_is_remembered(small_compact: Model) -> None:
    model = small_compact
    pixels = noise(100, 120)
    first = Failing(model.net, 0, out_of_memory)
    faulty = replace(model, net=first, notes=[])
    upscaled(faulty, pixels, 4096)
    assert len(faulty.notes) == 1
    upscaled(faulty, pixels, 4096)
    assert len(faulty.notes) == 1, "the second picture did not try the size that failed"


def test_memory_that_never_suffices_is_an_error(small_compact: Model) -> None:
    class Never(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return out_of_memory(x)

    model = small_compact
    with pytest.raises(core.OutOfMemory, match="not enough memory"):
        upscaled(replace(model, net=Never(), notes=[]), noise(60, 60), 48)


def test_the_way_from_a_full_card_to_the_cpu_keeps_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    """A picture of more than eight bits began in fp32, and must not end in bf16."""
    monkeypatch.setattr(run, "pick_dtype", lambda device: torch.bfloat16)
    for before in (torch.float32, torch.bfloat16):
        net = nn.Conv2d(3, 3, 1).to(before)  # on the CPU already: a card is only claimed
        model = Model(models.MODELS["compact-x2"], net, torch.device("cuda"), before, 48)
        run._make_room(model, 48, 48)
        assert (model.device, model.dtype) == (CPU, before)
        assert {value.dtype for value in model.net.parameters()} == {before}
        assert model.net is not net, "a batch on its way may still need that one"


def test_a_network_that_stays_not_finite_is_an_error_and_no_picture(
    tmp_path: Path, small_compact: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.full((1, 3, 2 * x.shape[2], 2 * x.shape[3]), float("inf"))

    broken = load.Loaded(replace(small_compact, net=Broken()), "small", False, "", 0.0)
    monkeypatch.setattr(load, "load_first", lambda *_: broken)
    out = tmp_path / "out.png"
    with pytest.raises(core.NonFiniteOutput):
        core.upscale(Path("samples/astronaut.jpg"), output=out)
    assert list(tmp_path.iterdir()) == []


def test_an_error_that_is_not_about_memory_is_not_swallowed(small_compact: Model) -> None:
    def defect(made: Tensor) -> Tensor:
        raise RuntimeError("a defect")

    model = small_compact
    with pytest.raises(RuntimeError, match="a defect"):
        upscaled(replace(model, net=Failing(model.net, 1, defect), notes=[]), noise(100, 60), 48)


def test_cancelling_stops_between_tiles() -> None:
    seen: list[int] = []

    def stop_after_two(done: int, total: int) -> None:
        seen.append(done)
        if done == 2:
            raise core.Cancelled("enough")

    with pytest.raises(core.Cancelled):
        core.upscale(Path("samples/astronaut.jpg"), core.Options(tile=128), progress=stop_after_two)
    assert seen == [0, 1, 2]
