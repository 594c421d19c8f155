"""Files of weights by others: what is recognised in them, and what is refused before a tensor is made."""

from __future__ import annotations

import collections
import io
import os
import pickle
import struct
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from core.errors import ModelError
from core.networks import checkpoints
from core.networks.checkpoints import read_header, read_tensors
from core.networks.recognise import SUPPORTED, recognise
from tests.unit.networks.community import CASES, random_like, shapes_of

STATE = random_like(shapes_of(CASES[7]))  # a Compact


def saved(tree: Any, path: Path, **how: Any) -> Path:
    torch.save(tree, path, **how)
    return path


def refused(path: Path, *words: str) -> str:
    """The one line that both readers refuse a file with."""
    for read in (read_header, read_tensors):
        with pytest.raises(ModelError) as caught:
            read(path)
        text = str(caught.value)
        assert "\n" not in text
        assert all(word in text for word in words), text
    return text


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"params": {"wrong": torch.zeros(1)}, "params_ema": state},
        lambda state: {"state_dict": state, "epoch": 3, "lr": 1e-4, "names": ["a", None, True]},
        lambda state: {"model": {f"module.{name}": value for name, value in state.items()}},
        lambda state: {f"netG.{name}": torch.nn.Parameter(value) for name, value in state.items()},
        lambda state: {name: value.half() for name, value in state.items()},
        lambda state: {name: value.bfloat16() for name, value in state.items()},
    ],
    ids=["plain", "ema", "training", "parallel", "parameters", "fp16", "bf16"],
)
def test_wrappers_and_formats(wrap: Any, legacy: bool, tmp_path: Path) -> None:
    path = saved(wrap(dict(STATE)), tmp_path / "model.pth", _use_new_zipfile_serialization=not legacy)
    header = read_header(path)
    assert header.shapes == {name: tuple(value.shape) for name, value in STATE.items()}
    tensors = read_tensors(path)
    assert set(tensors) == set(STATE)
    for name, value in tensors.items():
        assert value.dtype == torch.float32
        assert not value.requires_grad
        assert torch.allclose(value, STATE[name], rtol=1e-2, atol=1e-2)


def test_safetensors_and_its_licence(tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "model.safetensors", {"modelspec.license": "CC-BY-NC-SA-4.0"})
    header = read_header(tmp_path / "model.safetensors")
    assert header.licence == "CC-BY-NC-SA-4.0"
    assert header.shapes == {name: tuple(value.shape) for name, value in STATE.items()}
    assert all(torch.equal(value, STATE[name]) for name, value in read_tensors(tmp_path / "model.safetensors").items())


class Evil:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_code_is_not_run(legacy: bool, tmp_path: Path) -> None:
    trace = tmp_path / "it ran"
    path = saved({"params": STATE, "x": Evil(trace)}, tmp_path / "evil.pth", _use_new_zipfile_serialization=not legacy)
    refused(path, "needs code", "system", "state_dict")
    assert not trace.exists()


def test_a_whole_module_is_refused(tmp_path: Path) -> None:
    refused(saved(torch.nn.Conv2d(1, 1, 1), tmp_path / "module.pth"), "needs code", "Conv2d")


def test_torchscript_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "script.pt", "w") as archive:
        archive.writestr("script/data.pkl", b"\x80\x02}.")
        archive.writestr("script/code/__torch__.py", "import os")
    refused(tmp_path / "script.pt", "TorchScript")


def repacked(path: Path, target: Path, change: Any = None, **how: Any) -> Path:
    """The members of a .pth in another zip file."""
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(target, "w", **how) as archive:
        for name in source.namelist():
            data = source.read(name)
            archive.writestr(name, change(name, data) if change else data)
    return target


def test_bombs(tmp_path: Path) -> None:
    good = saved({"body.0.weight": torch.zeros(1 << 22)}, tmp_path / "good.pth")
    packed = repacked(good, tmp_path / "packed.pth", compression=zipfile.ZIP_DEFLATED)
    assert packed.stat().st_size < good.stat().st_size / 100
    refused(packed, "unpacks to more")
    # One number that claims to be many, in both formats.
    for legacy in (False, True):
        path = tmp_path / "wide.pth"
        many = torch.zeros(1).expand(1 << 20, 1 << 20)
        saved({"body.0.weight": many}, path, _use_new_zipfile_serialization=not legacy)
        refused(path, "larger than its data")
    # A storage that claims more than the file has.
    short = repacked(good, tmp_path / "short.pth", lambda name, data: data[:100] if "/data/" in name else data)
    refused(short, "missing")


def test_a_file_larger_than_any_model(tmp_path: Path) -> None:
    path = tmp_path / "large.pth"
    with path.open("wb") as file:
        file.truncate(2 << 30)  # takes no room on the disk
    refused(path, "2,048 MiB", "512 MiB", "weights")


@pytest.mark.parametrize("ending", ["pth", "safetensors"])
def test_damaged_files(ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"model.{ending}"
    save_file(STATE, path) if ending == "safetensors" else saved(STATE, path)
    data = path.read_bytes()
    for broken in (b"", b"\0", b"PK\3\4", b"\x80\x02.", b"hello", data[:1000], data[:-1000], b"<!DOCTYPE html>" + data):
        path.write_bytes(broken)
        refused(path)
    refused(tmp_path / f"nothing.{ending}", "cannot be read")


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_any_damage_is_a_clear_error_or_none(data: st.DataObject) -> None:
    buffer = io.BytesIO()
    legacy = data.draw(st.booleans())
    torch.save({"a": torch.zeros(2, 3), "b": torch.ones(4)}, buffer, _use_new_zipfile_serialization=not legacy)
    content = bytearray(buffer.getvalue())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = Path(os.environ["XDG_CACHE_HOME"]) / "damaged.pth"
    path.write_bytes(content)
    with suppress(ModelError):  # all that may happen
        read_header(path)


def test_a_pickle_cannot_make_the_reader_take_much_memory(tmp_path: Path) -> None:
    """LONG_BINPUT with a large index: CPython's reader in C makes a table of that many entries."""
    bomb = b"\x80\x02N" + b"r" + struct.pack("<I", (1 << 32) - 1) + b"."
    with zipfile.ZipFile(tmp_path / "memo.pth", "w") as archive:
        archive.writestr("memo/data.pkl", bomb)
    with pytest.raises(ModelError, match="no weights"):
        read_header(tmp_path / "memo.pth")


def test_other_pickles(tmp_path: Path) -> None:
    for tree in (STATE["body.0.bias"], [1, 2], {"epoch": 1}, collections.OrderedDict()):
        refused(saved(tree, tmp_path / "tree.pth"), "no weights")
    (tmp_path / "plain.pth").write_bytes(pickle.dumps({"body.0.weight": [1.0]}))
    refused(tmp_path / "plain.pth", "not one that PyTorch made")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_network_is_recognised(case: Any) -> None:
    config = recognise(shapes_of(case))
    assert {"ESRGAN": "RRDBNet", "Compact": "SRVGG", "SPAN": "SPAN"}[case.architecture] in type(config).__name__


def test_others_are_called_by_their_name() -> None:
    for name, key in {
        "DAT": "layers.0.blocks.0.attn.dwconv.0.weight",
        "HAT": "layers.0.residual_group.overlap_attn.qkv.weight",
        "SwinIR": "layers.0.residual_group.blocks.0.attn.relative_position_bias_table",
        "OmniSR": "residual_layer.0.residual_layer.0.layer.0.fn.0.weight",
        "RealPLKSR": "feats.1.lk.conv.weight",
        "Real-CUGAN": "unet1.conv1.conv.0.weight",
    }.items():
        with pytest.raises(ModelError) as caught:
            recognise({"conv_first.weight": (64, 3, 3, 3), key: (1,)})
        assert str(caught.value) == f"this is a {name} network; supported are {SUPPORTED}"
    with pytest.raises(ModelError, match=r"not a network that is known here.*'a\.b'"):
        recognise({"a.b": (1,)})


@pytest.mark.parametrize("channels", [1, 4])
def test_networks_for_other_channels(channels: int) -> None:
    changed = {
        7: {"body.0.weight": (12, channels, 3, 3)},
        0: {"model.0.weight": (8, channels, 3, 3)},
        9: {"conv_1.sk.weight": (12, channels, 1, 1)},
    }
    for index, change in changed.items():
        with pytest.raises(ModelError, match=rf"from {channels} .*RGB"):
            recognise(shapes_of(CASES[index]) | change)


def test_a_file_from_a_network_cut_short() -> None:
    shapes = shapes_of(CASES[0])
    for name in [name for name in shapes if name.startswith("model.0.")]:
        del shapes[name]
    with pytest.raises(ModelError, match="incomplete"):
        recognise(shapes)


def test_the_limit_is_not_far_from_real_models() -> None:
    esrgan = sum(torch.Size(shape).numel() for shape in shapes_of(CASES[0]).values())
    assert esrgan * 4 < checkpoints.MAX_BYTES
    assert isinstance(STATE["body.0.weight"], Tensor)
