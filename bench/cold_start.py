"""A cold start in Lambda's runtime emulator, ours beside bench.naive_handler: python -m bench.cold_start

From the start of the process to the answer to the first `POST /upscale` with a photo of 0.1 megapixels, the runs of
each in turns; then the same call warm. With --disk, once more with nothing of the packages in the page cache, and what
was read. With --imports, where the time of the imports goes. Leave the machine alone meanwhile.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.runtimes import CHECKPOINT
from bench.service import picture
from tests.e2e.emulator import EVENTS, ROOT, family, function

MIB = 1024 * 1024
#: Allowed to run whatever is asked for, in the call itself.
OURS = {"BUCKET": "bench", "INLINE_SECONDS": "900", "LAMBDA_SECONDS": "900", "LAMBDA_MEMORY_MB": "10240"}


@dataclass(frozen=True)
class Variant:
    """Something to measure: a handler and its variables."""

    name: str
    handler: str
    environment: dict[str, str]


@dataclass(frozen=True)
class Run:
    """One cold start, and the calls after it.

    Attributes:
        init: seconds that the emulator reports for the INIT phase.
        first: seconds from the start of the process to the first answer.
        warm: median seconds of the calls after it.
        peak: resident bytes of the runtime's process, the most there were.
        read: bytes that it and its children read from the disk until the first answer.
    """

    init: float
    first: float
    warm: float
    peak: int
    read: int


def request(pixels: int) -> dict[str, Any]:
    """A REST event that posts the sample photo, resized to about so many pixels."""
    body = b'--cut\r\nContent-Disposition: form-data; name="file"; filename="photo.jpg"\r\n'
    body += b"Content-Type: image/jpeg\r\n\r\n" + picture(pixels) + b"\r\n--cut--\r\n"
    sent: dict[str, Any] = json.loads((EVENTS / "rest_upscale.json").read_text())
    sent["headers"]["Content-Type"] = "multipart/form-data; boundary=cut"
    sent["headers"]["Content-Length"] = str(len(body))
    sent["multiValueHeaders"] = {name: [value] for name, value in sent["headers"].items()}
    sent["body"] = base64.b64encode(body).decode()
    return sent


def figure(path: Path, name: str) -> int:
    """A number of a file in /proc."""
    found = re.search(rf"^{name}:\s+(\d+)", path.read_text(), re.MULTILINE)
    if not found:
        raise ValueError(f"{path} has no {name}")
    return int(found[1])


def measure(variant: Variant, event: dict[str, Any], calls: int) -> Run:
    """Start it, ask once, and then so many times more.

    Raises:
        SystemExit: the answer is no picture, or of another model.
    """

    def ask() -> float:
        start = time.perf_counter()
        answer = running(event)
        if answer.get("statusCode") != 200 or answer["headers"].get("x-upscale-degraded") == "true":
            raise SystemExit(f"{variant.name}: {str(answer)[:500]}\n{running.log.read_text()[-2000:]}")
        return time.perf_counter() - start

    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        with function(variant.handler, Path(folder), variant.environment) as running:
            ask()
            first = time.perf_counter() - start
            processes = list(family(running.pid))
            read = sum(figure(Path(f"/proc/{pid}/io"), "read_bytes") for pid in processes)
            warm = [ask() for _ in range(calls)]
            peak = max(figure(Path(f"/proc/{pid}/status"), "VmHWM") for pid in processes) * 1024
            init = re.search(r"INIT REPORT\(durationMs: ([\d.]+)", running.log.read_text())
    if not init:
        raise SystemExit(f"{variant.name}: the emulator reports no INIT")
    return Run(float(init[1]) / 1000, first, statistics.median(warm) if warm else 0.0, peak, read)


def forget() -> None:
    """Drop the interpreter's packages and our weights from the page cache; not what another process has mapped."""
    for folder in (Path(sys.prefix), Path(sys.base_prefix), ROOT / "core", ROOT / "handler", CHECKPOINT):
        for parent, _, names in os.walk(folder):
            for name in names:
                try:
                    file = os.open(Path(parent, name), os.O_RDONLY)
                except OSError:
                    continue
                os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
                os.close(file)


def imports(variant: Variant, event: dict[str, Any]) -> Counter[str]:
    """Microseconds that importing takes until the first answer, by top-level package, as `-X importtime` has it."""
    module, _, name = variant.handler.rpartition(".")
    code = (
        f"import json, sys; from {module} import {name}\n"
        f"answer = {name}(json.load(sys.stdin), None); assert answer['statusCode'] == 200, answer\n"
    )
    ended = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", code],
        cwd=ROOT, env={**os.environ, **variant.environment, "AWS_LAMBDA_FUNCTION_NAME": "bench"},
        input=json.dumps(event), capture_output=True, text=True, check=True,
    )  # fmt: skip
    found: Counter[str] = Counter()
    for own, package in re.findall(r"^import time:\s+(\d+) \|\s+\d+ \|\s+([A-Za-z_]\w*)", ended.stderr, re.MULTILINE):
        found[package if package not in sys.stdlib_module_names else "standard library"] += int(own)
    return found


def table(variants: Sequence[Variant], runs: dict[str, list[Run]]) -> None:
    """Print medians, and how many times as fast as the first variant each is."""
    print("| | INIT, s | start to first answer, s | times as fast | warm, s | peak, MiB | read, MiB |")
    print("|---|---|---|---|---|---|---|")
    base = statistics.median(run.first for run in runs[variants[0].name])
    for variant in variants:
        found = runs[variant.name]
        init, first, warm = (
            statistics.median(getattr(run, name) for run in found) for name in ("init", "first", "warm")
        )
        peak, read = (max(getattr(run, name) for run in found) / MIB for name in ("peak", "read"))
        print(
            f"| {variant.name} | {init:.2f} | {first:.2f} | {base / first:.1f} | {warm:.2f} | {peak:.0f} | {read:.0f} |"
        )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, default=CHECKPOINT, help="a Swin2SR x2, for both sides")
    parser.add_argument("--pixels", type=int, default=100_000, help="of the photo (100000)")
    parser.add_argument("--rounds", type=int, default=3, help="cold starts of each (3)")
    parser.add_argument("--calls", type=int, default=2, help="warm calls after each cold start (2)")
    parser.add_argument("--disk", action="store_true", help="one round with the packages out of the page cache")
    parser.add_argument("--imports", action="store_true", help="the shares of the imports instead of the times")
    arguments = parser.parse_args()
    weights = str(arguments.checkpoint.resolve())
    if not arguments.checkpoint.is_dir():
        raise SystemExit(f"no checkpoint in {arguments.checkpoint}: give one with --checkpoint")
    variants = [
        Variant("naive, Swin2SR", "bench.naive_handler.handler", {"CHECKPOINT": weights}),
        Variant("ours, Swin2SR", "handler.api.handler", {**OURS, "MODEL": weights, "WARM_MODEL": weights}),
        Variant("ours, embedded", "handler.api.handler", OURS),
    ]
    event = request(arguments.pixels)
    print(f"load average before: {os.getloadavg()[0]:.1f} on {os.cpu_count()} CPUs, {arguments.pixels:,} pixels")
    if arguments.imports:
        for variant in variants:
            found = imports(variant, event)
            shares = ", ".join(f"{name} {own / 1e6:.2f}" for name, own in found.most_common(9))
            print(f"{variant.name}: {found.total() / 1e6:.2f} s of imports: {shares}")
        return
    runs: dict[str, list[Run]] = {variant.name: [] for variant in variants}
    for _ in range(1 if arguments.disk else arguments.rounds):
        for variant in variants:
            if arguments.disk:
                forget()
            runs[variant.name].append(measure(variant, event, 0 if arguments.disk else arguments.calls))
    table(variants, runs)


if __name__ == "__main__":
    main()
