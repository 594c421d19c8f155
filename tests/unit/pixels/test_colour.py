"""Profiles that lie, and grey with a profile."""

from __future__ import annotations

import pytest
from PIL import Image

import core
from core.codecs.read import decode
from tests.unit import profiles
from tests.unit.pictures import (
    corners,
    opened,
    saved,
    srgb_profile,
)
from tests.unit.profiles import ADOBE_RGB


@pytest.mark.parametrize(
    ("icc", "word"),
    [
        (b"no profile", "damaged"),
        (srgb_profile()[:200], "damaged"),
        (b"\xff" * 600, "damaged"),
        (profiles.cmyk_profile(), "other pixels"),
        (profiles.grey_profile(2.2), "other pixels"),
    ],
)
def test_a_profile_that_lies_is_left_out_and_told(icc: bytes, word: str) -> None:
    for format in ("PNG", "JPEG", "WEBP", "TIFF"):
        data = saved(corners(), format, icc_profile=icc)
        for target in (None, "bmp"):
            result = core.upscale(data, core.Options(format=target))
            assert "icc_profile" not in opened(result.data).info
            assert any(word in note for note in result.notes)


def test_a_cmyk_profile_that_lies_gives_the_plain_formula() -> None:
    inks = Image.fromarray(corners(channels=4), "CMYK")
    for icc in (b"nonsense", srgb_profile(), profiles.cmyk_profile()[:-100]):
        picture = decode(saved(inks, "TIFF", icc_profile=icc))
        assert picture.meta.icc is None
        assert picture.pixels.shape == (12, 20, 3)
        assert picture.notes


def test_grey_with_an_rgb_profile_keeps_it() -> None:
    profile = profiles.rgb_profile(ADOBE_RGB)
    data = saved(corners(channels=1), "JPEG", icc_profile=profile)
    assert decode(core.upscale(data).data or b"").meta.icc == profile
    assert core.upscale(data, core.Options(format="bmp")).notes
