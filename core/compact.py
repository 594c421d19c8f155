"""The embedded network: small, convolutional and strictly local.

Every output pixel depends on a fixed neighbourhood of the input and on nothing else (no pooling, no
statistics over the image), so tiles with a halo of `receptive_field` equal the untiled result.
The shape is that of the efficient super-resolution networks (residual 3x3 convolutions at the input
resolution, one pixel shuffle at the end: Shi et al. 2016, arXiv:1609.05158).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.compact_config import CompactConfig


class Conv(nn.Conv2d):
    """A convolution that keeps the size, with what follows it: SiLU, or the addition of another tensor.

    For inference on a CPU both run inside oneDNN's convolution kernel. That saves a pass over memory, and it makes a
    pixel's bits independent of where the tensor ends: PyTorch's own SiLU computes the last few elements of a tensor,
    or of a thread's share, with another exponential than the rest (2e-7 apart, enough for tiles not to be equal).
    """

    def __init__(self, inputs: int, outputs: int, side: int = 3, groups: int = 1) -> None:
        super().__init__(inputs, outputs, side, padding=side // 2, groups=groups)
        self._packed: tuple[tuple[torch.dtype, int], Tensor] | None = None

    def forward(
        self, x: Tensor, silu: bool = False, add: Tensor | None = None, times: Tensor | None = None
    ) -> Tensor:
        """(n, inputs, h, w) -> (n, outputs, h, w)."""
        if not x.is_cpu or torch.is_grad_enabled() or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
            x = super().forward(x)
            x = x if add is None else x + add
            x = x if times is None else x * times
            return F.silu(x) if silu else x
        pad, one, weight = [self.kernel_size[0] // 2] * 2, [1, 1], self._weight(x)
        other = add if times is None else times
        if other is None:
            after = "swish" if silu else "none"
            out = torch.ops.mkldnn._convolution_pointwise(x, weight, self.bias, pad, one, one, self.groups, after, [], "")
        else:
            kind, after_other = "add" if times is None else "mul", "swish" if silu else None
            out = torch.ops.mkldnn._convolution_pointwise.binary(
                x, other, weight, self.bias, pad, one, one, self.groups, kind, 1.0, after_other, [], None
            )
        return torch.Tensor(out)

    def _weight(self, x: Tensor) -> Tensor:
        """The weight in oneDNN's layout, packed once."""
        key = (self.weight.dtype, self.weight._version)  # the version counts changes made in place
        if self._packed is None or self._packed[0] != key:
            pad, one = [self.kernel_size[0] // 2] * 2, [1, 1]
            packed = torch.ops.mkldnn._reorder_convolution_weight(
                self.weight, pad, one, one, self.groups, list(x.shape)
            )
            self._packed = key, packed
        return self._packed[1]


class Compact(nn.Module):
    """RGB in [0, 1] to RGB, `scale` times as large; not clipped."""

    def __init__(self, config: CompactConfig) -> None:
        super().__init__()
        self.config = config
        width, out = config.width, 3 * config.scale**2
        self.head = Conv(3, width)
        self.body = nn.ModuleList(Conv(width, width, side=3 if index % 2 == 0 else config.second) for index in range(2 * config.blocks))
        gates = config.blocks if config.gate else 0
        self.context = nn.ModuleList(Conv(width, width, side=config.gate, groups=width) for _ in range(gates))
        self.mix = nn.ModuleList(Conv(width, width, side=1) for _ in range(gates))
        self.fuse = Conv(width, width)
        self.tail = Conv(width, out)
        # The picture itself takes a short way round: a 5x5 convolution that starts as bicubic interpolation.
        self.skip = Conv(3, out, side=5)

    def forward(self, x: Tensor) -> Tensor:
        """(n, 3, h, w) -> (n, 3, scale * h, scale * w)."""
        shallow = self.head(x)  # (n, width, h, w)
        deep = shallow
        for index, (first, second) in enumerate(zip(self.body[::2], self.body[1::2], strict=True)):
            inner = first(deep, silu=True)  # (n, width, h, w)
            if self.context:
                inner = self.mix[index](self.context[index](inner), times=inner)
            deep = second(inner, add=deep)  # (n, width, h, w)
        features = self.fuse(deep, silu=True) + shallow  # (n, width, h, w)
        return F.pixel_shuffle(self.tail(features, add=self.skip(x)), self.config.scale)
