"""Transparency: the colour under it."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from core.pixels.alpha import extend_edges
from tests.unit.pictures import (
    Array,
)


def test_hidden_colour_is_that_of_the_neighbours() -> None:
    pixels = np.zeros((33, 47, 3), np.uint8)
    pixels[:, :20] = (250, 10, 90)
    alpha = np.zeros((33, 47), np.uint8)
    alpha[:, :20] = 255
    alpha[:, 20] = 1
    found = extend_edges(pixels, alpha)
    assert (found[:, :20] == (250, 10, 90)).all()
    assert (found[:, 20] == 0).all()  # visible, if barely: its own colour stays
    assert np.abs(found[:, 21:].astype(int) - (250, 10, 90)).max() <= 10
    assert extend_edges(pixels, np.full_like(alpha, 9)) is pixels
    assert extend_edges(pixels, np.zeros_like(alpha)) is pixels


def _pulled(colour: Array, weight: Array) -> Array:
    """The pyramid of hidden colours as its paper has it, all levels at once."""
    height, width = weight.shape[:2]
    if height == width == 1 or (weight == 1).all():
        return colour

    def halved(values: Array) -> Array:
        values = np.pad(values, ((0, height % 2), (0, width % 2), (0, 0)))
        return values[0::2, 0::2] + values[0::2, 1::2] + values[1::2, 0::2] + values[1::2, 1::2]

    below_weight = halved(weight)
    below = _pulled(halved(colour * weight) / np.maximum(below_weight, 1e-12), np.minimum(below_weight, 1))
    found: Array = colour * weight + below.repeat(2, axis=0).repeat(2, axis=1)[:height, :width] * (1 - weight)
    return found


@pytest.mark.parametrize("size", [(2, 1), (1, 9), (256, 5), (257, 40), (1025, 33), (601, 700)])
@pytest.mark.parametrize(("dtype", "channels"), [(np.uint8, 3), (np.uint16, 1)])
def test_hidden_colour_in_strips_is_that_of_the_whole(size: tuple[int, int], dtype: type, channels: int) -> None:
    generator, top = np.random.default_rng(size[0]), np.iinfo(dtype).max
    pixels = generator.integers(0, top + 1, (*size, channels), dtype)
    alpha = generator.choice(np.array([0, 0, 0, 1, top // 3, top], dtype), size)
    alpha[: size[0] // 2, size[1] // 3 :] = 0
    alpha[0, 0], alpha[-1, -1] = 5, 0
    weight = (alpha[:, :, None].astype(np.float32) / top).astype(np.float32)
    pulled: Array = np.rint(_pulled(pixels.astype(np.float32), weight)).astype(dtype)
    expected = np.where(alpha[:, :, None] == 0, pulled, pixels)
    assert np.array_equal(extend_edges(pixels, alpha), expected)


def test_hidden_colour_takes_little_memory() -> None:
    pixels, alpha = np.zeros((2000, 1500, 3), np.uint8), np.zeros((2000, 1500), np.uint8)
    alpha[::7, ::5] = 255
    tracemalloc.start()
    extend_edges(pixels, alpha)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak <= 20 * alpha.size  # bytes
