"""All benchmarks in turn: python -m bench

Each prints Markdown; together with what this machine is, it goes to bench/results.md, and one column of each table to
the plot bench/results.svg. Hours, unless some are named: python -m bench photo memory
"""

from __future__ import annotations

import argparse
import datetime
import html
import importlib
import importlib.metadata
import os
import platform
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from bench.runtimes import CHECKPOINT

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).with_name("results.md")
SETS = ROOT / "../shared/bench"


@dataclass(frozen=True)
class Bench:
    """One module of this package.

    Attributes:
        name: of the module.
        arguments: of its command line.
        needs: what has to be there, beside the module itself.
        drawn: head of the table's column that the plot shows; empty for none.
    """

    name: str
    arguments: tuple[str, ...] = ()
    needs: Path | None = None
    drawn: str = ""


BENCHES = (
    Bench("photo", drawn="s a MP"),
    Bench("memory", (str(CHECKPOINT), "--layers", "2"), CHECKPOINT, "s a MP"),
    Bench("swin2sr", (str(CHECKPOINT),), CHECKPOINT, "ratio"),
    Bench("runtimes", needs=CHECKPOINT),
    Bench("embedded"),
    Bench("quality", ("--sets", str(SETS)), SETS),
    Bench("service"),
    Bench("cold_start", needs=CHECKPOINT, drawn="start to first answer, s"),
    Bench("gpu"),
)


def machine() -> list[str]:
    """What this runs on, a line each."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        processor = next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
        flags = next(line.split() for line in lines if line.startswith("flags"))
    except (OSError, StopIteration):
        processor, flags = platform.processor() or platform.machine(), []
    vectors = [name for name in ("avx2", "avx512f", "avx512_bf16", "amx_tile") if name in flags]
    memory = ""
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        memory = f", {os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 2**30:.0f} GiB"
    versions = [f"{name} {importlib.metadata.version(name)}" for name in ("torch", "numpy", "pillow")]
    git = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    return [
        f"{os.cpu_count()} x {processor}{memory}; {', '.join(vectors) or 'no vector extensions known'}",
        f"{platform.system()} {platform.release()}, Python {platform.python_version()}, {', '.join(versions)}",
        f"commit {git.stdout.strip() or 'unknown'}, {datetime.datetime.now(datetime.UTC):%Y-%m-%d}, "
        f"load average before: {os.getloadavg()[0]:.1f}",
    ]


def missing(bench: Bench) -> str:
    """Why a benchmark cannot run here, or nothing."""
    if not Path(__file__).with_name(f"{bench.name}.py").is_file():
        return f"there is no bench/{bench.name}.py"
    if bench.needs is not None and not bench.needs.exists():
        return f"needs {os.path.relpath(bench.needs, ROOT)}, which is not here"
    return ""


def markdown(output: str) -> str:
    """What a benchmark printed: tables as they are, each other line an item of a list."""
    lines: list[str] = []
    for line in output.splitlines():
        kind = "table" if line.startswith("|") else "item" if line.strip() else ""
        before = "table" if lines and lines[-1].startswith("|") else "item" if lines and lines[-1] else ""
        if kind and before and kind != before:
            lines.append("")
        lines.append(f"- {line.strip()}" if kind == "item" else line.rstrip())
    return "\n".join(lines)


def column(output: str, head: str) -> list[tuple[str, float]]:
    """Labels and numbers of a column, from each Markdown table that has it; a label is what comes before a number."""
    found: list[tuple[str, float]] = []
    heads: list[str] = []
    for line in output.splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")] if line.startswith("|") else []
        if not cells or (cells[0] and set(cells[0]) <= set("-:")):
            heads = heads if cells else []
            continue
        if not heads:
            heads = cells
        elif head in heads and len(cells) == len(heads):
            at = heads.index(head)
            words = [cell for cell in cells[:at] if not _is_number(cell)]
            if _is_number(cells[at]):
                found.append((" ".join(words), float(cells[at])))
    return found


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def plot(charts: list[tuple[str, list[tuple[str, float]]]]) -> str:
    """Charts of horizontal bars, one below the other, as SVG: each a title, and labels with numbers."""
    parts, y = [], 8
    for title, bars in charts:
        y += 22
        parts.append(f'<text x="8" y="{y}" font-weight="bold">{html.escape(title)}</text>')
        longest = max((value for _, value in bars), default=1) or 1
        for label, value in bars:
            y += 20
            parts.append(f'<text x="190" y="{y}" text-anchor="end">{html.escape(label)}</text>')
            parts.append(f'<rect x="200" y="{y - 12}" width="{max(0, 400 * value / longest):.1f}" height="14"/>')
            parts.append(f'<text x="{208 + max(0, 400 * value / longest):.1f}" y="{y}">{value:g}</text>')
        y += 12
    style = "text{font:13px sans-serif;fill:#222}rect{fill:#3b78b0}"
    size = f'width="680" height="{y + 12}" viewBox="0 0 680 {y + 12}"'
    body = "\n".join(parts)
    ground = f'<path d="M0 0H680V{y + 12}H0Z" fill="#fff"/>'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size}>\n<style>{style}</style>\n{ground}\n{body}\n</svg>\n'


def main() -> int:
    """Run, and write what was found after each, so that an end in the middle loses nothing; 1 when one failed."""
    parser = argparse.ArgumentParser(description="All benchmarks in turn, to bench/results.md and bench/results.svg.")
    parser.add_argument("names", nargs="*", help=f"only these of {', '.join(bench.name for bench in BENCHES)}")
    wanted = parser.parse_args().names
    chosen = [bench for bench in BENCHES if not wanted or bench.name in wanted]
    if unknown := set(wanted) - {bench.name for bench in chosen}:
        parser.error(f"there is no {', '.join(sorted(unknown))}")
    text = "\n".join(["# Benchmarks", "", *(f"- {line}" for line in machine()), "", "![bars](results.svg)", ""])
    charts: list[tuple[str, list[tuple[str, float]]]] = []
    failed = 0
    for bench in chosen:
        print(f"bench.{bench.name}", flush=True)
        text += f"\n## {bench.name}\n\n"
        if why := missing(bench):
            text += f"Skipped: {why}.\n"
            print(f"  skipped: {why}", flush=True)
        else:
            about = (importlib.import_module(f"bench.{bench.name}").__doc__ or "").partition("\n")[0]
            start = time.perf_counter()
            command = [sys.executable, "-m", f"bench.{bench.name}", *bench.arguments]
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
            text += f"{about.partition(': python')[0]}.\n\n{markdown(done.stdout)}\n"
            if done.returncode:
                failed = 1
                last = (done.stderr.strip().splitlines() or ["no message"])[-1]
                text += f"\nFailed with exit code {done.returncode}: `{last}`\n"
                print(done.stderr, file=sys.stderr)
            text += f"\nTook {time.perf_counter() - start:.0f} s.\n"
            if bars := column(done.stdout, bench.drawn):
                charts.append((f"{bench.name}: {bench.drawn}", bars))
        RESULTS.write_text(text, encoding="utf-8")
        RESULTS.with_suffix(".svg").write_text(plot(charts), encoding="utf-8")
    print(f"{RESULTS} and {RESULTS.with_suffix('.svg').name} are written")
    return failed


if __name__ == "__main__":
    sys.exit(main())
