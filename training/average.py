"""Average the weights of two models trained from one start: python -m training.average ONE OTHER --share 0.4 --to DIR

The average is often better than both (model soups: Wortsman et al. 2022, arXiv:2203.05482).
"""

from __future__ import annotations

import argparse
from pathlib import Path

from safetensors.torch import load_file, save_file


def average(one: Path, other: Path, share: float, to: Path) -> None:
    """Write a model directory whose weights are (1 - share) of one's and share of the other's."""
    weights, others = load_file(one / "model.safetensors"), load_file(other / "model.safetensors")
    mixed = {name: value.float().lerp(others[name].float(), share).half() for name, value in weights.items()}
    to.mkdir(parents=True, exist_ok=True)
    (to / "config.json").write_bytes((one / "config.json").read_bytes())
    save_file(mixed, to / "model.safetensors")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Average the weights of two models.")
    parser.add_argument("one", type=Path)
    parser.add_argument("other", type=Path)
    parser.add_argument("--share", type=float, default=0.5, help="of the other")
    parser.add_argument("--to", type=Path, required=True)
    arguments = parser.parse_args()
    average(arguments.one, arguments.other, arguments.share, arguments.to)


if __name__ == "__main__":
    main()
