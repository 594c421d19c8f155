"""NIQE: natural pictures first, and the file with its numbers is what the command makes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from bench.niqe import derive, niqe, statistics
from bench.quality import pixels

SAMPLES = Path(__file__).parents[2] / "samples"


def sample() -> Tensor:
    """A photo of this repository, (h, w, 3) uint8."""
    # By its name: results that somebody made lie beside it.
    return pixels((SAMPLES / "astronaut.jpg").read_bytes())[:288, :288]


def blurred(picture: Tensor) -> Tensor:
    x = picture.permute(2, 0, 1)[None].float()
    return torch.nn.functional.avg_pool2d(x, 5, 1, 2, count_include_pad=False)[0].permute(1, 2, 0).round().byte()


def test_blur_and_noise_are_less_natural() -> None:
    torch.manual_seed(0)
    photo = sample()
    noisy = (photo.float() + 25 * torch.randn(photo.shape)).clamp(0, 255).byte()
    assert niqe(photo) < niqe(blurred(photo))
    assert niqe(photo) < niqe(noisy)


def test_a_gaussian_is_found_as_one() -> None:
    """The shape of the fitted distribution is 2 for normal values: features 0 and 18."""
    torch.manual_seed(0)
    grey = (128 + 20 * torch.randn(480, 480, 1)).clamp(0, 255).byte().expand(-1, -1, 3)
    features, sharpness = statistics(grey)
    assert features.shape == (25, 36)
    assert sharpness.shape == (25,)
    assert float(features[:, 0].median()) > 1.8


def test_pristine_numbers_are_those_of_sharp_blocks(tmp_path: Path) -> None:
    photo = sample()
    partly = photo.clone()
    partly[:, :96] = blurred(photo)[:, :96]
    whole, kept = derive([photo]), derive([partly])
    assert whole[0].shape == (36,)
    assert whole[1].shape == (36, 36)
    assert np.abs(whole[0] - kept[0]).mean() < np.abs(whole[0] - derive([blurred(photo)])[0]).mean()
    np.savez(tmp_path / "own.npz", mean=whole[0], covariance=whole[1])
    assert niqe(photo, tmp_path / "own.npz") < niqe(blurred(photo), tmp_path / "own.npz")


def test_a_small_picture_is_refused() -> None:
    with pytest.raises(ValueError, match="96x96"):
        niqe(torch.zeros(95, 200, 3, dtype=torch.uint8))
