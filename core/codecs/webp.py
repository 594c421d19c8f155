"""WebP, read and written through Pillow: its canvas, and when it is coded without loss. Follows RFC 9649."""

from __future__ import annotations

import io
from typing import Any, BinaryIO

from core.codecs.base import USUAL_QUALITY
from core.picture import Picture

#: Pixels of a frame; libwebp takes 30 bytes for each when it codes without loss.
MAX_LOSSLESS_PIXELS = 20_000_000
_ALPHA = 0x10


def canvas_size(head: bytes) -> tuple[int, int]:
    """Width and height, pixels, of the canvas of a WebP whose first bytes these are."""
    if head[12:16] == b"VP8X":
        return 1 + int.from_bytes(head[24:27], "little"), 1 + int.from_bytes(head[27:30], "little")
    if head[12:16] == b"VP8L":
        bits = int.from_bytes(head[21:25], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    return int.from_bytes(head[26:28], "little") & 0x3FFF, int.from_bytes(head[28:30], "little") & 0x3FFF


def with_alpha(stream: BinaryIO) -> BinaryIO:
    """The same file, marked as transparent: the flag of the container is missing in some that are.

    The decoder gives opaque pixels where there is no transparency after all.
    """
    stream.seek(0)
    head = stream.read(21)
    stream.seek(0)
    if head[12:16] != b"VP8X" or head[20] & _ALPHA:
        return stream
    data = bytearray(stream.read())
    stream.seek(0)
    if not any(name in data for name in (b"ALPH", b"VP8L")):
        return stream
    data[20] |= _ALPHA
    return io.BytesIO(data)


def is_lossless(stream: BinaryIO) -> bool:
    """True when the first frame of a WebP is coded without loss."""
    at = 12
    for _ in range(64):
        stream.seek(at)
        chunk = stream.read(8)
        if chunk[:4] in (b"VP8L", b"VP8 ") or len(chunk) < 8:
            return chunk[:4] == b"VP8L"
        length = int.from_bytes(chunk[4:], "little")
        at += 8 + (16 if chunk[:4] == b"ANMF" else length + length % 2)
    return False


def lossless_fits(height: int, width: int) -> bool:
    """True when a picture is small enough to be written without loss."""
    return height * width <= MAX_LOSSLESS_PIXELS


def save_options(picture: Picture, quality: int | None) -> dict[str, Any]:
    """Pillow's options to write a picture, or an animation that begins with it.

    Args:
        picture: the first, or only one.
        quality: 1 to 100; None writes without loss what was stored so, and 95 the rest.
    """
    if quality is None and picture.lossless and lossless_fits(*picture.pixels.shape[:2]):
        # Here the number means effort: more of it takes six times as long and twice the memory for 5 %.
        return {"lossless": True, "quality": 20, "method": 2, "exact": True}
    return {"quality": quality or USUAL_QUALITY, "method": 4, "exact": True}
