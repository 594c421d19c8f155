"""One download for all who wait."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from core import downloads
from core.errors import ModelError


def test_one_for_all_and_nobody_waits_longer_than_they_want() -> None:
    """Issue 16: a hub that dripped held everybody up."""
    go, calls = threading.Event(), []

    def drip() -> Path:
        calls.append(1)
        go.wait(30)
        return Path("there")

    with ThreadPoolExecutor(8) as pool:
        start = time.monotonic()
        for call in [pool.submit(downloads.once, "slow/slow", drip, 0.2) for _ in range(8)]:
            with pytest.raises(ModelError, match="not here yet"):
                call.result()
        assert time.monotonic() - start < 10
        patient = pool.submit(downloads.once, "slow/slow", drip)
        go.set()
        assert patient.result() == Path("there")
    assert len(calls) == 1


def test_a_failure_is_remembered_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def fail() -> Path:
        calls.append(1)
        raise ModelError("too large")

    for _ in range(3):
        with pytest.raises(ModelError, match="too large"):
            downloads.once("large/large", fail)
    assert len(calls) == 1
    monkeypatch.setattr(downloads, "AGAIN_SECONDS", 0.0)
    with pytest.raises(ModelError):
        downloads.once("large/large", fail)
    assert len(calls) == 2
