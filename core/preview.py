"""A small picture of a picture, for programs that cannot show its format: browsers have no TIFF, and few have HEIC."""

from __future__ import annotations

import io
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from core.codecs.base import Source
from core.codecs.read import decode
from core.formats import MEDIA_TYPES
from core.limits import Limits
from core.picture import Pixels

#: Longest side of a preview, in pixels: about what a page has room for.
SIDE = 1600
#: The whole picture is decoded, in up to eight bytes for each pixel; larger ones have no preview.
MAX_PIXELS = 100_000_000


@dataclass(frozen=True)
class Preview:
    """An encoded preview, and what it is of.

    Attributes:
        data: a JPEG, or a WebP where there is transparency; in the picture's own colour space, which is named in it.
        media_type: of `data`.
        width: of the picture itself, in pixels, orientation applied.
        height: of the picture itself, in pixels, orientation applied.
    """

    data: bytes
    media_type: str
    width: int
    height: int


def preview(source: Source, limits: Limits | None = None) -> Preview:
    """The first frame or page, at most `SIDE` pixels on a side; a smaller picture keeps its size.

    Args:
        source: as `core.probe` takes it.
        limits: what to refuse, as `core.probe` does; never more than `MAX_PIXELS`.

    Raises:
        UnreadableImage: not a picture that can be read, or a damaged one.
        TooLarge: over a limit.
    """
    limits = limits or Limits()
    found = decode(source, replace(limits, input_pixels=min(limits.input_pixels, MAX_PIXELS)))
    height, width = found.pixels.shape[:2]
    pixels = _eight_bits(found.pixels)
    if found.alpha is not None:
        pixels = np.dstack((pixels, _eight_bits(found.alpha)))  # Pillow weighs colours by their alpha
    small = Image.fromarray(pixels.squeeze(2) if pixels.shape[2] == 1 else pixels)
    small.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS, reducing_gap=3)
    format = "jpeg" if found.alpha is None else "webp"
    out = io.BytesIO()
    small.save(out, format, quality=85, icc_profile=found.meta.icc)
    return Preview(out.getvalue(), MEDIA_TYPES[format], width, height)


def _eight_bits(values: Pixels) -> Pixels:
    """The upper eight bits, without a copy at sixteen."""
    if values.dtype == np.uint8:
        return values
    return np.right_shift(values, 8, out=np.empty(values.shape, np.uint8), casting="unsafe")
