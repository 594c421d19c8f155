"""BMP, written from top to bottom although the file holds its last row first."""

from __future__ import annotations

import io
import struct
from typing import Any, BinaryIO

from PIL import Image

from core.picture import Scan

_SIZE, _PIXELS, _HEIGHT, _IMAGE_SIZE = 2, 10, 22, 34  # places of numbers in the headers


def write(stream: BinaryIO, scan: Scan) -> None:
    """Write a picture without alpha.

    Args:
        stream: seekable, open for writing, binary, at its start.
        scan: uint8.
    """
    bands, dpi = scan.bands, scan.meta.dpi
    extra: dict[str, Any] = {"dpi": dpi} if dpi is not None and max(dpi) < 65_536 else {}
    one_row = io.BytesIO()
    Image.new("L" if bands.channels == 1 else "RGB", (bands.width, 1)).save(one_row, "BMP", **extra)
    (start,) = struct.unpack_from("<I", one_row.getvalue(), _PIXELS)
    header = bytearray(one_row.getvalue()[:start])
    stride = len(one_row.getvalue()) - start
    struct.pack_into("<I", header, _SIZE, start + bands.height * stride)
    struct.pack_into("<i", header, _HEIGHT, bands.height)
    struct.pack_into("<I", header, _IMAGE_SIZE, bands.height * stride)
    stream.write(header)
    below, pad = bands.height, bytes(stride - bands.row_bytes)
    for band in bands:
        below -= len(band)
        stream.seek(start + below * stride)
        stream.write(b"".join(row[:, ::-1].tobytes() + pad for row in band[::-1]))  # blue, green, red
    stream.seek(0, io.SEEK_END)
