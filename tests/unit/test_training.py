"""The recipe behind the embedded models, at a size that a test can run: what goes in is what it says."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from bench.metrics import bicubic
from core.engine.plan import make_plan
from core.models import WEIGHTS, spec_of
from core.networks.compact import Compact
from core.networks.compact_config import CompactConfig
from training import train
from training.average import average
from training.degrade import MARGIN, Degrade
from training.photos import Patches, reduce

CPU = torch.device("cpu")


def photo(height: int, width: int, seed: int = 0) -> Tensor:
    """(h, w, 3) uint8: smooth shapes, edges and some texture."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 3, height // 16 + 1, width // 16 + 1, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")[0]
    smooth += 0.3 * (torch.arange(width) // 9 % 2)
    smooth += 0.02 * torch.randn(3, height, width, generator=generator)
    return (smooth.clamp(0, 1) * 255).byte().permute(1, 2, 0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for index in range(2):
        Image.fromarray(photo(624, 640, index).numpy()).save(folder / f"{index}.png")
    return folder


@pytest.mark.parametrize("quality", [40, 75, 95])
@pytest.mark.parametrize("halved", [True, False])
def test_jpeg_is_that_of_libjpeg(quality: int, halved: bool) -> None:
    pixels = photo(256, 320)
    buffer = io.BytesIO()
    Image.fromarray(pixels.numpy()).save(buffer, "JPEG", quality=quality, subsampling=2 if halved else 0)
    theirs = torch.from_numpy(np.array(Image.open(buffer))).float()
    x = pixels.permute(2, 0, 1)[None].float() / 255
    ours = Degrade(2, CPU).jpeg(x, torch.tensor([quality]), torch.tensor([halved]))[0].permute(1, 2, 0) * 255

    def psnr(one: Tensor, other: Tensor) -> float:
        return float(10 * torch.log10(255**2 / (one - other).square().mean()))

    assert psnr(ours, theirs) > 42
    assert psnr(ours, theirs) > psnr(pixels.float(), theirs) + 5


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_plain_reduction_is_bicubic(scale: int) -> None:
    pixels = photo(96 * scale, 96 * scale)
    x = pixels.permute(2, 0, 1)[None].float() / 255
    ours = (Degrade(scale, CPU).reduced(x, torch.zeros(1), torch.ones(1)).clamp(0, 1) * 255).round()[0]
    theirs = bicubic(pixels, 96, 96).permute(2, 0, 1)
    assert (ours - theirs)[:, 8:-8, 8:-8].abs().max() <= 1


@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("degraded", [False, True])
def test_input_and_target_are_the_same_place(folder: Path, scale: int, degraded: bool) -> None:
    torch.manual_seed(0)
    patches = Patches(folder, scale, CPU)
    small, large = patches.draw(16, 48 + MARGIN * degraded)
    if degraded:
        small, large = Degrade(scale, CPU)(small, large)
    assert small.shape == (16, 3, 48, 48)
    assert large.shape == (16, 3, 48 * scale, 48 * scale)
    mean = torch.nn.functional.avg_pool2d(large, scale)
    here = (small - mean).abs().mean((1, 2, 3))
    for axis in (2, 3):
        for step in (-2, 2):
            assert (here < (small - mean.roll(step, axis)).abs().mean((1, 2, 3))).all()


def test_an_untrained_network_is_bicubic_interpolation() -> None:
    torch.manual_seed(0)
    net = train.build(CompactConfig(scale=2, width=16, blocks=2), None, CPU)
    with torch.no_grad():
        for layer in (net.tail,):
            layer.weight.zero_()
        pixels = photo(64, 80)
        made = net(pixels.permute(2, 0, 1)[None].float() / 255).clamp(0, 1)[0].permute(1, 2, 0) * 255
    assert (made - bicubic(pixels, 128, 160)).abs()[8:-8, 8:-8].max() < 1


def test_steps_are_orthogonal() -> None:
    torch.manual_seed(0)
    for shape in ((2, 8, 72), (1, 16, 16), (1, 72, 8)):
        values = torch.linalg.svdvals(train.orthogonalised(torch.randn(shape)))
        assert values.min() > 0.3
        assert values.max() < 1.3


def test_training_resumes_and_exports(folder: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    patches = Patches(folder, 2, CPU)
    phases = (train.Phase(0.5, 4, 48, False), train.Phase(1.0, 2, 64, True))
    held_back = [photo(128, 128, 5)]

    def new() -> train.Training:
        return train.Training(train.build(CompactConfig(width=16, blocks=2), None, CPU), patches, None)

    first = new()
    train.train(first, phases, 1.0, held_back, tmp_path / "run")
    again = new()
    net = train.train(again, phases, first.seconds + 1.0, held_back, tmp_path / "run")
    assert again.seconds > first.seconds >= 1.0
    assert again.steps > first.steps
    before = np.concatenate([value.detach().numpy().ravel() for value in first.averaged().parameters()])
    after = np.concatenate([value.detach().numpy().ravel() for value in net.parameters()])
    assert 0 < np.abs(after - before).max() < 0.5, "went on from the checkpoint"

    train.export(net, tmp_path / "model")
    kept = json.loads((tmp_path / "model" / "config.json").read_text(encoding="utf-8"))
    assert (kept["model_type"], kept["scale"], kept["width"], kept["blocks"]) == ("compact", 2, 16, 2)
    loaded = Compact(CompactConfig.from_dict(kept))
    loaded.load_state_dict({k: v.float() for k, v in load_file(tmp_path / "model" / "model.safetensors").items()})
    assert abs(train.validate(loaded, held_back, CPU) - train.validate(net, held_back, CPU)) < 0.05
    # And it is a model that the product takes.
    spec = spec_of(str(tmp_path / "model"))
    assert make_plan(spec, 2, exact=False, tile=None, halo=None).scale == 2


def test_weights_of_another_scale_are_a_start(folder: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = train.build(CompactConfig(scale=2, width=16, blocks=2), None, CPU)
    train.export(net, tmp_path)
    other = train.build(CompactConfig(scale=4, width=16, blocks=2), tmp_path, CPU)
    for ours, theirs in zip(net.body, other.body, strict=True):
        assert torch.equal(ours.state_dict()["weight"].half(), theirs.state_dict()["weight"].half())
    assert other.tail.weight.shape[0] == 48


def test_a_teacher_is_drawn_beside_the_photo(folder: Path) -> None:
    torch.manual_seed(0)
    patches = Patches(folder, 2, CPU)
    patches.teach(WEIGHTS / "compact-x2")
    small, large = patches.draw(4, 48)
    assert large.shape == (4, 6, 96, 96)
    truth, taught = torch.split(large, 3, 1)
    mean = torch.nn.functional.avg_pool2d(taught, 2)
    assert (mean - small).abs().mean() < 0.03
    assert not torch.equal(truth, taught)
    training = train.Training(train.build(CompactConfig(width=16, blocks=2), None, CPU), patches, None)
    training.set_rates(0.5)
    training.step(train.Phase(1.0, 2, 48, True))


def test_averaged_weights_lie_between(tmp_path: Path) -> None:
    nets = [train.build(CompactConfig(width=16, blocks=2), None, CPU) for _ in range(2)]
    for index, net in enumerate(nets):
        train.export(net, tmp_path / str(index))
    average(tmp_path / "0", tmp_path / "1", 0.25, tmp_path / "out")
    made = load_file(tmp_path / "out" / "model.safetensors")
    for name, value in made.items():
        one, other = (net.state_dict()[name] for net in nets)
        assert torch.allclose(value.float(), 0.75 * one + 0.25 * other, atol=2e-3)


def test_reduced_photos_keep_their_mean() -> None:
    pixels = photo(96, 120)
    assert abs(float(reduce(pixels, 3).float().mean() - pixels.float().mean())) < 1


def test_no_photos_is_said(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="no photos"):
        Patches(tmp_path, 2, CPU)
