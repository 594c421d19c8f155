"""Fixtures of the tests of the stores."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from handler.storage import (
    Storage,
)


@pytest.fixture
def atomic(storage: Storage, request: pytest.FixtureRequest) -> Storage:
    """A store whose conditional writes are one step."""
    if "moto" in request.node.name:
        pytest.skip("moto checks the condition and writes in two steps, so a race on it proves nothing")
    return storage


@pytest.fixture
def linked(storage: Storage, request: pytest.FixtureRequest) -> Storage:
    """A store that checks its links."""
    if "moto" in request.node.name:
        pytest.skip("moto does not check presigned requests; SeaweedFS, in the same tests, does")
    return storage


@pytest.fixture(autouse=True)
def no_temporary_files(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[None]:
    """Whatever a test did, no store keeps temporary files of finished calls."""
    yield
    left = [path for path in tmp_path.glob("store/.tmp/*") if path.name != "received"]
    assert left == []
