"""The numbers of an RRDBNet, read from the names and shapes of its weights; no torch."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from core.errors import ModelError

#: Names that other programs gave to the layers of Real-ESRGAN's network: ESRGAN's first ones, then BSRGAN's.
_NAMES = (
    (r"model\.0\.(\w+)", r"conv_first.\1"),
    (r"model\.1\.sub\.(\d+)\.RDB(\d)\.(conv\d)\.0\.(\w+)", r"body.\1.rdb\2.\3.\4"),
    (r"model\.1\.sub\.(\d+)\.RDB(\d)\.conv1x1\.(\w+)", r"body.\1.rdb\2.conv1x1.\3"),
    (r"model\.1\.sub\.\d+\.(weight|bias)", r"conv_body.\1"),
    (r"RRDB_trunk\.(\d+)\.RDB(\d)\.(conv\d)\.(\w+)", r"body.\1.rdb\2.\3.\4"),
    (r"trunk_conv\.(\w+)", r"conv_body.\1"),
    (r"upconv(\d)\.(\w+)", r"conv_up\1.\2"),
    (r"HRconv\.(\w+)", r"conv_hr.\1"),
)
#: Each kind of file has one of these.
_MARKS = ("body.0.rdb1.conv1.weight", "model.1.sub.0.RDB1.conv1.0.weight", "RRDB_trunk.0.RDB1.conv1.weight")


@dataclass(frozen=True)
class RRDBNetConfig:
    """An RRDBNet.

    Attributes:
        width: channels between the blocks.
        growth: channels that each convolution of a dense block adds.
        blocks: residual-in-residual blocks of three dense blocks each.
        doublings: times that the picture's sides are doubled, by nearest neighbours and a convolution.
        unshuffle: pixels of a side that become channels first (Real-ESRGAN's x2 has 2, its x1 has 4).
        plus: with the 1x1 convolutions of ESRGAN+ (Rakotonirina and Rasoanaivo 2020, arXiv:2001.08073).
    """

    width: int
    growth: int
    blocks: int
    doublings: int
    unshuffle: int = 1
    plus: bool = False

    @classmethod
    def from_shapes(cls, shapes: Mapping[str, tuple[int, ...]]) -> RRDBNetConfig | None:
        """From a checkpoint's names and shapes; None when it is another network.

        Raises:
            ModelError: an RRDBNet, but not one that runs here.
        """
        if not any(name in shapes for name in _MARKS):
            return None
        ours = {new: shapes[old] for old, new in rename(shapes).items()}
        try:
            width, inputs = ours["conv_first.weight"][:2]
            outputs = ours["conv_last.weight"][0]
            growth = ours["body.0.rdb1.conv1.weight"][0]
        except (KeyError, ValueError, IndexError) as error:
            raise ModelError(f"an ESRGAN network (RRDBNet) without {error}: the file is incomplete") from error
        unshuffle = math.isqrt(inputs // 3)
        if outputs != 3 or unshuffle not in (1, 2, 4) or inputs != 3 * unshuffle**2:
            raise ModelError(
                f"an ESRGAN network from {inputs} to {outputs} channels: only those from RGB to RGB run here "
                "(3, or 12 and 48 where pixels become channels)"
            )
        config = cls(
            width=width,
            growth=growth,
            blocks=1 + _last(ours, r"body\.(\d+)\."),
            doublings=_last(ours, r"conv_up(\d+)\."),
            unshuffle=unshuffle,
            plus="body.0.rdb1.conv1x1.weight" in ours,
        )
        if config.doublings > 3 or 2**config.doublings < unshuffle:
            raise ModelError(f"an ESRGAN network with {config.doublings} doublings after a reduction by {unshuffle}")
        return config

    @property
    def scale(self) -> int:
        """Output pixels for each input pixel along a side."""
        return int(2**self.doublings) // self.unshuffle

    @property
    def window(self) -> int:
        """Both sides of the input must be multiples of this; tiles must start at multiples of it."""
        return self.unshuffle

    @property
    def receptive_field(self) -> int:
        """Input pixels on each side that the output of one input pixel can depend on.

        Found by walking back from a pixel's output to the interval of inputs that reaches it, along one side.
        """
        return max(max(p - low, high - p) for p in range(self.unshuffle) for low, high in [self._support(p)])

    def _support(self, pixel: int) -> tuple[int, int]:
        low, high = self.scale * pixel - 2, self.scale * (pixel + 1) - 1 + 2  # the last two convolutions
        for _ in range(self.doublings):
            low, high = (low - 1) // 2, (high + 1) // 2
        reach = 15 * self.blocks + 2
        return (low - reach) * self.unshuffle, (high + reach + 1) * self.unshuffle - 1

    @property
    def operations_per_pixel(self) -> float:
        """Floating-point operations of the convolutions for one input pixel; a multiply-add counts two."""
        width, growth = self.width, self.growth
        dense = sum(9 * (width + i * growth) * growth for i in range(4)) + 9 * (width + 4 * growth) * width
        body = self.blocks * 3 * (dense + self.plus * width * growth) + 9 * width**2 + 27 * self.unshuffle**2 * width
        ups = sum(9 * width**2 * int(4**i) for i in range(1, self.doublings + 1))
        last = (9 * width**2 + 27 * width) * int(4**self.doublings)
        return 2.0 * (body + ups + last) / self.unshuffle**2


def rename(names: Iterable[str]) -> dict[str, str]:
    """Names in a checkpoint, by whichever program, to those of Real-ESRGAN; unknown ones stay as they are."""
    found = {}
    for name in names:
        match, ours = next(((m, new) for old, new in _NAMES if (m := re.fullmatch(old, name))), (None, ""))
        found[name] = match.expand(ours) if match else name
    # After the body, ESRGAN numbers layers together with those that have no weights: only their order tells.
    numbers = sorted({int(match[1]) for name in found if (match := re.fullmatch(r"model\.(\d+)\.weight", name))} - {0})
    roles = [f"conv_up{i + 1}" for i in range(len(numbers) - 2)] + ["conv_hr", "conv_last"]
    for number, role in zip(numbers, roles, strict=False):
        for kind in ("weight", "bias"):
            if f"model.{number}.{kind}" in found:
                found[f"model.{number}.{kind}"] = f"{role}.{kind}"
    return found


def _last(names: Iterable[str], pattern: str) -> int:
    """The largest number in names that begin as the pattern; 0 when there is none."""
    return max((int(match[1]) for name in names if (match := re.match(pattern, name))), default=0)
