"""BMP of the kinds that Pillow does not read, written byte by byte."""

from __future__ import annotations

import struct

import numpy as np
import pytest

from core.codecs.read import decode
from tests.unit.pictures import Array


def bmp(
    data: bytes, width: int, height: int, bits: int, compression: int, masks: tuple[int, ...] = (), colours: bytes = b""
) -> bytes:
    """A file with a header of 40 bytes, or of 56 where there is a mask for alpha; rows from the bottom to the top."""
    size = 56 if len(masks) == 4 else 40
    info = struct.pack("<IiiHHIIiiII", size, width, height, 1, bits, compression, len(data), 2835, 2835, 0, 0)
    extra = struct.pack(f"<{len(masks)}I", *masks) + colours
    offset = 14 + len(info) + len(extra)
    return b"BM" + struct.pack("<IHHI", offset + len(data), 0, 0, offset) + info + extra + data


@pytest.mark.parametrize(
    "masks",
    [
        (0xF00, 0xF0, 0xF),
        (0xF00, 0xF0, 0xF, 0xF000),
        (0x7C00, 0x3E0, 0x1F),
        (0xF800, 0x7E0, 0x1F),
        (0x7C00, 0x3E0, 0x1F, 0x8000),
        (0xE0, 0x1C, 0x3),
    ],
)
def test_fields_of_few_bits_use_the_whole_range(masks: tuple[int, ...]) -> None:
    values = np.arange(12, dtype=np.uint32).reshape(3, 4) * 5461
    picture = decode(bmp(values.astype("<u2").tobytes(), 4, 3, 16, 3, masks))
    layers = [picture.pixels[:, :, at] for at in range(3)] + ([] if picture.alpha is None else [picture.alpha])
    assert len(layers) == len(masks)
    for mask, layer in zip(masks, layers, strict=True):
        low = (mask & -mask).bit_length() - 1
        assert np.array_equal(layer[::-1], np.rint(((values & mask) >> low) * (255 / (mask >> low))))


def test_alpha_that_is_zero_everywhere_is_none() -> None:
    values = np.full((3, 4), 0x00C86432, "<u4")
    picture = decode(bmp(values.tobytes(), 4, 3, 32, 3, (0xFF0000, 0xFF00, 0xFF, 0xFF000000)))
    assert picture.alpha is None
    assert (picture.pixels == (200, 100, 50)).all()


GREYS = b"".join(bytes([17 * at, 17 * at, 17 * at, 0]) for at in range(16))


def seen(data: bytes, width: int, height: int, bits: int) -> Array:
    """Indices, from the bottom to the top."""
    greys = GREYS + bytes(4 * 240) if bits == 8 else GREYS
    found: Array = decode(bmp(data, width, height, bits, 2 if bits == 4 else 1, (), greys)).pixels[::-1, :, 0] // 17
    return found


def test_runs_of_four_bits() -> None:
    odd = bytes([5, 0x12, 4, 0x66, 0, 0])  # five pixels in turns, then four
    assert seen(odd + b"\0\1", 9, 1, 4).tolist() == [[1, 2, 1, 2, 1, 6, 6, 6, 6]]
    over = bytes([0, 10, 0x12, 0x34, 0x56, 0x78, 0x9A, 0, 0, 0])  # ten single pixels in a row of nine
    assert seen(over + over + b"\0\1", 9, 2, 4).tolist() == [[1, 2, 3, 4, 5, 6, 7, 8, 9]] * 2
    long = bytes([20, 0x12, 0, 0])
    assert seen(long + b"\0\1", 3, 1, 4).tolist() == [[1, 2, 1]]


def test_runs_of_eight_bits_and_jumps() -> None:
    data = bytes([2, 7, 0, 2, 1, 1, 3, 9, 0, 0, 0, 3, 4, 5, 6, 0, 0, 1])
    assert seen(data, 6, 3, 8).tolist() == [[7, 7, 0, 0, 0, 0], [0, 0, 0, 9, 9, 9], [4, 5, 6, 0, 0, 0]]


def test_runs_that_end_too_early_leave_the_first_colour() -> None:
    assert seen(bytes([2, 7]), 4, 2, 8).tolist() == [[7, 7, 0, 0], [0, 0, 0, 0]]
