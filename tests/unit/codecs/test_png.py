"""PNG: sixteen bits, colours in numbers, animations of sixteen bits."""

from __future__ import annotations

import io
import struct
import zlib

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image, ImageCms

import core
from core.codecs.read import decode, pages
from core.metadata.iptc import photoshop_block
from tests.unit import profiles
from tests.unit.pictures import (
    XMP,
    Array,
    animated,
    corners,
    full_exif,
    iptc_records,
    png_chunk,
    saved,
)
from tests.unit.profiles import DISPLAY_P3, SRGB


@pytest.mark.parametrize("format", ["png", "tiff"])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_dark_sixteen_bit_picture_is_not_taken_for_eight_bits(format: str, channels: int) -> None:
    dark = (corners(20, 30, 3)[:, :, :channels] // 2).astype(np.uint16)  # nothing above 127 of 65,535
    flat = dark[:, :, 0] if channels == 1 else dark
    stream = io.BytesIO()
    tifffile.imwrite(stream, flat, photometric="minisblack" if channels == 1 else "rgb")
    data = bytes(imagecodecs.png_encode(flat)) if format == "png" else stream.getvalue()
    picture = decode(data)
    assert picture.pixels.dtype == np.uint16
    assert np.array_equal(picture.pixels, dark)


def test_gamma_and_chromaticities_become_a_profile() -> None:
    linear = png_chunk(b"gAMA", struct.pack(">I", 100_000))
    p3 = [31270, 32900, 68000, 32000, 26500, 69000, 15000, 6000]
    wide = png_chunk(b"gAMA", struct.pack(">I", 45_455)) + png_chunk(b"cHRM", struct.pack(">8I", *p3))
    usual = png_chunk(b"gAMA", struct.pack(">I", 45_455))
    nonsense = png_chunk(b"gAMA", struct.pack(">I", 1)) + png_chunk(b"cHRM", bytes(32))
    said = png_chunk(b"sRGB", b"\0") + linear
    coded = png_chunk(b"cICP", bytes([12, 13, 0, 1]))
    hdr = png_chunk(b"cICP", bytes([9, 16, 0, 1]))
    plain = saved(corners(), "PNG")
    at = plain.index(b"IDAT") - 4

    def profile(extra: bytes) -> bytes | None:
        return decode(plain[:at] + extra + plain[at:]).meta.icc

    assert profile(usual) is profile(nonsense) is profile(said) is None
    for extra, seen in ((linear, (*SRGB[:1], 1.0)), (wide, (*DISPLAY_P3[:1], 2.2)), (coded, (*DISPLAY_P3[:1], 0.0))):
        icc = profile(extra)
        assert icc is not None
        colours = np.array([[[200, 100, 50], [20, 220, 120], [128, 128, 128]]], np.uint8)
        there = np.asarray(_to_srgb(colours, icc)) / 255
        wanted = profiles.lab(colours / 255, seen)
        assert profiles.delta_e(profiles.lab(there), wanted)[0, [0, 2]].max() < 2  # the green is beyond sRGB in P3
    assert profile(hdr) is None
    assert any("HDR" in note for note in decode(plain[:at] + hdr + plain[at:]).notes)


def _to_srgb(pixels: Array, icc: bytes) -> Image.Image:
    found = ImageCms.profileToProfile(
        Image.fromarray(pixels), ImageCms.ImageCmsProfile(io.BytesIO(icc)), ImageCms.createProfile("sRGB")
    )
    assert found is not None
    return found


def test_the_extra_still_of_a_png_is_not_a_frame() -> None:
    data = animated("PNG", default_image=True)
    assert core.probe(data).frames == 4
    result = core.upscale(data)
    assert result.frames == 4
    assert any("still picture" in note for note in result.notes)


Drawn = tuple[Array, int, int, int, int]


def deep_animation(frames: list[Drawn], still: Array | None = None) -> bytes:
    """A PNG of 16 bits from (samples, left, top, disposal, blending), the first of the picture's size."""
    height, width, channels = frames[0][0].shape
    colour = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    out = b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, colour, 0, 0, 0))
    out += png_chunk(b"acTL", struct.pack(">II", len(frames), 0))
    sequence = 0

    def packed(samples: Array) -> bytes:
        return zlib.compress(b"".join(b"\0" + row.astype(">u2").tobytes() for row in samples))

    if still is not None:
        out += png_chunk(b"IDAT", packed(still))
    for index, (samples, left, top, disposal, blending) in enumerate(frames):
        place = (samples.shape[1], samples.shape[0], left, top)
        control = struct.pack(">IIIIIHHBB", sequence, *place, 1, 10, disposal, blending)
        out += png_chunk(b"fcTL", control)
        sequence += 1
        if index == 0 and still is None:
            out += png_chunk(b"IDAT", packed(samples))
        else:
            out += png_chunk(b"fdAT", struct.pack(">I", sequence) + packed(samples))
            sequence += 1
    return out + png_chunk(b"IEND", b"")


def deep_noise(height: int, width: int, channels: int) -> Array:
    return np.random.default_rng(height).integers(0, 65536, (height, width, channels)).astype(np.uint16)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("disposal", [0, 1, 2])
@pytest.mark.parametrize("blending", [0, 1])
def test_animations_of_sixteen_bits(channels: int, disposal: int, blending: int) -> None:
    """Each frame as the specification says it is drawn, number by number."""
    ground, part, last = deep_noise(20, 30, channels), deep_noise(8, 9, channels), deep_noise(6, 5, channels)
    drawn = [(ground, 0, 0, 0, 0), (part, 3, 4, disposal, blending), (last, 5, 6, 0, blending), (last, 20, 0, 0, 0)]
    data = deep_animation(drawn, still=ground if channels == 3 else None)
    assert (core.probe(data).bits, core.probe(data).frames) == (16, 4)
    colours = channels - 1 if channels in (2, 4) else channels
    canvas = np.zeros((20, 30, colours + 1))
    for picture, (samples, left, top, how, over) in zip(pages(data), drawn, strict=True):
        kept = canvas.copy()
        for y, x in np.ndindex(samples.shape[:2]):
            new = samples[y, x].astype(float)
            new = new if channels in (2, 4) else np.append(new, 65535)
            old = canvas[top + y, left + x]
            if over:
                a, b = new[-1] / 65535, old[-1] / 65535 * (1 - new[-1] / 65535)
                new = np.append((new[:-1] * a + old[:-1] * b) / max(a + b, 1e-9), (a + b) * 65535)
            canvas[top + y, left + x] = new
        assert picture.alpha is not None
        assert picture.alpha.dtype == np.uint16
        assert np.abs(np.dstack([picture.pixels, picture.alpha]) - canvas).max() <= (2 if blending else 0)
        if how == 1:
            canvas[top : top + samples.shape[0], left : left + samples.shape[1]] = 0
        canvas = kept if how == 2 else canvas


@pytest.mark.usefixtures("lanczos")
def test_an_animation_of_sixteen_bits_stays_one() -> None:
    ramp = (np.arange(24 * 40).reshape(24, 40, 1) * 60).astype(np.uint16)  # finer than eight bits can tell
    data = deep_animation([(ramp, 0, 0, 0, 0), (ramp[::-1], 0, 0, 0, 0)])
    result = core.upscale(data)
    assert core.probe(result.data or b"").bits == 16
    first, second = pages(result.data or b"")
    assert len(np.unique(first.pixels)) > 1000
    assert np.array_equal(second.pixels, first.pixels[::-1])
    assert not any("8" in note for note in result.notes)
    assert any("8 bits" in note for note in core.upscale(data, core.Options(format="webp")).notes)


@pytest.mark.parametrize(("left", "top"), [(25, 0), (0, 15), (2**31, 2**31)])
def test_a_frame_outside_of_its_picture_is_damage(left: int, top: int) -> None:
    data = deep_animation([(deep_noise(20, 30, 3), 0, 0, 0, 0), (deep_noise(8, 9, 3), left, top, 0, 0)])
    with pytest.raises(core.UnreadableImage, match="damaged"):
        list(pages(data))


def test_a_damaged_animation_of_sixteen_bits_is_unreadable_or_whole() -> None:
    data = deep_animation([(deep_noise(5, 6, 4), 0, 0, 2, 0), (deep_noise(3, 2, 4), 1, 1, 1, 1)])
    for at in range(8, len(data)):
        for damaged in (data[:at], data[:at] + bytes([data[at] ^ 0x55]) + data[at + 1 :]):
            try:
                assert all(picture.pixels.shape[:2] == (5, 6) for picture in pages(damaged))
            except core.InputError:
                continue


def png(header: tuple[int, ...], rows: bytes, *chunks: bytes) -> bytes:
    """A PNG of width, height, bits and colour type, with chunks between header and pixels."""
    head = png_chunk(b"IHDR", struct.pack(">IIBBBBB", *header, 0, 0, 0))
    end = png_chunk(b"IDAT", zlib.compress(rows)) + png_chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(chunks) + end


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_a_transparent_grey_counts_in_the_file_s_bits(bits: int) -> None:
    top = (1 << bits) - 1
    values = np.arange(8) * top // 7
    packed = "".join(f"{value:0{bits}b}" for value in values)
    row = b"\0" + bytes(int(packed[at : at + 8], 2) for at in range(0, len(packed), 8))
    data = png((8, 1, bits, 0), row, png_chunk(b"tRNS", struct.pack(">H", int(values[3]))))
    picture = decode(data)
    assert picture.alpha is not None
    assert np.array_equal(picture.pixels[0, :, 0], values * 255 // top)
    assert np.array_equal(picture.alpha[0] == 0, values == values[3])


def test_only_critical_chunks_must_be_whole() -> None:
    row = b"\0" + bytes(range(6))
    good = png((2, 1, 8, 2), row, png_chunk(b"gAMA", struct.pack(">I", 45_455)))
    bad = bytearray(good)
    bad[bad.index(b"gAMA") + 8] ^= 1
    picture = decode(bytes(bad))
    assert np.array_equal(picture.pixels, decode(good).pixels)
    assert any("damaged" in note for note in picture.notes)
    bad = bytearray(good)
    bad[bad.index(b"IDAT") + 8] ^= 1
    with pytest.raises(core.UnreadableImage):
        decode(bytes(bad))


def test_an_iphone_s_png_is_named() -> None:
    data = png((2, 1, 8, 2), bytes(7))
    data = data[:8] + png_chunk(b"CgBI", bytes(4)) + data[8:]
    with pytest.raises(core.UnreadableImage, match="iPhone"):
        core.probe(data)


def test_gamma_of_grey_becomes_a_grey_profile(lanczos: None) -> None:
    row = b"\0" + bytes([55] * 16)
    data = png((16, 8, 8, 0), row * 8, png_chunk(b"gAMA", struct.pack(">I", 100_000)))
    result = core.upscale(data)
    icc = decode(result.data or b"").meta.icc
    assert icc is not None
    assert icc[16:20] == b"GRAY"
    assert (result.data or b"")[25] == 0  # a grey PNG still
    other = core.upscale(data, core.Options(format="webp"))  # which converts
    assert abs(int(decode(other.data or b"").pixels[8, 16, 0]) - 128) <= 1


def test_greys_with_a_profile_for_colours_become_colours(lanczos: None) -> None:
    data = saved(corners(channels=1), "TIFF", icc_profile=profiles.rgb_profile(DISPLAY_P3))
    result = core.upscale(data, core.Options(format="png"))
    assert (result.data or b"")[25] == 2  # libpng takes no such profile in a grey PNG
    assert decode(result.data or b"").meta.icc == profiles.rgb_profile(DISPLAY_P3)


def raw_profile(name: str, content: bytes) -> bytes:
    """The text chunk that ImageMagick writes."""
    text = f"\n{name}\n{len(content):8d}\n{content.hex()}\n"
    key = f"Raw profile type {name.split()[0]}".encode()
    return png_chunk(b"zTXt", key + b"\0\0" + zlib.compress(text.encode()))


@pytest.mark.parametrize("name", ["exif", "APP1"])
def test_raw_profiles_come_back_byte_for_byte(name: str) -> None:
    row = b"\0" + bytes(range(6))
    block = full_exif(">", 1)
    picture = decode(png((2, 1, 8, 2), row, raw_profile(name, b"Exif\0\0" + block)))
    assert picture.meta.exif == block
    assert not picture.meta.text
    for raw in (raw_profile("xmp", XMP), raw_profile("APP1", b"http://ns.adobe.com/xap/1.0/\0" + XMP)):
        assert decode(png((2, 1, 8, 2), row, raw)).meta.xmp == XMP
    for wrapped in (raw_profile("IPTC profile", photoshop_block(iptc_records())), raw_profile("iptc", iptc_records())):
        assert decode(png((2, 1, 8, 2), row, wrapped)).meta.iptc == iptc_records()
    odd = decode(png((2, 1, 8, 2), row, raw_profile("mystery", b"abc")))
    assert any("mystery" in note for note in odd.notes)


def apng(frames: list[tuple[Array, int, int]]) -> bytes:
    """An animation of RGBA frames at the top left, each with its disposal and blending."""
    height, width = frames[0][0].shape[:2]
    out = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 6, 0, 0, 0))
    out += png_chunk(b"acTL", struct.pack(">II", len(frames), 0))
    sequence = 0
    for index, (values, disposal, blend) in enumerate(frames):
        size = values.shape[1], values.shape[0]
        out += png_chunk(b"fcTL", struct.pack(">IIIIIHHBB", sequence, *size, 0, 0, 1, 10, disposal, blend))
        rows = zlib.compress(b"".join(b"\0" + row.tobytes() for row in values))
        sequence += 1
        out += png_chunk(b"IDAT", rows) if not index else png_chunk(b"fdAT", struct.pack(">I", sequence) + rows)
        sequence += bool(index)
    return b"\x89PNG\r\n\x1a\n" + out + png_chunk(b"IEND", b"")


def flat(*colour: int, size: tuple[int, int] = (4, 4)) -> Array:
    return np.full((*size, 4), colour, np.uint8)


def test_half_transparent_frames_are_blended() -> None:
    clear, half, red = flat(0, 0, 0, 0), flat(0, 0, 255, 128), flat(255, 0, 0, 255)
    [_, mixed] = pages(apng([(red, 0, 0), (half, 0, 1)]))
    assert mixed.alpha is not None
    assert mixed.pixels[0, 0].tolist() == [127, 0, 128]
    assert mixed.alpha[0, 0] == 255
    [_, alone] = pages(apng([(clear, 0, 0), (half, 0, 1)]))
    assert alone.alpha is not None
    assert (alone.pixels[0, 0].tolist(), alone.alpha[0, 0]) == ([0, 0, 255], 128)
    [_, replaced] = pages(apng([(red, 0, 0), (half, 0, 0)]))
    assert replaced.alpha is not None
    assert replaced.alpha[0, 0] == 128


def test_disposals_of_an_animated_png() -> None:
    green, red, dot = flat(0, 255, 0, 255), flat(255, 0, 0, 255), flat(1, 2, 3, 255, size=(1, 1))
    found = list(pages(apng([(green, 0, 0), (red, 2, 1), (dot, 0, 1)])))
    assert found[2].pixels[2, 2].tolist() == [0, 255, 0]
    assert found[2].pixels[0, 0].tolist() == [1, 2, 3]
    for disposal in (1, 2):  # "previous" of the first frame means the empty canvas
        [_, last] = pages(apng([(green, disposal, 0), (dot, 0, 1)]))
        assert last.alpha is not None
        assert last.alpha[2, 2] == 0


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("shape", [(512, 1), (5000, 1), (1, 5000), (3000, 2)])
def test_very_narrow_pictures_are_written(shape: tuple[int, int], channels: int) -> None:
    """imagecodecs's own guess of the size has no room for a byte a row: found by fuzzing."""
    samples = np.random.default_rng(0).integers(0, 256, (*shape, channels), np.uint8)
    made = core.upscale(
        saved(Image.fromarray(samples if channels > 1 else samples[:, :, 0]), "PNG"), core.Options(model="lanczos")
    ).data
    assert made
    assert decode(made).pixels.shape[:2] == (2 * shape[0], 2 * shape[1])
