"""What each input becomes: a file, the pixels that it must be read as, and how far these may be off."""

from __future__ import annotations

import io
from typing import Any

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image

import core
from core.codecs.read import decode
from core.picture import Picture
from tests.unit import profiles
from tests.unit.pictures import (
    Array,
    corners,
    deep_ramp,
    opened,
    saved,
)
from tests.unit.profiles import SRGB

pillow_heif = pytest.importorskip("pillow_heif", reason="pillow-heif is not installed: no HEIC to read")


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
