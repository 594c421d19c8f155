"""A result appears when it is complete, and nothing else is left or lost."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import pytest

import core
from core.formats import FORMATS
from core.worklist import RECORD
from tests.unit.pictures import corners, opened, saved


def one_line(error: BaseException) -> bool:
    text = str(error)
    return bool(text) and "\n" not in text and "Traceback" not in text


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
    assert sorted(path.name for path in tmp_path.iterdir()) == [RECORD, "in.bmp"]
