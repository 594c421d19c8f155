"""What is too large is refused before the work."""

from __future__ import annotations

import io
import shutil
from pathlib import Path

import pytest
from PIL import Image

import core
from core.codecs.read import decode
from core.limits import check_output_size
from tests.unit.pictures import corners, huge_png, saved


def test_a_huge_picture_is_refused_before_decoding() -> None:
    data = huge_png()
    assert len(data) < 120_000
    for call in (core.probe, decode, core.upscale):
        with pytest.raises(core.TooLarge, match="50000x50000"):
            call(data, limits=core.Limits(input_pixels=250_000_000))


def test_only_what_memory_has_to_hold_is_limited() -> None:
    assert core.probe(huge_png()).streams
    with pytest.raises(core.TooLarge, match="held in memory"):
        decode(huge_png())
    with pytest.raises(core.TooLarge, match="100000x100000"):  # the result would be bytes in memory
        core.upscale(huge_png())
    for format in ("GIF", "WEBP"):
        data = saved(Image.new("L", (400, 300)), format)
        with pytest.raises(core.TooLarge, match="held in memory"):
            core.probe(data, core.Limits(held_pixels=400 * 300 - 1))
    with pytest.raises(core.TooLarge, match="choose tiff"):
        check_output_size("webp", 10_000, 10_001, core.Limits(held_pixels=25_000_000))
    check_output_size("png", 10_000, 10_001, core.Limits(held_pixels=25_000_000))


def test_limits() -> None:
    data = saved(corners(), "PNG")
    with pytest.raises(core.TooLarge, match="bytes"):
        core.upscale(data, limits=core.Limits(input_bytes=len(data) - 1))
    with pytest.raises(core.TooLarge, match="megapixels"):
        core.upscale(data, limits=core.Limits(input_pixels=12 * 20 - 1))
    with pytest.raises(core.TooLarge, match="result"):
        core.upscale(data, limits=core.Limits(output_pixels=24 * 40 - 1))
    exact = core.Limits(input_bytes=len(data), input_pixels=12 * 20, output_pixels=24 * 40)
    assert core.upscale(data, limits=exact).width == 40


def test_a_stream_without_an_end_is_cut_at_the_limit() -> None:
    class Endless(io.RawIOBase):
        taken = 0

        def readable(self) -> bool:
            return True

        def read(self, size: int = -1) -> bytes:
            assert size >= 0, "asked for everything"
            self.taken += size
            return bytes(size)

    source = Endless()
    with pytest.raises(core.TooLarge):
        core.probe(source, core.Limits(input_bytes=1000))  # type: ignore[arg-type]
    assert source.taken <= 1001


@pytest.mark.parametrize(("format", "side"), [("webp", 16_383), ("jpeg", 65_535)])
def test_format_limits_come_before_the_work(format: str, side: int) -> None:
    width = side // 2 + 1
    data = saved(Image.new("L", (width, 1)), "PNG")

    def worked(done: int, total: int) -> None:
        raise AssertionError("work was begun")

    with pytest.raises(core.OptionsError, match="png or tiff"):
        core.upscale(data, core.Options(format=format), progress=worked)


def test_bmp_holds_four_gigabytes() -> None:
    check_output_size("bmp", 37_000, 37_000, core.Limits(output_pixels=1 << 40))
    with pytest.raises(core.OptionsError, match="png or tiff"):
        check_output_size("bmp", 38_000, 38_000, core.Limits(output_pixels=1 << 40))


def test_room_on_the_disk_comes_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def worked(done: int, total: int) -> None:
        raise AssertionError("work was begun")

    full = shutil.disk_usage(tmp_path)._replace(free=10)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: full)  # stands in for a full disk
    with pytest.raises(core.OutputError, match="free in"):
        core.upscale(saved(corners(), "PNG"), output=tmp_path / "out.png", progress=worked)
    assert list(tmp_path.iterdir()) == []
