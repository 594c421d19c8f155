"""JPEG, PNG and BMP decoded from top to bottom, so that no picture is held.

JPEG and PNG by libvips, which is the only kept library with a decoder that gives rows as they are asked for: Pillow and
imagecodecs hold the whole. It runs the same libjpeg-turbo and libpng as these: the pixels are equal to the bit. A
progressive JPEG is a sum of scans, so that libjpeg holds its coefficients, two bytes for each sample, all the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, BinaryIO

import numpy as np
from PIL import BmpImagePlugin, Image

from core.codecs.base import decoder_errors
from core.errors import UnreadableImage
from core.pixels.bands import Bands, Samples

_ROWS = 128  # at once
_TYPES: dict[str, np.dtype[Any]] = {"uchar": np.dtype(np.uint8), "ushort": np.dtype(np.uint16)}


def open_vips(stream: BinaryIO, format: str, height: int, width: int) -> Bands:
    """A JPEG (grey or colour) or a PNG that is not interlaced.

    Args:
        stream: the file; read from anywhere in between.
        format: "jpeg" or "png".
        height: that the header says, pixels.
        width: that the header says, pixels.

    Raises:
        UnreadableImage: the header contradicts itself.
    """
    with decoder_errors():
        image, _ = _image(stream, format)
        if (image.height, image.width) != (height, width) or image.format not in _TYPES:
            raise UnreadableImage("the picture is damaged: it is not of the size that its header says")
        channels, dtype = int(image.bands), _TYPES[image.format]

    def read() -> Iterator[Samples]:
        import pyvips

        with decoder_errors():
            image, source = _image(stream, format)
            region = pyvips.Region.new(image)
            for top in range(0, height, _ROWS):
                rows = min(_ROWS, height - top)
                data = region.fetch(0, top, width, rows)
                yield np.frombuffer(data, dtype).reshape(rows, width, channels)
            del region, image, source  # in this order: libvips calls the source's functions, and does not hold it

    return Bands(height, width, 1 if channels < 3 else 3, channels in (2, 4), dtype, read)


def _image(stream: BinaryIO, format: str) -> tuple[Any, Any]:
    """An image of libvips whose pixels are not read yet, and its source, to be held for as long as it is used."""
    import pyvips

    pyvips.cache_set_max(0)  # it would keep files that are done with
    stream.seek(0)
    source = pyvips.SourceCustom()
    source.on_read(stream.read)
    source.on_seek(stream.seek)
    load = pyvips.Image.jpegload_source if format == "jpeg" else pyvips.Image.pngload_source
    return load(source, access="sequential", fail_on="truncated", unlimited=True), source


def is_plain_bmp(image: Image.Image) -> bool:
    """Whether a picture that Pillow has opened is a BMP of 24 bits without compression."""
    if not isinstance(image, BmpImagePlugin.BmpImageFile) or image.mode != "RGB" or len(image.tile) != 1:
        return False
    kind, _, _, arguments = image.tile[0]
    return kind == "raw" and isinstance(arguments, tuple) and arguments[0] == "BGR"


def open_bmp(stream: BinaryIO, image: BmpImagePlugin.BmpImageFile) -> Bands:
    """A BMP of 24 bits without compression.

    Args:
        stream: the file; read from anywhere in between.
        image: the same, opened by Pillow, which has read where the rows are.
    """
    [(_, _, start, arguments)] = image.tile
    assert isinstance(arguments, tuple)  # noqa: S101 - see is_plain_bmp
    stride, upwards = int(arguments[1]), int(arguments[2]) < 0
    width, height = image.size

    def read() -> Iterator[Samples]:
        with decoder_errors():
            for top in range(0, height, _ROWS):
                rows = min(_ROWS, height - top)
                stream.seek(start + stride * (height - top - rows if upwards else top))
                data = stream.read(stride * rows)
                if len(data) < stride * (rows - 1) + 3 * width:
                    raise UnreadableImage("the picture is damaged: it ends before its last row")
                lines = np.frombuffer(data.ljust(stride * rows, b"\0"), np.uint8).reshape(rows, stride)
                found = lines[:: -1 if upwards else 1, : 3 * width].reshape(rows, width, 3)
                yield np.ascontiguousarray(found[:, :, ::-1])

    return Bands(height, width, 3, False, np.dtype(np.uint8), read)
