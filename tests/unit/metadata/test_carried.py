"""What a file says beside its pixels: what a result keeps, and what it leaves out."""

from __future__ import annotations

import re
import struct

import core
from core.formats import FORMATS
from core.metadata.carried import Metadata, bounded
from tests.unit.pictures import corners, full_exif, opened, saved, with_everything


def test_blocks_that_are_too_large_are_left_out_and_told() -> None:
    huge = Metadata(icc=bytes(5 << 20), exif=bytes(2 << 20), xmp=bytes(5 << 20), text=(("Comment", "x" * (2 << 20)),))
    found, notes = bounded(huge)
    assert found == Metadata()
    assert len(notes) == 4


def test_strip_leaves_colour_only() -> None:
    data = with_everything(corners(12, 20))
    found = opened(core.upscale(data, core.Options(strip=True)).data)
    assert "icc_profile" in found.info
    assert not {"exif", "xmp", "comment", "photoshop"} & set(found.info)
    assert found.info.get("dpi") in (None, (1, 1))
    assert len(found.getexif()) == 0
    png = core.upscale(data, core.Options(strip=True, format="png")).data
    assert png is not None
    assert set(re.findall(rb"(?:tEXt|iTXt|zTXt|eXIf|pHYs)", png)) == set()


def test_the_place_is_left_out_of_every_format() -> None:
    data = with_everything(corners(12, 20))
    for format in FORMATS:
        result = core.upscale(data, core.Options(drop_gps=True, format=format)).data
        assert result is not None
        assert b"GPS" not in result
        assert struct.pack("<II", 48, 1) not in result
        kept = core.upscale(data, core.Options(format=format)).data
        assert kept is not None
        assert format == "bmp" or struct.pack("<II", 48, 1) in kept


def test_markup_and_control_characters_stay_in_the_file() -> None:
    nasty = "<script>alert(1)</script>\x1b[31m\r\nSet-Cookie: a=b\u202e"
    data = saved(corners(), "JPEG", comment=nasty.encode(), exif=b"Exif\0\0" + full_exif())
    result = core.upscale(data)
    assert opened(result.data).info["comment"] == nasty.encode()
    told = repr(core.probe(data)) + repr(result.notes) + result.reason
    assert "script" not in told
    png = opened(core.upscale(data, core.Options(format="png")).data)
    assert png.info["Comment"] == nasty
