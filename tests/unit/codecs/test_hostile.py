"""No file in, by whatever way it was broken, gives anything but a picture or one of our input errors."""

from __future__ import annotations

import io
import random
import struct
import zlib

import numpy as np
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

import core
from core.codecs.read import decode, pages
from tests.unit import hostile
from tests.unit.hostile import LIMITS, tiff_of
from tests.unit.pictures import corners, png_chunk, saved, srgb_profile

pytestmark = pytest.mark.usefixtures("lanczos")

SEEDS = hostile.seeds()


def times(name: str) -> range:
    """How often a seed is changed; with a profile of inks in it, each costs a twentieth of a second."""
    return range(20 if "cmyk" in name else 60)


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


@pytest.mark.slow
@pytest.mark.parametrize("name", SEEDS)
def test_truncations(name: str) -> None:
    for part in hostile.truncated(SEEDS[name]):
        survives(part, whole=False)


@pytest.mark.slow
@pytest.mark.parametrize("name", SEEDS)
def test_changed_bits(name: str) -> None:
    dice = random.Random(name)
    for _ in times(name):
        survives(hostile.flipped(SEEDS[name], dice))


@pytest.mark.slow
@pytest.mark.parametrize("name", SEEDS)
def test_rearranged_parts(name: str) -> None:
    dice = random.Random(name)
    for _ in times(name):
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
