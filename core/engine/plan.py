"""How a model goes over a picture: passes, halo, side of the tiles, and what that costs. Nothing here imports torch."""

from __future__ import annotations

import math
from dataclasses import dataclass

from core.engine import tiling
from core.models import ModelSpec

_STRIP_PIXELS = 1 << 25  # of the result that a row of tiles makes, which is held: 100 MB for colour of 8 bits
_SMALLEST_TILE = 64  # input pixels; below, most of the work is halo
#: What a tile may take that is computed alone; beside others half of it. The larger, the less its halo costs.
_REGION_BYTES = 190_000_000


@dataclass(frozen=True)
class UpscalePlan:
    """How a model goes over a picture.

    Attributes:
        passes: times the network is applied (2 makes a x2 network a x4).
        scale: of all passes together.
        halo: context in input pixels for all passes together.
        tile: side of what is upscaled at once, halo not counted, in input pixels; None leaves it to `lay_out`.
    """

    passes: int
    scale: int
    halo: int
    tile: int | None


def make_plan(
    spec: ModelSpec, wanted: float, *, exact: bool, tile: int | None = None, halo: int | None = None
) -> UpscalePlan:
    """Choose passes, halo and tile for a model so that the result is at least `wanted` times as large.

    Args:
        spec: the model.
        wanted: factor of both sides; where it is larger than the model's, the network runs more than once. A model
            that restores without enlarging runs once.
        exact: take the whole receptive field as halo, so that tiles equal the untiled result.
        tile: side of what is upscaled at once, halo not counted, in input pixels; None leaves it to
            `lay_out`.
        halo: context of one pass, in its input pixels; None takes the model's, or what `exact` needs.

    Returns:
        The plan; its halo is a multiple of the model's window.
    """
    passes, scale = 1, spec.scale
    while scale < wanted - 1e-9 and spec.scale > 1:
        passes, scale = passes + 1, scale * spec.scale
    if halo is None:
        halo = spec.receptive_field if exact or spec.kind == "compact" else spec.halo
    # Later passes see pixels that are smaller: their context costs less of the input.
    context = sum(halo / spec.scale**index for index in range(passes))
    context = tiling.round_up(math.ceil(context), spec.window)
    return UpscalePlan(passes, scale, context, tile)


def _strip_rows(plan: UpscalePlan, width: int) -> int:
    """How high a row of tiles may be where the picture is very wide, halo not counted, in input pixels."""
    return max(_SMALLEST_TILE, _STRIP_PIXELS // (width * plan.scale**2))


def lay_out(
    spec: ModelSpec, plan: UpscalePlan, height: int, width: int, *, at_once: int, side: int = 1 << 20
) -> list[list[tiling.Tile]]:
    """Lay tiles over a picture.

    Args:
        spec: the model.
        plan: from `make_plan` for this model.
        height: of the picture, pixels.
        width: of the picture, pixels.
        at_once: tiles that are computed side by side; 0 for networks whose tiles have the side in their `spec`.
        side: largest side of a region, halo included, in pixels: what memory was found to suffice for.

    Returns:
        Rows of tiles from top to bottom, each row from left to right.
    """
    most = _strip_rows(plan, width)
    shrink = spec.scale ** (plan.passes - 1)  # the last pass sees a picture that is as many times as large
    if plan.tile is None and at_once and side >= max(height, width):
        smallest = tiling.region_side(_SMALLEST_TILE, plan.halo, spec.window) ** 2
        largest = max(_REGION_BYTES // min(at_once, 2) // (spec.tile_bytes * shrink**2), smallest)
        return tiling.cheapest_rows(height, width, largest, plan.halo, spec.window, at_once, most)
    tile = plan.tile or max(spec.tile // shrink, _SMALLEST_TILE)
    return tiling.tile_rows(height, width, min(tile, side - 2 * plan.halo), plan.halo, spec.window, most)


def operations(spec: ModelSpec, plan: UpscalePlan) -> float:
    """Count the work of all passes.

    Args:
        spec: the model.
        plan: from `make_plan` for this model.

    Returns:
        Floating-point operations for one input pixel; a multiply-add counts two.
    """
    return spec.operations * sum(float(spec.scale ** (2 * index)) for index in range(plan.passes))
