"""PSNR and the down-scaling of the super-resolution literature, so that figures compare with published ones."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def _cubic(x: Tensor) -> Tensor:
    """Keys' kernel with a = -0.5 (Keys 1981), as MATLAB's imresize uses it."""
    x = x.abs()
    far = -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    return torch.where(x <= 1, 1.5 * x**3 - 2.5 * x**2 + 1, far * (x < 2))


def _resize_axis(values: Tensor, dim: int, out: int) -> Tensor:
    """MATLAB's imresize(..., 'bicubic') along one dimension: antialiased when reducing, mirrored at the edges."""
    length = values.shape[dim]
    scale = out / length
    stretch = min(scale, 1.0)
    reach = math.ceil(2 / stretch) + 1
    centre = (torch.arange(out, dtype=torch.float64) + 0.5) / scale - 0.5
    taps = centre.floor().long()[:, None] + torch.arange(-reach, reach)  # (out, 2 * reach)
    weights = _cubic((taps - centre[:, None]) * stretch)
    weights /= weights.sum(1, keepdim=True)
    taps = taps.remainder(2 * length)
    taps = torch.where(taps < length, taps, 2 * length - 1 - taps).to(values.device)
    shape = [-1 if axis == dim else 1 for axis in range(values.ndim)]
    made = values.new_zeros([out if axis == dim else side for axis, side in enumerate(values.shape)])
    for tap, weight in zip(taps.T, weights.T.to(values), strict=True):  # a matrix would be nearly all zeros
        made.addcmul_(values.index_select(dim, tap), weight.view(shape))
    return made


def bicubic(pixels: Tensor, height: int, width: int) -> Tensor:
    """(h, w, channels) uint8 to (height, width, channels) uint8, as MATLAB's imresize does."""
    values = _resize_axis(_resize_axis(pixels.double(), 0, height), 1, width)
    return values.round().clamp(0, 255).byte()


def luma(pixels: Tensor) -> Tensor:
    """(..., 3) RGB from 0 to 255, to Y of ITU-R BT.601 from 16 to 235, as MATLAB's rgb2ycbcr gives it, unrounded."""
    return (pixels * torch.tensor([65.481, 128.553, 24.966]) / 255).sum(-1) + 16


def _compared(made: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    """(h, w) float64 of both: Y, or the grey values as they are where the truth has one channel.

    So does the literature: Set14's "bridge" is a greyscale file, and the published 30.24 dB of bicubic interpolation
    counts its full range from 0 to 255.
    """
    made, truth = made.double(), truth.double()
    if truth.shape[-1] == 1:
        return made.mean(-1), truth[..., 0]
    return luma(made), luma(truth)


def psnr_y(made: Tensor, truth: Tensor, shave: int) -> float:
    """PSNR in dB on Y of (h, w, 3) uint8 pictures (a grey truth is (h, w, 1)), `shave` border pixels left out."""
    one, other = _compared(made, truth)
    difference = one - other
    if shave:
        difference = difference[shave:-shave, shave:-shave]
    return 10 * math.log10(255**2 / float(difference.square().mean()))


def ssim_y(made: Tensor, truth: Tensor, shave: int) -> float:
    """Structural similarity on Y of two (h, w, 3) uint8 pictures (Wang et al. 2004: 11x11 Gaussian, sigma 1.5)."""
    x, y = (values[None, None] for values in _compared(made, truth))
    if shave:
        x, y = (picture[..., shave:-shave, shave:-shave] for picture in (x, y))
    places = torch.arange(11, dtype=torch.float64) - 5
    taps = torch.exp(-(places**2) / (2 * 1.5**2))
    taps = taps / taps.sum()

    def mean(values: Tensor) -> Tensor:  # (1, 1, h, w) -> (1, 1, h - 10, w - 10)
        return F.conv2d(F.conv2d(values, taps.view(1, 1, 11, 1)), taps.view(1, 1, 1, 11))

    mean_x, mean_y = mean(x), mean(y)
    variance_x, variance_y = mean(x * x) - mean_x**2, mean(y * y) - mean_y**2
    covariance = mean(x * y) - mean_x * mean_y
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    top = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    return float((top / ((mean_x**2 + mean_y**2 + c1) * (variance_x + variance_y + c2))).mean())
