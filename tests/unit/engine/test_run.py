"""Exact tiling, and recovery of single tiles."""

from __future__ import annotations

import itertools
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import core
from core import models
from core.codecs.read import decode
from core.engine import load, run
from core.engine.load import Model, is_out_of_memory
from core.engine.onnx import Network, open_network
from core.engine.plan import UpscalePlan, make_plan, operations
from core.engine.run import upscale_strips
from core.engine.tiling import split, tile_rows
from core.networks.compact import Compact
from core.networks.compact_config import CompactConfig
from core.picture import Pixels
from core.pixels.resize import Rows
from tests.unit.engine.small import CPU, noise, upscaled
from training.onnx_file import write_onnx

SHARED = Path(__file__).parents[3] / "../shared"
LIGHTWEIGHT = SHARED / "models/swin2SR-lightweight-x2-64"
needs_checkpoint = pytest.mark.skipif(not LIGHTWEIGHT.is_dir(), reason="needs ../shared/models, which is not here")

EMBEDDED = sorted(name for name, spec in models.MODELS.items() if spec.kind == "compact")


def in_own_tiles(model: Model, pixels: Pixels, passes: int = 1) -> Rows:
    """The whole result, in tiles of which the engine chose the shape."""
    plan = make_plan(model.spec, model.spec.scale**passes, exact=True)
    return np.concatenate(list(upscale_strips(model, pixels, plan)))


@pytest.fixture(params=["float32", "bfloat16"])
def dtype(request: pytest.FixtureRequest) -> str:
    """What an embedded model computes in on a CPU; OpenVINO emulates bf16 where the processor has none of it."""
    if request.param == "bfloat16":
        pytest.importorskip("openvino", reason="bf16 on a CPU needs OpenVINO, which is not installed")
    return str(request.param)


@pytest.mark.parametrize("size", [(133, 197), (1, 1), (3, 300), (65, 129)])
def test_compact_tiles_equal_the_whole(size: tuple[int, int], dtype: str) -> None:
    model, _ = load.load("compact-x2", CPU, dtype)
    pixels = noise(*size)
    whole = upscaled(model, pixels, 4096)
    for tile in (48, 64, 128):
        assert np.array_equal(upscaled(model, pixels, tile), whole), tile
    assert np.array_equal(in_own_tiles(model, pixels), whole)


@pytest.mark.slow
def test_large_tiles_equal_the_whole(dtype: str) -> None:
    model, _ = load.load("compact-x2", CPU, dtype)
    pixels = noise(70, 1200)
    whole = upscaled(model, pixels, 4096)
    for tile in (256, 512, 1024):
        assert np.array_equal(upscaled(model, pixels, tile), whole), tile


@pytest.mark.parametrize("name", EMBEDDED)
def test_every_embedded_network_in_tiles_equals_the_whole(name: str, dtype: str) -> None:
    model, _ = load.load(name, CPU, dtype)
    pixels = noise(65, 129)
    whole = upscaled(model, pixels, 4096)
    assert np.array_equal(upscaled(model, pixels, 48), whole)
    assert np.array_equal(in_own_tiles(model, pixels), whole)


@pytest.mark.parametrize("at_once", [1, 2, 3])
def test_the_number_of_threads_changes_nothing(at_once: int) -> None:
    model, _ = load.load("compact-x2", CPU, "float32")
    pixels = noise(130, 150)
    file = Path(model.spec.source) / models.ONNX_FILE
    one = upscaled(replace(model, net=open_network(file, 2, "float32", 1), at_once=1), pixels, 4096)
    model = replace(model, net=open_network(file, 2, "float32", at_once))
    assert np.array_equal(upscaled(replace(model, at_once=at_once), pixels, 48), one)
    assert np.array_equal(in_own_tiles(replace(model, at_once=at_once), pixels), one)


def test_tiles_of_a_small_network_equal_the_whole(dtype: str, tmp_path: Path) -> None:
    """Its halo is small, and so would regions be, for which OpenVINO has other kernels; also where memory is short."""
    config = CompactConfig(scale=2, width=48, blocks=1)
    torch.manual_seed(0)
    write_onnx(Compact(config).requires_grad_(False), tmp_path / models.ONNX_FILE)
    net = open_network(tmp_path / models.ONNX_FILE, 2, dtype, 1)
    model = Model(models.spec_from_config("small", str(tmp_path), config), net, CPU, dtype, at_once=1)
    pixels = noise(90, 150)
    whole = upscaled(model, pixels, 4096)
    assert model.spec.halo < 12
    for tile in (8, 16, 32):
        assert np.array_equal(upscaled(model, pixels, tile), whole), tile
    assert np.array_equal(upscaled(replace(model, side=48), pixels, 4096), whole)
    [[first, *_], *_] = tile_rows(90, 150, 64, model.spec.halo, 1)
    for part in split(first, 90, 150, 8, model.spec.halo, 1):
        assert min(part.rows.size, part.columns.size) >= 48


def test_two_passes_of_tiles_equal_the_whole(dtype: str) -> None:
    model, _ = load.load("compact-x2", CPU, dtype)
    pixels = noise(60, 75)
    whole = upscaled(model, pixels, 4096, passes=2)
    assert np.array_equal(upscaled(model, pixels, 48, passes=2), whole)
    assert np.array_equal(in_own_tiles(model, pixels, passes=2), whole)


@pytest.mark.parametrize("name", EMBEDDED)
def test_flat_colours_stay(name: str, dtype: str) -> None:
    """Strong ones, too, of which photos hold few: to the grey level."""
    model, _ = load.load(name, CPU, dtype)
    for colour in ((255, 0, 0), (0, 255, 255), (255, 0, 255), (20, 200, 31), (128, 128, 128), (0, 0, 0), (255,) * 3):
        made = upscaled(model, np.full((24, 50, 3), colour, np.uint8), 4096)
        assert np.array_equal(np.rint(255 * made), np.broadcast_to(colour, made.shape)), colour


@pytest.mark.parametrize("size", [(233, 197), (1, 1), (3, 300), (65, 129)])
def test_swin2sr_tiles_equal_the_whole(small_swin2sr: Path, size: tuple[int, int]) -> None:
    model, _ = load.load(str(small_swin2sr), CPU, "float32")
    pixels = noise(*size)
    whole = upscaled(model, pixels, 4096)
    for tile in (48, 64, 128, 256):
        assert np.array_equal(upscaled(model, pixels, tile), whole), tile


def test_swin2sr_with_too_little_halo_is_not_equal(small_swin2sr: Path) -> None:
    """The check above can fail: without its halo the same grid gives something else."""
    model, _ = load.load(str(small_swin2sr), CPU, "float32")
    pixels = noise(100, 100)
    plan = UpscalePlan(passes=1, scale=2, halo=8, tile=32)
    tiled = np.concatenate(list(upscale_strips(model, pixels, plan)))
    assert not np.array_equal(tiled, upscaled(model, pixels, 4096))


@pytest.mark.slow
@needs_checkpoint
def test_the_real_checkpoint_in_tiles() -> None:
    """Exact is equal; the default halo of 16 measures at least 70 dB on a photo."""
    model, _ = load.load(str(LIGHTWEIGHT), CPU, "float32")
    photo = decode(SHARED / "bench/Set5/butterfly.png").pixels[96:160, :]
    photo = np.concatenate([photo, photo[:, :-65:-1]], axis=1)  # wider than a tile and its halo of 104
    whole = upscaled(model, photo, 4096)
    assert np.array_equal(upscaled(model, photo, 48), whole)
    fast = upscaled(model, photo, 64, exact=False)
    error = float(np.mean((fast.astype(np.float64) - whole) ** 2))
    assert 10 * np.log10(1 / error) >= 70


class Failing:
    """A network that fails once, at the call with a given number. Stands in for a full or faulty device."""

    def __init__(self, net: Network, fail_at: int, how: Network) -> None:
        self.net, self.calls, self.fail_at, self.how = net, itertools.count(), fail_at, how

    def __call__(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        made = self.net(x)
        return self.how(made) if next(self.calls) == self.fail_at else made


def out_of_memory(made: NDArray[np.float32]) -> NDArray[np.float32]:
    raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")


def not_finite(made: NDArray[np.float32]) -> NDArray[np.float32]:
    made = made.copy()
    made[..., made.shape[2] // 2, made.shape[3] // 2] = float("nan")  # not in the halo, which is cut away
    return made


@pytest.mark.parametrize("at_once", [0, 1, 3])
@pytest.mark.parametrize("how", [out_of_memory, not_finite])
def test_a_failure_at_every_tile_changes_nothing(how: Network, at_once: int, small_compact: Model) -> None:
    model = replace(small_compact, at_once=at_once)
    pixels = noise(100, 150)
    undisturbed = upscaled(model, pixels, 48)
    tiles = sum(len(row) for row in tile_rows(100, 150, 48, model.spec.halo, 1))
    assert tiles >= 6
    for position in range(tiles):
        faulty = replace(model, net=Failing(model.net, position, how), notes=[])
        assert np.array_equal(upscaled(faulty, pixels, 48), undisturbed), position
        if how is not_finite or at_once < 2:
            assert faulty.notes
        if how is out_of_memory and at_once < 2:
            assert faulty.side < model.side, "where others were under way, the same size alone came first"


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
    for at_once in (0, 2):
        model = replace(small_compact, net=out_of_memory, at_once=at_once, notes=[])
        with pytest.raises(core.OutOfMemory, match="not enough memory"):
            upscaled(model, noise(60, 60), 48)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("GET was unable to find an engine to execute this computation"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes"),
    ],
    ids=str,
)
def test_what_says_that_memory_did_not_suffice(error: Exception) -> None:
    """As PyTorch 2.11 to 2.13 word it; there is no card here to ask."""
    assert is_out_of_memory(error)
    assert not is_out_of_memory(RuntimeError("CUDA error: an illegal memory access was encountered"))


def test_the_way_from_a_full_card_to_the_cpu_keeps_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    """A picture of more than eight bits began in fp32, and must not end in bf16."""
    monkeypatch.setattr(run, "pick_dtype", lambda spec, device: "bfloat16")
    opened: list[tuple[str, str]] = []

    def open_network(spec: models.ModelSpec, device: str, dtype: str) -> Network:
        opened.append((device, dtype))
        return not_finite

    monkeypatch.setattr(run, "open_network", open_network)
    for before in ("float32", "bfloat16"):
        model = Model(models.MODELS["compact-x2"], out_of_memory, "cuda", before, 48)  # the card is only claimed
        run._make_room(model, 48, 48)
        assert (model.device, model.dtype) == opened[-1] == (CPU, before)
        assert model.net is not_finite, "read again: a batch on its way may still need the one on the card"


def test_a_network_that_stays_not_finite_is_an_error_and_no_picture(
    tmp_path: Path, small_compact: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken_net(x: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.full((1, 3, 2 * x.shape[2], 2 * x.shape[3]), np.inf, np.float32)

    broken = load.Loaded(replace(small_compact, net=broken_net), "small", False, "", 0.0)
    monkeypatch.setattr(load, "load_first", lambda *_: broken)
    out = tmp_path / "out.png"
    with pytest.raises(core.NonFiniteOutput):
        core.upscale(Path("samples/astronaut.jpg"), output=out)
    assert list(tmp_path.iterdir()) == []


def test_an_error_that_is_not_about_memory_is_not_swallowed(small_compact: Model) -> None:
    def defect(made: NDArray[np.float32]) -> NDArray[np.float32]:
        raise RuntimeError("a defect")

    for at_once in (0, 2):
        model = replace(small_compact, at_once=at_once)
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


@pytest.mark.parametrize("at_once", [0, 1, 2])
def test_the_rate_that_is_learned_is_that_of_the_whole_run(
    at_once: int, small_compact: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where tiles are computed on other threads, while this one waits."""
    learned: list[float] = []
    monkeypatch.setattr(run, "learn_rate", lambda spec, device, rate, deep: learned.append(rate))

    def slow(x: NDArray[np.float32]) -> NDArray[np.float32]:
        time.sleep(0.05)
        return np.zeros((1, 3, 2 * x.shape[2], 2 * x.shape[3]), np.float32)

    pixels = noise(300, 300)
    plan = make_plan(small_compact.spec, 2, exact=True, tile=100)
    start = time.perf_counter()
    for _ in upscale_strips(replace(small_compact, net=slow, at_once=at_once), pixels, plan):
        pass
    seconds = time.perf_counter() - start
    computed = sum(t.rows.size * t.columns.size for row in tile_rows(300, 300, 100, plan.halo, 1) for t in row)
    [rate] = learned
    assert 0.9 * seconds <= computed * operations(small_compact.spec, plan) / rate * 1.5
    assert computed * operations(small_compact.spec, plan) / rate <= seconds
