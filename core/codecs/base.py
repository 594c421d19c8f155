"""Rules that all codecs share: guards against bombs, one kind of error, samples of any depth, upright pixels."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

import numpy as np
from PIL import Image, PngImagePlugin, UnidentifiedImageError

from core.errors import TooLarge, UnreadableImage, describe
from core.limits import Limits
from core.metadata.carried import MAX_BLOCK
from core.picture import Pixels

# A second guard under our own, which looks at the header before any pixel is decoded (see `raise_guard`).
warnings.filterwarnings("error", category=Image.DecompressionBombWarning)
# A colour profile of more than Pillow's usual limit of 1 MB for a chunk is no attack yet.
PngImagePlugin.MAX_TEXT_CHUNK = max(PngImagePlugin.MAX_TEXT_CHUNK, MAX_BLOCK)
# Odd metadata is not the user's concern when the pixels decode.
warnings.filterwarnings("ignore", category=UserWarning, module="PIL")

#: A path, the encoded bytes, or a binary file object.
Source = str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryIO
#: Where nobody asks for another, in all lossy formats.
USUAL_QUALITY = 95
_ROWS = 64  # at a time, where a conversion needs wider numbers


@contextmanager
def decoder_errors() -> Iterator[None]:
    """Whatever a decoder raises, as one of our input errors."""
    try:
        yield
    except (TooLarge, UnreadableImage, ImportError):  # a library that is missing is no damage of the picture
        raise
    except MemoryError as error:
        raise TooLarge("the input does not fit into memory when decoded: give a smaller picture") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise TooLarge("the input has more pixels than the limit: give a smaller picture") from error
    except UnidentifiedImageError as error:
        raise UnreadableImage("the picture is damaged: its header makes no sense") from error
    except Exception as error:
        raise UnreadableImage(f"the picture is damaged: {describe(error)}") from error


def raise_guard(limits: Limits) -> None:
    """Let Pillow's own guard against bombs, which is one number for the whole process, be no stricter than ours."""
    if Image.MAX_IMAGE_PIXELS is not None:
        Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS, limits.input_pixels)


def split(image: Image.Image) -> tuple[Pixels, Pixels | None]:
    """Colour (h, w, 1 or 3) and alpha (h, w) of an image of up to 8 bits in any mode."""
    grey = image.mode in ("1", "L", "LA", "La")
    if image.has_transparency_data:
        return without_alpha(np.asarray(image.convert("LA" if grey else "RGBA")))
    values = np.asarray(image.convert("L" if grey else "RGB"))
    return values.reshape(*values.shape[:2], -1), None


def without_alpha(values: Pixels) -> tuple[Pixels, Pixels | None]:
    """Colour (h, w, 1 or 3) and alpha (h, w) of (h, w, 1 to 4)."""
    if values.shape[2] in (2, 4):
        return np.ascontiguousarray(values[:, :, :-1]), np.ascontiguousarray(values[:, :, -1])
    return values, None


def to_16_bits(values: Pixels, bits: int, out: Pixels | None = None) -> Pixels:
    """uint16 of fewer bits, such as 10, over the whole range.

    Args:
        values: of any shape, uint16.
        bits: that are in use.
        out: where to put them: `values` itself, where nobody else needs these; None makes a new array.
    """
    if bits == 16:
        return np.ascontiguousarray(values)
    top = (1 << bits) - 1
    found = np.empty(values.shape, np.uint16) if out is None else out
    for row in range(0, len(values), _ROWS):
        part = np.minimum(values[row : row + _ROWS], top).astype(np.uint32)
        found[row : row + _ROWS] = part * 65535 // top
    return found


def upright(values: Pixels, orientation: int) -> Pixels:
    """Apply an EXIF orientation (EXIF 2.32, tag 0x0112) to (h, w) or (h, w, channels)."""
    if orientation >= 5:
        values = values.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        values = values[::-1]
    if orientation in (2, 3, 6, 7):
        values = values[:, ::-1]
    return np.ascontiguousarray(values)
