"""Passes, halo and tile of a plan, and what it costs."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core import models
from core.engine.plan import make_plan, operations


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
    assert plan.tile >= 64


def test_the_second_pass_works_on_as_many_pixels_as_the_first_made() -> None:
    spec = models.MODELS["compact-x2"]
    once, twice = (make_plan(spec, wanted, exact=True) for wanted in (2, 4))
    assert operations(spec, once) == spec.operations
    assert operations(spec, twice) == pytest.approx(5 * spec.operations)


def test_no_torch_for_a_plan() -> None:
    code = "import sys, core.engine.plan, core.engine.rates; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
