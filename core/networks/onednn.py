"""Operators of oneDNN that PyTorch has for its own compiler only (`torch.ops.mkldnn`): all uses of them are here.

They give what the public operators do not: kernels that do not change with the size of the input, so that tiles have
the bits of the whole; weights packed once; and the activation inside the kernel. Each private name has a public
operator beside it in the networks, for devices and types that oneDNN does not know.
"""

from __future__ import annotations

import torch
from torch import Tensor


def multiplies_bf16() -> bool:
    """Whether this processor multiplies bf16 natively (AVX-512 BF16 or AMX)."""
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def supports(x: Tensor) -> bool:
    """Whether oneDNN has kernels for this tensor's device and type."""
    if not x.is_cpu or not torch._C._has_mkldnn:
        return False
    return x.dtype == torch.float32 or (x.dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())


def convolve(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Convolve so that the size stays, always with the same kernels; conv2d takes others for small inputs.

    Args:
        x: (n, in, h, w).
        weight: (out, in, side, side).
        bias: (out,).

    Returns:
        (n, out, h, w).
    """
    pad = weight.shape[-1] // 2
    out: Tensor = torch.mkldnn_convolution(x, weight, bias, (pad, pad), (1, 1), (1, 1), 1)
    return out


def pack_convolution(weight: Tensor, shape: list[int]) -> Tensor:
    """The weight (out, in, side, side) in oneDNN's layout for `convolve_rows`; `shape` is that of the input."""
    packed: Tensor = torch.ops.mkldnn._reorder_convolution_weight(
        weight, [0, weight.shape[-1] // 2], [1, 1], [1, 1], 1, shape
    )
    return packed


def convolve_rows(x: Tensor, packed: Tensor, bias: Tensor | None, side: int, silu: bool, add: Tensor | None) -> Tensor:
    """Convolve rows that already have their context above and below, padded at the left and right only.

    Args:
        x: (1, in, rows + side - 1, w).
        packed: from `pack_convolution`.
        bias: (out,), or None.
        side: of the kernel.
        silu: whether SiLU follows, in the same kernel.
        add: (1, out, rows, w), added before SiLU; or None.

    Returns:
        (1, out, rows, w).
    """
    pad, one = [0, side // 2], [1, 1]
    operator = torch.ops.mkldnn._convolution_pointwise
    if add is None:
        return torch.Tensor(operator(x, packed, bias, pad, one, one, 1, "swish" if silu else "none", [], ""))
    after = "swish" if silu else None
    return torch.Tensor(operator.binary(x, add, packed, bias, pad, one, one, 1, "add", 1.0, after, [], None))


def pack_linear(weight: Tensor, tokens: int) -> Tensor:
    """The weight (out, in) in oneDNN's layout for `linear` of this many tokens."""
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight, tokens)
    return packed


def linear(x: Tensor, packed: Tensor, bias: Tensor, gelu: bool) -> Tensor:
    """(tokens, in) -> (tokens, out), and GELU if asked for; `packed` is from `pack_linear`."""
    out: Tensor = torch.ops.mkldnn._linear_pointwise(x, packed, bias, "gelu" if gelu else "none", [], "none")
    return out
