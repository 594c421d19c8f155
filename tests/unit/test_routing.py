"""Where a request runs, as a table; and options by their names."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import core
from core import models
from core.engine import rates
from handler import options, routing
from handler.jobs import Backend
from handler.settings import MIB, Settings

GB = 10**9
LOCAL: dict[str, Any] = {"bucket": ""}
AWS: dict[str, Any] = {"bucket": "b"}
WITH_BATCH: dict[str, Any] = {"bucket": "b", "batch_queue": "q", "batch_job_definition": "d"}
REFUSED = None


def settings(**values: Any) -> Settings:
    return Settings(**{"inline_seconds": 20, "lambda_seconds": 600, "lambda_memory_mb": 4096, **values})


def estimate(seconds: float, memory: int = GB) -> core.Estimate:
    return core.Estimate(200, 200, "compact-x2", seconds, memory, 4, 0.01, "cpu", True)


def probe(width: int, height: int, format: str = "png", frames: int = 1, plays: int | None = None) -> core.Probe:
    return core.Probe(format, width, height, 1000, "RGB", frames, plays)


@pytest.mark.parametrize(
    ("where", "seconds", "memory", "expected"),
    [
        (LOCAL, 0, GB, Backend.INLINE),
        (LOCAL, 20, GB, Backend.INLINE),
        (LOCAL, 20.001, GB, Backend.LAMBDA),
        (LOCAL, 100_000, 100 * GB, Backend.LAMBDA),
        (LOCAL, 1, 100 * GB, Backend.INLINE),
        (AWS, 20, GB, Backend.INLINE),
        (AWS, 20.001, GB, Backend.LAMBDA),
        (AWS, 600, GB, Backend.LAMBDA),
        (AWS, 600.001, GB, REFUSED),
        (AWS, 1, 4096 * MIB, Backend.INLINE),
        (AWS, 1, 4096 * MIB + 1, REFUSED),
        (WITH_BATCH, 20, GB, Backend.INLINE),
        (WITH_BATCH, 600, 4096 * MIB, Backend.LAMBDA),
        (WITH_BATCH, 600.001, GB, Backend.BATCH),
        (WITH_BATCH, 1, 4096 * MIB + 1, Backend.BATCH),
        (AWS | {"inline_seconds": 0}, 0.1, GB, Backend.LAMBDA),
        (WITH_BATCH | {"inline_seconds": 900}, 700, GB, Backend.BATCH),
    ],
)
def test_route(where: dict[str, Any], seconds: float, memory: int, expected: Backend | None) -> None:
    if expected is REFUSED:
        with pytest.raises(core.TooLarge, match="smaller picture"):
            routing.route(estimate(seconds, memory), settings(**where))
    else:
        assert routing.route(estimate(seconds, memory), settings(**where)) is expected


def test_the_mood_of_a_machine_does_not_decide(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Whether a picture is answered at once goes by its work; what is expected now is still said."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(rates, "_measured", {})
    spec = models.spec_of("compact-x2")
    rates.keep_rate(spec, "cpu", 100e9)
    chance = random.Random(0)
    sides = (64, 800, 1400, 1500, 1600, 4000)
    decided = {side: set[Backend]() for side in sides}
    expected = {side: set[float]() for side in sides}
    for _ in range(60):
        rates.learn_rate(spec, "cpu", 100e9 * chance.choice((1, 1, 1, 0.3)))
        for side in sides:
            plan = routing.plan(probe(side, side), core.Options(model="compact-x2"), settings(**LOCAL))
            decided[side].add(plan.route)
            expected[side].add(plan.seconds)
    assert all(len(found) == 1 for found in decided.values())
    assert {next(iter(found)) for found in decided.values()} == {Backend.INLINE, Backend.LAMBDA}
    assert any(min(found) < 20 < max(found) for found in expected.values()), "by what is expected it would have changed"


def test_aws_does_not_wait_for_longer_than_its_gateway() -> None:
    slow_now = replace(estimate(40), mood=4.0)
    assert routing.route(slow_now, settings(**LOCAL)) is Backend.INLINE
    assert routing.route(slow_now, settings(**AWS)) is Backend.LAMBDA


def test_plan_says_what_the_core_says() -> None:
    plan = routing.plan(probe(100, 50), core.Options(scale=3), settings())
    assert (plan.width, plan.height, plan.model, plan.route) == (300, 150, "compact-x3", Backend.INLINE)
    assert plan.cost is None
    found = core.estimate(100, 50, core.Options(scale=3), picture=probe(100, 50))
    assert (plan.seconds, plan.memory, plan.tiles) == (found.seconds, found.memory, found.tiles)


def test_plan_names_the_price_of_lambda_only() -> None:
    plan = routing.plan(probe(100, 50), core.Options(), settings(**AWS))
    assert plan.cost == pytest.approx(plan.seconds * 4 * routing.LAMBDA_GIB_SECOND)
    assert routing.plan(probe(100, 50), core.Options(), settings(**WITH_BATCH, lambda_seconds=0)).cost is None


@pytest.mark.parametrize(
    ("width", "height", "asked", "error"),
    [
        (1001, 1000, core.Options(), core.TooLarge),
        (1000, 1000, core.Options(scale=2.1), core.TooLarge),
        (10, 10, core.Options(width=5), core.OptionsError),
        (10, 10, core.Options(width=81), core.OptionsError),
        (1, 9000, core.Options(scale=2, format="webp"), core.OptionsError),
    ],
)
def test_plan_refuses(width: int, height: int, asked: core.Options, error: type[Exception]) -> None:
    limited = settings(max_pixels=1_000_000, max_output_pixels=4_000_000)
    assert routing.plan(probe(1000, 1000), core.Options(), limited)
    with pytest.raises(error):
        routing.plan(probe(width, height), asked, limited)


def test_plan_counts_the_frames_that_are_kept() -> None:
    animation = probe(100, 50, "gif", frames=10, plays=0)
    one = routing.plan(probe(100, 50), core.Options(format="webp"), settings())
    kept = routing.plan(animation, core.Options(), settings())
    first = routing.plan(animation, core.Options(format="jpeg"), settings())
    assert (kept.tiles, first.tiles) == (10 * one.tiles, one.tiles)
    assert kept.seconds == pytest.approx(10 * one.seconds)
    for limited in (settings(max_pixels=49_999), settings(max_output_pixels=199_999)):
        with pytest.raises(core.TooLarge):
            routing.plan(animation, core.Options(), limited)


def test_plan_of_a_model_that_cannot_be_had_is_that_of_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(hub_id: str, files: tuple[str, ...]) -> None:
        raise core.ModelError("offline")

    monkeypatch.setattr(models, "_snapshot", offline)
    plan = routing.plan(probe(64, 64), core.Options(model="nobody/nothing"), settings())
    assert plan.model == "caidas/swin2SR-classical-sr-x2-64" or plan.model == "swin2sr-classical-x2"


@pytest.mark.parametrize(
    ("asked", "values", "expected"),
    [
        ({}, {}, core.Options()),
        ({"scale": "2.5", "exact": "true"}, {}, core.Options(scale=2.5, exact=True)),
        ({"scale": 3, "quality": 80, "format": "webp"}, {}, core.Options(scale=3, quality=80, format="webp")),
        ({"width": "640"}, {}, core.Options(width=640)),
        ({}, {"model": "swin2sr-classical-x4"}, core.Options(model="swin2sr-classical-x4")),
        ({"model": "compact-x2"}, {"model": "swin2sr-classical-x4"}, core.Options(model="compact-x2")),
        ({"model": "owner/name"}, {"models": "a/b, owner/*"}, core.Options(model="owner/name")),
        ({"model": "owner/name"}, {"models": "*"}, core.Options(model="owner/name")),
        ({"model": "owner/name"}, {"model": "owner/name"}, core.Options(model="owner/name")),
        (
            {"model": "swin2sr-classical-x2"},
            {"models": "caidas/*"},
            core.Options(model="swin2sr-classical-x2"),
        ),
        ({"model": "s3://b/models/x"}, AWS, core.Options(model="s3://b/models/x")),
        ({"model": "/srv/model"}, {"model": "/srv/model"}, core.Options(model="/srv/model")),
        ({}, {"tile_size": 256, "tile_overlap": 16}, core.Options(tile=256, halo=16)),
        ({"strip": "1", "drop_gps": True}, {}, core.Options(strip=True, drop_gps=True)),
        ({"keep_size": "true"}, {}, core.Options(keep_size=True)),
        ({"pyramid": True}, {"output_format": "jpeg"}, core.Options(pyramid=True, format="tiff")),
        ({"exact": True}, {"tile_overlap": 16}, core.Options(exact=True)),
        ({}, {"output_format": "png", "output_quality": 70}, core.Options(format="png", quality=70)),
        ({"format": "jpeg", "quality": 90}, {"output_format": "png"}, core.Options(format="jpeg", quality=90)),
    ],
)
def test_options(asked: dict[str, object], values: dict[str, Any], expected: core.Options) -> None:
    assert options.parse(asked, settings(**values)) == expected


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        ({"scale": 0}, "scale must be at least 1 and at most 8, not 0"),
        ({"scale": "9"}, "scale must be at least 1 and at most 8, not 9"),
        ({"scale": "nan"}, "scale must be at least 1"),
        ({"scale": "much"}, "scale: input should be a valid number"),
        ({"scale": 2, "width": 100}, "either scale or width/height"),
        ({"quality": 0}, "quality must be from 1 to 100"),
        ({"format": "gif"}, "format must be one of jpeg, png"),
        ({"exact": "perhaps"}, "exact: input should be a valid boolean"),
        ({"strip": 1}, "strip: input should be true or false"),
        ({"size": 3}, "there is no 'size': the options are model, scale"),
        ({"tile": 3}, "there is no 'tile'"),
        ({"model": ""}, "no model ''"),
        ({"model": "/etc"}, "no model '/etc'"),
        ({"model": "../x"}, "no model '../x'"),
        ({"model": "core/weights"}, "no model 'core/weights'"),
        ({"model": "s3://b/models/x"}, "no model 's3://b/models/x'"),
        ({"model": "lanczos"}, "no model 'lanczos'"),
        ({"model": "a/b\n"}, "no model"),
        ({"model": "owner/name"}, "owner/name is not offered here"),
        ({"model": "swin2sr-classical-x2"}, "swin2sr-classical-x2 is not offered here: give one of compact-x2"),
    ],
)
def test_options_refused(asked: dict[str, object], sentence: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(models.WEIGHTS.parents[1])  # where core/weights is a directory
    with pytest.raises(core.OptionsError) as caught:
        options.parse(asked, settings())
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_bucket_is_no_door_to_other_buckets() -> None:
    for name in ("s3://other/models/x", "s3://b/uploads/x", "s3://b/modelsx/y"):
        with pytest.raises(core.OptionsError):
            options.parse({"model": name}, settings(**AWS))
