"""GIF: frames that grow, and how often an animation is played."""

from __future__ import annotations

import struct

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
