"""The embedded network: small, convolutional and strictly local.

Every output pixel depends on a fixed neighbourhood of the input and on nothing else (no pooling, no
statistics over the image), so tiles with a halo of `receptive_field` equal the untiled result.
The shape is that of the efficient super-resolution networks (residual 3x3 convolutions at the input
resolution, one pixel shuffle at the end: Shi et al. 2016, arXiv:1609.05158).

This is what is trained, and what runs on a card. On a CPU its exported form runs (`core.engine.onnx`).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.networks.compact_config import CompactConfig


class Compact(nn.Module):
    """RGB in [0, 1] to RGB, `scale` times as large; not clipped.

    Args:
        config: the network's numbers.
    """

    def __init__(self, config: CompactConfig) -> None:
        super().__init__()
        self.config = config
        width, out = config.width, 3 * config.scale**2
        self.head = nn.Conv2d(3, width, 3, padding=1)
        self.body = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(2 * config.blocks))
        self.fuse = nn.Conv2d(width, width, 3, padding=1)
        self.tail = nn.Conv2d(width, out, 3, padding=1)
        # The picture itself takes a short way round: a 5x5 convolution that starts as bicubic interpolation.
        self.skip = nn.Conv2d(3, out, 5, padding=2)

    def forward(self, x: Tensor) -> Tensor:
        """Upscale pictures.

        Args:
            x: (n, 3, h, w).

        Returns:
            (n, 3, scale * h, scale * w), in fp32 whatever the type of the weights: with the eight bits that bf16 has
            for a number, what is added and clamped here would be a grey level off.
        """
        x = x.float()
        shallow = self.head(x.to(self.head.weight.dtype))  # (n, width, h, w)
        deep = shallow
        for first, second in zip(self.body[::2], self.body[1::2], strict=True):
            deep = deep + second(F.silu(first(deep)))  # (n, width, h, w)
        made = self.tail(F.silu(self.fuse(deep)) + shallow).float()  # (n, 3 * scale ** 2, h, w)
        made = made + F.conv2d(x, self.skip.weight.float(), _float(self.skip.bias), padding=2)
        if not torch.is_grad_enabled():  # training sees what is beyond the limits
            made = clamp_to_local_range(made, *local_range(x))
        return F.pixel_shuffle(made, self.config.scale)


def local_range(x: Tensor) -> tuple[Tensor, Tensor]:
    """Find what results may lie between: the range of the 5x5 pixels around each, widened by its own width.

    Photos hold few strong flat colours, and a network that has not seen one may make another of it. Where the input is
    flat the result is, rounded to the same eight bits, and sharpening keeps the room that it needs.

    Args:
        x: (n, 3, h, w).

    Returns:
        The lowest and the highest value, (n, 3, h, w) each.
    """
    high = F.max_pool2d(x, 5, 1, 2)
    low = -F.max_pool2d(-x, 5, 1, 2)
    room = (high - low) + 0.49 / 255
    return low - room, high + room


def clamp_to_local_range(made: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Hold what the last layer made within the range of the input around it.

    Args:
        made: (n, 3 * scale ** 2, h, w), before the pixel shuffle.
        low: (n, 3, h, w), from `local_range`.
        high: (n, 3, h, w), from `local_range`.

    Returns:
        The same shape as `made`. NaN stays, and infinity becomes NaN: clamping would hide that it was there.
    """
    colours = zip(made.chunk(3, 1), low.chunk(3, 1), high.chunk(3, 1), strict=True)
    clamped = torch.cat([part.clamp(least, most) for part, least, most in colours], 1)
    return clamped + (made - made)  # 0, or NaN: minima and maxima of OpenVINO make a number of NaN


def _float(bias: Tensor | None) -> Tensor | None:
    return None if bias is None else bias.float()
