"""Resolution and printed size."""

from __future__ import annotations

import io

import pytest

import core
from core.codecs.read import decode
from core.formats import FORMATS
from core.metadata.resolution import valid_dpi
from tests.unit.pictures import corners, with_everything


def test_printed_size_can_be_kept() -> None:
    data = with_everything(corners(12, 20))
    for format in FORMATS:
        for options, wanted in (
            (core.Options(scale=3, format=format), 300),
            (core.Options(scale=3, format=format, keep_size=True), 900),
        ):
            picture = decode(io.BytesIO(core.upscale(data, options).data or b""))
            assert picture.meta.dpi is not None
            assert round(picture.meta.dpi[0]) == round(picture.meta.dpi[1]) == wanted, format


@pytest.mark.parametrize("dpi", [(0, 0), (-1, 5), (float("nan"), 1), ("x", "y"), None, 3, (1,), (1e9, 1e9)])
def test_resolutions_that_make_no_sense(dpi: object) -> None:
    assert valid_dpi(dpi) is None
