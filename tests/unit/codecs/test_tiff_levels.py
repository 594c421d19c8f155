"""TIFFs of tiles and with smaller copies: the same pixels as in strips, found by the programs that people have."""

from __future__ import annotations

import io
import tracemalloc
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pyvips
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import core
from core.codecs import tiff_levels, tiff_write
from core.codecs.read import decode, pages, probe
from core.metadata.carried import Metadata
from core.picture import Picture, SampleRange, scan_of
from core.pixels.bands import Samples
from core.pixels.resize import halved
from tests.unit.pictures import corners, saved, with_everything

TILE = tiff_levels.TILE


def noise(height: int, width: int, samples: int, dtype: Any = np.uint8, seed: int = 1) -> Samples:
    top = np.iinfo(dtype).max
    return np.random.default_rng(seed).integers(0, top, (height, width, samples), dtype, endpoint=True)


def picture(values: Samples, **changes: Any) -> Picture:
    alpha = values.shape[2] in (2, 4)
    return replace(Picture(values[:, :, :-1] if alpha else values, values[:, :, -1] if alpha else None), **changes)


def written(*pictures: Picture, pyramid: bool = False, pieces: int = 0) -> bytes:
    """A TIFF of pictures, whose bands may have another number of rows than usual."""

    def scans() -> Iterator[Any]:
        for one in pictures:
            scan = scan_of(one)
            if pieces:
                whole = np.concatenate(list(scan.bands))
                read = lambda whole=whole: (whole[at : at + pieces] for at in range(0, len(whole), pieces))  # noqa: E731
                scan = replace(scan, bands=replace(scan.bands, read=read))
            yield scan

    stream = io.BytesIO()
    pixels = sum(one.pixels.shape[0] * one.pixels.shape[1] for one in pictures)
    tiff_write.write(stream, scans(), pixels, pyramid=pyramid, pages=len(pictures))
    return stream.getvalue()


@settings(deadline=None, max_examples=30)
@given(
    st.integers(1, 2 * TILE + 3),
    st.integers(1, 2 * TILE + 3),
    st.integers(1, 4),
    st.sampled_from([np.uint8, np.uint16]),
    st.sampled_from([0, 1, 77, 256, 300]),
)
def test_tiles_hold_what_strips_hold(height: int, width: int, samples: int, dtype: Any, pieces: int) -> None:
    values = noise(height, width, samples, dtype)
    strips, tiles = written(picture(values)), written(picture(values), pyramid=True, pieces=pieces)
    for data in (strips, tiles):
        back = decode(data)
        found = back.pixels if back.alpha is None else np.dstack([back.pixels, back.alpha])
        assert np.array_equal(found, values)
    with tifffile.TiffFile(io.BytesIO(tiles)) as file:
        above = values
        for level in file.pages:
            assert np.array_equal(level.asarray().reshape(above.shape), above)
            last = above
            above = halved(above, samples in (2, 4))
        assert max(last.shape[:2]) <= TILE


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("samples", [1, 2, 3, 4])
def test_halved_is_the_mean_of_what_is_seen(samples: int, dtype: Any) -> None:
    values = noise(7, 5, samples, dtype, seed=3)
    alpha = samples in (2, 4)
    if alpha:
        values[:2, :2, -1] = 0
        values[2, 2, -1] = 0
    found = halved(values, alpha).astype(float)
    assert found.shape == (4, 3, samples)
    for y in range(4):
        for x in range(3):
            block = values[2 * y : 2 * y + 2, 2 * x : 2 * x + 2].reshape(-1, samples).astype(float)
            weights = block[:, -1] if alpha and block[:, -1].any() else np.ones(len(block))
            colours = np.average(block[:, : samples - alpha], axis=0, weights=weights)
            assert np.abs(found[y, x, : samples - alpha] - colours).max() <= 0.5
            if alpha:
                assert abs(found[y, x, -1] - block[:, -1].mean()) <= 0.5


def test_copies_follow_their_page_where_viewers_look(tmp_path: Path) -> None:
    source = with_everything(corners(400, 700))
    result = core.upscale(source, core.Options(model="lanczos", pyramid=True), output=tmp_path / "out.tif")
    assert result.format == "tiff"
    plain = core.upscale(source, core.Options(model="lanczos", format="tiff")).data or b""
    path = str(tmp_path / "out.tif")
    sides = [(1400, 800), (700, 400), (350, 200), (175, 100)]
    with tifffile.TiffFile(path) as file:
        assert [(page.imagewidth, page.imagelength) for page in file.pages] == sides  # type: ignore[union-attr]
        [series] = file.series
        assert [level.shape for level in series.levels] == [(height, width, 3) for width, height in sides]
        assert [page.subfiletype for page in file.pages] == [0, 1, 1, 1]  # type: ignore[union-attr]
        assert all(page.tile == (TILE, TILE) for page in file.pages)
        assert all("InterColorProfile" in page.tags for page in file.pages)  # type: ignore[union-attr]
        assert ["ExifTag" in page.tags for page in file.pages] == [True, False, False, False]  # type: ignore[union-attr]
    with Image.open(path) as shown, Image.open(io.BytesIO(plain)) as other:
        assert np.array_equal(np.asarray(shown), np.asarray(other))
        assert shown.info["dpi"] == other.info["dpi"]
        shown.seek(1)
        assert shown.size == sides[1]
        assert float(shown.info["dpi"][0]) == pytest.approx(float(other.info["dpi"][0]) / 2, rel=1e-3)
    for page, size in enumerate(sides):
        seen = pyvips.Image.new_from_file(path, page=page)
        assert (seen.width, seen.height) == size
        if not page:
            assert np.array_equal(seen.numpy(), decode(plain).pixels)
    assert probe(path).frames == 1
    assert decode(path).meta == decode(plain).meta
    assert any("levels of a pyramid" in note for note in decode(path).notes)


def test_pages_keep_their_numbers(tmp_path: Path) -> None:
    first, second = noise(300, 520, 3), noise(260, 100, 1)
    data = written(picture(first), picture(second), pyramid=True)
    (tmp_path / "two.tif").write_bytes(data)
    found = list(pages(data))
    assert [np.array_equal(one.pixels, other) for one, other in zip(found, (first, second), strict=True)] == [True] * 2
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        assert len(file.pages) == 2
        assert [[below.shape for below in page.pages] for page in file.pages] == [  # type: ignore[union-attr]
            [(150, 260, 3), (75, 130, 3)],
            [(130, 50)],
        ]
    below = pyvips.Image.new_from_file(str(tmp_path / "two.tif"), subifd=0)
    assert np.array_equal(below.numpy(), halved(first, False))


def test_a_bigtiff_has_tiles(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    values = noise(300, 520, 4, np.uint16)
    monkeypatch.setattr(tiff_write, "BIG", 0)
    data = written(picture(values))
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        [page] = file.pages
        assert file.is_bigtiff
        assert page.is_tiled  # type: ignore[union-attr]
        assert np.array_equal(page.asarray(), values)
    (tmp_path / "big.tif").write_bytes(data)
    assert np.array_equal(pyvips.Image.new_from_file(str(tmp_path / "big.tif")).numpy(), values)


def test_smaller_copies_of_numbers_pass_over_holes() -> None:
    """Means of measured numbers, in which "no data" does not count."""
    numbers = np.linspace(0, 4000, 600 * 500, dtype=np.float32).reshape(600, 500)
    pixels = np.rint(numbers[:, :, None] * (65535 / 4000)).astype(np.uint16)
    alpha = np.full((600, 500), 65535, np.uint16)
    alpha[100:203, 51:99] = 0
    levels = SampleRange("f4", 0.0, 4000.0, nodata=-9999.0)
    data = written(Picture(pixels, alpha, meta=Metadata(), levels=levels), pyramid=True)
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        own, half = (page.asarray() for page in list(file.pages)[:2])
        assert all(page.nodata == -9999 for page in file.pages)  # type: ignore[union-attr]
    assert set(np.unique(own[100:203, 51:99])) == {-9999.0}
    blocks = np.ma.masked_equal(own.reshape(300, 2, 250, 2), -9999)
    means = blocks.mean(axis=(1, 3))
    there = blocks.count(axis=(1, 3)) >= 2
    assert np.abs(half - means)[there].max() < 4000 / 65535
    assert set(half[~there]) == {-9999.0}


def test_a_pyramid_is_written_in_bounded_memory() -> None:
    band = np.zeros((64, 3000, 3), np.uint8)

    def peak(count: int) -> int:
        scan = scan_of(Picture(np.zeros((1, 3000, 3), np.uint8)))
        bands = replace(scan.bands, height=64 * count, read=lambda: iter([band] * count))
        tracemalloc.start()
        tiff_write.write(io.BytesIO(), iter([replace(scan, bands=bands)]), 1, pyramid=True)
        try:
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    assert peak(64) < 2 * peak(8), "not eight times; how many pieces are held differs with the threads that compress"


def test_a_pyramid_is_a_tiff() -> None:
    assert core.Options(pyramid=True).format == "tiff"
    with pytest.raises(core.OptionsError, match="a pyramid is a TIFF"):
        core.Options(pyramid=True, format="png")
    data = saved(corners(), "PNG")
    assert (
        core.estimate(100, 100, core.Options(pyramid=True)).file_bytes
        > core.estimate(100, 100, core.Options(format="tiff")).file_bytes
    )
    assert core.upscale(data, core.Options(model="lanczos", pyramid=True)).media_type == "image/tiff"
