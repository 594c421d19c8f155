"""TIFF of all kinds: numbers of every type, pages, BigTIFF, descriptions."""

from __future__ import annotations

import io
import struct
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

import core
from core.codecs import tiff_write
from core.codecs.decode import open_source
from core.codecs.read import decode, pages
from core.limits import Limits
from core.picture import Scan
from core.pixels.bands import from_row
from tests.unit.pictures import (
    corners,
    opened,
    saved,
    turned,
    with_everything,
)


def test_premultiplied_tiff_is_divided() -> None:
    alpha = np.tile(np.linspace(0, 255, 20).astype(np.uint8), (8, 1))
    straight = np.full((8, 20, 3), (200, 100, 50))
    for scale, dtype, tolerance in ((1, np.uint8, 20), (257, np.uint16, 200)):
        deep = (alpha.astype(np.uint32) * scale).astype(dtype)
        colour = np.rint(straight * (alpha[:, :, None] / 255.0) * scale).astype(dtype)
        stream = io.BytesIO()
        tifffile.imwrite(stream, np.dstack([colour, deep]), photometric="rgb", extrasamples=["assocalpha"])
        picture = decode(stream.getvalue())
        assert picture.alpha is not None
        assert (picture.alpha == deep).all()
        seen = picture.pixels[:, 3:].astype(int) - straight[:, 3:] * scale
        assert np.abs(seen).max() <= tolerance


def test_white_is_zero() -> None:
    for values in (corners(channels=1), corners(channels=1).astype(np.uint16) * 200):
        stream = io.BytesIO()
        tifffile.imwrite(stream, values[:, :, 0], photometric="miniswhite")
        assert np.array_equal(decode(stream.getvalue()).pixels, np.iinfo(values.dtype).max - values)


@pytest.mark.parametrize("dtype", ["int8", "int16", "uint32", "int32", "float16", "float32", "float64", "uint64"])
@pytest.mark.parametrize("channels", [1, 3])
def test_numbers_of_every_type_come_back_as_such(dtype: str, channels: int, lanczos: None) -> None:
    values = corners(24, 30, 3)[:, :, :channels].astype(np.float64) / 2
    values = (values - (30 if np.dtype(dtype).kind != "u" else 0)).astype(dtype)
    flat = values[:, :, 0] if channels == 1 else values
    stream = io.BytesIO()
    tifffile.imwrite(stream, flat, photometric="minisblack" if channels == 1 else "rgb")
    result = core.upscale(stream.getvalue())
    after = tifffile.imread(io.BytesIO(result.data or b""))
    assert after.dtype == np.dtype(dtype)
    assert after.shape == (48, 60, *flat.shape[2:])
    small = after.reshape(24, 2, 30, 2, -1).astype(float).mean(axis=(1, 3))
    assert np.abs(small - values)[2:-2, 2:-2].max() < 2
    told = core.upscale(stream.getvalue(), core.Options(format="png"))
    assert any("only tiff" in note for note in told.notes)


def test_a_small_file_can_be_written_as_bigtiff(monkeypatch: pytest.MonkeyPatch) -> None:
    source = with_everything(corners())  # once: its colour profile says to the second when it was made
    plain = core.upscale(source, core.Options(format="tiff")).data
    monkeypatch.setattr(tiff_write, "BIG", 0)
    big = core.upscale(source, core.Options(format="tiff")).data
    assert plain is not None
    assert big is not None
    assert (plain[:4], big[:4]) == (b"II*\0", b"II+\0")
    one, other = decode(plain), decode(big)
    assert np.array_equal(one.pixels, other.pixels)
    assert one.meta == other.meta
    with tifffile.TiffFile(io.BytesIO(big)) as file:
        assert np.array_equal(file.asarray(), one.pixels)
        assert file.pages[0].tags["ExifTag"].value["ExposureTime"] == (1, 125)  # type: ignore[union-attr]


def test_size_decides_for_bigtiff(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = Image.fromarray(corners(12, 20)), Image.fromarray(corners(30, 40))
    for data, pixels in (
        (saved(first, "TIFF"), 12 * 20),
        (saved(first, "TIFF", save_all=True, append_images=[second]), 12 * 20 + 30 * 40),
    ):
        for size, kind in ((pixels * 4 * 3, b"II*\0"), (pixels * 4 * 3 - 1, b"II+\0")):
            monkeypatch.setattr(tiff_write, "BIG", size)
            assert (core.upscale(data).data or b"")[:4] == kind


def test_tiff_description_travels_to_other_formats() -> None:
    described = {270: "What is seen", 271: "Maker", 305: "Software", 315: "Artist", 33432: "Copyright"}
    data = saved(corners(), "TIFF", tiffinfo=described, dpi=(300, 300))
    for format in ("jpeg", "png", "webp", "tiff", "avif"):
        found = opened(core.upscale(data, core.Options(format=format)).data).getexif()
        assert {tag: found[tag] for tag in described} == described
        assert 273 not in found or format == "tiff"  # strips of another file


def test_pages_of_all_sizes_and_depths(lanczos: None) -> None:
    stream = io.BytesIO()
    with tifffile.TiffWriter(stream) as file:
        file.write(corners(10, 12), photometric="rgb")
        file.write(corners(14, 9, 1)[:, :, 0].astype(np.uint16) * 257, photometric="minisblack")
        file.write(np.linspace(-3, 8, 70, dtype=np.float32).reshape(7, 10), photometric="minisblack")
        colours = np.linspace(0, 65535, 768).astype(np.uint16).reshape(3, 256)
        file.write(corners(5, 6, 1)[:, :, 0], photometric="palette", colormap=colours)
    header = core.probe(stream.getvalue())
    assert (header.frames, header.plays, header.bits) == (4, None, 32)
    seen: list[tuple[int, int]] = []
    result = core.upscale(stream.getvalue(), progress=lambda done, total: seen.append((done, total)))
    assert result.frames == 4
    assert seen[-1][0] == seen[-1][1]
    after = tifffile.TiffFile(io.BytesIO(result.data or b""))
    with after:
        assert [page.shape for page in after.pages] == [(20, 24, 3), (28, 18), (14, 20), (10, 12, 3)]
        assert [str(page.dtype) for page in after.pages] == ["uint8", "uint16", "float32", "uint8"]


def test_pages_are_turned_one_by_one() -> None:
    stream = io.BytesIO()
    with tifffile.TiffWriter(stream) as file:
        for orientation in (1, 6, 3, 8):
            tag = (274, "H", 1, orientation, True)
            file.write(turned(corners(10, 16), orientation), photometric="rgb", extratags=[tag], metadata=None)
    for picture in pages(stream.getvalue()):
        assert np.array_equal(picture.pixels, corners(10, 16))


def test_a_circle_of_pages_ends() -> None:
    data = bytearray(saved(corners(), "TIFF"))
    (first,) = struct.unpack_from("<I", data, 4)
    (count,) = struct.unpack_from("<H", data, first)
    struct.pack_into("<I", data, first + 2 + 12 * count, first)
    assert core.probe(bytes(data)).frames == 1
    assert len(list(pages(bytes(data)))) == 1


@pytest.mark.parametrize(
    "layout",
    [
        {"rowsperstrip": 7},
        {"rowsperstrip": 50},
        {"rowsperstrip": 7, "compression": "zlib", "predictor": True},
        {"tile": (16, 32), "compression": "lzw"},
        {"rowsperstrip": 7, "planarconfig": "separate"},
        {"tile": (16, 16), "planarconfig": "separate"},
        {"rowsperstrip": 8, "compression": "jpeg"},
    ],
)
def test_rows_can_be_read_from_anywhere(layout: dict[str, Any]) -> None:
    pixels = corners(50, 41)
    stored = np.moveaxis(pixels, 2, 0) if "planarconfig" in layout else pixels
    for orientation in (1, 2):
        stream = io.BytesIO()
        tifffile.imwrite(stream, stored, photometric="rgb", extratags=[(274, 3, 1, orientation, True)], **layout)
        data = stream.getvalue()
        with open_source(data, Limits()) as (_, decode_pages):
            [page] = decode_pages()
            assert isinstance(page, Scan)
            whole = np.concatenate(list(page.bands))
            if layout.get("compression") != "jpeg":
                assert np.array_equal(whole, pixels if orientation == 1 else pixels[:, ::-1])
            for row in (0, 1, 7, 23, 48, 49):
                top, below = from_row(page.bands, row)
                assert 0 <= top <= row
                assert np.array_equal(np.concatenate(list(below)), whole[top:])
