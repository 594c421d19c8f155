"""The runner of the benchmarks: what it finds in what they print."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch

from bench import __main__ as runner
from bench import conformance, gpu
from tests.unit.pictures import corners, saved

PRINTED = """2 threads
| input | dtype | theirs, s | ours, s | ratio |
|---|---|---|---|---|
| 128x128 | float32 | 1.10 | 0.50 | 2.20 |
| 128x128 | bfloat16 | 1.10 | - | - |

| what | result |
|---|---|
| ratio | 9 |
after
"""


def test_a_column_of_the_tables_that_have_it() -> None:
    assert runner.column(PRINTED, "ratio") == [("128x128 float32", 2.2)]
    assert runner.column(PRINTED, "result") == [("ratio", 9.0)]
    assert runner.column(PRINTED, "") == []


def test_markdown_keeps_tables_whole_and_apart() -> None:
    lines = runner.markdown(PRINTED).splitlines()
    assert lines[:3] == ["- 2 threads", "", "| input | dtype | theirs, s | ours, s | ratio |"]
    assert lines[-2:] == ["", "- after"]


def test_the_plot_is_svg_with_a_bar_for_each_number() -> None:
    root = ElementTree.fromstring(runner.plot([("a < b", [("x", 2.0), ("y & z", 1.0)]), ("nothing", [])]))
    bars = [node for node in root.iter() if node.tag.endswith("rect")]
    assert [float(bar.get("width", "")) for bar in bars] == [400.0, 200.0]
    assert {"a < b", "y & z"} <= {node.text for node in root.iter()}


def test_every_benchmark_is_a_module_or_said_to_be_missing(tmp_path: Path) -> None:
    for bench in runner.BENCHES:
        found = importlib.util.find_spec(f"bench.{bench.name}") is not None
        assert found or "there is no" in runner.missing(bench)
    assert "not here" in runner.missing(runner.Bench("photo", needs=tmp_path / "nothing"))


def test_results_are_written_after_each(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """One that cannot run, and one that fails: both are told, and the end says so."""
    monkeypatch.setattr(runner, "RESULTS", tmp_path / "results.md")
    failing = runner.Bench("photo", ("--nonsense",))
    monkeypatch.setattr(runner, "BENCHES", (runner.Bench("photo", needs=tmp_path / "nothing"), failing))
    monkeypatch.setattr("sys.argv", ["bench"])
    assert runner.main() == 1
    text = (tmp_path / "results.md").read_text()
    assert "Skipped: needs" in text
    assert "Failed with exit code 2" in text
    assert all(line in text for line in runner.machine()[:2])
    ElementTree.parse(tmp_path / "results.svg")


def test_conformance_sees_what_differs(tmp_path: Path) -> None:
    decoders = conformance.installed()
    if not decoders:
        pytest.skip("no independent decoder is installed")
    (tmp_path / "a.png").write_bytes(saved(corners(), "PNG"))
    (tmp_path / "b.jpg").write_bytes(saved(corners(32, 48), "JPEG", quality=95, subsampling=0))
    (tmp_path / "c.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    for name in ("a.png", "b.jpg"):
        found = list(conformance.outcomes(tmp_path / name, decoders))
        assert found
        assert {outcome for _, outcome in found} == {"equal"}
    assert not list(conformance.outcomes(tmp_path / "c.png", decoders))  # nobody reads it
    mine, _ = conformance.ours(tmp_path / "a.png")
    assert conformance.difference(mine, mine, "png") == "equal"
    assert conformance.difference(mine, mine[:-1], "png") == "20x12 and 20x11"
    assert "alpha" in conformance.difference(mine, mine * np.array([1, 1, 1, 0.5], np.float32), "png")
    assert conformance.difference(mine, mine * np.array(0.9, np.float32), "png").startswith("mean")


def test_what_runs_on_a_card_is_rehearsed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Time on a card is rented: no part of it fails for what a machine without one could have shown."""
    monkeypatch.setenv("OUT", str(tmp_path))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # tiny products
    try:
        gpu.main(["--rehearse", "--seconds", "600"])
    finally:
        torch.set_num_threads(threads)
    rows = dict(json.loads((tmp_path / "gpu.json").read_text(encoding="utf-8")))
    assert not [(name, value) for name, value in rows.items() if "FAILED" in value]
    assert "of dense" in rows["classical-x2 RESULT, ours"]
    assert "at the end on cuda" in rows["out of memory, few tiles at once"]
    assert "redone with" in rows["out of memory, a large tile"]
    assert "at the end on cpu" in rows["out of memory, the whole card is taken"]
    assert f"| {next(iter(rows))} |" in capsys.readouterr().out


def test_what_fails_on_a_card_ends_nothing_but_itself(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def defect(report: gpu.Report) -> None:
        raise ValueError("a defect")

    monkeypatch.setenv("OUT", str(tmp_path))
    monkeypatch.setattr(gpu, "compact", defect)
    for other in ("swin2sr", "out_of_memory", "where_time_goes"):
        monkeypatch.setattr(gpu, other, lambda *_: None)
    gpu.main(["--rehearse"])
    rows = dict(json.loads((tmp_path / "gpu.json").read_text(encoding="utf-8")))
    assert rows["compact-x2"] == "FAILED ValueError: a defect"
    assert "where time goes" in rows  # after it: there is no classical network to open


def test_no_part_begins_late(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("OUT", str(tmp_path))
    gpu.main(["--rehearse", "--seconds", "0"])
    rows = dict(json.loads((tmp_path / "gpu.json").read_text(encoding="utf-8")))
    assert rows["end"] == "no time left for compact-x2"
    assert len(rows) == 3, "the card, its rate, and the end"
