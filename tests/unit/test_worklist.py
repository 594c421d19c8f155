"""No result is lost, nobody's file is overwritten, and what is finished is known by its source and its options."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from core.__main__ import EXIT_OK, EXIT_USAGE, main
from core.options import Options
from core.worklist import RECORD, UsageError, plan
from tests.unit.pictures import corners, exif_block, opened, saved

#: What becomes of files is tried here, not what a network makes of them.
pytestmark = pytest.mark.usefixtures("lanczos")
PNG = saved(corners(6, 8), "PNG")


def make(root: Path, *names: str, data: bytes = PNG) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)


def tree(root: Path) -> list[str]:
    """All files but the records, relative."""
    files = (path for path in root.rglob("*") if path.is_file() and path.name != RECORD)
    return sorted(str(path.relative_to(root)) for path in files)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_one_result_for_each_input_of_one_name(here: Path) -> None:
    make(here, "d0/a.png", "d1/a.png", "d2/a.png", "d3/A.png", "d3/a.jpg.png")
    assert main(["d0/a.png", "d1/a.png", "d2/a.png", "d3/A.png", "d3/a.jpg.png", "-o", "out"]) == EXIT_OK
    assert len(tree(here / "out")) == 5
    names = [name.casefold() for name in tree(here / "out")]
    assert len(set(names)) == 5, "also where a file system does not tell A from a"


def test_several_folders_into_one(here: Path) -> None:
    make(here, "100/IMG_1.png", "101/IMG_1.png", "101/below/IMG_1.png")
    assert main(["100", "101", "-r", "-o", "all"]) == EXIT_OK
    assert len(tree(here / "all")) == 3


def test_another_sources_result_is_not_taken_for_finished(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make(here, "100/IMG_1.png", "101/IMG_1.png")
    assert main(["100", "-o", "dcim"]) == EXIT_OK
    before = (here / "dcim/IMG_1-x2.png").stat().st_mtime_ns
    assert main(["101", "-o", "dcim"]) == EXIT_USAGE
    assert "100" in capsys.readouterr().err
    assert (here / "dcim/IMG_1-x2.png").stat().st_mtime_ns == before
    assert main(["101", "-o", "dcim", "--overwrite"]) == EXIT_OK


def test_finished_is_known_by_source_and_options(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make(here, "p/a.png", data=saved(corners(6, 8), "PNG", exif=exif_block()))
    assert main(["p"]) == EXIT_OK
    assert "exif" in opened((here / "p-x2/a-x2.png").read_bytes()).info
    assert main(["p", "--strip"]) == EXIT_OK
    assert "exif" not in opened((here / "p-x2/a-x2.png").read_bytes()).info, "done again, since it holds too much"
    capsys.readouterr()
    assert main(["p", "--strip"]) == EXIT_OK
    assert "1 already finished" in capsys.readouterr().out
    make(here, "p/a.png", data=saved(corners(8, 8), "PNG"))
    assert main(["p", "--strip"]) == EXIT_OK
    assert opened((here / "p-x2/a-x2.png").read_bytes()).size == (16, 16), "the source has changed"


@pytest.mark.parametrize("output", ["a.png", "./a.png", "other.png", "sub/../a.png"])
def test_no_original_is_overwritten(here: Path, output: str, capsys: pytest.CaptureFixture[str]) -> None:
    make(here, "a.png", "other.png", "sub/x.txt")
    assert main(["a.png", "-o", output]) == EXIT_USAGE
    assert "--overwrite" in capsys.readouterr().err
    assert (here / output).read_bytes() == PNG
    assert main(["a.png", "-o", output, "--overwrite"]) == EXIT_OK
    assert opened((here / output).read_bytes()).size == (16, 12)


def test_a_result_that_somebody_edited_is_no_longer_ours(here: Path) -> None:
    make(here, "a.png")
    assert main(["a.png"]) == EXIT_OK
    assert main(["a.png"]) == EXIT_OK, "our own result may be made again"
    make(here, "a-x2.png", data=b"hours of retouching")
    assert main(["a.png"]) == EXIT_USAGE
    assert (here / "a-x2.png").read_bytes() == b"hours of retouching"


def test_an_earlier_versions_results_are_not_overwritten_in_silence(here: Path) -> None:
    make(here, "p/a.png", "p-x2/a-x2.png")
    assert main(["p"]) == EXIT_USAGE
    assert (here / "p-x2/a-x2.png").read_bytes() == PNG


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["w/photos", "-o", "w"], ["photos/a.png", "a-x2.png"]),
        (["w/photos", "-o", "w/photos"], ["photos/a.png", "photos/a-x2.png"]),
        (["w/photos", "-r", "-o", "w/photos/deep/out"], ["photos/a.png", "photos/deep/out/a-x2.png"]),
        (["w", "-r", "-o", "w"], ["photos/a.png", "photos/a-x2.png"]),
        (["w/photos"], ["photos/a.png", "photos-x2/a-x2.png"]),
    ],
)
def test_output_above_in_and_below_the_input(here: Path, arguments: list[str], expected: list[str]) -> None:
    make(here, "w/photos/a.png")
    for _ in range(3):
        assert main(arguments) == EXIT_OK
        assert tree(here / "w") == sorted(expected), "results are not inputs"


def test_the_folder_where_one_is(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(here, "photos/a.png")
    monkeypatch.chdir(here / "photos")
    assert main(["."]) == EXIT_OK
    assert main([str(here / "photos"), "./a.png", "-o", "../all"]) == EXIT_OK
    assert tree(here) == ["all/a-x2.png", "photos-x2/a-x2.png", "photos/a.png"], "one input, however it is named"


def test_what_is_passed_over_is_counted_and_listed(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rubbish = [".Trash-1000/old.png", "@eaDir/t.png", "__MACOSX/._a.png", ".thumbnails/t.png", ".hidden.png", "._a.png"]
    make(here, "h/a.png", *(f"h/{name}" for name in rubbish))
    assert main(["h", "-r", "--json"]) == EXIT_OK
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    over = {Path(line["passed_over"]).name for line in lines if "passed_over" in line}
    assert over == {".Trash-1000", "@eaDir", "__MACOSX", ".thumbnails", ".hidden.png"}
    assert tree(here / "h-x2") == ["a-x2.png"]
    assert main(["h", "-r", "--strip"]) == EXIT_OK
    assert "5 passed over" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments",
    [
        [""],
        ["a.png", "-o", ""],
        ["a.png", "-o", "x.gif"],
        ["a.png", "-o", "x.heic"],
        ["a.png", "-o", "x.txt"],
        ["a.png", "--format", "png", "-o", "b.jpg"],
        ["a.png", "--format", "gif"],
        ["a.png", "--max-megapixels", "nan"],
        ["a.png", "--max-megapixels", "-1"],
        ["a.png", "--no-such-option"],
        ["empty"],
    ],
)
def test_bad_usage_is_one_line_and_makes_nothing(
    here: Path, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    make(here, "a.png")
    (here / "empty").mkdir()
    try:
        code = main(arguments)
    except SystemExit as stopped:  # argparse ends by itself
        code = int(stopped.code or 0)
    assert code == EXIT_USAGE
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    assert tree(here) == ["a.png"]


@pytest.mark.parametrize(("format", "ending"), [("jpg", ".jpg"), ("PNG", ".png"), (".TIF", ".tif"), ("Jpeg", ".jpg")])
def test_formats_by_the_names_that_people_use(here: Path, format: str, ending: str) -> None:
    make(here, "a.png")
    assert main(["a.png", "--format", format, "-o", "out/"]) == EXIT_OK
    assert tree(here / "out") == ["a-x2" + ending]


@pytest.mark.parametrize("stem", ["写" * 80, "写" * 83, "x" * 251, "é" * 125, "b" + "写" * 83])
def test_names_end_at_bytes_not_characters(here: Path, stem: str) -> None:
    make(here, f"{stem}.png")
    assert main([f"{stem}.png"]) == EXIT_OK
    [made] = [name for name in tree(here) if name.endswith("-x2.png")]
    assert len(os.fsencode(made)) <= 255


def test_long_names_that_become_equal_when_cut(here: Path) -> None:
    make(here, *(f"p/{'x' * 249}{number}.png" for number in range(3)))
    assert main(["p"]) == EXIT_OK
    assert len(tree(here / "p-x2")) == 3


def test_no_control_characters_are_printed(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make(here, "esc\033[31mred\n.png")
    assert main(["esc\033[31mred\n.png"]) == EXIT_OK
    assert main(["esc\033[31mred\n.png", "-o", "esc\033.gif"]) == EXIT_USAGE
    said = capsys.readouterr()
    assert "\033" not in said.out + said.err
    assert said.out.count("\n") == 1


def test_a_terminal_that_cannot_show_a_name(here: Path) -> None:
    make(here, "写.png")
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    command = [sys.executable, "-m", "core", str(here / "写.png"), "--model", "lanczos"]
    run = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, timeout=300)
    assert run.returncode == EXIT_OK, run.stderr
    assert b"\\u5199-x2.png" in run.stdout


def test_a_pipe_is_read_once(here: Path) -> None:
    os.mkfifo(here / "pipe")
    writer = threading.Thread(target=(here / "pipe").write_bytes, args=(PNG,))
    writer.start()
    assert main(["pipe", "-o", "made.png"]) == EXIT_OK
    writer.join()
    assert opened((here / "made.png").read_bytes()).size == (16, 12)


def test_a_pipe_has_no_place_for_a_result(here: Path) -> None:
    os.mkfifo(here / "pipe")
    assert main(["pipe"]) == EXIT_USAGE


def test_sigterm_leaves_nothing_half_written_and_the_next_run_goes_on(here: Path) -> None:
    make(here, "t/a.png", data=saved(corners(900, 900), "PNG"))
    command = [sys.executable, "-m", "core", str(here / "t"), "--scale", "8"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    part = here / "t-x8"
    while not any(part.glob(".*.part")):
        assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=300)
    assert process.returncode == 128 + signal.SIGTERM
    assert b"Traceback" not in said
    assert tree(part) == []


def test_killed_between_result_and_record(here: Path) -> None:
    """A result whose record only says that it was begun was made here: it is made again, not refused."""
    make(here, "p/a.png")
    assert main(["p"]) == EXIT_OK
    record = here / "p-x2" / RECORD
    begun, _ = record.read_text().splitlines()
    record.write_text(begun + "\n" + '{"result": "a-x2.pn')  # and a line that was cut off
    assert main(["p"]) == EXIT_OK
    assert not plan(["p"], None, Options()).passed_over
    [work] = plan(["p"], None, Options()).work
    assert work.done


def test_what_failed_claims_no_name(here: Path) -> None:
    make(here, "a.png", data=PNG[:-30])
    assert main(["a.png"]) != EXIT_OK
    make(here, "a-x2.png", data=b"somebody's")
    make(here, "a.png")
    assert main(["a.png"]) == EXIT_USAGE
    (here / "a-x2.png").unlink()
    assert main(["a.png"]) == EXIT_OK
    make(here, "a.png", data=PNG[:-30])
    assert main(["a.png"]) != EXIT_OK, "the earlier result stays, and stays ours"
    make(here, "a.png")
    assert main(["a.png"]) == EXIT_OK


def test_an_estimate_refuses_nothing(here: Path) -> None:
    make(here, "p/a.png", "p-x2/a-x2.png")
    assert main(["p", "--estimate"]) == EXIT_OK
    with pytest.raises(UsageError):
        plan(["p"], None, Options())


ROOT = Path(__file__).parents[2]
