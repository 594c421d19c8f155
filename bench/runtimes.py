"""Swin2SR on this CPU in four runtimes: python -m bench.runtimes [CHECKPOINT] [--rounds 5] [--threads 2]

Same weights, same picture, same number of threads; in fp32, and in bf16 what computes in it, beside transformers in
fp32. Each runtime has a separate process, so that none has
another one's allocator or waiting threads, and they take turns, so that a slow minute of the machine hits all of them.
A megapixel is as many tiles as it is cut into, times the median of one: regions of 256x256 at most for all of them,
though this project takes larger ones, because exporting those for the others takes more than 24 GB.
Besides the checkpoint, the classical configuration is run with random weights. OpenVINO comes with the
extra `torch`, the exporter with `dev`; what is absent, the table says.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.util
import itertools
import math
import multiprocessing
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from core import models
from core.engine import tiling
from core.networks import onednn

Picture = NDArray[np.float32]  # (1, 3, h, w)
Run = Callable[[Picture], Picture]

CHECKPOINT = Path(__file__).parents[1] / "../shared/models/swin2SR-lightweight-x2-64"

OURS, TRANSFORMERS, OPENVINO = "ours", "transformers", "OpenVINO"
#: By the name in the table: the package that it needs.
PACKAGES = {OURS: "torch", TRANSFORMERS: "transformers", "ONNX Runtime": "onnxruntime", OPENVINO: "openvino"}


@dataclass
class Turns:
    """What one runtime took.

    Attributes:
        load: seconds from nothing imported to ready, the exported file being there already.
        made: its result.
        seconds: of each run.
    """

    load: float
    made: Picture
    seconds: list[float] = field(default_factory=list)


def ours(checkpoint: Path, threads: int, dtype: str) -> Run:
    import torch

    from core.engine.pytorch import open_network

    torch.set_num_threads(threads)
    return open_network(models.spec_of(str(checkpoint)), checkpoint, "cpu", dtype)


def reference(checkpoint: Path) -> Any:
    """Transformers' network as a function of a tensor that gives one."""
    import torch
    from transformers import Swin2SRForImageSuperResolution

    class Reconstruction(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = Swin2SRForImageSuperResolution.from_pretrained(checkpoint)

        def forward(self, x: torch.Tensor) -> Any:
            return self.net(x).reconstruction

    return Reconstruction().train(False)


def transformers(checkpoint: Path, threads: int) -> Run:
    import torch

    torch.set_num_threads(threads)
    net = reference(checkpoint)

    def run(x: Picture) -> Picture:
        with torch.inference_mode():
            result: Picture = net(torch.from_numpy(x)).numpy()
            return result

    return run


def onnxruntime(file: Path, threads: int) -> Run:
    runtime = importlib.import_module("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads
    session = runtime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    return lambda x: np.asarray(session.run(None, {"x": x})[0])


def openvino(file: Path, threads: int, dtype: str) -> Run:
    runtime = importlib.import_module("openvino")
    # fp32 is asked for: where the processor multiplies bf16, the default would be that.
    hint = "bf16" if dtype == "bfloat16" else "f32"
    settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": hint, "INFERENCE_NUM_THREADS": threads}
    request = runtime.Core().compile_model(file, "CPU", settings).create_infer_request()
    return lambda x: np.asarray(request.infer([x])[0])


def export(checkpoint: Path, file: Path, side: int) -> None:
    """Transformers' network for this size as ONNX: its windows are constants of the file."""
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that this exporter is the old one, which needs no further packages
        x = torch.rand(1, 3, side, side)
        torch.onnx.export(reference(checkpoint), (x,), file, input_names=["x"], dynamo=False, opset_version=17)


def classical(folder: Path) -> Path:
    """A checkpoint of the classical configuration at x2, with random weights."""
    import torch
    from transformers import Swin2SRConfig, Swin2SRForImageSuperResolution

    torch.manual_seed(0)
    config = Swin2SRConfig(num_heads=[6] * 6, upscale=2, upsampler="pixelshuffle")
    Swin2SRForImageSuperResolution(config).save_pretrained(folder)
    return folder


def serve(name: str, checkpoint: Path, file: Path, threads: int, dtype: str, side: int, pipe: Connection) -> None:
    """In a separate process: load, send (seconds, result), then run and send the seconds whenever asked to."""
    start = time.perf_counter()
    if name == OURS:
        run = ours(checkpoint, threads, dtype)
    elif name == TRANSFORMERS:
        run = transformers(checkpoint, threads)
    elif name == OPENVINO:
        run = openvino(file, threads, dtype)
    else:
        run = onnxruntime(file, threads)
    load = time.perf_counter() - start
    x = np.random.default_rng(0).random((1, 3, side, side), np.float32)
    pipe.send((load, run(x)))  # the first run also fills caches: not counted
    with contextlib.suppress(EOFError):  # the one that asks has been stopped
        while pipe.recv():
            start = time.perf_counter()
            run(x)
            pipe.send(time.perf_counter() - start)


def in_turns(checkpoint: Path, names: list[str], side: int, threads: int, dtype: str, rounds: int) -> dict[str, Turns]:
    """Each of these runtimes on the same random picture; without those that the network could not be exported for."""
    spawn = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "network.onnx"
        if set(names) - {OURS, TRANSFORMERS}:
            exporting = spawn.Process(target=export, args=(checkpoint, file, side))
            exporting.start()
            exporting.join()
            if exporting.exitcode:
                names = [name for name in names if name in (OURS, TRANSFORMERS)]
        pipes, found = {}, {}
        for name in names:
            pipes[name], theirs = spawn.Pipe()
            task = (name, checkpoint, file, threads, dtype, side, theirs)
            spawn.Process(target=serve, args=task, daemon=True).start()
            theirs.close()
            found[name] = Turns(*pipes[name].recv())  # one after another, or they would slow each other down
        for _ in range(rounds):
            for name, pipe in pipes.items():
                time.sleep(0.1)  # threads of the one before may still be waiting for work, at full speed
                pipe.send(True)
                found[name].seconds.append(pipe.recv())
        for pipe in pipes.values():
            pipe.send(False)
    return found


def decibels(made: Picture, truth: Picture) -> float:
    """Agreement of two results, for a range of values of 1."""
    error = float(np.square(made.astype(np.float64) - truth).mean())
    return 10 * math.log10(1 / error) if error else math.inf


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Swin2SR: ours, transformers, ONNX Runtime and OpenVINO.")
    parser.add_argument("checkpoint", type=Path, nargs="?", default=CHECKPOINT)
    parser.add_argument("--sides", nargs="*", type=int, default=[128, 256])
    parser.add_argument("--megapixel", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--classical", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--dtypes", nargs="*", default=["float32", "bfloat16"], help="bf16 where the processor has it")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    names = [name for name, package in PACKAGES.items() if importlib.util.find_spec(package)]
    if not importlib.util.find_spec("onnx"):
        names = [OURS, TRANSFORMERS]
    dtypes = [dtype for dtype in arguments.dtypes if dtype == "float32" or onednn.multiplies_bf16()]
    print(f"{arguments.threads} threads, medians of {arguments.rounds}\n")
    heads = ["network", "input", "precision", "runtime", "load, s", "run, s", "times ours", "agreement, dB"]
    print("| " + " | ".join(heads) + " |\n" + "|---" * len(heads) + "|")
    with tempfile.TemporaryDirectory() as folder:
        checkpoints = [(arguments.checkpoint.name, arguments.checkpoint)] if arguments.checkpoint.exists() else []
        checkpoints += [("classical, random", classical(Path(folder)))] if arguments.classical else []
        for network, checkpoint in checkpoints:
            spec = models.spec_of(str(checkpoint))
            sizes = [(f"{side}x{side}", side, 1) for side in arguments.sides]
            if arguments.megapixel:
                rows = tiling.tile_rows(1000, 1000, min(spec.tile, 256 - 2 * spec.halo), spec.halo, spec.window)
                side, tiles = rows[0][0].rows.size, len(rows) * len(rows[0])
                sizes.append((f"1 megapixel, {tiles} tiles of {side}x{side}", side, tiles))
            for (text, side, count), dtype in itertools.product(sizes, dtypes):
                wanted = [name for name in names if dtype == "float32" or name != "ONNX Runtime"]
                found = in_turns(checkpoint, wanted, side, arguments.threads, dtype, arguments.rounds)
                own, truth = statistics.median(found[OURS].seconds), found[TRANSFORMERS].made
                for name, turns in found.items():
                    run = statistics.median(turns.seconds)
                    agreement = "-" if name == TRANSFORMERS else f"{decibels(turns.made, truth):.0f}"
                    cells = (network, text, dtype, name, f"{turns.load:.1f}", f"{count * run:.2f}", f"{run / own:.2f}")
                    print("| " + " | ".join((*cells, agreement)) + " |", flush=True)
                for name in PACKAGES.keys() - found.keys():
                    why = "not installed (pip install -e '.[torch,dev]'), or the export failed"
                    why = why if dtype == "float32" or name != "ONNX Runtime" else "no bf16 on x86-64"
                    print(f"| {network} | {text} | {dtype} | {name} | {why} | | | |")


if __name__ == "__main__":
    main()
