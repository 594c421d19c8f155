"""What a format cannot hold is reported."""

from __future__ import annotations

import numpy as np

import core
from tests.unit.pictures import corners, opened, saved


def test_jpeg_has_no_transparency_and_says_so() -> None:
    pixels = corners(channels=4)
    pixels[:, :, 3] = 0
    result = core.upscale(saved(pixels, "PNG"), core.Options(format="jpeg"))
    assert any("transparency" in note for note in result.notes)
    assert np.asarray(opened(result.data)).min() > 250
