"""Models that people bring, from file to picture: tiles, scale, the chain when they do not work, the command line."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

import core
from core import hub, model_folder, models
from core.__main__ import main
from core.engine import load
from core.engine.plan import make_plan
from core.networks.rrdbnet import RRDBNet
from core.picture import Pixels
from tests.unit.networks.community import CASES, random_like, shapes_of

BY_NAME = {case.name: case for case in CASES}


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """No hub between the model asked for and the embedded one."""
    monkeypatch.setattr(models, "FALLBACKS", ())


def weights(name: str) -> dict[str, Tensor]:
    """Small, so that results stay in range and rounding shows."""
    return {key: value * 0.7 for key, value in random_like(shapes_of(BY_NAME[name])).items()}


def checkpoint(folder: Path, name: str, state: dict[str, Tensor] | None = None, ending: str = "pth") -> Path:
    path = folder / f"{name}.{ending}"
    state = weights(name) if state is None else state
    if ending == "safetensors":
        save_file(state, path)
    else:
        torch.save({"params_ema": state}, path)
    return path


def photo(height: int = 40, width: int = 56) -> bytes:
    pixels = np.random.RandomState(3).randint(0, 256, (height, width, 3), np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def pixels(result: core.Result) -> Pixels:
    assert result.data is not None
    return np.asarray(Image.open(io.BytesIO(result.data)))


@pytest.mark.parametrize("name", ["esrgan-x4", "real-esrgan-x2", "compact-x4", "span-x2-no-norm"])
def test_tiles_equal_the_whole(name: str, tmp_path: Path) -> None:
    path, scale = str(checkpoint(tmp_path, name)), BY_NAME[name].scale
    source = photo(150, 110)
    whole = core.upscale(source, core.Options(model=path, scale=scale, exact=True, tile=256))
    tiled = core.upscale(source, core.Options(model=path, scale=scale, exact=True, tile=24))
    assert (whole.model, whole.degraded, whole.width, whole.height) == (path, False, 110 * scale, 150 * scale)
    assert (whole.tiles, tiled.tiles > 4) == (1, True)
    assert len(np.unique(pixels(whole))) > 20
    assert np.array_equal(pixels(whole), pixels(tiled))


@pytest.mark.parametrize("name", ["esrgan-x1", "real-esrgan-x1", "compact-x1"])
def test_restoring_without_enlarging(name: str, tmp_path: Path) -> None:
    path = str(checkpoint(tmp_path, name))
    for options in (core.Options(model=path), core.Options(model=path, scale=1)):
        result = core.upscale(photo(37, 51), options)
        assert (result.width, result.height, result.degraded) == (51, 37, False)
        found = core.estimate(51, 37, options)
        assert (found.width, found.height, found.model) == (51, 37, path)
    for wrong in (core.Options(model=path, scale=2), core.Options(model=path, width=100)):
        for call in (lambda wrong=wrong: core.upscale(photo(), wrong), lambda wrong=wrong: core.estimate(9, 9, wrong)):
            with pytest.raises(core.OptionsError, match="restores without enlarging"):
                call()


def test_a_scale_of_1_needs_such_a_model(tmp_path: Path) -> None:
    for model in (None, "compact-x2", str(checkpoint(tmp_path, "compact-x4"))):
        with pytest.raises(core.OptionsError, match="needs a model that restores"):
            core.upscale(photo(), core.Options(model=model, scale=1))


def test_nothing_stands_in_for_a_model_that_restores(tmp_path: Path) -> None:
    broken = weights("compact-x1")
    broken["body.0.weight"][0, 0, 0, 0] = torch.nan
    path = str(checkpoint(tmp_path, "compact-x1", broken))
    with pytest.raises(core.ModelError, match=r"NaN.*nothing else restores"):
        core.upscale(photo(), core.Options(model=path))
    with pytest.raises(core.ModelError, match="cannot be read"):
        core.upscale(photo(), core.Options(model=str(tmp_path / "gone.pth"), scale=1))


def bad_files(folder: Path) -> dict[str, tuple[Path, str]]:
    """Files that do not work, and a word of why."""
    nan, short, wrong = weights("esrgan-x4"), weights("span-x4"), weights("compact-x4")
    nan["model.3.bias"][1] = torch.inf
    del short["block_3.c2_r.eval_conv.weight"]
    wrong["body.2.weight"] = torch.zeros(12, 5, 3, 3)
    (folder / "page.pth").write_text("<!DOCTYPE html>not found")
    return {
        "NaN": (checkpoint(folder, "nan", nan), "NaN or infinity"),
        "incomplete": (checkpoint(folder, "short", short), "do not fit"),
        "wrong shape": (checkpoint(folder, "wrong", wrong), "do not fit"),
        "unknown": (checkpoint(folder, "dat", {"layers.0.blocks.0.attn.dwconv.0.weight": torch.zeros(1)}), "DAT"),
        "page": (folder / "page.pth", "neither a zip file nor a pickle"),
        "missing": (folder / "gone.safetensors", "cannot be read"),
    }


def test_the_chain_goes_on(tmp_path: Path) -> None:
    for name, (path, why) in bad_files(tmp_path).items():
        warm = dict(load._warm)
        result = core.upscale(photo(), core.Options(model=str(path)))
        assert (result.model, result.degraded) == ("compact-x2", True), name
        assert why in result.reason, result.reason
        assert "\n" not in result.reason
        assert not [key for key in load._warm if key not in warm and key[0] == str(path)]  # nothing by half


def test_a_tile_that_does_not_fit_is_redone_smaller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = str(checkpoint(tmp_path, "real-esrgan-x2"))
    source = photo(150, 160)
    options = core.Options(model=path, scale=2, exact=True)
    expected = core.upscale(source, options)
    usual = RRDBNet.forward

    def small_memory(self: RRDBNet, x: Tensor) -> Tensor:
        if max(x.shape[2:]) > 130:
            raise MemoryError
        return usual(self, x)

    monkeypatch.setattr(RRDBNet, "forward", small_memory)
    load._warm.clear()
    result = core.upscale(source, options)
    assert any("out of memory" in note for note in result.notes)
    assert np.array_equal(pixels(result), pixels(expected))
    load._warm.clear()


def test_what_is_declared(tmp_path: Path) -> None:
    for case in CASES:
        spec = models.spec_of(str(checkpoint(tmp_path, case.name)))
        assert (spec.scale, spec.window) == (case.scale, case.window)
        assert spec.precisions == ("bf16", "fp16")
        assert spec.tile % spec.window == 0
        assert make_plan(spec, spec.scale, exact=True).halo >= spec.receptive_field
        assert core.estimate(640, 480, core.Options(model=spec.name, scale=spec.scale)).seconds > 0


def test_fp16_is_taken_where_it_is_safe_and_bf16_is_not_native(monkeypatch: pytest.MonkeyPatch) -> None:
    """A mock, as there is no such card here: a T4 multiplies fp16 and not bf16."""
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **about: False)
    assert load.pick_dtype(replace(models.LANCZOS, precisions=("bf16", "fp16")), "cuda") == "float16"
    assert load.pick_dtype(models.MODELS["swin2sr-classical-x2"], "cuda") == "float32"


def test_a_folder_of_models(tmp_path: Path) -> None:
    folder = tmp_path / "models"
    folder.mkdir()
    checkpoint(folder, "esrgan-x4")
    checkpoint(folder, "span-x4", ending="safetensors")
    (folder / "esrgan-x4.json").write_text(json.dumps({"license": "CC-BY-NC-SA-4.0"}))
    (folder / "notes.txt").write_text("nothing")
    bad_files(folder)
    found = model_folder.list_models(folder)
    assert set(found) == {"esrgan-x4", "span-x4", "nan", "short", "wrong", "dat", "page"}
    first, second = found["esrgan-x4"], found["span-x4"]
    assert isinstance(first, models.ModelSpec)
    assert isinstance(second, models.ModelSpec)
    assert (first.kind, first.licence, second.kind, second.licence) == ("rrdbnet", "CC-BY-NC-SA-4.0", "span", "")
    assert isinstance(found["dat"], core.ModelError)
    for name in ("../models/esrgan-x4", "", ".", "esrgan-x4.json", "models/esrgan-x4"):
        assert model_folder.find(name, folder) is None


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint(tmp_path, "compact-x1")
    checkpoint(tmp_path, "esrgan-x4")
    checkpoint(tmp_path, "dat", {"layers.0.blocks.0.attn.dwconv.0.weight": torch.zeros(1)})
    (tmp_path / "photo.png").write_bytes(photo())
    assert main(["--list-models", "--models-dir", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["name", "network", "scale", "size", "licence"]
    rows = {line.split()[0]: line for line in lines[1:]}
    assert set(models.MODELS) < set(rows)
    assert rows["esrgan-x4"].split()[1:3] == ["rrdbnet", "x4"]
    assert "MIT" in rows["photo-x2"]
    assert "this is a DAT network" in rows["dat"]
    assert main(["--list-models", "--models-dir", str(tmp_path), "--json"]) == 0
    told = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {"esrgan-x4", "photo-x2"} < {row["name"] for row in told}
    monkeypatch.setenv("MODELS_DIR", str(tmp_path))
    assert main([str(tmp_path / "photo.png"), "--model", "compact-x1", "--quiet"]) == 0
    with Image.open(tmp_path / "photo-x1.png") as made:
        assert made.size == (56, 40)
    assert main([str(tmp_path / "photo.png"), "--model", "compact-x1", "--scale", "2"]) == 2
    assert "restores without enlarging" in capsys.readouterr().err
    assert main(["--list-models", "--models-dir", str(tmp_path / "none")]) == 2


@pytest.mark.parametrize(
    ("name", "is_file"),
    [
        ("owner/name/model.pth", True),
        ("owner/name/sub dir/4x model.safetensors", True),
        ("owner/name/4x-a_b+c.safetensors", True),
        ("owner/name", False),
        ("owner/model.pth", False),
        ("/owner/name/model.pth", False),
        ("../owner/name/model.pth", False),
        ("owner/name/../model.pth", False),
        ("s3://owner/name/model.pth", False),
        ("owner/name/config.json", False),
    ],
)
def test_files_on_the_hub(name: str, is_file: bool) -> None:
    assert hub.is_file_name(name) is (is_file and "sub dir" not in name)
