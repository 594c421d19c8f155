"""Names of results, for the command line and the service; how names are made safe is tested with the stores."""

from __future__ import annotations

import pytest

import core
from handler.names import file_name


@pytest.mark.parametrize(
    ("filename", "asked", "format", "expected"),
    [
        ("photo.jpg", core.Options(), "jpeg", "photo-x2.jpg"),
        ("photo.JPEG", core.Options(scale=3.5), "jpeg", "photo-x3.5.JPEG"),
        ("photo.jpg", core.Options(), "png", "photo-x2.png"),
        ("photo", core.Options(width=640), "tiff", "photo-640x.tif"),
        ("a/b/../photo.png", core.Options(width=640, height=480), "png", "photo-640x480.png"),
        ("été 1.webp", core.Options(), "webp", "été 1-x2.webp"),
        ("", core.Options(), "bmp", "image-x2.bmp"),
    ],
)
def test_result_name(filename: str, asked: core.Options, format: str, expected: str) -> None:
    assert file_name(asked.result_name(file_name(filename), format)) == expected


def test_long_names_keep_their_suffix() -> None:
    name = file_name(core.Options().result_name(file_name("x" * 10_000 + ".jpg"), "png"))
    assert name.endswith(".png")
    assert len(name.encode()) <= 200
