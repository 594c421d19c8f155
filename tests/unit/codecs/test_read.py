"""What is no picture, or half of one, is an input error."""

from __future__ import annotations

import pytest

import core
from core.codecs.read import decode
from tests.unit.pictures import PILLOW, corners, saved


def one_line(error: BaseException) -> bool:
    text = str(error)
    return bool(text) and "\n" not in text and "Traceback" not in text


@pytest.mark.parametrize(
    "data",
    [b"", b"\0", b"hello, this is text", b"GIF89a", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"II*\0", b"RIFF", b"BM"],
)
def test_not_a_picture(data: bytes) -> None:
    for call in (core.probe, decode, core.upscale):
        with pytest.raises(core.UnreadableImage) as caught:
            call(data)
        assert one_line(caught.value)


@pytest.mark.parametrize("format", list(PILLOW))
def test_truncated_files_are_refused(format: str) -> None:
    data = saved(corners(40, 60), PILLOW[format])
    with pytest.raises(core.UnreadableImage) as caught:
        core.upscale(data[: len(data) * 2 // 3])
    assert one_line(caught.value)
