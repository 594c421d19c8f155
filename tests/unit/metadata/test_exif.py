"""EXIF blocks: true of the result, complete, and harmless when they are damaged."""

from __future__ import annotations

import contextlib
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import core
from core.codecs.read import decode
from core.formats import FORMATS
from core.metadata import exif, ifd
from core.metadata.carried import Metadata, exif_with_resolution
from core.metadata.exif import with_resolution
from core.metadata.ifd import read_block
from core.metadata.resolution import exif_dpi
from tests.unit.pictures import corners, full_exif, saved

ORDERS = ["<", ">"]


def fields(block: bytes) -> Image.Exif:
    """An EXIF block as Pillow reads it, which shares no code with ours."""
    found = Image.Exif()
    found.load(b"Exif\0\0" + block)
    return found


@pytest.mark.parametrize("order", ORDERS)
def test_a_block_becomes_true_of_the_result(order: str) -> None:
    before = full_exif(order)
    after = exif.corrected(before, 4000, 70_000)
    assert after is not None
    found = fields(after)
    assert found[0x0112] == 1
    assert found[0x010F] == "Maker"
    below = found.get_ifd(0x8769)
    assert (below[0xA002], below[0xA003]) == (4000, 70_000)
    assert below[0x829A] == 1 / 125
    assert found.get_ifd(0x8825)[2] == (48, 51, 30)
    # The thumbnail, which shows another picture, is gone, its bytes too.
    assert found.get_ifd(1) == {}
    assert b"\xff\xd8" in before
    assert b"\xff\xd8" not in after
    assert len(after) < len(before)


@pytest.mark.parametrize("order", ORDERS)
def test_nothing_moves_so_that_maker_notes_keep_their_offsets(order: str) -> None:
    before = full_exif(order)
    after = exif.corrected(before, 40, 24)
    assert after is not None
    for part in (b"MAKER NOTE" + bytes(range(30)), "Artist Näme".encode(), struct.pack(order + "II", 1, 125)):
        assert after.index(part) == before.index(part)


@pytest.mark.parametrize("order", ORDERS)
def test_the_place_can_be_left_out(order: str) -> None:
    after = exif.corrected(full_exif(order), 40, 24, drop_gps=True)
    assert after is not None
    found = fields(after)
    assert 0x8825 not in found
    assert found.get_ifd(0x8825) == {}
    assert struct.pack(order + "II", 48, 1) not in after
    assert b"2020:01:02" not in after
    assert found.get_ifd(0x8769)[0xA002] == 40
    assert found[0x010F] == "Maker"


@pytest.mark.parametrize("order", ORDERS)
def test_the_resolution_can_be_changed(order: str) -> None:
    after = exif.corrected(full_exif(order), 40, 24, dpi=(600.0, 450.5))
    assert after is not None
    assert (fields(after)[0x011A], fields(after)[0x011B]) == (600, 450.5)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_a_damaged_block_harms_nobody(data: st.DataObject) -> None:
    block = bytearray(full_exif(data.draw(st.sampled_from(ORDERS))))
    for _ in range(data.draw(st.integers(1, 8))):
        block[data.draw(st.integers(0, len(block) - 1))] = data.draw(st.integers(0, 255))
    cut = bytes(block[: data.draw(st.integers(0, len(block)))])
    after = exif.corrected(cut, 40, 24, (72.0, 72.0), True)
    assert after is None or len(after) <= len(cut)
    with contextlib.suppress(ValueError, struct.error):
        ifd.write_block(ifd.read_block(cut))
    exif_with_resolution(Metadata(exif=cut, dpi=(72.0, 72.0)))


def test_a_block_that_can_be_corrected_but_not_read() -> None:
    block = full_exif("<", orientation=1).replace(
        struct.pack("<HHI", 0x829A, 5, 1), struct.pack("<HHI", 0x829A, 5, 1 << 20)
    )
    for format in FORMATS:
        result = core.upscale(saved(corners(), "PNG", exif=block), core.Options(format=format))
        assert decode(result.data or b"").pixels.shape == (24, 40, 3)


def test_a_resolution_is_added_without_moving_anything() -> None:
    for order in ("<", ">"):
        block = full_exif(order, 6)
        after = with_resolution(block, (72.0, 96.0))
        assert exif_dpi(after) == (72.0, 96.0)
        assert after[8 : len(block)] == block[8:]  # the old directory is no longer pointed to
        before, found = read_block(block), read_block(after)
        assert found.subdirectories == before.subdirectories
        assert len(found.entries) == len(before.entries)
    assert with_resolution(b"damaged", (72.0, 72.0)) == b"damaged"
