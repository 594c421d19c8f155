"""HEIC and HEIF."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

import core
from core.codecs.read import decode
from tests.unit.pictures import (
    corners,
    exif_block,
    saved,
    turned,
)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_of_avif_and_heif(orientation: int) -> None:
    pillow_heif = pytest.importorskip("pillow_heif", reason="pillow-heif is not installed: no HEIC to read")
    stored = Image.fromarray(turned(corners(48, 80), orientation))
    block = exif_block(Orientation=orientation)
    heif = io.BytesIO()
    file = pillow_heif.from_pillow(stored)
    file.info["exif"] = block
    file.save(heif, quality=90)
    for data in (saved(stored, "AVIF", exif=block, quality=95), heif.getvalue()):
        header = core.probe(data)
        assert (header.width, header.height) == (80, 48)
        picture = decode(data)
        assert np.abs(picture.pixels.astype(int) - corners(48, 80)).mean() < 4
        assert picture.pixels.shape == (48, 80, 3)
