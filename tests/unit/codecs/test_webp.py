"""WebP: when it is written without loss."""

from __future__ import annotations

import pytest

import core
from core.codecs import webp
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
