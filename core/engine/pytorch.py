"""Networks in PyTorch: those that no exported file stands for, and all of them on a card."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from core import models
from core.engine import allocator, batches
from core.engine.processors import granted_threads
from core.errors import ModelError
from core.models import ModelSpec
from core.networks import checkpoints, onednn, swin2sr_openvino
from core.networks.compact_config import CompactConfig
from core.networks.swin2sr import Swin2SR


def has_card() -> bool:
    """Whether there is a usable CUDA card."""
    return torch.cuda.is_available()


def multiplies_bf16(device: str) -> bool:
    """Whether a device, "cpu" or "cuda", multiplies bf16 natively."""
    return torch.cuda.is_bf16_supported(including_emulation=False) if device == "cuda" else onednn.multiplies_bf16()


class TorchNetwork:
    """A module as a function of arrays.

    Args:
        module: (n, 3, h, w) to (n, 3, scale * h, scale * w), both fp32 whatever the type of its weights, in evaluation
            mode.
        device: where it is: "cpu" or "cuda".
    """

    def __init__(self, module: nn.Module, device: str) -> None:
        self.module, self.device = module, torch.device(device)

    def __call__(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """(1, 3, h, w) in [0, 1] to (1, 3, scale * h, scale * w), not clipped."""
        with torch.inference_mode():
            last = torch.from_numpy(x).to(self.device, memory_format=torch.channels_last)
            made: NDArray[np.float32] = self.module(last).float().cpu().numpy()
            return made

    def passes(self, x: Tensor, count: int) -> Tensor:
        """(n, 3, h, w) on the device -> (n, 3, scale ** count * h, scale ** count * w)."""
        for index in range(count):
            # Clipping would make white of infinity: taking x from itself makes NaN of it, and 0 of all else.
            x = self.module(x if index == 0 else (x + (x - x)).clamp(0, 1))
        return x


def open_network(spec: ModelSpec, source: Path, device: str, dtype: str) -> TorchNetwork:
    """Load a model to where it will run.

    Args:
        spec: of the model, for messages.
        source: from `core.models.fetch`.
        device: "cpu" or "cuda".
        dtype: "float32", "bfloat16" or "float16".

    Returns:
        The network.

    Raises:
        ModelError: the configuration or the weights are damaged, or do not belong together.
    """
    allocator.keep_freed()
    net = build(spec, source)
    if device == "cuda":
        batches.full_precision()
    else:
        torch.set_num_threads(min(torch.get_num_threads(), granted_threads()))
        if isinstance(net, Swin2SR) and swin2sr_openvino.is_installed():
            net.use_openvino(dtype, torch.get_num_threads())
    return TorchNetwork(net.to(device=device, dtype=getattr(torch, dtype)), device)


def build(spec: ModelSpec, source: Path) -> nn.Module:
    """Make the network of a model.

    Args:
        spec: of the model, for messages.
        source: a directory with config.json and weights, or a file of weights, from `core.models.fetch`.

    Returns:
        The network in evaluation mode, in fp32 on the CPU, without gradients, channels_last.

    Raises:
        ModelError: the configuration or the weights are damaged, or do not belong together.
    """
    net: nn.Module
    if source.is_file():
        from core.networks import community

        state = checkpoints.read_tensors(source)
        net = community.build(state)
        return _finished(spec, net, state)
    config = models.read_config(source)
    file = next(source / name for name in models.WEIGHT_FILES if (source / name).is_file())
    state = checkpoints.read_tensors(file)
    if isinstance(config, CompactConfig):
        from core.networks.compact import Compact

        net = Compact(config)
        try:
            net.load_state_dict(state)
        except RuntimeError as error:
            raise ModelError(f"the weights in {source} do not fit its config.json") from error
    else:
        net = swin = Swin2SR(config)
        swin.load(state)
    return _finished(spec, net, state)


def _finished(spec: ModelSpec, net: nn.Module, state: dict[str, Tensor]) -> nn.Module:
    """The network ready for inference, if its weights are numbers."""
    if not all(bool(value.isfinite().all()) for value in state.values() if value.is_floating_point()):
        raise ModelError(f"the weights of {spec.name} hold NaN or infinity: the file is damaged")
    return net.eval().requires_grad_(False).to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]
