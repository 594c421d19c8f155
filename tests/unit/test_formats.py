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
