"""The runner of the benchmarks: what it finds in what they print."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from bench import __main__ as runner
from bench import conformance
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
