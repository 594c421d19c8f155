"""Pictures from top to bottom: the same to the bit as those that are held, whatever the format and the size."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import imagecodecs
import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import core
from core import pipeline
from core.codecs.read import decode, scans
from core.picture import Picture, Scan, held
from core.pixels.bands import ahead, bands_of, gather, in_rows
from tests.unit.pictures import saved

Array = np.ndarray[Any, Any]


def noise(height: int, width: int, channels: int, dtype: type = np.uint8) -> Array:
    """Not quite noise: blocks, so that compression and prediction have something to do."""
    generator = np.random.default_rng(height * width)
    coarse = generator.integers(0, np.iinfo(dtype).max, (-(-height // 3), -(-width // 3), channels))
    made: Array = coarse.repeat(3, axis=0).repeat(3, axis=1)[:height, :width]
    return (made + generator.integers(0, 2, made.shape)).astype(dtype)


def tiff(values: Array, **options: Any) -> bytes:
    stream = io.BytesIO()
    kind = "rgb" if values.shape[-1] >= 3 or options.get("planarconfig") == "separate" else "minisblack"
    shown = np.moveaxis(values, -1, 0) if options.get("planarconfig") == "separate" else values
    shown = shown[:, :, 0] if kind == "minisblack" and values.shape[-1] == 1 else shown
    extra = ["unassalpha"] if values.shape[-1] in (2, 4) else None
    tifffile.imwrite(stream, shown, photometric=kind, extrasamples=extra, **options)
    return stream.getvalue()


LAYOUTS: list[dict[str, Any]] = [
    {},
    {"rowsperstrip": 7, "compression": "lzw", "predictor": True},
    {"rowsperstrip": 5, "compression": "zlib"},
    {"rowsperstrip": 16, "compression": "packbits"},
    {"rowsperstrip": 9, "compression": "zstd"},
    {"tile": (32, 16), "compression": "zlib", "predictor": True},
    {"tile": (16, 48), "bigtiff": True},
    {"byteorder": ">", "rowsperstrip": 11},
]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("channels", "dtype"), [(1, np.uint8), (3, np.uint8), (4, np.uint16), (2, np.uint16)])
def test_tiff_is_read_as_it_was_written(layout: dict[str, Any], channels: int, dtype: type) -> None:
    values = noise(61, 53, channels, dtype)
    [scan] = scans(tiff(values, **layout))
    assert isinstance(scan, Scan)
    assert np.array_equal(np.concatenate(list(scan.bands)), values)


def test_planes_are_joined() -> None:
    for layout in ({}, {"rowsperstrip": 7, "compression": "lzw"}, {"tile": (32, 32), "compression": "zlib"}):
        values = noise(61, 53, 3)
        [scan] = scans(tiff(values, planarconfig="separate", **layout))
        assert isinstance(scan, Scan)
        assert np.array_equal(np.concatenate(list(scan.bands)), values)


def test_a_jpeg_inside_of_a_tiff() -> None:
    for layout in ({"tile": (64, 64)}, {"rowsperstrip": 32}):
        data = tiff(noise(100, 90, 3), compression="jpeg", **layout)
        [scan] = scans(data)
        assert isinstance(scan, Scan)
        assert not scan.lossless
        assert np.array_equal(np.concatenate(list(scan.bands)), tifffile.imread(io.BytesIO(data)))


@settings(deadline=None, max_examples=15)
@given(
    st.integers(1, 300), st.integers(1, 90), st.sampled_from(["L", "RGB"]), st.sampled_from([0, 1, 2]), st.booleans()
)
def test_jpeg_is_read_as_pillow_reads_it(height: int, width: int, mode: str, sampling: int, steps: bool) -> None:
    image = Image.fromarray(noise(height, width, 3)).convert(mode)
    data = saved(image, "JPEG", subsampling=sampling, progressive=steps)
    [scan] = scans(data)
    assert isinstance(scan, Scan)
    expected = np.asarray(Image.open(io.BytesIO(data))).reshape(height, width, -1)
    assert np.array_equal(np.concatenate(list(scan.bands)), expected)


def pngs() -> Iterator[tuple[str, bytes]]:
    """Every kind of PNG, with its name."""
    grey, colour, layers = (Image.fromarray(noise(150, 53, n).squeeze()) for n in (1, 3, 4))
    palette = colour.quantize(100)
    yield "grey", saved(grey, "PNG")
    yield "RGB", saved(colour, "PNG")
    yield "RGBA", saved(layers, "PNG")
    yield "grey and alpha", saved(Image.merge("LA", [grey, grey]), "PNG")
    yield "palette", saved(palette, "PNG")
    yield "palette of 2 bits", saved(colour.quantize(3), "PNG", bits=2)
    yield "palette and alphas", saved(palette, "PNG", transparency=bytes(range(100)))
    yield "1 bit", saved(grey.point(lambda value: 255 * (value > 90)).convert("1"), "PNG")
    yield "grey and a transparent value", saved(grey, "PNG", transparency=7)
    yield "RGB and a transparent colour", saved(colour, "PNG", transparency=(1, 2, 3))
    for channels in (1, 2, 3, 4):
        yield f"16 bits, {channels}", bytes(imagecodecs.png_encode(noise(150, 53, channels, np.uint16)))


@pytest.mark.parametrize(("kind", "data"), list(pngs()), ids=[kind for kind, _ in pngs()])
def test_png_is_read_as_other_decoders_read_it(kind: str, data: bytes) -> None:
    [scan] = scans(data)
    assert isinstance(scan, Scan)
    found = np.concatenate(list(scan.bands))
    image = Image.open(io.BytesIO(data))
    if kind.startswith("16"):
        expected = imagecodecs.png_decode(data)
    else:
        grey = image.mode in ("1", "L", "LA")
        transparent = image.has_transparency_data
        expected = np.asarray(image.convert(("LA" if grey else "RGBA") if transparent else "L" if grey else "RGB"))
    assert np.array_equal(found, expected.reshape(found.shape))


def test_bmp_of_either_direction() -> None:
    data = saved(noise(150, 53, 3), "BMP")
    [scan] = scans(data)
    assert isinstance(scan, Scan)
    assert np.array_equal(np.concatenate(list(scan.bands)), noise(150, 53, 3))


@pytest.mark.parametrize(
    ("kind", "target", "height", "width", "channels", "scale"),
    [
        ("JPEG", "jpeg", 301, 47, 3, 2),
        ("PNG", "png", 290, 33, 1, 1.7),
        ("TIFF", "tiff", 271, 34, 4, 1.7),
        ("PNG", "jpeg", 263, 21, 4, 2),
        ("BMP", "bmp", 266, 30, 3, 1.3),
        ("TIFF", "tiff", 3, 5, 3, 2),
    ],
)
def test_results_do_not_depend_on_bands(
    kind: str, target: str, height: int, width: int, channels: int, scale: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As from a picture that is held, with one band."""
    pixels = noise(height, width, channels)
    if channels == 4:
        pixels[:, :, 3] = np.where(pixels[:, :, 3] > 100, 255, 0)
    options = core.Options(format=target, scale=scale, tile=48, device="cpu")
    data = saved(pixels, kind)
    streamed = core.upscale(data, options).data
    monkeypatch.setattr(pipeline, "scans", lambda *given: (held(one) for one in scans(*given)))
    monkeypatch.setattr("core.pixels.bands.ROWS", 1 << 20)
    assert core.upscale(data, options).data == streamed


@pytest.mark.parametrize("format", ["jpeg", "png", "bmp"])
def test_what_is_written_in_bands_is_what_is_written_at_once(format: str) -> None:
    """Long enough for restart markers and for several filtered parts; compared by other decoders."""
    pixels = noise(1500, 1000, 3)
    options = core.Options(model="lanczos", scale=1.1, format=format, quality=90 if format == "jpeg" else None)
    data = core.upscale(saved(pixels, "PNG"), options).data
    after = np.asarray(Image.open(io.BytesIO(data or b"")))
    exact = decode(core.upscale(saved(pixels, "PNG"), core.Options(model="lanczos", scale=1.1)).data or b"").pixels
    if format == "jpeg":
        at_once = imagecodecs.jpeg8_encode(exact, 90, subsampling="444", optimize=False)
        exact = imagecodecs.jpeg8_decode(at_once)
    assert np.array_equal(after, exact)


@given(st.lists(st.integers(1, 40), min_size=1, max_size=9), st.integers(1, 50))
def test_bands_of_other_heights(heights: list[int], rows: int) -> None:
    values = noise(sum(heights), 2, 1)
    starts = np.cumsum([0, *heights])
    cut = [values[start : start + height] for start, height in zip(starts, heights, strict=False)]
    made = list(in_rows(cut, rows))
    assert {len(band) for band in made[:-1]} <= {rows}
    assert np.array_equal(np.concatenate(made), values)


def test_a_picture_and_its_bands() -> None:
    values = noise(600, 7, 4)
    pixels, alpha = gather(bands_of(values[:, :, :3], values[:, :, 3]))
    assert np.array_equal(pixels, values[:, :, :3])
    assert alpha is not None
    assert np.array_equal(alpha, values[:, :, 3])
    assert isinstance(held(Picture(pixels, alpha)), Picture)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "TIFF", "BMP"])
def test_what_ends_early_is_refused(format: str) -> None:
    options: dict[str, Any] = {"compression": "tiff_lzw"} if format == "TIFF" else {}
    data = saved(noise(400, 300, 3), format, **options)
    with pytest.raises(core.UnreadableImage):
        core.upscale(data[: len(data) * 2 // 3])


@pytest.mark.parametrize(("rows", "in_advance"), [(1, 8), (1 << 14, 1)])
def test_small_bands_are_made_further_ahead(rows: int, in_advance: int) -> None:
    """Who gathers some before working is not waited for; of large ones there is one more, and memory for no other."""
    made: list[int] = []
    enough = threading.Event()

    def items() -> Iterator[Array]:
        for index in range(100):
            made.append(index)
            if len(made) > in_advance:
                enough.set()
            yield np.zeros((rows, 1024, 1), np.uint8)

    with closing(ahead(items())) as bands:
        next(bands)
        assert enough.wait(300)
        if in_advance == 1:
            time.sleep(0.05)
            assert len(made) == 2
    assert len(made) <= 100


def test_what_the_other_thread_raises_is_raised_here() -> None:
    def items() -> Iterator[Array]:
        yield np.zeros((1, 1, 1), np.uint8)
        raise ValueError("damaged")

    with pytest.raises(ValueError, match="damaged"):
        list(ahead(items()))
