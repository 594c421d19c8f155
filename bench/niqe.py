"""NIQE, how far a picture is from natural ones without its truth (lower is better): python -m bench.niqe PHOTOS...

Mittal, Soundararajan and Bovik 2013, "Making a completely blind image quality analyzer". Statistics of normalised
brightness in blocks of 96x96 pixels, at two scales, are compared with those of pristine photos. The command derives the
latter, niqe.npz, from a folder of lossless photos; figures are not those of other photos' numbers, only near them.
"""

from __future__ import annotations

import argparse
import math
from functools import cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from bench.metrics import _resize_axis, luma

BLOCK = 96  # pixels, at the larger scale
SHARP = 0.75  # of pristine photos, blocks at least this sharp count, in parts of the sharpest
PRISTINE = Path(__file__).with_name("niqe.npz")


def _alphas() -> Tensor:
    """Shapes that are tried for the generalised Gaussian."""
    return torch.arange(0.2, 10.0005, 0.001, dtype=torch.float64)


@cache
def _ratios() -> Tensor:
    """gamma(2/a)^2 / (gamma(1/a) gamma(3/a)) of each, which falls with a."""
    a = _alphas()
    return (2 * torch.lgamma(2 / a) - torch.lgamma(1 / a) - torch.lgamma(3 / a)).exp()


def _asymmetric(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Asymmetric generalised Gaussians fitted to (blocks, values): shape, left scale, right scale, (blocks,) each."""
    square, absolute = x.square(), x.abs().mean(1)
    left = ((square * (x < 0)).sum(1) / (x < 0).sum(1).clamp(min=1)).sqrt()
    right = ((square * (x > 0)).sum(1) / (x > 0).sum(1).clamp(min=1)).sqrt()
    skew = left / right.clamp(min=1e-12)
    ratio = absolute**2 / square.mean(1).clamp(min=1e-12)
    ratio = ratio * (skew**3 + 1) * (skew + 1) / (skew**2 + 1) ** 2
    alpha = _alphas()[(_ratios()[None] - ratio[:, None]).abs().argmin(1)]
    scale = ((torch.lgamma(1 / alpha) - torch.lgamma(3 / alpha)) / 2).exp()
    return alpha, left * scale, right * scale


def _features(blocks: Tensor) -> Tensor:
    """(blocks, side, side) of normalised brightness to (blocks, 18)."""
    alpha, left, right = _asymmetric(blocks.flatten(1))
    found = [alpha, (left + right) / 2]
    for shift in ((0, 1), (1, 0), (1, 1), (1, -1)):  # neighbours
        alpha, left, right = _asymmetric((blocks * blocks.roll(shift, (1, 2))).flatten(1))
        mean = (right - left) * (torch.lgamma(2 / alpha) - torch.lgamma(1 / alpha)).exp()
        found += [alpha, mean, left, right]
    return torch.stack(found, 1)


def statistics(pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Of (h, w, 3) uint8, at least 96x96: 36 numbers of each block, (blocks, 36), and its sharpness, (blocks,).

    Raises:
        ValueError: the picture is smaller than a block.
    """
    grey = luma(pixels.double()).round()
    rows, columns = (side // BLOCK for side in grey.shape)
    if not rows * columns:
        raise ValueError(f"NIQE needs {BLOCK}x{BLOCK} pixels at least")
    grey = grey[: rows * BLOCK, : columns * BLOCK]
    taps = torch.exp(-((torch.arange(7, dtype=torch.float64) - 3) ** 2) / (2 * (7 / 6) ** 2))
    taps = taps / taps.sum()

    def smooth(values: Tensor) -> Tensor:
        padded = F.pad(values[None, None], (3, 3, 3, 3), mode="replicate")
        return F.conv2d(F.conv2d(padded, taps.view(1, 1, 7, 1)), taps.view(1, 1, 1, 7))[0, 0]

    parts, sharpness = [], torch.empty(0)
    for side in (BLOCK, BLOCK // 2):
        mean = smooth(grey)
        deviation = (smooth(grey.square()) - mean.square()).abs().sqrt()

        def cut(values: Tensor, side: int = side) -> Tensor:
            return values.view(rows, side, columns, side).transpose(1, 2).reshape(-1, side, side)

        if side == BLOCK:
            sharpness = cut(deviation).mean((1, 2))
        parts.append(_features(cut((grey - mean) / (deviation + 1))))
        grey = _resize_axis(_resize_axis(grey, 0, grey.shape[0] // 2), 1, grey.shape[1] // 2)
    return torch.cat(parts, 1), sharpness


def _model(features: Tensor) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean (36,) and covariance (36, 36) of (blocks, 36)."""
    values = features.numpy()
    return values.mean(0), np.cov(values, rowvar=False) if len(values) > 1 else np.zeros((36, 36))


def derive(photos: list[Tensor]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and covariance of the sharp blocks of pristine photos, (h, w, 3) uint8 each."""
    kept = []
    for photo in photos:
        features, sharpness = statistics(photo)
        kept.append(features[sharpness > SHARP * sharpness.max()])
    return _model(torch.cat(kept))


def niqe(pixels: Tensor, pristine: Path = PRISTINE) -> float:
    """Of (h, w, 3) or (h, w, 1) uint8, against the numbers in a file that `main` wrote; lower is more natural."""
    with np.load(pristine) as kept:
        mean, covariance = kept["mean"], kept["covariance"]
    own_mean, own_covariance = _model(statistics(pixels.expand(-1, -1, 3))[0])
    difference = mean - own_mean
    return math.sqrt(float(difference @ np.linalg.pinv((covariance + own_covariance) / 2) @ difference))


def main() -> None:
    """The command line."""
    from training.photos import read, reduce

    parser = argparse.ArgumentParser(description="Derive NIQE's numbers from lossless photos.")
    parser.add_argument("photos", type=Path, nargs="+", help="folders of PNG files")
    parser.add_argument("--to", type=Path, default=PRISTINE)
    arguments = parser.parse_args()
    files = sorted(file for folder in arguments.photos for file in folder.rglob("*.png"))
    photos = [read(file) for file in files]
    # Photos of 2 megapixels are soft pixel by pixel, as cameras make them; halved they are as sharp as those of Kodak.
    mean, covariance = derive(
        [reduce(photo, 2) if len(photo) * photo.shape[1] > 1_000_000 else photo for photo in photos]
    )
    np.savez(arguments.to, mean=mean.astype(np.float32), covariance=covariance.astype(np.float32))
    print(f"{arguments.to}: from {len(files)} photos")


if __name__ == "__main__":
    main()
