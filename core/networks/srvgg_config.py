"""The numbers of an SRVGGNetCompact, read from the names and shapes of its weights; no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from core.errors import ModelError


@dataclass(frozen=True)
class SRVGGConfig:
    """An SRVGGNetCompact.

    Attributes:
        scale: factor of the pixel shuffle; 1 restores without enlarging.
        width: channels of every hidden layer.
        convs: 3x3 convolutions between the first and the last.
    """

    scale: int
    width: int
    convs: int

    @classmethod
    def from_shapes(cls, shapes: Mapping[str, tuple[int, ...]]) -> SRVGGConfig | None:
        """From a checkpoint's names and shapes; None when it is another network.

        Raises:
            ModelError: an SRVGGNetCompact, but not one that runs here.
        """
        first, slopes = shapes.get("body.0.weight", ()), shapes.get("body.1.weight", ())
        if len(first) != 4 or len(slopes) != 1:
            return None
        last = max(int(name.split(".")[1]) for name in shapes if name.startswith("body.") and name.count(".") == 2)
        outputs = shapes.get(f"body.{last}.weight", (0,))[0]
        scale = math.isqrt(outputs // 3)
        if first[1] != 3 or scale < 1 or outputs != 3 * scale**2:
            raise ModelError(
                f"a Compact network (SRVGGNetCompact) from {first[1]} channels to {outputs}: only those from RGB to "
                "RGB run here (3 to 3 * scale * scale)"
            )
        return cls(scale=scale, width=first[0], convs=last // 2 - 1)

    @property
    def window(self) -> int:
        """Tiles may start anywhere."""
        return 1

    @property
    def receptive_field(self) -> int:
        """Input pixels on each side that one output pixel can depend on: one for each convolution."""
        return self.convs + 2

    @property
    def operations_per_pixel(self) -> float:
        """Floating-point operations of the convolutions for one input pixel; a multiply-add counts two."""
        return 18.0 * self.width * (3 + self.convs * self.width + 3 * self.scale**2)
