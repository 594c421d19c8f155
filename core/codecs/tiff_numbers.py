"""Numbers of a TIFF that no picture has a place for as they are: floats, wide or signed integers, and "no data".

What a pixel becomes depends on all the numbers of its page: they are gone over once before (`survey`), in bands, and
then turned into pixels (`to_pixels`) and, when a result is written, back into numbers (`to_numbers`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from core.codecs.tiff_tags import CIELAB, ICCLAB, NODATA, PALETTE, UNSIGNED, Page
from core.errors import UnreadableImage
from core.picture import Pixels, SampleRange
from core.pixels.bands import Samples

_ROWS = 64  # at a time, where a conversion needs floats
_SAMPLED = 1 << 20  # numbers that a robust range is found from
#: Where all numbers lie within so many times the middle 98 %, they are spread evenly.
_EVEN = 8.0
#: No measured number is larger: what is, stands for "no data".
_ABSURD = 1e30


def need_survey(page: Page, photometric: int) -> bool:
    """Whether what the numbers of a page stand for depends on all of them.

    Args:
        page: what its directory says.
        photometric: what its samples stand for (TIFF 6.0, tag 262).
    """
    if photometric in (CIELAB, ICCLAB, PALETTE):
        return False
    plain = page.kind == UNSIGNED and (page.bits <= 16 or page.bits == 24)
    return not plain or page.block(NODATA) is not None


def are_plain(dtype: np.dtype[Any], page: Page) -> bool:
    """Whether samples are what pixels are: unsigned, of up to 16 bits, or of 24.

    Raises:
        UnreadableImage: they are neither integers nor floats.
    """
    if dtype.kind not in "uifb":
        raise UnreadableImage("this kind of TIFF is not read: save it as integers or floats")
    return dtype in (np.bool_, np.uint8, np.uint16) or (page.bits == 24 and page.kind == UNSIGNED)


def _nodata(page: Page) -> float | None:
    """The number that stands for "no data" (GDAL's tag 42113, a text)."""
    try:
        return float((page.block(NODATA) or b"").rstrip(b"\0 ").decode("ascii"))
    except ValueError:
        return None


def holes(values: Samples, page: Page) -> npt.NDArray[np.bool_]:
    """Where there is no data, (h, w): declared, not finite or absurdly large.

    Args:
        values: (h, w, samples) of colour.
        page: what its directory says.
    """
    empty = np.zeros(values.shape[:2], np.bool_)
    declared = _nodata(page)
    for row in range(0, len(values), _ROWS):
        part = values[row : row + _ROWS]
        if part.dtype.kind == "f":
            with np.errstate(all="ignore"):
                empty[row : row + _ROWS] |= ~(np.abs(part.astype(np.float64)) < _ABSURD).all(axis=2)
        if declared is not None and np.isfinite(declared):
            wanted = values.dtype.type(declared) if values.dtype.kind == "f" else declared
            empty[row : row + _ROWS] |= (part == wanted).all(axis=2)
    return empty


def survey(bands: Iterable[Samples], page: Page, *, transparent: bool) -> SampleRange | None:
    """What the numbers of a page stand for: None for plain ones without holes.

    Floats from 0 to 1 are taken for that range, as in photographs; other floats, and integers other than plain ones,
    are stretched to what occurs.

    Args:
        bands: (rows, w, samples) of colour, from top to bottom; all of them are read.
        page: what its directory says.
        transparent: whether opacity is stored; then it is not what tells where there is no data.

    Raises:
        UnreadableImage: they are neither integers nor floats.
    """
    low, high, hollow = np.inf, -np.inf, False
    odd: list[float] = []  # numbers that are none, each once, and no more than two
    sampled: list[npt.NDArray[np.float64]] = []
    step, position, dtype = _step(page), 0, np.dtype(np.uint8)
    for band in bands:
        dtype = band.dtype
        are_plain(dtype, page)
        for rows in (band[row : row + _ROWS] for row in range(0, len(band), _ROWS)):
            empty = holes(rows, page)
            there = rows[~empty]  # (pixels, samples)
            if there.size:
                low, high = min(low, float(there.min())), max(high, float(there.max()))
            chosen = slice(-position % step, None, step)
            flat = rows.reshape(-1, rows.shape[2])[chosen]
            sampled.append(flat[~empty.reshape(-1)[chosen]].astype(np.float64).ravel())
            if empty.any():
                hollow = True
                if dtype.kind == "f" and len(odd) < 2:
                    strange = rows[~(np.abs(rows) < _ABSURD)]
                    odd = list({float(one): None for one in (*odd, *np.unique(strange)[:2])})
            position += empty.size
    plain = are_plain(dtype, page)
    if plain and not hollow:
        return None
    if plain:
        found = SampleRange(dtype.str[1:], 0.0, 255.0 if dtype == np.uint8 else 65535.0)
    else:
        found = _range(dtype, low, high, np.concatenate(sampled))
    if not hollow or transparent:
        return None if plain else found
    declared = _nodata(page)
    if declared is None:
        declared = odd[0] if len(odd) == 1 else float("nan")
    return replace(found, nodata=declared)


def _step(page: Page) -> int:
    """Every so many pixels are sampled, in other columns of each row."""
    step = max(1, -(-page.width * page.height * page.samples // _SAMPLED))
    while math.gcd(step, page.width) != 1:
        step += 1
    return step


def _range(dtype: np.dtype[Any], low: float, high: float, sampled: npt.NDArray[np.float64]) -> SampleRange:
    """The range of numbers that are there, and its curve where a few lie far off.

    One pixel may be thousands of times as bright as the rest; spread evenly, it would leave the rest a handful of
    steps. So numbers are spread along an inverse hyperbolic sine there (as in astronomy: Lupton et al. 1999), in steps
    that are even among the middle 98 % and grow beyond.
    """
    if low > high:
        low = high = 0.0
    kind = dtype.str[1:]
    if dtype.kind == "f" and low >= 0 and high <= 1:
        return SampleRange(kind, 0.0, 1.0)
    if 0 < low <= high - low:
        low = 0.0  # black stays black
    if not high > low:
        return SampleRange(kind, low, low + 1)
    if sampled.size:
        least, most = (float(one) for one in np.percentile(sampled, (1, 99)))
        if most > least and high - low > _EVEN * (most - least):
            return SampleRange(kind, low, high, middle=(least + most) / 2, scale=(most - least) / 2)
    return SampleRange(kind, low, high)


def _curved(levels: SampleRange, numbers: Any) -> Any:
    """Numbers on the scale on which pixels are spread evenly."""
    return np.arcsinh((numbers - levels.middle) / levels.scale) if levels.scale else numbers


def to_pixels(values: Samples, levels: SampleRange) -> Pixels:
    """Numbers as uint16, of the same shape.

    Args:
        values: (h, w, samples).
        levels: what pixels are to stand for.
    """
    out = np.empty(values.shape, np.uint16)
    low, high = _curved(levels, levels.low), _curved(levels, levels.high)
    with np.errstate(all="ignore"):  # what is no number is hidden, whatever becomes of it
        for row in range(0, len(out), _ROWS):
            part = _curved(levels, values[row : row + _ROWS].astype(np.float64))
            part = (part / (high - low) - low / (high - low)) * 65535
            out[row : row + _ROWS] = np.rint(np.clip(np.nan_to_num(part, nan=0.0), 0, 65535))
    return out


def to_numbers(pixels: Pixels, levels: SampleRange) -> npt.NDArray[np.float64]:
    """The numbers that pixels stand for, of any shape: `to_pixels` the other way round."""
    low, high = float(_curved(levels, levels.low)), float(_curved(levels, levels.high))
    found: npt.NDArray[np.float64] = pixels * ((high - low) / np.iinfo(pixels.dtype).max) + low
    return levels.middle + levels.scale * np.sinh(found) if levels.scale else found
