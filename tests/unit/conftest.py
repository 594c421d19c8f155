"""What the unit tests share."""

from __future__ import annotations

import pytest


@pytest.fixture
def lanczos(monkeypatch: pytest.MonkeyPatch) -> None:
    """No network: quick, and exact where nothing varies."""
    from core.engine import load

    monkeypatch.setattr(load, "load_first", lambda chain, device: load.Loaded(None, "lanczos", False, "", 0.0))
