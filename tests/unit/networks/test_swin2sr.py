"""Our Swin2SR against transformers', and what it says of itself against measurements."""

from __future__ import annotations

import copy
import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from core.errors import ModelError
from core.networks import onednn, swin2sr, swin2sr_openvino
from core.networks.swin2sr import Swin2SR, _chunk
from core.networks.swin2sr_config import Swin2SRConfig

ROOT = Path(__file__).parents[3]
CHECKPOINT = ROOT / "../shared/models/swin2SR-lightweight-x2-64"
PHOTO = ROOT / "../shared/bench/Kodak24/kodim05.png"

#: Who computes the attention layers.
RUNTIMES = [
    "torch",
    pytest.param(
        "openvino",
        marks=pytest.mark.skipif(not swin2sr_openvino.is_installed(), reason="OpenVINO is not installed for x86-64"),
    ),
]

SMALL: dict[str, Any] = {"embed_dim": 24, "depths": [2, 2], "num_heads": [3, 4], "upscale": 2}
AUX, DIRECT, NEAREST = "pixelshuffle_aux", "pixelshuffledirect", "nearest+conv"


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Networks this small only wait for each other's threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def random_state(raw: dict[str, Any], logits: float = 3.0) -> dict[str, Tensor]:
    """Transformers' weights with nothing left at its default: 0, 1 and equal values hide mistakes."""
    from transformers import Swin2SRConfig as TheirConfig
    from transformers import Swin2SRForImageSuperResolution

    state = Swin2SRForImageSuperResolution(TheirConfig(**raw)).state_dict()
    generator = torch.Generator().manual_seed(len(state))
    for name, tensor in state.items():
        noise = torch.randn(tensor.shape, generator=generator)
        if name.endswith("logit_scale"):
            tensor.copy_(noise.abs() * logits)  # some above the limit, log(100), where logits is 3
        elif tensor.ndim > 1:
            tensor.copy_(noise / math.sqrt(tensor[0].numel()))
        else:
            tensor.copy_(0.3 * noise + (1 if "layernorm" in name and name.endswith("weight") else 0))
    return state


def reference(raw: dict[str, Any], state: dict[str, Tensor], x: Tensor) -> Tensor:
    from transformers import Swin2SRConfig as TheirConfig
    from transformers import Swin2SRForImageSuperResolution

    model = Swin2SRForImageSuperResolution(TheirConfig(**raw)).train(False)
    model.load_state_dict(state)
    with torch.inference_mode():
        result = model(x).reconstruction
    assert isinstance(result, Tensor)
    return result


def ours(
    raw: dict[str, Any], state: dict[str, Tensor], runtime: str = "torch", dtype: torch.dtype = torch.float32
) -> Swin2SR:
    net = Swin2SR(Swin2SRConfig.from_dict(raw))
    net.load(state)
    if runtime == "openvino":
        net.use_openvino(str(dtype).removeprefix("torch."), torch.get_num_threads())
    return net.to(dtype)


def psnr(result: Tensor, expected: Tensor) -> float:
    """In dB; the peak is the range of what is expected."""
    error = float((result.double() - expected.double()).square().mean())
    return 10 * math.log10(float(expected.max() - expected.min()) ** 2 / max(1e-30, error))


def picture(n: int, h: int, w: int) -> Tensor:
    return torch.rand(n, 3, h, w, generator=torch.Generator().manual_seed(h * w))


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize(
    ("change", "size"),
    [
        ({}, (2, 24, 40)),
        ({"upscale": 4, "qkv_bias": False, "mlp_ratio": 1.5}, (1, 40, 16)),
        ({"upscale": 3, "resi_connection": "3conv", "depths": [3], "num_heads": [2], "img_range": 255.0}, (2, 16, 24)),
        ({"upscale": 8, "depths": [1], "num_heads": [1]}, (1, 8, 8)),
        ({"upsampler": DIRECT, "window_size": 16, "num_heads": [6, 2]}, (1, 48, 32)),
        ({"upsampler": DIRECT, "window_size": 7, "upscale": 3}, (2, 35, 21)),
        ({"upsampler": DIRECT, "upscale": 4, "resi_connection": "3conv", "layer_norm_eps": 1e-2}, (3, 8, 80)),
        ({"upsampler": NEAREST, "upscale": 4}, (1, 32, 24)),
        ({"upsampler": NEAREST, "upscale": 4, "resi_connection": "3conv", "img_range": 2.0}, (2, 8, 16)),
        ({"upsampler": AUX, "upscale": 2}, (2, 24, 16)),
        ({"upsampler": AUX, "upscale": 3, "img_range": 3.0}, (1, 16, 32)),
        ({"upsampler": AUX, "upscale": 4, "resi_connection": "3conv", "window_size": 5}, (1, 25, 30)),
    ],
    ids=str,
)
def test_equals_transformers(change: dict[str, Any], size: tuple[int, int, int], runtime: str) -> None:
    raw = SMALL | {"upsampler": "pixelshuffle"} | change
    state, x = random_state(raw), picture(*size)
    theirs = reference(raw, state, x)
    with torch.inference_mode():
        result = ours(raw, state, runtime)(x)
    assert result.shape == theirs.shape == (size[0], 3, raw["upscale"] * size[1], raw["upscale"] * size[2])
    assert float(theirs.std()) > 0.05 / raw.get("img_range", 1)
    assert psnr(result, theirs) >= 120


@pytest.mark.slow
@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("logits", [1.0, 3.0])
def test_equals_transformers_in_many_chunks(logits: float, runtime: str) -> None:
    raw = SMALL | {"embed_dim": 60, "num_heads": [6, 6], "upsampler": DIRECT}
    state, x = random_state(raw, logits), picture(2, 120, 144)
    assert 5 * _chunk(Swin2SRConfig.from_dict(raw)) < 2 * 15 * 18
    with torch.inference_mode():
        assert psnr(ours(raw, state, runtime)(x), reference(raw, state, x)) >= 120


@pytest.mark.slow
@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.skipif(not CHECKPOINT.exists(), reason=f"no checkpoint at {CHECKPOINT}")
@pytest.mark.skipif(not PHOTO.exists(), reason=f"no photo at {PHOTO}")
def test_real_checkpoint_on_a_photo(runtime: str) -> None:
    raw = json.loads((CHECKPOINT / "config.json").read_text())
    state = load_file(CHECKPOINT / "model.safetensors")
    x = torch.from_numpy(np.array(Image.open(PHOTO)))[200:264, 300:396].permute(2, 0, 1)[None] / 255
    theirs = reference(raw, state, x)
    with torch.inference_mode():
        assert psnr(ours(raw, state, runtime)(x), theirs) >= 120
        assert psnr(ours(raw, state, runtime, torch.bfloat16)(x), theirs) >= 55


@pytest.mark.parametrize("change", [{"upsampler": "pixelshuffle"}, {"upsampler": DIRECT}, {"upsampler": AUX}], ids=str)
def test_all_windows_at_once_equal_chunks(change: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """On a card Swin2SR takes PyTorch's operators, and all windows of a batch as one chunk."""
    raw = SMALL | {"upscale": 4} | change
    net, x = ours(raw, random_state(raw)), picture(3, 40, 24)
    with torch.inference_mode():
        expected = net(x)
        monkeypatch.setattr(onednn, "supports", lambda x: False)
        monkeypatch.setattr(swin2sr, "_chunk", lambda config: 3 * 40 * 24 // 64)
        monkeypatch.setattr(swin2sr._Layer, "_attend_by_head", swin2sr._Layer._attend)
        assert psnr(net(x), expected) >= 110
        attend = swin2sr._Layer._attend
        monkeypatch.setattr(swin2sr._Layer, "_attend_by_head", lambda self, qkv, runs: attend(self, qkv, runs, 3))
        assert psnr(net(x), expected) >= 110, "with heads made as wide as a card wants them"


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("steepest", [1.0, 59.0, 61.0, 100.0])
def test_every_steepness_of_attention(steepest: float, runtime: str) -> None:
    raw = SMALL | {"depths": [2], "num_heads": [3], "upsampler": DIRECT}
    state = random_state(raw)
    for name, tensor in state.items():
        if name.endswith("logit_scale"):
            tensor.fill_(math.log(steepest))
        if name.endswith("query.weight"):  # as like the key as can be: logits from one end to the other
            tensor.copy_(state[name.replace("query", "key")])
    net, x = ours(raw, state, runtime), picture(1, 32, 40)
    assert [net.get_submodule(f"stages.0.layers.{i}").moderate for i in range(2)] == [steepest < 60] * 2
    with torch.inference_mode():
        assert psnr(net(x), reference(raw, state, x)) >= 120


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["project", "expand", "reduce"])
def test_what_is_not_finite_within_is_seen(name: str, dtype: torch.dtype, runtime: str) -> None:
    """Minima and maxima of some kernels make a number of NaN: a damaged tile must not look whole."""
    raw = SMALL | {"depths": [2], "num_heads": [3], "upsampler": DIRECT}
    state = random_state(raw)
    linear = {"project": "attention.output.dense", "expand": "intermediate.dense", "reduce": "output.dense"}[name]
    state[f"swin2sr.encoder.stages.0.layers.0.{linear}.weight"] *= 1e38  # a number, but products are beyond fp32
    state[f"swin2sr.encoder.stages.0.layers.0.{linear}.bias"] += 3e38
    with torch.inference_mode():
        assert not ours(raw, state, runtime, dtype)(picture(1, 16, 24)).isfinite().all()


@pytest.mark.parametrize(
    ("dtype", "logits"), [(torch.float32, 1.0), (torch.float32, 3.0), (torch.bfloat16, 3.0)], ids=str
)
@pytest.mark.parametrize("dim", [60, 180])
def test_a_window_has_the_same_bits_wherever_it_is(dim: int, dtype: torch.dtype, logits: float) -> None:
    raw = SMALL | {"embed_dim": dim, "depths": [2], "num_heads": [6], "upsampler": DIRECT}
    net = ours(raw, random_state(raw, logits)).to(dtype)
    count = _chunk(net.config)
    generator = torch.Generator().manual_seed(0)
    windows = torch.randn(count, 64, dim, generator=generator).to(dtype)
    order = torch.randperm(count, generator=generator)
    others = torch.randn(count, 64, dim, generator=generator).to(dtype)
    others[3] = windows[5]
    plain, shifted = (net.get_submodule(f"stages.0.layers.{i}") for i in range(2))
    with torch.inference_mode():
        for layer, runs in ((plain, [(count, 0)]), (shifted, [(count - 3, 0), (2, 1), (1, 3)])):
            uniform = layer(windows.flatten(0, 1), [(count, 0)]).unflatten(0, (count, 64))
            moved = layer(windows[order].flatten(0, 1), [(count, 0)]).unflatten(0, (count, 64))
            among_others = layer(others.flatten(0, 1), runs).unflatten(0, (count, 64))
            assert torch.equal(moved, uniform[order])
            assert torch.equal(among_others[3], uniform[5])
            assert not torch.equal(among_others[4], uniform[5])


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize(("dtype", "threads"), [(torch.float32, 1), (torch.float32, 2), (torch.bfloat16, 2)], ids=str)
def test_a_tile_has_the_bits_of_the_whole(dtype: torch.dtype, threads: int, runtime: str) -> None:
    torch.set_num_threads(threads)
    raw = SMALL | {"embed_dim": 32, "depths": [1, 2], "num_heads": [2, 4], "upsampler": "pixelshuffle"}
    net = ours(raw, random_state(raw, logits=1.0), runtime, dtype)
    halo = math.ceil(net.config.receptive_field / 8) * 8
    top, left, side = halo + 8, halo + 16, 24
    x = picture(1, top + side + halo + 8, left + side + halo + 16)  # so there is something left out, all around
    with torch.inference_mode():
        whole = net(x)[:, :, 2 * top : 2 * (top + side), 2 * left : 2 * (left + side)]
        tile = net(x[:, :, top - halo : top + side + halo, left - halo : left + side + halo])
        corner = net(x[:, :, : side + halo, : side + halo])[:, :, : 2 * side, : 2 * side]
        assert torch.equal(tile[:, :, 2 * halo : -2 * halo, 2 * halo : -2 * halo], whole)
        assert torch.equal(corner, net(x)[:, :, : 2 * side, : 2 * side])


@pytest.mark.parametrize(
    "change",
    [
        {"upsampler": "pixelshuffle"},
        {"upsampler": "pixelshuffle", "upscale": 4, "resi_connection": "3conv", "depths": [1, 3]},
        {"upsampler": DIRECT, "upscale": 3, "window_size": 5},
        {"upsampler": NEAREST, "upscale": 4, "depths": [2], "num_heads": [2]},
        {"upsampler": AUX, "upscale": 2, "depths": [2], "num_heads": [2]},
    ],
    ids=str,
)
def test_receptive_field_is_where_gradients_reach(change: dict[str, Any]) -> None:
    raw = {"embed_dim": 8, "depths": [2, 2], "num_heads": [2, 2]} | change
    net = ours(raw, random_state(raw, logits=1.0))
    scale, window, field = net.config.scale, net.config.window, net.config.receptive_field
    first = math.ceil((field + 2) / window) * window
    side = 2 * first + window
    with torch.inference_mode():
        net(picture(1, side, side))  # leaves nothing behind that would stop gradients
    x = picture(1, side, side).requires_grad_()
    result = net(x)
    reached = 0
    for pixel in range(first, first + window):
        block = result[0, :, scale * pixel : scale * (pixel + 1), scale * pixel : scale * (pixel + 1)]
        (gradient,) = torch.autograd.grad(block.sum(), x, retain_graph=True)
        rows, columns = torch.nonzero(gradient[0].abs().sum(0), as_tuple=True)
        reach = max(int((place - pixel).abs().max()) for place in (rows, columns))
        assert reach <= field
        reached = max(reached, reach)
    assert reached == field


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({}, 153),
        ({"upscale": 4}, 153),
        ({"upscale": 4, "upsampler": NEAREST}, 153),
        ({"upscale": 4, "upsampler": AUX}, 155),
        ({"embed_dim": 60, "depths": [6] * 4, "num_heads": [6] * 4, "upsampler": DIRECT}, 103),
    ],
    ids=str,
)
def test_receptive_field_of_published_checkpoints(change: dict[str, Any], field: int) -> None:
    assert Swin2SRConfig.from_dict(change).receptive_field == field


@pytest.mark.parametrize(
    "change",
    [
        {"upsampler": "pixelshuffle", "upscale": 8, "mlp_ratio": 1.5},
        {"upsampler": "pixelshuffle", "upscale": 3, "resi_connection": "3conv"},
        {"upsampler": DIRECT, "window_size": 4},
        {"upsampler": NEAREST, "upscale": 4},
        {"upsampler": AUX, "upscale": 4},
    ],
    ids=str,
)
def test_operations_are_those_counted(change: dict[str, Any]) -> None:
    raw = SMALL | change
    net = ours(raw, random_state(raw)).to("meta")
    with FlopCounterMode(display=False) as counter:
        net(torch.empty(1, 3, 16, 24, device="meta"))
    assert counter.get_total_flops() == 16 * 24 * net.config.operations_per_pixel


def test_load_says_what_does_not_fit() -> None:
    raw = SMALL | {"upsampler": DIRECT}
    state = random_state(raw)
    name = "swin2sr.encoder.stages.1.layers.1.attention.self.key.weight"
    for wrong in (
        {key: tensor for key, tensor in state.items() if key != name},
        state | {name: state[name][:-1]},
    ):
        with pytest.raises(ModelError, match=name):
            ours(raw, wrong)
    with pytest.raises(ModelError, match=r"upsample\.conv\.extra"):
        ours(raw, state | {"upsample.conv.extra": torch.zeros(1)})


@pytest.mark.parametrize("size", [(8, 12), (12, 8), (0, 8), (7, 7)])
def test_sides_must_be_multiples_of_the_window(size: tuple[int, int]) -> None:
    raw = SMALL | {"upsampler": DIRECT}
    net = ours(raw, random_state(raw))
    with pytest.raises(ValueError, match="multiples of 8"):
        net(torch.rand(1, 3, *size))


def test_a_used_network_can_be_copied() -> None:
    raw = SMALL | {"upsampler": DIRECT}
    net, x = ours(raw, random_state(raw)), picture(1, 8, 16)
    with torch.inference_mode():
        assert torch.equal(net(x), copy.deepcopy(net)(x))


@pytest.mark.parametrize(
    "change",
    [
        {"model_type": "swinv2"},
        {"num_channels": 1},
        {"num_channels_out": 1},
        {"patch_size": 2},
        {"hidden_act": "relu"},
        {"use_absolute_embeddings": True},
        {"upsampler": ""},
        {"upsampler": None},
        {"upsampler": NEAREST, "upscale": 2},
        {"upscale": 1},
        {"upscale": 5},
        {"upscale": "2"},
        {"upscale": True},
        {"resi_connection": "2conv"},
        {"embed_dim": 100},
        {"embed_dim": 0},
        {"embed_dim": -6},
        {"depths": []},
        {"depths": 6},
        {"depths": [6, 6]},
        {"depths": [6, 6, 6, 6, 6, 0]},
        {"num_heads": [0] * 6},
        {"window_size": 1},
        {"window_size": 64},
        {"window_size": 1000, "image_size": 2000},
        {"image_size": 8},
        {"image_size": [8, 64]},
        {"mlp_ratio": float("nan")},
        {"img_range": 0},
        {"layer_norm_eps": -1.0},
    ],
    ids=str,
)
def test_config_refuses_in_one_line(change: dict[str, Any]) -> None:
    with pytest.raises(ModelError, match=r"^config\.json: [^\n]*$"):
        Swin2SRConfig.from_dict(change)


@pytest.mark.parametrize(
    ("module", "absent"),
    [("core.networks.swin2sr", "transformers"), ("core.networks.swin2sr_config", "torch")],
    ids=str,
)
def test_imports_stay_light(module: str, absent: str) -> None:
    code = f"import sys, {module}; sys.exit({absent!r} in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)})
