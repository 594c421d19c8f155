"""The tables of docs/fidelity.md: what each format carries from the input to the result, measured.

Every cell is the outcome of a function in `fidelity_inputs.py` or `fidelity_outputs.py` that makes a picture, sends it
through `core.upscale` and looks at what came out. What a format cannot hold must be reported in a note of the result.
After a change on purpose:

    python -m tests.unit.test_fidelity > docs/fidelity.md
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from core.engine import load
from core.formats import FORMATS
from tests.unit.fidelity_inputs import INPUTS, READ, check_input
from tests.unit.fidelity_outputs import OUTPUTS, animation

#: The way of a picture is measured here, without what a network adds to it.
pytestmark = pytest.mark.usefixtures("lanczos")

DOCUMENT = Path(__file__).parents[2] / "docs" / "fidelity.md"


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("property", OUTPUTS)
def test_output(property: str, format: str) -> None:
    assert OUTPUTS[property](format) in row_of(property), "the table is out of date: see the top of this file"


@pytest.mark.parametrize(("mode", "format"), [(mode, format) for mode, cases in INPUTS.items() for format in cases])
def test_input(mode: str, format: str) -> None:
    assert check_input(mode, format) in row_of(mode), "the table is out of date: see the top of this file"


def row_of(name: str) -> list[str]:
    """Cells of a row of the document."""
    for line in DOCUMENT.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if cells[0] == name:
            return cells[1:]
    raise AssertionError(f"no row {name!r} in {DOCUMENT.name}")


def test_the_document_has_all_rows_and_columns() -> None:
    for rows, columns in ((OUTPUTS, FORMATS), (INPUTS, READ)):
        for name in rows:
            assert len(row_of(name)) == len(columns)


@pytest.mark.parametrize("made_as", ["GIF", "PNG", "WEBP", "AVIF"])
@pytest.mark.parametrize("format", ["png", "webp"])
def test_animations_of_every_format(made_as: str, format: str) -> None:
    assert animation(format, made_as).startswith("kept")


def document() -> str:
    """Both tables, measured now."""

    def table(head: str, rows: dict[str, Any], columns: list[str], cell: Callable[[str, str], str]) -> str:
        lines = [f"| {head} | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
        lines += [f"| {row} | {' | '.join(cell(row, column) for column in columns)} |" for row in rows]
        return "\n".join(lines)

    def read_cell(row: str, column: str) -> str:
        return check_input(row, column) if column in INPUTS[row] else "-"

    return f"""# What is kept of a picture

Every cell is measured by `tests/unit/test_fidelity.py`, which also writes this page. "Told" means that the result
carries a note: nothing is lost in silence.

## From the input to each output format

{table("", OUTPUTS, list(FORMATS), lambda row, column: OUTPUTS[row](column))}

"Same colours" is a difference (CIEDE2000) of at most 1 on flat patches, from input to result. Maker notes keep their
bytes and, but for TIFF, their place in the EXIF block, on which their own offsets rely.

## What each input becomes

{table("", INPUTS, READ, read_cell)}

A dash: the format has no such mode, or no common program writes it. What is RGB or grey stays in its own profile on
the whole way; CMYK and Lab are converted to sRGB. Palettes come out as RGB(A). AVIF of 10 and 12 bits is
read as such (its animations with 8, told) and written with 8. Animated PNGs of 16 bits keep them.
Of floats and wide integers a few that lie far off do not set the range: there the steps grow along a curve.
HEIF is written as JPEG (PNG when it is transparent), GIF as PNG (animated: WebP), unless another format is asked for.

## Ten awkward pictures, before and after

![each pair: the input and the result, as a colour-managed viewer shows them](awkward.jpg)

Made by `python -m bench.awkward`.
"""


if __name__ == "__main__":
    load.load_first = lambda chain, device: load.Loaded(None, "lanczos", False, "", 0.0)
    print(document(), end="")
