"""Networks to begin with, to keep, and to average: python -m training.weights ONE OTHER --share 0.4 --to DIRECTORY

The average of two models that were trained from one start is often better than both (model soups: Wortsman et al.
2022, arXiv:2203.05482), and what training changed in one model may be added to its sister (task arithmetic: Ilharco et
al. 2022, arXiv:2212.04089), with --before, the weights that OTHER began from.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from core.networks.compact import Compact
from core.networks.compact_config import CompactConfig
from training.onnx_file import export_directory


def start_as_bicubic(net: Compact) -> None:
    """Make the untrained network a bicubic interpolation: the skip does it, the rest adds little."""
    scale = net.config.scale

    def taps(phase: int) -> Tensor:
        offset = (phase + 0.5) / scale - 0.5
        distance = (torch.arange(-2, 3) - offset).abs()  # (5,)
        near = 1.5 * distance**3 - 2.5 * distance**2 + 1
        far = -0.5 * distance**3 + 2.5 * distance**2 - 4 * distance + 2
        weights = torch.where(distance <= 1, near, torch.where(distance < 2, far, torch.zeros(5)))
        return torch.Tensor(weights / weights.sum())

    with torch.no_grad():
        net.skip.weight.zero_()
        nn.init.zeros_(net.skip.bias)  # type: ignore[arg-type]
        for colour in range(3):
            for row in range(scale):
                for column in range(scale):
                    out = colour * scale**2 + row * scale + column
                    net.skip.weight[out, colour] = taps(row)[:, None] * taps(column)[None, :]
        net.tail.weight.mul_(0.1)
        nn.init.zeros_(net.tail.bias)  # type: ignore[arg-type]
        for layer in net.body[1::2]:
            layer.weight.mul_(0.1)  # type: ignore[operator]  # residual blocks begin as little more than the identity


def build(config: CompactConfig, start: Path | None, device: torch.device) -> Compact:
    """A network to train: new, or with the weights of a model directory, of which the ends fit only the same scale."""
    net = Compact(config)
    start_as_bicubic(net)
    if start:
        weights, own = load_file(start / "model.safetensors"), net.state_dict()
        net.load_state_dict(
            {
                name: weights[name].float() if weights[name].shape == value.shape else value
                for name, value in own.items()
            }
        )
    return net.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def export(net: Compact, directory: Path) -> None:
    """Write config.json and model.safetensors (fp16), as hub checkpoints are laid out, and model.onnx, for CPUs."""
    directory.mkdir(parents=True, exist_ok=True)
    config = {"model_type": "compact", **asdict(net.config)}
    (directory / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    state = {name: value.half().contiguous() for name, value in net.state_dict().items()}
    save_file(state, directory / "model.safetensors")
    export_directory(directory)


def average(one: Path, other: Path, share: float, to: Path, before: Path | None = None) -> None:
    """Write a model directory of one's weights and a share of other's.

    Args:
        one: model directory.
        other: model directory.
        share: of other; the rest is of one. With `before`, the share of other's change that is added to one.
        to: where config.json, which is one's, and model.safetensors go.
        before: model directory that other began from. Weights that one has in another shape stay one's.
    """
    weights, others = load_file(one / "model.safetensors"), load_file(other / "model.safetensors")
    origin = load_file(before / "model.safetensors") if before else weights
    mixed = {
        name: (value.float() + share * (others[name].float() - origin[name].float())).half()
        if others[name].shape == value.shape
        else value
        for name, value in weights.items()
    }
    to.mkdir(parents=True, exist_ok=True)
    (to / "config.json").write_bytes((one / "config.json").read_bytes())
    save_file(mixed, to / "model.safetensors")
    export_directory(to)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Average the weights of two models.")
    parser.add_argument("one", type=Path)
    parser.add_argument("other", type=Path)
    parser.add_argument("--share", type=float, default=0.5, help="of the other")
    parser.add_argument("--before", type=Path, help="what the other began from: add its change instead")
    parser.add_argument("--to", type=Path, required=True)
    arguments = parser.parse_args()
    average(arguments.one, arguments.other, arguments.share, arguments.to, arguments.before)


if __name__ == "__main__":
    main()
