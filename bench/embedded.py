"""The embedded network against the runtimes that run its file alone: python -m bench.embedded [--rounds 9]

This project cuts the picture into tiles, and rounds and joins the results; the others get the whole picture as floats,
with as many threads as they choose by themselves. Measured alone, beside one busy process, and where a control group
grants less time than there are processors (a Lambda function of 3008 MB is granted 1.7 of two, one of 1769 MB 1.0).
Each runtime has a separate process, and they take turns. Where control groups cannot be written the table says so.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

from core import models

Run = Callable[[], object]

SPEC = models.MODELS["compact-x2"]
FILE = Path(SPEC.source) / models.ONNX_FILE
_PERIOD = 100_000  # microseconds, the kernel's usual one

OURS = "ours"
#: By precision: who can compute in it, and the package that each needs.
RUNTIMES = {
    "float32": {OURS: "onnxruntime", "ONNX Runtime": "onnxruntime", "OpenVINO": "openvino"},
    "bfloat16": {OURS: "openvino", "OpenVINO": "openvino"},
}


def ours(dtype: str, side: int) -> Run:
    from core.engine import load
    from core.engine.plan import make_plan
    from core.engine.run import upscale_strips

    model, _ = load.load(SPEC.name, "cpu", dtype)
    plan = make_plan(SPEC, SPEC.scale, exact=True)
    pixels = np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)
    return lambda: [len(strip) for strip in upscale_strips(model, pixels, plan)]


def onnxruntime(_: str, side: int) -> Run:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(FILE), providers=["CPUExecutionProvider"])
    x = np.random.default_rng(0).random((1, 3, side, side), np.float32)
    return lambda: session.run(None, {"x": x})


def openvino(dtype: str, side: int) -> Run:
    import openvino

    hint = "bf16" if dtype == "bfloat16" else "f32"
    settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": hint}
    request = openvino.Core().compile_model(str(FILE), "CPU", settings).create_infer_request()
    x = np.random.default_rng(0).random((1, 3, side, side), np.float32)
    return lambda: request.infer([x])


OPEN = {OURS: ours, "ONNX Runtime": onnxruntime, "OpenVINO": openvino}


def serve(name: str, dtype: str, side: int, group: Path | None, pipe: Connection) -> None:
    """In a separate process: join the group, load, then run and send the seconds whenever asked to."""
    if group is not None:
        (group / "cgroup.procs").write_text(str(os.getpid()))
    run = OPEN[name](dtype, side)
    run()  # the first also fills caches
    pipe.send(True)
    with contextlib.suppress(EOFError):  # the one that asks has been stopped
        while pipe.recv():
            start = time.perf_counter()
            run()
            pipe.send(time.perf_counter() - start)


def spin() -> None:
    """Keep a processor busy."""
    while True:
        pass


@contextlib.contextmanager
def control_group(processors: float) -> Iterator[Path]:
    """A new group that is granted so much time of processors; removed in the end.

    Raises:
        OSError: groups cannot be written here.
    """
    root = Path("/sys/fs/cgroup")
    first = not (root / "cgroup.controllers").exists()  # version 1 of control groups
    group = (root / "cpu" if first else root) / f"upscaler-bench-{os.getpid()}"
    group.mkdir()
    try:
        quota = str(int(processors * _PERIOD))
        if first:
            (group / "cpu.cfs_period_us").write_text(str(_PERIOD))
            (group / "cpu.cfs_quota_us").write_text(quota)
        else:
            (group / "cpu.max").write_text(f"{quota} {_PERIOD}")
        yield group
    finally:
        group.rmdir()


@contextlib.contextmanager
def neighbour() -> Iterator[None]:
    """Another process that wants a processor all the time."""
    process = multiprocessing.get_context("spawn").Process(target=spin, daemon=True)
    process.start()
    try:
        yield
    finally:
        process.kill()
        process.join()


def in_turns(names: list[str], dtype: str, side: int, rounds: int, group: Path | None) -> dict[str, float]:
    """The median of each of these runtimes."""
    spawn = multiprocessing.get_context("spawn")
    pipes: dict[str, Connection] = {}
    processes = []
    for name in names:
        pipes[name], theirs = spawn.Pipe()
        processes.append(spawn.Process(target=serve, args=(name, dtype, side, group, theirs), daemon=True))
        processes[-1].start()
        theirs.close()
        pipes[name].recv()
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(rounds):
        for name, pipe in pipes.items():
            time.sleep(0.15)  # threads of the one before may still wait at full speed, and a quota has to fill again
            pipe.send(True)
            seconds[name].append(pipe.recv())
    for pipe in pipes.values():
        pipe.send(False)
    for process in processes:
        process.join()
    return {name: statistics.median(values) for name, values in seconds.items()}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="compact-x2: ours, ONNX Runtime and OpenVINO.")
    parser.add_argument("--sides", nargs="*", type=int, default=[512])
    parser.add_argument("--dtypes", nargs="*", default=list(RUNTIMES))
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    from core.engine.onnx import multiplies_bf16

    situations: dict[str, Callable[[], contextlib.AbstractContextManager[Path | None]]] = {
        "alone": contextlib.nullcontext,
        "beside a busy process": neighbour,
        "granted 1.7 processors": lambda: control_group(1.7),
        "granted 1.0 processors": lambda: control_group(1.0),
    }
    print(f"{os.cpu_count()} processors, medians of {arguments.rounds}\n")
    print("| input | precision | where | seconds | best of the others / ours |\n" + "|---" * 5 + "|")
    for side in arguments.sides:
        for dtype in arguments.dtypes:
            names = [name for name, package in RUNTIMES[dtype].items() if importlib.util.find_spec(package)]
            for situation, make in situations.items():
                cells = f"| {side}x{side} | {dtype} | {situation} |"
                if dtype == "bfloat16" and not multiplies_bf16():
                    print(f"{cells} the processor has no AMX, or OpenVINO is not installed | - |")
                    continue
                try:
                    with make() as group:
                        found = in_turns(names, dtype, side, arguments.rounds, group)
                except OSError as error:
                    print(f"{cells} control groups cannot be written here: {error.strerror} | - |")
                    continue
                least = min(value for name, value in found.items() if name != OURS)
                text = ", ".join(f"{name} {value:.2f}" for name, value in found.items())
                print(f"{cells} {text} | {least / found[OURS]:.2f} |", flush=True)


if __name__ == "__main__":
    main()
