"""One warm model, the choice of device and dtype, and the fallback chain."""

from __future__ import annotations

import concurrent.futures
import io
import json
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

import core
from core import models
from core.engine import load
from core.engine.onnx import Network
from core.engine.pytorch import TorchNetwork
from core.networks import swin2sr_openvino
from core.pixels.resize import Rows
from tests.unit.engine.small import CPU, SMALL_SWIN2SR, noise, upscaled


def test_concurrent_calls_load_once_and_agree() -> None:
    pixels = noise(60, 60)

    def call(_: int) -> tuple[float, Rows]:
        model, seconds = load.load("compact-x2", CPU, "float32")
        return seconds, upscaled(model, pixels, 32)

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        results = list(pool.map(call, range(8)))
    assert sum(seconds > 0 for seconds, _ in results) == 1
    assert all(np.array_equal(results[0][1], made) for _, made in results)


def test_fp16_is_never_chosen() -> None:
    for spec in models.MODELS.values():
        assert load.pick_dtype(spec, CPU) in ("float32", "bfloat16")


def test_a_card_that_is_full_leaves_the_work_to_the_cpu_until_it_has_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """No card is here: what loads on one is a stand-in, and so is what it raises."""
    opened, full = load.open_network, [True]

    def on_a_card(spec: models.ModelSpec, device: str, dtype: str) -> Network:
        if device == "cuda" and full[0]:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 MiB")
        return opened(spec, CPU, dtype)

    monkeypatch.setattr(load, "_warm", {})
    monkeypatch.setattr(load, "open_network", on_a_card)
    model, _ = load.load("compact-x2", "cuda", "float32")
    assert (model.device, model.at_once) == ("cpu", 1)
    assert model.notes == ["out of memory on the GPU with the weights, went on on the CPU"]
    full[0] = False
    again, seconds = load.load("compact-x2", "cuda", "float32")
    assert again.device == "cuda"
    assert seconds > 0
    again.side = 96
    warm, seconds = load.load("compact-x2", "cuda", "float32")
    assert (warm, seconds, warm.side) == (again, 0.0, load.Model.side)
    again.device = "cpu"  # a tile did not fit
    assert load.load("compact-x2", "cuda", "float32")[0].device == "cuda"


def small_photo() -> bytes:
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
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    state = load_file(small_swin2sr / "model.safetensors")
    next(iter(state.values())).view(-1)[0] = float("nan")
    save_file(state, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(SMALL_SWIN2SR))
    result = core.upscale(small_photo(), core.Options(model=str(tmp_path)))
    assert result.degraded
    assert "NaN" in result.reason


@pytest.mark.parametrize("name", ["somebody/model", "somebody/model/4x.pth"])
def test_a_hub_that_does_not_answer_steps_down(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A real socket that accepts connections and then says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.setattr("core.hub.HUB_SECONDS", 1)
        monkeypatch.setattr("core.models.FALLBACKS", ())
        result = core.upscale(small_photo(), core.Options(model=name))
    assert (result.model, result.degraded) == ("compact-x2", True)
    assert "did not" in result.reason
    assert "timed out" in result.reason, "the silent server was asked, and given up"


def test_with_every_network_gone_lanczos_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("core.models.fallback_chain", lambda *about: ("./gone",))
    result = core.upscale(small_photo(), core.Options(scale=1.7))
    assert (result.model, result.degraded, result.width, result.height) == ("lanczos", True, 85, 68)


def test_fp32_on_a_card_is_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nn.Module, "to", lambda self, *_, **__: self)  # there is no card to go to
    monkeypatch.setattr("core.engine.pytorch.TorchNetwork", lambda *about: about)
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    try:
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = True
        load.load("compact-x2", "cuda", "float32")
        assert (torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32) == (False, False)
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


def test_without_torch_the_chain_goes_on_and_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "has_torch", lambda: False)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    for name in ("swin2sr-lightweight-x2", "owner/of-a-hub-id"):
        result = core.upscale(small_photo(), core.Options(model=name))
        assert (result.model, result.degraded) == ("compact-x2", True)
        assert result.reason.startswith(name)
        assert result.reason.count("pip install 'serverless-upscaler[torch]'") == 1, "reported once, not for each step"
    with pytest.raises(core.OptionsError, match="no CUDA device"):
        core.upscale(small_photo(), core.Options(device="cuda"))


NOT_NEEDED = """
import io, sys
for name in ("torch", "safetensors", "huggingface_hub", "openvino", "transformers", "onnx"):
    sys.modules[name] = None
import numpy as np
from PIL import Image
import core
stream = io.BytesIO()
Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(stream, "PNG")
for options in [core.Options(scale=2), core.Options(scale=3), core.Options(scale=1.5, model="lanczos")]:
    result = core.upscale(stream.getvalue(), options)
    print(result.model, result.degraded, bool(sys.modules.get("onnxruntime")))
"""


def test_what_a_plain_install_lacks_is_not_needed() -> None:
    """In a process in which nothing of the extras can be imported."""
    done = subprocess.run([sys.executable, "-c", NOT_NEEDED], capture_output=True, text=True, timeout=300, check=True)
    assert done.stdout.splitlines() == ["compact-x2 False True", "compact-x3 False True", "lanczos False True"]


def test_lanczos_needs_no_runtime() -> None:
    code = NOT_NEEDED.replace("core.Options(scale=2), core.Options(scale=3), ", "")
    code = code.replace('"torch", ', '"torch", "onnxruntime", ')
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=True)
    assert done.stdout.splitlines() == ["lanczos False False"]


def test_swin2sr_needs_no_openvino(small_swin2sr: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The images have none, nor do ARM and macOS; where it is, it computes the attention layers, and agrees."""
    made = []
    for installed in {False, swin2sr_openvino.is_installed()}:
        monkeypatch.setattr(swin2sr_openvino, "is_installed", lambda installed=installed: installed)
        load._warm.clear()
        model, _ = load.load(str(small_swin2sr), CPU, "float32")
        assert isinstance(model.net, TorchNetwork)
        layer = model.net.module.get_submodule("stages.0.layers.0")
        assert (layer.compiled is not None) == installed
        made.append(upscaled(model, noise(40, 50), 64).astype(np.float64))
    assert float(np.square(made[0] - made[-1]).mean()) < 1e-12  # 120 dB
