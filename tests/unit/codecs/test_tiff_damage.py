"""TIFFs whose directories or data are damaged, or not all there: an error that says so, or a note, and nothing left."""

from __future__ import annotations

import io
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

import core
from core.codecs.read import decode
from core.pixels.bands import Samples
from tests.unit.codecs.test_streams import noise

_LAYOUTS: dict[str, dict[str, Any]] = {
    "strips": {"rowsperstrip": 16},
    "deflated strips": {"rowsperstrip": 16, "compression": "zlib"},
    "tiles": {"tile": (32, 32)},
    "deflated tiles": {"tile": (32, 32), "compression": "zlib"},
    "planes": {"rowsperstrip": 16, "compression": "lzw", "planarconfig": "separate"},
    "tiled planes": {"tile": (32, 32), "planarconfig": "separate"},
}
_OFFSETS, _SIZES = (273, 324), (279, 325)


def big_tiff(values: Samples, **layout: Any) -> bytearray:
    stream = io.BytesIO()
    flat = np.moveaxis(values, 2, 0) if "planarconfig" in layout else values
    tifffile.imwrite(stream, flat, photometric="rgb", bigtiff=True, **layout)
    return bytearray(stream.getvalue())


def places(data: bytes | bytearray, tags: tuple[int, int]) -> list[int]:
    """Where in a BigTIFF the numbers of one of two fields lie; they are of eight bytes."""
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        [tag] = [tag for tag in file.pages[0].tags if tag.code in tags]  # type: ignore[union-attr]
        width = {3: 2, 4: 4, 16: 8}[int(tag.dtype)]
        return [tag.valueoffset + index * width for index in range(tag.count)]


def put(data: bytearray, at: int, number: int, tags: tuple[int, int]) -> None:
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        [tag] = [tag for tag in file.pages[0].tags if tag.code in tags]  # type: ignore[union-attr]
        letter = {3: "H", 4: "I", 16: "Q"}[int(tag.dtype)]
    most = (1 << 8 * struct.calcsize(letter)) - 1
    struct.pack_into(f"<{letter}", data, at, min(number, most))


def refused(data: bytes | bytearray, folder: Path) -> None:
    source = folder / "in.tif"
    source.write_bytes(data)
    for name in ("out.tif", "out.png"):
        with pytest.raises(core.UnreadableImage, match="damaged"):
            core.upscale(source, core.Options(model="lanczos"), output=folder / name)
    assert [path.name for path in folder.iterdir()] == ["in.tif"]


@pytest.mark.parametrize("number", [1 << 33, (1 << 63) + 5, (1 << 64) - 1], ids=["beyond", "2^63", "-1"])
@pytest.mark.parametrize("kind", _LAYOUTS)
def test_an_offset_that_leads_nowhere(kind: str, number: int, tmp_path: Path) -> None:
    data = big_tiff(noise(100, 70, 3), **_LAYOUTS[kind])
    put(data, places(data, _OFFSETS)[-1], number, _OFFSETS)
    refused(data, tmp_path)


@pytest.mark.parametrize("kind", _LAYOUTS)
def test_a_size_that_nothing_has(kind: str, tmp_path: Path) -> None:
    data = big_tiff(noise(100, 70, 3), **_LAYOUTS[kind])
    put(data, places(data, _SIZES)[-1], 1 << 40, _SIZES)
    if kind == "strips":  # what a strip without compression takes is known
        assert np.array_equal(decode(bytes(data)).pixels, noise(100, 70, 3))
    else:
        refused(data, tmp_path)


@pytest.mark.parametrize("kind", _LAYOUTS)
def test_the_last_strip_is_cut_off(kind: str, tmp_path: Path) -> None:
    """The directory comes first, so that nothing but the data itself says that it ends too early."""
    data = big_tiff(noise(100, 70, 3), **_LAYOUTS[kind])
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        end = max(file.pages[0].dataoffsets)
    refused(data[: end + 3], tmp_path)


@pytest.mark.parametrize("kind", _LAYOUTS)
def test_what_is_not_stored_is_empty_and_noted(kind: str) -> None:
    values = noise(100, 70, 3)
    data = big_tiff(values, **_LAYOUTS[kind])
    put(data, places(data, _SIZES)[-1], 0, _SIZES)
    put(data, places(data, _OFFSETS)[-1], 0, _OFFSETS)
    picture = decode(bytes(data))
    assert any("1 of" in note and "not stored" in note for note in picture.notes)
    plane = slice(2, 3) if "planes" in kind else slice(0, 3)
    hollow = np.zeros((100, 70), bool)
    hollow[96:, 64 if "tile" in kind else 0 :] = True
    assert not picture.pixels[hollow][:, plane].any()
    assert np.array_equal(picture.pixels[~hollow], values[~hollow])
    assert np.array_equal(picture.pixels[:, :, : plane.start], values[:, :, : plane.start])
    made = core.upscale(bytes(data), core.Options(model="lanczos"))
    assert any("not stored" in note for note in made.notes)


@pytest.mark.parametrize("tags", [_OFFSETS, _SIZES], ids=["offsets", "sizes"])
def test_too_few_tiles(tags: tuple[int, int], tmp_path: Path) -> None:
    data = big_tiff(noise(100, 70, 3), tile=(32, 32), compression="zlib")
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        [tag] = [tag for tag in file.pages[0].tags if tag.code in tags]  # type: ignore[union-attr]
    struct.pack_into("<Q", data, tag.offset + 4, tag.count - 2)
    refused(data, tmp_path)
