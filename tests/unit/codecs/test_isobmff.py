"""AVIF and HEIF: crops, orientation, EXIF to the byte."""

from __future__ import annotations

import struct
from typing import Any

import imagecodecs
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import core
from core.codecs import isobmff
from core.codecs.read import decode
from tests.unit.pictures import XMP, corners, exif_block, full_exif, opened, saved


def avif(**options: Any) -> bytes:
    """A picture of 48x32 with next to no loss."""
    return saved(Image.fromarray(corners(32, 48)), "AVIF", quality=100, subsampling="4:4:4", **options)


def with_property(data: bytes, kind: bytes, content: bytes) -> bytes:
    """The same AVIF with one more property of its primary picture, and all offsets moved."""
    box = struct.pack(">I4s", len(content) + 8, kind) + content
    out = bytearray(data)
    at = out.index(b"ipma") - 4
    assert int.from_bytes(out[at + 12 : at + 16], "big") == 1  # one item
    number = out[at + 18]
    associations = at + 19
    (inside,) = struct.unpack_from(">I", out, out.index(b"ipco") - 4)
    begin = out.index(b"ipco") - 4
    count, position = 0, begin + 8
    while position < begin + inside:
        position += struct.unpack_from(">I", out, position)[0]
        count += 1
    out[associations + number : associations + number] = bytes([0x80 | (count + 1)])
    out[at + 18] = number + 1
    out[begin + inside : begin + inside] = box
    grown = len(box) + 1
    for name, more in ((b"ipma", 1), (b"ipco", len(box)), (b"iprp", grown), (b"meta", grown)):
        where = out.index(name) - 4
        struct.pack_into(">I", out, where, struct.unpack_from(">I", out, where)[0] + more)
    where = out.index(b"iloc") + 4
    assert out[where] == 0  # version
    assert out[where + 4] == 0x44
    assert out[where + 5] == 0
    (items,) = struct.unpack_from(">H", out, where + 6)
    place = where + 8
    for _ in range(items):
        (extents,) = struct.unpack_from(">H", out, place + 4)
        place += 6
        for _ in range(extents):
            struct.pack_into(">I", out, place, struct.unpack_from(">I", out, place)[0] + grown)
            place += 8
    return bytes(out)


def clap(left: int, top: int, width: int, height: int) -> bytes:
    """A crop of a picture of 48x32: its middle from the picture's middle, in halves."""
    across, down = 2 * left + width - 48, 2 * top + height - 32
    return struct.pack(">IIIIiIiI", width, 1, height, 1, across, 2, down, 2)


@pytest.mark.parametrize("place", [(0, 0, 24, 16), (8, 4, 20, 10), (7, 5, 21, 11), (47, 31, 1, 1)])
@pytest.mark.parametrize("bits", [8, 10])
def test_crops_are_followed(place: tuple[int, int, int, int], bits: int) -> None:
    left, top, width, height = place
    if bits == 8:
        data = avif()
    else:
        data = bytes(imagecodecs.avif_encode(corners(32, 48).astype(np.uint16) << 2, 100, bitspersample=10))
    data = with_property(data, b"clap", clap(*place))
    header, seen = core.probe(data), decode(data).pixels
    assert (header.width, header.height, header.bits) == (width, height, bits)
    wanted = corners(32, 48)[top : top + height, left : left + width]
    assert np.abs(seen / (1 if bits == 8 else 257) - wanted).max() <= 8


@pytest.mark.parametrize(("angle", "turns"), [(1, 1), (2, 2), (3, 3)])
def test_irot_turns_what_was_cropped_and_xmp_does_not(angle: int, turns: int) -> None:
    data = with_property(with_property(avif(), b"clap", clap(8, 4, 20, 10)), b"irot", bytes([angle]))
    seen = decode(data).pixels.astype(int)
    wanted = np.rot90(corners(32, 48)[4:14, 8:28], turns)  # counter-clockwise
    assert seen.shape == wanted.shape
    assert np.abs(seen - wanted).max() <= 8
    assert decode(avif(xmp=XMP)).pixels.shape == (32, 48, 3)


def test_exif_does_not_turn_an_avif() -> None:
    data = bytearray(avif(exif=exif_block(Orientation=6)))  # Pillow writes irot and takes the tag away
    assert decode(bytes(data)).pixels.shape == (48, 32, 3)
    plain = avif(exif=isobmff.reserved(full_exif("<", 6)))
    assert decode(isobmff.with_exif(plain, full_exif("<", 6))).pixels.shape == (32, 48, 3)


def test_exif_is_written_and_read_to_the_byte(lanczos: None) -> None:
    for order in ("<", ">"):
        block = full_exif(order, 6)
        result = core.upscale(saved(corners(), "JPEG", exif=b"Exif\0\0" + block), core.Options(format="avif"))
        as_jpeg = core.upscale(saved(corners(), "JPEG", exif=b"Exif\0\0" + block))
        found = decode(result.data or b"").meta.exif
        assert found == decode(as_jpeg.data or b"").meta.exif
        assert "Artist Näme".encode() in (found or b"")
        assert opened(result.data).size == (24, 40)


@given(st.binary(max_size=200))
def test_boxes_of_any_bytes(junk: bytes) -> None:
    isobmff.read(junk)
    isobmff.read(avif_once()[:300] + junk)


def avif_once() -> bytes:
    return _AVIF


_AVIF = avif()
