"""The samples of a TIFF's page, of any layout and type, as a picture.

Segments are decoded by tifffile, those in codings of their own (JPEG, CCITT, WebP, LERC) by libtiff; what the samples
mean is decided here, for both. Where readers disagree the specification decides, and where that is silent, libtiff:

- Fewer than 8 bits are spread over the whole range, as libtiff does (ImageMagick too; libvips refuses 2 to 7 bits).
- A fourth sample of no stated meaning beside RGB is alpha, as libtiff, libvips and ImageMagick have it; beside grey,
  and where there are several, it is left out, with a note (libvips would take the second of two for alpha).
- A colour map without values above 255 has 8 bits, as libtiff and libvips guess.
- CIE Lab is relative to the white point that the file states, else D50 (libvips always takes D65).
- YCbCr without compression goes through libtiff, chroma repeated (ImageMagick shows the components as they are).

Follows TIFF 6.0.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from core.codecs.base import to_16_bits, upright
from core.codecs.segments import COMPRESSIONS
from core.codecs.tiff_tags import (
    CIELAB,
    CMYK,
    COLOUR_MAP,
    COLOURS,
    EXTRA_SAMPLES,
    FLOAT,
    ICCLAB,
    MIN_IS_WHITE,
    NODATA,
    PALETTE,
    PLANAR,
    RGB,
    UNSIGNED,
    WHITE_POINT,
    YCBCR,
    Page,
)
from core.errors import UnreadableImage
from core.metadata.carried import Metadata
from core.picture import Picture, Pixels, SampleRange
from core.pixels import colour
from core.pixels.alpha import unpremultiply

Samples = npt.NDArray[Any]

#: Compressions that libtiff decodes: CCITT (three), JPEG (two), LERC, WebP.
_CODED = frozenset([2, 3, 4, 6, 7, 34887, 50001])
_JPEG = frozenset([6, 7])
_WHOLE_JPEG = "save it without compression, or with deflate or LZW"
_ROWS = 64  # at a time, where a conversion needs floats
_SAMPLED = 1 << 20  # numbers that a robust range is found from
#: Where all numbers lie within so many times the middle 98 %, they are spread evenly.
_EVEN = 8.0
#: No measured number is larger: what is, stands for "no data".
_ABSURD = 1e30


def read(stream: BinaryIO, page: Page, meta: Metadata) -> Picture:
    """A page, upright.

    Args:
        stream: the file; its position is changed.
        page: what its directory says.
        meta: what comes with it; of the profile only what describes the pixels is kept.

    Raises:
        UnreadableImage: of a kind that is not read.
    """
    values, as_rgb = _samples(stream, page)
    picture = interpreted(values, page, RGB if as_rgb else page.photometric, meta)
    alpha = picture.alpha
    return replace(
        picture,
        pixels=upright(picture.pixels, page.orientation),
        alpha=None if alpha is None else upright(alpha, page.orientation),
        lossless=page.compression not in _JPEG,
    )


def _samples(stream: BinaryIO, page: Page) -> tuple[Samples, bool]:
    """(h, w, samples) as stored, not upright; True when YCbCr has become RGB on the way."""
    ycbcr = page.photometric == YCBCR
    if page.photometric not in COLOURS:
        raise UnreadableImage(
            f"a TIFF with photometric interpretation {page.photometric} is not read: save it in grey, RGB or CMYK"
        )
    if page.compression not in COMPRESSIONS | _CODED:
        raise UnreadableImage(f"a TIFF with compression {page.compression} is not read: {_WHOLE_JPEG}")
    if page.compression in _CODED or ycbcr:
        return _by_libtiff(stream, page, as_rgb=ycbcr and page.compression != 7), ycbcr
    return _by_tifffile(stream, page), False


def _by_libtiff(stream: BinaryIO, page: Page, as_rgb: bool) -> Samples:
    import imagecodecs

    if page.bits > 8 and page.compression in _JPEG:
        raise UnreadableImage(f"a TIFF with JPEG of {page.bits} bits is not read: {_WHOLE_JPEG}")
    stream.seek(0)
    values = np.asarray(imagecodecs.tiff_decode(stream.read(), page.index, asrgb=as_rgb))
    if as_rgb:
        # libtiff has mirrored them, but not transposed.
        rows, columns = ((1, 1), (1, -1), (-1, -1), (-1, 1))[(page.orientation - 1) % 4]
        values = values[::rows, ::columns, : 4 if page.samples > 3 else 3]
    return _shaped(values, page)


def _by_tifffile(stream: BinaryIO, page: Page) -> Samples:
    import tifffile

    logging.getLogger("tifffile").setLevel(logging.CRITICAL + 1)  # it reports every oddity of a file
    stream.seek(0)
    with tifffile.TiffFile(stream, name="input") as file:
        series = file.pages[page.index]
        if not isinstance(series, tifffile.TiffPage) or series.dtype is None or series.imagedepth != 1:
            raise UnreadableImage(f"a TIFF of {page.bits} bits a sample is not read: save it with 8, 16 or 32")
        values = np.asarray(series.asarray(maxworkers=1))
    if page.bits == 24 and page.kind != FLOAT:
        values = _three_bytes(values, page)
    return _shaped(values, page)


def _three_bytes(values: Samples, page: Page) -> Samples:
    """Integers of 24 bits, which tifffile unpacks as if their bytes always came from the largest to the least."""
    raw = values.astype("=u4")  # as the number that four bytes in the file's order would make
    if page.fields.order == "<":
        return (raw & 0xFF) << 16 | (raw & 0xFF00) | raw >> 16
    return raw.byteswap()


def _shaped(values: Samples, page: Page) -> Samples:
    """(h, w, samples), whichever way the planes lay."""
    size = (page.height, page.width) if page.orientation < 5 else (page.width, page.height)
    planes = values.shape[0] if values.ndim == 3 else 1
    if values.shape[:2] == size and not (page.numbers(PLANAR, (1,))[0] == 2 and values.shape[1:] == size):
        return values.reshape(*size, -1)
    if values.shape[-2:] == size:
        return np.ascontiguousarray(np.moveaxis(values.reshape(planes, *size), 0, -1))
    raise UnreadableImage("the picture is damaged: its directory contradicts itself")


def interpreted(values: Samples, page: Page, photometric: int, meta: Metadata) -> Picture:
    """Samples as a picture, not yet upright.

    Args:
        values: (h, w, samples) of any type; of a page that `core.codecs.segments.streams`, any of its rows.
        page: what its directory says.
        photometric: what the samples stand for (TIFF 6.0, tag 262).
        meta: what comes with it.
    """
    colours = COLOURS[photometric]
    if values.shape[2] < colours:
        raise UnreadableImage("the picture is damaged: it has too few samples for its colours")
    extra, premultiplied, notes = _alpha_of(values, page, colours)
    values = values[:, :, :colours]
    levels: SampleRange | None = None
    pixels: Pixels
    alpha = None if extra is None else _to_pixels(extra[:, :, None], page, opaque=True)[0][:, :, 0]
    if photometric in (CIELAB, ICCLAB):
        pixels, meta = _lab(values, photometric, page), replace(meta, icc=None)
        notes += ("Lab was converted to sRGB",)
    elif photometric == PALETTE:
        pixels = _mapped(values[:, :, 0], page)
    else:
        empty = _empty(values, page)
        pixels, levels = _to_pixels(values, page, empty)
        if empty is not None and alpha is None:
            top = np.iinfo(pixels.dtype).max
            alpha = np.where(empty, 0, top).astype(pixels.dtype)
            levels = _with_nodata(levels or SampleRange(values.dtype.str[1:], 0, top), values, page)
        if page.bits == 24 and page.kind == UNSIGNED:
            notes += ("of 24 bits a sample, 16 are kept",)
    if alpha is not None and alpha.dtype != pixels.dtype:
        alpha = to_16_bits(alpha, 8) if pixels.dtype == np.uint16 else (alpha >> 8).astype(np.uint8)
    if premultiplied and alpha is not None:
        pixels = unpremultiply(pixels, alpha)
    if photometric == MIN_IS_WHITE:
        pixels = np.iinfo(pixels.dtype).max - pixels
    if photometric == CMYK:
        pixels, said = colour.cmyk_to_rgb(pixels, meta.icc)
        return Picture(pixels, alpha, meta=replace(meta, icc=None), notes=notes + said)
    icc, said = colour.checked(meta.icc, "GRAY" if pixels.shape[2] == 1 else "RGB")
    return Picture(pixels, alpha, meta=replace(meta, icc=icc), levels=levels, notes=notes + said)


def _alpha_of(values: Samples, page: Page, colours: int) -> tuple[Samples | None, bool, tuple[str, ...]]:
    """The sample of alpha, (h, w), whether colours are multiplied by it, and a note for what is left out."""
    count = values.shape[2] - colours
    if count <= 0:
        return None, False, ()
    meanings = (page.numbers(EXTRA_SAMPLES, ()) + (0,) * count)[:count]
    at = next((index for index, meaning in enumerate(meanings) if meaning in (1, 2)), None)
    if at is None and count == 1 and colours == 3:
        at = 0
    others = [colours + index + 1 for index in range(count) if index != at]
    notes: tuple[str, ...] = ()
    if others:
        which = f"channel {others[0]}" if len(others) == 1 else f"channels {others[0]} to {others[-1]}"
        verb = "was" if len(others) == 1 else "were"
        notes = (f"{len(others)} of {values.shape[2]} channels {verb} left out, with no stated meaning: {which}",)
    return (None, False, notes) if at is None else (values[:, :, colours + at], meanings[at] == 1, notes)


def _mapped(indices: Samples, page: Page) -> Pixels:
    """Colours of a palette: (h, w, 3) uint8, or uint16 where the map has colours that need it."""
    table = np.array(page.numbers(COLOUR_MAP, ()), np.uint16)
    if len(table) != 3 << page.bits or indices.dtype.kind not in "ub":
        raise UnreadableImage("the picture is damaged: it has no colour map of the right size")
    table = table.reshape(3, -1).T  # (colours, 3)
    if int(table.max()) > 255:
        eight = (table.astype(np.uint32) * 255 + 32767) // 65535
        high = table >> 8
        if (high * 257 == table).all() or not (table & 0xFF).any():
            table = high.astype(np.uint16)
        elif page.bits <= 8:
            table = eight.astype(np.uint16)
        else:
            return np.ascontiguousarray(table[indices])
    return np.ascontiguousarray(table.astype(np.uint8)[indices.astype(np.intp)])


def _nodata(page: Page) -> float | None:
    """The number that stands for "no data" (GDAL's tag 42113, a text)."""
    try:
        return float((page.block(NODATA) or b"").rstrip(b"\0 ").decode("ascii"))
    except ValueError:
        return None


def _empty(values: Samples, page: Page) -> npt.NDArray[np.bool_] | None:
    """Where there is no data, (h, w): declared, not finite or absurdly large; None when there is some everywhere."""
    if values.dtype.kind not in "uif":
        return None
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
    return empty if empty.any() else None


def _with_nodata(levels: SampleRange, values: Samples, page: Page) -> SampleRange:
    """The same with the number that stands for "no data": the declared one, else the one that is there."""
    declared = _nodata(page)
    if declared is None:
        odd = values[~(np.abs(values) < _ABSURD)] if values.dtype.kind == "f" else values[:0]
        declared = float(odd[0]) if len(odd) and (odd == odd[0]).all() else float("nan")
    return replace(levels, nodata=declared)


def _to_pixels(
    values: Samples, page: Page, empty: npt.NDArray[np.bool_] | None = None, opaque: bool = False
) -> tuple[Pixels, SampleRange | None]:
    """Numbers of any type as uint8 or uint16, and what these stand for unless it is the type's own range.

    Floats from 0 to 1 are taken for that range, as in photographs; other floats, and integers other than plain ones of
    up to 16 bits, are stretched to what occurs (`_range`).

    Args:
        values: (h, w, samples).
        page: for the number of bits that are in use.
        empty: where there is no data, which decides nothing; None for nowhere.
        opaque: True for alpha, which has its own range.
    """
    if values.dtype == np.bool_:
        return values.astype(np.uint8) * np.uint8(255), None
    if values.dtype.kind not in "uif":
        raise UnreadableImage("this kind of TIFF is not read: save it as integers or floats")
    if values.dtype == np.uint8:
        top = (1 << min(page.bits, 8)) - 1
        whole = (values.astype(np.uint16) * 255 // top).astype(np.uint8) if top < 255 else values
        return np.ascontiguousarray(whole), None
    if values.dtype == np.uint16:
        return to_16_bits(values, min(page.bits, 16)), None  # there are packed samples of 9 to 15 bits
    if page.bits == 24 and page.kind == UNSIGNED:
        return np.ascontiguousarray(values >> 8).astype(np.uint16), None
    if opaque and values.dtype.kind != "f":
        levels = SampleRange(values.dtype.str[1:], 0.0, float(np.iinfo(values.dtype).max))
    else:
        levels = _range(values, empty, opaque)
    out = np.empty(values.shape, np.uint16)
    low, high = _curved(levels, levels.low), _curved(levels, levels.high)
    with np.errstate(all="ignore"):  # what is no number is hidden, whatever becomes of it
        for row in range(0, len(out), _ROWS):
            part = _curved(levels, values[row : row + _ROWS].astype(np.float64))
            part = (part / (high - low) - low / (high - low)) * 65535
            out[row : row + _ROWS] = np.rint(np.clip(np.nan_to_num(part, nan=0.0), 0, 65535))
    return out, levels


def _range(values: Samples, empty: npt.NDArray[np.bool_] | None, opaque: bool) -> SampleRange:
    """The range of numbers that are there, and its curve where a few lie far off.

    One pixel may be thousands of times as bright as the rest; spread evenly, it would leave the rest a handful of
    steps. So numbers are spread along an inverse hyperbolic sine there (as in astronomy: Lupton et al. 1999), in steps
    that are even among the middle 98 % and grow beyond.
    """
    there = np.ones(values.shape[:2], np.bool_) if empty is None else ~empty
    low, high = np.inf, -np.inf
    for row in range(0, len(values), _ROWS):
        part = values[row : row + _ROWS][there[row : row + _ROWS]]
        if part.size:
            low, high = min(low, float(part.min())), max(high, float(part.max()))
    if low > high:
        low = high = 0.0
    kind = values.dtype.str[1:]
    if values.dtype.kind == "f" and low >= 0 and (high <= 1 or opaque):
        return SampleRange(kind, 0.0, 1.0)
    if 0 < low <= high - low:
        low = 0.0  # black stays black
    if not high > low:
        return SampleRange(kind, low, low + 1)
    flat = values[there].reshape(-1)
    least, most = (float(one) for one in np.percentile(flat[:: max(1, flat.size // _SAMPLED)].astype(float), (1, 99)))
    if most > least and high - low > _EVEN * (most - least):
        return SampleRange(kind, low, high, middle=(least + most) / 2, scale=(most - least) / 2)
    return SampleRange(kind, low, high)


def _curved(levels: SampleRange, numbers: Any) -> Any:
    """Numbers on the scale on which pixels are spread evenly."""
    return np.arcsinh((numbers - levels.middle) / levels.scale) if levels.scale else numbers


def to_numbers(pixels: Pixels, levels: SampleRange) -> npt.NDArray[np.float64]:
    """The numbers that pixels stand for, of any shape: `read` the other way round."""
    low, high = float(_curved(levels, levels.low)), float(_curved(levels, levels.high))
    found: npt.NDArray[np.float64] = pixels * ((high - low) / np.iinfo(pixels.dtype).max) + low
    return levels.middle + levels.scale * np.sinh(found) if levels.scale else found


def _lab(values: Samples, photometric: int, page: Page) -> Pixels:
    """CIE Lab samples of 8 or 16 bits to sRGB of as many bits (TIFF 6.0, section 23; Adobe's ICCLab)."""
    if values.dtype not in (np.uint8, np.uint16):
        raise UnreadableImage("this kind of TIFF is not read: save Lab with 8 or 16 bits")
    deep = values.dtype == np.uint16
    unit = 256.0 if deep else 1.0
    wide = 65535 if deep and photometric == CIELAB else 255 * unit
    lightness = values[:, :, 0] * (100.0 / wide)
    values = np.ascontiguousarray(values)
    if photometric == CIELAB:
        signed = np.int16 if deep else np.int8
        a, b = (np.asarray(values[:, :, i].view(signed), np.float64) / unit for i in (1, 2))
    else:
        a, b = (values[:, :, i] / unit - 128 for i in (1, 2))
    found: Pixels = colour.lab_to_rgb(lightness, a, b, values.dtype, _white(page))
    return found


def _white(page: Page) -> tuple[float, float] | None:
    """The white point that a page states, x and y, or None."""
    block = page.block(WHITE_POINT)
    if block is None or len(block) != 16:
        return None
    numbers = np.frombuffer(block, page.fields.order + "u4").astype(float)
    if not numbers[1] or not numbers[3]:
        return None
    x, y = numbers[0] / numbers[1], numbers[2] / numbers[3]
    return (x, y) if 0.1 < x < 0.8 and 0.1 < y < 0.8 else None
