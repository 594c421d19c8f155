"""SRVGGNetCompact, the small network of Real-ESRGAN, "Compact" on OpenModelDB (Wang et al. 2021, arXiv:2107.10833).

A row of 3x3 convolutions with PReLUs at the input's size, and one pixel shuffle; the input, enlarged by nearest
neighbours, is added. Strictly local, so tiles with a halo of `receptive_field` equal the whole picture's result.

Layers have the names of Real-ESRGAN's files.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.networks.srvgg_config import SRVGGConfig


class SRVGGNetCompact(nn.Module):
    """RGB in [0, 1] to RGB, `scale` times as large; not clipped."""

    def __init__(self, config: SRVGGConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        layers: list[nn.Module] = [nn.Conv2d(3, width, 3, padding=1), nn.PReLU(width)]
        for _ in range(config.convs):
            layers += [nn.Conv2d(width, width, 3, padding=1), nn.PReLU(width)]
        self.body = nn.Sequential(*layers, nn.Conv2d(width, 3 * config.scale**2, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        """(n, 3, h, w) -> (n, 3, scale * h, scale * w), in fp32 whatever the type of the weights."""
        narrow = x.to(next(self.body.parameters()).dtype).contiguous(memory_format=torch.channels_last)
        detail = F.pixel_shuffle(self.body(narrow).float(), self.config.scale)  # (n, 3, scale * h, scale * w)
        # Eight bits of bf16 are too few for the sum of detail and picture, so that is fp32.
        return detail + F.interpolate(x.float(), scale_factor=float(self.config.scale), mode="nearest")
