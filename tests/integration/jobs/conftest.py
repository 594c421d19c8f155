"""Fixtures of the tests of jobs."""

from __future__ import annotations

from pathlib import Path

import pytest

from handler.storage import LocalStorage, Storage
from tests.integration.jobs.support import Time


@pytest.fixture
def clock() -> Time:
    return Time()


@pytest.fixture
def local(tmp_path: Path) -> LocalStorage:
    return LocalStorage(tmp_path / "store")


@pytest.fixture
def atomic(storage: Storage, request: pytest.FixtureRequest) -> Storage:
    """A store whose conditional writes are one step."""
    if "moto" in request.node.name:
        pytest.skip("moto checks the condition and writes in two steps, so a race on it proves nothing")
    return storage
