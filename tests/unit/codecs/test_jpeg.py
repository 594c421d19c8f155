"""JPEG: quality and subsampling, scans, and what lies beside the picture."""

from __future__ import annotations

import io
import struct
import tracemalloc
from pathlib import Path
from xml.etree import ElementTree

import imagecodecs
import numpy as np
import pytest
from PIL import Image

import core
from core.codecs import jpeg
from core.codecs.read import decode
from tests.unit.pictures import (
    XMP,
    corners,
    motion_photo,
    saved,
    segment,
    ultra_hdr,
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


PLAIN = saved(corners(32, 48), "JPEG", quality=95)
RIGHT = decode(PLAIN).pixels


def test_markers_in_segments_are_no_scans() -> None:
    for content in (b"\xff\xda" * 300, b"\xff\xd9" * 300):
        assert np.array_equal(decode(PLAIN[:2] + segment(0xFE, content) + PLAIN[2:]).pixels, RIGHT)


@pytest.mark.parametrize("content", [b"JFIF\0", b"JFIF\0\1\1", b""])
def test_a_short_jfif_segment(content: bytes) -> None:
    assert np.array_equal(decode(PLAIN[:2] + segment(0xE0, content) + PLAIN[20:]).pixels, RIGHT)


def test_fill_bytes_before_markers() -> None:
    filled = PLAIN.replace(b"\xff\xdb", b"\xff\xff\xff\xdb").replace(b"\xff\xda", b"\xff\xff\xda")
    assert np.array_equal(decode(filled).pixels, RIGHT)


@pytest.mark.parametrize("progressive", [False, True])
def test_a_missing_end_marker_alone_is_no_damage(progressive: bool) -> None:
    data = saved(corners(32, 48), "JPEG", quality=95, progressive=progressive)
    assert np.array_equal(decode(data[:-2]).pixels, decode(data).pixels)
    with pytest.raises(core.UnreadableImage, match="damaged"):
        decode(data[: -len(data) // 6])


def test_the_video_of_a_motion_photo_is_left_out_with_its_tags() -> None:
    picture = decode(motion_photo(PLAIN))
    assert np.array_equal(picture.pixels, RIGHT)
    assert any("video" in note for note in picture.notes)
    assert picture.meta.xmp == XMP


def test_what_stands_behind_a_picture_is_not_held(tmp_path: Path) -> None:
    """Issue 16: twelve uploads of 190 MB, each a small picture with a trailer, took 3.1 GB in decoders."""
    file = tmp_path / "a.jpg"
    with file.open("wb") as stream:
        stream.write(PLAIN)
        stream.truncate(80_000_000)
        stream.seek(40 << 20)
        stream.write(b"ftyp")  # across two pieces, or nearly
    tracemalloc.start()
    try:
        with file.open("rb") as stream:
            checked = jpeg.check(stream)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert any("video" in note for note in checked.notes)
    assert peak < 8_000_000


@pytest.mark.parametrize("piece", [2, 3, 16])
def test_pieces_of_any_size_find_the_same(monkeypatch: pytest.MonkeyPatch, piece: int) -> None:
    files = [PLAIN, PLAIN[:-2], motion_photo(PLAIN), ultra_hdr(PLAIN), PLAIN + b"x" * 20]
    files.append(saved(corners(32, 48), "JPEG", progressive=True))

    def found(data: bytes) -> tuple[object, ...]:
        checked = jpeg.check(io.BytesIO(data))
        return checked.stream.read(), checked.scans, checked.ended, checked.notes

    whole = [found(data) for data in files]
    assert any(notes for *_, notes in whole)
    monkeypatch.setattr(jpeg, "_PIECE", piece)
    assert [found(data) for data in files] == whole


def test_a_gain_map_goes_with_what_speaks_of_it() -> None:
    picture = decode(ultra_hdr(PLAIN))
    assert any("gain map" in note for note in picture.notes)
    assert picture.meta.xmp is not None
    assert b"hdrgm:Version" not in picture.meta.xmp
    assert b"GainMap" not in picture.meta.xmp
    assert b"dc:title" in picture.meta.xmp
    ElementTree.fromstring(picture.meta.xmp)


@pytest.mark.parametrize(
    ("marker", "content", "word"),
    [
        (0xE1, b"FLIR\0" + bytes(40), "FLIR"),
        (0xE2, b"FPXR\0" + bytes(40), "FlashPix"),
        (0xEB, b"JP\0\1" + bytes(40), "JUMBF"),
        (0xE5, b"Samsung" + bytes(40), "APP5"),
    ],
)
def test_segments_that_are_left_out_are_named(marker: int, content: bytes, word: str) -> None:
    picture = decode(PLAIN[:20] + segment(marker, content) + PLAIN[20:])
    assert any(word in note for note in picture.notes)
    assert np.array_equal(picture.pixels, RIGHT)


def test_twelve_bits() -> None:
    values = (corners(32, 48).astype(np.uint16) << 4) | 7
    data = imagecodecs.jpeg8_encode(values, 98, bitspersample=12, subsampling="444")
    header, picture = core.probe(data), decode(data)
    assert header.bits == 12
    assert picture.pixels.dtype == np.uint16
    assert np.abs(picture.pixels / 65535 - values / 4095).max() < 0.01


@pytest.mark.parametrize("bits", [8, 12, 16])
def test_lossless(bits: int) -> None:
    values = (np.arange(32 * 48).reshape(32, 48) * 41 % (1 << bits)).astype(np.uint8 if bits == 8 else np.uint16)
    picture = decode(imagecodecs.ljpeg_encode(values, bitspersample=bits))
    top = 255 if bits == 8 else 65535
    assert np.array_equal(picture.pixels[:, :, 0], values.astype(np.uint64) * top // ((1 << bits) - 1))


def test_kinds_that_are_not_read_are_named() -> None:
    with pytest.raises(core.UnreadableImage, match="hierarchical"):
        core.probe(PLAIN.replace(b"\xff\xc0", b"\xff\xc5", 1))


def test_a_jpeg_is_no_longer_than_libjpeg_reads() -> None:
    with pytest.raises(core.OptionsError, match="65500"):
        core.upscale(saved(Image.new("RGB", (32_751, 1)), "PNG"), core.Options(format="jpeg"))
