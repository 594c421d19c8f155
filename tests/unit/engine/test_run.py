"""Exact tiling, recovery of single tiles, one warm model, and the fall-back chain."""

from __future__ import annotations

import concurrent.futures
import json
import socket
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import core
from core import models
from core.engine import run as engine
from core.engine.tiling import plan
from core.models import Job, make_job
from core.networks.compact import Compact
from core.networks.compact_config import CompactConfig
from core.picture import Pixels
from core.pixels.resize import Rows

CPU = torch.device("cpu")
SHARED = Path(__file__).parents[3] / "../shared"
LIGHTWEIGHT = SHARED / "models/swin2SR-lightweight-x2-64"
needs_checkpoint = pytest.mark.skipif(not LIGHTWEIGHT.is_dir(), reason="needs ../shared/models, which is not here")

EMBEDDED = sorted(name for name, spec in models.MODELS.items() if spec.kind == "compact")
#: A Swin2SR that is small enough to be tiled exactly many times: two stages of two layers.
SMALL_SWIN2SR: dict[str, Any] = {
    "model_type": "swin2sr",
    "embed_dim": 24,
    "depths": [2, 2],
    "num_heads": [2, 2],
    "window_size": 8,
    "mlp_ratio": 2.0,
    "upscale": 2,
    "upsampler": "pixelshuffledirect",
    "resi_connection": "1conv",
    "img_range": 1.0,
}


@pytest.fixture(autouse=True)
def _no_warm_model() -> Iterator[None]:
    """Each test starts cold: a model keeps what it learned about memory."""
    engine._warm.clear()
    yield
    engine._warm.clear()


@pytest.fixture(scope="session")
def small_swin2sr(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint directory with random weights, as transformers writes it."""
    from transformers import Swin2SRConfig, Swin2SRForImageSuperResolution

    torch.manual_seed(1)
    directory = tmp_path_factory.mktemp("swin2sr")
    net = Swin2SRForImageSuperResolution(Swin2SRConfig(**SMALL_SWIN2SR))
    with torch.no_grad():
        for value in net.parameters():
            value.add_(torch.randn_like(value) * 0.05)
    save_file({name: value.contiguous() for name, value in net.state_dict().items()}, directory / "model.safetensors")
    (directory / "config.json").write_text(json.dumps(SMALL_SWIN2SR))
    return directory


@pytest.fixture
def small_compact() -> Iterator[engine.Model]:
    """A network like the embedded one, with random weights, that takes milliseconds on one thread."""
    config = CompactConfig(scale=2, width=8, blocks=2)
    torch.manual_seed(0)
    net = Compact(config).eval().requires_grad_(False).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # several would only wait for each other
    yield engine.Model(models._spec("small", "", config, ""), net, CPU, torch.float32, 1 << 20)
    torch.set_num_threads(threads)


def noise(height: int, width: int, channels: int = 3, seed: int = 0) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), np.uint8)


def run(model: engine.Model, pixels: Pixels, tile: int, *, exact: bool = True, passes: int = 1) -> Rows:
    job = make_job(model.spec, model.spec.scale**passes, exact=exact, tile=tile)
    return np.concatenate(list(engine.upscale_strips(model, pixels, job)))


@pytest.mark.parametrize("size", [(233, 197), (1, 1), (3, 300), (65, 129)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_compact_tiles_equal_the_whole(size: tuple[int, int], dtype: torch.dtype) -> None:
    model, _ = engine.load("compact-x2", CPU, dtype)
    pixels = noise(*size)
    if dtype == torch.bfloat16:
        pixels = pixels[:70, :90]  # slow where bf16 is emulated
    whole = run(model, pixels, 4096)
    for tile in (48, 64, 128, 256):
        assert np.array_equal(run(model, pixels, tile), whole), tile


@pytest.mark.parametrize("name", EMBEDDED)
def test_every_embedded_network_in_tiles_equals_the_whole(name: str) -> None:
    model, _ = engine.load(name, CPU, torch.float32)
    pixels = noise(65, 129)
    assert np.array_equal(run(model, pixels, 48), run(model, pixels, 4096))


def test_two_passes_of_tiles_equal_the_whole() -> None:
    model, _ = engine.load("compact-x2", CPU)
    pixels = noise(90, 75)
    assert np.array_equal(run(model, pixels, 48, passes=2), run(model, pixels, 4096, passes=2))


@pytest.mark.parametrize("size", [(233, 197), (1, 1), (3, 300), (65, 129)])
def test_swin2sr_tiles_equal_the_whole(small_swin2sr: Path, size: tuple[int, int]) -> None:
    model, _ = engine.load(str(small_swin2sr), CPU, torch.float32)
    pixels = noise(*size)
    whole = run(model, pixels, 4096)
    for tile in (48, 64, 128, 256):
        assert np.array_equal(run(model, pixels, tile), whole), tile


def test_swin2sr_with_too_little_halo_is_not_equal(small_swin2sr: Path) -> None:
    """The check above can fail: without its halo the same grid gives something else."""
    model, _ = engine.load(str(small_swin2sr), CPU, torch.float32)
    pixels = noise(100, 100)
    job = Job(passes=1, scale=2, halo=8, tile=32)
    tiled = np.concatenate(list(engine.upscale_strips(model, pixels, job)))
    assert not np.array_equal(tiled, run(model, pixels, 4096))


@needs_checkpoint
def test_the_real_checkpoint_in_tiles() -> None:
    """Exact is equal; the default halo of 16 measures at least 70 dB on a photo."""
    model, _ = engine.load(str(LIGHTWEIGHT), CPU, torch.float32)
    photo = core.codecs.read.decode(SHARED / "bench/Set5/butterfly.png").pixels[:128, :]
    photo = np.concatenate([photo, photo[:, ::-1]], axis=1)  # wider than a tile and its halo of 104
    whole = run(model, photo, 4096)
    assert np.array_equal(run(model, photo, 48), whole)
    fast = run(model, photo, 64, exact=False)
    error = float(np.mean((fast.astype(np.float64) - whole) ** 2))
    assert 10 * np.log10(1 / error) >= 70


@pytest.mark.parametrize("name", EMBEDDED)
def test_the_declared_receptive_field_by_gradient_support(name: str) -> None:
    """What a pixel's gradient reaches is exactly what is declared: not a pixel more, and not less."""
    spec = models.MODELS[name]
    torch.manual_seed(0)
    net = engine.build(spec, models.fetch(spec)).double()
    field = spec.receptive_field
    side = 2 * field + 9
    x = torch.rand(1, 3, side, side, dtype=torch.float64, requires_grad=True)
    centre = side // 2
    net(x)[..., centre * spec.scale : (centre + 1) * spec.scale, centre * spec.scale].sum().backward()
    assert x.grad is not None
    touched = (x.grad[0].abs().sum(0) > 0).nonzero()
    assert touched.min().item() == centre - field
    assert touched.max().item() == centre + field


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
def test_a_failure_at_every_tile_changes_nothing(how: Callable[[Tensor], Tensor], small_compact: engine.Model) -> None:
    model = small_compact
    pixels = noise(100, 150)
    undisturbed = run(model, pixels, 48)
    tiles = sum(len(row) for row in plan(100, 150, 48, model.spec.halo, 1))
    assert tiles >= 6
    for position in range(tiles):
        faulty = replace(model, net=Failing(model.net, position, how), notes=[])
        assert np.array_equal(run(faulty, pixels, 48), undisturbed), position
        assert faulty.notes
        if how is out_of_memory:
            assert faulty.side < model.side


def test_a_smaller_tile_is_remembered(small_compact: engine.Model) -> None:
    model = small_compact
    pixels = noise(100, 120)
    first = Failing(model.net, 0, out_of_memory)
    faulty = replace(model, net=first, notes=[])
    run(faulty, pixels, 4096)
    assert len(faulty.notes) == 1
    run(faulty, pixels, 4096)
    assert len(faulty.notes) == 1, "the second picture did not try the size that failed"


def test_memory_that_never_suffices_is_an_error(small_compact: engine.Model) -> None:
    class Never(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return out_of_memory(x)

    model = small_compact
    with pytest.raises(core.OutOfMemory, match="not enough memory"):
        run(replace(model, net=Never(), notes=[]), noise(60, 60), 48)


def test_the_way_from_a_full_card_to_the_cpu_keeps_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    """A picture of more than eight bits began in fp32, and must not end in bf16."""
    monkeypatch.setattr(engine, "pick_dtype", lambda device: torch.bfloat16)
    for before in (torch.float32, torch.bfloat16):
        net = nn.Conv2d(3, 3, 1).to(before)  # on the CPU already: a card is only claimed
        model = engine.Model(models.MODELS["compact-x2"], net, torch.device("cuda"), before, 48)
        engine._make_room(model, 48, 48)
        assert (model.device, model.dtype) == (CPU, before)
        assert {value.dtype for value in model.net.parameters()} == {before}
        assert model.net is not net, "a batch on its way may still need that one"


def test_a_network_that_stays_not_finite_is_an_error_and_no_picture(
    tmp_path: Path, small_compact: engine.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.full((1, 3, 2 * x.shape[2], 2 * x.shape[3]), float("inf"))

    broken = engine.Loaded(replace(small_compact, net=Broken()), "small", False, "", 0.0)
    monkeypatch.setattr(engine, "load_first", lambda *_: broken)
    out = tmp_path / "out.png"
    with pytest.raises(core.NonFiniteOutput):
        core.upscale(Path("samples/astronaut.jpg"), output=out)
    assert list(tmp_path.iterdir()) == []


def test_an_error_that_is_not_about_memory_is_not_swallowed(small_compact: engine.Model) -> None:
    def defect(made: Tensor) -> Tensor:
        raise RuntimeError("a defect")

    model = small_compact
    with pytest.raises(RuntimeError, match="a defect"):
        run(replace(model, net=Failing(model.net, 1, defect), notes=[]), noise(100, 60), 48)


def test_concurrent_calls_load_once_and_agree() -> None:
    pixels = noise(60, 60)

    def call(_: int) -> tuple[float, Rows]:
        model, seconds = engine.load("compact-x2", CPU, torch.float32)
        return seconds, run(model, pixels, 32)

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        results = list(pool.map(call, range(8)))
    assert sum(seconds > 0 for seconds, _ in results) == 1
    assert all(np.array_equal(results[0][1], made) for _, made in results)


def test_cancelling_stops_between_tiles() -> None:
    seen: list[int] = []

    def stop_after_two(done: int, total: int) -> None:
        seen.append(done)
        if done == 2:
            raise core.Cancelled("enough")

    with pytest.raises(core.Cancelled):
        core.upscale(Path("samples/astronaut.jpg"), core.Options(tile=128), progress=stop_after_two)
    assert seen == [0, 1, 2]


def test_fp16_is_never_chosen() -> None:
    assert engine.pick_dtype(CPU) in (torch.float32, torch.bfloat16)


def small_photo() -> bytes:
    import io

    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(noise(40, 50)).save(stream, "PNG")
    return stream.getvalue()


def test_a_missing_model_steps_down_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    result = core.upscale(small_photo(), core.Options(model="somebody/there-is-no-such-model"))
    assert result.model == "compact-x2"
    assert result.degraded
    assert "somebody/there-is-no-such-model" in result.reason
    assert "microsoft/swin2SR-classical-sr-x2-48" in result.reason, "the whole chain was tried"


def test_a_damaged_checkpoint_steps_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    (tmp_path / "config.json").write_text(json.dumps(SMALL_SWIN2SR))
    (tmp_path / "model.safetensors").write_bytes(b"\x00" * 100)
    result = core.upscale(small_photo(), core.Options(model=str(tmp_path)))
    assert (result.model, result.degraded) == ("compact-x2", True)
    assert "is damaged" in result.reason


def test_weights_with_nan_step_down(tmp_path: Path, small_swin2sr: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from safetensors.torch import load_file

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    state = load_file(small_swin2sr / "model.safetensors")
    next(iter(state.values())).view(-1)[0] = float("nan")
    save_file(state, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(SMALL_SWIN2SR))
    result = core.upscale(small_photo(), core.Options(model=str(tmp_path)))
    assert result.degraded
    assert "NaN" in result.reason


def test_a_hub_that_does_not_answer_steps_down(monkeypatch: pytest.MonkeyPatch) -> None:
    """A real socket that accepts connections and then says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.setattr("core.models.HUB_SECONDS", 1)
        monkeypatch.setattr("core.models.FALLBACKS", ())
        result = core.upscale(small_photo(), core.Options(model="somebody/model"))
    assert (result.model, result.degraded) == ("compact-x2", True)
    assert "did not" in result.reason
    assert "timed out" in result.reason, "the silent server was asked, and given up"


def test_with_every_network_gone_lanczos_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("core.models.fallback_chain", lambda *about: ("./gone",))
    result = core.upscale(small_photo(), core.Options(scale=1.7))
    assert (result.model, result.degraded, result.width, result.height) == ("lanczos", True, 85, 68)


@needs_checkpoint
def test_published_numbers_are_those_of_the_checkpoint() -> None:
    known, read = models.MODELS["swin2sr-lightweight-x2"], models.spec_of(str(LIGHTWEIGHT))
    assert replace(known, name="", source="", about="") == replace(read, name="", source="", about="")


def test_receptive_fields_as_measured() -> None:
    """Whole pictures through transformers with one changed pixel gave these; see docs of each model."""
    field = {name: spec.receptive_field for name, spec in models.MODELS.items()}
    assert field["swin2sr-classical-x2"] == 153
    assert field["swin2sr-realworld-x4"] == 153
    assert field["swin2sr-compressed-x4"] == 155
    assert field["swin2sr-lightweight-x2"] == 103
