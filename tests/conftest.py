"""What all tests share."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator

import pytest

pytest_plugins = ["tests.servers"]  # one server of each kind for the whole run


@pytest.fixture(scope="session", autouse=True)
def _own_cache() -> Iterator[None]:
    """Rates measured while tests share the machine are no good for later: they are kept elsewhere."""
    before = os.environ.get("XDG_CACHE_HOME")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = folder
        yield
    if before is None:
        del os.environ["XDG_CACHE_HOME"]
    else:
        os.environ["XDG_CACHE_HOME"] = before
