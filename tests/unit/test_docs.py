"""The tables of the documentation are those of the code."""

from __future__ import annotations

from pathlib import Path

import pytest

from handler.__main__ import settings_table
from handler.web.problems import CODES

ROOT = Path(__file__).parents[2]


def documentation() -> str:
    return "\n".join(path.read_text() for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")))


def codes_table() -> str:
    return "\n".join(f"| `{name}` | {code.status} | {code.about} |" for name, code in CODES.items())


@pytest.mark.parametrize("table", [settings_table, codes_table])
def test_tables(table: object) -> None:
    assert callable(table)
    assert table() in documentation(), f"this belongs into the documentation:\n{table()}"
