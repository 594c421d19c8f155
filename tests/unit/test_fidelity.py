"""The tables of docs/fidelity.md: what each format carries from the input to the result, measured.

Every cell is the outcome of a function here that makes a picture, sends it through `core.upscale` and looks at what
came out. What a format cannot hold must be told in a note of the result. After a change on purpose:

    python -m tests.unit.test_fidelity > docs/fidelity.md
"""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image, IptcImagePlugin

import core
from core.codecs.read import decode, pages
from core.engine import load
from core.formats import FORMATS
from core.picture import Picture
from tests.unit import profiles
from tests.unit.pictures import (
    XMP,
    Array,
    corners,
    iptc_records,
    opened,
    patches,
    saved,
    with_everything,
)
from tests.unit.profiles import ADOBE_RGB, DISPLAY_P3, SRGB, Space, delta_e, lab

pillow_heif = pytest.importorskip("pillow_heif", reason="pillow-heif is not installed: no HEIC to read")
DOCUMENT = Path(__file__).parents[2] / "docs" / "fidelity.md"
P3 = profiles.rgb_profile(DISPLAY_P3)


def upscaled(data: bytes, format: str | None = None, **options: Any) -> tuple[Picture, core.Result]:
    """The result, as our own reader sees it, and what was told of it."""
    result = core.upscale(data, core.Options(format=format, **options))
    assert result.data is not None
    return decode(result.data), result


def told(result: core.Result, word: str) -> bool:
    return any(word.lower() in note.lower() for note in result.notes)


def deep_ramp(channels: int = 3) -> Array:
    """(32, 256, channels) uint16: rises by 37 of 65,535 for each column, so neighbours agree in their upper bits."""
    ramp = 11_000 + 37 * np.arange(256)
    return np.repeat(np.tile(ramp, (32, 1))[:, :, None], channels, axis=2).astype(np.uint16)


def heif(pixels: Array, mode: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image = pillow_heif.from_bytes(mode=mode, size=(pixels.shape[1], pixels.shape[0]), data=pixels.tobytes())
    image.save(stream, format="HEIF", **{"quality": -1, "chroma": 444, "matrix_coefficients": 0, **options})
    return stream.getvalue()


def png16(values: Array) -> bytes:
    return bytes(imagecodecs.png_encode(values))


def ycck(inks: Array) -> bytes:
    inverted = 255 - inks  # as Adobe stores it
    return bytes(imagecodecs.jpeg8_encode(inverted, 100, colorspace="CMYK", outcolorspace="YCCK", subsampling="444"))


def tiff(values: Array, **options: Any) -> bytes:
    stream = io.BytesIO()
    tifffile.imwrite(stream, values, **options)
    return stream.getvalue()


# What goes out: each takes an output format and gives a cell.


def colour_error(format: str, space: Space) -> float:
    """Largest CIEDE2000 of flat patches between input and result, each seen through its own profile."""
    before = patches()
    profile = profiles.rgb_profile(space)
    after, result = upscaled(saved(before, "PNG", icc_profile=profile), format)
    if after.meta.icc == profile:
        seen = space
    else:
        assert after.meta.icc is None
        assert told(result, "converted to sRGB")
        seen = SRGB
    worst = 0.0
    for row in range(3):
        for column in range(6):
            inner = after.pixels[row * 64 + 16 : row * 64 + 48, column * 64 + 16 : column * 64 + 48] / 255
            wanted = lab(before[row * 32, column * 32] / 255, space)
            worst = max(worst, float(delta_e(lab(inner, seen), wanted).max()))
    return worst


def wide_gamut(format: str, space: Space) -> str:
    bound = 2 if format == "avif" else 1  # libavif turns RGB into YCbCr of 8 bits, which costs one step of RGB
    assert colour_error(format, space) <= bound
    kept = upscaled(saved(corners(), "PNG", icc_profile=profiles.rgb_profile(space)), format)[0].meta.icc
    how = "profile kept" if kept else "in sRGB"
    return f"same colours, {how}" if bound == 1 else f"within {bound}, {how}"


def grey_profile(format: str) -> str:
    profile = profiles.grey_profile(1.0)
    before = np.full((16, 16, 1), 55, np.uint8)  # in linear light: about 128 in sRGB
    after, result = upscaled(saved(before, "PNG", icc_profile=profile), format)
    middle = int(after.pixels[16, 16, 0])
    if after.meta.icc == profile:
        assert abs(middle - 55) <= 1
        return "kept"
    assert abs(middle - 128) <= 1
    assert told(result, "converted to sRGB")
    return "same greys, in sRGB"


def sixteen_bits(format: str) -> str:
    after, result = upscaled(png16(deep_ramp()), format)
    levels = len(np.unique(after.pixels[:, :, 1]))
    if after.pixels.dtype == np.uint8:
        assert told(result, "8 bits")
        return "8 bits, told"
    # 9,435 of 65,535 steps: 8 bits could tell 37 of them apart.
    assert levels > 256
    return "16 bits"


def transparency(format: str) -> str:
    pixels = corners(channels=4)
    pixels[:, :10, 3] = 0
    pixels[:, 10:, 3] = 255
    after, result = upscaled(saved(pixels, "PNG"), format)
    if after.alpha is None:
        assert after.pixels[:, :12].min() > 250
        assert told(result, "transparency")
        return "put on white, told"
    assert after.alpha[:, :12].max() == 0
    assert after.alpha[:, -12:].min() == 255
    return "kept"


def one_channel(format: str) -> str:
    after, _ = upscaled(saved(corners(channels=1), "PNG"), format)
    if after.pixels.shape[2] == 1:
        return "one channel"
    assert np.ptp(after.pixels.astype(int), axis=2).max() == 0 or format in ("webp", "avif")
    assert np.ptp(after.pixels.astype(int), axis=2).max() <= 2
    return "as grey RGB"


def everything(format: str) -> tuple[bytes, core.Result]:
    result = core.upscale(with_everything(corners(), orientation=6), core.Options(format=format))
    assert result.data is not None
    return result.data, result


def exif_block(format: str) -> str:
    data, result = everything(format)
    found = opened(data).getexif()
    if 0x010F not in found:
        assert told(result, "EXIF")
        return "no place, told"
    below = found.get_ifd(0x8769)
    assert (below[0xA002], below[0xA003]) == (result.width, result.height)
    assert found.get(0x0112, 1) == 1
    assert found[0x010F] == "Maker"
    assert found.get_ifd(0x8825)[2] == (48, 51, 30)
    assert found.get_ifd(1) == {}
    assert b"MAKER NOTE" in data
    return "kept, size corrected, thumbnail dropped"


def xmp_packet(format: str) -> str:
    data, result = everything(format)
    if b"xmpmeta" not in data:
        assert told(result, "XMP")
        return "no place, told"
    found = decode(data).meta.xmp
    assert found is not None
    assert b'tiff:Orientation="1"' in found
    assert f'PixelXDimension="{result.width}"'.encode() in found
    assert len(found) == len(XMP)
    return "kept, corrected"


def iptc(format: str) -> str:
    data, result = everything(format)
    found = decode(data).meta.iptc
    if found is None:
        assert told(result, "IPTC")
        return "no place, told"
    assert found == iptc_records()
    if format in ("jpeg", "tiff"):  # as Pillow reads it, too
        records = IptcImagePlugin.getiptcinfo(opened(data)) or {}  # type: ignore[arg-type]
        assert records[2, 25] in (b"keyword", [b"keyword"])
    return "kept"


def resolution(format: str) -> str:
    data, _ = everything(format)
    found = decode(data).meta.dpi
    assert found is not None
    assert round(found[0]) == round(found[1]) == 300
    return "kept in EXIF" if "dpi" not in opened(data).info else "kept"


def comment(format: str) -> str:
    data, result = everything(format)
    if "Comment wïth more".encode() in data or "Comment wïth more".encode("latin-1") in data:
        return "kept"
    assert told(result, "texts")
    return "no place, told"


def frames() -> list[Image.Image]:
    """Four frames of 24x16: a square that wanders, over a transparent ground."""
    found = []
    for index in range(4):
        values = np.zeros((16, 24, 4), np.uint8)
        values[4:12, 2 + 5 * index : 8 + 5 * index] = (200, 40 * index, 90, 255)
        found.append(Image.fromarray(values))
    return found


DURATIONS = [100, 250, 40, 1000]


def animation(format: str, made_as: str = "PNG") -> str:
    first, *others = frames()
    options: dict[str, Any] = {"disposal": 2} if made_as == "GIF" else {}
    if made_as == "WEBP":
        options = {"lossless": True, "exact": True}
    data = saved(first, made_as, save_all=True, append_images=others, duration=DURATIONS, loop=3, **options)
    header = core.probe(data)
    assert header.frames == 4
    result = core.upscale(data, core.Options(format=format))
    assert result.data is not None
    if result.frames == 1:
        assert told(result, "first of 4 frames")
        return "first frame, told"
    after = core.probe(result.data)
    assert (after.frames, result.frames) == (4, 4)
    shown = list(pages(result.data))
    assert [round(frame.duration) for frame in shown] == DURATIONS
    for before, frame in zip(frames(), shown, strict=True):
        wanted = np.asarray(before).repeat(2, axis=0).repeat(2, axis=1)
        assert frame.alpha is not None
        # Inside and outside of the square, away from its edge: nothing of an earlier frame is left.
        inside = wanted[4:-4, 4:-4, 3] == 255
        assert frame.alpha[4:-4, 4:-4][inside].min() > 20
        far = np.asarray(before.resize((48, 32)).convert("RGBA"))[:, :, 3] == 0
        grown = np.zeros_like(far)
        grown[8 - 6 : 24 + 6] = True
        assert frame.alpha[~grown & far].max(initial=0) == 0
    if format == "avif":
        return "kept (AVIF has no number of plays)"
    assert after.plays == header.plays
    return "kept: timing, plays, disposal"


def several_pages(format: str) -> str:
    first = Image.fromarray(corners(12, 20))
    second = Image.fromarray(corners(8, 30, 1)[:, :, 0])
    data = saved(first, "TIFF", save_all=True, append_images=[second])
    result = core.upscale(data, core.Options(format=format))
    assert result.data is not None
    if result.frames == 1:
        assert told(result, "first of 2 pages")
        return "first page, told"
    found = list(pages(result.data))
    assert [page.pixels.shape for page in found] == [(24, 40, 3), (16, 60, 1)]
    return "kept"


OUTPUTS: dict[str, Callable[[str], str]] = {
    "Display P3": lambda format: wide_gamut(format, DISPLAY_P3),
    "Adobe RGB": lambda format: wide_gamut(format, ADOBE_RGB),
    "Grey profile": grey_profile,
    "16 bits a channel": sixteen_bits,
    "Transparency": transparency,
    "Greyscale": one_channel,
    "EXIF": exif_block,
    "XMP": xmp_packet,
    "IPTC": iptc,
    "Resolution (DPI)": resolution,
    "Comment": comment,
    "Animation": animation,
    "Pages": several_pages,
}

# What comes in: a file, the pixels that it must be read as, and how far these may be off.

RGB, GREY = corners(24, 20), corners(24, 20, 1)
RGBA = corners(24, 20, 4)
LA = np.dstack([GREY, RGBA[:, :, 3]])
CMYK = np.dstack([255 - RGB, np.full((24, 20), 20, np.uint8)])
DEEP = deep_ramp()[:, :40]
DEEP_GREY = deep_ramp(1)[:, :40]
FLOAT = (DEEP_GREY[:, :, 0] / 65535).astype(np.float32)
INTEGERS = (DEEP_GREY[:, :, 0].astype(np.int32) - 11_500) * 9

Case = tuple[bytes, Array, str, float]


def palette(transparent: bool) -> Image.Image:
    indexed = Image.new("P", (3, 1))
    indexed.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    indexed.putdata([0, 1, 2])
    if transparent:
        indexed.info["transparency"] = 1
    return indexed.resize((21, 7), Image.Resampling.NEAREST)


def cmyk_as_srgb(inks: Array) -> Array:
    """What inks on the test's press look like, in sRGB, from the press's own formula."""
    wanted = profiles.cmyk_lab(inks / 255)
    f_y = (wanted[..., 0] + 16) / 116
    f = np.stack([f_y + wanted[..., 1] / 500, f_y, f_y - wanted[..., 2] / 200], axis=-1)
    xyz = profiles.D50 * np.where(f > 6 / 29, f**3, 3 * (6 / 29) ** 2 * (f - 4 / 29))
    light = np.clip(xyz @ np.linalg.inv(profiles.matrix(SRGB)).T, 0, 1)
    return np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055) * 255


def single_inks() -> Array:
    """(24, 20, 4) uint8: amounts of one ink at a time, where any interpolation of a profile's table agrees."""
    inks = np.zeros((24, 20, 4), np.uint8)
    for ink in range(4):
        inks[:, ink * 5 : ink * 5 + 5, ink] = np.repeat([60, 120, 160], 8)[:, None]
    return inks


def lab_greys(lightness: Array) -> Array:
    """sRGB in [0, 1], (h, w, 3), of neutral colours of a lightness of 0 to 100, (h, w), all above 9."""
    light = ((lightness[:, :, None] + 16) / 116) ** 3
    return np.repeat(1.055 * light ** (1 / 2.4) - 0.055, 3, axis=2)


def inputs() -> dict[str, dict[str, Case]]:
    """By colour mode and format: file, wanted values (alpha last), what it becomes, tolerance."""
    grey, grey_alpha = Image.fromarray(GREY[:, :, 0]), Image.fromarray(LA)
    colour, colour_alpha = Image.fromarray(RGB), Image.fromarray(RGBA)
    dots = grey.convert("1")
    bits = np.asarray(dots).astype(np.uint8)[:, :, None] * 255
    inks = single_inks()
    press, light = profiles.cmyk_profile(), cmyk_as_srgb(inks)
    opaque, hole = palette(False), palette(True)
    lossless = {"PNG": {}, "TIFF": {}, "BMP": {}, "WEBP": {"lossless": True, "exact": True}}
    none = np.zeros(DEEP.shape[:2], np.uint16)
    deep_lab, flat_lab = np.dstack([DEEP_GREY, none, none]), np.dstack([DEEP_GREY >> 8, none, none]).astype(np.uint8)
    found: dict[str, dict[str, Case]] = {
        "RGB": {name.lower(): (saved(colour, name, **o), RGB, "RGB", 0) for name, o in lossless.items()},
        "RGBA": {
            name.lower(): (saved(colour_alpha, name, **o), RGBA, "RGBA", 0)
            for name, o in lossless.items()
            if name != "BMP"
        },
        "grey": {name.lower(): (saved(grey, name), GREY, "grey", 0) for name in ("PNG", "TIFF", "BMP")},
        "grey and alpha": {
            name.lower(): (saved(grey_alpha, name), LA, "grey and alpha", 0) for name in ("PNG", "TIFF")
        },
        "1 bit": {name.lower(): (saved(dots, name), bits, "grey", 0) for name in ("PNG", "TIFF", "BMP")},
        "palette": {
            name.lower(): (saved(opaque, name), np.asarray(opaque.convert("RGB")), "RGB", 0)
            for name in ("PNG", "TIFF", "BMP", "GIF")
        },
        "palette with transparency": {
            name.lower(): (saved(hole.copy(), name), np.asarray(hole.copy().convert("RGBA")), "RGBA", 0)
            for name in ("PNG", "GIF")
        },
        "CMYK with profile": {
            "jpeg": (saved(Image.fromarray(inks, "CMYK"), "JPEG", quality=100, icc_profile=press), light, "sRGB", 5),
            "tiff": (saved(Image.fromarray(inks, "CMYK"), "TIFF", icc_profile=press), light, "sRGB", 3),
        },
        "CMYK without profile": {
            "jpeg": (
                saved(Image.fromarray(CMYK, "CMYK"), "JPEG", quality=100),
                np.rint((255 - CMYK[:, :, :3].astype(float)) * (235 / 255)),
                "sRGB, by formula",
                4,
            ),
            "tiff": (
                saved(Image.fromarray(CMYK, "CMYK"), "TIFF"),
                np.rint((255 - CMYK[:, :, :3].astype(float)) * (235 / 255)),
                "sRGB, by formula",
                1,
            ),
        },
        "YCCK": {
            "jpeg": (
                ycck(CMYK),
                np.rint((255 - CMYK[:, :, :3].astype(float)) * (235 / 255)),
                "sRGB, by formula",
                8,
            )
        },
        "Lab": {
            "tiff": (tiff(flat_lab, photometric="cielab"), lab_greys(flat_lab[:, :, 0] / 2.55) * 255, "sRGB", 1),
        },
        "16-bit Lab": {
            "tiff": (
                tiff(deep_lab, photometric="cielab"),
                lab_greys(deep_lab[:, :, 0] / 655.35) * 65535,
                "16-bit sRGB",
                40,
            ),
        },
        "16-bit grey": {
            "png": (png16(DEEP_GREY[:, :, 0]), DEEP_GREY, "16-bit grey", 0),
            "tiff": (tiff(DEEP_GREY[:, :, 0], compression="zlib", predictor=True), DEEP_GREY, "16-bit grey", 0),
        },
        "16-bit RGB": {
            "png": (png16(DEEP), DEEP, "16-bit RGB", 0),
            "tiff": (tiff(DEEP, photometric="rgb", byteorder=">", compression="lzw"), DEEP, "16-bit RGB", 0),
        },
        "16-bit RGBA": {
            "png": (png16(np.dstack([DEEP, DEEP[:, :, :1]])), deep_ramp(4)[:, :40], "16-bit RGBA", 0),
            "tiff": (
                tiff(deep_ramp(4)[:, :40], photometric="rgb", extrasamples=["unassalpha"]),
                deep_ramp(4)[:, :40],
                "16-bit RGBA",
                0,
            ),
        },
        "32-bit float": {"tiff": (tiff(FLOAT), DEEP_GREY, "16 bits on the way, float out", 0)},
        "32-bit integer": {
            "tiff": (tiff(INTEGERS), INTEGERS, "16 bits on the way, integer out", 0),
        },
    }
    found["RGB"] |= {
        "jpeg": (saved(colour, "JPEG", quality=100, subsampling=0), RGB, "RGB", 4),
        "gif": (saved(colour, "GIF"), np.asarray(opened(saved(colour, "GIF")).convert("RGB")), "RGB", 0),
        "avif": (saved(colour, "AVIF", quality=100, subsampling="4:4:4"), RGB, "RGB", 6),
        "heif": (heif(RGB, "RGB"), RGB, "RGB", 2),
    }
    found["RGBA"] |= {
        "avif": (saved(colour_alpha, "AVIF", quality=100, subsampling="4:4:4"), RGBA, "RGBA", 6),
        "heif": (heif(RGBA, "RGBA"), RGBA, "RGBA", 2),
    }
    found["grey"] |= {
        "jpeg": (saved(grey, "JPEG", quality=100), GREY, "grey", 2),
        "heif": (heif(GREY, "L"), GREY, "grey", 2),
    }
    avif = bytes(imagecodecs.avif_encode(DEEP >> 6, 100, bitspersample=10, pixelformat="444"))
    found["10-bit RGB"] = {
        "avif": (avif, DEEP, "16-bit RGB", 200),
        "heif": (heif(DEEP, "RGB;16"), DEEP, "16-bit RGB", 200),
    }
    return found


INPUTS = inputs()
READ = ["jpeg", "png", "webp", "tiff", "bmp", "gif", "avif", "heif"]


def check_input(mode: str, format: str) -> str:
    data, wanted, becomes, tolerance = INPUTS[mode][format]
    picture = decode(data)
    values = picture.pixels if picture.alpha is None else np.dstack([picture.pixels, picture.alpha])
    if mode == "32-bit integer":
        return check_integers(data, picture, becomes)
    assert values.shape == wanted.shape
    assert values.dtype == (np.uint16 if "16" in becomes else np.uint8)
    visible = values if values.shape[2] != 4 else values[wanted[:, :, 3] > 0]
    expected = wanted if values.shape[2] != 4 else wanted[wanted[:, :, 3] > 0]
    assert np.abs(visible.astype(float) - expected).max() <= tolerance
    if "float" in becomes:
        check_floats(data)
    if mode == "CMYK with profile":
        inverted = np.asarray(opened(data).convert("RGB"), float)
        assert np.abs(inverted - wanted).max() > 60  # so this was no inversion
    return becomes


def written_tiff(data: bytes) -> Array:
    result = core.upscale(data)
    assert result.data is not None
    return np.asarray(tifffile.imread(io.BytesIO(result.data)))


def check_floats(data: bytes) -> None:
    after = written_tiff(data)
    assert after.dtype == np.float32
    assert abs(after[8:-8, 8:-8].mean() - FLOAT.mean()) < 0.01


def check_integers(data: bytes, picture: Picture, becomes: str) -> str:
    levels = picture.levels
    assert levels is not None
    numbers = picture.pixels[:, :, 0] * ((levels.high - levels.low) / 65535) + levels.low
    assert np.abs(numbers - INTEGERS).max() <= 1
    after = written_tiff(data)
    assert after.dtype == np.int32
    assert abs(after.mean() - INTEGERS.mean()) < 0.02 * np.ptp(INTEGERS)
    return becomes


ORIENTED = ["jpeg", "png", "webp", "tiff", "avif", "heif"]


@pytest.fixture(autouse=True)
def _lanczos(monkeypatch: pytest.MonkeyPatch) -> None:
    """The way of a picture is measured here, without what a network adds to it."""
    plain = load.Loaded(None, "lanczos", False, "", 0.0)
    monkeypatch.setattr(load, "load_first", lambda chain, device: plain)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("property", OUTPUTS)
def test_output(property: str, format: str) -> None:
    assert OUTPUTS[property](format) in row_of(property), "the table is out of date: see the top of this file"


@pytest.mark.parametrize(("mode", "format"), [(mode, format) for mode, cases in INPUTS.items() for format in cases])
def test_input(mode: str, format: str) -> None:
    assert check_input(mode, format) in row_of(mode), "the table is out of date: see the top of this file"


def row_of(name: str) -> list[str]:
    """Cells of a row of the document."""
    for line in DOCUMENT.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if cells[0] == name:
            return cells[1:]
    raise AssertionError(f"no row {name!r} in {DOCUMENT.name}")


def test_the_document_has_all_rows_and_columns() -> None:
    for rows, columns in ((OUTPUTS, FORMATS), (INPUTS, READ)):
        for name in rows:
            assert len(row_of(name)) == len(columns)


@pytest.mark.parametrize("made_as", ["GIF", "PNG", "WEBP", "AVIF"])
@pytest.mark.parametrize("format", ["png", "webp"])
def test_animations_of_every_format(made_as: str, format: str) -> None:
    assert animation(format, made_as).startswith("kept")


def document() -> str:
    """Both tables, measured now."""

    def table(head: str, rows: dict[str, Any], columns: list[str], cell: Callable[[str, str], str]) -> str:
        lines = [f"| {head} | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
        lines += [f"| {row} | {' | '.join(cell(row, column) for column in columns)} |" for row in rows]
        return "\n".join(lines)

    def read_cell(row: str, column: str) -> str:
        return check_input(row, column) if column in INPUTS[row] else "-"

    return f"""# What is kept of a picture

Every cell is measured by `tests/unit/test_fidelity.py`, which also writes this page. "Told" means that the result
carries a note: nothing is lost in silence.

## From the input to each output format

{table("", OUTPUTS, list(FORMATS), lambda row, column: OUTPUTS[row](column))}

"Same colours" is a difference (CIEDE2000) of at most 1 on flat patches, from input to result. Maker notes keep their
bytes and, but for TIFF, their place in the EXIF block, on which their own offsets rely.

## What each input becomes

{table("", INPUTS, READ, read_cell)}

A dash: the format has no such mode, or no common program writes it. What is RGB or grey stays in its own profile on
the whole way; CMYK and Lab are converted to sRGB. Palettes come out as RGB(A). AVIF of 10 and 12 bits is
read as such (its animations with 8, told) and written with 8. Animated PNGs of 16 bits keep them.
HEIF is written as JPEG (PNG when it is transparent), GIF as PNG (animated: WebP), unless another format is asked for.

## Ten awkward pictures, before and after

![each pair: the input and the result, as a colour-managed viewer shows them](awkward.jpg)

Made by `python -m bench.awkward`.
"""


if __name__ == "__main__":
    load.load_first = lambda chain, device: load.Loaded(None, "lanczos", False, "", 0.0)
    print(document(), end="")
