"""The whole way of one picture: nothing is lost between the file that goes in and the file that comes out."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image

import core
from core.codecs.read import decode
from core.engine import load
from core.formats import FORMATS, SUFFIXES
from tests.unit import profiles
from tests.unit.pictures import (
    PILLOW,
    animated,
    corners,
    exif_block,
    full_exif,
    logo,
    opened,
    patches,
    saved,
    srgb_profile,
    turned,
)
from tests.unit.profiles import ADOBE_RGB, DISPLAY_P3, SRGB

ALPHA = pytest.mark.parametrize("network", [False, True])


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
    pytest.importorskip("openvino", reason="bf16 on a CPU needs OpenVINO, which is not installed")
    monkeypatch.setattr(load, "pick_dtype", lambda spec, device: "bfloat16")
    assert core.upscale(saved(corners(), "PNG")).dtype == "bfloat16"
    assert core.upscale(bytes(imagecodecs.png_encode(corners().astype(np.uint16) * 257))).dtype == "float32"
    load._warm.clear()


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


def test_a_still_is_no_animation() -> None:
    for data in (saved(corners(), "GIF"), saved(corners(), "WEBP"), animated("GIF", 1)):
        assert core.probe(data).plays is None
        assert core.upscale(data).frames == 1


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
