"""Awkward pictures: transparency, sixteen bits, profiles in numbers, TIFFs of all kinds, animations, wrong names."""

from __future__ import annotations

import io
import struct
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image, ImageCms, ImageDraw

import core
from core.__main__ import main
from core.codecs import tiff, webp
from core.codecs.read import decode, pages
from core.engine import load
from core.formats import READ_FORMATS, sniff
from core.pixels.alpha import extend_edges
from tests.unit import profiles
from tests.unit.codecs.test_decode import turned
from tests.unit.pictures import (
    XMP,
    Array,
    corners,
    exif_block,
    full_exif,
    opened,
    patches,
    png_chunk,
    saved,
    srgb_profile,
    with_everything,
)
from tests.unit.profiles import ADOBE_RGB, DISPLAY_P3, SRGB

ALPHA = pytest.mark.parametrize("network", [False, True])


@pytest.fixture
def lanczos(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "load_first", lambda chain, device: load.Loaded(None, "lanczos", False, "", 0.0))


# Orientation


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_of_avif_and_heif(orientation: int) -> None:
    pillow_heif = pytest.importorskip("pillow_heif", reason="pillow-heif is not installed: no HEIC to read")
    stored = Image.fromarray(turned(corners(48, 80), orientation))
    block = exif_block(Orientation=orientation)
    heif = io.BytesIO()
    file = pillow_heif.from_pillow(stored)
    file.info["exif"] = block
    file.save(heif, quality=90)
    for data in (saved(stored, "AVIF", exif=block, quality=95), heif.getvalue()):
        header = core.probe(data)
        assert (header.width, header.height) == (80, 48)
        picture = decode(data)
        assert np.abs(picture.pixels.astype(int) - corners(48, 80)).mean() < 4
        assert picture.pixels.shape == (48, 80, 3)


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "TIFF"])
@pytest.mark.parametrize(("said_in_exif", "right"), [(None, 6), (1, 1), (3, 3), (6, 6)])
def test_exif_decides_where_xmp_says_something_else(format: str, said_in_exif: int | None, right: int) -> None:
    upright = corners(48, 80)
    options: dict[str, Any] = {"lossless": True} if format == "WEBP" else {"quality": 98} if format == "JPEG" else {}
    if said_in_exif is not None:
        options["exif"] = exif_block(Orientation=said_in_exif)
    stored = Image.fromarray(turned(upright, right))
    if format == "TIFF":
        options["tiffinfo"] = {700: XMP, **({} if said_in_exif is None else {274: said_in_exif})}
    elif format == "PNG":
        from PIL.PngImagePlugin import PngInfo

        options["pnginfo"] = info = PngInfo()
        info.add_itxt("XML:com.adobe.xmp", XMP.decode())
    else:
        options["xmp"] = XMP
    data = saved(stored, format, **options)
    header = core.probe(data)
    assert (header.width, header.height) == (80, 48)
    assert np.abs(decode(data).pixels.astype(int) - upright).mean() < 4
    after = core.upscale(data).data
    assert after is not None
    assert decode(after).pixels.shape == (96, 160, 3)
    assert np.abs(np.asarray(Image.fromarray(decode(after).pixels).resize((80, 48))).astype(int) - upright).mean() < 6


# Transparency


def logo() -> Array:
    """(64, 64, 4): a white ring and bar over transparent black, with soft edges."""
    drawn = Image.new("L", (256, 256))
    pen = ImageDraw.Draw(drawn)
    pen.ellipse((30, 30, 200, 200), outline=255, width=24)
    pen.rectangle((120, 180, 240, 220), fill=255)
    alpha = np.asarray(drawn.resize((64, 64), Image.Resampling.BOX))
    return np.dstack([np.where(alpha[:, :, None] > 0, np.uint8(255), np.uint8(0)).repeat(3, axis=2), alpha])


@ALPHA
@pytest.mark.parametrize("scale", [2, 2.7, 4])
def test_no_dark_edge_around_a_white_logo(network: bool, scale: float, request: pytest.FixtureRequest) -> None:
    if not network:
        request.getfixturevalue("lanczos")
    white = np.full((64, 64, 3), 255, np.uint8)
    best = opened(core.upscale(saved(white, "PNG"), core.Options(scale=scale)).data)  # what the model makes of white
    found = opened(core.upscale(saved(logo(), "PNG"), core.Options(scale=scale)).data)
    visible = np.asarray(found)[np.asarray(found)[:, :, 3] > 0]
    assert visible[:, :3].min() >= np.asarray(best).min() - 1
    # Without care, black bleeds in: Lanczos on the same picture, straight.
    naive = np.asarray(Image.fromarray(logo()[:, :, :3]).resize(found.size, Image.Resampling.LANCZOS))
    assert naive[np.asarray(found)[:, :, 3] > 0].min() < 200


def test_hidden_colour_is_that_of_the_neighbours() -> None:
    pixels = np.zeros((33, 47, 3), np.uint8)
    pixels[:, :20] = (250, 10, 90)
    alpha = np.zeros((33, 47), np.uint8)
    alpha[:, :20] = 255
    alpha[:, 20] = 1
    found = extend_edges(pixels, alpha)
    assert (found[:, :20] == (250, 10, 90)).all()
    assert (found[:, 20] == 0).all()  # visible, if barely: its own colour stays
    assert np.abs(found[:, 21:].astype(int) - (250, 10, 90)).max() <= 10
    assert extend_edges(pixels, np.full_like(alpha, 9)) is pixels
    assert extend_edges(pixels, np.zeros_like(alpha)) is pixels


def _pulled(colour: Array, weight: Array) -> Array:
    """The pyramid of hidden colours as its paper has it, all levels at once."""
    height, width = weight.shape[:2]
    if height == width == 1 or (weight == 1).all():
        return colour

    def halved(values: Array) -> Array:
        values = np.pad(values, ((0, height % 2), (0, width % 2), (0, 0)))
        return values[0::2, 0::2] + values[0::2, 1::2] + values[1::2, 0::2] + values[1::2, 1::2]

    below_weight = halved(weight)
    below = _pulled(halved(colour * weight) / np.maximum(below_weight, 1e-12), np.minimum(below_weight, 1))
    found: Array = colour * weight + below.repeat(2, axis=0).repeat(2, axis=1)[:height, :width] * (1 - weight)
    return found


@pytest.mark.parametrize("size", [(2, 1), (1, 9), (256, 5), (257, 40), (1025, 33), (601, 700)])
@pytest.mark.parametrize(("dtype", "channels"), [(np.uint8, 3), (np.uint16, 1)])
def test_hidden_colour_in_strips_is_that_of_the_whole(size: tuple[int, int], dtype: type, channels: int) -> None:
    generator, top = np.random.default_rng(size[0]), np.iinfo(dtype).max
    pixels = generator.integers(0, top + 1, (*size, channels), dtype)
    alpha = generator.choice(np.array([0, 0, 0, 1, top // 3, top], dtype), size)
    alpha[: size[0] // 2, size[1] // 3 :] = 0
    alpha[0, 0], alpha[-1, -1] = 5, 0
    weight = (alpha[:, :, None].astype(np.float32) / top).astype(np.float32)
    pulled: Array = np.rint(_pulled(pixels.astype(np.float32), weight)).astype(dtype)
    expected = np.where(alpha[:, :, None] == 0, pulled, pixels)
    assert np.array_equal(extend_edges(pixels, alpha), expected)


def test_hidden_colour_takes_little_memory() -> None:
    pixels, alpha = np.zeros((2000, 1500, 3), np.uint8), np.zeros((2000, 1500), np.uint8)
    alpha[::7, ::5] = 255
    tracemalloc.start()
    extend_edges(pixels, alpha)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak <= 20 * alpha.size  # bytes


@ALPHA
def test_opaque_and_transparent_stay_so_to_the_bit(network: bool, request: pytest.FixtureRequest) -> None:
    if not network:
        request.getfixturevalue("lanczos")
    for top, data in (
        (255, saved(logo(), "PNG")),
        (65535, bytes(imagecodecs.png_encode(logo().astype(np.uint16) * 257))),
    ):
        after = decode(core.upscale(data).data or b"").alpha
        assert after is not None
        before = logo()[:, :, 3]
        padded = np.pad(before, 1, mode="edge")
        around = np.stack([padded[y : y + 64, x : x + 64] for y in range(3) for x in range(3)])
        for value, wanted in ((255, top), (0, 0)):
            flat = (around == value).all(axis=0).repeat(2, axis=0).repeat(2, axis=1)
            assert flat.any()
            assert (after[flat] == wanted).all()


def test_premultiplied_tiff_is_divided() -> None:
    alpha = np.tile(np.linspace(0, 255, 20).astype(np.uint8), (8, 1))
    straight = np.full((8, 20, 3), (200, 100, 50))
    for scale, dtype, tolerance in ((1, np.uint8, 20), (257, np.uint16, 200)):
        deep = (alpha.astype(np.uint32) * scale).astype(dtype)
        colour = np.rint(straight * (alpha[:, :, None] / 255.0) * scale).astype(dtype)
        stream = io.BytesIO()
        tifffile.imwrite(stream, np.dstack([colour, deep]), photometric="rgb", extrasamples=["assocalpha"])
        picture = decode(stream.getvalue())
        assert picture.alpha is not None
        assert (picture.alpha == deep).all()
        seen = picture.pixels[:, 3:].astype(int) - straight[:, 3:] * scale
        assert np.abs(seen).max() <= tolerance


# Sixteen bits


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


def test_the_embedded_network_keeps_more_than_eight_bits() -> None:
    ramp = np.tile((20_000 + 20 * np.arange(256)).astype(np.uint16), (32, 1))
    for data in (bytes(imagecodecs.png_encode(ramp)), bytes(imagecodecs.png_encode(np.dstack([ramp] * 3)))):
        result = core.upscale(data)
        assert result.dtype == "float32"  # bf16 has eight bits for a number
        after = decode(result.data or b"").pixels[:, :, 0]
        middle = after[16:-16, 32:-32].astype(float)
        # A step of the input is 20, one of eight bits would be 257.
        assert len(np.unique(middle)) > 300
        for phase in (0, 1):  # a network may treat the two halves of a pixel differently
            steps = np.diff(middle.mean(axis=0)[phase::2])
            assert 0 < steps.min() <= steps.max() < 100


def test_deep_pictures_of_a_lossy_network_dtype_run_in_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(load, "pick_dtype", lambda device: torch.bfloat16)
    assert core.upscale(saved(corners(), "PNG")).dtype == "bfloat16"
    assert core.upscale(bytes(imagecodecs.png_encode(corners().astype(np.uint16) * 257))).dtype == "float32"
    load._warm.clear()


@pytest.mark.parametrize("bits", [10, 12])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_avif_of_more_than_eight_bits(bits: int, channels: int) -> None:
    values = corners(40, 60, 4)[:, :, :channels].astype(np.uint16) << (bits - 8) | 1
    flat = values[:, :, 0] if channels == 1 else values
    pixel_format = "400" if channels == 1 else "444"
    data = bytes(imagecodecs.avif_encode(flat, 100, bitspersample=bits, pixelformat=pixel_format))
    assert core.probe(data).bits == bits
    picture = decode(data)
    assert picture.pixels.dtype == np.uint16
    found = picture.pixels if picture.alpha is None else np.dstack([picture.pixels, picture.alpha])
    assert np.abs(found / 65535 - values / ((1 << bits) - 1)).max() < 1 / 256
    assert any("8 bits" in note for note in core.upscale(data).notes)
    assert core.probe(core.upscale(data, core.Options(format="png")).data or b"").bits == 16


# Colour


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


@pytest.mark.parametrize(
    ("icc", "word"),
    [
        (b"no profile", "damaged"),
        (srgb_profile()[:200], "damaged"),
        (b"\xff" * 600, "damaged"),
        (profiles.cmyk_profile(), "other pixels"),
        (profiles.grey_profile(2.2), "other pixels"),
    ],
)
def test_a_profile_that_lies_is_left_out_and_told(icc: bytes, word: str) -> None:
    for format in ("PNG", "JPEG", "WEBP", "TIFF"):
        data = saved(corners(), format, icc_profile=icc)
        for target in (None, "bmp"):
            result = core.upscale(data, core.Options(format=target))
            assert "icc_profile" not in opened(result.data).info
            assert any(word in note for note in result.notes)


def test_a_cmyk_profile_that_lies_gives_the_plain_formula() -> None:
    inks = Image.fromarray(corners(channels=4), "CMYK")
    for icc in (b"nonsense", srgb_profile(), profiles.cmyk_profile()[:-100]):
        picture = decode(saved(inks, "TIFF", icc_profile=icc))
        assert picture.meta.icc is None
        assert picture.pixels.shape == (12, 20, 3)
        assert picture.notes


def test_grey_with_an_rgb_profile_keeps_it() -> None:
    profile = profiles.rgb_profile(ADOBE_RGB)
    data = saved(corners(channels=1), "JPEG", icc_profile=profile)
    assert decode(core.upscale(data).data or b"").meta.icc == profile
    assert core.upscale(data, core.Options(format="bmp")).notes


# How it is stored


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


# TIFF


def test_white_is_zero() -> None:
    for values in (corners(channels=1), corners(channels=1).astype(np.uint16) * 200):
        stream = io.BytesIO()
        tifffile.imwrite(stream, values[:, :, 0], photometric="miniswhite")
        assert np.array_equal(decode(stream.getvalue()).pixels, np.iinfo(values.dtype).max - values)


@pytest.mark.parametrize("dtype", ["int8", "int16", "uint32", "int32", "float16", "float32", "float64", "uint64"])
@pytest.mark.parametrize("channels", [1, 3])
def test_numbers_of_every_type_come_back_as_such(dtype: str, channels: int, lanczos: None) -> None:
    values = corners(24, 30, 3)[:, :, :channels].astype(np.float64) / 2
    values = (values - (30 if np.dtype(dtype).kind != "u" else 0)).astype(dtype)
    flat = values[:, :, 0] if channels == 1 else values
    stream = io.BytesIO()
    tifffile.imwrite(stream, flat, photometric="minisblack" if channels == 1 else "rgb")
    result = core.upscale(stream.getvalue())
    after = tifffile.imread(io.BytesIO(result.data or b""))
    assert after.dtype == np.dtype(dtype)
    assert after.shape == (48, 60, *flat.shape[2:])
    small = after.reshape(24, 2, 30, 2, -1).astype(float).mean(axis=(1, 3))
    assert np.abs(small - values)[2:-2, 2:-2].max() < 2
    told = core.upscale(stream.getvalue(), core.Options(format="png"))
    assert any("only tiff" in note for note in told.notes)


def test_floats_that_are_no_numbers(lanczos: None) -> None:
    values = np.linspace(0, 1, 600, dtype=np.float32).reshape(20, 30)
    values[3, 4], values[5, 6], values[7, 8] = np.nan, np.inf, -np.inf
    stream = io.BytesIO()
    tifffile.imwrite(stream, values)
    assert np.isfinite(tifffile.imread(io.BytesIO(core.upscale(stream.getvalue()).data or b""))).all()


def test_a_small_file_can_be_written_as_bigtiff(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = core.upscale(with_everything(corners()), core.Options(format="tiff")).data
    monkeypatch.setattr(tiff, "BIG", 0)
    big = core.upscale(with_everything(corners()), core.Options(format="tiff")).data
    assert plain is not None
    assert big is not None
    assert (plain[:4], big[:4]) == (b"II*\0", b"II+\0")
    one, other = decode(plain), decode(big)
    assert np.array_equal(one.pixels, other.pixels)
    assert one.meta == other.meta
    with tifffile.TiffFile(io.BytesIO(big)) as file:
        assert np.array_equal(file.asarray(), one.pixels)
        assert file.pages[0].tags["ExifTag"].value["ExposureTime"] == (1, 125)  # type: ignore[union-attr]


def test_size_decides_for_bigtiff(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = Image.fromarray(corners(12, 20)), Image.fromarray(corners(30, 40))
    for data, pixels in (
        (saved(first, "TIFF"), 12 * 20),
        (saved(first, "TIFF", save_all=True, append_images=[second]), 12 * 20 + 30 * 40),
    ):
        for size, kind in ((pixels * 4 * 3, b"II*\0"), (pixels * 4 * 3 - 1, b"II+\0")):
            monkeypatch.setattr(tiff, "BIG", size)
            assert (core.upscale(data).data or b"")[:4] == kind


def test_tiff_description_travels_to_other_formats() -> None:
    described = {270: "What is seen", 271: "Maker", 305: "Software", 315: "Artist", 33432: "Copyright"}
    data = saved(corners(), "TIFF", tiffinfo=described, dpi=(300, 300))
    for format in ("jpeg", "png", "webp", "tiff", "avif"):
        found = opened(core.upscale(data, core.Options(format=format)).data).getexif()
        assert {tag: found[tag] for tag in described} == described
        assert 273 not in found or format == "tiff"  # strips of another file


def test_pages_of_all_sizes_and_depths(lanczos: None) -> None:
    stream = io.BytesIO()
    with tifffile.TiffWriter(stream) as file:
        file.write(corners(10, 12), photometric="rgb")
        file.write(corners(14, 9, 1)[:, :, 0].astype(np.uint16) * 257, photometric="minisblack")
        file.write(np.linspace(-3, 8, 70, dtype=np.float32).reshape(7, 10), photometric="minisblack")
        colours = np.linspace(0, 65535, 768).astype(np.uint16).reshape(3, 256)
        file.write(corners(5, 6, 1)[:, :, 0], photometric="palette", colormap=colours)
    header = core.probe(stream.getvalue())
    assert (header.frames, header.plays, header.bits) == (4, None, 32)
    seen: list[tuple[int, int]] = []
    result = core.upscale(stream.getvalue(), progress=lambda done, total: seen.append((done, total)))
    assert result.frames == 4
    assert seen[-1][0] == seen[-1][1]
    after = tifffile.TiffFile(io.BytesIO(result.data or b""))
    with after:
        assert [page.shape for page in after.pages] == [(20, 24, 3), (28, 18), (14, 20), (10, 12, 3)]
        assert [str(page.dtype) for page in after.pages] == ["uint8", "uint16", "float32", "uint8"]


def test_the_pages_together_are_limited() -> None:
    small, large = Image.fromarray(corners(4, 4)), Image.fromarray(corners(40, 40))
    data = saved(small, "TIFF", save_all=True, append_images=[large])
    with pytest.raises(core.TooLarge, match="together"):
        core.upscale(data, limits=core.Limits(output_pixels=4 * (16 + 1600) - 1))
    assert core.upscale(data, limits=core.Limits(output_pixels=4 * (16 + 1600))).frames == 2


def test_equal_numbers_of_other_depths_are_other_pages() -> None:
    stream = io.BytesIO()
    with tifffile.TiffWriter(stream) as file:
        file.write(np.full((8, 8), 7, np.uint8), photometric="minisblack")
        file.write(np.full((8, 8), 7, np.uint16), photometric="minisblack")
    with tifffile.TiffFile(io.BytesIO(core.upscale(stream.getvalue()).data or b"")) as file:
        assert [str(page.dtype) for page in file.pages] == ["uint8", "uint16"]


def test_pages_are_turned_one_by_one() -> None:
    stream = io.BytesIO()
    with tifffile.TiffWriter(stream) as file:
        for orientation in (1, 6, 3, 8):
            tag = (274, "H", 1, orientation, True)
            file.write(turned(corners(10, 16), orientation), photometric="rgb", extratags=[tag], metadata=None)
    for picture in pages(stream.getvalue()):
        assert np.array_equal(picture.pixels, corners(10, 16))


def test_a_circle_of_pages_ends() -> None:
    data = bytearray(saved(corners(), "TIFF"))
    (first,) = struct.unpack_from("<I", data, 4)
    (count,) = struct.unpack_from("<H", data, first)
    struct.pack_into("<I", data, first + 2 + 12 * count, first)
    assert core.probe(bytes(data)).frames == 1
    assert len(list(pages(bytes(data)))) == 1


# Animation


def animated(format: str, count: int = 5, **options: Any) -> bytes:
    frames = [Image.fromarray(np.roll(corners(16, 24), 4 * index, axis=1)) for index in range(count)]
    return saved(frames[0], format, save_all=True, append_images=frames[1:], **{"duration": 80, **options})


def test_frames_that_stand_still_are_made_once() -> None:
    calls: list[int] = []
    frames = [Image.fromarray(corners(16, 24))] * 3
    stream = io.BytesIO()
    tifffile.imwrite(stream, np.stack([np.asarray(frame) for frame in frames]), photometric="rgb")
    result = core.upscale(stream.getvalue(), progress=lambda done, total: calls.append(done))
    assert result.frames == 3
    assert max(calls) == 1


def test_progress_runs_over_all_frames() -> None:
    seen: list[tuple[int, int]] = []
    core.upscale(animated("WEBP", lossless=True), progress=lambda done, total: seen.append((done, total)))
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert len({total for _, total in seen}) == 1
    assert seen[-1] == (5, 5)


def test_an_animation_that_ends_early_leaves_nothing(tmp_path: Path) -> None:
    data = animated("GIF")
    cut = data[: len(data) * 3 // 4]
    with pytest.raises(core.UnreadableImage):
        core.upscale(cut, output=tmp_path / "out.webp")
    assert list(tmp_path.iterdir()) == []


def test_a_gif_whose_frames_grow() -> None:
    data = bytearray(animated("GIF", 2))
    struct.pack_into("<HH", data, 6, 8, 8)  # a canvas smaller than the frames
    header = core.probe(bytes(data))
    assert (header.width, header.height) == (24, 16)
    assert {picture.pixels.shape for picture in pages(bytes(data))} == {(16, 24, 3)}
    assert core.upscale(bytes(data)).width == 48


@pytest.mark.parametrize(("loop", "plays"), [(None, 1), (0, 0), (2, 3)])
def test_plays_of_a_gif(loop: int | None, plays: int) -> None:
    data = animated("GIF") if loop is None else animated("GIF", loop=loop)
    assert core.probe(data).plays == plays
    for format in ("webp", "png"):
        assert core.probe(core.upscale(data, core.Options(format=format)).data or b"").plays == plays


def test_the_extra_still_of_a_png_is_not_a_frame() -> None:
    data = animated("PNG", default_image=True)
    assert core.probe(data).frames == 4
    result = core.upscale(data)
    assert result.frames == 4
    assert any("still picture" in note for note in result.notes)


def test_an_extension_of_xmp_is_told() -> None:
    data = b"http://ns.adobe.com/xmp/extension/\0" + bytes(40)
    extended = saved(corners(), "JPEG", extra=b"\xff\xe1" + struct.pack(">H", len(data) + 2) + data)
    assert any("extension" in note for note in core.upscale(extended).notes)


def test_the_other_pictures_of_a_jpeg_are_told() -> None:
    data = saved(Image.fromarray(corners()), "MPO", save_all=True, append_images=[Image.fromarray(corners())])
    assert core.probe(data).frames == 1
    assert any("first of 2 pictures" in note for note in core.upscale(data).notes)


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


def test_a_still_is_no_animation() -> None:
    for data in (saved(corners(), "GIF"), saved(corners(), "WEBP"), animated("GIF", 1)):
        assert core.probe(data).plays is None
        assert core.upscale(data).frames == 1


# Names and types


@pytest.mark.parametrize(
    ("data", "format"),
    [
        (saved(corners(), "GIF"), "png"),
        (animated("GIF"), "webp"),
        (saved(corners(), "AVIF"), "avif"),
        (saved(corners(), "BMP"), "bmp"),
    ],
)
def test_result_format(data: bytes, format: str) -> None:
    assert core.probe(data).result_format == format
    assert core.upscale(data).format == format


def test_the_command_names_results_by_their_content(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "wrong.jpg").write_bytes(saved(corners(), "PNG"))
    (tmp_path / "moving.gif").write_bytes(animated("GIF"))
    (tmp_path / "photo.JPEG").write_bytes(saved(corners(), "JPEG"))
    out = tmp_path / "out"
    assert main([str(tmp_path), "--output", str(out), "--quiet"]) == 0
    assert {path.name for path in out.iterdir()} == {"wrong-x2.png", "moving-x2.webp", "photo-x2.JPEG"}
    assert main([str(tmp_path), "--output", str(out)]) == 0
    assert "3 already finished" in capsys.readouterr().out


def test_options_of_the_command(tmp_path: Path) -> None:
    source = tmp_path / "in.jpg"
    source.write_bytes(with_everything(corners()))
    out = tmp_path / "out.jpg"
    assert main([str(source), "-o", str(out), "--quiet", "--drop-gps", "--keep-size"]) == 0
    found = opened(out.read_bytes())
    assert found.info["dpi"] == (600, 600)
    assert 0x8825 not in found.getexif()
    assert main([str(source), "-o", str(out), "--quiet", "--strip"]) == 0
    assert "exif" not in opened(out.read_bytes()).info


def test_names_cannot_steer_a_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = "a\x1b[31m\nerror: no\u202e.png"
    (tmp_path / name).write_bytes(b"broken")
    assert main([str(tmp_path / name)]) == 3
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert "\x1b" not in told
    assert "\u202e" not in told


@pytest.mark.parametrize(
    ("declared", "fits"),
    [
        (None, True),
        ("image/png", True),
        ("image/png; charset=binary", True),
        ("IMAGE/X-PNG", True),
        ("photo.PNG", True),
        ("application/octet-stream", True),
        ("photo", True),
        ("notes.txt", True),
        ("image/jpeg", False),
        ("image/heic", False),
        ("photo.tiff", False),
    ],
)
def test_the_declared_type_must_be_true(declared: str | None, fits: bool) -> None:
    data = saved(corners(), "PNG")
    if fits:
        assert core.probe(data, declared=declared).format == "png"
        assert core.upscale(data, declared=declared).width == 40
    else:
        for call in (core.probe, core.upscale):
            with pytest.raises(core.UnreadableImage, match="declared"):
                call(data, declared=declared)


def test_sniffing_knows_what_is_read() -> None:
    for name, pillow in READ_FORMATS.items():
        if name != "heif":
            assert sniff(saved(corners(), pillow)) == name
    assert sniff(b"%PDF-1.7") is None
    assert sniff(b"\0\0\0\x18ftypisom\0\0\0\0isommp42") is None


def test_full_exif_of_a_phone_picture_in_png() -> None:
    info = {"exif": b"Exif\0\0" + full_exif(">")}
    after = opened(core.upscale(saved(corners(20, 12), "PNG", **info)).data)
    assert after.size == (40, 24)
    assert after.getexif().get_ifd(0x8769)[0xA002] == 40


@pytest.mark.parametrize("space", [DISPLAY_P3, ADOBE_RGB, SRGB])
@pytest.mark.parametrize("format", ["png", "jpeg", "webp", "tiff", "bmp"])
def test_the_embedded_network_keeps_flat_colours(format: str, space: profiles.Space) -> None:
    before = patches()
    result = core.upscale(
        saved(before, "PNG", icc_profile=profiles.rgb_profile(space)), core.Options(format=format, device="cpu")
    )
    assert result.model == "compact-x2"
    after = decode(result.data or b"")
    seen = space if after.meta.icc else SRGB
    worst = 0.0
    for row, column in np.ndindex(3, 6):
        inner = after.pixels[row * 64 + 16 : row * 64 + 48, column * 64 + 16 : column * 64 + 48] / 255
        wanted = profiles.lab(before[row * 32, column * 32] / 255, space)
        worst = max(worst, float(profiles.delta_e(profiles.lab(inner, seen), wanted).max()))
    assert worst <= 1.0
