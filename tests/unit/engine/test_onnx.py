"""The exported files of the embedded models: what they say is what PyTorch says, and damage is seen."""

from __future__ import annotations

import concurrent.futures
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from core import models
from core.engine import onnx
from core.engine.pytorch import build
from core.errors import ModelError
from core.networks.compact import Compact
from core.networks.compact_config import CompactConfig
from training.onnx_file import write_onnx

EMBEDDED = sorted(name for name, spec in models.MODELS.items() if spec.kind == "compact")
DTYPES = ["float32", "bfloat16"]


def file_of(name: str) -> Path:
    return Path(models.MODELS[name].source) / models.ONNX_FILE


def photo(height: int, width: int) -> NDArray[np.float32]:
    pixels = np.asarray(Image.open("samples/astronaut.jpg").convert("RGB"), np.float32)[:height, :width] / 255
    return np.ascontiguousarray(pixels.transpose(2, 0, 1)[None])


def agreement(one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    """In dB, for values in [0, 1]."""
    return 10 * math.log10(1 / max(1e-30, float(np.square(one.astype(np.float64) - other).mean())))


@pytest.mark.parametrize("name", EMBEDDED)
def test_the_file_is_the_network(name: str) -> None:
    spec = models.MODELS[name]
    net, x = build(spec, models.fetch(spec)), photo(61, 90)
    with torch.no_grad():
        expected = net(torch.from_numpy(x)).numpy()
    made = onnx.open_network(file_of(name), spec.scale, "float32", 1)(x)
    assert agreement(made, expected) >= 120
    assert file_of(name).stat().st_size < 1.1 * (file_of(name).parent / "model.safetensors").stat().st_size


def test_bf16_is_near() -> None:
    pytest.importorskip("openvino", reason="bf16 on a CPU needs OpenVINO, which is not installed")
    exact, coarse = (onnx.open_network(file_of("compact-x2"), 2, dtype, 1)(photo(61, 90)) for dtype in DTYPES)
    assert agreement(exact, coarse) >= 50


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("layer", ["head", "tail"])
def test_weights_that_are_not_finite_are_seen(dtype: str, bad: float, layer: str, tmp_path: Path) -> None:
    """Minima and maxima of some runtimes make a number of NaN."""
    if dtype == "bfloat16":
        pytest.importorskip("openvino", reason="bf16 on a CPU needs OpenVINO, which is not installed")
    net = Compact(CompactConfig(scale=2, width=8, blocks=2)).requires_grad_(False)
    net.get_submodule(layer).get_parameter("bias")[0] = bad
    write_onnx(net, tmp_path / models.ONNX_FILE)
    with pytest.raises(ModelError, match="NaN or infinity"):
        onnx.open_network(tmp_path / models.ONNX_FILE, 2, dtype, 1)


def test_damage_is_an_error_in_one_line(tmp_path: Path) -> None:
    file = tmp_path / models.ONNX_FILE
    file.write_bytes(file_of("compact-x2").read_bytes()[:1000])
    for dtype in DTYPES:
        with pytest.raises(ModelError, match=r"^[^\n]*is damaged[^\n]*$"):
            onnx.open_network(file, 2, dtype, 1)
    with pytest.raises(ModelError, match=r"does not fit its config\.json"):
        onnx.open_network(file_of("compact-x3"), 2, "float32", 1)


@pytest.mark.parametrize("dtype", DTYPES)
def test_threads_do_not_disturb_each_other(dtype: str) -> None:
    if dtype == "bfloat16":
        pytest.importorskip("openvino", reason="bf16 on a CPU needs OpenVINO, which is not installed")
    net = onnx.open_network(file_of("compact-x2"), 2, dtype, 2)
    pictures = [photo(48 + side, 60) for side in range(8)]
    expected = [net(x) for x in pictures]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:  # more than there are requests
        made = list(pool.map(net, pictures))
    assert all(np.array_equal(one, other) for one, other in zip(made, expected, strict=True))
