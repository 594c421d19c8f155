"""GIF: its blocks are walked here, so that sizes are known before anything is decoded, and its frames are drawn here.

Pillow decodes each frame's indices. How frames are put on each other is that of browsers and of ffmpeg, which Pillow
does not follow in odd cases. Follows the GIF89a specification, but that a cleared area is transparent, as in browsers.
"""

from __future__ import annotations

import io
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
from PIL import Image

from core.limits import Limits
from core.picture import Pixels


@dataclass(frozen=True)
class Frame:
    """One frame's block.

    Attributes:
        left: of the canvas, pixels.
        top: of the canvas, pixels.
        width: pixels.
        height: pixels.
        offset: of the block in the file, bytes.
        size: of the block, bytes.
        transparent: the index that lets show what is below, or None.
        disposal: 2 clears the frame's area after it was shown, 3 puts back what was there.
        duration: milliseconds.
    """

    left: int
    top: int
    width: int
    height: int
    offset: int
    size: int
    transparent: int | None
    disposal: int
    duration: float


@dataclass(frozen=True)
class Screen:
    """A file's blocks.

    Attributes:
        width: of the canvas, pixels.
        height: of the canvas, pixels.
        palette: the global colours, three bytes for each.
        frames: at most one more than the limit.
    """

    width: int
    height: int
    palette: bytes
    frames: tuple[Frame, ...]


def measure(stream: BinaryIO, limits: Limits) -> Screen:
    """A GIF's canvas and frames, from its block headers alone.

    The first frame may enlarge the canvas; later ones are cut, as in browsers. The count of frames ends one above the
    limit.

    Args:
        stream: the file, at its start, to which it is rewound.
        limits: `frames` counts here.
    """
    head = stream.read(13)
    width, height = int.from_bytes(head[6:8], "little"), int.from_bytes(head[8:10], "little")
    palette = stream.read(3 << (head[10] & 7) + 1) if len(head) == 13 and head[10] & 0x80 else b""
    found: list[Frame] = []
    control: tuple[int | None, int, float] = (None, 0, 0.0)
    while len(found) <= limits.frames:
        at = stream.tell()
        block = stream.read(1)
        if block == b"!":
            label = stream.read(1)
            data = _skip(stream)
            if label == b"\xf9" and len(data) >= 4:
                disposal, delay = data[0] >> 2 & 7, int.from_bytes(data[1:3], "little")
                control = (data[3] if data[0] & 1 else None, disposal, 10.0 * delay)
        elif block == b",":
            where = stream.read(9)
            if len(where) < 9:
                break
            left, top, wide, high = struct.unpack("<HHHH", where[:8])
            if not found:
                width, height = max(width, left + wide), max(height, top + high)
            stream.seek((3 << (where[8] & 7) + 1 if where[8] & 0x80 else 0) + 1, os.SEEK_CUR)
            _skip(stream)
            found.append(Frame(left, top, wide, high, at, stream.tell() - at, *control))
            control = (None, 0, 0.0)
        elif block != b";" and block:
            continue  # what nobody knows is passed over
        else:
            break
    stream.seek(0)
    return Screen(width, height, palette, tuple(found))


def _skip(stream: BinaryIO) -> bytes:
    """Pass over data in blocks of up to 255 bytes; gives the first of them."""
    first = b""
    while length := stream.read(1):
        if length == b"\0":
            break
        if not first:
            first = stream.read(length[0])
        else:
            stream.seek(length[0], os.SEEK_CUR)
    return first


def draw(stream: BinaryIO, screen: Screen) -> Iterator[Pixels]:
    """Frames as they are shown: (height, width, 4) uint8, the last channel alpha.

    Args:
        stream: the file; its position is changed.
        screen: what `measure` found.
    """
    canvas = np.zeros((screen.height, screen.width, 4), np.uint8)
    for frame in screen.frames:
        part = _decoded(stream, screen, frame)[: screen.height - frame.top, : screen.width - frame.left]
        place = np.s_[frame.top : frame.top + part.shape[0], frame.left : frame.left + part.shape[1]]
        shown = canvas.copy()
        np.copyto(shown[place], part, where=part[:, :, 3:] > 0)
        yield shown
        if frame.disposal != 3:
            canvas = shown
        if frame.disposal == 2:
            canvas = shown.copy()
            canvas[place] = 0


def _decoded(stream: BinaryIO, screen: Screen, frame: Frame) -> Pixels:
    """(height, width, 4) of one frame, as a GIF of its own."""
    stream.seek(frame.offset)
    block = bytearray(stream.read(frame.size))
    local = block[9] & 0x80
    palette = bytes(block[10 : 10 + (3 << (block[9] & 7) + 1)]) if local else screen.palette
    if not palette:  # the specification leaves it to the reader; black and white first, as browsers
        palette = b"\0\0\0\xff\xff\xff"
    block[1:5] = bytes(4)  # left and top
    bits = max(1, (len(palette) // 3 - 1).bit_length())
    whole = palette.ljust(3 << bits, b"\0")
    head = b"GIF89a" + struct.pack("<HHBBB", frame.width, frame.height, 0x80 | bits - 1, 0, 0) + whole
    with Image.open(io.BytesIO(head + bytes(block) + b";"), formats=["GIF"]) as image:
        image.load()
        indices = np.asarray(image)  # of greys in their order Pillow makes "L", which is the same
    colours = np.zeros((256, 4), np.uint8)
    colours[:, 3] = 255
    found = np.frombuffer(palette, np.uint8).reshape(-1, 3)[:256]
    colours[: len(found), :3] = found
    if frame.transparent is not None:
        colours[frame.transparent, 3] = 0
    result: Pixels = colours[indices]
    return result


def plays(image: Image.Image) -> int:
    """How often an animation that Pillow has opened is played, 0 forever."""
    loop = image.info.get("loop")
    if loop is None:
        return 1
    return 0 if loop == 0 else int(loop) + 1  # the extension counts repetitions after the first time
