"""The whole command on photos of several sizes: python -m bench.photo [--megapixels 1 12]

Seconds and peak memory of `python -m core` as its own process, and the estimate that it gave before.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SAMPLE = Path(__file__).parents[1] / "samples" / "astronaut.jpg"


@dataclass(frozen=True)
class Made:
    """One run of the whole command.

    Attributes:
        result: what it said about it, `core.Result` as JSON.
        seconds: from the start of its process to the end.
        peak: resident bytes, of the process and those that it started, each at its highest.
        cpu: seconds of all processors.
    """

    result: dict[str, Any]
    seconds: float
    peak: int
    cpu: float


def photo(sample: Path, megapixels: float) -> Image.Image:
    """The sample photo, repeated to a 4:3 picture of this many million pixels."""
    height = round(math.sqrt(megapixels * 1e6 * 3 / 4))
    width = round(megapixels * 1e6 / height)
    values = np.asarray(Image.open(sample).convert("RGB"))
    rows, columns = (-(-side // length) for side, length in zip((height, width), values.shape[:2], strict=True))
    return Image.fromarray(np.tile(values, (rows, columns, 1))[:height, :width])


def run(source: Path, target: Path, model: str, *more: str) -> Made:
    """Upscale a file in a process of its own. Raises: SystemExit, when another model made the result, or none."""
    command = [sys.executable, "-m", "core", str(source), "--model", model, "--json", "-o", str(target), *more]
    start = time.perf_counter()
    with tempfile.TemporaryFile() as out:
        process = subprocess.Popen(command, stdout=out)
        highest: dict[int, int] = {}
        while True:
            highest |= _highest(process.pid)
            ended, _, used = os.wait4(process.pid, os.WNOHANG)
            if ended:
                break
            time.sleep(0.02)
        seconds = time.perf_counter() - start
        out.seek(0)
        lines = out.read()
    made = Made(json.loads(lines), seconds, sum(highest.values()), used.ru_utime + used.ru_stime)
    if made.result.get("degraded") or "error" in made.result:
        raise SystemExit(f"not what was to be measured: {made.result}")
    return made


def _highest(process: int) -> dict[int, int]:
    """Most resident bytes so far of a process and all below it, which `ru_maxrss` adds to what started them."""
    found: dict[int, int] = {}
    try:
        [line] = [line for line in Path(f"/proc/{process}/status").read_text().splitlines() if line[:6] == "VmHWM:"]
        found[process] = int(line.split()[1]) * 1024
        for children in Path(f"/proc/{process}/task").glob("*/children"):
            for child in children.read_text().split():
                found |= _highest(int(child))
    except (OSError, ValueError):  # it has ended
        pass
    return found


def network_share(source: Path, target: Path, model: str) -> tuple[float, float]:
    """Seconds inside the network, and seconds from file to file, of one run in this process.

    Tiles that are computed side by side count once: each as its share of the threads.
    """
    import core
    from core.engine.load import load

    loaded, _ = load(model, "cpu")
    seconds, net = list[float](), loaded.net

    def timed(x: NDArray[np.float32]) -> NDArray[np.float32]:
        start = time.perf_counter()
        made = net(x)
        seconds.append(time.perf_counter() - start)
        return made

    loaded.net = timed
    result = core.upscale(source, core.Options(model=model, device="cpu"), output=target)
    loaded.net = net
    return sum(seconds) / max(1, min(loaded.at_once, len(seconds))), result.seconds


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Seconds and memory of the whole command.")
    parser.add_argument("--sample", type=Path, default=SAMPLE)
    parser.add_argument("--megapixels", nargs="*", type=float, default=[0.25, 1, 4, 12])
    parser.add_argument("--model", default="compact-x2")
    parser.add_argument("--format", default="jpeg")
    arguments = parser.parse_args()
    heads = [
        "input",
        "process, s",
        "file to file, s",
        "s a MP",
        "estimated, s",
        "estimate / run",
        "peak MB",
        "expected",
    ]
    print("| " + " | ".join(heads) + " |\n" + "|---" * len(heads) + "|")
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "in.jpg", Path(folder) / f"out.{arguments.format}"
        for size in arguments.megapixels:
            photo(arguments.sample, size).save(source, quality=92)
            command = [sys.executable, "-m", "core", str(source), "--model", arguments.model, "--json", "--estimate"]
            told = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
            made = run(source, target, arguments.model)
            seconds = made.result["seconds"]
            print(
                f"| {size:g} MP | {made.seconds:.1f} | {seconds:.1f} | {seconds / size:.2f} | "
                f"{told['seconds']:.1f} | {told['seconds'] / seconds:.2f} | "
                f"{made.peak / 1e6:.0f} | {told['memory'] / 1e6:.0f} |",
                flush=True,
            )
        inside, seconds = network_share(source, target, arguments.model)
        print(
            f"Of {seconds:.1f} s from file to file at {size:g} MP, "
            f"{inside:.1f} s are the network's: {inside / seconds:.0%}"
        )


if __name__ == "__main__":
    main()
