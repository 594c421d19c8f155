"""What a file says beside its pixels: true of the result, complete, and harmless when it is damaged."""

from __future__ import annotations

import contextlib
import io
import re
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import core
from core.codecs.read import decode
from core.formats import FORMATS
from core.metadata import exif, ifd
from core.metadata.carried import MAX_BLOCK, Metadata, bounded, exif_with_resolution
from core.metadata.iptc import from_raw_profile, iptc_of
from core.metadata.resolution import valid_dpi
from core.metadata.xmp import corrected_xmp
from tests.unit.pictures import XMP, app13, corners, full_exif, iptc_records, opened, saved, with_everything

ORDERS = ["<", ">"]


def fields(block: bytes) -> Image.Exif:
    """An EXIF block as Pillow reads it, which shares no code with ours."""
    found = Image.Exif()
    found.load(b"Exif\0\0" + block)
    return found


@pytest.mark.parametrize("order", ORDERS)
def test_a_block_becomes_true_of_the_result(order: str) -> None:
    before = full_exif(order)
    after = exif.corrected(before, 4000, 70_000)
    assert after is not None
    found = fields(after)
    assert found[0x0112] == 1
    assert found[0x010F] == "Maker"
    below = found.get_ifd(0x8769)
    assert (below[0xA002], below[0xA003]) == (4000, 70_000)
    assert below[0x829A] == 1 / 125
    assert found.get_ifd(0x8825)[2] == (48, 51, 30)
    # The thumbnail, which shows another picture, is gone, its bytes too.
    assert found.get_ifd(1) == {}
    assert b"\xff\xd8" in before
    assert b"\xff\xd8" not in after
    assert len(after) < len(before)


@pytest.mark.parametrize("order", ORDERS)
def test_nothing_moves_so_that_maker_notes_keep_their_offsets(order: str) -> None:
    before = full_exif(order)
    after = exif.corrected(before, 40, 24)
    assert after is not None
    for part in (b"MAKER NOTE" + bytes(range(30)), "Artist Näme".encode(), struct.pack(order + "II", 1, 125)):
        assert after.index(part) == before.index(part)


@pytest.mark.parametrize("order", ORDERS)
def test_the_place_can_be_left_out(order: str) -> None:
    after = exif.corrected(full_exif(order), 40, 24, drop_gps=True)
    assert after is not None
    found = fields(after)
    assert 0x8825 not in found
    assert found.get_ifd(0x8825) == {}
    assert struct.pack(order + "II", 48, 1) not in after
    assert b"2020:01:02" not in after
    assert found.get_ifd(0x8769)[0xA002] == 40
    assert found[0x010F] == "Maker"


@pytest.mark.parametrize("order", ORDERS)
def test_the_resolution_can_be_changed(order: str) -> None:
    after = exif.corrected(full_exif(order), 40, 24, dpi=(600.0, 450.5))
    assert after is not None
    assert (fields(after)[0x011A], fields(after)[0x011B]) == (600, 450.5)


@pytest.mark.parametrize("order", ORDERS)
def test_a_block_survives_being_read_and_written(order: str) -> None:
    directory = ifd.read_block(full_exif(order))
    again = fields(ifd.write_block(directory))
    before = fields(full_exif(order))
    assert dict(again) | {0x8769: 0, 0x8825: 0} == dict(before) | {0x8769: 0, 0x8825: 0}
    for pointer in (0x8769, 0x8825):
        assert again.get_ifd(pointer) == before.get_ifd(pointer)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_a_damaged_block_harms_nobody(data: st.DataObject) -> None:
    block = bytearray(full_exif(data.draw(st.sampled_from(ORDERS))))
    for _ in range(data.draw(st.integers(1, 8))):
        block[data.draw(st.integers(0, len(block) - 1))] = data.draw(st.integers(0, 255))
    cut = bytes(block[: data.draw(st.integers(0, len(block)))])
    after = exif.corrected(cut, 40, 24, (72.0, 72.0), True)
    assert after is None or len(after) <= len(cut)
    with contextlib.suppress(ValueError, struct.error):
        ifd.write_block(ifd.read_block(cut))
    exif_with_resolution(Metadata(exif=cut, dpi=(72.0, 72.0)))


def test_a_block_that_can_be_corrected_but_not_read() -> None:
    block = full_exif("<", orientation=1).replace(
        struct.pack("<HHI", 0x829A, 5, 1), struct.pack("<HHI", 0x829A, 5, 1 << 20)
    )
    for format in FORMATS:
        result = core.upscale(saved(corners(), "PNG", exif=block), core.Options(format=format))
        assert decode(result.data or b"").pixels.shape == (24, 40, 3)


def test_offsets_beyond_all_numbers() -> None:
    for kind, number in ((4, 4), (5, 2), (1, 60)):  # a pointer of more than 64 bits
        block = b"II*\0" + struct.pack("<IH", 8, 1) + struct.pack("<HHII", 0x8825, kind, number, 26) + bytes(4)
        block += b"\xff" * 64
        with pytest.raises(ValueError, match="outside"):
            ifd.read_block(block)
    big = struct.pack("<QHHQQ", 1, 270, 2, 100, 1 << 63)
    with pytest.raises(ValueError, match="outside"):
        ifd.read_tiff(io.BytesIO(bytes(8) + big), 8, "<", True)
    with pytest.raises(ValueError, match="outside"):
        ifd.read_tiff(io.BytesIO(bytes(8)), 1 << 63, "<", True)


def test_directories_in_a_circle_end() -> None:
    entry = struct.pack("<HHII", 0x8769, 4, 1, 8)
    block = b"II*\0" + struct.pack("<IH", 8, 3) + entry * 3 + struct.pack("<I", 8)
    assert ifd.read_block(block).subdirectories[0x8769].subdirectories[0x8769].subdirectories == {}
    exif.corrected(block, 1, 1, None, True)


def test_many_pointers_to_large_directories_take_no_time() -> None:
    entry = struct.pack("<HHII", 0x8769, 4, 1, 8)
    block = b"II*\0" + struct.pack("<IH", 8, 1000) + entry * 1000 + bytes(4)
    ifd.read_block(block)
    exif.corrected(block, 1, 1, None, True)


def test_xmp_becomes_true_of_the_result() -> None:
    after = corrected_xmp(XMP, 40, 24)
    assert after is not None
    assert b'tiff:Orientation="1"' in after
    assert b'exif:PixelXDimension="40"' in after
    assert b"<exif:PixelYDimension>24<" in after
    # And nothing else changed.
    for old, new in ((b'"6"', b'"1"'), (b'"20"', b'"40"'), (b">12<", b">24<")):
        after = after.replace(new, old)
    assert after == XMP


def test_xmp_without_the_place() -> None:
    after = corrected_xmp(XMP, 40, 24, drop_gps=True)
    assert after is not None
    assert b"GPS" not in after
    assert b"T\xc3\xaftle" in after
    hidden = XMP.replace(b"<dc:title>", b"<exif:GPSx><rdf:Seq>1</rdf:Seq></exif:GPSx><dc:title>")
    assert corrected_xmp(hidden, 40, 24, drop_gps=True) is None
    assert corrected_xmp("<exif:GPSLatitude>".encode("utf-16"), 40, 24, drop_gps=True) is None


def test_xmp_loses_the_thumbnail() -> None:
    packet = b"<a><xmp:Thumbnails><rdf:Alt>AAAA</rdf:Alt></xmp:Thumbnails></a>"
    assert corrected_xmp(packet, 1, 1) == b"<a></a>"


@pytest.mark.parametrize(
    "piece", [b"tiff:Orientation=", b" exif:GPSA='", b"<exif:GPSA>", b"<xmp:Thumbnails", b"GPS" * 9]
)
def test_a_hostile_packet_costs_no_more_than_its_length(piece: bytes) -> None:
    packet = piece * (MAX_BLOCK // len(piece))
    corrected_xmp(packet, 1, 1, True)  # a pattern that backtracks would take hours


def test_iptc_is_found_among_other_resources() -> None:
    segment = app13(iptc_records())
    assert iptc_of(segment[4 + len(b"Photoshop 3.0\0") :]) == iptc_records()
    assert iptc_of(b"8BIM") is None
    assert iptc_of(b"") is None


@given(st.binary(max_size=60))
def test_resources_of_any_bytes(junk: bytes) -> None:
    iptc_of(b"8BIM" + junk)
    from_raw_profile(junk.decode("latin-1"))


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


def test_printed_size_can_be_kept() -> None:
    data = with_everything(corners(12, 20))
    for format in FORMATS:
        for options, wanted in (
            (core.Options(scale=3, format=format), 300),
            (core.Options(scale=3, format=format, keep_size=True), 900),
        ):
            picture = decode(io.BytesIO(core.upscale(data, options).data or b""))
            assert picture.meta.dpi is not None
            assert round(picture.meta.dpi[0]) == round(picture.meta.dpi[1]) == wanted, format


@pytest.mark.parametrize("dpi", [(0, 0), (-1, 5), (float("nan"), 1), ("x", "y"), None, 3, (1,), (1e9, 1e9)])
def test_resolutions_that_make_no_sense(dpi: object) -> None:
    assert valid_dpi(dpi) is None


def test_markup_and_control_characters_stay_in_the_file() -> None:
    nasty = "<script>alert(1)</script>\x1b[31m\r\nSet-Cookie: a=b\u202e"
    data = saved(corners(), "JPEG", comment=nasty.encode(), exif=b"Exif\0\0" + full_exif())
    result = core.upscale(data)
    assert opened(result.data).info["comment"] == nasty.encode()
    told = repr(core.probe(data)) + repr(result.notes) + result.reason
    assert "script" not in told
    png = opened(core.upscale(data, core.Options(format="png")).data)
    assert png.info["Comment"] == nasty
