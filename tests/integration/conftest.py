"""What the tests of the service share; the servers are fixtures of tests.servers."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from handler.settings import Settings
from handler.storage import LocalStorage
from tests.integration.work import configured


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Local mode, with leases that run out soon."""
    return configured(tmp_path, lease_seconds=3)


@pytest.fixture
def store(settings: Settings) -> LocalStorage:
    """The directory of the settings; it stands in for the bucket where they name one."""
    return LocalStorage(settings.data_dir)


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary files of this test go."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.fixture
def patience() -> Iterator[threading.Event]:
    """Set when a test is over, so that servers which hang need not be waited for."""
    event = threading.Event()
    yield event
    event.set()
