"""The numbers of a compact network, readable without torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from core.errors import ModelError


@dataclass(frozen=True)
class CompactConfig:
    """What `config.json` says of a compact network.

    Attributes:
        scale: factor of the pixel shuffle.
        width: channels of every hidden layer.
        blocks: residual blocks of two 3x3 convolutions each.
    """

    scale: int = 2
    width: int = 64
    blocks: int = 9

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> CompactConfig:
        """Read a parsed `config.json`.

        Args:
            raw: the parsed JSON; other keys are ignored.

        Returns:
            The configuration.

        Raises:
            ModelError: a value is missing or out of range.
        """
        try:
            config = cls(scale=int(raw["scale"]), width=int(raw["width"]), blocks=int(raw["blocks"]))
        except (KeyError, TypeError, ValueError) as error:
            raise ModelError(f"config.json of a compact network needs scale, width and blocks: {error}") from error
        if not (2 <= config.scale <= 4 and 1 <= config.width <= 512 and 1 <= config.blocks <= 64):
            raise ModelError(f"config.json of a compact network is out of range: {config}")
        return config

    @property
    def receptive_field(self) -> int:
        """Input pixels on each side that one output pixel can depend on: one for each 3x3 convolution in a row."""
        return 2 * self.blocks + 3

    @property
    def operations_per_pixel(self) -> float:
        """Floating-point operations for one input pixel; a multiply-add counts two."""
        out = 3 * self.scale**2
        hidden = (2 * self.blocks + 1) * self.width * self.width * 9
        return 2.0 * (3 * self.width * 9 + hidden + self.width * out * 9 + 3 * out * 25)
