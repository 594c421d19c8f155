"""Networks into memory: device and dtype, one warm model per process, and the walk down the fallback chain."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from core import models
from core.engine import allocator, batches
from core.errors import ModelError, OptionsError
from core.models import ModelSpec
from core.networks import onednn
from core.networks.compact import Compact
from core.networks.compact_config import CompactConfig

_lock = threading.Lock()
_warm: dict[tuple[str, str, torch.dtype], Model] = {}  # by name, device type and dtype


@dataclass
class Model:
    """A network in memory.

    Attributes:
        spec: its declared numbers.
        net: (1, 3, h, w) in [0, 1] to (1, 3, scale * h, scale * w), in evaluation mode.
        device: where it runs.
        dtype: what it computes in.
        side: largest side of a region, halo included, that may be tried, in pixels; lowered when one did not fit.
        notes: what had to be redone, one line each, newest last.
    """

    spec: ModelSpec
    net: nn.Module
    device: torch.device
    dtype: torch.dtype
    side: int
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Loaded:
    """The outcome of walking down the fallback chain.

    Attributes:
        model: the first that loaded, or None when only Lanczos is left.
        name: of that model, or "lanczos".
        degraded: True when it is not the one asked for.
        reason: why each earlier one failed, in one line.
        seconds: spent here; 0 when the model was warm.
    """

    model: Model | None
    name: str
    degraded: bool
    reason: str
    seconds: float


def pick_device(wish: str) -> torch.device:
    """Choose where to compute.

    Args:
        wish: "cpu", "cuda", or "auto": CUDA where there is a usable card, else the CPU.

    Returns:
        The device.

    Raises:
        OptionsError: "cuda" was asked for and there is none.
    """
    if wish == "cpu":
        return torch.device("cpu")
    if torch.cuda.is_available():
        return torch.device("cuda")
    if wish == "cuda":
        raise OptionsError("no CUDA device on this machine: use device auto or cpu")
    return torch.device("cpu")


def pick_dtype(device: torch.device) -> torch.dtype:
    """Choose what to compute in.

    Args:
        device: where.

    Returns:
        bf16 where the hardware multiplies it natively, else fp32. Never fp16: Swin2SR overflows in it.
    """
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    return torch.bfloat16 if onednn.multiplies_bf16() else torch.float32


def _read_weights(directory: Path) -> dict[str, Tensor]:
    """Read tensors by name, in fp32.

    Raises:
        ModelError: the file is damaged.
    """
    file = next(directory / name for name in models.WEIGHT_FILES if (directory / name).is_file())
    try:
        if file.suffix == ".safetensors":
            from safetensors.torch import load_file

            state = load_file(file)
        else:
            state = torch.load(file, map_location="cpu", weights_only=True)  # never runs code from the file
        return {name: value.float() if value.is_floating_point() else value for name, value in state.items()}
    except Exception as error:  # safetensors, pickle and zip each raise their own on a damaged file
        detail = str(error).strip().splitlines()
        raise ModelError(f"{file} is damaged: {detail[0] if detail else type(error).__name__}") from error


def build(spec: ModelSpec, directory: Path) -> nn.Module:
    """Make the network of a model directory.

    Args:
        spec: of the model, for messages.
        directory: with config.json and weights, from `core.models.fetch`.

    Returns:
        The network in evaluation mode, in fp32 on the CPU, without gradients, channels_last.

    Raises:
        ModelError: the configuration or the weights are damaged, or do not belong together.
    """
    config = models.read_config(directory)
    state = _read_weights(directory)
    net: nn.Module
    if isinstance(config, CompactConfig):
        net = Compact(config)
        try:
            net.load_state_dict(state)
        except RuntimeError as error:
            raise ModelError(f"the weights in {directory} do not fit its config.json") from error
    else:
        from core.networks.swin2sr import Swin2SR

        net = swin = Swin2SR(config)
        swin.load(state)
    if not all(bool(value.isfinite().all()) for value in state.values() if value.is_floating_point()):
        raise ModelError(f"the weights of {spec.name} hold NaN or infinity: the file is damaged")
    return net.eval().requires_grad_(False).to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def load(name: str, device: torch.device, dtype: torch.dtype | None = None) -> tuple[Model, float]:
    """Give a model by name. It stays in memory and is shared by concurrent calls.

    The embedded models may all stay, of the large ones only the last that was asked for.

    Args:
        name: as for `core.models.spec_of`.
        device: where it will run.
        dtype: what it will compute in; None takes `pick_dtype`.

    Returns:
        The model, and the seconds that loading took: 0 when it was there.

    Raises:
        ModelError: it cannot be found, fetched or loaded.
    """
    dtype = dtype or pick_dtype(device)
    key = (name, device.type, dtype)
    with _lock:  # a second caller waits for the first one's load and then finds it warm
        if key in _warm:
            return _warm[key], 0.0
        start = time.perf_counter()
        allocator.keep_freed()
        spec = models.spec_of(name)
        if device.type == "cuda":
            batches.full_precision()
        net = build(spec, models.fetch(spec)).to(device=device, dtype=dtype)
        model = Model(spec, net, device, dtype, 1 << 20)
        if spec.kind != "compact":  # the embedded ones are so small that they may stay side by side
            for other in [other for other, kept in _warm.items() if kept.spec.kind != "compact"]:
                del _warm[other]  # running calls keep their own reference until they end
        _warm[key] = model
        return model, time.perf_counter() - start


def load_first(chain: tuple[str, ...], device: torch.device) -> Loaded:
    """Walk down a fallback chain until a model loads.

    Args:
        chain: names, from `core.models.fallback_chain`.
        device: where the model will run.

    Returns:
        The first that loaded, with the reason of each failed step; Lanczos when nothing did.
    """
    failures: list[str] = []
    for name in chain:
        try:
            model, seconds = load(name, device)
        except ModelError as error:
            failures.append(f"{name}: {error}")
            continue
        return Loaded(model, name, bool(failures), "; ".join(failures), seconds)
    return Loaded(None, models.LANCZOS.name, True, "; ".join(failures), 0.0)
