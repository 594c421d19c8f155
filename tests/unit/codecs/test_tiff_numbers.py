"""Floats, wide integers and "no data" in bands: gone over once, then read as if they had been held."""

from __future__ import annotations

import io
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

import core
from core.codecs import segments, tiff_numbers
from core.codecs.read import decode, probe, scans
from core.limits import Limits
from core.picture import Scan, held
from core.pixels.bands import Samples

HEIGHT, WIDTH = 213, 61


def numbers(dtype: str, channels: int, *, hot: bool = False) -> Samples:
    """Numbers of a type, of which one may lie far off."""
    values = np.random.default_rng(2).normal(40, 12, (HEIGHT, WIDTH, channels))
    if hot:
        values[150, 40] = 9e4
    if np.dtype(dtype).kind == "u":
        values = np.abs(values)
    return np.clip(values, -120, 120).astype(dtype) if np.dtype(dtype).itemsize == 1 else values.astype(dtype)


def tiff(values: Samples, **options: Any) -> bytes:
    stream = io.BytesIO()
    flat = values[:, :, 0] if values.shape[2] == 1 else values
    kind = "rgb" if values.shape[2] > 2 else "minisblack"
    if options.get("planarconfig"):
        flat = np.moveaxis(values, 2, 0)
    tifffile.imwrite(stream, flat, photometric=kind, **options)
    return stream.getvalue()


def both(data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compare pixels and results of a page that is read in bands with those of one that is held."""
    assert probe(data).pixels <= segments.HELD
    whole = decode(data)
    options = core.Options(model="lanczos", scale=1.7, format="tiff")
    expected = core.upscale(data, options)
    monkeypatch.setattr(segments, "HELD", 0)
    [scan] = scans(data)
    assert isinstance(scan, Scan)
    found = held(scan)
    assert np.array_equal(found.pixels, whole.pixels)
    assert (found.alpha is None) == (whole.alpha is None)
    assert found.alpha is None or np.array_equal(found.alpha, whole.alpha)  # type: ignore[arg-type]
    assert repr(found.levels) == repr(whole.levels)  # NaN is equal to nothing
    assert (found.meta, found.notes) == (whole.meta, whole.notes)
    made = core.upscale(data, options)
    assert (made.data, made.notes) == (expected.data, expected.notes)


@pytest.mark.parametrize("dtype", ["int8", "int16", "uint32", "int32", "float16", "float32", "float64"])
@pytest.mark.parametrize(
    "layout",
    [
        {"rowsperstrip": 7},
        {"tile": (32, 16), "compression": "zlib", "predictor": True},
        {"rowsperstrip": 50, "compression": "lzw", "byteorder": ">"},
        {"rowsperstrip": 20, "planarconfig": "separate"},
    ],
    ids=["strips", "tiles", "lzw", "planes"],
)
def test_bands_are_what_is_held(dtype: str, layout: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    channels = 3 if "planarconfig" in layout else 1
    both(tiff(numbers(dtype, channels, hot=dtype in ("float32", "int32")), **layout), monkeypatch)


@pytest.mark.parametrize(
    ("dtype", "nodata"),
    [("float32", -9999.0), ("float64", float("nan")), ("int16", -99.0), ("uint8", 0.0), ("uint16", 65535.0)],
)
def test_holes_in_bands(dtype: str, nodata: float, monkeypatch: pytest.MonkeyPatch) -> None:
    values = numbers(dtype, 1)
    values[100:170, 8:30] = nodata
    both(tiff(values, rowsperstrip=16, extratags=[(42113, 2, 0, f"{nodata:.17g}", True)]), monkeypatch)


def test_holes_that_nothing_declares(monkeypatch: pytest.MonkeyPatch) -> None:
    values = numbers("float32", 1)
    values[200:, 50:] = -3.4e38
    both(tiff(values, rowsperstrip=16), monkeypatch)


def test_opacity_of_floats_in_bands(monkeypatch: pytest.MonkeyPatch) -> None:
    values = numbers("float32", 4)
    values[:, :, 3] = np.linspace(0, 1, WIDTH)
    both(tiff(values, rowsperstrip=16, extrasamples=["unassalpha"]), monkeypatch)


def test_another_process_reads_floats_in_bands() -> None:
    """Large enough to be read in bands there, too."""
    values = np.tile(np.linspace(-3, 8, 2100, dtype=np.float32), (2100, 1))
    values[50:60, 50:60] = -9999
    data = tiff(values[:, :, None], rowsperstrip=64, extratags=[(42113, 2, 0, "-9999", True)])
    [scan], [there] = scans(data), scans(data, Limits(worker=True))
    assert isinstance(there, Scan)
    assert isinstance(scan, Scan)
    assert (scan.levels, scan.bands.alpha) == (there.levels, True)
    assert all(np.array_equal(one, other) for one, other in zip(scan.bands, there.bands, strict=True))


def test_the_sample_sees_every_channel_and_column(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiff_numbers, "_SAMPLED", 500)
    values = numbers("float32", 3)
    values[:, :, 2] *= 30  # far more than a few: no curve is to be laid over them
    picture = decode(tiff(values))
    assert picture.levels is not None
    assert picture.levels.scale == 0


def test_floats_take_the_memory_of_bands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def peak(height: int) -> int:
        path = tmp_path / f"{height}.tif"
        tifffile.imwrite(path, np.tile(np.linspace(-3, 8, 1000, dtype=np.float32), (height, 1)), rowsperstrip=64)
        monkeypatch.setattr(segments, "HELD", 0)
        monkeypatch.setattr(tiff_numbers, "_SAMPLED", 1000)
        tracemalloc.start()
        try:
            for scan in scans(str(path)):
                assert isinstance(scan, Scan)
                assert sum(len(band) for band in scan.bands) == height
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    assert peak(3000) < 1.1 * peak(600) + 500_000
