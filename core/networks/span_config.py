"""The numbers of a SPAN, read from the names and shapes of its weights; no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from core.errors import ModelError


@dataclass(frozen=True)
class SPANConfig:
    """A SPAN.

    Attributes:
        scale: factor of the pixel shuffle; 1 restores without enlarging.
        width: channels of every hidden layer.
        blocks: attention blocks of three convolutions each; six in all that is published.
        normed: the mean colour of DIV2K is taken off the input, and the rest is multiplied by 255.
    """

    scale: int
    width: int = 48
    blocks: int = 6
    normed: bool = True

    @classmethod
    def from_shapes(cls, shapes: Mapping[str, tuple[int, ...]]) -> SPANConfig | None:
        """From a checkpoint's names and shapes; None when it is another network.

        Raises:
            ModelError: a SPAN, but not one that runs here.
        """
        if "conv_1.sk.weight" not in shapes or "block_1.c1_r.sk.weight" not in shapes:
            return None
        if "upsampler.0.weight" not in shapes or "conv_cat.weight" not in shapes:
            raise ModelError("a variant of SPAN that is not run here: only SPAN itself is, with a pixel shuffle")
        width, inputs = shapes["conv_1.sk.weight"][:2]
        outputs = shapes["upsampler.0.weight"][0]
        scale = math.isqrt(outputs // 3)
        if inputs != 3 or scale < 1 or outputs != 3 * scale**2:
            raise ModelError(
                f"a SPAN from {inputs} channels to {outputs}: only those from RGB to RGB run here "
                "(3 to 3 * scale * scale)"
            )
        blocks = max(int(name.split(".")[0].removeprefix("block_")) for name in shapes if name.startswith("block_"))
        return cls(scale=scale, width=width, blocks=blocks, normed="no_norm" not in shapes)

    @property
    def window(self) -> int:
        """Tiles may start anywhere."""
        return 1

    @property
    def receptive_field(self) -> int:
        """Input pixels on each side that one output pixel can depend on: one for each 3x3 convolution in a row."""
        return 3 * self.blocks + 3

    @property
    def operations_per_pixel(self) -> float:
        """Floating-point operations of the convolutions for one input pixel; a multiply-add counts two."""
        width = self.width
        convs = 27 * width + (3 * self.blocks + 1) * 9 * width**2 + 27 * width * self.scale**2
        return 2.0 * (convs + 4 * width**2)
