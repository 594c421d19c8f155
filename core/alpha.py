"""Transparency: colour under it kept from bleeding into edges, and opacity kept exact."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Samples = npt.NDArray[Any]


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
    weight = alpha.astype(np.float32)[:, :, None] / np.iinfo(alpha.dtype).max  # (h, w, 1)
    filled = _filled(pixels.astype(np.float32), weight.astype(np.float32))
    return np.where(hidden[:, :, None], np.rint(filled).astype(pixels.dtype), pixels)


def _filled(colour: Samples, weight: Samples) -> Samples:
    """Colour (h, w, channels) by its weight (h, w, 1), and the next coarser level for what that leaves. float32."""
    height, width = weight.shape[:2]
    if height == width == 1 or bool((weight == 1).all()):
        return colour
    below_weight = _halved(weight)
    below = _halved(colour * weight) / np.maximum(below_weight, 1e-12)
    below = _filled(below, np.minimum(below_weight, 1))
    coarse = below.repeat(2, axis=0).repeat(2, axis=1)[:height, :width]
    filled: Samples = colour * weight + coarse * (1 - weight)
    return filled


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
    for start in range(0, len(scaled), 256):  # so that no second picture is held
        part = rows[start : start + 256, None]
        np.copyto(scaled[start : start + 256], alpha[part, columns], where=flat[part, columns])
    return scaled


def _around(alpha: Samples, choose: np.ufunc) -> Samples:
    """The least or greatest value of each 3x3 neighbourhood."""
    padded = np.pad(alpha, 1, mode="edge")
    down = choose(choose(padded[:-2], padded[1:-1]), padded[2:])
    found: Samples = choose(choose(down[:, :-2], down[:, 1:-1]), down[:, 2:])
    return found


def over_white(pixels: Samples, alpha: Samples) -> Samples:
    """The picture as a browser shows it on an empty page, for formats without transparency."""
    top = np.iinfo(pixels.dtype).max
    out = np.empty_like(pixels)
    for start in range(0, len(out), 256):
        rows = slice(start, start + 256)
        weight = alpha[rows, :, None].astype(np.float32) / top
        out[rows] = np.rint(pixels[rows] * weight + top * (1 - weight))
    return out
