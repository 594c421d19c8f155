"""PNG where Pillow cannot: written with sixteen bits, long animations and all metadata; read with sixteen bits.

Follows the PNG specification, third edition (APNG included).
"""

from __future__ import annotations

import io
import os
import struct
import zlib
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from functools import partial
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
from PIL import Image

from core.errors import UnreadableImage
from core.metadata.carried import MAX_BLOCK, Metadata
from core.metadata.iptc import raw_profile
from core.picture import Pixels, Scan
from core.pixels import colour
from core.pixels.bands import Bands, Samples, in_rows

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_BAND_BYTES = 1 << 22  # compressed at once
_LEVEL = 4  # of deflate: 6 takes three times as long for 2 % less


def write(stream: BinaryIO, scans: Iterator[Scan], frames: int, plays: int | None) -> None:
    """Write a picture band by band, or the frames of an animation.

    Args:
        stream: open for writing, binary.
        scans: one for each frame, all of one size and type; the first one's metadata is written.
        frames: how many there are.
        plays: how often an animation is played, 0 forever; None for a single picture.
    """
    sequence = 0
    previous: Samples | None = None
    for scan in scans:
        bands, left, top = scan.bands, 0, 0
        if plays is not None:  # of later frames only what changed is stored; it replaces what was there
            samples = np.concatenate(list(bands))
            part = samples
            if previous is not None:
                left, top, part = _changed(previous, samples)
            bands = replace(bands, height=len(part), width=part.shape[1], read=partial(iter, (part,)))
        if not sequence:
            kind = {1: 0, 2: 4, 3: 2, 4: 6}[bands.samples]
            header = struct.pack(">IIBBBBB", bands.width, bands.height, 8 * bands.dtype.itemsize, kind, 0, 0, 0)
            stream.write(_SIGNATURE + _chunk(b"IHDR", header))
            for name, content in _ancillary(scan.meta):
                stream.write(_chunk(name, content))
            if plays is not None:
                stream.write(_chunk(b"acTL", struct.pack(">II", frames, plays)))
        if plays is not None:
            seconds = Fraction(max(0.0, scan.duration) / 1000).limit_denominator(1000)
            delay = (min(seconds.numerator, 65535), seconds.denominator)
            place = (bands.width, bands.height, left, top)
            stream.write(_chunk(b"fcTL", struct.pack(">IIIIIHHBB", sequence, *place, *delay, 0, 0)))
            sequence += 1
        for data in _compressed(bands):
            if previous is None:
                stream.write(_chunk(b"IDAT", data))
            else:
                stream.write(_chunk(b"fdAT", struct.pack(">I", sequence) + data))
                sequence += 1
        previous = samples if plays is not None else None
    stream.write(_chunk(b"IEND", b""))


def _changed(before: npt.NDArray[Any], after: npt.NDArray[Any]) -> tuple[int, int, npt.NDArray[Any]]:
    """Left, top and pixels of the smallest rectangle that differs; one pixel when none does."""
    differs = (before != after).any(axis=2)
    rows, columns = np.flatnonzero(differs.any(axis=1)), np.flatnonzero(differs.any(axis=0))
    if not len(rows):
        return 0, 0, after[:1, :1]
    top, left = int(rows[0]), int(columns[0])
    return left, top, after[top : rows[-1] + 1, left : columns[-1] + 1]


def _compressed(bands: Bands) -> Iterator[bytes]:
    """What each IDAT holds, for 1 to 4 channels of uint8 or uint16."""
    import imagecodecs

    packer = zlib.compressobj(_LEVEL)
    above: Samples | None = None  # the last row of the band before, which the filters look at
    for band in in_rows(bands, max(1, _BAND_BYTES // bands.row_bytes)):
        rows = np.ascontiguousarray(band) if above is None else np.concatenate([above, band])
        # Filtered by libpng, and stored without compression in a PNG that is taken apart again.
        # Its own guess of the size has no room for the byte that each row begins with, in very narrow pictures.
        room = (bands.row_bytes + 1) * len(rows)
        stored = _chunks(imagecodecs.png_encode(rows, level=0, out=room + room // 64 + 4096))
        packed = b"".join(content for name, content in stored if name == b"IDAT")
        filtered = zlib.decompress(packed, bufsize=(bands.row_bytes + 1) * len(rows))
        skipped = 0 if above is None else 1 + bands.row_bytes
        above = band[-1:].copy()
        if data := packer.compress(memoryview(filtered)[skipped:]):
            yield data
    yield packer.flush()


def _chunks(data: bytes | bytearray | memoryview) -> Iterator[tuple[bytes, memoryview]]:
    """Name and content of each chunk."""
    view, at = memoryview(data), len(_SIGNATURE)  # a view, so that nothing is copied
    while at + 12 <= len(view):
        (length,) = struct.unpack_from(">I", view, at)
        yield bytes(view[at + 4 : at + 8]), view[at + 8 : at + 8 + length]
        at += 12 + length


def _chunk(name: bytes, data: bytes | memoryview) -> bytes:
    checksum = zlib.crc32(data, zlib.crc32(name))
    return b"".join((struct.pack(">I", len(data)), name, data, struct.pack(">I", checksum)))


def without_pixels(stream: BinaryIO) -> bytes:
    """A still PNG of one pixel with all other chunks of a file, of which only their own bytes are read."""
    stream.seek(len(_SIGNATURE))
    parts, stored = [_SIGNATURE], False
    while len(head := stream.read(8)) == 8:
        length, name = struct.unpack(">I4s", head)
        if name in (b"IDAT", b"acTL", b"fcTL", b"fdAT"):
            stream.seek(length + 4, os.SEEK_CUR)
            if name == b"IDAT" and not stored:
                parts.append(_chunk(b"IDAT", zlib.compress(bytes(9))))  # the most that a pixel has, and its filter
                stored = True
            continue
        if name in (b"acTL", b"fcTL", b"fdAT"):
            stream.seek(length + 4, os.SEEK_CUR)
            continue
        content = stream.read(length + 4)
        if name == b"IHDR":  # width and height are its first numbers
            parts.append(_chunk(name, struct.pack(">II", 1, 1) + content[8:-4]))
        else:
            parts += [head, content]
        if name == b"IEND":
            break
    return b"".join(parts)


def whole(stream: BinaryIO) -> tuple[BinaryIO, tuple[str, ...]]:
    """The same PNG without ancillary chunks whose checksum is wrong, and a note: only critical ones must be whole.

    Raises:
        UnreadableImage: an iPhone's own kind of PNG.
    """
    stream.seek(len(_SIGNATURE))
    wrong: list[tuple[int, int]] = []
    at = len(_SIGNATURE)
    while len(start := stream.read(8)) == 8:
        length, name = int.from_bytes(start[:4], "big"), start[4:]
        if name == b"CgBI":
            raise UnreadableImage(
                "this is an iPhone's own kind of PNG (CgBI), which no other reader knows: convert it with Xcode's "
                "pngcrush -revert-iphone-optimizations, or open it on a Mac and save it"
            )
        if name[0] & 0x20 and name != b"fdAT" and length <= MAX_BLOCK:
            checked = stream.read(length + 4)
            if len(checked) == length + 4 and zlib.crc32(checked[:-4], zlib.crc32(name)) != int.from_bytes(
                checked[-4:], "big"
            ):
                wrong.append((at, at + 12 + length))
        at += 12 + length
        stream.seek(at)
    stream.seek(0)
    if not wrong:
        return stream, ()
    data = bytearray(stream.read())
    for begin, end in reversed(wrong):
        del data[begin:end]
    return io.BytesIO(bytes(data)), (f"{len(wrong)} chunks of metadata are damaged and were left out",)


def grey_key(image: Image.Image, head: bytes) -> tuple[Pixels, Pixels] | None:
    """Greys (h, w, 1) and alpha (h, w) of a PNG of 1, 2 or 4 bits with a transparent grey (tRNS), or None.

    Pillow compares that grey, which counts in the file's bits, with greys that it has spread to eight.

    Args:
        image: as Pillow has loaded it.
        head: first bytes of the file.
    """
    key = image.info.get("transparency")
    bits = head[24] if len(head) > 25 else 8
    if head[25:26] != b"\0" or bits >= 8 or not isinstance(key, int):
        return None
    values = np.asarray(image.convert("L"))
    return values[:, :, None], np.where(values == key * 255 // ((1 << bits) - 1), 0, 255).astype(np.uint8)


def read_frames(data: bytes) -> Iterator[npt.NDArray[Any]]:
    """The frames of an animation, as they are shown.

    Yields:
        (height, width, 2 or 4) uint8 or uint16, the last channel alpha.

    Raises:
        ValueError: a frame does not lie in the picture, or is damaged.
    """
    canvas: npt.NDArray[Any] | None = None
    header = shared = control = b""
    parts: list[memoryview] = []
    for name, content in _chunks(data):
        if name == b"IHDR":
            header = bytes(content)
        elif name in (b"tRNS", b"PLTE"):
            shared += _chunk(name, content)
        elif name == b"IDAT" and control:  # before the first control, it is the still picture for older software
            parts.append(content)
        elif name == b"fdAT":
            parts.append(content[4:])
        elif name in (b"fcTL", b"IEND"):
            if parts:
                # Each frame is a whole PNG but for the header.
                still = _chunk(b"IHDR", control[4:12] + header[8:]) + shared + _chunk(b"IDAT", b"".join(parts))
                frame = _still(_SIGNATURE + still + _chunk(b"IEND", b""))
                if canvas is None:
                    width, height = struct.unpack(">II", header[:8])
                    canvas = np.zeros((height, width, frame.shape[2]), frame.dtype)
                shown, canvas = _drawn(canvas, frame, control)
                yield shown
            control, parts = bytes(content), []


def durations(data: bytes) -> list[float]:
    """Milliseconds of each frame of an animation."""
    found = []
    for name, content in _chunks(data):
        if name == b"fcTL" and len(content) >= 24:
            above, below = struct.unpack_from(">HH", content, 20)
            found.append(1000 * above / (below or 100))
    return found


def _still(data: bytes) -> npt.NDArray[Any]:
    """(height, width, 2 or 4) of a single picture, the last channel alpha."""
    if data[24] == 16:
        import imagecodecs

        found = imagecodecs.png_decode(data)
        found = found.reshape(*found.shape[:2], -1)
        if found.shape[2] in (1, 3):
            found = np.dstack([found, np.full(found.shape[:2], 65535, np.uint16)])
        return found
    with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
        image.load()
        keyed = grey_key(image, data[:32])
        if keyed is not None:
            return np.dstack(keyed)
        return np.asarray(image.convert("LA" if image.mode in ("1", "L", "LA") else "RGBA"))


def stated_profile(image: Image.Image, stream: BinaryIO) -> tuple[bytes | None, tuple[str, ...]]:
    """A profile for a PNG that states its colours in code points (cICP) or numbers (gAMA, cHRM), and notes.

    Args:
        image: as Pillow has opened it.
        stream: the file; its position is changed.
    """
    stream.seek(0)
    head = stream.read(1 << 16)
    at = head.find(b"cICP") + 4
    if 8 <= at < head.find(b"IDAT"):
        return colour.profile_of_code_points(head[at], head[at + 1])
    gamma = image.info.get("gamma")
    if "srgb" in image.info or not gamma:
        return None, ()
    if image.mode in ("1", "L", "LA", "I;16"):  # chromaticities say nothing of greys
        return colour.grey_profile_of_number(1 / gamma), ()
    return colour.profile_of_numbers(image.info.get("chromaticity"), 1 / gamma), ()


def _drawn(
    canvas: npt.NDArray[Any], frame: npt.NDArray[Any], control: bytes
) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """A canvas once a frame is drawn as its fcTL chunk says, and the canvas for the next."""
    left, top, dispose, blend = struct.unpack(">12xII4xBB", control)
    height, width = frame.shape[:2]
    place = np.s_[top : top + height, left : left + width]
    below = canvas[place]
    if below.shape != frame.shape:
        raise ValueError("a frame does not lie in the picture")
    shown = canvas.copy()
    if blend == 0:
        shown[place] = frame
    else:
        top = np.iinfo(frame.dtype).max
        share, rest = frame[:, :, -1:] / top, below[:, :, -1:] / top  # (h, w, 1)
        rest = rest * (1 - share)
        mixed = (frame[:, :, :-1] * share + below[:, :, :-1] * rest) / np.maximum(share + rest, 1e-12)
        shown[place] = np.rint(np.concatenate([mixed, (share + rest) * top], axis=2))
    if dispose == 0:
        return shown, shown
    if dispose == 2:
        return shown, canvas
    after = shown.copy()
    after[place] = 0
    return shown, after


def _ancillary(meta: Metadata) -> Iterator[tuple[bytes, bytes]]:
    """Chunks for everything that is not pixels."""
    if meta.icc is not None:
        yield b"iCCP", b"ICC profile\0\0" + zlib.compress(meta.icc, 9)
    if meta.dpi is not None:
        horizontal, vertical = (round(value / 0.0254) for value in meta.dpi)
        yield b"pHYs", struct.pack(">IIB", horizontal, vertical, 1)
    if meta.exif is not None:
        yield b"eXIf", meta.exif
    if meta.xmp is not None:
        yield b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + meta.xmp
    texts = list(meta.text)
    if meta.iptc is not None:
        texts.append(("Raw profile type iptc", raw_profile(meta.iptc)))
    for key, value in texts:
        name = key.encode("latin-1", "replace").replace(b"\0", b" ").strip()[:79] or b"Comment"
        value = value.replace("\0", " ")
        try:
            plain = value.encode("latin-1")
        except UnicodeEncodeError:
            yield b"iTXt", name + b"\0\0\0\0\0" + value.encode("utf-8", "replace")
            continue
        yield (b"tEXt", name + b"\0" + plain) if len(plain) < 1000 else (b"zTXt", name + b"\0\0" + zlib.compress(plain))
