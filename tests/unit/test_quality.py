"""The whole path on the benchmark pictures: our decoding, tiles and encoding, with figures as published."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.quality import by_bicubic, by_model, measure

SHARED = Path(__file__).parents[2] / "../shared"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (SHARED / "bench/Set5").is_dir(),
        reason="needs the benchmark pictures in ../shared/bench, which are not here",
    ),
]


@pytest.mark.parametrize(("name", "published"), [("Set5", 33.66), ("Set14", 30.24)])
def test_the_metric_gives_the_published_figure_of_bicubic(name: str, published: float) -> None:
    psnr, _, _ = measure(by_bicubic, SHARED / "bench" / name, 2, None)
    assert psnr == pytest.approx(published, abs=0.025)  # Y is not rounded here


@pytest.mark.parametrize(("name", "least"), [("Set5", 37.79), ("Set14", 33.25)])
def test_the_embedded_model(name: str, least: float) -> None:
    psnr, _, _ = measure(by_model("compact-x2"), SHARED / "bench" / name, 2, None)
    assert psnr >= least


@pytest.mark.skipif(not (SHARED / "models").is_dir(), reason="needs ../shared/models, which is not here")
@pytest.mark.parametrize(
    ("name", "least"), [("Set5", 38.1), ("Set14", 33.85)]
)  # 33.94 is published with "bridge" on Y, 0.09 more
def test_the_published_swin2sr(name: str, least: float) -> None:
    checkpoint = str(SHARED / "models/swin2SR-lightweight-x2-64")
    psnr, _, _ = measure(by_model(checkpoint), SHARED / "bench" / name, 2, None)
    assert psnr >= least
