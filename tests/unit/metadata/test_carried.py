"""What a file says beside its pixels: what a result keeps, and what it leaves out."""

from __future__ import annotations

import re
import struct

import core
from core.formats import FORMATS
from core.metadata.carried import Metadata, bounded, for_result
from tests.unit.pictures import XMP, corners, full_exif, iptc_records, opened, saved, with_everything


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


def test_without_places_nothing_names_them() -> None:
    records = iptc_records()
    for dataset, value in ((90, b"Paris"), (92, b"Rue de Test"), (101, b"France")):
        records += bytes([0x1C, 2, dataset]) + struct.pack(">H", len(value)) + value
    packet = XMP.replace(
        b"<dc:title>",
        b"<photoshop:City>Paris</photoshop:City><Iptc4xmpExt:LocationCreated><rdf:Bag><rdf:li>"
        b"<Iptc4xmpExt:City>Paris</Iptc4xmpExt:City></rdf:li></rdf:Bag></Iptc4xmpExt:LocationCreated><dc:title>",
    ).replace(b"tiff:Orientation", b'photoshop:Country="France" tiff:Orientation')
    texts = (("exif:GPSLatitude", "48/1"), ("City", "Paris"), ("Title", "kept"))
    before = Metadata(xmp=packet, iptc=records, text=texts)
    after, _ = for_result(before, (20, 12), (40, 24), drop_gps=True)
    assert after.text == (("Title", "kept"),)
    assert after.iptc == iptc_records()
    assert after.xmp is not None
    assert b"title" in after.xmp
    for word in (b"Paris", b"France", b"GPS"):
        assert word not in after.xmp
    kept, _ = for_result(before, (20, 12), (40, 24))
    assert (kept.text, kept.iptc) == (texts, records)
