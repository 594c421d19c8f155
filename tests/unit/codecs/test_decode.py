"""Nothing of a picture is lost between the file that goes in and the file that comes out."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

import core
from core.codecs.read import decode
from core.formats import FORMATS, SUFFIXES
from tests.unit.pictures import Array, corners, exif_block, opened, saved, srgb_profile

LOSSLESS = ["png", "tiff", "bmp"]
PILLOW = {"jpeg": "JPEG", "png": "PNG", "webp": "WEBP", "tiff": "TIFF", "bmp": "BMP"}


def turned(upright: Array, orientation: int) -> Array:
    """Pixels as a camera stores them, so that the orientation tag makes them `upright` (EXIF 2.32, tag 0x0112)."""
    moves: dict[int, Any] = {
        1: lambda p: p,
        2: lambda p: p[:, ::-1],
        3: lambda p: p[::-1, ::-1],
        4: lambda p: p[::-1],
        5: lambda p: p.transpose(1, 0, 2),
        6: lambda p: np.rot90(p, 1),
        7: lambda p: np.rot90(p.transpose(1, 0, 2), 2),
        8: lambda p: np.rot90(p, -1),
    }
    return np.ascontiguousarray(moves[orientation](upright))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["png", "jpeg", "webp", "tiff"])
def test_orientation_is_applied_once(format: str, orientation: int) -> None:
    upright = corners()
    options = {"quality": 100, "subsampling": 0} if format == "jpeg" else {"lossless": True} if format == "webp" else {}
    data = saved(turned(upright, orientation), PILLOW[format], exif=exif_block(Orientation=orientation), **options)

    header = core.probe(data)
    assert (header.width, header.height) == (20, 12)
    picture = decode(data)
    assert np.abs(picture.pixels.astype(int) - upright).max() <= (6 if format == "jpeg" else 0)

    result = core.upscale(data)
    assert (result.width, result.height) == (40, 24)
    found = opened(result.data)
    assert found.size == (40, 24)
    assert found.getexif().get(0x0112, 1) == 1
    # The result, made small again, is the upright picture: it was turned neither zero times nor twice.
    again = np.asarray(found.convert("RGB").resize((20, 12), Image.Resampling.BOX)).astype(int)
    assert np.abs(again - upright).mean() < 6


def test_orientation_agrees_with_pillow() -> None:
    for orientation in range(1, 9):
        data = saved(turned(corners(), orientation), "PNG", exif=exif_block(Orientation=orientation))
        assert np.array_equal(np.asarray(ImageOps.exif_transpose(opened(data))), decode(data).pixels)


@pytest.mark.parametrize("format", ["png", "tiff", "webp"])
def test_alpha_is_carried(format: str) -> None:
    pixels = corners(channels=4)
    pixels[:, :10, 3] = 0
    pixels[:, 10:, 3] = 255
    data = saved(pixels, PILLOW[format], **({"lossless": True, "exact": True} if format == "webp" else {}))
    found = opened(core.upscale(data).data)
    assert found.mode == "RGBA"
    alpha = np.asarray(found)[:, :, 3]
    assert alpha[:, :12].max() == 0
    assert alpha[:, -12:].min() == 255


@pytest.mark.parametrize("format", ["png", "tiff"])
def test_grey_with_alpha_stays_grey_with_alpha(format: str) -> None:
    layers = Image.fromarray(corners()[:, :, 0]).convert("LA")
    layers.putalpha(Image.fromarray(corners()[:, :, 1]))
    assert opened(core.upscale(saved(layers, PILLOW[format])).data).mode == "LA"


def test_opaque_alpha_stays_opaque_to_the_bit() -> None:
    pixels = corners(channels=4)
    pixels[:, :, 3] = 255
    alpha = np.asarray(opened(core.upscale(saved(pixels, "PNG"), core.Options(scale=3.3)).data))[:, :, 3]
    assert alpha.min() == 255


@pytest.mark.parametrize("format", ["png", "jpeg", "tiff", "bmp"])
def test_grey_stays_one_channel(format: str) -> None:
    found = opened(core.upscale(saved(corners()[:, :, :1], PILLOW[format])).data)
    assert found.mode == "L"


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


@pytest.mark.parametrize("format", ["png", "jpeg", "webp", "tiff"])
def test_colour_profile_is_kept(format: str) -> None:
    profile = srgb_profile()
    data = saved(corners(), PILLOW[format], icc_profile=profile)
    assert opened(core.upscale(data).data).info["icc_profile"] == profile


@pytest.mark.parametrize("format", ["png", "jpeg", "tiff", "bmp"])
def test_resolution_is_kept(format: str) -> None:
    data = saved(corners(), PILLOW[format], dpi=(300, 150))
    found = opened(core.upscale(data).data).info["dpi"]
    assert [round(float(value)) for value in found] == [300, 150]


@pytest.mark.parametrize("format", ["png", "jpeg", "webp", "tiff"])
def test_exif_is_kept(format: str) -> None:
    data = saved(corners(), PILLOW[format], exif=exif_block(Orientation=6))
    exif = opened(core.upscale(data).data).getexif()
    assert exif[0x010F] == "Maker"
    assert exif[0x013B] == "Artist"


def test_jpeg_has_no_transparency_and_says_so() -> None:
    pixels = corners(channels=4)
    pixels[:, :, 3] = 0
    result = core.upscale(saved(pixels, "PNG"), core.Options(format="jpeg"))
    assert any("transparency" in note for note in result.notes)
    assert np.asarray(opened(result.data)).min() > 250


@pytest.mark.parametrize("format", list(FORMATS))
def test_every_output_format_is_what_it_says(format: str) -> None:
    result = core.upscale(saved(corners(), "PNG"), core.Options(format=format))
    found = opened(result.data)
    assert SUFFIXES[format] in Image.registered_extensions()
    assert Image.registered_extensions()[SUFFIXES[format]] == found.format
    assert result.media_type == Image.MIME[found.format]
    assert found.size == (40, 24)


def test_every_kind_of_source_gives_the_same(tmp_path: Path) -> None:
    data = saved(corners(), "PNG")
    path = tmp_path / "in.png"
    path.write_bytes(data)

    class Pipe(io.BytesIO):
        def seekable(self) -> bool:
            return False

    sources: list[Any] = [str(path), path, data, bytearray(data), memoryview(data), io.BytesIO(data), Pipe(data)]
    for source in sources:
        assert np.array_equal(decode(source).pixels, corners())
    stream = io.BytesIO(data)
    assert core.probe(stream) == core.probe(data)
    assert stream.tell() == 0


@pytest.mark.parametrize("side", [1, 2, 3, 7])
def test_very_small_pictures(side: int) -> None:
    result = core.upscale(saved(corners(side, side), "PNG"))
    assert opened(result.data).size == (2 * side, 2 * side)


def test_format_follows_option_then_name_then_input(tmp_path: Path) -> None:
    data = saved(corners(), "PNG")
    named = tmp_path / "result.webp"
    assert core.upscale(data, output=named).format == "webp"
    assert opened(named.read_bytes()).format == "WEBP"
    assert core.upscale(data, core.Options(format="tiff"), output=named).format == "tiff"
    assert core.upscale(data, output=tmp_path / "result.unknown").format == "png"
    assert core.upscale(data).format == "png"
