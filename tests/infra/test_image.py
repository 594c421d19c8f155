"""What the Dockerfile relies on: pinned requirements, and the scripts that it runs."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest
import torch
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version
from torch import nn

from core.engine import pytorch

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
DOCKERFILE = (ROOT / "Dockerfile").read_text()


def script(name: str) -> ModuleType:
    """A module of infra/, which is no package."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "infra" / f"{name}.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look for theirs
    spec.loader.exec_module(module)
    return module


def test_requirements_are_pinned_with_hashes() -> None:
    """Each dependency of the service but torch and OpenVINO, in a version that pyproject.toml allows."""
    text = (ROOT / "infra" / "requirements.txt").read_text()
    assert "://" not in text
    assert "--index-url" not in text
    blocks = [block for block in re.split(r"\n(?=[a-z])", text) if not block.startswith("#")]
    pinned: dict[str, list[Version]] = {}
    for block in blocks:
        found = re.match(r"([a-z0-9._-]+)==(\S+)", block)
        assert found, block
        assert re.search(r"--hash=sha256:[0-9a-f]{64}", block), block
        pinned.setdefault(canonicalize_name(found[1]), []).append(Version(found[2]))
    wanted = [Requirement(line) for line in PROJECT["dependencies"] + EXTRAS["service"] + EXTRAS["torch"]]
    for requirement in wanted:
        name = canonicalize_name(requirement.name)
        if name == "openvino":  # for a processor's bf16, which is not worth 180 MB more in an image
            assert name not in pinned
        elif name == "torch":
            assert name not in pinned
            assert f"ARG TORCH_VERSION={requirement.specifier}".replace("==", "") in DOCKERFILE
        else:
            assert name in pinned, f"run `make requirements`: {name} is missing"
            assert all(version in requirement.specifier for version in pinned[name]), f"run `make requirements`: {name}"


def test_the_classic_builder_reaches_lambda_before_cuda() -> None:
    """It builds every stage above its target; the default is the last one."""
    stages = re.findall(r"^FROM (\S+)(?: AS (\S+))?$", DOCKERFILE, re.MULTILINE)
    names = [name for _, name in stages]
    assert names.index("lambda") < names.index("server") < names.index("torch-cuda") < names.index("batch")
    assert stages[-1] == ("lambda", "")
    assert "RUN --mount" not in DOCKERFILE
    assert "<<" not in DOCKERFILE
    assert DOCKERFILE.endswith("\nFROM lambda\nUSER 10001:10001\n")
    for name in ("lambda", "server", "batch"):
        body = DOCKERFILE.split(f" AS {name}\n")[1].split("\nFROM ")[0]
        assert "USER 10001:10001" in body
        assert "HF_HUB_OFFLINE=1" in body


def test_the_context_holds_what_is_copied() -> None:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    assert lines[1] == "*"
    open_ = {line[1:] for line in lines if line.startswith("!")}
    copied = {
        name for line in re.findall(r"^COPY (?!--from)(.*) \S+$", DOCKERFILE, re.MULTILINE) for name in line.split()
    }
    assert {name.replace("model[s]", "models") for name in copied} == open_


def test_trim(tmp_path: Path) -> None:
    keep = ["a/__init__.py", "a/data.json", "torch/bin/torch_shm_manager", "torch/lib/x.so", "a/testing/b.py"]
    drop = ["bin/tool", "a/tests/t.py", "a/include/x.h", "a/x.pyi", "torch/bin/protoc", "torch/test/big", "other/m.py"]
    for name in keep + drop:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("1\n")
    script("trim").trim(tmp_path, ["a", "torch"])
    left = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert {name for name in left if not name.endswith(".pyc")} == set(keep)
    assert [path.parent.parent.name for path in tmp_path.rglob("__init__*.pyc")] == ["a"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Swin2SR with random weights, as transformers saves it."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.Swin2SRConfig(
        embed_dim=12, depths=[2], num_heads=[2], window_size=8, upscale=2, upsampler="pixelshuffledirect", image_size=16
    )
    folder = tmp_path_factory.mktemp("models") / "tiny"
    transformers.Swin2SRForImageSuperResolution(config).save_pretrained(folder)
    (folder / "notes.txt").write_text("not for the image")
    return folder


def test_weights_that_equal_transformers_are_let_in(checkpoint: Path, tmp_path: Path) -> None:
    check_models = script("check_models")
    assert check_models.main(["fetch", str(tmp_path / "weights"), str(checkpoint)]) == 0
    baked = tmp_path / "weights" / "tiny"
    assert sorted(path.name for path in baked.iterdir()) == ["config.json", "model.safetensors"]
    assert check_models.main(["check", str(tmp_path / "weights")]) == 0
    assert check_models.main(["fetch", str(tmp_path / "none")]) == 0  # MODELS is empty
    assert check_models.main(["check", str(tmp_path / "none")]) == 0


def test_others_are_not(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_models = script("check_models")
    build = pytorch.build

    class Off(nn.Module):
        def __init__(self, net: nn.Module) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            result: torch.Tensor = self.net(x)
            result[..., 0, 0] += 0.001  # a quarter of a grey level, in one pixel
            return result

    monkeypatch.setattr(pytorch, "build", lambda *arguments: Off(build(*arguments)))
    assert check_models.main(["check", str(checkpoint.parent)]) == 1


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "config.json").write_text(json.dumps({"model_type": "swin2sr"}))
    with pytest.raises(SystemExit, match=r"needs config\.json and model\.safetensors"):
        script("check_models").main(["fetch", str(tmp_path / "weights"), str(tmp_path / "empty")])
