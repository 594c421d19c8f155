"""BMP: written from top to bottom although the file holds its last row first, and read where Pillow fails.

That is with colours in bit fields, and with runs of 4 and 8 bits, which Pillow refuses or reads wrongly.

Follows Microsoft's BITMAPINFOHEADER to BITMAPV5HEADER. Where that is silent: fields of a few bits use the whole range
(as browsers; ImageMagick and ffmpeg only shift them); runs end at the edge of their row; what runs pass over has the
first colour (as in Windows; browsers make it transparent); alpha that is zero everywhere is no alpha (browsers).
"""

from __future__ import annotations

import io
import struct
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

import numpy as np
from PIL import Image

from core.codecs.base import decoder_errors, without_alpha
from core.limits import Limits, check_held, check_size
from core.metadata.carried import Metadata
from core.metadata.resolution import valid_dpi
from core.picture import Picture, Pixels, Probe, Scan

_SIZE, _PIXELS, _HEIGHT, _IMAGE_SIZE = 2, 10, 22, 34  # places of numbers in the headers
_RLE8, _RLE4, _FIELDS, _ALPHA_FIELDS = 1, 2, 3, 6


def wanted(head: bytes) -> bool:
    """True when a BMP with these first bytes is read here."""
    if len(head) < 54 or int.from_bytes(head[14:18], "little") < 40:
        return False
    bits, compression = struct.unpack_from("<HI", head, 28)
    return (compression in (_FIELDS, _ALPHA_FIELDS) and bits in (16, 32)) or (compression, bits) in (
        (_RLE8, 8),
        (_RLE4, 4),
    )


def size(head: bytes) -> tuple[int, int]:
    """Width and height, pixels, as the header says."""
    width, height = struct.unpack_from("<ii", head, 18)
    return abs(width), abs(height)


def open_bmp(
    stream: BinaryIO, head: bytes, file_size: int, limits: Limits
) -> tuple[Probe, Callable[[], Iterator[Picture]]]:
    """The header of a BMP that is `wanted`, and a function that decodes it.

    Raises:
        TooLarge: over a limit.
    """
    width, height = size(head)
    check_size(width, height, 1, limits)
    check_held(width * height, limits)

    def decode_pages() -> Iterator[Picture]:
        with decoder_errors():
            pixels, alpha = without_alpha(read(stream))
            dpi = valid_dpi(tuple(int.from_bytes(head[at : at + 4], "little") * 0.0254 for at in (38, 42)))
            picture = Picture(pixels, alpha, meta=Metadata(dpi=dpi))
        yield picture

    return Probe("bmp", width, height, file_size, "RGB", streams=False), decode_pages


def read(stream: BinaryIO) -> Pixels:
    """(height, width, 3 or 4) uint8, the fourth channel alpha.

    Args:
        stream: the file; its position is changed.

    Raises:
        ValueError: it ends too early.
    """
    stream.seek(0)
    data = stream.read()
    offset, header = struct.unpack_from("<II", data, 10)
    width, height = size(data)
    upside_down = struct.unpack_from("<i", data, 22)[0] > 0
    bits, compression = struct.unpack_from("<HI", data, 28)
    if compression in (_RLE8, _RLE4):
        number = min(struct.unpack_from("<I", data, 46)[0] or 1 << bits, 256)
        table = np.zeros((256, 3), np.uint8)
        raw = np.frombuffer(data[14 + header : 14 + header + 4 * number], np.uint8)
        colours = raw[: len(raw) // 4 * 4].reshape(-1, 4)
        table[: len(colours)] = colours[:, 2::-1]
        found = table[_runs(data, offset, width, height, bits)]
    else:
        found = _fields(data, offset, header, width, height, bits, compression)
    return np.ascontiguousarray(found[::-1] if upside_down else found)


def _fields(data: bytes, offset: int, header: int, width: int, height: int, bits: int, compression: int) -> Pixels:
    count = 4 if header >= 56 or compression == _ALPHA_FIELDS else 3
    masks = struct.unpack_from(f"<{count}I", data, 54)
    step = (width * bits // 8 + 3) // 4 * 4
    rows = np.frombuffer(data, np.uint8, step * height, offset).reshape(height, step)[:, : width * bits // 8]
    values = np.ascontiguousarray(rows).view("<u2" if bits == 16 else "<u4").astype(np.uint32)
    layers = []
    for mask in masks:
        low = (mask & -mask).bit_length() - 1
        top = mask >> max(0, low)
        if not mask:
            layers.append(np.zeros(values.shape, np.uint8))
            continue
        part = (values & np.uint32(mask)) >> np.uint32(low)
        layers.append(((part.astype(np.uint64) * 255 + top // 2) // top).astype(np.uint8))
    if count == 4 and not layers[3].any():
        layers.pop()
    return np.stack(layers, axis=-1)


def _runs(data: bytes, offset: int, width: int, height: int, bits: int) -> Pixels:
    """Indices, (height, width), first row first as stored."""
    out = np.zeros((height, width), np.uint8)
    x, y, at, end = 0, 0, offset, len(data) - 1
    while at < end and y < height:
        count, value = data[at], data[at + 1]
        at += 2
        if count:
            run: Pixels | np.uint8 = np.uint8(value)
            if bits == 4:
                run = np.resize(np.array([value >> 4, value & 15], np.uint8), count)[: max(0, width - x)]
            out[y, x : x + count] = run
            x += count
        elif value == 0:
            x, y = 0, y + 1
        elif value == 1:
            break
        elif value == 2:
            if at + 1 > end:
                break
            x, y, at = x + data[at], y + data[at + 1], at + 2
        else:
            length = value if bits == 8 else (value + 1) // 2
            part = np.frombuffer(data[at : at + length], np.uint8)
            if bits == 4:
                part = np.stack([part >> 4, part & 15], axis=-1).reshape(-1)
            part = part[:value][: max(0, width - x)]
            out[y, x : x + len(part)] = part
            x, at = x + value, at + length + length % 2
    return out


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
