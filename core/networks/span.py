"""SPAN, the Swift Parameter-free Attention Network (Wan et al. 2023, arXiv:2311.12770), to train and to run.

Convolutions at the input's size and one pixel shuffle at the end. A block's attention is a function of its own last
convolution, pixel by pixel: no statistics over the picture, so tiles with a halo of `receptive_field` equal the whole
picture's result.

Layers have the names of the paper's files. Each convolution is trained as three branches; `eval()` adds them up to the
one 3x3 convolution that they are.
"""

from __future__ import annotations

from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.networks.span_config import SPANConfig

#: Mean colour of DIV2K, and the input's range: no file says them, all published networks were trained with these.
_MEAN = (0.4488, 0.4371, 0.4040)
_RANGE = 255.0


class SPAN(nn.Module):
    """RGB in [0, 1] to RGB, `scale` times as large; not clipped."""

    mean: Tensor

    def __init__(self, config: SPANConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.conv_1 = Conv3XC(3, width)
        for number in range(1, config.blocks + 1):
            self.add_module(f"block_{number}", AttentionBlock(width))
        self.conv_cat = nn.Conv2d(4 * width, width, 1)
        self.conv_2 = Conv3XC(width, width)
        self.upsampler = nn.Sequential(
            nn.Conv2d(width, 3 * config.scale**2, 3, padding=1), nn.PixelShuffle(config.scale)
        )
        self.register_buffer("mean", torch.tensor(_MEAN).view(1, 3, 1, 1), persistent=False)

    @staticmethod
    def state_from(checkpoint: dict[str, Tensor]) -> dict[str, Tensor]:
        """A checkpoint's tensors under this module's names: all but the mark of a network without a mean colour."""
        return {name: value for name, value in checkpoint.items() if name != "no_norm"}

    def forward(self, x: Tensor) -> Tensor:
        """(n, 3, h, w) -> (n, 3, scale * h, scale * w), in fp32 whatever the type of the weights."""
        if self.config.normed:
            x = (x.float() - self.mean.float()) * _RANGE
        x = x.to(self.conv_cat.weight.dtype).contiguous(memory_format=torch.channels_last)
        shallow = self.conv_1(x)  # (n, width, h, w), as all that follow
        first = inner = y = shallow
        for number in range(1, self.config.blocks + 1):
            y, inner = self.get_submodule(f"block_{number}")(y)
            first = y if number == 1 else first
        y = self.conv_cat(torch.cat((shallow, self.conv_2(y), first, inner), 1))
        result: Tensor = self.upsampler(y)
        return result.float()


class AttentionBlock(nn.Module):
    """Three convolutions; the sigmoid of the last, less a half, is the attention to it and to the input."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.c1_r, self.c2_r, self.c3_r = (Conv3XC(width, width) for _ in range(3))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(n, width, h, w) -> the block's result and its first convolution's after the activation, of that shape."""
        inner = _silu(self.c1_r(x))
        y = self.c3_r(_silu(self.c2_r(inner)))
        return (y + x) * _centred_sigmoid(y), inner


class Conv3XC(nn.Module):
    """A 3x3 convolution that is trained as a 1x1 one (`sk`), and 1x1, 3x3 and 1x1 one after the other (`conv`).

    In training mode these are computed, else their sum `eval_conv`, which `eval()` makes.
    """

    def __init__(self, inputs: int, outputs: int, gain: int = 2) -> None:
        super().__init__()
        self.sk = nn.Conv2d(inputs, outputs, 1)
        self.conv = nn.Sequential(
            nn.Conv2d(inputs, inputs * gain, 1),
            nn.Conv2d(inputs * gain, outputs * gain, 3),
            nn.Conv2d(outputs * gain, outputs, 1),
        )
        self.eval_conv = nn.Conv2d(inputs, outputs, 3, padding=1).requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        """(n, inputs, h, w) -> (n, outputs, h, w)."""
        # Zeros around the input, not around what the first 1x1 convolution makes of it.
        made: Tensor = self.conv(F.pad(x, (1, 1, 1, 1))) + self.sk(x) if self.training else self.eval_conv(x)
        return made

    def train(self, mode: bool = True) -> Self:
        """As of all modules; leaving training mode adds the branches up."""
        if not mode:
            self.merge()
        return super().train(mode)

    @torch.no_grad()
    def merge(self) -> None:
        """Make `eval_conv` of the branches, by sums in fp64."""
        (w1, b1), (w2, b2), (w3, b3) = (tuple(part.double() for part in conv.parameters()) for conv in self.conv)
        squeeze, expand = w1[:, :, 0, 0], w3[:, :, 0, 0]
        weight = torch.einsum("om,mnhw,ni->oihw", expand, w2, squeeze)  # (outputs, inputs, 3, 3)
        weight[:, :, 1:2, 1:2] += self.sk.weight.double()
        b3 = b3 if self.sk.bias is None else b3 + self.sk.bias.double()
        bias = expand @ (w2.sum((2, 3)) @ b1 + b2) + b3
        for made, value in zip(self.eval_conv.parameters(), (weight, bias), strict=True):
            made.copy_(value)


def _centred_sigmoid(x: Tensor) -> Tensor:
    """sigmoid(x) - 1/2. PyTorch computes a tensor's last elements by another sigmoid than the rest, but not so tanh."""
    return torch.tanh(x * 0.5) * 0.5


def _silu(x: Tensor) -> Tensor:
    return x * (_centred_sigmoid(x) + 0.5)
