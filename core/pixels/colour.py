"""Colours between files and network: profiles checked and applied, CMYK and Lab turned into RGB.

The network runs on RGB or grey values as they are, in whatever profile they are in, and the profile goes with the
result: nothing is clipped to sRGB on the way. Only what the network or the output format cannot hold is converted.
"""

from __future__ import annotations

import io
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Samples = npt.NDArray[Any]
Space = Literal["RGB", "GRAY", "CMYK"]

_RELATIVE_COLORIMETRIC = 1
_BLACK_POINT_COMPENSATION = 0x2000
#: XYZ under D50 to linear sRGB: the inverse of the sRGB profile's colorants (ICC.1:2022, Bradford-adapted).
_XYZ_TO_SRGB = np.array(
    [[3.1338561, -1.6168667, -0.4906146], [-0.9787684, 1.9161415, 0.0334540], [0.0719453, -0.2289914, 1.4052427]]
)
_D50 = np.array([0.9642, 1.0, 0.8249])
#: XYZ to responses of the eye's cones, in which one white is turned into another (ICC.1:2022, annex E).
_BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
_ROWS = 64  # at a time, where a conversion needs floats


def space_of(icc: bytes) -> str | None:
    """The colour space that a profile describes ("RGB", "GRAY", "CMYK", ...), or None when it is no profile."""
    from PIL import ImageCms

    try:
        return str(ImageCms.ImageCmsProfile(io.BytesIO(icc)).profile.xcolor_space).strip()
    except Exception:  # PyCMSError, OSError, ValueError: whatever was wrong with it
        return None


def checked(icc: bytes | None, space: Space) -> tuple[bytes | None, tuple[str, ...]]:
    """A profile only if it describes such pixels; else None and a note.

    Grey pixels may have an RGB profile, as ImageMagick leaves it: it says what a neutral value means.
    """
    if icc is None:
        return None, ()
    found = space_of(icc)
    if found == space or (space == "GRAY" and found == "RGB"):
        return icc, ()
    wrong = "is damaged" if found is None else f"is for other pixels than {space}"
    return None, (f"the colour profile {wrong} and was left out",)


def cmyk_to_rgb(inks: Samples, icc: bytes | None) -> tuple[Samples, tuple[str, ...]]:
    """Ink amounts, (h, w, 4) uint8 or uint16, 0 for no ink, to sRGB (h, w, 3) of the same type, and a note.

    Through the profile where there is one; by the plain formula where nothing is known of the press.
    """
    icc, notes = checked(icc, "CMYK")
    if icc is not None:
        try:
            return _transform(inks, icc, "cmyk"), (*notes, "CMYK was converted to sRGB through its profile")
        except (RuntimeError, ValueError):
            notes = ("the colour profile cannot be used",)
    top = np.iinfo(inks.dtype).max
    wide = inks.astype(np.uint32)
    colour = ((top - wide[:, :, :3]) * (top - wide[:, :, 3:]) + top // 2) // top
    return colour.astype(inks.dtype), (*notes, "CMYK has no profile: it was converted to sRGB by the plain formula")


def to_srgb(pixels: Samples, icc: bytes) -> Samples:
    """Pixels in a profile, (h, w, 1 or 3), to sRGB, (h, w, 3), of the same type.

    Raises:
        ValueError: the profile cannot be used for that.
    """
    space = space_of(icc)
    if pixels.shape[2] == 1 and space == "RGB":
        pixels = np.repeat(pixels, 3, axis=2)
    try:
        return _transform(pixels, icc, "rgb" if space == "RGB" else "gray")
    except RuntimeError as error:
        raise ValueError("the colour profile cannot be used") from error


def _transform(values: Samples, icc: bytes, space: str) -> Samples:
    import imagecodecs

    found: Samples = imagecodecs.cms_transform(
        np.ascontiguousarray(values[:, :, 0] if values.shape[2] == 1 else values),
        icc,
        imagecodecs.cms_profile("srgb"),
        colorspace=space,
        outcolorspace="rgb",
        intent=_RELATIVE_COLORIMETRIC,
        flags=_BLACK_POINT_COMPENSATION,
    )
    return found


def lab_to_rgb(
    lightness: Samples, a: Samples, b: Samples, dtype: npt.DTypeLike, white: tuple[float, float] | None = None
) -> Samples:
    """CIE Lab (each (h, w), in its own units, 0 to 100 and about -128 to 127) to sRGB, (h, w, 3).

    What is outside of sRGB is clipped.

    Args:
        lightness: L.
        a: from green to red.
        b: from blue to yellow.
        dtype: of the result, uint8 or uint16.
        white: the white that Lab is relative to, x and y; None for D50.
    """
    top = np.iinfo(np.dtype(dtype)).max
    point, matrix = _D50, _XYZ_TO_SRGB
    if white is not None:
        point = np.array([white[0] / white[1], 1.0, (1 - white[0] - white[1]) / white[1]])
        scaling = np.diag((_BRADFORD @ _D50) / (_BRADFORD @ point))
        matrix = _XYZ_TO_SRGB @ np.linalg.inv(_BRADFORD) @ scaling @ _BRADFORD
    out = np.empty((*lightness.shape, 3), dtype)
    for row in range(0, len(out), _ROWS):
        rows = slice(row, row + _ROWS)
        fy = (lightness[rows].astype(np.float64) + 16) / 116
        f = np.stack([fy + a[rows] / 500, fy, fy - b[rows] / 200], axis=-1)  # (rows, w, 3)
        xyz = point * np.where(f > 6 / 29, f**3, 3 * (6 / 29) ** 2 * (f - 4 / 29))
        rgb = np.clip(xyz @ matrix.T, 0, 1)
        rgb = np.where(rgb <= 0.0031308, 12.92 * rgb, 1.055 * rgb ** (1 / 2.4) - 0.055)
        out[rows] = np.rint(rgb * top)
    return out


#: Primaries of ITU-T H.273 by code point: red, green and blue, each x and y. White is D65.
_PRIMARIES = {
    1: (0.640, 0.330, 0.300, 0.600, 0.150, 0.060),  # sRGB, BT.709
    9: (0.708, 0.292, 0.170, 0.797, 0.131, 0.046),  # BT.2020
    12: (0.680, 0.320, 0.265, 0.690, 0.150, 0.060),  # Display P3
}
_D65 = (0.3127, 0.3290)
#: Exponents of transfer characteristics by code point; None is the curve of sRGB, which BT.709 means on a screen.
_TRANSFERS = {1: None, 4: 2.2, 5: 2.8, 6: None, 8: 1.0, 13: None, 14: None, 15: None}
_HDR_TRANSFERS = (16, 18)


def profile_of_code_points(primaries: int, transfer: int) -> tuple[bytes | None, tuple[str, ...]]:
    """A profile for colours that are named by code points (ITU-T H.273), and notes; None stands for sRGB."""
    if transfer in _HDR_TRANSFERS:
        return None, ("the picture is HDR, which the result cannot say: it will look flat",)
    if primaries not in _PRIMARIES or transfer not in _TRANSFERS:
        return None, ()
    exponent = _TRANSFERS[transfer]
    if primaries == 1 and exponent is None:
        return None, ()
    return _profile(_PRIMARIES[primaries], _D65, exponent), ()


def profile_of_numbers(chromaticities: object, exponent: float) -> bytes | None:
    """A profile for a PNG's gAMA and cHRM; None stands for sRGB, and for numbers that make no sense.

    Args:
        chromaticities: white, red, green and blue, each x and y; anything else stands for those of sRGB.
        exponent: of the transfer curve, value to light.
    """
    numbers = (*_D65, *_PRIMARIES[1])
    if isinstance(chromaticities, tuple) and len(chromaticities) == 8:
        numbers = chromaticities
    usual = all(abs(a - b) < 0.002 for a, b in zip(numbers, (*_D65, *_PRIMARIES[1]), strict=True))
    if usual and abs(exponent - 2.2) < 0.05:
        return None
    if not 0.2 < exponent < 6 or not all(0.001 < number < 1 for number in numbers):
        return None
    try:
        return _profile(numbers[2:], numbers[:2], exponent)
    except (RuntimeError, ValueError):
        return None


def grey_profile_of_number(exponent: float) -> bytes | None:
    """A grey profile for a PNG's gAMA; None stands for sRGB, and for a number that makes no sense.

    Args:
        exponent: of the transfer curve, value to light.
    """
    if abs(exponent - 2.2) < 0.05 or not 0.2 < exponent < 6:
        return None
    import imagecodecs

    made: bytes = imagecodecs.cms_profile("gray", whitepoint=(*_D65, 1.0), gamma=exponent)
    return made


def _profile(primaries: tuple[float, ...], white: tuple[float, ...], exponent: float | None) -> bytes:
    import imagecodecs

    curve: dict[str, Any] = {"gamma": exponent}
    if exponent is None:
        value = np.linspace(0, 1, 1024)
        light = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
        curve = {"transferfunction": np.rint(light * 65535).astype(np.uint16)}
    red, green, blue = primaries[0:2], primaries[2:4], primaries[4:6]
    colorants = (*red, 1.0, *green, 1.0, *blue, 1.0)
    made: bytes = imagecodecs.cms_profile("rgb", whitepoint=white, primaries=colorants, **curve)
    return made
