"""Files that claim to be enormous are refused by their headers."""

from __future__ import annotations

import struct
import zlib

import pytest
from PIL import Image

import core
from core.codecs.read import decode
from tests.unit import hostile
from tests.unit.hostile import LIMITS, gif_of, png_of, tiff_of
from tests.unit.pictures import corners, saved

pytestmark = pytest.mark.usefixtures("lanczos")

SEEDS = hostile.seeds()


def refused(data: bytes, kind: type[core.InputError] = core.InputError, limits: core.Limits = LIMITS) -> None:
    for call in (core.probe, core.upscale):
        with pytest.raises(kind):
            call(data, limits=limits)


def test_enormous_sizes_are_refused_by_the_header() -> None:
    bmp = bytearray(saved(corners(), "BMP"))
    struct.pack_into("<ii", bmp, 18, 40_000, 40_000)
    webp = b"RIFF\x30\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0" + b"\xff\x3f\0" * 2 + b"VP8L" + bytes(20)
    jpeg = bytearray(saved(corners(), "JPEG"))
    at = jpeg.index(b"\xff\xc0")
    jpeg[at + 5 : at + 9] = b"\xff\xdc\xff\xdc"
    for data in (
        png_of(50_000, 50_000),
        png_of(0x7FFFFFFF, 0x7FFFFFFF),
        tiff_of({256: (4, 100_000), 257: (4, 100_000)}),
        tiff_of({256: (4, 0xFFFFFFFF), 257: (4, 0xFFFFFFFF)}),
        gif_of(65_535, 65_535, iter([(0, 0, 1, 1)])),
        gif_of(1, 1, iter([(0, 0, 1, 1), (0, 0, 65_535, 65_535)])),
        bytes(bmp),
        webp,
        bytes(jpeg),
    ):
        refused(data, core.TooLarge)


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_pillow_s_own_guard_is_not_stricter_than_the_limit(format: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    data = saved(Image.new("L", (100, 100)), format)
    assert decode(data).pixels.shape == (100, 100, 1)
    refused(data, core.TooLarge, core.Limits(input_pixels=9_999))


def test_nothing_has_no_pixels() -> None:
    for data in (png_of(0, 5), tiff_of({256: (4, 0)}), gif_of(0, 0, iter([(0, 0, 0, 0)]))):
        refused(data)


def test_sides_are_limited() -> None:
    narrow = saved(Image.new("L", (5000, 1)), "PNG")
    refused(narrow, core.TooLarge, core.Limits(side=4999))
    assert core.probe(narrow, core.Limits(side=5000)).width == 5000


def test_frames_and_pages_are_limited() -> None:
    stills = [Image.new("L", (4, 4), 8 * shade) for shade in range(30)]
    for format in ("PNG", "GIF", "WEBP", "TIFF", "AVIF"):
        lossless = {"lossless": True} if format == "WEBP" else {}  # else WebP takes similar frames for one
        data = saved(stills[0], format, save_all=True, append_images=stills[1:], **lossless)
        refused(data, core.TooLarge)
        assert core.probe(data, core.Limits(frames=30)).frames == 30
        refused(data, core.TooLarge, core.Limits(input_pixels=30 * 16 - 1))
        with pytest.raises(core.TooLarge):
            core.upscale(
                data,
                core.Options(format="tiff" if format == "TIFF" else "png"),
                limits=core.Limits(output_pixels=30 * 64 - 1),
            )


def test_many_frames_are_not_counted_to_the_end() -> None:
    refused(gif_of(10, 10, ((0, 0, 1, 1) for _ in range(40_000))), core.TooLarge)
    refused(tiff_of({}, pages=8_000), core.TooLarge)
    claimed = bytearray(SEEDS["png-animated"])
    at = claimed.index(b"acTL")
    struct.pack_into(">I", claimed, at + 4, 0x7FFFFFFF)
    struct.pack_into(">I", claimed, at + 12, zlib.crc32(claimed[at : at + 12]))
    refused(bytes(claimed), core.TooLarge)


def test_tiles_larger_than_any_picture() -> None:
    tiles = {322: (4, 60_000), 323: (4, 60_000), 324: (4, 8), 325: (4, 64)}
    refused(tiff_of(tiles), core.TooLarge)
    refused(tiff_of({**tiles, 258: (3, 16)}), core.TooLarge)
