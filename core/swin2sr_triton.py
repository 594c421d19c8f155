"""The two kernels of a Swin2SR attention layer on a CUDA card (needs Triton; imported only where there is a card).

PyTorch's own operators would write 25 tensors of the size of the tokens to memory in a layer; these two write 2. The
first reads tokens from where its windows lie in the picture, shifted or not, and keeps scores in registers; the second
keeps the MLP's hidden values there. Sums, norms and softmax are fp32, products bf16.

Shapes: T tokens, one a pixel, row by row; P channels, the network's filled up with zeros to a multiple of 64; H heads
of D channels, filled up likewise to a power of two of at least 16; windows of 8x8 = 64 tokens.
"""

# Triton's compiler reads these functions itself and has no types for their arguments.
# mypy: ignore-errors
# ruff: noqa: N803 - constants of a kernel are in capitals, as everybody writes them

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

#: How the kernels are cut up, by measurement on an H100 (bench.gpu). Programs are those of a multiprocessor.
ATTEND = {"programs": 2, "stages": 2, "warps": 4}
FEED = {"block": 128, "wide": 64, "stages": 2, "warps": 8}


@triton.jit
def _side(token, lowest, rightmost, SHIFT: tl.constexpr):
    """Which side of the picture a token of a shifted window comes from."""
    below = (token // 8 >= 8 - SHIFT) & lowest
    right = (token % 8 >= 8 - SHIFT) & rightmost
    return 2 * below.to(tl.int32) + right.to(tl.int32)


@triton.jit(do_not_specialize=["h", "w", "windows"])  # else other sizes would be compiled anew
def attend(
    x,  # (T, P)
    weight,  # (3 * H, P, D): query, key, value
    bias,  # (3 * H, D)
    position,  # (H, 64, 64)
    gain,  # (H,)
    out,  # (T, H * D)
    h,
    w,
    windows,
    P: tl.constexpr,
    D: tl.constexpr,
    SHIFT: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Cosine attention of one head in every window that is this program's; program (head, i) takes every i-th."""
    head, heads = tl.program_id(0), tl.num_programs(0)
    token, column, channel = tl.arange(0, 64), tl.arange(0, 64), tl.arange(0, D)
    matrix = weight + head * P * D + column[:, None] * D + channel[None, :]
    # Loaded once, used for all windows.
    wq, wk, wv = (), (), ()
    for i in tl.static_range(P // 64):
        wq += (tl.load(matrix + i * 64 * D),)
        wk += (tl.load(matrix + (heads * P + i * 64) * D),)
        wv += (tl.load(matrix + (2 * heads * P + i * 64) * D),)
    vector = bias + head * D + channel
    bq = tl.load(vector).to(tl.float32)
    bk = tl.load(vector + heads * D).to(tl.float32)
    bv = tl.load(vector + 2 * heads * D).to(tl.float32)
    # Logits times log2(e), since the card has powers of two.
    places = 1.4426950409 * tl.load(position + (head * 64 + token[:, None]) * 64 + column[None, :]).to(tl.float32)
    scale = 1.4426950409 * tl.load(gain + head).to(tl.float32)
    rows, columns = h // 8, w // 8
    for window in tl.range(tl.program_id(1), windows, tl.num_programs(1), num_stages=STAGES):
        row, left = window // columns % rows, window % columns
        y, z = row * 8 + token // 8 + SHIFT, left * 8 + token % 8 + SHIFT
        y, z = tl.where(y < h, y, y - h), tl.where(z < w, z, z - w)
        place = (window // (rows * columns) * h + y) * w + z  # (64,), in T
        q = tl.zeros((64, D), tl.float32) + bq[None, :]
        k = tl.zeros((64, D), tl.float32) + bk[None, :]
        v = tl.zeros((64, D), tl.float32) + bv[None, :]
        for i in tl.static_range(P // 64):
            part = tl.load(x + place[:, None] * P + i * 64 + column[None, :])
            q = tl.dot(part, wq[i], q)
            k = tl.dot(part, wk[i], k)
            v = tl.dot(part, wv[i], v)
        q *= (scale * tl.rsqrt(tl.maximum(tl.sum(q * q, 1), 1e-24)))[:, None]
        k *= tl.rsqrt(tl.maximum(tl.sum(k * k, 1), 1e-24))[:, None]
        score = tl.dot(q.to(x.dtype.element_ty), tl.trans(k.to(x.dtype.element_ty))) + places
        if SHIFT:
            # At the picture's lower and right edges, shifted windows hold pixels from opposite sides: no attention.
            side = _side(token, row == rows - 1, left == columns - 1, SHIFT)
            other = _side(column, row == rows - 1, left == columns - 1, SHIFT)
            score = tl.where(side[:, None] == other[None, :], score, score - 300)
        share = tl.exp2(score - tl.max(score, 1)[:, None])
        made = tl.dot(share.to(x.dtype.element_ty), v.to(x.dtype.element_ty)) / tl.sum(share, 1)[:, None]
        tl.store(out + place[:, None] * (heads * D) + head * D + channel[None, :], made.to(x.dtype.element_ty))


@triton.jit
def _gelu(x, FAST: tl.constexpr):
    """By the error function; FAST by the tanh that the hardware has, which is 0.0005 away at most."""
    if FAST:
        y = tl.inline_asm_elementwise(
            "tanh.approx.f32 $0, $1;",
            "=f,f",
            [x * (0.7978845608 + 0.03567740814 * x * x)],
            dtype=tl.float32,
            is_pure=True,
            pack=1,
        )
    else:
        y = tl.erf(x * 0.7071067812)
    return 0.5 * x * (1 + y)


@triton.jit
def _normed(parts, scale, shift, column, DIM: tl.constexpr, EPS: tl.constexpr):
    """Layer norm over the first DIM of the channels, which come in parts of (tokens, 64); 0 in the others."""
    total = tl.sum(parts[0], 1)
    for i in tl.static_range(1, len(parts)):
        total += tl.sum(parts[i], 1)
    mean = total / DIM  # what is filled up is 0
    squares = total * 0
    for i in tl.static_range(len(parts)):
        away = tl.where((i * 64 + column < DIM)[None, :], parts[i] - mean[:, None], 0)
        squares += tl.sum(away * away, 1)
    factor = tl.rsqrt(squares / DIM + EPS)
    made = ()
    for i in tl.static_range(len(parts)):
        by, plus = tl.load(scale + i * 64 + column), tl.load(shift + i * 64 + column)  # 0 beyond DIM
        by, plus = by.to(tl.float32), plus.to(tl.float32)
        made += ((parts[i] - mean[:, None]) * factor[:, None] * by[None, :] + plus[None, :],)
    return made


@triton.jit(do_not_specialize=["tokens"])
def feed(
    x,  # (T, P)
    attended,  # (T, A)
    out,  # (T, P)
    project,  # (A, P)
    expand,  # (P, HIDDEN)
    reduce,  # (HIDDEN, P)
    vectors,  # (6, P): bias, norm's scale and shift after the projection; the same after the MLP
    hidden_bias,  # (HIDDEN,)
    tokens,
    P: tl.constexpr,
    A: tl.constexpr,
    HIDDEN: tl.constexpr,
    DIM: tl.constexpr,
    EPS: tl.constexpr,
    BLOCK: tl.constexpr,
    WIDE: tl.constexpr,
    DEEP: tl.constexpr,
    STAGES: tl.constexpr,
    FAST: tl.constexpr,
):
    """The rest of the layer: attention's projection, norm, sum, MLP, norm, sum; BLOCK tokens a program."""
    token, column = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK), tl.arange(0, 64)
    there = (token < tokens)[:, None]
    token = token.to(tl.int64)[:, None]
    deep, wide = tl.arange(0, DEEP), tl.arange(0, WIDE)
    sums = ()
    for j in tl.static_range(P // 64):
        sums += (tl.zeros((BLOCK, 64), tl.float32) + tl.load(vectors + j * 64 + column)[None, :],)
    for i in tl.range(0, A, DEEP, num_stages=STAGES):
        part = tl.load(attended + token * A + i + deep[None, :], mask=there, other=0)  # (BLOCK, DEEP)
        more = ()
        for j in tl.static_range(P // 64):
            more += (tl.dot(part, tl.load(project + (i + deep[:, None]) * P + j * 64 + column[None, :]), sums[j]),)
        sums = more
    normed = _normed(sums, vectors + P, vectors + 2 * P, column, DIM, EPS)
    y, sums = (), ()
    for j in tl.static_range(P // 64):
        before = tl.load(x + token * P + j * 64 + column[None, :], mask=there, other=0)
        y += ((normed[j] + before).to(x.dtype.element_ty),)
        sums += (tl.zeros((BLOCK, 64), tl.float32) + tl.load(vectors + 3 * P + j * 64 + column)[None, :],)
    for i in tl.range(0, HIDDEN, WIDE, num_stages=STAGES):
        hidden = tl.zeros((BLOCK, WIDE), tl.float32) + tl.load(hidden_bias + i + wide)[None, :]
        for j in tl.static_range(P // 64):
            hidden = tl.dot(y[j], tl.load(expand + (j * 64 + column[:, None]) * HIDDEN + i + wide[None, :]), hidden)
        part = _gelu(hidden, FAST).to(x.dtype.element_ty)  # (BLOCK, WIDE)
        more = ()
        for j in tl.static_range(P // 64):
            more += (tl.dot(part, tl.load(reduce + (i + wide[:, None]) * P + j * 64 + column[None, :]), sums[j]),)
        sums = more
    normed = _normed(sums, vectors + 4 * P, vectors + 5 * P, column, DIM, EPS)
    for j in tl.static_range(P // 64):
        tl.store(out + token * P + j * 64 + column[None, :], (normed[j] + y[j]).to(x.dtype.element_ty), mask=there)


@triton.jit(do_not_specialize=["tokens"])
def norm(
    x,  # (T, P)
    out,  # (T, P)
    scale,  # (P,)
    shift,  # (P,)
    tokens,
    P: tl.constexpr,
    DIM: tl.constexpr,
    EPS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Layer norm over the first DIM channels; BLOCK tokens a program."""
    token, column = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK), tl.arange(0, 64)
    there = (token < tokens)[:, None]
    token = token.to(tl.int64)[:, None]
    parts = ()
    for i in tl.static_range(P // 64):
        parts += (tl.load(x + token * P + i * 64 + column[None, :], mask=there, other=0).to(tl.float32),)
    normed = _normed(parts, scale, shift, column, DIM, EPS)
    for i in tl.static_range(P // 64):
        tl.store(out + token * P + i * 64 + column[None, :], normed[i].to(x.dtype.element_ty), mask=there)


def run_attend(x: Tensor, weight: Tensor, bias: Tensor, position: Tensor, gain: Tensor, shift: int) -> Tensor:
    """`attend` on (n, h, w, P), contiguous; gives (n, h, w, H * D)."""
    n, h, w, pad = x.shape
    heads, each = len(gain), bias.shape[1]
    windows = n * h * w // 64
    out = x.new_empty(n, h, w, heads * each)
    programs = max(1, min(windows, _multiprocessors(x) * ATTEND["programs"] // heads))
    attend[(heads, programs)](
        x, weight, bias, position, gain, out, h, w, windows,
        P=pad, D=each, SHIFT=shift, STAGES=ATTEND["stages"], num_warps=ATTEND["warps"],
    )  # fmt: skip
    return out


def run_feed(
    x: Tensor,
    attended: Tensor,
    project: Tensor,
    expand: Tensor,
    reduce: Tensor,
    vectors: Tensor,
    hidden_bias: Tensor,
    dim: int,
    eps: float,
) -> Tensor:
    """`feed` on (n, h, w, P) and (n, h, w, H * D), contiguous; gives (n, h, w, P)."""
    tokens, inner, hidden = x.numel() // x.shape[-1], attended.shape[-1], expand.shape[1]
    out = torch.empty_like(x)
    feed[(triton.cdiv(tokens, FEED["block"]),)](
        x, attended, out, project, expand, reduce, vectors, hidden_bias, tokens,
        P=x.shape[-1], A=inner, HIDDEN=hidden, DIM=dim, EPS=eps, BLOCK=FEED["block"], WIDE=FEED["wide"],
        DEEP=math.gcd(inner, 64), STAGES=FEED["stages"], FAST=x.is_cuda, num_warps=FEED["warps"],
    )  # fmt: skip
    return out


def run_norm(x: Tensor, weight: Tensor, bias: Tensor, dim: int, eps: float) -> Tensor:
    """`norm` on (..., P), contiguous."""
    tokens, out = x.numel() // x.shape[-1], torch.empty_like(x)
    norm[(triton.cdiv(tokens, 32),)](x, out, weight, bias, tokens, P=x.shape[-1], DIM=dim, EPS=eps, BLOCK=32)
    return out


def _multiprocessors(x: Tensor) -> int:
    return torch.cuda.get_device_properties(x.device).multi_processor_count if x.is_cuda else 1
