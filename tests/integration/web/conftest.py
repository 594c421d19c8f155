"""Fixtures of the tests of the HTTP interface."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

import core
from handler.local import Workers
from handler.storage import LocalStorage
from tests.integration.web.support import Slow, local, served


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def client(folder: Path) -> Iterator[httpx.Client]:
    """The service in local mode, its workers included."""
    settings, storage = local(folder, max_pixels=300_000), LocalStorage(folder)
    workers = Workers(storage, settings)
    workers.start()
    try:
        with served(settings, storage, workers.put) as client:
            yield client
    finally:
        workers.stop(30)


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> Slow:
    found = Slow()
    monkeypatch.setattr(core, "upscale", found)
    return found


@pytest.fixture(scope="module")
def openapi(client: httpx.Client) -> dict[str, Any]:
    found: dict[str, Any] = client.get("/openapi.json").json()
    return found
