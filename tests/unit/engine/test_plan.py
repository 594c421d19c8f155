"""Passes, halo and tile of a plan, and what it costs."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core import models
from core.engine.plan import lay_out, make_plan, operations
from core.engine.tiling import region_side


@given(
    name=st.sampled_from(sorted(models.MODELS)),
    wanted=st.floats(1.01, 8),
    exact=st.booleans(),
    halo=st.none() | st.integers(0, 64),
)
def test_a_plan_reaches_what_is_wanted_with_no_pass_too_many(
    name: str, wanted: float, exact: bool, halo: int | None
) -> None:
    spec = models.MODELS[name]
    plan = make_plan(spec, wanted, exact=exact, halo=halo)
    assert plan.scale == spec.scale**plan.passes >= wanted - 1e-6
    assert plan.passes == 1 or spec.scale ** (plan.passes - 1) < wanted
    assert plan.halo % spec.window == 0
    least = halo if halo is not None else spec.receptive_field if exact else spec.halo
    assert plan.halo >= least, "later passes need context, too"


@given(
    name=st.sampled_from(sorted(models.MODELS)),
    wanted=st.floats(1.01, 8),
    height=st.integers(1, 5000),
    width=st.integers(1, 5000),
    at_once=st.integers(0, 8),
)
def test_tiles_fit_and_are_not_mostly_halo(name: str, wanted: float, height: int, width: int, at_once: int) -> None:
    spec = models.MODELS[name]
    plan = make_plan(spec, wanted, exact=False)
    region = lay_out(spec, plan, height, width, at_once=at_once)[0][0]
    sides = region.rows.size, region.columns.size
    shrink = spec.scale ** (plan.passes - 1)
    least = region_side(64, plan.halo, spec.window)
    alone = 190e6 / max(1, min(at_once, 2)) / spec.tile_bytes / shrink**2
    limit = max(least**2, alone) if at_once else max(least, spec.tile + 2 * plan.halo) ** 2
    assert sides[0] * sides[1] <= limit
    assert all(size >= min(side, 2 * plan.halo + 1) for size, side in zip(sides, (height, width), strict=True))


def test_a_side_that_was_asked_for_is_kept() -> None:
    spec = models.MODELS["compact-x2"]
    plan = make_plan(spec, 2, exact=True, tile=48)
    for at_once in (0, 2):
        for row in lay_out(spec, plan, 300, 300, at_once=at_once):
            for tile in row:
                assert max(tile.rows.size, tile.columns.size) <= 48 + 2 * spec.receptive_field
    found = lay_out(spec, make_plan(spec, 2, exact=True), 900, 900, at_once=2, side=200)
    assert max(found[0][0].rows.size, found[0][0].columns.size) <= 200, "so is one that memory asks for"


def test_the_second_pass_works_on_as_many_pixels_as_the_first_made() -> None:
    spec = models.MODELS["compact-x2"]
    once, twice = (make_plan(spec, wanted, exact=True) for wanted in (2, 4))
    assert operations(spec, once) == spec.operations
    assert operations(spec, twice) == pytest.approx(5 * spec.operations)


def test_no_torch_for_a_plan() -> None:
    code = "import sys, core.engine.plan, core.engine.rates; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)
