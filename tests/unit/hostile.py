"""Files of strangers: small good pictures of every format, and ways to break them; the fuzzer starts here, too."""

from __future__ import annotations

import io
import random
import struct
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import imagecodecs
import numpy as np
import tifffile
from PIL import Image

import core
from tests.unit import profiles
from tests.unit.pictures import Array, corners, png_chunk, saved, srgb_profile, with_everything

#: What damaged files are read with.
LIMITS = core.Limits(input_bytes=1_000_000, input_pixels=400_000, output_pixels=1_600_000, frames=20)


def _tiff(values: Array, **options: Any) -> bytes:
    stream = io.BytesIO()
    tifffile.imwrite(stream, values, **options)
    return stream.getvalue()


def _frames(format: str, **options: Any) -> bytes:
    frames = [Image.fromarray(np.roll(corners(9, 11, 4), 2 * index, axis=1)) for index in range(3)]
    return saved(frames[0], format, save_all=True, append_images=frames[1:], **{"duration": [10, 20, 30], **options})


def seeds() -> dict[str, bytes]:
    """Good files by name; each a few hundred bytes to a few thousand."""
    colour, grey, both = corners(14, 18), corners(14, 18, 1), corners(14, 18, 4)
    deep = colour.astype(np.uint16) * 257
    image, dots = Image.fromarray(colour), Image.fromarray(grey[:, :, 0]).convert("1")
    inks = Image.fromarray(both, "CMYK")
    found = {
        "jpeg": with_everything(colour, orientation=6),
        "jpeg-grey": saved(grey, "JPEG"),
        "jpeg-progressive": saved(colour, "JPEG", progressive=True),
        "jpeg-cmyk": saved(inks, "JPEG", icc_profile=profiles.cmyk_profile()),
        "png": saved(both, "PNG", dpi=(300, 300), icc_profile=srgb_profile()),
        "png-palette": saved(image.quantize(9), "PNG", transparency=bytes(range(9))),
        "png-16": bytes(imagecodecs.png_encode(deep)),
        "png-animated": _frames("PNG", loop=2),
        "webp": saved(both, "WEBP", exif=b"Exif\0\0" + bytes(20), icc_profile=srgb_profile()),
        "webp-lossless": saved(both, "WEBP", lossless=True),
        "webp-animated": _frames("WEBP"),
        "tiff": saved(both, "TIFF", tiffinfo={270: "text", 700: b"<x/>"}, icc_profile=srgb_profile()),
        "tiff-lzw": saved(colour, "TIFF", compression="tiff_lzw"),
        "tiff-jpeg": saved(colour, "TIFF", compression="jpeg"),
        "tiff-fax": saved(dots, "TIFF", compression="group4"),
        "tiff-cmyk": saved(inks, "TIFF", icc_profile=profiles.cmyk_profile()),
        "tiff-16": _tiff(deep, photometric="rgb", compression="lzw"),
        "tiff-16-tiles": _tiff(np.pad(deep, ((0, 18), (0, 14), (0, 0))), photometric="rgb", tile=(16, 16)),
        "tiff-float": _tiff(deep[:, :, 0] / 65535.0, compression="zlib", predictor=True, bigtiff=True),
        "tiff-lab": _tiff(deep, photometric="cielab", byteorder=">"),
        "tiff-pages": saved(image, "TIFF", save_all=True, append_images=[dots]),
        "bmp": saved(colour, "BMP"),
        "bmp-palette": saved(image.quantize(9), "BMP"),
        "gif": saved(image.quantize(9), "GIF", comment="hello", transparency=3),
        "gif-animated": _frames("GIF", loop=0, disposal=2),
        "avif": saved(both, "AVIF", icc_profile=srgb_profile()),
        "avif-animated": _frames("AVIF"),
    }
    try:
        import pillow_heif
    except ImportError:
        pass  # no HEIC, then
    else:
        stream = io.BytesIO()
        file = pillow_heif.from_bytes(mode="RGBA", size=(18, 14), data=both.tobytes())
        file.save(stream, format="HEIF", quality=60)
        found["heif"] = stream.getvalue()
    return found


def truncated(data: bytes, step: int = 7) -> Iterator[bytes]:
    """The file, cut at every `step`th byte."""
    for end in range(0, len(data), step):
        yield data[:end]


def flipped(data: bytes, dice: random.Random) -> bytes:
    """The file with a few bits or bytes changed, anywhere or near the beginning."""
    found = bytearray(data)
    reach = len(found) if dice.random() < 0.5 else min(len(found), 128)
    for _ in range(dice.choice((1, 1, 2, 4, 16))):
        at = dice.randrange(reach)
        found[at] = dice.choice((found[at] ^ 1 << dice.randrange(8), 0, 255, dice.randrange(256)))
    return bytes(found)


def rearranged(name: str, data: bytes, dice: random.Random) -> bytes:
    """The file with one of its own parts (chunk, segment, field, block, box) left out, doubled, moved or changed."""
    kind = name.split("-")[0]
    split, join = _PARTS[kind]
    parts = split(data)
    if len(parts) < 2:
        return flipped(data, dice)
    at = dice.randrange(len(parts))
    move = dice.randrange(5)
    if move == 0:
        del parts[at]
    elif move == 1:
        parts.insert(dice.randrange(len(parts)), parts[at])
    elif move == 2:
        other = dice.randrange(len(parts))
        parts[at], parts[other] = parts[other], parts[at]
    elif move == 3:
        parts[at] = _changed(parts[at], dice)
    else:
        parts[at] = parts[at][: dice.randrange(len(parts[at]) + 1)]
    return join(parts)


def _changed(part: bytes, dice: random.Random) -> bytes:
    """One number in a part replaced by a nasty one."""
    if len(part) < 4:
        return bytes([dice.randrange(256)]) * len(part)
    at = dice.randrange(len(part) - 3)
    number = dice.choice((0, 1, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 0x80000000, 0x10000, dice.getrandbits(32)))
    order = dice.choice("<>")
    return part[:at] + struct.pack(order + "I", number) + part[at + 4 :]


def _split_png(data: bytes) -> list[bytes]:
    """Chunks without lengths and checksums."""
    parts, at = [], 8
    while at + 8 <= len(data):
        (length,) = struct.unpack_from(">I", data, at)
        parts.append(data[at + 4 : at + 8 + length])
        at += 12 + length
    return parts


def _join_png(parts: list[bytes]) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", max(0, len(part) - 4)) + part + struct.pack(">I", zlib.crc32(part)) for part in parts
    )


def _split_jpeg(data: bytes) -> list[bytes]:
    """Segments with their markers; the last one is the scan and what follows."""
    parts, at = [], 2
    while at + 4 <= len(data) and data[at + 1] != 0xDA:
        (length,) = struct.unpack_from(">H", data, at + 2)
        parts.append(data[at : at + 2 + length])
        at += 2 + length
    return [*parts, data[at:]]


def _split_tiff(data: bytes) -> list[bytes]:
    """The file in pieces of 12 bytes from its first directory on, which are its fields."""
    if data[2:3] == b"+" or data[3:4] == b"+":
        return [data[at : at + 20] for at in range(0, len(data), 20)]
    (first,) = struct.unpack_from("<I" if data[:1] == b"I" else ">I", data, 4)
    return [data[: first + 2], *(data[at : at + 12] for at in range(first + 2, len(data), 12))]


def _split_riff(data: bytes) -> list[bytes]:
    parts, at = [], 12
    while at + 8 <= len(data):
        (length,) = struct.unpack_from("<I", data, at + 4)
        parts.append(data[at : at + 8 + length + length % 2])
        at += 8 + length + length % 2
    return parts


def _join_riff(parts: list[bytes]) -> bytes:
    body = b"WEBP" + b"".join(parts)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def _split_boxes(data: bytes) -> list[bytes]:
    """Boxes of ISO/IEC 14496-12; those of the first `meta` are split further."""
    parts, at = [], 0
    while at + 8 <= len(data):
        (length,) = struct.unpack_from(">I", data, at)
        length = max(8, min(length or len(data), len(data) - at))
        if data[at + 4 : at + 8] == b"meta":
            parts.append(data[at : at + 12])
            parts += [data[at + 12 :][i : i + 16] for i in range(0, length - 12, 16)]
        else:
            parts.append(data[at : at + length])
        at += length
    return parts


def _split_evenly(data: bytes) -> list[bytes]:
    return [data[at : at + 8] for at in range(0, len(data), 8)]


_Parts = tuple[Callable[[bytes], list[bytes]], Callable[[list[bytes]], bytes]]
_PARTS: dict[str, _Parts] = {
    "png": (_split_png, _join_png),
    "jpeg": (_split_jpeg, lambda parts: b"\xff\xd8" + b"".join(parts)),
    "tiff": (_split_tiff, b"".join),
    "webp": (_split_riff, _join_riff),
    "avif": (_split_boxes, b"".join),
    "heif": (_split_boxes, b"".join),
    "gif": (_split_evenly, b"".join),
    "bmp": (_split_evenly, b"".join),
}


def png_of(width: int, height: int, chunks: bytes = b"") -> bytes:
    """A PNG that claims these sides, with some chunks before its pixels."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = png_chunk(b"IDAT", zlib.compress(bytes(1000)))
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + chunks + body + png_chunk(b"IEND", b"")


def tiff_of(fields: dict[int, tuple[int, int]], pages: int = 1) -> bytes:
    """A TIFF of directories with LONG fields, by tag and value; one directory points to the next."""
    entries = {256: (4, 8), 257: (4, 8), 258: (3, 8), 259: (3, 1), 262: (3, 1), 273: (4, 8), 277: (3, 1), 279: (4, 64)}
    entries |= fields
    size = 2 + 12 * len(entries) + 4
    found = b"II*\0" + struct.pack("<I", 8)
    for page in range(pages):
        following = 0 if page == pages - 1 else 8 + (page + 1) * size
        found += struct.pack("<H", len(entries))
        found += b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, (kind, value) in sorted(entries.items()))
        found += struct.pack("<I", following)
    return found + bytes(64)


def gif_of(width: int, height: int, frames: Iterator[tuple[int, int, int, int]]) -> bytes:
    """A GIF of a canvas and of frames, each (left, top, width, height)."""
    data = b"GIF89a" + struct.pack("<HH", width, height) + b"\x80\0\0" + bytes(6)
    for frame in frames:
        data += b"," + struct.pack("<HHHH", *frame) + b"\0\x02\x02\x4c\x01\0"
    return data + b";"
