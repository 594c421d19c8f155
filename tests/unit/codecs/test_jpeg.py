"""JPEG: quality and subsampling, scans, and what lies beside the picture."""

from __future__ import annotations

import struct

import pytest
from PIL import Image

import core
from core.codecs.read import decode
from tests.unit.pictures import (
    corners,
    saved,
)


@pytest.mark.parametrize(
    ("quality", "subsampling", "wanted"),
    [(97, "4:4:4", (97, "4:4:4")), (90, "4:2:2", (90, "4:2:2")), (60, "4:2:0", (85, "4:2:0"))],
)
def test_jpeg_quality_follows_the_input(quality: int, subsampling: str, wanted: tuple[int, str]) -> None:
    before = decode(saved(corners(64, 64), "JPEG", quality=quality, subsampling=subsampling))
    assert before.quality is not None
    assert abs(before.quality - quality) <= 1
    after = decode(core.upscale(saved(corners(64, 64), "JPEG", quality=quality, subsampling=subsampling)).data or b"")
    assert after.quality is not None
    assert abs(after.quality - wanted[0]) <= 1
    assert after.subsampling == wanted[1]
    data = saved(corners(64, 64), "JPEG", quality=quality, subsampling=subsampling)
    asked = decode(core.upscale(data, core.Options(quality=70)).data or b"")
    assert asked.quality is not None
    assert abs(asked.quality - 70) <= 1


def test_an_extension_of_xmp_is_told() -> None:
    data = b"http://ns.adobe.com/xmp/extension/\0" + bytes(40)
    extended = saved(corners(), "JPEG", extra=b"\xff\xe1" + struct.pack(">H", len(data) + 2) + data)
    assert any("extension" in note for note in core.upscale(extended).notes)


def test_the_other_pictures_of_a_jpeg_are_told() -> None:
    data = saved(Image.fromarray(corners()), "MPO", save_all=True, append_images=[Image.fromarray(corners())])
    assert core.probe(data).frames == 1
    assert any("first of 2 pictures" in note for note in core.upscale(data).notes)


def test_scans_without_end() -> None:
    flat = saved(Image.new("L", (64, 64), 99), "JPEG", progressive=True)
    scan = flat.rindex(b"\xff\xda")
    data = flat[:scan] + flat[scan:-2] * 5000 + b"\xff\xd9"
    with pytest.raises(core.UnreadableImage, match="scans"):
        core.upscale(data)
