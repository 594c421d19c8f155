"""Transparency: colour under it kept from bleeding into edges, and opacity kept exact."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from core.pixels.bands import Bands, Samples, bands_of, in_rows

_ROWS = 256  # in work at once, so that no second picture is held; a multiple of 2 ** _LEVELS
_LEVELS = 5  # of the pyramid that are made anew for each band; the coarser ones are held


@dataclass(frozen=True)
class Opacity:
    """What has to be known of a whole picture's alpha before its first rows are enlarged.

    Attributes:
        first: alpha of the first pixel.
        varies: whether any other pixel's differs.
        levels: of the pyramid below `coarse`.
        coarse: colours for what is fully transparent, (ceil(h / 2 ** levels), ceil(w / 2 ** levels), channels)
            float32; None where no pixel is, or every one.
    """

    first: int
    varies: bool
    levels: int
    coarse: Samples | None


def survey(bands: Bands) -> Opacity:
    """Go over a picture with alpha once.

    What lies under alpha 0 is arbitrary (black, in most files), but a network or a filter that looks at the
    neighbourhood would mix it into the visible edge. The colours to put there come from a pyramid of alpha-weighted
    means, in which a level counts for as much as it has seen (Gortler et al. 1996, "The Lumigraph", push-pull): nearly
    transparent pixels, whose colour is hardly more certain, do not decide.

    Args:
        bands: of the picture; all of them are read.
    """
    levels = min(_LEVELS, max(1, (max(bands.height, bands.width) - 1).bit_length()))
    colours, weights = [], []
    first, varies, hidden, visible = -1, False, False, False
    for band in in_rows(bands, _ROWS):
        alpha = band[:, :, -1]
        first = int(alpha[0, 0]) if first < 0 else first
        varies = varies or bool((alpha != first).any())
        hidden, visible = hidden or bool((alpha == 0).any()), visible or bool(alpha.any())
        colour, weight = _pyramid(band[:, :, :-1], alpha, levels)[-1]
        colours.append(colour)
        weights.append(weight)
    if not (hidden and visible):
        return Opacity(first, varies, levels, None)
    coarse = np.concatenate(colours)
    _fill(coarse, np.concatenate(weights))
    return Opacity(first, varies, levels, coarse)


def extend_edges_of(bands: Iterable[Samples], opacity: Opacity) -> Iterator[Samples]:
    """Give fully transparent pixels the colour of the visible ones nearby.

    Args:
        bands: (rows, w, channels + 1) integers, the last channel alpha.
        opacity: of the same picture, from `survey`.

    Yields:
        The same rows, in which only the colour of pixels with alpha 0 differs.
    """
    if opacity.coarse is None:
        yield from bands
        return
    start = 0
    for band in in_rows(bands, _ROWS):
        if not band[:, :, -1].all():
            band = band.copy()
            _extend(band[:, :, :-1], band[:, :, -1], opacity, start)
        start += len(band)
        yield band


def extend_edges(pixels: Samples, alpha: Samples) -> Samples:
    """`extend_edges_of` for a picture that is held.

    Args:
        pixels: (h, w, channels), integers.
        alpha: (h, w), integers.

    Returns:
        A copy in which only pixels with alpha 0 differ; `pixels` itself where there are none, or nothing else.
    """
    opacity = survey(bands_of(pixels, alpha))
    if opacity.coarse is None:
        return pixels
    out = pixels.copy()
    for start in range(0, len(out), _ROWS):
        rows = slice(start, start + _ROWS)
        _extend(out[rows], alpha[rows], opacity, start)
    return out


def _extend(pixels: Samples, alpha: Samples, opacity: Opacity, start: int) -> None:
    """Colour (rows, w, channels) of the band that begins at row `start`, in place."""
    assert opacity.coarse is not None  # noqa: S101 - for the type checker: both callers have looked
    pyramid = _pyramid(pixels, alpha, opacity.levels)
    top = start >> opacity.levels
    near = opacity.coarse[top : top + len(pyramid[-1][0])]
    for colour, weight in reversed(pyramid[:-1]):
        part = weight[:, :, None]
        near = colour * part + _doubled(near, colour) * (1 - part)
    near = np.rint(_doubled(near, pixels))
    np.copyto(pixels, near.astype(pixels.dtype), where=(alpha == 0)[:, :, None])


def _pyramid(colour: Samples, weight: Samples, levels: int) -> list[tuple[Samples, Samples]]:
    """Colour (h, w, channels) and weight (h, w), float32, of so many levels, each half as high and wide as the last."""
    found: list[tuple[Samples, Samples]] = []
    for _ in range(levels):
        part = _fractions(weight)
        total = _halved(part)
        colour = _halved(colour.astype(np.float32) * part) / np.maximum(total, np.float32(1e-12))
        weight = np.minimum(total, 1)[:, :, 0]
        found.append((colour, weight))
    return found


def _fill(colour: Samples, weight: Samples) -> None:
    """What its weight (h, w) leaves of colour (h, w, channels), from the next coarser level. float32, in place."""
    if weight.size == 1 or bool((weight == 1).all()):
        return
    [(coarse, coarse_weight)] = _pyramid(colour, weight, 1)
    _fill(coarse, coarse_weight)
    part = weight[:, :, None]
    colour[:] = colour * part + _doubled(coarse, colour) * (1 - part)


def _fractions(weight: Samples) -> Samples:
    """(h, w), integers or float32 up to 1, to (h, w, 1) float32 up to 1."""
    top = np.iinfo(weight.dtype).max if np.issubdtype(weight.dtype, np.integer) else 1
    found: Samples = weight[:, :, None].astype(np.float32) / top
    return found


def _doubled(coarse: Samples, like: Samples) -> Samples:
    """As many rows and columns as `like` has, of a level that is half as high and wide."""
    height, width = like.shape[:2]
    doubled: Samples = coarse.repeat(2, axis=0).repeat(2, axis=1)
    return doubled[:height, :width]


def _halved(values: Samples) -> Samples:
    """Sums of 2x2 blocks, (ceil(h / 2), ceil(w / 2), channels)."""
    height, width = values.shape[:2]
    values = np.pad(values, ((0, height % 2), (0, width % 2), (0, 0)))
    found: Samples = values[0::2, 0::2] + values[0::2, 1::2] + values[1::2, 0::2] + values[1::2, 1::2]
    return found


def keep_flat(scaled: Samples, start: int, out_height: int, near: Samples, top: int, height: int) -> None:
    """Where all neighbours of an input pixel equal it, give the enlarged alpha that very value.

    So what is opaque stays opaque and what is transparent stays transparent, to the bit; a network comes close only.
    Edges are left as they are: on thin lines it is right to go beyond what the input reached.

    Args:
        scaled: (rows, out_w), of the type of alpha, rows of the enlarged one; changed in place.
        start: which of its rows is the first.
        out_height: of the enlarged picture.
        near: (some rows, w), the rows of the input that `rows_near` names for these.
        top: which of the input's rows is its first.
        height: of the input.
    """
    flat = _around(near, np.minimum) == _around(near, np.maximum)
    rows = np.arange(start, start + len(scaled))[:, None] * height // out_height - top
    columns = np.arange(scaled.shape[1]) * near.shape[1] // scaled.shape[1]
    np.copyto(scaled, near[rows, columns], where=flat[rows, columns])


def rows_near(start: int, stop: int, out_height: int, height: int) -> tuple[int, int]:
    """Rows [top, bottom) of the input that rows [start, stop) of the enlarged alpha lie in, with their neighbours."""
    return max(0, start * height // out_height - 1), min(height, (stop - 1) * height // out_height + 2)


def _around(alpha: Samples, choose: np.ufunc) -> Samples:
    """The least or greatest value of each 3x3 neighbourhood."""
    padded = np.pad(alpha, 1, mode="edge")
    down = choose(choose(padded[:-2], padded[1:-1]), padded[2:])
    found: Samples = choose(choose(down[:, :-2], down[:, 1:-1]), down[:, 2:])
    return found


def unpremultiply(pixels: Samples, alpha: Samples) -> Samples:
    """Colour that is stored multiplied by alpha, divided by it again.

    Args:
        pixels: (h, w, channels), integers.
        alpha: (h, w), of the same type.
    """
    top = np.iinfo(pixels.dtype).max
    divided = np.empty_like(pixels)
    for start in range(0, len(pixels), _ROWS):
        rows = slice(start, start + _ROWS)
        whole = np.maximum(alpha[rows, :, None], 1).astype(np.float64)
        divided[rows] = np.minimum(np.rint(pixels[rows] * (top / whole)), top)
    return divided


def over_white(samples: Samples) -> Samples:
    """A band as a browser shows it on an empty page, for formats without transparency.

    Args:
        samples: (rows, w, channels + 1) integers, the last channel alpha.

    Returns:
        (rows, w, channels).
    """
    top = np.iinfo(samples.dtype).max
    weight = samples[:, :, -1:].astype(np.float32) / top
    shown: Samples = np.rint(samples[:, :, :-1] * weight + top * (1 - weight)).astype(samples.dtype)
    return shown
