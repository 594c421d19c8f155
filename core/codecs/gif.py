"""GIF, read through Pillow: what has to be known before Pillow opens one. Follows the GIF89a specification."""

from __future__ import annotations

import os
from typing import BinaryIO

from PIL import Image

from core.limits import Limits


def measure(stream: BinaryIO, limits: Limits) -> tuple[int, int, int]:
    """Width and height of a GIF's canvas, pixels, and its number of frames, from its block headers alone.

    Pillow lets a frame enlarge the canvas, and counts frames only by going through all of them. Here the count ends
    one above the limit.

    Args:
        stream: the file, at its start, to which it is rewound.
        limits: `frames` counts here.
    """
    head = stream.read(13)
    width, height = int.from_bytes(head[6:8], "little"), int.from_bytes(head[8:10], "little")
    if len(head) == 13 and head[10] & 0x80:
        stream.seek(3 << (head[10] & 7) + 1, os.SEEK_CUR)
    frames = 0
    while frames <= limits.frames:
        block = stream.read(1)
        if block == b"!":
            stream.read(1)  # the label
        elif block == b",":
            where = stream.read(9)
            if len(where) < 9:
                break
            left, top, wide, high = (int.from_bytes(where[at : at + 2], "little") for at in range(0, 8, 2))
            width, height = max(width, left + wide), max(height, top + high)
            frames += 1
            stream.seek((3 << (where[8] & 7) + 1 if where[8] & 0x80 else 0) + 1, os.SEEK_CUR)
        elif block != b";" and block:
            continue  # Pillow skips what it does not know
        else:
            break
        while length := stream.read(1):  # data in blocks of up to 255 bytes
            if length == b"\0":
                break
            stream.seek(length[0], os.SEEK_CUR)
    stream.seek(0)
    return width, height, frames


def plays(image: Image.Image) -> int:
    """How often an animation that Pillow has opened is played, 0 forever."""
    loop = image.info.get("loop")
    if loop is None:
        return 1
    return 0 if loop == 0 else int(loop) + 1  # the extension counts repetitions after the first time
