"""Lanczos by strips equals Lanczos of the whole picture."""

import tracemalloc
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from core.pixels.resize import Rows, resize_rows


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
    assert peak < 2.5 * strip


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (7, 1)])
def test_tiny(size: tuple[int, int]) -> None:
    pixels = np.full((*size, 1), 0.5, np.float32)
    made = np.concatenate(list(resize_rows([pixels], *size, 3, 2)))
    assert made == pytest.approx(0.5)
