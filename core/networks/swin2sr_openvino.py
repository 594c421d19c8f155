"""Swin2SR's attention layers in OpenVINO, which brings kernels that PyTorch lacks: softmax(QK)V in the cache, and AMX.

A layer's graph is that of `core.networks.swin2sr` for one chunk of windows: always the same shape, so that it is
compiled once for any picture, and a window's result has the same bits wherever it is. Weights are inputs: all layers of
one shape share one graph, and opening a network takes some tenths of a second. Tokens stay fp32 between layers, also
where products are bf16.

Shapes are named as there: T tokens in B windows of N tokens, C channels, H heads of D channels.
"""

from __future__ import annotations

import importlib.util
import platform
import queue
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from core.networks.swin2sr_windows import Runs, shift_masks


def is_installed() -> bool:
    """Whether there is an OpenVINO whose kernels are worth it: on x86-64."""
    return platform.machine() in ("x86_64", "AMD64") and importlib.util.find_spec("openvino") is not None


class LayerGraph:
    """The compiled graphs of all attention layers of one shape.

    Args:
        shape: B, N, C, H and the channels within the MLP.
        eps: of the layer norms.
        dtype: what products are computed in, "float32" or "bfloat16".
        threads: calls at once, each on one thread.
    """

    def __init__(self, shape: tuple[int, int, int, int, int], eps: float, dtype: str, threads: int) -> None:
        import openvino

        settings = {
            "INFERENCE_PRECISION_HINT": "bf16" if dtype == "bfloat16" else "f32",
            "NUM_STREAMS": threads,
            "INFERENCE_NUM_THREADS": threads,
            "ENABLE_CPU_PINNING": False,  # a processor that another process takes must not hold a thread up
        }
        self._tensor = openvino.Tensor
        self._idle: dict[bool, queue.LifoQueue[Any]] = {}
        for masked in (False, True):
            compiled = openvino.Core().compile_model(_graph(*shape, eps, masked), "CPU", settings)
            self._idle[masked] = queue.LifoQueue()
            for _ in range(threads):
                self._idle[masked].put(compiled.create_infer_request())

    def weights(self, arrays: Sequence[NDArray[np.float32]]) -> list[Any]:
        """Take a layer's weights over.

        Args:
            arrays: in the order of `_graph`'s inputs.

        Returns:
            What `run` takes.
        """
        return [self._tensor(np.ascontiguousarray(array)) for array in arrays]

    def run(self, weights: list[Any], x: Tensor, mask: NDArray[np.float32] | None, result: Tensor) -> None:
        """Compute a layer for a chunk; may be called by several threads at once.

        Args:
            weights: from `weights`.
            x: (T, C) fp32, contiguous.
            mask: (B, 1, N, N), added to the logits; None where no window needs one.
            result: (T, C) fp32, contiguous, which is filled.
        """
        idle = self._idle[mask is not None]
        request = idle.get()
        try:
            inputs = [self._tensor(x.numpy(), shared_memory=True), *weights]
            if mask is not None:
                inputs.append(self._tensor(mask, shared_memory=True))
            for index, tensor in enumerate(inputs):
                request.set_input_tensor(index, tensor)
            request.set_output_tensor(self._tensor(result.numpy(), shared_memory=True))
            request.infer()
        finally:
            idle.put(request)


@lru_cache(maxsize=32)
def _mask(window: int, shift: int, runs: tuple[tuple[int, int], ...]) -> NDArray[np.float32] | None:
    if not any(kind for _, kind in runs):
        return None
    kinds = torch.tensor([kind for count, kind in runs for _ in range(count)])
    mask: NDArray[np.float32] = shift_masks(window, shift)[kinds].contiguous().numpy()
    return mask


def mask_of(window: int, shift: int, runs: Runs) -> NDArray[np.float32] | None:
    """Make the mask of a chunk.

    Args:
        window: side, in tokens.
        shift: of the windows, in tokens.
        runs: of the chunk.

    Returns:
        (B, 1, N, N); None where all its windows lie within the picture. The last ones are kept.
    """
    return _mask(window, shift, tuple(runs))


def _graph(windows: int, tokens: int, dim: int, heads: int, hidden: int, eps: float, masked: bool) -> Any:
    """The graph of a layer. Its inputs: tokens, weights in the order of `core.networks.swin2sr._Layer`, mask."""
    import openvino
    from openvino import opset14 as op

    width = dim // heads  # D
    inputs: list[Any] = []

    def given(*shape: int) -> Any:
        inputs.append(op.parameter(shape, np.float32))
        return inputs[-1]

    def constant(value: float | list[float]) -> Any:
        return op.constant(np.array(value, np.float32))

    def axes(*values: int) -> Any:
        return op.constant(np.array(values, np.int64))

    def linear(x: Any, outputs: int, inner: int = dim, *, bias: bool = True) -> Any:
        y = op.matmul(x, given(inner, outputs), False, False)
        return op.add(y, given(1, outputs)) if bias else y

    def norm(x: Any) -> Any:
        return op.add(op.multiply(op.mvn(x, axes(-1), True, eps, "INSIDE_SQRT"), given(1, dim)), given(1, dim))

    def by_head(x: Any) -> Any:
        return op.reshape(x, axes(windows, tokens, heads, width), False)  # (B, N, H, D)

    x = given(windows * tokens, dim)  # (T, C)
    q, k, v = by_head(linear(x, dim)), by_head(linear(x, dim, bias=False)), by_head(linear(x, dim))
    # Written as a root mean square, for which there is one kernel, queries become 1 long.
    square = op.reduce_mean(op.power(q, constant(2)), axes(-1), True)
    q = op.multiply(q, op.divide(constant(1), op.sqrt(op.add(square, constant(1e-24)))))
    q = op.multiply(q, constant([width**-0.5] * width))
    # Keys become as long as the logit scale: transposed first, sums over D are of whole vectors.
    k = op.transpose(k, axes(0, 2, 3, 1))  # (B, H, D, N)
    length = op.sqrt(op.maximum(op.reduce_sum(op.multiply(k, k), axes(2), True), constant(1e-24)))
    k = op.multiply(k, op.divide(given(1, heads, 1, 1), length))
    logits = op.matmul(op.transpose(q, axes(0, 2, 1, 3)), k, False, False)  # (B, H, N, N)
    logits = op.add(logits, given(1, heads, tokens, tokens))
    mask = op.parameter((windows, 1, tokens, tokens), np.float32)
    if masked:
        logits = op.add(logits, mask)
    y = op.matmul(op.softmax(logits, 3), op.transpose(v, axes(0, 2, 1, 3)), False, False)  # (B, H, N, D)
    y = op.reshape(op.transpose(y, axes(0, 2, 1, 3)), axes(windows * tokens, dim), False)
    x = op.add(norm(linear(y, dim)), x)
    y = linear(op.gelu(linear(x, hidden), "erf"), dim, hidden)
    return openvino.Model([op.add(norm(y), x)], [*inputs, mask] if masked else inputs)
