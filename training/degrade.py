"""Inputs as phones and the web make them: other down-scaling kernels, slight blur and noise, JPEG once or twice.

Everything runs on batches of tensors, on the device that trains; `jpeg` follows ITU-T T.81 with libjpeg's tables,
quality scale and chroma filters.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

MARGIN = 32  # input pixels drawn beyond a patch, so that JPEG's blocks lie at any phase in it
CLEAN, TWICE, NOISY, BLURRED, HALVED_CHROMA = 0.25, 0.2, 0.25, 0.3, 0.65  # shares of the inputs

# ITU-T T.81, tables K.1 and K.2.
_LUMA = """16 11 10 16 24 40 51 61 12 12 14 19 26 58 60 55 14 13 16 24 40 57 69 56 14 17 22 29 51 87 80 62
18 22 37 56 68 109 103 77 24 35 55 64 81 104 113 92 49 64 78 87 103 121 120 101 72 92 95 98 112 100 103 99"""
_CHROMA = """17 18 24 47 99 99 99 99 18 21 26 66 99 99 99 99 24 26 56 99 99 99 99 99 47 66 99 99 99 99 99 99
99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99"""


def _kernels(scale: int) -> Tensor:
    """Down-scaling kernels (4, taps): antialiased bicubic, area, triangle, Lanczos-3."""
    taps = 6 * scale if scale % 2 == 0 else 7 * scale  # as odd as the scale: samples lie in the middle of their area
    x = (torch.arange(taps) - (taps - 1) / 2) / scale  # in output pixels
    a = x.abs()
    cubic = torch.where(a <= 1, 1.5 * a**3 - 2.5 * a**2 + 1, (-0.5 * a**3 + 2.5 * a**2 - 4 * a + 2) * (a < 2))
    lanczos = torch.sinc(x) * torch.sinc(x / 3)
    kernels = torch.stack([cubic, (a < 0.5).float(), (1 - a).clamp(min=0), lanczos])
    return kernels / kernels.sum(1, keepdim=True)


def _reduced(large: Tensor, kernels: Tensor, scale: int) -> Tensor:
    """(n, 3, h, w) to (n, 3, h / scale, w / scale), each by its own kernel, of (n, taps), along both axes."""
    count = len(large)
    weight = kernels.repeat_interleave(3, 0)  # (3 n, taps)
    pad = (kernels.shape[1] - scale) // 2
    x = F.pad(large.reshape(1, 3 * count, *large.shape[2:]), (pad, pad, pad, pad), mode="reflect")
    x = F.conv2d(x, weight[:, None, :, None], stride=(scale, 1), groups=3 * count)
    x = F.conv2d(x, weight[:, None, None, :], stride=(1, scale), groups=3 * count)
    return x.view(count, 3, *x.shape[2:])


def _clean(large: Tensor, kernel: Tensor, scale: int) -> Tensor:
    """Reduced by one kernel, in whole grey levels."""
    small = _reduced(large, kernel[None].expand(len(large), -1), scale)
    return (small.clamp(0, 1) * 255).round() / 255


class Bicubic:
    """Clean inputs: MATLAB's antialiased bicubic, in whole grey levels."""

    margin = 8  # input pixels drawn beyond a patch, where the edge is felt

    def __init__(self, scale: int, device: torch.device) -> None:
        self.scale, self.kernel = scale, _kernels(scale)[0].to(device)

    def __call__(self, large: Tensor) -> tuple[Tensor, Tensor]:
        """Targets, `margin` too large, to an input and its target.

        Args:
            large: (n, 3 or more, scale * (size + margin), ...) in [0, 1]; of more than three channels the first count.
        """
        edge, s = self.margin // 2, self.scale
        small = self.clean(large[:, :3])
        return small[..., edge:-edge, edge:-edge], large[..., s * edge : -s * edge, s * edge : -s * edge]

    def clean(self, large: Tensor) -> Tensor:
        """(n, 3, h, w) to (n, 3, h / scale, w / scale), edges and all."""
        return _clean(large, self.kernel, self.scale)


class Degrade:
    """Inputs as phones and the web make them.

    Args:
        scale: of the model.
        device: where targets are.
        wide: for models that draw detail: twice the blur, thrice the noise, JPEG from quality 30.
    """

    margin = MARGIN

    def __init__(self, scale: int, device: torch.device, wide: bool = False) -> None:
        self.scale = scale
        self.blur, self.noise, self.worst = (0.8, 12.0, 30) if wide else (0.4, 4.0, 40)
        self.kernels = _kernels(scale).to(device)
        tables = [torch.tensor([float(value) for value in text.split()]).view(8, 8) for text in (_LUMA, _CHROMA)]
        self.tables = torch.stack([tables[0], tables[1], tables[1]]).to(device)  # (3, 8, 8)
        k = torch.arange(8, dtype=torch.float64)
        dct = torch.cos((2 * k[None, :] + 1) * k[:, None] * math.pi / 16) / 2
        dct[0] /= math.sqrt(2)
        self.dct = dct.float().to(device)

    def __call__(self, large: Tensor) -> tuple[Tensor, Tensor]:
        """Targets, MARGIN too large, to a degraded input and its target.

        Args:
            large: (n, 3, scale * (size + MARGIN), ...) in [0, 1]; size + MARGIN is a multiple of 16.
        """
        count, device = len(large), large.device
        chance = torch.rand(6, count, device=device)
        small = self.clean(large)
        other = self.reduced(large, chance[0], chance[1])
        noise = torch.randn_like(small) * (chance[2] * self.noise / 255).view(-1, 1, 1, 1)
        other = torch.where((chance[3] < NOISY).view(-1, 1, 1, 1), other + noise, other)
        other = (other.clamp(0, 1) * 255).round() / 255
        # Half of what is compressed comes from the down-scaling of the clean inputs.
        other = torch.where((chance[4] < 0.5).view(-1, 1, 1, 1), small, other)
        once = self.jpeg(other)
        twice = self.jpeg(once.roll((3, 5), (2, 3))).roll((-3, -5), (2, 3))
        damaged = torch.where((chance[5] < TWICE).view(-1, 1, 1, 1), twice, once)
        share = torch.rand(count, 1, 1, 1, device=device)
        # Of the clean inputs a third keeps the other kernels, blur and noise.
        chosen = torch.where(share < CLEAN * 2 / 3, small, torch.where(share < CLEAN, other, damaged))
        size = small.shape[-1] - MARGIN
        y, x = torch.randint(MARGIN // 4, 3 * MARGIN // 4, (2, count), device=device)
        return cut(chosen, y, x, size), cut(large, y * self.scale, x * self.scale, size * self.scale)

    def clean(self, large: Tensor) -> Tensor:
        """(n, 3, h, w) to (n, 3, h / scale, w / scale): what `Bicubic` makes."""
        return _clean(large, self.kernels[0], self.scale)

    def reduced(self, large: Tensor, kind: Tensor, blur: Tensor) -> Tensor:
        """(n, 3, h, w) to (n, 3, h / scale, w / scale), each by a kernel and a blur of its own; both (n,) in [0, 1)."""
        count, s = len(large), self.scale
        kernel = self.kernels[(kind * len(self.kernels)).long()]  # (n, taps)
        sigma = torch.where(blur < BLURRED, 0.2 + blur / BLURRED * s * self.blur, torch.full_like(blur, 1e-3))
        taps = torch.arange(-6, 7, device=large.device)
        gauss = torch.exp(-(taps[None, :] ** 2) / (2 * sigma[:, None] ** 2))
        gauss = gauss / gauss.sum(1, keepdim=True)  # (n, 13)
        both = F.conv1d(F.pad(kernel[None], (12, 12)), gauss.flip(1)[:, None], groups=count)[0]  # (n, taps + 12)
        return _reduced(large, both, s)

    def jpeg(self, x: Tensor, quality: Tensor | None = None, halved: Tensor | None = None) -> Tensor:
        """Compress and read again.

        Args:
            x: (n, 3, h, w) in [0, 1], sides multiples of 16.
            quality: (n,) as libjpeg counts it; at random up to 95 when None.
            halved: (n,) bool, chroma at half size (4:2:0); at random when None.
        """
        count, device = len(x), x.device
        if quality is None:
            quality = torch.randint(self.worst, 96, (count,), device=device)
        if halved is None:
            halved = torch.rand(count, device=device) < HALVED_CHROMA
        percent = torch.where(quality < 50, 5000 // quality.clamp(min=1), 200 - 2 * quality).view(-1, 1, 1, 1)
        tables = ((self.tables * percent + 50) / 100).floor().clamp(1, 255)  # (n, 3, 8, 8)
        r, g, b = (x * 255).round().unbind(1)
        luma = 0.299 * r + 0.587 * g + 0.114 * b
        chroma = torch.stack([(b - luma) / 1.772, (r - luma) / 1.402], 1) + 128
        luma = self._quantised(luma[:, None].round(), tables[:, :1])[:, 0]
        full = self._quantised(chroma.round(), tables[:, 1:])
        half = self._quantised(F.avg_pool2d(chroma, 2).round(), tables[:, 1:])
        half = F.interpolate(half, scale_factor=2, mode="bilinear", align_corners=False).round()
        blue, red = (torch.where(halved.view(-1, 1, 1, 1), half, full) - 128).unbind(1)
        back = [luma + 1.402 * red, luma - 0.344136 * blue - 0.714136 * red, luma + 1.772 * blue]
        return torch.stack(back, 1).round().clamp(0, 255) / 255

    def _quantised(self, x: Tensor, tables: Tensor) -> Tensor:
        """(n, c, h, w) from 0 to 255, through the quantised cosine transform of 8x8 blocks; tables (n, c, 8, 8)."""
        n, c, height, width = x.shape
        blocks = (x - 128).view(n, c, height // 8, 8, width // 8, 8).transpose(3, 4)  # (n, c, rows, columns, 8, 8)
        tables = tables[:, :, None, None]
        coefficients = ((self.dct @ blocks @ self.dct.T) / tables).round() * tables
        back = (self.dct.T @ coefficients @ self.dct).transpose(3, 4).reshape(n, c, height, width)
        return (back + 128).round().clamp(0, 255)


def cut(x: Tensor, y: Tensor, x0: Tensor, side: int) -> Tensor:
    """Squares (n, c, side, side) of (n, c, h, w), each from a place (y, x0) of its own; both (n,)."""
    along = torch.arange(side, device=x.device)
    batch = torch.arange(len(x), device=x.device)[:, None, None]
    return x.permute(0, 2, 3, 1)[batch, (y[:, None] + along)[:, :, None], (x0[:, None] + along)[:, None]].permute(
        0, 3, 1, 2
    )
