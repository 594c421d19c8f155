"""Transparency: colour under it kept from bleeding into edges, and opacity kept exact."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Samples = npt.NDArray[Any]

_ROWS = 256  # in work at once, so that no second picture is held; even


def extend_edges(pixels: Samples, alpha: Samples) -> Samples:
    """Give fully transparent pixels the colour of the visible ones nearby.

    What lies under alpha 0 is arbitrary (black, in most files), but a network or a filter that looks at the
    neighbourhood would mix it into the visible edge. The colours come from a pyramid of alpha-weighted means, in which
    a level counts for as much as it has seen (Gortler et al. 1996, "The Lumigraph", push-pull): nearly transparent
    pixels, whose colour is hardly more certain, do not decide.

    Args:
        pixels: (h, w, channels), integers.
        alpha: (h, w), integers.

    Returns:
        A copy in which only pixels with alpha 0 differ; `pixels` itself where there are none, or nothing else.
    """
    hidden = alpha == 0
    if not hidden.any() or hidden.all():
        return pixels
    coarse, out = _coarser(pixels, alpha), pixels.copy()
    for start in range(0, len(out), _ROWS):
        rows = slice(start, start + _ROWS)
        near = np.rint(_doubled(coarse, start, out[rows]))
        np.copyto(out[rows], near.astype(out.dtype), where=hidden[rows, :, None])
    return out


def _coarser(colour: Samples, weight: Samples) -> Samples:
    """The next level of colour (h, w, channels) by its weight (h, w), filled: half as high and wide, float32."""
    height, width, channels = colour.shape
    size = ((height + 1) // 2, (width + 1) // 2)
    below, below_weight = np.empty((*size, channels), np.float32), np.empty((*size, 1), np.float32)
    for start in range(0, height, _ROWS):
        rows, half = slice(start, start + _ROWS), slice(start // 2, (start + _ROWS) // 2)
        part = _fractions(weight[rows])
        below_weight[half] = _halved(part)
        below[half] = _halved(colour[rows].astype(np.float32) * part) / np.maximum(below_weight[half], 1e-12)
    _fill(below, np.minimum(below_weight, 1, out=below_weight)[:, :, 0])
    return below


def _fill(colour: Samples, weight: Samples) -> None:
    """What its weight (h, w) leaves of colour (h, w, channels), from the next coarser level. float32, in place."""
    if weight.size == 1 or bool((weight == 1).all()):
        return
    coarse = _coarser(colour, weight)
    for start in range(0, len(colour), _ROWS):
        rows = slice(start, start + _ROWS)
        part = _fractions(weight[rows])
        colour[rows] = colour[rows] * part + _doubled(coarse, start, part) * (1 - part)


def _fractions(weight: Samples) -> Samples:
    """(h, w), integers or float32 up to 1, to (h, w, 1) float32 up to 1."""
    top = np.iinfo(weight.dtype).max if np.issubdtype(weight.dtype, np.integer) else 1
    found: Samples = weight[:, :, None].astype(np.float32) / top
    return found


def _doubled(coarse: Samples, start: int, like: Samples) -> Samples:
    """As many rows and columns as `like` has of a level twice as high and wide, from row `start`, which is even."""
    height, width = like.shape[:2]
    doubled: Samples = coarse[start // 2 : (start + height + 1) // 2].repeat(2, axis=0).repeat(2, axis=1)
    return doubled[:height, :width]


def _halved(values: Samples) -> Samples:
    """Sums of 2x2 blocks, (ceil(h / 2), ceil(w / 2), channels)."""
    height, width = values.shape[:2]
    values = np.pad(values, ((0, height % 2), (0, width % 2), (0, 0)))
    found: Samples = values[0::2, 0::2] + values[0::2, 1::2] + values[1::2, 0::2] + values[1::2, 1::2]
    return found


def keep_flat(scaled: Samples, alpha: Samples) -> Samples:
    """Where all neighbours of an input pixel equal it, give the enlarged alpha that very value.

    So what is opaque stays opaque and what is transparent stays transparent, to the bit; a network comes close only.
    Edges are left as they are: on thin lines it is right to go beyond what the input reached.

    Args:
        scaled: (out_h, out_w), of the type of alpha; changed in place.
        alpha: (h, w).
    """
    flat = _around(alpha, np.minimum) == _around(alpha, np.maximum)
    rows = np.arange(len(scaled)) * len(alpha) // len(scaled)
    columns = np.arange(scaled.shape[1]) * alpha.shape[1] // scaled.shape[1]
    for start in range(0, len(scaled), _ROWS):
        part = rows[start : start + _ROWS, None]
        np.copyto(scaled[start : start + _ROWS], alpha[part, columns], where=flat[part, columns])
    return scaled


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
    whole = np.maximum(alpha[:, :, None], 1).astype(np.float64)
    divided: Samples = np.minimum(np.rint(pixels * (top / whole)), top).astype(pixels.dtype)
    return divided


def over_white(pixels: Samples, alpha: Samples) -> Samples:
    """The picture as a browser shows it on an empty page, for formats without transparency."""
    top = np.iinfo(pixels.dtype).max
    out = np.empty_like(pixels)
    for start in range(0, len(out), _ROWS):
        rows = slice(start, start + _ROWS)
        weight = alpha[rows, :, None].astype(np.float32) / top
        out[rows] = np.rint(pixels[rows] * weight + top * (1 - weight))
    return out
