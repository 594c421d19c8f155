"""RRDBNet, the network of ESRGAN, BSRGAN and Real-ESRGAN (Wang et al. 2018, arXiv:1809.00219; 2021, arXiv:2107.10833).

Dense blocks of five 3x3 convolutions, three of them in a residual block, and many of those; then nearest-neighbour
doublings with a convolution each. Nothing but convolutions and leaky ReLUs, so it is strictly local: tiles with a halo
of `receptive_field` equal the whole picture's result.

Layers have the names of Real-ESRGAN's files. Shapes below: h and w are sides after the unshuffling, if there is any.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.networks.rrdbnet_config import RRDBNetConfig, rename

#: Features that are enlarged at once, in pixels before it. With 16 times as many pixels after it, those of a whole tile
#: would take seven times the memory of everything else.
BAND_PIXELS = 1 << 13
#: Rows that the layers after the body see above and below, at most: two without a doubling, and less with each.
_CONTEXT = 3


class RRDBNet(nn.Module):
    """RGB in [0, 1] to RGB, `scale` times as large; not clipped. Both sides must be multiples of `config.window`."""

    def __init__(self, config: RRDBNetConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.conv_first = _conv(3 * config.unshuffle**2, width)
        self.body = nn.Sequential(*(_Block(config) for _ in range(config.blocks)))
        self.conv_body = _conv(width, width)
        for number in range(1, config.doublings + 1):
            self.add_module(f"conv_up{number}", _conv(width, width))
        self.conv_hr = _conv(width, width)
        self.conv_last = _conv(width, 3)

    @staticmethod
    def state_from(checkpoint: dict[str, Tensor]) -> dict[str, Tensor]:
        """A checkpoint's tensors under this module's names, whichever program saved it."""
        return {new: checkpoint[old] for old, new in rename(checkpoint).items()}

    def forward(self, x: Tensor) -> Tensor:
        """(n, 3, sides) -> (n, 3, scale * sides), in fp32 whatever the type of the weights."""
        x = x.to(self.conv_first.weight.dtype).contiguous(memory_format=torch.channels_last)
        if self.config.unshuffle > 1:
            x = F.pixel_unshuffle(x, self.config.unshuffle)  # (n, 3 * unshuffle ** 2, h, w)
        shallow = self.conv_first(x)  # (n, width, h, w)
        deep = self.conv_body(self.body(shallow)) + shallow  # (n, width, h, w)
        return self._enlarge(deep) if torch.is_grad_enabled() else self._enlarge_in_bands(deep)

    def _enlarge(self, x: Tensor) -> Tensor:
        """(n, width, h, w) -> (n, 3, 2 ** doublings * h, 2 ** doublings * w)."""
        for number in range(1, self.config.doublings + 1):
            x = F.interpolate(x, scale_factor=2.0, mode="nearest")
            x = _activated(self.get_submodule(f"conv_up{number}")(x))  # (n, width, 2 ** number * h, ...)
        result: Tensor = self.conv_last(_activated(self.conv_hr(x)))
        return result.float()

    def _enlarge_in_bands(self, x: Tensor) -> Tensor:
        """The same, a band of rows after the other: each with the rows above and below that it depends on."""
        n, _, height, width = x.shape
        factor, rows = 2**self.config.doublings, max(16, BAND_PIXELS // width)
        out = torch.empty(n, 3, factor * height, factor * width, device=x.device)
        for top in range(0, height, rows):
            bottom, first = min(height, top + rows), max(0, top - _CONTEXT)
            band = self._enlarge(x[:, :, first : bottom + _CONTEXT])
            out[:, :, factor * top : factor * bottom] = band[:, :, factor * (top - first) : factor * (bottom - first)]
        return out


class _Block(nn.Module):
    """Three dense blocks, and a way around them."""

    def __init__(self, config: RRDBNetConfig) -> None:
        super().__init__()
        self.rdb1, self.rdb2, self.rdb3 = (_DenseBlock(config) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        """(n, width, h, w) -> (n, width, h, w)."""
        return _fifth(self.rdb3(self.rdb2(self.rdb1(x))), x)


class _DenseBlock(nn.Module):
    """Five convolutions, each of which sees the results of all before it; and a way around them."""

    def __init__(self, config: RRDBNetConfig) -> None:
        super().__init__()
        width, growth = config.width, config.growth
        self.conv1, self.conv2, self.conv3, self.conv4 = (_conv(width + i * growth, growth) for i in range(4))
        self.conv5 = _conv(width + 4 * growth, width)
        self.conv1x1 = nn.Conv2d(width, growth, 1, bias=False) if config.plus else None

    def forward(self, x: Tensor) -> Tensor:
        """(n, width, h, w) -> (n, width, h, w)."""
        x1 = _activated(self.conv1(x))  # (n, growth, h, w), as the three that follow
        x2 = _activated(self.conv2(torch.cat((x, x1), 1)))
        if self.conv1x1 is not None:
            x2 = x2 + self.conv1x1(x)
        x3 = _activated(self.conv3(torch.cat((x, x1, x2), 1)))
        x4 = _activated(self.conv4(torch.cat((x, x1, x2, x3), 1)))
        if self.conv1x1 is not None:
            x4 = x4 + x2
        return _fifth(self.conv5(torch.cat((x, x1, x2, x3, x4), 1)), x)


def _conv(inputs: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1)


def _activated(x: Tensor) -> Tensor:
    return F.leaky_relu(x, 0.2, inplace=True)


def _fifth(change: Tensor, x: Tensor) -> Tensor:
    """x + change / 5. Not by one fused operation: that may round the last elements of a tensor unlike the others."""
    return change.mul(0.2).add_(x)
