"""The recipe behind the embedded models, at a size that a test can run: what goes in is what it says."""

from __future__ import annotations

import copy
import io
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load, load_file
from torch import Tensor

from bench.metrics import bicubic
from core.engine.plan import make_plan
from core.models import WEIGHTS, spec_of
from core.networks.compact_config import CompactConfig
from training import gpu, train
from training.degrade import Bicubic, Degrade
from training.optimisers import orthogonalised
from training.pack import MEBIBYTE, pack
from training.photos import GRID, Patches, Pixels, copies, decode, held_back, is_held_back, reduce
from training.selection import Selection
from training.weights import average, build, export

CPU = torch.device("cpu")
SPLIT_NAME = next(name for name in (f"{index}.png" for index in range(99)) if is_held_back(Path(name)))


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


@pytest.fixture(scope="module")
def decoded(folder: Path) -> Pixels:
    return decode([folder], folder / "cache")


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
def test_clean_inputs_are_bicubic(scale: int) -> None:
    inputs = Bicubic(scale, CPU)
    pixels = photo((48 + inputs.margin) * scale, (48 + inputs.margin) * scale)
    small, large = inputs(pixels.permute(2, 0, 1)[None].float() / 255)
    edge = inputs.margin // 2
    theirs = bicubic(pixels, 48 + inputs.margin, 48 + inputs.margin).permute(2, 0, 1)[:, edge:-edge, edge:-edge]
    assert (small[0] * 255 - theirs).abs().max() <= 1
    assert torch.equal(
        large[0] * 255, pixels.permute(2, 0, 1)[:, edge * scale : -edge * scale, edge * scale : -edge * scale]
    )


@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("degraded", [False, True])
def test_input_and_target_are_the_same_place(decoded: Pixels, scale: int, degraded: bool) -> None:
    torch.manual_seed(0)
    inputs = Degrade(scale, CPU) if degraded else Bicubic(scale, CPU)
    side = (48 + inputs.margin) * scale
    small, large = inputs(Patches(decoded, CPU, side).draw(16, side, scale))
    assert small.shape == (16, 3, 48, 48)
    assert large.shape == (16, 3, 48 * scale, 48 * scale)
    mean = torch.nn.functional.avg_pool2d(large, scale)
    here = (small - mean).abs().mean((1, 2, 3))
    for axis in (2, 3):
        for step in (-2, 2):
            assert (here < (small - mean.roll(step, axis)).abs().mean((1, 2, 3))).all()


def test_an_untrained_network_is_bicubic_interpolation() -> None:
    torch.manual_seed(0)
    net = build(CompactConfig(scale=2, width=16, blocks=2), None, CPU)
    with torch.no_grad():
        for layer in (net.tail,):
            layer.weight.zero_()
        pixels = photo(64, 80)
        made = net(pixels.permute(2, 0, 1)[None].float() / 255).clamp(0, 1)[0].permute(1, 2, 0) * 255
    assert (made - bicubic(pixels, 128, 160)).abs()[8:-8, 8:-8].max() < 1


def test_steps_are_orthogonal() -> None:
    torch.manual_seed(0)
    for shape in ((2, 8, 72), (1, 16, 16), (1, 72, 8)):
        values = torch.linalg.svdvals(orthogonalised(torch.randn(shape)))
        assert values.min() > 0.3
        assert values.max() < 1.3


@pytest.mark.slow
def test_training_resumes_and_keeps_the_best(decoded: Pixels, tmp_path: Path) -> None:
    torch.manual_seed(0)
    inputs = Bicubic(2, CPU)
    patches = Patches(decoded, CPU, (64 + inputs.margin) * 2)
    phases = (train.Phase(0.5, 4, 48, False), train.Phase(1.0, 2, 64, True))
    selection = Selection([photo(128, 128, 5)], 2)

    def new() -> train.Training:
        return train.Training(build(CompactConfig(width=16, blocks=2), None, CPU), patches, inputs)

    first = new()
    before = selection.score(first.averaged(), CPU)
    train.train(first, phases, 1.0, selection, tmp_path / "run")
    again = new()
    best = train.train(again, phases, first.seconds + 1.0, selection, tmp_path / "run")
    assert again.seconds > first.seconds >= 1.0
    assert again.steps > first.steps
    one, other = (
        np.concatenate([value.detach().numpy().ravel() for value in training.averaged().parameters()])
        for training in (first, again)
    )
    assert 0 < np.abs(one - other).max() < 0.5, "went on from the checkpoint"

    kept = json.loads((best / "config.json").read_text(encoding="utf-8"))
    assert (kept["model_type"], kept["scale"], kept["width"], kept["blocks"]) == ("compact", 2, 16, 2)
    loaded = build(CompactConfig.from_dict(kept), best, CPU)
    assert selection.score(loaded, CPU) == pytest.approx(again.best, abs=0.15), "fp16 weights, bf16 arithmetic"
    assert again.best >= before, "what it began from is a candidate, too"
    # And it is a model that the product takes.
    spec = spec_of(str(best))
    assert make_plan(spec, 2, exact=False, tile=None, halo=None).scale == 2


def test_weights_of_another_scale_are_a_start(folder: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = build(CompactConfig(scale=2, width=16, blocks=2), None, CPU)
    export(net, tmp_path)
    other = build(CompactConfig(scale=4, width=16, blocks=2), tmp_path, CPU)
    for ours, theirs in zip(net.body, other.body, strict=True):
        assert torch.equal(ours.state_dict()["weight"].half(), theirs.state_dict()["weight"].half())
    assert other.tail.weight.shape[0] == 48


def test_a_teacher_is_drawn_beside_the_photo(decoded: Pixels) -> None:
    torch.manual_seed(0)
    inputs = Bicubic(2, CPU)
    patches = Patches(decoded, CPU, 112)
    patches.teach(WEIGHTS / "compact-x2")
    small, large = inputs(patches.draw(4, 112, 2))
    assert large.shape == (4, 6, 96, 96)
    truth, taught = torch.split(large, 3, 1)
    mean = torch.nn.functional.avg_pool2d(taught, 2)
    assert (mean - small).abs().mean() < 0.03
    assert not torch.equal(truth, taught)
    training = train.Training(build(CompactConfig(width=16, blocks=2), None, CPU), patches, inputs)
    training.set_rates(0.5)
    training.step(train.Phase(1.0, 2, 48, True))


def test_averaged_weights_lie_between(tmp_path: Path) -> None:
    nets = [build(CompactConfig(width=16, blocks=2), None, CPU) for _ in range(2)]
    for index, net in enumerate(nets):
        export(net, tmp_path / str(index))
    average(tmp_path / "0", tmp_path / "1", 0.25, tmp_path / "out")
    made = load_file(tmp_path / "out" / "model.safetensors")
    for name, value in made.items():
        one, other = (net.state_dict()[name] for net in nets)
        assert torch.allclose(value.float(), 0.75 * one + 0.25 * other, atol=2e-3)


def test_a_change_is_added_to_a_sister(tmp_path: Path) -> None:
    nets = [build(CompactConfig(scale=scale, width=16, blocks=2), None, CPU) for scale in (4, 2, 2)]
    for index, net in enumerate(nets):
        export(net, tmp_path / str(index))
    average(tmp_path / "0", tmp_path / "1", 0.5, tmp_path / "out", before=tmp_path / "2")
    made = load_file(tmp_path / "out" / "model.safetensors")
    sister, after, before = (net.state_dict() for net in nets)
    for name, value in made.items():
        wanted = sister[name]
        if wanted.shape == after[name].shape:
            wanted = wanted + 0.5 * (after[name] - before[name])
        assert torch.allclose(value.float(), wanted, atol=2e-3)


def test_reduced_photos_keep_their_mean() -> None:
    pixels = photo(96, 120)
    assert abs(float(reduce(pixels, 3).float().mean() - pixels.float().mean())) < 1


def test_small_jpegs_are_taken_as_they_are_and_large_ones_halved(tmp_path: Path) -> None:
    for side, name in (((400, 600), "small.jpg"), ((1440, 1920), "large.jpg"), ((640, 640), "lossless.png")):
        Image.fromarray(photo(*side).numpy()).save(tmp_path / name)
    assert [copy.shape for copy in copies(tmp_path / "small.jpg")] == [(400, 600, 3)]
    assert [copy.shape for copy in copies(tmp_path / "large.jpg")] == [(720, 960, 3), (480, 640, 3), (360, 480, 3)]
    assert [copy.shape for copy in copies(tmp_path / "lossless.png")] == [(640, 640, 3), (320, 320, 3)]


def test_photos_of_the_split_are_not_trained_on(tmp_path: Path) -> None:
    for index in range(60):
        Image.fromarray(np.full((200, 200, 3), index, np.uint8)).save(tmp_path / f"{index}.png")
    split = {index for index in range(60) if is_held_back(tmp_path / f"{index}.png")}
    assert split
    trained = {int(photo[0, 0, 0]) for photo in decode([tmp_path], tmp_path / "cache").photos()}
    assert {int(photo[0, 0, 0]) for photo in held_back([tmp_path])} == split
    assert trained == set(range(60)) - split


def test_decoded_photos_are_read_again(folder: Path, decoded: Pixels) -> None:
    files = list((folder / "cache").iterdir())
    times = [file.stat().st_mtime_ns for file in files]
    again = decode([folder], folder / "cache")
    assert torch.equal(again.values, decoded.values)
    assert [file.stat().st_mtime_ns for file in (folder / "cache").iterdir()] == times
    assert len(files) == 1


def test_no_photos_is_said(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="no photos"):
        decode([tmp_path], tmp_path)


def test_wide_degradations_are_wider(decoded: Pixels) -> None:
    torch.manual_seed(0)
    patches = Patches(decoded, CPU, 320)

    def error(inputs: Degrade) -> float:
        small, large = inputs(patches.draw(32, 320, 4))
        return float((small - torch.nn.functional.avg_pool2d(large, 4)).square().mean())

    assert error(Degrade(4, CPU, wide=True)) > 1.3 * error(Degrade(4, CPU))


def test_detail_draws_on_features_and_a_discriminator(decoded: Pixels) -> None:
    pytest.importorskip("efficientnet_lite_pytorch", reason="pip install -e '.[training]' brings it")
    from training.detail import DetailTraining

    torch.manual_seed(0)
    inputs = Degrade(2, CPU, wide=True)
    patches = Patches(decoded, CPU, 160)
    training = DetailTraining(build(CompactConfig(width=16, blocks=2), None, CPU), patches, inputs)
    training.set_rates(0.5)
    before = copy.deepcopy(training.state())
    for _ in range(2):
        training.step(train.Phase(1.0, 2, 48, False))
    assert not torch.equal(training.average, cast(torch.Tensor, before["average"]))
    state = training.net.state_dict()
    moved = {
        name for name, value in cast(dict[str, torch.Tensor], before["net"]).items() if not value.equal(state[name])
    }
    assert moved == {"body.0.weight", "body.1.weight", "body.2.weight", "body.3.weight", "fuse.weight"}
    one = training.discriminator(torch.zeros(1, 3, 32, 32))
    training.restore(before)
    other = training.discriminator(torch.zeros(1, 3, 32, 32))
    assert one.shape == (1, 1, 4, 4)
    assert not torch.equal(one, other), "the discriminator learns, and a checkpoint keeps it"
    target = torch.rand(1, 3, 64, 64)
    near, far = (target + noise * torch.randn_like(target) for noise in (0.02, 0.2))
    assert training.features.distance(near, target) < training.features.distance(far, target)


def test_beads_cost_more_than_texture() -> None:
    pytest.importorskip("efficientnet_lite_pytorch", reason="pip install -e '.[training]' brings it")
    from training.detail import grid

    torch.manual_seed(0)
    target = torch.zeros(1, 3, 96, 96)
    texture, beads = torch.randn_like(target), torch.zeros_like(target)
    beads[..., ::4, ::4] = 1
    assert grid(beads / beads.mean(), target, 4) > 5 * grid(texture / texture.abs().mean(), target, 4)
    assert grid(target + 0.5, target, 4) == 0, "what all pixels of the grid have in common is no bead"


def test_a_pack_has_the_most_detailed_parts_in_its_size(tmp_path: Path) -> None:
    flat = torch.full((480, 900, 3), 128, dtype=torch.uint8)
    flat[:, 320:] = photo(480, 580)
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in (SPLIT_NAME, "a.png", "b.png"):
        Image.fromarray(flat.numpy()).save(folder / name)
    assert pack([folder], [tmp_path / "pack.zip"], [4.0]) == 3
    with zipfile.ZipFile(tmp_path / "pack.zip") as archive:
        archive.extractall(tmp_path / "unpacked")
    unpacked = decode([tmp_path / "unpacked"], tmp_path / "cache")
    assert [tuple(shape) for shape in unpacked.shapes.tolist()] == [(480, 576)] * 2
    for kept in unpacked.photos():
        assert float((kept[:, GRID:].float() - 128).abs().mean((0, 2)).min()) > 5, "no column is of the flat half"
    assert len(held_back([tmp_path / "unpacked"])) == 1
    size = (tmp_path / "pack.zip").stat().st_size / MEBIBYTE
    both = [tmp_path / "pack.zip", tmp_path / "more.zip"]
    assert pack([folder], both, [size - 0.01, 4.0]) == 3
    assert both[0].stat().st_size / MEBIBYTE <= size - 0.01
    names = [set(zipfile.ZipFile(path).namelist()) for path in both]
    assert (len(names[0]), len(names[1])) == (2, 1)
    assert not names[0] & names[1]


@pytest.mark.slow
def test_on_a_gpu_is_rehearsed(tmp_path: Path) -> None:
    """The script and the order of its stages, on whatever this machine has; figures come from a card only."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for index, name in enumerate([SPLIT_NAME, "a.png", "b.png"]):
        Image.fromarray(photo(256, 256, index).numpy()).save(folder / name)
    pack([folder], [tmp_path / "pack.zip"], [2.0])
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [root / "training" / "on_a_gpu.sh", "0.25", tmp_path / "pack.zip"],
        env={**os.environ, "PYTHON": sys.executable, "TINY": "1", "OMP_NUM_THREADS": "1",
             "OUT": str(tmp_path / "out"), "TEACHER": str(WEIGHTS / "photo-x2")},
        capture_output=True, text=True, timeout=500,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))
    files = sorted((tmp_path / "out").iterdir())
    assert len(files) <= 8
    assert all(file.stat().st_size <= 16 * MEBIBYTE for file in files)
    for name in ("compact-x2", "compact-x4", "compact-x3", "photo-x2", "photo-x4"):
        assert report[name]["steps"] > 0, report[name]
        assert report[name]["split, dB"]
        with zipfile.ZipFile(tmp_path / "out" / f"{name}.zip") as archive:
            assert set(archive.namelist()) == {
                f"{part}.safetensors" for part in ("best", "trunk", "branch0", "branch1")
            }
            made = load(archive.read("best.safetensors"))
        assert {key: value.shape for key, value in made.items()} == {
            key: value.shape for key, value in load_file(WEIGHTS / name / "model.safetensors").items()
        }
    assert report["compact-x2"]["taught, s"] > 0
    detail = report["detail-x4"]
    assert "ModuleNotFoundError" in detail if isinstance(detail, str) else detail["steps"] > 0


def test_packs_without_the_first_are_refused_before_any_training(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack([folder], [tmp_path / "more.zip"], [4.0])
    arguments = ["gpu", "--minutes", "1", "--packs", str(tmp_path / "more.zip"), "--out", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit, match="the first of them"):
        gpu.main()
