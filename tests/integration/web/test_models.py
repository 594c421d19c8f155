"""Models that are not here yet: nobody waits for them who need not."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.integration.web.support import PNG, WANTED, local, served

#: How long a hub is waited for by those who want a model.
HUB_SECONDS = 60


@pytest.fixture
def patient(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[httpx.Client]:
    """A service that offers every model of a hub which accepts connections and then says nothing."""
    pytest.importorskip("huggingface_hub")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.setattr("core.hub.HUB_SECONDS", HUB_SECONDS)
        monkeypatch.setattr("handler.routing.PATIENCE", 0.2)
        with served(local(tmp_path, models="*")) as client:
            yield client


def test_an_estimate_does_not_wait_for_a_download(patient: httpx.Client) -> None:
    """Issue 16: 60 estimates with unknown ids blocked all other calls for 20 s."""
    begun = time.monotonic()
    for name in ("stranger/model", "stranger/model/4x.pth"):
        wanted = {"width": 100, "height": 100, "options": {"model": name}}
        for path, body in (("/estimate", wanted), ("/jobs", {**WANTED, **wanted})):
            answer = patient.post(path, json=body)
            assert answer.is_success, answer.text
            found = answer.json() if path == "/estimate" else answer.json()["estimate"]
            assert (found["model"], found["measured"]) == (name, False)
            assert found["seconds"] > 0
    job = patient.post(
        "/upscale?model=stranger/model", files={"file": ("a.png", PNG)}, headers={"prefer": "respond-async"}
    )
    assert job.status_code == 202
    assert time.monotonic() - begun < HUB_SECONDS, "five calls, in less than one would wait for the hub"
