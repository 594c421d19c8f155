"""The embedded network: small, convolutional and strictly local.

Every output pixel depends on a fixed neighbourhood of the input and on nothing else (no pooling, no
statistics over the image), so tiles with a halo of `receptive_field` equal the untiled result.
The shape is that of the efficient super-resolution networks (residual 3x3 convolutions at the input
resolution, one pixel shuffle at the end: Shi et al. 2016, arXiv:1609.05158).
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from core.compact_config import CompactConfig


class Compact(nn.Module):
    """RGB in [0, 1] to RGB, `scale` times as large; not clipped."""

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
        """(n, 3, h, w) -> (n, 3, scale * h, scale * w)."""
        shallow = self.head(x)  # (n, width, h, w)
        deep = shallow
        for first, second in zip(self.body[::2], self.body[1::2], strict=True):
            deep = deep + second(F.silu(first(deep)))  # (n, width, h, w)
        features = F.silu(self.fuse(deep)) + shallow  # (n, width, h, w)
        return F.pixel_shuffle(self.tail(features) + self.skip(x), self.config.scale)
