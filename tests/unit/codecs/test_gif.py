"""GIF: frames that grow, and how often an animation is played."""

from __future__ import annotations

import struct

import numpy as np
import pytest

import core
from core.codecs.read import pages
from tests.unit.pictures import (
    animated,
)


def test_a_gif_whose_frames_grow() -> None:
    data = bytearray(animated("GIF", 2))
    struct.pack_into("<HH", data, 6, 8, 8)  # a canvas smaller than the frames
    header = core.probe(bytes(data))
    assert (header.width, header.height) == (24, 16)
    assert {picture.pixels.shape for picture in pages(bytes(data))} == {(16, 24, 3)}
    assert core.upscale(bytes(data)).width == 48


@pytest.mark.parametrize(("loop", "plays"), [(None, 1), (0, 0), (2, 3)])
def test_plays_of_a_gif(loop: int | None, plays: int) -> None:
    data = animated("GIF") if loop is None else animated("GIF", loop=loop)
    assert core.probe(data).plays == plays
    for format in ("webp", "png"):
        assert core.probe(core.upscale(data, core.Options(format=format)).data or b"").plays == plays


def gif(*frames: bytes, size: tuple[int, int] = (4, 4), colours: bytes = bytes(range(12))) -> bytes:
    """A GIF of frames of `frame`."""
    return b"GIF89a" + struct.pack("<HHBBB", *size, 0x81, 0, 0) + colours + b"".join(frames) + b";"


def frame(
    index: int, place: tuple[int, int, int, int], disposal: int = 0, key: int | None = None, colours: bytes = b""
) -> bytes:
    """A frame of one index, with a control block; `place` is left, top, width, height."""
    flags = disposal << 2 | (key is not None)
    control = b"!\xf9\x04" + struct.pack("<BHBB", flags, 10, key or 0, 0)
    count = place[2] * place[3]
    codes = [4, *(code for _ in range(count) for code in (index, 4)), 5]  # a clear code after each: no table grows
    bits = "".join(f"{code:03b}"[::-1] for code in codes)
    packed = bytes(int(bits[at : at + 8][::-1], 2) for at in range(0, len(bits), 8))
    blocks = b"".join(bytes([len(packed[at : at + 255])]) + packed[at : at + 255] for at in range(0, len(packed), 255))
    local = bytes([0x81]) + colours if colours else b"\0"
    return control + b"," + struct.pack("<HHHH", *place) + local + b"\x02" + blocks + b"\0"


def shown(data: bytes) -> list[list[list[int]]]:
    """For each frame, each pixel's red, or -1 where it is transparent."""
    found = []
    for picture in pages(data):
        alpha = np.full(picture.pixels.shape[:2], 255) if picture.alpha is None else picture.alpha
        found.append(np.where(alpha > 0, picture.pixels[:, :, 0].astype(int), -1).tolist())
    return found


WHOLE = (0, 0, 4, 4)


def test_a_cleared_area_is_transparent_whatever_palette_came_before() -> None:
    local = bytes([90] * 12)
    data = gif(frame(1, WHOLE), frame(2, (0, 0, 2, 4), 2, colours=local), frame(3, (2, 2, 2, 2)))
    first, second, third = shown(data)
    assert first == [[3] * 4] * 4
    assert second == [[90, 90, 3, 3]] * 4
    assert third == [[-1, -1, 3, 3]] * 2 + [[-1, -1, 9, 9]] * 2


def test_what_was_before_the_first_frame_is_nothing() -> None:
    _, second = shown(gif(frame(1, (0, 0, 2, 4), 3), frame(2, (2, 0, 2, 4))))
    assert second == [[-1, -1, 6, 6]] * 4


def test_what_was_before_comes_back() -> None:
    *_, third = shown(gif(frame(1, WHOLE), frame(2, WHOLE, 3), frame(3, (0, 0, 1, 4))))
    assert third == [[9, 3, 3, 3]] * 4


def test_a_later_frame_is_cut_at_the_canvas_and_the_first_enlarges_it() -> None:
    _, second = shown(gif(frame(1, WHOLE), frame(2, (2, 2, 9, 9))))
    assert second == [[3] * 4] * 2 + [[3, 3, 6, 6]] * 2
    assert shown(gif(frame(1, (0, 0, 6, 5)))) == [[[3] * 6] * 5]


def test_a_transparent_index_lets_show_what_is_below() -> None:
    _, second = shown(gif(frame(1, WHOLE), frame(2, WHOLE, key=2)))
    assert second == [[3] * 4] * 4
    assert shown(gif(frame(2, WHOLE, key=2))) == [[[-1] * 4] * 4]
