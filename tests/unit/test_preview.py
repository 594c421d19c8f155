"""`core.preview`: small, upright, in eight bits, with its colour profile."""

from __future__ import annotations

import io

import numpy as np
import pytest
import tifffile
from PIL import Image

import core
from core import preview
from core.limits import Limits
from tests.unit.pictures import corners, exif_block, opened, saved, srgb_profile


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_depths_and_colours(channels: int, dtype: type[np.unsignedinteger]) -> None:
    pixels = corners(40, 60, channels)
    stream = io.BytesIO()
    values = pixels.astype(dtype) * (257 if dtype is np.uint16 else 1)
    tifffile.imwrite(stream, values.squeeze(), photometric="rgb" if channels == 3 else "minisblack")
    made = preview.preview(stream.getvalue())
    assert (made.width, made.height, made.media_type) == (60, 40, "image/jpeg")
    shown = np.asarray(opened(made.data)).reshape(pixels.shape)
    assert np.abs(shown.astype(int) - pixels).max() < 12


def test_large_ones_become_small() -> None:
    made = preview.preview(saved(corners(1000, 4000), "PNG"))
    assert (made.width, made.height) == (4000, 1000)
    assert opened(made.data).size == (1600, 400)


def test_transparency_stays() -> None:
    alpha = np.full((20, 30, 1), 255, np.uint8)
    alpha[:, :15] = 0
    made = preview.preview(saved(Image.fromarray(np.dstack((corners(20, 30), alpha))), "PNG"))
    assert made.media_type == "image/webp"
    shown = np.asarray(opened(made.data).convert("RGBA"))
    assert shown[10, 5, 3] == 0
    assert shown[10, 25, 3] == 255


def test_upright_and_in_its_colours() -> None:
    profile = srgb_profile()
    made = preview.preview(saved(corners(20, 30), "JPEG", exif=exif_block(Orientation=6), icc_profile=profile))
    assert (made.width, made.height) == (20, 30)
    assert opened(made.data).info["icc_profile"] == profile


def test_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    data = saved(corners(20, 30), "PNG")
    with pytest.raises(core.TooLarge):
        preview.preview(data, Limits(input_pixels=599))
    monkeypatch.setattr(preview, "MAX_PIXELS", 599)
    with pytest.raises(core.TooLarge):
        preview.preview(data)
    with pytest.raises(core.UnreadableImage):
        preview.preview(b"nothing")
