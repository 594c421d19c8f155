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
from collections.abc import Iterable
from dataclasses import replace
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from core.codecs import tiff_numbers
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
    photometric = RGB if as_rgb else page.photometric
    picture = interpreted(values, page, photometric, meta, levels_of([values], page, photometric))
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


def levels_of(bands: Iterable[Samples], page: Page, photometric: int) -> SampleRange | None:
    """What the numbers of a page stand for; None where pixels are what is stored. Reads all bands if it has to.

    Args:
        bands: (rows, w, samples) of any type, from top to bottom.
        page: what its directory says.
        photometric: what the samples stand for (TIFF 6.0, tag 262).
    """
    if not tiff_numbers.need_survey(page, photometric):
        return None
    colours = COLOURS[photometric]
    alpha = _alpha_at(page, page.samples - colours, colours) is not None
    return tiff_numbers.survey((band[:, :, :colours] for band in bands), page, transparent=alpha)


def interpreted(
    values: Samples, page: Page, photometric: int, meta: Metadata, levels: SampleRange | None = None
) -> Picture:
    """Samples as a picture, not yet upright.

    Args:
        values: (h, w, samples) of any type; of a page that `core.codecs.segments.streams`, any of its rows.
        page: what its directory says.
        photometric: what the samples stand for (TIFF 6.0, tag 262).
        meta: what comes with it.
        levels: from `levels_of`.
    """
    colours = COLOURS[photometric]
    if values.shape[2] < colours:
        raise UnreadableImage("the picture is damaged: it has too few samples for its colours")
    extra, premultiplied, notes = _alpha_of(values, page, colours)
    values = values[:, :, :colours]
    alpha = None if extra is None else _opacity(extra[:, :, None], page)[:, :, 0]
    if photometric in (CIELAB, ICCLAB):
        pixels, meta = _lab(values, photometric, page), replace(meta, icc=None)
        notes += ("Lab was converted to sRGB",)
    elif photometric == PALETTE:
        pixels = _mapped(values[:, :, 0], page)
    else:
        plain = levels is None or tiff_numbers.are_plain(values.dtype, page)
        pixels = _to_pixels(values, page) if plain or levels is None else tiff_numbers.to_pixels(values, levels)
        if levels is not None and levels.nodata is not None:
            alpha = np.where(tiff_numbers.holes(values, page), 0, np.iinfo(pixels.dtype).max).astype(pixels.dtype)
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
    at = _alpha_at(page, count, colours)
    others = [colours + index + 1 for index in range(count) if index != at]
    notes: tuple[str, ...] = ()
    if others:
        which = f"channel {others[0]}" if len(others) == 1 else f"channels {others[0]} to {others[-1]}"
        verb = "was" if len(others) == 1 else "were"
        notes = (f"{len(others)} of {values.shape[2]} channels {verb} left out, with no stated meaning: {which}",)
    return (None, False, notes) if at is None else (values[:, :, colours + at], _meanings(page, count)[at] == 1, notes)


def _meanings(page: Page, count: int) -> tuple[int, ...]:
    return (page.numbers(EXTRA_SAMPLES, ()) + (0,) * count)[:count]


def _alpha_at(page: Page, count: int, colours: int) -> int | None:
    """Which of so many samples beyond those of colour is alpha."""
    at = next((index for index, meaning in enumerate(_meanings(page, count)) if meaning in (1, 2)), None)
    return 0 if at is None and count == 1 and colours == 3 else at


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


def _to_pixels(values: Samples, page: Page) -> Pixels:
    """Unsigned integers of up to 16 bits, or of 24, as uint8 or uint16 over the whole range."""
    if values.dtype == np.bool_:
        return values.astype(np.uint8) * np.uint8(255)
    if values.dtype == np.uint8:
        top = (1 << min(page.bits, 8)) - 1
        whole = (values.astype(np.uint16) * 255 // top).astype(np.uint8) if top < 255 else values
        return np.ascontiguousarray(whole)
    if values.dtype == np.uint16:
        return to_16_bits(values, min(page.bits, 16))  # there are packed samples of 9 to 15 bits
    return np.ascontiguousarray(values >> 8).astype(np.uint16)


def _opacity(values: Samples, page: Page) -> Pixels:
    """Alpha of any type, which has its type's own range; floats from 0 to 1."""
    if tiff_numbers.are_plain(values.dtype, page):
        return _to_pixels(values, page)
    highest = 1.0 if values.dtype.kind == "f" else float(np.iinfo(values.dtype).max)
    return tiff_numbers.to_pixels(values, SampleRange(values.dtype.str[1:], 0.0, highest))


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
