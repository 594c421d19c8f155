"""The shape of the code: layers and circles of imports, and the length of files and functions.

The layers are contracts of import-linter in pyproject.toml. Imports inside of functions and for type checking count,
too: what two files need lives below both.
"""

from __future__ import annotations

import ast
import graphlib
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import grimp
import pytest

ROOT = Path(__file__).parents[2]
FILE_LINES, FUNCTION_LINES = 450, 80
#: Functions that are tables: long, and read from top to bottom without a turn.
TABLES: set[str] = set()


def sources() -> Iterator[Path]:
    for folder in ("core", "handler"):
        yield from sorted((ROOT / folder).rglob("*.py"))


def circle(package: str) -> list[str]:
    """The names of modules that import each other in a circle, the first one again at the end; or nothing."""
    graph = grimp.build_graph(package, cache_dir=None)
    imports = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}
    try:
        graphlib.TopologicalSorter(imports).prepare()
    except graphlib.CycleError as error:
        found: list[str] = error.args[1]
        return found
    return []


def long_functions(path: Path, lines: int) -> list[str]:
    functions = (
        node
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    )
    return [f.name for f in functions if (f.end_lineno or f.lineno) - f.lineno >= lines]


def test_every_file_keeps_to_its_layer() -> None:
    command = [str(Path(sys.executable).parent / "lint-imports"), "--no-cache", "--no-logo"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("package", ["core", "handler"])
def test_no_circle_of_imports(package: str) -> None:
    assert circle(package) == []


def test_a_circle_inside_of_functions_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The check above can fail."""
    package = tmp_path / "round_and_round"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "one.py").write_text("from round_and_round import two\n")
    (package / "two.py").write_text("def later():\n    from round_and_round import one\n    return one\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert set(circle("round_and_round")) == {"round_and_round.one", "round_and_round.two"}


def test_no_file_is_too_long() -> None:
    lengths = {str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines()) for path in sources()}
    assert {name: length for name, length in lengths.items() if length > FILE_LINES} == {}


def test_no_function_is_too_long() -> None:
    found = {f"{path.relative_to(ROOT)}:{name}" for path in sources() for name in long_functions(path, FUNCTION_LINES)}
    assert found - TABLES == set(), "split them, or name them in TABLES if they are tables"
    assert TABLES - found == set(), "these are short enough to leave TABLES"


def test_the_document_of_the_house_lists_what_is_there() -> None:
    """Every path that docs/architecture.md names exists, and every room of the two packages is named."""
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`((?:core|handler|tests|docs)/[\w./]*)`", text))
    assert sorted(name for name in named if not (ROOT / name).exists()) == []
    rooms = set()
    for package in ("core", "handler"):
        for path in (ROOT / package).iterdir():
            if path.is_dir() and path.name != "__pycache__":
                rooms.add(f"{package}/{path.name}/")
            elif path.suffix == ".py" and path.name != "__init__.py":
                rooms.add(f"{package}/{path.name}")
    assert sorted(rooms - named) == []
