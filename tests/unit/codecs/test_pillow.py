"""What Pillow reads: palettes, one bit, transparency by colour, orientation, AVIF of more than eight bits."""

from __future__ import annotations

from typing import Any

import imagecodecs
import numpy as np
import pytest
from PIL import Image, ImageOps

import core
from core.codecs.read import decode
from tests.unit.pictures import (
    XMP,
    corners,
    exif_block,
    opened,
    saved,
    turned,
)


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "TIFF"])
@pytest.mark.parametrize(("said_in_exif", "right"), [(None, 1), (1, 1), (3, 3), (6, 6)])
def test_exif_alone_turns_whatever_xmp_says(format: str, said_in_exif: int | None, right: int) -> None:
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


def test_orientation_agrees_with_pillow() -> None:
    for orientation in range(1, 9):
        data = saved(turned(corners(), orientation), "PNG", exif=exif_block(Orientation=orientation))
        assert np.array_equal(np.asarray(ImageOps.exif_transpose(opened(data))), decode(data).pixels)


def test_one_bit_becomes_grey() -> None:
    dots = Image.fromarray(corners()[:, :, 0]).convert("1")
    picture = decode(saved(dots, "PNG"))
    assert picture.pixels.shape == (12, 20, 1)
    assert set(np.unique(picture.pixels)) == {0, 255}
    assert opened(core.upscale(saved(dots, "PNG")).data).mode == "L"


def test_palette_becomes_colour() -> None:
    colours = Image.fromarray(corners()).quantize(200)
    picture = decode(saved(colours, "PNG"))
    assert np.array_equal(picture.pixels, np.asarray(colours.convert("RGB")))
    assert picture.alpha is None


@pytest.mark.parametrize("transparency", [3, bytes([0, 128, 255, 7])])
def test_palette_with_transparency_becomes_colour_with_alpha(transparency: int | bytes) -> None:
    indexed = Image.new("P", (4, 1))
    indexed.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90, 100, 110, 120])
    indexed.putdata([0, 1, 2, 3])
    data = saved(indexed, "PNG", transparency=transparency)
    picture = decode(data)
    assert picture.pixels[0].tolist() == [[10, 20, 30], [40, 50, 60], [70, 80, 90], [100, 110, 120]]
    assert picture.alpha is not None
    wanted = [255, 255, 255, 0] if transparency == 3 else [0, 128, 255, 7]
    assert picture.alpha[0].tolist() == wanted
    assert opened(core.upscale(data).data).mode == "RGBA"


def test_transparent_colour_of_a_colour_picture() -> None:
    pixels = np.full((3, 4, 3), 200, np.uint8)
    pixels[1, 2] = (1, 2, 3)
    picture = decode(saved(pixels, "PNG", transparency=(1, 2, 3)))
    assert picture.alpha is not None
    assert np.argwhere(picture.alpha == 0).tolist() == [[1, 2]]
