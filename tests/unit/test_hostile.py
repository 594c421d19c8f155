"""No file in, by whatever way it was broken, gives anything but a picture or one of our input errors."""

from __future__ import annotations

import io
import random
import struct
import zlib
from collections.abc import Iterator

import numpy as np
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

import core
from core.codecs.read import decode, pages
from core.engine import load
from tests.unit import hostile
from tests.unit.pictures import corners, png_chunk, saved, srgb_profile

LIMITS = core.Limits(input_bytes=1_000_000, input_pixels=400_000, output_pixels=1_600_000, frames=20)
SEEDS = hostile.seeds()


@pytest.fixture(autouse=True)
def _lanczos(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "load_first", lambda chain, device: load.Loaded(None, "lanczos", False, "", 0.0))


def survives(data: bytes, whole: bool = True) -> bool:
    """True when the file is a picture; nothing but an input error may be raised for any file."""
    try:
        header = core.probe(data, LIMITS)
        for picture in pages(data, LIMITS):
            height, width, channels = picture.pixels.shape
            assert channels in (1, 3)
            assert picture.pixels.dtype in (np.uint8, np.uint16)
            assert picture.alpha is None or picture.alpha.shape == (height, width)
            assert height * width <= LIMITS.input_pixels
        if whole:
            result = core.upscale(data, core.Options(format=None if header.format != "avif" else "png"), limits=LIMITS)
            assert decode(result.data or b"").pixels.shape[:2] == (result.height, result.width)
    except (core.InputError, core.OptionsError) as error:  # options: WebP holds no picture of that size, for example
        text = str(error)
        assert text.isprintable()
        assert len(text) < 400
        return False
    return True


@pytest.mark.parametrize("name", SEEDS)
def test_seeds_are_good(name: str) -> None:
    assert survives(SEEDS[name])


@pytest.mark.parametrize("name", SEEDS)
def test_truncations(name: str) -> None:
    for part in hostile.truncated(SEEDS[name]):
        survives(part, whole=False)


@pytest.mark.parametrize("name", SEEDS)
def test_changed_bits(name: str) -> None:
    dice = random.Random(name)
    for _ in range(60):
        survives(hostile.flipped(SEEDS[name], dice))


@pytest.mark.parametrize("name", SEEDS)
def test_rearranged_parts(name: str) -> None:
    dice = random.Random(name)
    for _ in range(60):
        survives(hostile.rearranged(name, SEEDS[name], dice))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(sorted(SEEDS)), st.data())
def test_any_change(name: str, data: st.DataObject) -> None:
    changed = bytearray(SEEDS[name])
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, len(changed) - 1))
        piece = data.draw(st.binary(max_size=8))
        changed[at : at + data.draw(st.integers(0, 8))] = piece
        if not changed:
            break
    survives(bytes(changed))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(
        [b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"II*\0", b"MM\0+", b"BM", b"RIFF    WEBP"]
    ),
    st.binary(max_size=200),
)
def test_any_bytes_after_a_signature(head: bytes, rest: bytes) -> None:
    survives(head + rest)


# Bombs


def refused(data: bytes, kind: type[core.InputError] = core.InputError, limits: core.Limits = LIMITS) -> None:
    for call in (core.probe, core.upscale):
        with pytest.raises(kind):
            call(data, limits=limits)


def png_of(width: int, height: int, chunks: bytes = b"") -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = png_chunk(b"IDAT", zlib.compress(bytes(1000)))
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + chunks + body + png_chunk(b"IEND", b"")


def tiff_of(fields: dict[int, tuple[int, int]], pages: int = 1) -> bytes:
    """A TIFF of directories with LONG fields, by tag and value; one directory points to the next."""
    entries = {256: (4, 8), 257: (4, 8), 258: (3, 8), 259: (3, 1), 262: (3, 1), 273: (4, 8), 277: (3, 1), 279: (4, 64)}
    entries |= fields
    size = 2 + 12 * len(entries) + 4
    found = b"II*\0" + struct.pack("<I", 8)
    for page in range(pages):
        following = 0 if page == pages - 1 else 8 + (page + 1) * size
        found += struct.pack("<H", len(entries))
        found += b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, (kind, value) in sorted(entries.items()))
        found += struct.pack("<I", following)
    return found + bytes(64)


def gif_of(width: int, height: int, frames: Iterator[tuple[int, int, int, int]]) -> bytes:
    data = b"GIF89a" + struct.pack("<HH", width, height) + b"\x80\0\0" + bytes(6)
    for frame in frames:
        data += b"," + struct.pack("<HHHH", *frame) + b"\0\x02\x02\x4c\x01\0"
    return data + b";"


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


def test_strips_that_unpack_to_more_than_the_picture() -> None:
    bomb = zlib.compress(bytes(50_000_000), 9)
    for bits, sample_format in ((8, 1), (16, 1), (32, 3)):
        fields = {258: (3, bits), 259: (3, 8), 339: (3, sample_format), 278: (4, 8)}
        data = tiff_of({**fields, 273: (4, 0), 279: (4, len(bomb))})
        data = tiff_of({**fields, 273: (4, len(data)), 279: (4, len(bomb))}) + bomb
        survives(data)


def test_texts_and_profiles_that_unpack_without_end() -> None:
    bomb = zlib.compress(bytes(200_000_000), 9)
    for chunk in (
        png_chunk(b"zTXt", b"Comment\0\0" + bomb),
        png_chunk(b"iTXt", b"Comment\0\1\0\0\0" + bomb),
        png_chunk(b"iCCP", b"profile\0\0" + bomb),
    ):
        plain = saved(corners(), "PNG")
        at = plain.index(b"IDAT") - 4
        survives(plain[:at] + chunk + plain[at:])


def test_scans_without_end() -> None:
    flat = saved(Image.new("L", (64, 64), 99), "JPEG", progressive=True)
    scan = flat.rindex(b"\xff\xda")
    data = flat[:scan] + flat[scan:-2] * 5000 + b"\xff\xd9"
    with pytest.raises(core.UnreadableImage, match="scans"):
        core.upscale(data)


@pytest.mark.parametrize("at", [0, 36, 64, 128, 131, 132, 136, 140])
@pytest.mark.parametrize("number", [0, 1, 0x7FFFFFFF, 0xFFFFFFFF])
def test_profiles_that_lie(at: int, number: int) -> None:
    profile = bytearray(srgb_profile())
    struct.pack_into(">I", profile, at, number)
    for format in ("PNG", "JPEG", "TIFF"):
        assert survives(saved(corners(), format, icc_profile=bytes(profile)))
    data = saved(Image.fromarray(corners(channels=4), "CMYK"), "TIFF", icc_profile=bytes(profile))
    assert survives(data)


def test_deep_tiffs_that_lie() -> None:
    stream = io.BytesIO()
    tifffile.imwrite(stream, np.zeros((14, 18, 3), np.uint16), photometric="rgb")
    good = stream.getvalue()
    (first,) = struct.unpack_from("<I", good, 4)
    (count,) = struct.unpack_from("<H", good, first)
    for field in range(count):
        for number in (0, 1, 2, 5, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF):
            for part in (4, 8):
                data = bytearray(good)
                struct.pack_into("<I", data, first + 2 + 12 * field + part, number)
                survives(bytes(data), whole=False)
