"""A run that was interrupted goes on where it was, and makes the same to the bit."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile

import core
from core import enlarge
from core.kept import FolderStore, KeptBands, kept_bands

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

#: A run of the command that gets a signal while it writes the so-many-th tile or directory of a TIFF.
STRUCK = """
import os, sys
from core import enlarge
from core.codecs import tiff_levels, tiff_write
import core.__main__ as command

enlarge.KEPT_WORK = 0
number, left = int(sys.argv[1]), [int(sys.argv[2])]

def struck(real):
    def call(*arguments):
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), number)
        return real(*arguments)
    return call

tiff_levels._packed, tiff_write._append = struck(tiff_levels._packed), struck(tiff_write._append)
sys.argv[1:] = sys.argv[3:]
command.run()
"""


def kept_in(folder: Path) -> list[int]:
    """The numbers of the bands in a folder that are of use."""
    found = KeptBands(FolderStore(folder))
    return [index for index in range(100) if found.load(index) is not None]


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
    return subprocess.run(command, cwd=ROOT, timeout=300, capture_output=True).returncode


@pytest.mark.slow
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
        assert kept_in(tmp_path / ".out.png.part") == list(range(band + 1))
    computed: list[tuple[int, int]] = []
    monkeypatch.setattr(enlarge, "KEPT_WORK", 0)
    core.upscale(source, options, output=target, progress=lambda done, total: computed.append((done, total)))
    assert computed[0][0] > 0, "it did not begin anew"
    assert target.read_bytes() == core.upscale(source, options).data
    left = {path.name for path in tmp_path.iterdir()} - {".upscale.jsonl"}
    assert left == {"in.tif", "out.png"}, "what the killed runs had begun to write is gone, too"


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL on Windows")
def test_a_pyramid_that_was_interrupted_is_whole_or_not_there(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the page's own tiles, in those of its smaller copy, and in the directories at the very end."""
    target = tmp_path / "out.tif"
    asked = [str(source), "-o", str(target), "--tile", "48", "--device", "cpu", "--model", "compact-x2", "--pyramid"]
    for kind, at in ((signal.SIGKILL, 2), (signal.SIGTERM, 3), (signal.SIGKILL, 5)):
        command = [sys.executable, "-c", STRUCK, str(int(kind)), str(at), *asked, "--quiet"]
        ended = subprocess.run(command, cwd=ROOT, timeout=120, capture_output=True)
        assert ended.returncode == -kind if kind is signal.SIGKILL else ended.returncode != 0, ended.stderr
        assert not target.exists()
        left = {path.name for path in tmp_path.iterdir() if path.is_file()} - {"in.tif", ".upscale.jsonl"}
        assert len(left) == (kind is signal.SIGKILL), (
            "what has no name yet stays of kill -9 alone, and only of the last"
        )
    monkeypatch.setattr(enlarge, "KEPT_WORK", 0)
    assert made(source, target, pyramid=True)[0] > 0, "it did not begin anew"
    with tifffile.TiffFile(target) as file:
        assert [page.shape[:2] for page in file.pages] == [(460, 80), (230, 40)]
    assert made(source, tmp_path / "whole.tif", pyramid=True)
    assert target.read_bytes() == (tmp_path / "whole.tif").read_bytes()
    assert {path.name for path in tmp_path.iterdir()} - {".upscale.jsonl"} == {"in.tif", "out.tif", "whole.tif"}


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
    assert kept_in(tmp_path / ".out.tif.part")
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
        assert len(whole := kept_in(folder)) >= 2
        path = folder / "000001.band"
        data = bytearray(path.read_bytes())
        data[place] ^= 1
        path.write_bytes(data)
        assert kept_in(folder) == [index for index in whole if index != 1]
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
        assert kept_in(tmp_path / ".out.png.part") == [0]
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


class InMemory:
    """A store of bands, by key; `writes` are the names that were written, in order."""

    def __init__(self) -> None:
        self.all: dict[str, dict[str, bytes]] = {}
        self.writes: list[str] = []

    def open(self, key: str, _count: int) -> core.BandStore:
        kept, writes = self.all.setdefault(key, {}), self.writes

        class One:
            def names(self) -> list[str]:
                return list(kept)

            def read(self, name: str) -> bytes | None:
                return kept.get(name)

            def write(self, name: str, data: bytes) -> None:
                writes.append(name)
                kept[name] = data

        return One()


@pytest.mark.parametrize(("scale", "alpha"), [(2.0, True), (1.7, True), (1.7, False), (3.3, False)])
def test_parts_in_any_order_make_the_whole(
    scale: float, alpha: bool, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(enlarge, "KEPT_WORK", 0)
    if not alpha:
        tifffile.imwrite(source, tifffile.imread(source)[:, :, :3], rowsperstrip=16)
    options = core.Options(scale=scale, tile=32, device="cpu", model="compact-x2", format="tiff")
    expected = core.upscale(source, options).data
    store = InMemory()
    keeping = core.Keeping(store.open, "version")
    order = list(np.random.default_rng().permutation(3))
    for number in order:
        core.upscale_part(source, options, keeping, (int(number), 3), folder=tmp_path)
    made = list(store.writes)
    assert len(made) == len(set(made)) > 3
    if not alpha:
        monkeypatch.setattr("core.engine.run._infer", None)  # nothing is left for the network
    core.upscale(source, options, output=tmp_path / "out.tif", keeping=keeping)
    assert (tmp_path / "out.tif").read_bytes() == expected, order
    assert store.writes == made
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["in.tif", "out.tif"]


def test_what_is_missing_or_damaged_among_the_parts_is_made(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(enlarge, "KEPT_WORK", 0)
    options = core.Options(scale=1.7, tile=32, device="cpu", model="compact-x2", format="tiff")
    store = InMemory()
    keeping = core.Keeping(store.open, "version")
    core.upscale_part(source, options, keeping, (0, 1), folder=tmp_path)
    [kept] = store.all.values()
    names = sorted(kept)
    del kept[names[1]]
    kept[names[3]] = kept[names[3]][:-1]
    kept[names[4]] = kept[names[2]]  # another one
    store.writes.clear()
    seen: list[int] = []
    core.upscale(
        source, options, output=tmp_path / "out.tif", keeping=keeping, progress=lambda done, _: seen.append(done)
    )
    assert (tmp_path / "out.tif").read_bytes() == core.upscale(source, options).data
    assert store.writes == [names[1], names[3], names[4]]
    assert seen == sorted(seen)
    core.upscale(source, options, output=tmp_path / "out.tif", keeping=core.Keeping(store.open, "another version"))
    assert len(store.all) == 2, "bands of another version of the input are not looked at"


def test_a_store_that_says_so_ends_the_run(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(enlarge, "KEPT_WORK", 0)
    options = core.Options(tile=48, device="cpu", model="compact-x2", format="tiff")

    class Down:
        def names(self) -> list[str]:
            return ["000001.band"]

        def read(self, name: str) -> bytes | None:
            raise LookupError("the store failed")

        def write(self, name: str, data: bytes) -> None:
            pass

    with pytest.raises(LookupError, match="the store failed"):
        core.upscale(source, options, output=tmp_path / "out.tif", keeping=core.Keeping(lambda *_: Down(), "1"))
    assert [path.name for path in tmp_path.iterdir()] == ["in.tif"]


@pytest.mark.skipif(sys.platform == "win32", reason="there are no limits of resources on Windows")
def test_a_disk_that_fills_at_ninety_percent_leaves_bands_and_no_result(source: Path, tmp_path: Path) -> None:
    """The limit of a file's size stands in for the end of the disk: bands have room, the whole result has not."""
    target = tmp_path / "out.png"
    asked = [str(source), "-o", str(target), "--tile", "48", "--device", "cpu", "--model", "compact-x2", "--quiet"]
    options = core.Options(tile=48, device="cpu", model="compact-x2", format="png")
    expected = core.upscale(source, options).data
    assert expected
    code = "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]),) * 2);"
    code += "from core import enlarge; import core.__main__ as command; enlarge.KEPT_WORK = 0;"
    code += "sys.exit(command.main(sys.argv[2:]))"

    def run(most: int) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", code, str(most), *asked], cwd=ROOT, timeout=300, capture_output=True, text=True
        )

    full = run(len(expected) * 9 // 10)
    assert full.returncode == 5, full.stderr
    assert "Traceback" not in full.stderr
    left = {path.name for path in tmp_path.iterdir()} - {".upscale.jsonl"}
    assert left == {".out.png.part", "in.tif"}
    kept = kept_in(tmp_path / ".out.png.part")
    assert len(kept) >= 2
    assert run(1 << 30).returncode == 0
    assert target.read_bytes() == expected
    assert not (tmp_path / ".out.png.part").exists()


def test_bands_do_not_take_the_room_of_the_result(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(enlarge, "KEPT_WORK", 0)
    pixels = 460 * 80
    target = tmp_path / "out.tif"
    interrupted(source, target, 8)
    there = sum(path.stat().st_size for path in (tmp_path / ".out.tif.part").iterdir())
    assert there > 0
    options = core.Options(tile=48, device="cpu", model="compact-x2")
    for free, noted in (
        (7 * pixels - there, False),
        (7 * pixels - there - 1, True),
    ):  # the result three bytes, bands four
        disk = shutil.disk_usage(tmp_path)._replace(free=free)
        with monkeypatch.context() as small:
            small.setattr(shutil, "disk_usage", lambda path, disk=disk: disk)  # stands in for a small disk
            seen: list[int] = []
            result = core.upscale(source, options, output=target, progress=lambda done, total: seen.append(done))  # noqa: B023
        assert any("bands were not kept" in note for note in result.notes) == noted
        assert seen[0] > 0, "what is kept already is used"
        assert sorted(path.name for path in tmp_path.iterdir()) == ["in.tif", "out.tif"]
        interrupted(source, target, 8)


@pytest.mark.parametrize("format", ["tiff", "png", "jpeg"])
def test_a_disk_that_fills_up(format: str, tmp_path: Path) -> None:
    """A real small disk: the result is estimated to fit, and does not."""
    values = np.random.default_rng(0).integers(0, 256, (400, 400, 3), np.uint8)
    tifffile.imwrite(tmp_path / "in.tif", values, photometric="rgb")
    options = core.Options(model="lanczos", format=format, quality=100 if format == "jpeg" else None)
    size = len(core.upscale(tmp_path / "in.tif", options).data or b"")
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size * 9 // 10}", "tmpfs", str(disk)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a small disk cannot be mounted: needs root")
    try:
        with pytest.raises(core.OutputError, match="No space left"):
            core.upscale(tmp_path / "in.tif", options, output=disk / "out")
        assert list(disk.iterdir()) == []
    finally:
        subprocess.run(["umount", str(disk)], check=True)
