"""Lanczos from top to bottom: bands of rows in, bands of rows out, so that no whole picture is ever held."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import closing

import numpy as np
import numpy.typing as npt
from PIL import Image

from core.pixels.bands import Samples, ahead

Rows = npt.NDArray[np.float32]

_LOBES = 3  # of the Lanczos kernel
_ROWS = 64  # taken in at once, so that what is held beside a strip is little
#: Rows of the output that are computed at once, always the same ones: Pillow knows where they lie to seven digits.
_BLOCK = 64


def support_above(row: int, height: int, out_height: int) -> int:
    """The first input row that is needed for output rows from `row` on.

    Args:
        row: of the output.
        height: of the input, pixels.
        out_height: of the output, pixels.
    """
    ratio = height / out_height
    return max(0, math.floor(row // _BLOCK * _BLOCK * ratio - _support(ratio)))


def rows_from(received: int, height: int, out_height: int) -> int:
    """How many output rows are computed from the first `received` input rows; whole blocks of them.

    Args:
        received: input rows from the top.
        height: of the input, pixels.
        out_height: of the output, pixels.
    """
    if received >= height:
        return out_height
    ratio = height / out_height
    return max(0, math.floor((received - _support(ratio)) / ratio) // _BLOCK * _BLOCK)


def _support(ratio: float) -> float:
    return _LOBES * max(1.0, ratio) + 1


def resize_rows(
    strips: Iterable[Samples], height: int, width: int, out_height: int, out_width: int, start: int = 0
) -> Iterator[Samples]:
    """Resample a picture that arrives as strips.

    Each output row is computed from all the input rows in its support, as if the picture had been there at once
    (Pillow's antialiased Lanczos; a box in fractional input pixels keeps the sampling grid of the whole picture),
    and to the same bits wherever strips begin and end. Rows are stretched first, each by itself, then columns: Pillow
    would choose which comes first by the number of rows that it is given, and it rounds and clips between the two.
    Numbers of eight bits are computed as Pillow does it for them, which is four times as fast.

    Args:
        strips: (rows, width, channels) float32 or uint8, top to bottom, to the last of the `height` rows.
        height: of the input, pixels.
        width: of the input, pixels.
        out_height: of the output, pixels.
        out_width: of the output, pixels.
        start: first row of the output; `strips` begins with row `support_above(start, height, out_height)` then.

    Yields:
        (rows, out_width, channels) of the same type, top to bottom, to the last of the `out_height` rows.
    """
    ratio = height / out_height
    held: Samples | None = None
    done, first = start, support_above(start, height, out_height)  # output rows given; input row of held[0]
    received = first  # input rows seen
    stretched = (
        _resized(part, (out_width, len(part)), (0, 0, width, len(part)))
        for part in (whole[row : row + _ROWS] for whole in strips for row in range(0, len(whole), _ROWS))
    )
    # Another thread stretches the rows below while columns are stretched here.
    with closing(ahead(stretched, most=0)) as parts:
        for strip in parts:
            received += len(strip)
            held = strip if held is None else np.concatenate([held, strip])
            del strip  # else it is held while the next is made
            ready = rows_from(received, height, out_height)
            while done < ready:
                top = done // _BLOCK * _BLOCK
                bottom = min(top + _BLOCK, out_height)
                needed = min(height, math.ceil(bottom * ratio + _support(ratio)))
                near = held[: needed - first]
                box = (0, top * ratio - first, out_width, min(bottom * ratio - first, len(near)))
                rows = _resized(near, (out_width, bottom - top), box)[done - top :]
                done = bottom
                keep = support_above(done, height, out_height) - first
                held, first = held[keep:].copy(), first + keep  # a view would keep all of it
                yield rows
                del rows, near


def _resized(samples: Samples, size: tuple[int, int], box: tuple[float, float, float, float]) -> Samples:
    """A box of (h, w, channels), as (size[1], size[0], channels); only one of its sides may change."""
    channels = samples.shape[2]
    if samples.dtype == np.uint8 and channels == 3:  # what most pictures are, with a copy less
        image = Image.fromarray(np.ascontiguousarray(samples))
        return np.asarray(image.resize(size, Image.Resampling.LANCZOS, box))
    out = np.empty((size[1], size[0], channels), samples.dtype)
    # Colour of eight bits goes through at once; opacity apart, as Pillow would multiply colour by it.
    at_once = 3 if samples.dtype == np.uint8 and channels >= 3 else 1
    groups = [slice(0, at_once), *(slice(one, one + 1) for one in range(at_once, channels))]
    for group in groups:
        layer = samples[:, :, group] if at_once == 3 and group.start == 0 else samples[:, :, group.start]
        image = Image.fromarray(np.ascontiguousarray(layer))
        out[:, :, group] = np.asarray(image.resize(size, Image.Resampling.LANCZOS, box)).reshape(*size[::-1], -1)
    return out


def halved(samples: Samples, alpha: bool) -> Samples:
    """Means of 2x2 pixels, for copies that viewers show while they are far away; in the picture's own values.

    Args:
        samples: (h, w, channels + alpha) uint8 or uint16; of an odd side the last row or column stands alone.
        alpha: whether the last channel is opacity, by which the others are weighted.

    Returns:
        (ceil(h / 2), ceil(w / 2), channels + alpha) of the same type.
    """
    if samples.dtype == np.uint8 and not alpha:
        shown = Image.fromarray(np.ascontiguousarray(samples[:, :, 0] if samples.shape[2] == 1 else samples))
        return np.asarray(shown.reduce(2)).reshape(-(-len(samples) // 2), -(-samples.shape[1] // 2), -1)
    height, width = samples.shape[:2]
    samples = np.pad(samples, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    if not alpha:
        return ((_sums(samples.astype(np.uint32)) + 2) >> 2).astype(samples.dtype)
    values = samples.astype(np.float64)
    opacity = values[:, :, -1:]
    colour, weight = _sums(values[:, :, :-1] * opacity), _sums(opacity)
    # Where all is transparent, the colour below is kept as it is everywhere else.
    colour = np.where(weight > 0, colour / np.maximum(weight, 1), _sums(values[:, :, :-1]) / 4)
    found: Samples = np.floor(np.concatenate([colour, weight / 4], axis=2) + 0.5).astype(samples.dtype)
    return found


def _sums(samples: Samples) -> Samples:
    """Of 2x2 pixels; both sides are even."""
    found: Samples = samples[0::2, 0::2] + samples[0::2, 1::2] + samples[1::2, 0::2] + samples[1::2, 1::2]
    return found
