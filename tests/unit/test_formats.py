"""Formats are known by their first bytes, and held to what they were declared as."""

from __future__ import annotations

import pytest

import core
from core.formats import READ_FORMATS, sniff
from tests.unit.pictures import (
    corners,
    saved,
)


@pytest.mark.parametrize(
    ("declared", "fits"),
    [
        (None, True),
        ("image/png", True),
        ("image/png; charset=binary", True),
        ("IMAGE/X-PNG", True),
        ("photo.PNG", True),
        ("application/octet-stream", True),
        ("photo", True),
        ("notes.txt", True),
        ("image/jpeg", False),
        ("image/heic", False),
        ("photo.tiff", False),
    ],
)
def test_the_declared_type_must_be_true(declared: str | None, fits: bool) -> None:
    data = saved(corners(), "PNG")
    if fits:
        assert core.probe(data, declared=declared).format == "png"
        assert core.upscale(data, declared=declared).width == 40
    else:
        for call in (core.probe, core.upscale):
            with pytest.raises(core.UnreadableImage, match="declared"):
                call(data, declared=declared)


def test_sniffing_knows_what_is_read() -> None:
    for name, pillow in READ_FORMATS.items():
        if name != "heif":
            assert sniff(saved(corners(), pillow)) == name
    assert sniff(b"%PDF-1.7") is None
    assert sniff(b"\0\0\0\x18ftypisom\0\0\0\0isommp42") is None


@pytest.mark.parametrize(
    ("head", "word"),
    [
        (b"\0\0\0\x18ftypcrx \0", "develop it first"),
        (b"FUJIFILMCCD-RAW 0201", "develop it first"),
        (b"\0\0\0\x18ftypmp42", "video"),
        (b"\0\0\0\x0cJXL \r\n", "JPEG XL"),
        (b"P6\n1 1\n255\n", "Netpbm"),
        (b"version https://git-lfs.github.com/spec/v1", "Git LFS"),
        (b"what is this", "not a picture"),
    ],
)
def test_what_is_not_read_is_named_and_never_called_damaged(head: bytes, word: str) -> None:
    with pytest.raises(core.UnreadableImage, match=word) as caught:
        core.probe(head.ljust(200, b"."))
    assert "damaged" not in str(caught.value)
