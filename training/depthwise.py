"""Depthwise convolution on CUDA for training, in Triton: PyTorch's own is an order of magnitude slower there."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

PIXELS, CHUNK_PIXELS, CHUNK_STEPS = 64, 16, 256


@triton.jit  # type: ignore[untyped-decorator]
def _correlate(x, weight, out, height, width, channels, pixels, SIDE: tl.constexpr, C: tl.constexpr, P: tl.constexpr):  # type: ignore[no-untyped-def]
    """out[n, y, x, c] = sum over taps of x[n, y + dy, x + dx, c] * weight[dy, dx, c]."""
    place = tl.program_id(0) * P + tl.arange(0, P)
    channel = tl.arange(0, C)
    column, row = place % width, place // width % height
    inside = (place < pixels)[:, None] & (channel < channels)[None, :]
    total = tl.zeros([P, C], tl.float32)
    for tap in range(SIDE * SIDE):
        dy, dx = tap // SIDE - SIDE // 2, tap % SIDE - SIDE // 2
        there = (row + dy >= 0) & (row + dy < height) & (column + dx >= 0) & (column + dx < width)
        offset = (place + dy * width + dx)[:, None] * channels + channel[None, :]
        value = tl.load(x + offset, mask=inside & there[:, None], other=0.0).to(tl.float32)
        factor = tl.load(weight + tap * channels + channel, mask=channel < channels, other=0.0)
        total += value * factor[None, :]
    tl.store(out + place[:, None] * channels + channel[None, :], total.to(out.dtype.element_ty), mask=inside)


@triton.jit  # type: ignore[untyped-decorator]
def _weigh(x, grad, out, height, width, channels, pixels, SIDE: tl.constexpr, S: tl.constexpr, C: tl.constexpr,  # type: ignore[no-untyped-def]
           P: tl.constexpr, STEPS: tl.constexpr):
    """out[chunk, dy, dx, c] = sum over a chunk's pixels of x[n, y + dy, x + dx, c] * grad[n, y, x, c]."""
    chunk, dy = tl.program_id(0), tl.program_id(1) - SIDE // 2
    channel = tl.arange(0, C)
    tap = tl.arange(0, S)
    dx = tap - SIDE // 2
    total = tl.zeros([S, P, C], tl.float32)
    for step in range(STEPS):
        place = (chunk * STEPS + step) * P + tl.arange(0, P)
        column, row = place % width, place // width % height
        inside = (place < pixels)[:, None] & (channel < channels)[None, :]
        slope = tl.load(grad + place[:, None] * channels + channel[None, :], mask=inside, other=0.0).to(tl.float32)
        beside = column[None, :] + dx[:, None]
        there = (beside >= 0) & (beside < width) & ((row + dy >= 0) & (row + dy < height))[None, :] & (tap < SIDE)[:, None]
        offset = (place[None, :] + dy * width + dx[:, None])[:, :, None] * channels + channel[None, None, :]
        value = tl.load(x + offset, mask=inside[None, :, :] & there[:, :, None], other=0.0).to(tl.float32)
        total += value * slope[None, :, :]
    sums = tl.sum(total, axis=1)
    offset = ((chunk * SIDE + tl.program_id(1)) * SIDE + tap)[:, None] * channels + channel[None, :]
    tl.store(out + offset, sums, mask=(tap < SIDE)[:, None] & (channel < channels)[None, :])


def _run(x: Tensor, weight: Tensor) -> Tensor:
    """x: (n, c, h, w), channels_last; weight: (side, side, c) float32."""
    n, channels, height, width = x.shape
    out = torch.empty_like(x)
    pixels = n * height * width
    side, lanes = weight.shape[0], triton.next_power_of_2(channels)
    _correlate[(triton.cdiv(pixels, PIXELS),)](x, weight, out, height, width, channels, pixels, side, lanes, PIXELS)
    return out


class _Depthwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:  # type: ignore[override]
        taps = weight[:, 0].permute(1, 2, 0).float().contiguous()  # (side, side, c)
        ctx.save_for_backward(x, taps)
        return _run(x, taps)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        x, taps = ctx.saved_tensors
        grad = grad.contiguous(memory_format=torch.channels_last)
        n, channels, height, width = x.shape
        side = taps.shape[0]
        pixels = n * height * width
        chunks = triton.cdiv(pixels, CHUNK_PIXELS * CHUNK_STEPS)
        parts = torch.empty(chunks, side, side, channels, device=x.device)
        _weigh[(chunks, side)](
            x, grad, parts, height, width, channels, pixels, side, triton.next_power_of_2(side),
            triton.next_power_of_2(channels), CHUNK_PIXELS, CHUNK_STEPS,
        )
        return _run(grad, taps.flip(0, 1).contiguous()), parts.sum(0).permute(2, 0, 1)[:, None]


def depthwise(x: Tensor, weight: Tensor) -> Tensor:
    """As F.conv2d(x, weight, padding=side // 2, groups=channels): (n, c, h, w) and (c, 1, side, side), channels_last."""
    return _Depthwise.apply(x.contiguous(memory_format=torch.channels_last), weight)


def check(device: str) -> float:
    """Largest relative difference from PyTorch's own, of result and gradients."""
    torch.manual_seed(0)
    x = torch.randn(2, 64, 19, 23, device=device).contiguous(memory_format=torch.channels_last).requires_grad_()
    weight = torch.randn(64, 1, 7, 7, device=device).requires_grad_()
    slope = torch.randn(2, 64, 19, 23, device=device)
    ours, theirs = depthwise(x, weight), F.conv2d(x, weight, padding=3, groups=64)
    pairs = [(ours, theirs)]
    pairs += zip(torch.autograd.grad(ours, (x, weight), slope), torch.autograd.grad(theirs, (x, weight), slope))
    return max(float((a - b).norm() / b.norm()) for a, b in pairs)
