"""`python -m core` as people and programs use it."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
import termios
from pathlib import Path

import numpy as np
import pytest

from core.__main__ import main
from core.formats import READABLE
from core.worklist import RECORD
from tests.unit.pictures import (
    animated,
    corners,
    huge_png,
    opened,
    saved,
    with_everything,
)


def size_of(path: Path) -> tuple[int, int]:
    return opened(path.read_bytes()).size


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two pictures, one below, and something that is no picture."""
    root = tmp_path / "photos"
    (root / "below").mkdir(parents=True)
    (root / "a.png").write_bytes(saved(corners(), "PNG"))
    (root / "b.jpg").write_bytes(saved(corners(), "JPEG"))
    (root / "below/c.png").write_bytes(saved(corners(), "PNG"))
    (root / "notes.txt").write_text("no picture")
    return root


def test_one_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "photo.png"
    source.write_bytes(saved(corners(12, 20), "PNG"))
    assert main([str(source)]) == 0
    made = tmp_path / "photo-x2.png"
    assert size_of(made) == (40, 24)
    said = capsys.readouterr().out
    assert str(made) in said
    assert "compact-x2" in said
    assert " s" in said


@pytest.mark.parametrize(
    ("options", "name", "size"),
    [
        (["--scale", "1.5"], "photo-x1.5.png", (30, 18)),
        (["--scale", "5"], "photo-x5.png", (100, 60)),
        (["--width", "70"], "photo-70x.png", (70, 42)),
        (["--height", "30"], "photo-x30.png", (50, 30)),
        (["--width", "33", "--height", "40"], "photo-33x40.png", (33, 40)),
        (["--format", "webp"], "photo-x2.webp", (40, 24)),
    ],
)
def test_sizes_and_names(tmp_path: Path, options: list[str], name: str, size: tuple[int, int]) -> None:
    source = tmp_path / "photo.png"
    source.write_bytes(saved(corners(12, 20), "PNG"))
    assert main([str(source), *options]) == 0
    assert size_of(tmp_path / name) == size


def test_a_folder_then_resumed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(folder)]) == 0
    results = folder.with_name("photos-x2")
    assert sorted(path.name for path in results.rglob("[!.]*.*")) == ["a-x2.png", "b-x2.jpg"]
    capsys.readouterr()
    assert main([str(folder), "--recursive", "--json"]) == 0
    made = [json.loads(line)["output"] for line in capsys.readouterr().out.splitlines()]
    assert made == [str(results / "below/c-x2.png")], "finished files are skipped"
    os.utime(folder / "a.png", (2e9, 2e9))
    assert main([str(folder), "--json"]) == 0
    made = [json.loads(line)["output"] for line in capsys.readouterr().out.splitlines()]
    assert made == [str(results / "a-x2.png")], "a changed picture is made again"


def test_results_inside_the_folder_are_not_taken_for_pictures(folder: Path) -> None:
    out = folder / "out"
    for _ in range(2):
        assert main([str(folder), "--recursive", "-o", str(out)]) == 0
    assert sorted(path.name for path in out.rglob("[!.]*.*")) == ["a-x2.png", "b-x2.jpg", "c-x2.png"]


def test_same_names_in_one_format_do_not_overwrite_each_other(tmp_path: Path) -> None:
    root = tmp_path / "photos"
    root.mkdir()
    (root / "a.png").write_bytes(saved(corners(12, 20), "PNG"))
    (root / "a.jpg").write_bytes(saved(corners(8, 8), "JPEG"))
    assert main([str(root), "--format", "png"]) == 0
    sizes = {path.name: size_of(path) for path in (tmp_path / "photos-x2").glob("*.png")}
    assert sorted(sizes.values()) == [(16, 16), (40, 24)]


def test_standard_input_and_output() -> None:
    process = subprocess.run(
        [sys.executable, "-m", "core", "-", "--format", "png"],
        input=saved(corners(12, 20), "PNG"),
        capture_output=True,
        timeout=300,
        check=True,
    )
    assert opened(process.stdout).size == (40, 24)
    assert b"standard output" in process.stderr


def test_json_for_programs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good, bad = tmp_path / "good.png", tmp_path / "bad.png"
    good.write_bytes(saved(corners(12, 20), "PNG"))
    bad.write_text("text")
    assert main([str(good), str(bad), "--json"]) == 3
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert (first["width"], first["model"], first["degraded"]) == (40, "compact-x2", False)
    assert second["error"]["code"] == "unreadable_image"


def test_an_estimate_makes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "photo.png"
    source.write_bytes(saved(corners(120, 200), "PNG"))
    assert main([str(source), "--estimate", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["width"], told["height"], told["model"]) == (400, 240, "compact-x2")
    assert told["seconds"] > 0
    assert told["memory"] > 1e8
    assert told["measured"]
    assert list(tmp_path.iterdir()) == [source]


@pytest.mark.slow
def test_a_progress_bar_on_a_terminal_only(tmp_path: Path) -> None:
    source = tmp_path / "photo.png"
    # More than the half second after which there is a bar, on a fast machine, too.
    source.write_bytes(saved(np.tile(corners(100, 100), (6, 6, 1)), "PNG"))
    command = [sys.executable, "-m", "core", str(source), "--tile", "40"]
    plain = subprocess.run(command, capture_output=True, timeout=300, check=True)
    assert plain.stderr == b""
    terminal, child = pty.openpty()
    termios.tcsetwinsize(child, (24, 80))
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=child)
    os.close(child)
    shown = b""
    try:
        while chunk := os.read(terminal, 4096):
            shown += chunk
    except OSError:
        pass  # the other end of a terminal that was closed
    os.close(terminal)
    assert process.wait(timeout=300) == 0
    assert b"tile/s" in shown


@pytest.mark.parametrize(
    "arguments",
    [
        ["a.png", "--scale", "1"],
        ["a.png", "--scale", "9"],
        ["a.png", "--scale", "nan"],
        ["a.png", "--scale", "2", "--width", "100"],
        ["a.png", "--quality", "0"],
        ["a.png", "--exact", "--halo", "8"],
        ["-", "a.png"],
        ["a.png", "b.png", "-o", "-"],
    ],
)
def test_bad_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert len(said.splitlines()) == 1


def test_the_command_names_results_by_their_content(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "wrong.jpg").write_bytes(saved(corners(), "PNG"))
    (tmp_path / "moving.gif").write_bytes(animated("GIF"))
    (tmp_path / "photo.JPEG").write_bytes(saved(corners(), "JPEG"))
    out = tmp_path / "out"
    assert main([str(tmp_path), "--output", str(out), "--quiet"]) == 0
    assert {path.name for path in out.iterdir()} - {RECORD} == {"wrong-x2.png", "moving-x2.webp", "photo-x2.JPEG"}
    assert main([str(tmp_path), "--output", str(out)]) == 0
    assert "3 already finished" in capsys.readouterr().out


def test_options_of_the_command(tmp_path: Path) -> None:
    source = tmp_path / "in.jpg"
    source.write_bytes(with_everything(corners()))
    out = tmp_path / "out.jpg"
    assert main([str(source), "-o", str(out), "--quiet", "--drop-gps", "--keep-size"]) == 0
    found = opened(out.read_bytes())
    assert found.info["dpi"] == (600, 600)
    assert 0x8825 not in found.getexif()
    assert main([str(source), "-o", str(out), "--quiet", "--strip"]) == 0
    assert "exif" not in opened(out.read_bytes()).info


def test_names_cannot_steer_a_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = "a\x1b[31m\nerror: no\u202e.png"
    (tmp_path / name).write_bytes(b"broken")
    assert main([str(tmp_path / name)]) == 3
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert "\x1b" not in told
    assert "\u202e" not in told


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
        "huge": ([str(folder / "huge.png"), "--max-megapixels", "100"], 4),
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
        "good.png", "empty.jpg", "text.jpg", "cut.png", "huge.png", "good-x2.png", RECORD,
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
    assert [path.name for path in (tmp_path / "out").glob("*.png")] == ["b-x2.png"]
    assert capsys.readouterr().err.count("\n") == 1
