"""Where the windows of Swin2SR lie: the order of tokens, masks at the picture's edges, offsets within a window.

Shapes: N = window**2 tokens in a window; H attention heads.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby

import torch
from torch import Tensor

#: How many windows of a chunk, one after another, have which kind of mask (see `shift_masks`).
Runs = list[tuple[int, int]]


def offsets(window: int) -> tuple[Tensor, Tensor]:
    """List the offsets between tokens of a window: equations 4 and 5 of Swin V2 (Liu et al. 2022, arXiv:2111.09883).

    Args:
        window: side, in tokens.

    Returns:
        All offsets, log-spaced, ((2 * window - 1)**2, 2); and which one is between which two tokens, (N, N).
    """
    steps = torch.arange(1 - window, window) * (8 / (window - 1))
    steps = steps.sign() * (steps.abs() + 1).log2() / math.log2(8)
    places = torch.cartesian_prod(torch.arange(window), torch.arange(window))  # (N, 2): row, column
    between = places[:, None] - places[None, :] + window - 1  # (N, N, 2), counted from 0
    return torch.cartesian_prod(steps, steps), between[..., 0] * (2 * window - 1) + between[..., 1]


def shift_masks(window: int, shift: int) -> Tensor:
    """Make the masks for windows that reach round the picture's edges.

    Args:
        window: side, in tokens.
        shift: of the windows, in tokens.

    Returns:
        (kinds, 1, N, N), to be added to the logits: four kinds of shifted window, one of others. 0: inside; 1: over
        the right edge; 2: over the lower; 3: both.
    """
    if not shift:
        return torch.zeros(1, 1, 1, 1)
    beyond = torch.arange(window) >= window - shift  # tokens from the other side of the picture
    kinds = []
    for kind in range(4):
        side = (2 * (beyond & (kind >= 2))[:, None] + (beyond & (kind % 2 == 1))).flatten()  # (N,)
        # Between two sides the reference subtracts 100 twice. After softmax that is 0 unless logits differ by 100.
        kinds.append((side[:, None] != side) * -200.0)
    return torch.stack(kinds).unsqueeze(1)


@dataclass(frozen=True)
class Tables:
    """Where tokens come from, for one size of picture: token i of x is token x_from_y[i] of y.

    "picture" is row by row; "plain" window by window; "shifted" window by window with the windows shifted, sorted by
    kind of mask so that few chunks have more than one. The last two are filled up to whole chunks.

    Attributes:
        chunk: tokens in a chunk.
        plain_runs: of each chunk.
        shifted_runs: of each chunk.
    """

    chunk: int
    plain_runs: list[Runs]
    shifted_runs: list[Runs]
    plain_from_picture: Tensor
    shifted_from_plain: Tensor
    plain_from_shifted: Tensor
    picture_from_plain: Tensor
    picture_from_shifted: Tensor

    def into_layer(self, layer: int) -> tuple[Tensor, list[Runs]]:
        """Give the way into an attention layer.

        Args:
            layer: its number in its stage, from 0.

        Returns:
            The table from the order of tokens before it, and the runs of its chunks.
        """
        if layer % 2:
            return self.shifted_from_plain, self.shifted_runs
        return self.plain_from_shifted if layer else self.plain_from_picture, self.plain_runs

    def out_of_layer(self, layer: int) -> Tensor:
        """Give the way out of a stage.

        Args:
            layer: number of its last layer, from 0.

        Returns:
            The table from that layer's order of tokens to the picture's.
        """
        return self.picture_from_shifted if layer % 2 else self.picture_from_plain


@lru_cache(maxsize=8)
@torch.inference_mode(False)  # else tables kept from a call in inference mode would fail one that wants gradients
def window_tables(n: int, h: int, w: int, window: int, chunk: int, device: torch.device) -> Tables:
    """Make the tables for one size of picture.

    Args:
        n: pictures.
        h: height of each, pixels; a multiple of the window.
        w: width of each, pixels; a multiple of the window.
        window: side, in tokens.
        chunk: windows in a chunk.
        device: where the tables are used.

    Returns:
        The tables; those of the last eight sizes are kept.
    """
    rows, columns, half = h // window, w // window, window // 2
    kind = torch.zeros(n, rows, columns, dtype=torch.int64)
    kind[:, :, -1] += 1
    kind[:, -1, :] += 2
    kinds, order = kind.flatten().sort(stable=True)
    pixels = torch.arange(n * h * w).view(n, h, w)

    def windows(grid: Tensor) -> Tensor:
        return grid.view(n, rows, window, columns, window).transpose(2, 3).reshape(-1, window**2)  # (windows, N)

    def filled(table: Tensor) -> Tensor:
        return torch.cat([table, table[:1].expand(-len(table) % chunk, -1)]).flatten()

    plain, shifted = windows(pixels), windows(pixels.roll((-half, -half), (1, 2)))[order]
    in_plain, in_shifted = plain.flatten().argsort(), shifted.flatten().argsort()  # the place of each pixel
    chunks = filled(kinds.unsqueeze(1)).view(-1, chunk).tolist()
    return Tables(
        chunk=chunk * window**2,
        plain_runs=[[(chunk, 0)] for _ in chunks],
        shifted_runs=[[(len(list(run)), kind) for kind, run in groupby(part)] for part in chunks],
        plain_from_picture=filled(plain).int().to(device),
        shifted_from_plain=in_plain[filled(shifted)].int().to(device),
        plain_from_shifted=in_shifted[filled(plain)].int().to(device),
        picture_from_plain=in_plain.int().to(device),
        picture_from_shifted=in_shifted.int().to(device),
    )
