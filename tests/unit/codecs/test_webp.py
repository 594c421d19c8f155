"""WebP: when it is written without loss."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

import core
from core.codecs import webp
from core.codecs.read import pages
from tests.unit.pictures import (
    corners,
    saved,
)


def test_what_was_lossless_stays_lossless(lanczos: None) -> None:
    for data, lossless in (
        (saved(corners(), "WEBP", lossless=True), True),
        (saved(corners(), "WEBP", quality=80), False),
        (saved(corners(), "PNG"), True),
        (saved(corners(), "JPEG"), False),
    ):
        after = core.upscale(data, core.Options(format="webp")).data
        assert after is not None
        assert (b"VP8L" in after[:200]) is lossless
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(webp, "MAX_LOSSLESS_PIXELS", 900)
        large = core.upscale(saved(corners(), "PNG"), core.Options(format="webp"))
        assert b"VP8L" not in (large.data or b"")
        assert any("choose png" in note for note in large.notes)
    assert b"VP8L" not in (core.upscale(saved(corners(), "PNG"), core.Options(format="webp", quality=90)).data or b"")


def test_transparency_does_not_need_the_flag_of_the_container() -> None:
    first, second = (Image.fromarray(np.roll(corners(16, 24, 4), at, axis=0)) for at in (0, 4))
    moving = bytearray(saved(first, "WEBP", save_all=True, append_images=[second], lossless=True, exact=True))
    still = bytearray(saved(first, "WEBP", lossless=True, exact=True, xmp=b"<x/>"))
    for data in (moving, still):
        assert data[12:16] == b"VP8X"
        data[20] &= ~0x10
        found = list(pages(bytes(data)))[-1]
        assert found.alpha is not None
        assert np.ptp(found.alpha) > 50


def test_opaque_stills_stay_without_alpha() -> None:
    assert next(pages(saved(corners(), "WEBP", lossless=True, xmp=b"<x/>"))).alpha is None
