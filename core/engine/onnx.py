"""Networks from an ONNX file on a CPU: ONNX Runtime in fp32, OpenVINO in bf16 where the processor multiplies that.

ONNX Runtime computes one tile at a time, with all threads on each operation; OpenVINO as many tiles at once as there
are threads, each with one. For the same memory the one tile is as large as two of those, whatever the number of
threads, and has less halo. In ONNX Runtime 512x512 took 5 % less time than with a tile on each of two threads, and 4 %
less under a quota of 1.7 processors; beside a busy process it takes 15 % more.
"""

from __future__ import annotations

import importlib.util
import queue
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from core.errors import ModelError

#: (1, 3, h, w) float32 in [0, 1] to (1, 3, scale * h, scale * w) float32, not clipped.
Network = Callable[[NDArray[np.float32]], NDArray[np.float32]]


def multiplies_bf16() -> bool:
    """Whether networks run in bf16 here: the processor has AMX and OpenVINO is installed."""
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    return " amx_bf16" in flags and importlib.util.find_spec("openvino") is not None


def open_network(file: Path, scale: int, dtype: str, threads: int) -> Network:
    """Open an exported network.

    Args:
        file: with input "x" and one output, and sides of any size.
        scale: what config.json says of it.
        dtype: "float32" or "bfloat16", of which the second needs OpenVINO.
        threads: how many it may take. OpenVINO: each for a call of its own.

    Returns:
        The network; it may be called by several threads at once.

    Raises:
        ModelError: the file is damaged, or does not belong to its config.json.
    """
    probe = np.zeros((1, 3, 8, 8), np.float32)
    try:
        net = _openvino(file, threads) if dtype == "bfloat16" else _onnxruntime(file, threads)
        made = net(probe)
    except ImportError as error:
        raise ModelError(f"a runtime for {file.name} is not installed: pip install onnxruntime") from error
    except Exception as error:  # both runtimes raise errors of their own
        detail = str(error).strip().splitlines()
        raise ModelError(f"{file} is damaged: {detail[0] if detail else type(error).__name__}") from error
    if made.shape != (1, 3, 8 * scale, 8 * scale):
        raise ModelError(f"{file} does not fit its config.json: {made.shape} is not {scale} times {probe.shape}")
    if not np.isfinite(made).all():
        raise ModelError(f"the weights of {file} hold NaN or infinity: the file is damaged")
    return net


def _onnxruntime(file: Path, threads: int) -> Network:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.enable_mem_pattern = False  # memory planned for each size of tile is half as much again
    options.log_severity_level = 3  # errors only
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])

    def run(x: NDArray[np.float32]) -> NDArray[np.float32]:
        made: NDArray[np.float32] = session.run(None, {"x": x})[0]
        return made

    return run


def _openvino(file: Path, threads: int) -> Network:
    import openvino

    settings = {
        "INFERENCE_PRECISION_HINT": "bf16",
        "NUM_STREAMS": threads,
        "INFERENCE_NUM_THREADS": threads,
    }
    compiled = openvino.Core().compile_model(str(file), "CPU", settings)
    idle: queue.LifoQueue[Any] = queue.LifoQueue()
    for _ in range(threads):
        idle.put(compiled.create_infer_request())

    def run(x: NDArray[np.float32]) -> NDArray[np.float32]:
        request = idle.get()
        try:
            return np.array(request.infer([x])[0])  # a copy: the request's own memory is used again
        finally:
            idle.put(request)

    return run
