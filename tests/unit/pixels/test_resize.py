"""Lanczos by strips equals Lanczos of the whole picture."""

import tracemalloc
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from core.pixels.resize import Rows, resize_rows, support_above


@settings(deadline=None, max_examples=60)
@given(
    st.integers(1, 120), st.integers(1, 40), st.floats(0.3, 1.9), st.integers(1, 50), st.sampled_from([1, 3]), st.data()
)
def test_strips_equal_the_whole(
    height: int, width: int, factor: float, strip: int, channels: int, data: st.DataObject
) -> None:
    out_height, out_width = max(1, round(height * factor)), max(1, round(width * factor))
    pixels = np.random.default_rng(0).random((height, width, channels), np.float32)
    strips = [pixels[y : y + strip] for y in range(0, height, strip)]
    made = np.concatenate(list(resize_rows(strips, height, width, out_height, out_width)))
    whole = np.stack(
        [
            np.asarray(Image.fromarray(pixels[:, :, c]).resize((out_width, out_height), Image.Resampling.LANCZOS))
            for c in range(channels)
        ],
        axis=-1,
    )
    assert made.shape == whole.shape
    assert np.abs(made - whole).max() < 1e-4


@given(st.integers(1, 300), st.floats(0.3, 4), st.integers(1, 150), st.sampled_from([np.uint8, np.float32]), st.data())
def test_bits_do_not_depend_on_strips_or_on_where_it_goes_on(
    height: int, factor: float, strip: int, dtype: type, data: st.DataObject
) -> None:
    """Black and white, where Pillow clips between its two passes."""
    out_height, out_width = max(1, round(height * factor)), max(1, round(9 * factor))
    pixels: Rows = np.random.default_rng(0).integers(0, 2, (height, 9, 3)).astype(dtype)
    pixels *= dtype(255) if dtype is np.uint8 else dtype(1)

    def made(start: int, rows: int) -> Rows:
        first = support_above(start, height, out_height)
        strips = (pixels[y : y + rows] for y in range(first, height, rows))
        return np.concatenate(list(resize_rows(strips, height, 9, out_height, out_width, start)))

    whole = made(0, height)
    assert np.array_equal(made(0, strip), whole)
    start = data.draw(st.integers(0, out_height - 1))
    assert np.array_equal(made(start, strip), whole[start:])


def test_rows_come_out_before_the_last_comes_in() -> None:
    pixels = np.zeros((1000, 4, 3), np.float32)
    given_rows = 0

    def strips() -> object:
        for y in range(0, 1000, 50):
            yield pixels[y : y + 50]
            if y == 500:
                assert given_rows > 200

    for rows in resize_rows(strips(), 1000, 4, 700, 3):  # type: ignore[arg-type]
        given_rows += len(rows)
    assert given_rows == 700


def test_memory_is_that_of_few_strips() -> None:
    """One strip of input, as much of output, and what the support needs beyond; whatever the height."""
    strip = 200 * 1000 * 3 * 4  # bytes

    def strips() -> Iterator[Rows]:
        for _ in range(20):
            yield np.zeros((200, 1000, 3), np.float32)

    tracemalloc.start()
    for rows in resize_rows(strips(), 4000, 1000, 3600, 900):
        del rows
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3.2 * strip  # one is being used, one waits, one is made


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (7, 1)])
def test_tiny(size: tuple[int, int]) -> None:
    pixels = np.full((*size, 1), 0.5, np.float32)
    made = np.concatenate(list(resize_rows([pixels], *size, 3, 2)))
    assert made == pytest.approx(0.5)
