"""A run that was interrupted goes on where it was, and makes the same to the bit."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile

import core
from core import enlarge
from core.kept import KeptBands, kept_bands

ROOT = Path(__file__).parents[2]
#: A run of the command that ends, as by kill -9, when so many bands are kept.
KILLED = """
import os, signal, sys
from core import enlarge, kept
import core.__main__ as command

enlarge.KEPT_WORK = 0
save = kept.KeptBands.save

def dying(self, index, band):
    save(self, index, band)
    if index == int(sys.argv[1]):
        os.kill(os.getpid(), signal.SIGKILL)

kept.KeptBands.save = dying
sys.exit(command.main(sys.argv[2:]))
"""


@pytest.fixture
def source(tmp_path: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (230, 40, 4), np.uint8)
    pixels[:90, :, 3] = 255
    pixels[150:, 10:, 3] = 0
    path = tmp_path / "in.tif"
    tifffile.imwrite(path, pixels, photometric="rgb", extrasamples=["unassalpha"], rowsperstrip=16)
    return path


def killed_at(band: int, *arguments: str) -> int:
    command = [sys.executable, "-c", KILLED, str(band), *arguments, "--quiet"]
    return subprocess.run(command, cwd=ROOT, timeout=120, capture_output=True).returncode


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL on Windows")
@pytest.mark.parametrize("scale", ["2", "1.7"])
def test_killed_at_random_bands(scale: str, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = core.Options(scale=float(scale), tile=48, device="cpu", model="compact-x2", format="png")
    target = tmp_path / "out.png"
    asked = [str(source), "-o", str(target), "--scale", scale, "--tile", "48", "--device", "cpu"]
    asked += ["--model", "compact-x2"]
    for band in sorted(np.random.default_rng().choice(4, 2, replace=False)):
        assert killed_at(int(band), *asked) == -signal.SIGKILL
        assert not target.exists()
        assert KeptBands(tmp_path / ".out.png.part").count == band + 1
    computed: list[tuple[int, int]] = []
    monkeypatch.setattr(enlarge, "KEPT_WORK", 0)
    core.upscale(source, options, output=target, progress=lambda done, total: computed.append((done, total)))
    assert computed[0][0] > 0, "it did not begin anew"
    assert target.read_bytes() == core.upscale(source, options).data
    left = {path.name for path in tmp_path.iterdir()} - {".upscale.jsonl"}
    assert left == {"in.tif", "out.png"}, "what the killed runs had begun to write is gone, too"


def made(source: Path, target: Path, **options: object) -> list[int]:
    """Upscale; the tiles that were done when it began."""
    seen: list[int] = []
    asked = core.Options(**{"tile": 48, "device": "cpu", "model": "compact-x2", **options})  # type: ignore[arg-type]
    core.upscale(source, asked, output=target, progress=lambda done, total: seen.append(done))
    return seen


class _Stopped(core.Cancelled):
    pass


def interrupted(source: Path, target: Path, after: int) -> None:
    def stop(done: int, total: int) -> None:
        if done >= after:
            raise _Stopped("stopped")

    with pytest.raises(_Stopped):
        core.upscale(source, core.Options(tile=48, device="cpu", model="compact-x2"), output=target, progress=stop)


def test_what_was_kept_is_for_the_same_input_and_options(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(enlarge, "KEPT_WORK", 0)
    target = tmp_path / "out.tif"
    interrupted(source, target, 5)
    assert KeptBands(tmp_path / ".out.tif.part").count > 0
    assert made(source, target, scale=3)[0] == 0
    interrupted(source, target, 5)
    os.utime(source, ns=(1, 1))
    assert made(source, target)[0] == 0
    interrupted(source, target, 5)
    assert made(source, target)[0] > 0
    assert not (tmp_path / ".out.tif.part").exists()


def test_a_damaged_band_is_made_again(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(enlarge, "KEPT_WORK", 0)
    target = tmp_path / "out.tif"
    expected = core.upscale(source, core.Options(tile=48, device="cpu", model="compact-x2")).data
    for place in (2, 30, -1):
        interrupted(source, target, 8)
        folder = tmp_path / ".out.tif.part"
        assert KeptBands(folder).count >= 2
        path = folder / "000001.band"
        data = bytearray(path.read_bytes())
        data[place] ^= 1
        path.write_bytes(data)
        assert KeptBands(folder).count == 1
        made(source, target)
        assert target.read_bytes() == expected
        target.unlink()


def test_nothing_of_others_is_removed(tmp_path: Path) -> None:
    folder = tmp_path / ".out.png.part"
    folder.mkdir()
    (folder / "letter.txt").write_text("mine")
    with kept_bands(tmp_path / "out.png", "key") as bands:
        assert bands is not None
        bands.save(0, np.zeros((2, 3, 3), np.uint8))
    assert [path.name for path in folder.iterdir()] == ["letter.txt"]


def test_two_runs_for_one_result(tmp_path: Path) -> None:
    with kept_bands(tmp_path / "out.png", "key") as first:
        assert first is not None
        first.save(0, np.zeros((2, 3, 3), np.uint8))
        with kept_bands(tmp_path / "out.png", "key") as second:
            assert second is None
        assert KeptBands(tmp_path / ".out.png.part").count == 1
    assert list(tmp_path.iterdir()) == []


def test_a_picture_that_is_at_fault_leaves_nothing(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(enlarge, "KEPT_WORK", 0)
    source.write_bytes(source.read_bytes()[:-9000])
    with pytest.raises(core.UnreadableImage):
        made(source, tmp_path / "out.tif")
    assert [path.name for path in tmp_path.iterdir()] == ["in.tif"]


def test_a_full_disk_only_ends_the_keeping(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(enlarge, "KEPT_WORK", 0)

    def full(path: Path, data: bytes) -> None:
        if path.suffix == ".band":
            raise OSError(28, "No space left on device")  # stands in for a full disk
        path.write_bytes(data)

    monkeypatch.setattr("core.kept._write", full)
    made(source, tmp_path / "out.tif")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.tif", "out.tif"]
