"""Directories: read and written alike, and harmless when they are damaged."""

from __future__ import annotations

import io
import struct

import pytest

from core.metadata import exif, ifd
from tests.unit.metadata.test_exif import ORDERS, fields
from tests.unit.pictures import full_exif


@pytest.mark.parametrize("order", ORDERS)
def test_a_block_survives_being_read_and_written(order: str) -> None:
    directory = ifd.read_block(full_exif(order))
    again = fields(ifd.write_block(directory))
    before = fields(full_exif(order))
    assert dict(again) | {0x8769: 0, 0x8825: 0} == dict(before) | {0x8769: 0, 0x8825: 0}
    for pointer in (0x8769, 0x8825):
        assert again.get_ifd(pointer) == before.get_ifd(pointer)


def test_offsets_beyond_all_numbers() -> None:
    for kind, number in ((4, 4), (5, 2), (1, 60)):  # a pointer of more than 64 bits
        block = b"II*\0" + struct.pack("<IH", 8, 1) + struct.pack("<HHII", 0x8825, kind, number, 26) + bytes(4)
        block += b"\xff" * 64
        with pytest.raises(ValueError, match="outside"):
            ifd.read_block(block)
    big = struct.pack("<QHHQQ", 1, 270, 2, 100, 1 << 63)
    with pytest.raises(ValueError, match="outside"):
        ifd.read_tiff(io.BytesIO(bytes(8) + big), 8, "<", True)
    with pytest.raises(ValueError, match="outside"):
        ifd.read_tiff(io.BytesIO(bytes(8)), 1 << 63, "<", True)


def test_directories_in_a_circle_end() -> None:
    entry = struct.pack("<HHII", 0x8769, 4, 1, 8)
    block = b"II*\0" + struct.pack("<IH", 8, 3) + entry * 3 + struct.pack("<I", 8)
    assert ifd.read_block(block).subdirectories[0x8769].subdirectories[0x8769].subdirectories == {}
    exif.corrected(block, 1, 1, None, True)


def test_many_pointers_to_large_directories_take_no_time() -> None:
    entry = struct.pack("<HHII", 0x8769, 4, 1, 8)
    block = b"II*\0" + struct.pack("<IH", 8, 1000) + entry * 1000 + bytes(4)
    ifd.read_block(block)
    exif.corrected(block, 1, 1, None, True)
