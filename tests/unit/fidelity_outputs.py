"""What each output format carries: each function takes a format and gives a cell of docs/fidelity.md."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import tifffile
from PIL import Image, IptcImagePlugin

import core
from core.codecs.read import decode, pages
from core.picture import Picture
from tests.unit import profiles
from tests.unit.fidelity_inputs import png16
from tests.unit.pictures import (
    XMP,
    Array,
    corners,
    deep_ramp,
    iptc_records,
    motion_photo,
    opened,
    patches,
    saved,
    ultra_hdr,
    with_everything,
)
from tests.unit.profiles import ADOBE_RGB, DISPLAY_P3, SRGB, Space, delta_e, lab

P3 = profiles.rgb_profile(DISPLAY_P3)


def upscaled(data: bytes, format: str | None = None, **options: Any) -> tuple[Picture, core.Result]:
    """The result, as our own reader sees it, and what was told of it."""
    result = core.upscale(data, core.Options(format=format, **options))
    assert result.data is not None
    return decode(result.data), result


def told(result: core.Result, word: str) -> bool:
    return any(word.lower() in note.lower() for note in result.notes)


def colour_error(format: str, space: Space) -> float:
    """Largest CIEDE2000 of flat patches between input and result, each seen through its own profile."""
    before = patches()
    profile = profiles.rgb_profile(space)
    after, result = upscaled(saved(before, "PNG", icc_profile=profile), format)
    if after.meta.icc == profile:
        seen = space
    else:
        assert after.meta.icc is None
        assert told(result, "converted to sRGB")
        seen = SRGB
    worst = 0.0
    for row in range(3):
        for column in range(6):
            inner = after.pixels[row * 64 + 16 : row * 64 + 48, column * 64 + 16 : column * 64 + 48] / 255
            wanted = lab(before[row * 32, column * 32] / 255, space)
            worst = max(worst, float(delta_e(lab(inner, seen), wanted).max()))
    return worst


def wide_gamut(format: str, space: Space) -> str:
    bound = 2 if format == "avif" else 1  # libavif turns RGB into YCbCr of 8 bits, which costs one step of RGB
    assert colour_error(format, space) <= bound
    kept = upscaled(saved(corners(), "PNG", icc_profile=profiles.rgb_profile(space)), format)[0].meta.icc
    how = "profile kept" if kept else "in sRGB"
    return f"same colours, {how}" if bound == 1 else f"within {bound}, {how}"


def grey_profile(format: str) -> str:
    profile = profiles.grey_profile(1.0)
    before = np.full((16, 16, 1), 55, np.uint8)  # in linear light: about 128 in sRGB
    after, result = upscaled(saved(before, "PNG", icc_profile=profile), format)
    middle = int(after.pixels[16, 16, 0])
    if after.meta.icc == profile:
        assert abs(middle - 55) <= 1
        return "kept"
    assert abs(middle - 128) <= 1
    assert told(result, "converted to sRGB")
    return "same greys, in sRGB"


def sixteen_bits(format: str) -> str:
    after, result = upscaled(png16(deep_ramp()), format)
    levels = len(np.unique(after.pixels[:, :, 1]))
    if after.pixels.dtype == np.uint8:
        assert told(result, "8 bits")
        return "8 bits, told"
    # 9,435 of 65,535 steps: 8 bits could tell 37 of them apart.
    assert levels > 256
    return "16 bits"


def transparency(format: str) -> str:
    pixels = corners(channels=4)
    pixels[:, :10, 3] = 0
    pixels[:, 10:, 3] = 255
    after, result = upscaled(saved(pixels, "PNG"), format)
    if after.alpha is None:
        assert after.pixels[:, :12].min() > 250
        assert told(result, "transparency")
        return "put on white, told"
    assert after.alpha[:, :12].max() == 0
    assert after.alpha[:, -12:].min() == 255
    return "kept"


def one_channel(format: str) -> str:
    after, _ = upscaled(saved(corners(channels=1), "PNG"), format)
    if after.pixels.shape[2] == 1:
        return "one channel"
    assert np.ptp(after.pixels.astype(int), axis=2).max() == 0 or format in ("webp", "avif")
    assert np.ptp(after.pixels.astype(int), axis=2).max() <= 2
    return "as grey RGB"


def everything(format: str) -> tuple[bytes, core.Result]:
    result = core.upscale(with_everything(corners(), orientation=6), core.Options(format=format))
    assert result.data is not None
    return result.data, result


def exif_block(format: str) -> str:
    data, result = everything(format)
    found = opened(data).getexif()
    if 0x010F not in found:
        assert told(result, "EXIF")
        return "no place, told"
    below = found.get_ifd(0x8769)
    assert (below[0xA002], below[0xA003]) == (result.width, result.height)
    assert found.get(0x0112, 1) == 1
    assert found[0x010F] == "Maker"
    assert found.get_ifd(0x8825)[2] == (48, 51, 30)
    assert found.get_ifd(1) == {}
    assert b"MAKER NOTE" in data
    return "kept, size corrected, thumbnail dropped"


def xmp_packet(format: str) -> str:
    data, result = everything(format)
    if b"xmpmeta" not in data:
        assert told(result, "XMP")
        return "no place, told"
    found = decode(data).meta.xmp
    assert found is not None
    assert b'tiff:Orientation="1"' in found
    assert f'PixelXDimension="{result.width}"'.encode() in found
    assert len(found) == len(XMP)
    return "kept, corrected"


def iptc(format: str) -> str:
    data, result = everything(format)
    found = decode(data).meta.iptc
    if found is None:
        assert told(result, "IPTC")
        return "no place, told"
    assert found == iptc_records()
    if format in ("jpeg", "tiff"):  # as Pillow reads it, too
        records = IptcImagePlugin.getiptcinfo(opened(data)) or {}  # type: ignore[arg-type]
        assert records[2, 25] in (b"keyword", [b"keyword"])
    return "kept"


def resolution(format: str) -> str:
    data, _ = everything(format)
    found = decode(data).meta.dpi
    assert found is not None
    assert round(found[0]) == round(found[1]) == 300
    return "kept in EXIF" if "dpi" not in opened(data).info else "kept"


def comment(format: str) -> str:
    data, result = everything(format)
    if "Comment wïth more".encode() in data or "Comment wïth more".encode("latin-1") in data:
        return "kept"
    assert told(result, "texts")
    return "no place, told"


def frames() -> list[Image.Image]:
    """Four frames of 24x16: a square that wanders, over a transparent ground."""
    found = []
    for index in range(4):
        values = np.zeros((16, 24, 4), np.uint8)
        values[4:12, 2 + 5 * index : 8 + 5 * index] = (200, 40 * index, 90, 255)
        found.append(Image.fromarray(values))
    return found


DURATIONS = [100, 250, 40, 1000]


def animation(format: str, made_as: str = "PNG") -> str:
    first, *others = frames()
    options: dict[str, Any] = {"disposal": 2} if made_as == "GIF" else {}
    if made_as == "WEBP":
        options = {"lossless": True, "exact": True}
    data = saved(first, made_as, save_all=True, append_images=others, duration=DURATIONS, loop=3, **options)
    header = core.probe(data)
    assert header.frames == 4
    result = core.upscale(data, core.Options(format=format))
    assert result.data is not None
    if result.frames == 1:
        assert told(result, "first of 4 frames")
        return "first frame, told"
    after = core.probe(result.data)
    assert (after.frames, result.frames) == (4, 4)
    shown = list(pages(result.data))
    assert [round(frame.duration) for frame in shown] == DURATIONS
    for before, frame in zip(frames(), shown, strict=True):
        wanted = np.asarray(before).repeat(2, axis=0).repeat(2, axis=1)
        assert frame.alpha is not None
        # Inside and outside of the square, away from its edge: nothing of an earlier frame is left.
        inside = wanted[4:-4, 4:-4, 3] == 255
        assert frame.alpha[4:-4, 4:-4][inside].min() > 20
        far = np.asarray(before.resize((48, 32)).convert("RGBA"))[:, :, 3] == 0
        grown = np.zeros_like(far)
        grown[8 - 6 : 24 + 6] = True
        assert frame.alpha[~grown & far].max(initial=0) == 0
    if format == "avif":
        return "kept (AVIF has no number of plays)"
    assert after.plays == header.plays
    return "kept: timing, plays, disposal"


def several_pages(format: str) -> str:
    first = Image.fromarray(corners(12, 20))
    second = Image.fromarray(corners(8, 30, 1)[:, :, 0])
    data = saved(first, "TIFF", save_all=True, append_images=[second])
    result = core.upscale(data, core.Options(format=format))
    assert result.data is not None
    if result.frames == 1:
        assert told(result, "first of 2 pages")
        return "first page, told"
    found = list(pages(result.data))
    assert [page.pixels.shape for page in found] == [(24, 40, 3), (16, 60, 1)]
    return "kept"


def gain_map(format: str) -> str:
    after, result = upscaled(ultra_hdr(saved(corners(), "JPEG")), format)
    assert told(result, "gain map")
    assert b"hdrgm:Version" not in (after.meta.xmp or b"")
    return "left out with its tags, told"


def motion(format: str) -> str:
    after, result = upscaled(motion_photo(saved(corners(), "JPEG")), format)
    assert told(result, "video")
    assert b"MotionPhoto" not in (after.meta.xmp or b"")
    return "left out with its tags, told"


def tiff_of(values: Array, **options: Any) -> bytes:
    stream = io.BytesIO()
    tifffile.imwrite(stream, values, **options)
    return stream.getvalue()


def geotiff(format: str) -> str:
    places = [(33550, 12, 3, (10.0, 10.0, 0.0), True), (33922, 12, 6, (2.0, 0.0, 0.0, 5e5, 5e6, 0.0), True)]
    _, result = upscaled(tiff_of(corners(), photometric="rgb", metadata=None, extratags=places), format)
    if format != "tiff":
        assert told(result, "GeoTIFF")
        return "no place, told"
    with tifffile.TiffFile(io.BytesIO(result.data or b"")) as file:
        tags = file.pages[0].tags  # type: ignore[union-attr]
        assert (tags[33550].value[:2], tags[33922].value[:2]) == ((5, 5), (4, 0))
    return "kept, corrected"


def ome(format: str) -> str:
    sizes = {"axes": "YX", "PhysicalSizeX": 0.5, "PhysicalSizeY": 0.5}
    _, result = upscaled(tiff_of(corners(channels=1)[:, :, 0], ome=True, metadata=sizes), format)
    if format != "tiff":
        assert told(result, "OME-XML")
        assert b"PhysicalSize" not in (result.data or b"")
        return "no place, told"
    for part in (b'SizeX="40"', b'SizeY="24"', b'PhysicalSizeX="0.25"'):
        assert part in (result.data or b"")
    return "kept, corrected"


def no_data(format: str) -> str:
    values = np.linspace(300, 450, 24 * 32, dtype=np.float32).reshape(24, 32)
    values[4:10, 6:14] = -9999
    tag = [(42113, 2, 0, "-9999", True)]
    after, result = upscaled(tiff_of(values, metadata=None, extratags=tag), format)
    if format == "tiff":
        numbers = tifffile.imread(io.BytesIO(result.data or b""))
        assert (numbers[10:18, 14:26] == -9999).all()
        assert numbers[numbers != -9999].min() > 290
        return "kept: numbers and holes"
    assert told(result, "numbers from 300 to 450")
    if after.alpha is None:
        assert told(result, "put on white")
        return "black to white, holes white, told"
    assert after.alpha[11:17, 15:25].max() < 20  # AVIF has losses
    return "black to white, holes transparent, told"


OUTPUTS: dict[str, Callable[[str], str]] = {
    "Display P3": lambda format: wide_gamut(format, DISPLAY_P3),
    "Adobe RGB": lambda format: wide_gamut(format, ADOBE_RGB),
    "Grey profile": grey_profile,
    "16 bits a channel": sixteen_bits,
    "Transparency": transparency,
    "Greyscale": one_channel,
    "EXIF": exif_block,
    "XMP": xmp_packet,
    "IPTC": iptc,
    "Resolution (DPI)": resolution,
    "Comment": comment,
    "Animation": animation,
    "Pages": several_pages,
    "Gain map (Ultra HDR)": gain_map,
    "Video of a motion photo": motion,
    "GeoTIFF": geotiff,
    "OME-XML": ome,
    "Floats with no data": no_data,
}
