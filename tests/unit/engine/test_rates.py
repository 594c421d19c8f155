"""Rates: kept for the next process, and following real work."""

from __future__ import annotations

from pathlib import Path

import pytest

from core import models
from core.engine import rates


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(rates, "_measured", {})


def test_a_measured_rate_is_kept_for_the_next_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = models.MODELS["compact-x2"]
    rates.keep_rate(spec, "cpu", 123e9)
    monkeypatch.setattr(rates, "_measured", {})
    assert rates.known_rate(spec, "cpu") == 123e9
    (file,) = tmp_path.rglob("rates.json")
    file.write_text("damaged")
    monkeypatch.setattr(rates, "_measured", {})
    assert rates.known_rate(spec, "cpu") is None


def test_the_rate_follows_real_work() -> None:
    spec = models.MODELS["compact-x2"]
    rates.learn_rate(spec, "cpu", 100e9)
    assert rates.known_rate(spec, "cpu") == 100e9
    rates.learn_rate(spec, "cpu", 300e9)
    assert rates.known_rate(spec, "cpu") == 200e9
    rates.learn_rate(spec, "cpu", 201e9)
    assert rates.known_rate(spec, "cpu") == 200e9, "not written for every small change"


def test_the_steady_rate_does_not_follow_moods() -> None:
    """Issue 16: the same picture was an answer now and a job in a minute, for others were busy in between."""
    spec = models.spec_of("compact-x2")
    rates.keep_rate(spec, "cpu", 100e9)
    steady, known = set(), set()
    for picture in range(400):  # busy for ten pictures of twenty
        rates.learn_rate(spec, "cpu", 100e9 if picture // 10 % 2 else 40e9)
        steady.add(rates.steady_rate(spec, "cpu"))
        known.add(rates.known_rate(spec, "cpu"))
    assert len(steady) <= 2, "it may settle once"
    assert max(filter(None, known)) > 2 * min(filter(None, known))
    assert 60e9 < (rates.steady_rate(spec, "cpu") or 0) <= 100e9


def test_the_steady_rate_follows_a_machine_that_is_another() -> None:
    spec = models.spec_of("compact-x2")
    rates.keep_rate(spec, "cpu", 100e9)
    found = []
    for _ in range(150):
        rates.learn_rate(spec, "cpu", 20e9)
        found.append(rates.steady_rate(spec, "cpu"))
    assert found[4] == 100e9
    assert 20e9 <= (found[-1] or 0) < 30e9
    assert found == sorted(found, key=lambda rate: -(rate or 0))
