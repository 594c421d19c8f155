"""TIFFs of the kinds that people bring: each written byte by byte, and read as the specification says.

The values agree with libtiff's (tiff2rgba) and libvips' unless a test says where these differ.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import tifffile

import core
from core.codecs.read import decode, pages
from core.pixels.colour import lab_to_rgb
from tests.unit.pictures import Array, corners, turned

SHORT, LONG, RATIONAL = 3, 4, 5
RAMP = np.arange(0, 256, 8, dtype=np.uint8).reshape(4, 8)


def raw_tiff(
    pixels: bytes,
    size: tuple[int, int],
    fields: Mapping[int, tuple[int, Sequence[int]]],
    order: str = "<",
    after: int = 0,
) -> bytes:
    """One page of one strip.

    Args:
        pixels: the strip as stored.
        size: width and height.
        fields: type and values by tag, beyond the usual ones or in their place.
        order: of bytes.
        after: offset of the next directory.
    """
    found: dict[int, tuple[int, Sequence[int]]] = {
        **{256: (SHORT, [size[0]]), 257: (SHORT, [size[1]]), 258: (SHORT, [8]), 259: (SHORT, [1])},
        **{262: (SHORT, [1]), 273: (LONG, [8]), 277: (SHORT, [1]), 278: (SHORT, [size[1]]), 279: (LONG, [len(pixels)])},
        **fields,
    }
    start = 8 + len(pixels) + len(pixels) % 2
    head, tail = b"", b""
    for tag, (kind, values) in sorted(found.items()):
        letter, each = {1: ("B", 1), SHORT: ("H", 1), LONG: ("I", 1), RATIONAL: ("I", 2), 12: ("d", 1)}[kind]
        packed = struct.pack(f"{order}{len(values)}{letter}", *values)
        if len(packed) > 4:
            place = start + 2 + 12 * len(found) + 4 + len(tail)
            tail += packed + bytes(len(packed) % 2)
            packed = struct.pack(order + "I", place)
        head += struct.pack(order + "HHI", tag, kind, len(values) // each) + packed.ljust(4, b"\0")
    directory = struct.pack(order + "H", len(found)) + head + struct.pack(order + "I", after) + tail
    magic = b"II*\0" if order == "<" else b"MM\0*"
    return magic + struct.pack(order + "I", start) + pixels + bytes(len(pixels) % 2) + directory


def packed_bits(values: Array, bits: int) -> bytes:
    """Rows of samples of a few bits, each row filled up to a byte (TIFF 6.0, section 3)."""
    found = b""
    for row in values.reshape(len(values), -1):
        text = "".join(f"{int(value):0{bits}b}" for value in row)
        text = text.ljust(-(-len(text) // 8) * 8, "0")
        found += bytes(int(text[at : at + 8], 2) for at in range(0, len(text), 8))
    return found


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 5, 6, 7])
@pytest.mark.parametrize("photometric", [0, 1, 2])
@pytest.mark.parametrize("order", ["<", ">"])
def test_few_bits_use_the_whole_range(bits: int, photometric: int, order: str) -> None:
    if bits == 1 and photometric == 2:
        return
    count = 3 if photometric == 2 else 1
    top = (1 << bits) - 1
    values = np.arange(8 * 4 * count).reshape(4, 8, count) * 7 % (top + 1)
    fields = {258: (SHORT, [bits] * count), 262: (SHORT, [photometric]), 277: (SHORT, [count])}
    seen = decode(raw_tiff(packed_bits(values, bits), (8, 4), fields, order)).pixels
    wanted = values * 255 // top
    assert seen.dtype == np.uint8
    assert np.array_equal(seen, 255 - wanted if photometric == 0 else wanted)


@pytest.mark.parametrize("order", ["<", ">"])
def test_twenty_four_bits(order: str) -> None:
    values = np.linspace(0, (1 << 24) - 1, 32).astype(np.uint32).reshape(4, 8)
    little = order == "<"
    data = b"".join(int(value).to_bytes(3, "little" if little else "big") for value in values.ravel())
    picture = decode(raw_tiff(data, (8, 4), {258: (SHORT, [24])}, order))
    assert np.array_equal(picture.pixels[:, :, 0], values >> 8)
    assert any("24 bits" in note for note in picture.notes)


def test_colour_maps_of_8_and_16_bits() -> None:
    colours = np.arange(256)
    small = np.concatenate([colours, 255 - colours, colours // 2])
    wide = small * 257
    wanted = np.stack([RAMP, 255 - RAMP, RAMP // 2], axis=-1)
    for table in (small, wide, small << 8):
        picture = decode(raw_tiff(RAMP.tobytes(), (8, 4), {262: (SHORT, [3]), 320: (SHORT, table.tolist())}))
        assert np.array_equal(picture.pixels, wanted)


def test_a_palette_of_16_bits() -> None:
    index = np.linspace(0, 65535, 32).astype(np.uint16).reshape(4, 8)
    table = np.arange(65536)
    fields = {258: (SHORT, [16]), 262: (SHORT, [3]), 320: (SHORT, [*table, *(65535 - table), *(table // 3)])}
    picture = decode(raw_tiff(index.astype("<u2").tobytes(), (8, 4), fields))
    assert np.array_equal(picture.pixels, np.stack([index, 65535 - index, index // 3], axis=-1))


@pytest.mark.parametrize("planar", [1, 2])
@pytest.mark.parametrize("colours", [1, 3])
@pytest.mark.parametrize("meaning", [0, 1, 2])
def test_extra_samples(planar: int, colours: int, meaning: int) -> None:
    values = np.full((4, 8, colours + 1), 128, np.uint8)
    values[..., 0] = RAMP // 2
    layers = np.moveaxis(values, -1, 0) if planar == 2 else values
    count = colours + 1
    fields = {
        **{258: (SHORT, [8] * count), 262: (SHORT, [1 if colours == 1 else 2]), 277: (SHORT, [count])},
        **{284: (SHORT, [planar]), 338: (SHORT, [meaning])},
    }
    if planar == 2:
        fields |= {273: (LONG, [8 + 32 * at for at in range(count)]), 279: (LONG, [32] * count)}
    picture = decode(raw_tiff(layers.tobytes(), (8, 4), fields))
    if meaning == 0 and colours == 1:  # libvips takes it for alpha, libtiff does not; the specification: not stated
        assert picture.alpha is None
        assert any("1 of 2 channels" in note for note in picture.notes)
    else:
        assert picture.alpha is not None
        assert (picture.alpha == 128).all()
    straight = np.minimum(np.rint(values[..., 0] * (255 / 128)), 255) if meaning == 1 else values[..., 0]
    assert np.array_equal(picture.pixels[:, :, 0], straight)


def test_channels_left_out_are_counted_and_named() -> None:
    values = np.repeat(RAMP[:, :, None], 5, axis=2)
    fields = {258: (SHORT, [8] * 5), 277: (SHORT, [5]), 338: (SHORT, [0] * 4)}
    [note] = decode(raw_tiff(values.tobytes(), (8, 4), fields)).notes
    assert note.startswith("4 of 5 channels")
    assert "2 to 5" in note


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_as_a_byte_and_raw_ycbcr(orientation: int) -> None:
    upright = corners(8, 16)
    wide = upright.astype(float)
    luma = wide @ [0.299, 0.587, 0.114]
    ycbcr = np.stack([luma, (wide[..., 2] - luma) / 1.772 + 128, (wide[..., 0] - luma) / 1.402 + 128], axis=-1)
    stored = turned(np.rint(ycbcr).astype(np.uint8), orientation)
    height, width = stored.shape[:2]
    blocks = stored.reshape(height, width // 2, 2, 3)  # 4:2:2: two of Y, then one of each colour
    chroma = np.rint(blocks[..., 1:].astype(float).mean(axis=2)).astype(np.uint8)
    data = np.concatenate([blocks[..., 0], chroma], axis=-1).tobytes()
    fields = {
        **{258: (SHORT, [8] * 3), 262: (SHORT, [6]), 277: (SHORT, [3]), 274: (1, [orientation])},
        **{530: (SHORT, [2, 1]), 532: (RATIONAL, [0, 1, 255, 1, 128, 1, 255, 1, 128, 1, 255, 1])},
    }
    seen = decode(raw_tiff(data, (width, height), fields)).pixels
    assert seen.shape == upright.shape
    assert np.abs(seen.astype(int) - upright).max() <= 30  # half of the chroma is gone


def test_lab_is_relative_to_the_white_that_is_stated() -> None:
    lightness, a, b = np.full((4, 8), 60.0), np.full((4, 8), 5.0), np.full((4, 8), -50.0)
    values = np.stack([np.full((4, 8), 153), np.full((4, 8), 5), np.full((4, 8), 206), np.full((4, 8), 90)], axis=-1)
    fields = {258: (SHORT, [8] * 4), 262: (SHORT, [8]), 277: (SHORT, [4]), 338: (SHORT, [2])}
    data = values.astype(np.uint8).tobytes()
    plain = decode(raw_tiff(data, (8, 4), fields))
    d65 = decode(raw_tiff(data, (8, 4), {**fields, 318: (RATIONAL, [3127, 10000, 3290, 10000])}))
    assert plain.alpha is not None
    assert (plain.alpha == 90).all()
    assert np.array_equal(plain.pixels, lab_to_rgb(lightness, a, b, np.uint8))
    # By the definitions alone: Lab under D65 is XYZ under D65, of which sRGB is a matrix (IEC 61966-2-1).
    f = np.array([76 / 116 + 5 / 500, 76 / 116, 76 / 116 + 50 / 200])
    light = np.linalg.solve(
        [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]], f**3 * [0.9505, 1.0, 1.089]
    )
    wanted = np.array([12.92 * one if one < 0.0031308 else 1.055 * one ** (1 / 2.4) - 0.055 for one in light]) * 255
    assert np.abs(d65.pixels[0, 0] - wanted).max() <= 1.5


def test_a_next_directory_beyond_the_end() -> None:
    picture = decode(raw_tiff(RAMP.tobytes(), (8, 4), {}, after=1 << 20))
    assert np.array_equal(picture.pixels[:, :, 0], RAMP)
    assert any("damaged" in note for note in picture.notes)


def test_masks_and_thumbnails_are_no_pages() -> None:
    stream = io.BytesIO()
    with tifffile.TiffWriter(stream) as file:
        file.write(corners(4, 6), photometric="rgb", subfiletype=1)
        file.write(corners(8, 12), photometric="rgb")
        file.write(np.ones((8, 12), bool), photometric=4, subfiletype=4)
        file.write(corners(10, 10), photometric="rgb")
    assert core.probe(stream.getvalue()).frames == 2
    found = list(pages(stream.getvalue()))
    assert np.array_equal(found[0].pixels, corners(8, 12))
    assert np.array_equal(found[1].pixels, corners(10, 10))
    assert any("masks" in note for note in found[0].notes)
    assert any("thumbnails" in note for note in found[0].notes)


@pytest.mark.parametrize("kind", ["DNG", "below", "CR2"])
def test_camera_raw_is_refused_with_the_way_out(kind: str) -> None:
    data = raw_tiff(RAMP.tobytes(), (8, 4), {50706: (1, [1, 4, 0, 0])} if kind == "DNG" else {})
    if kind == "below":  # NEF, ARW: a preview first, what the sensor saw below it
        inner = raw_tiff(RAMP.tobytes(), (8, 4), {262: (SHORT, [32803])})
        (at,) = struct.unpack_from("<I", inner, 4)
        outer = raw_tiff(RAMP.tobytes(), (8, 4), {330: (LONG, [0])})
        data = raw_tiff(RAMP.tobytes(), (8, 4), {330: (LONG, [len(outer)])}) + inner[at:]
    if kind == "CR2":
        stream = bytearray(raw_tiff(RAMP.tobytes(), (8, 4), {}))
        stream[8:10] = b"CR"
        data = bytes(stream)
    with pytest.raises(core.UnreadableImage, match="develop it first"):
        core.probe(data)


@pytest.mark.parametrize("compression", ["webp", "zstd", "jpeg", "lerc", "lzma"])
def test_compressions(compression: str) -> None:
    stream = io.BytesIO()
    options: Any = {"webp": {"lossless": True}, "jpeg": {"level": 98}}.get(compression)
    tifffile.imwrite(stream, corners(32, 48), photometric="rgb", compression=compression, compressionargs=options)
    picture = decode(stream.getvalue())
    assert np.abs(picture.pixels.astype(int) - corners(32, 48)).max() <= (6 if compression == "jpeg" else 0)
    assert picture.lossless == (compression != "jpeg")


def halved(values: Array) -> Array:
    """Means of 2x2 blocks."""
    height, width = values.shape[0] // 2, values.shape[1] // 2
    found: Array = values.astype(np.float64).reshape(height, 2, width, 2, -1).mean(axis=(1, 3))
    return found


def written(values: Array, **options: Any) -> tuple[core.Result, Array, dict[str, object]]:
    """The result of a TIFF of numbers, these numbers, and its tags."""
    stream = io.BytesIO()
    tifffile.imwrite(stream, values, photometric="rgb" if values.ndim == 3 else "minisblack", metadata=None, **options)
    result = core.upscale(stream.getvalue(), core.Options(format="tiff"))
    with tifffile.TiffFile(io.BytesIO(result.data or b"")) as file:
        tags = {tag.name: tag.value for tag in file.pages[0].tags}  # type: ignore[union-attr]
        return result, file.asarray(), tags


def elevation() -> Array:
    y, x = np.mgrid[0:24, 0:32]
    found: Array = 300 + 150 * np.sin(x / 7) * np.cos(y / 6)
    return found


@pytest.mark.parametrize(
    ("dtype", "nodata"),
    [
        ("float32", -9999.0),
        ("float32", -3.4028234663852886e38),
        ("int16", -32768.0),
        ("float64", float("nan")),
        ("uint16", 0.0),
    ],
)
def test_elevation_with_holes(dtype: str, nodata: float, lanczos: None) -> None:
    values = elevation().astype(dtype)
    values[4:10, 6:14] = nodata
    stated = [(42113, 2, 0, f"{nodata:.17g}", True)]
    _, after, tags = written(values, extratags=stated)
    hole = np.isnan(after) if np.isnan(nodata) else after == np.dtype(dtype).type(nodata)
    assert hole[10:18, 14:26].all()
    assert hole.sum() <= 4 * 8 * 10
    assert float(str(tags["GDAL_NODATA"])) == pytest.approx(nodata, nan_ok=True)
    far = np.ones((24, 32), bool)
    far[1:13, 3:17] = False
    small = halved(np.where(hole, np.nan, after))[:, :, 0]
    assert np.abs(small - values)[far][40:].max() < 6  # as far as halving a Lanczos result goes
    assert np.abs(small - values)[2:-2, 18:-2].max() < 0.5 + (dtype != "float32") * 0.5


@pytest.mark.parametrize("odd", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_stays_so(odd: float, lanczos: None) -> None:
    values = np.linspace(0, 1, 768, dtype=np.float32).reshape(24, 32)
    values[10:13, 10:13] = odd
    _, after, _ = written(values)
    same = np.isnan(after) if np.isnan(odd) else after == odd
    assert same[22:24, 22:24].all()
    assert np.isfinite(after[~same]).all()
    assert same.sum() <= 8 * 8


@pytest.mark.parametrize("hot", [5000.0, -9999.0, 1e5])
@pytest.mark.parametrize("dtype", ["float32", "int32"])
def test_one_pixel_does_not_set_the_range(hot: float, dtype: str, lanczos: None) -> None:
    values = np.tile(elevation()[:, :, None] / 450, (1, 1, 3))
    if dtype == "int32":
        values = np.rint(values * 10_000)
    values = values.astype(dtype)
    unit = 10_000 if dtype == "int32" else 1
    values[20, 28] = hot * unit
    _, after, _ = written(values)
    small = halved(after)
    assert np.abs(small - values)[2:14, 2:20].max() < 0.01 * unit
    extreme = float(after.min() if hot < 0 else after.max())
    assert abs(extreme) > 50 * unit  # it is still there
    assert len(np.unique(after[2:28, 2:40, 0])) > 700


def test_geotiff_places_fit_the_new_pixels(lanczos: None) -> None:
    for point in (False, True):
        keys = [1, 1, 0, 2, 1024, 0, 1, 1, 1025, 0, 1, 2 if point else 1]
        places = [(33550, 12, 3, (10.0, 10.0, 0.0), True), (33922, 12, 6, (3.0, 4.0, 0.0, 5e5, 5e6, 0.0), True)]
        tags = written(corners(), extratags=[*places, (34735, 3, len(keys), tuple(keys), True)])[2]
        assert tags["ModelPixelScaleTag"] == (5.0, 5.0, 0.0)
        # The middle of pixel (3, 4) lies where it lay: half a pixel is a quarter of the old ones.
        wanted = (6.5, 8.5) if point else (6.0, 8.0)
        assert tags["ModelTiepointTag"][:2] == wanted  # type: ignore[index]
        assert "GeoKeyDirectoryTag" in tags
    stream = io.BytesIO()
    tifffile.imwrite(stream, corners(), photometric="rgb", extratags=places)
    for options, told in ((core.Options(format="png"), True), (core.Options(drop_gps=True), False)):
        result = core.upscale(stream.getvalue(), options)
        assert any("GeoTIFF" in note for note in result.notes) == told
        if not told:
            with tifffile.TiffFile(io.BytesIO(result.data or b"")) as file:
                assert 33922 not in file.pages[0].tags  # type: ignore[union-attr]


def test_ome_sizes_are_those_of_the_result(lanczos: None) -> None:
    stream = io.BytesIO()
    sizes = {"axes": "ZYX", "PhysicalSizeX": 0.5, "PhysicalSizeY": 0.25, "PhysicalSizeXUnit": "µm"}
    tifffile.imwrite(stream, np.stack([corners(12, 20)[:, :, 0]] * 2), ome=True, metadata=sizes)
    result = core.upscale(stream.getvalue())
    with tifffile.TiffFile(io.BytesIO(result.data or b"")) as file:
        assert file.is_ome
        assert file.asarray().shape == (2, 24, 40)
        text = file.ome_metadata or ""
    for part in ('SizeX="40"', 'SizeY="24"', 'SizeZ="2"', 'PhysicalSizeX="0.25"', 'PhysicalSizeY="0.125"', "µm"):
        assert part in text
    told = core.upscale(stream.getvalue(), core.Options(format="png"))
    assert any("OME-XML" in note for note in told.notes)
    assert b"OME" not in (told.data or b"")
