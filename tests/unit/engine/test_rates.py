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
