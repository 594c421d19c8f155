"""Files that are broken, lie or are too large: one line and an exit code, never a traceback or half a result."""

from __future__ import annotations

import io
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

import core
from core.__main__ import main
from core.codecs.read import decode
from core.formats import FORMATS, READABLE
from core.limits import check_output_size
from tests.unit.pictures import corners, huge_png, opened, saved

PILLOW = {"jpeg": "JPEG", "png": "PNG", "webp": "WEBP", "tiff": "TIFF", "bmp": "BMP"}


def one_line(error: BaseException) -> bool:
    text = str(error)
    return bool(text) and "\n" not in text and "Traceback" not in text


@pytest.mark.parametrize(
    "data",
    [b"", b"\0", b"hello, this is text", b"GIF89a", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"II*\0", b"RIFF", b"BM"],
)
def test_not_a_picture(data: bytes) -> None:
    for call in (core.probe, decode, core.upscale):
        with pytest.raises(core.UnreadableImage) as caught:
            call(data)
        assert one_line(caught.value)


@pytest.mark.parametrize("format", list(PILLOW))
def test_truncated_files_are_refused(format: str) -> None:
    data = saved(corners(40, 60), PILLOW[format])
    with pytest.raises(core.UnreadableImage) as caught:
        core.upscale(data[: len(data) * 2 // 3])
    assert one_line(caught.value)


def test_a_huge_picture_is_refused_before_decoding() -> None:
    data = huge_png()
    assert len(data) < 120_000
    for call in (core.probe, decode, core.upscale):
        with pytest.raises(core.TooLarge, match="50000x50000"):
            call(data)


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


def test_an_output_that_cannot_be_written(tmp_path: Path) -> None:
    data = saved(corners(), "PNG")
    with pytest.raises(core.OutputError) as caught:
        core.upscale(data, output=tmp_path / "missing" / "out.png")
    assert one_line(caught.value)
    with pytest.raises(core.OutputError):
        core.upscale(data, output=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_failure_leaves_the_old_result_and_no_part(tmp_path: Path) -> None:
    target = tmp_path / "out.png"
    target.write_bytes(b"old")

    def stop(done: int, total: int) -> None:
        raise core.Cancelled("stop")

    with pytest.raises(core.Cancelled):
        core.upscale(saved(corners(), "PNG"), output=target, progress=stop)
    with pytest.raises(core.UnreadableImage):
        core.upscale(saved(corners(), "PNG")[:-60], output=target)
    assert [path.name for path in tmp_path.iterdir()] == ["out.png"]
    assert target.read_bytes() == b"old"


def test_a_link_is_followed_not_replaced(tmp_path: Path) -> None:
    target, link = tmp_path / "real.png", tmp_path / "link.png"
    target.write_bytes(b"old")
    link.symlink_to(target)
    core.upscale(saved(corners(), "PNG"), output=link)
    assert link.is_symlink()
    assert opened(target.read_bytes()).size == (40, 24)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
@pytest.mark.parametrize("format", list(FORMATS))
def test_a_full_disk(format: str) -> None:
    before = Path("/dev/full").stat()
    with pytest.raises(core.OutputError, match="No space left") as caught:
        core.upscale(saved(corners(60, 60), "PNG"), core.Options(format=format), output="/dev/full")
    assert one_line(caught.value)
    assert Path("/dev/full").stat().st_rdev == before.st_rdev  # the device was not replaced by a file


def test_a_disk_that_becomes_full_leaves_no_part(tmp_path: Path) -> None:
    source = tmp_path / "in.bmp"
    source.write_bytes(saved(corners(100, 100), "BMP"))
    run = subprocess.run(
        [sys.executable, "-m", "core", str(source), "--quiet"],
        capture_output=True,
        text=True,
        # Larger files than this fail with an OSError while they are written, as on a full disk.
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000)),
    )
    assert run.returncode == 5, run.stderr
    assert run.stderr.count("\n") == 1
    assert "Traceback" not in run.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["in.bmp"]


def cases(folder: Path) -> dict[str, tuple[list[str], int]]:
    good = folder / "good.png"
    good.write_bytes(saved(corners(), "PNG"))
    for name, data in {
        "empty.jpg": b"",
        "text.jpg": b"this is no picture\n" * 10,
        "cut.png": saved(corners(), "PNG")[:-60],
        "huge.png": huge_png(),
    }.items():
        (folder / name).write_bytes(data)
    return {
        "good": ([str(good), "--quiet"], 0),
        "bad option": ([str(good), "--scale", "99"], 2),
        "missing": ([str(folder / "nothing.png")], 3),
        "empty": ([str(folder / "empty.jpg")], 3),
        "text": ([str(folder / "text.jpg")], 3),
        "cut": ([str(folder / "cut.png")], 3),
        "huge": ([str(folder / "huge.png")], 4),
        "unwritable": ([str(good), "--output", str(good / "below.png")], 5),
    }


def test_exit_codes_are_distinct(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, (arguments, code) in cases(tmp_path).items():
        assert main(arguments) == code, name
        told = capsys.readouterr()
        assert told.out == ""
        assert told.err.count("\n") == (0 if code == 0 else 1), name
        assert "Traceback" not in told.err
    assert {path.name for path in tmp_path.iterdir()} == {
        "good.png", "empty.jpg", "text.jpg", "cut.png", "huge.png", "good-x2.png",
    }  # fmt: skip


def test_the_command_itself(tmp_path: Path) -> None:
    path = tmp_path / "text.jpg"
    path.write_bytes(b"no picture")
    run = subprocess.run([sys.executable, "-m", "core", str(path)], capture_output=True, text=True)
    assert (run.returncode, run.stdout) == (3, "")
    assert run.stderr == f"error: {path}: not a picture that can be read: give {READABLE}\n"


def test_one_bad_file_does_not_stop_the_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a.png").write_bytes(b"broken")
    (folder / "b.png").write_bytes(saved(corners(), "PNG"))
    assert main([str(folder), "--quiet", "--output", str(tmp_path / "out")]) == 3
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["b-x2.png"]
    assert capsys.readouterr().err.count("\n") == 1
