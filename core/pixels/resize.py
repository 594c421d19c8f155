"""Lanczos from top to bottom: strips of rows in, strips of rows out, so that no whole float picture is ever held."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import numpy as np
import numpy.typing as npt
from PIL import Image

Rows = npt.NDArray[np.float32]

_LOBES = 3  # of the Lanczos kernel


def resize_rows(strips: Iterable[Rows], height: int, width: int, out_height: int, out_width: int) -> Iterator[Rows]:
    """Resample a picture that arrives as strips.

    Each output row is computed from all the input rows in its support, as if the picture had been there at once
    (Pillow's antialiased Lanczos; a box in fractional input pixels keeps the sampling grid of the whole picture).

    Args:
        strips: (rows, width, channels) float32, top to bottom, `height` rows in all.
        height: of the input, pixels.
        width: of the input, pixels.
        out_height: of the output, pixels.
        out_width: of the output, pixels.

    Yields:
        (rows, out_width, channels) float32, top to bottom, `out_height` rows in all.
    """
    ratio = height / out_height
    support = _LOBES * max(1.0, ratio) + 1
    held: Rows | None = None
    first, received, done = 0, 0, 0  # input row of held[0]; input rows seen; output rows given
    for strip in strips:
        held = strip if held is None else np.concatenate([held, strip])
        received += len(strip)
        del strip  # else it is held while the next is made
        ready = out_height if received >= height else math.floor((received - support) / ratio)
        if ready <= done:
            continue
        box = (0, done * ratio - first, width, min(ready * ratio - first, len(held)))
        rows = np.empty((ready - done, out_width, held.shape[2]), np.float32)
        for channel in range(held.shape[2]):
            layer = Image.fromarray(held[:, :, channel])
            rows[:, :, channel] = np.asarray(layer.resize((out_width, ready - done), Image.Resampling.LANCZOS, box))
        done = ready
        keep = max(0, math.floor(done * ratio - support) - first)
        held, first = held[keep:].copy(), first + keep  # a view would keep all of it
        yield rows
        del rows
