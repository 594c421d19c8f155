"""Small networks of those that people share, with weights from a seed; and spandrel's results with the same.

    python -m tests.unit.networks.community      # makes golden/spandrel.npz anew

It needs `pip install --no-deps spandrel einops`. spandrel asks for torchvision, which does not load beside every build
of torch; nothing that is used here needs it, so its place is taken by an empty module.
"""

from __future__ import annotations

import importlib.util
import sys
import types
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from core.networks.recognise import recognise
from core.networks.rrdbnet import RRDBNet
from core.networks.rrdbnet_config import RRDBNetConfig
from core.networks.span import SPAN
from core.networks.span_config import SPANConfig
from core.networks.srvgg import SRVGGNetCompact

GOLDEN = Path(__file__).parent / "golden" / "spandrel.npz"


@dataclass(frozen=True)
class Case:
    """One network: spandrel's architecture and what it is called with, and what is recognised in its weights."""

    name: str
    architecture: str
    arguments: dict[str, Any]
    scale: int
    window: int = 1


CASES = (
    Case("esrgan-x4", "ESRGAN", {"num_filters": 8, "num_blocks": 2}, 4),
    Case("esrgan-x2", "ESRGAN", {"num_filters": 8, "num_blocks": 1, "scale": 2}, 2),
    Case("esrgan-x1", "ESRGAN", {"num_filters": 8, "num_blocks": 1, "scale": 1}, 1),
    Case("esrgan-x8", "ESRGAN", {"num_filters": 8, "num_blocks": 1, "scale": 8}, 8),
    Case("esrgan-plus", "ESRGAN", {"num_filters": 8, "num_blocks": 1, "plus": True}, 4),
    Case("real-esrgan-x2", "ESRGAN", {"num_filters": 8, "num_blocks": 1, "in_nc": 12, "shuffle_factor": 2}, 2, 2),
    Case("real-esrgan-x1", "ESRGAN", {"num_filters": 8, "num_blocks": 1, "in_nc": 48, "shuffle_factor": 4}, 1, 4),
    Case("compact-x4", "Compact", {"num_feat": 12, "num_conv": 4, "upscale": 4}, 4),
    Case("compact-x1", "Compact", {"num_feat": 8, "num_conv": 3, "upscale": 1}, 1),
    Case("span-x4", "SPAN", {"feature_channels": 12, "upscale": 4}, 4),
    Case("span-x2-no-norm", "SPAN", {"feature_channels": 8, "upscale": 2, "norm": False}, 2),
)


def random_like(shapes: dict[str, tuple[int, ...]], seed: int = 0) -> dict[str, Tensor]:
    """Weights that keep what goes through them about as large as it is, from a generator that never changes."""
    numbers = np.random.RandomState(seed)
    state = {}
    for name in sorted(shapes):
        shape = shapes[name]
        values = numbers.standard_normal(shape) / (np.prod(shape[1:]) ** 0.5 if len(shape) > 1 else 5)
        state[name] = torch.from_numpy(np.asarray(values * (0 if name == "no_norm" else 1), np.float32))
    return state


def picture(height: int = 8, width: int = 12, seed: int = 1) -> Tensor:
    """(1, 3, height, width) in [0, 1]."""
    return torch.from_numpy(np.random.RandomState(seed).uniform(size=(1, 3, height, width)).astype(np.float32))


def build(state: dict[str, Tensor]) -> nn.Module:
    """Our network for a checkpoint's tensors."""
    config = recognise({name: tuple(value.shape) for name, value in state.items()})
    net: RRDBNet | SPAN | SRVGGNetCompact
    if isinstance(config, RRDBNetConfig):
        net = RRDBNet(config)
        state = net.state_from(state)
    elif isinstance(config, SPANConfig):
        net = SPAN(config)
        state = net.state_from(state)
    else:
        net = SRVGGNetCompact(config)
    net.load_state_dict(state)
    return net.eval()


def shapes_of(case: Case) -> dict[str, tuple[int, ...]]:
    """Names and shapes of spandrel's network, as kept beside its results."""
    with np.load(GOLDEN) as kept:
        return {str(line).split()[0]: tuple(map(int, str(line).split()[1:])) for line in kept[f"{case.name} shapes"]}


def has_spandrel() -> bool:
    return importlib.util.find_spec("spandrel") is not None


def spandrel_network(case: Case) -> nn.Module:
    """Spandrel's network, with its own random weights."""
    for name in ("torchvision", "torchvision.transforms", "torchvision.transforms.functional"):
        if name not in sys.modules:
            stub = types.ModuleType(name)
            stub.InterpolationMode = stub.rotate = stub.normalize = None  # type: ignore[attr-defined]
            sys.modules[name] = stub
    module = importlib.import_module(f"spandrel.architectures.{case.architecture}")
    channels = {"num_in_ch": 3, "num_out_ch": 3} if case.architecture == "SPAN" else {}
    net = getattr(module, case.architecture)(**channels, **case.arguments).eval()
    assert isinstance(net, nn.Module)
    return net


def spandrel_result(net: nn.Module, seed: int = 0) -> Tensor:
    """Of our weights and picture."""
    net.load_state_dict(random_like({name: tuple(value.shape) for name, value in net.state_dict().items()}, seed))
    with torch.inference_mode():
        result = net(picture())
    assert isinstance(result, Tensor)
    return result


def main() -> None:
    kept = {}
    for case in CASES:
        net = spandrel_network(case)
        lines = [" ".join([name, *map(str, value.shape)]) for name, value in net.state_dict().items()]
        kept[f"{case.name} shapes"] = np.array(lines)
        kept[f"{case.name} result"] = spandrel_result(net).numpy()
    GOLDEN.parent.mkdir(exist_ok=True)
    np.savez_compressed(GOLDEN, **kept)  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
