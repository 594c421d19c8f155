"""The clients that must go on working: curl, requests, and fetch of another origin."""

from __future__ import annotations

import io
import subprocess
from pathlib import Path

import httpx
import pytest
from PIL import Image

from tests.integration.web.support import PNG, check_problem, local, picture, served


def test_curl(client: httpx.Client, tmp_path: Path) -> None:
    (tmp_path / "photo.png").write_bytes(PNG)
    command = ["curl", "-sS", "--noproxy", "*", "-F", "file=@photo.png", f"{client.base_url}/upscale"]
    subprocess.run([*command, "--output", "x.png"], cwd=tmp_path, check=True)
    with Image.open(tmp_path / "x.png") as made:
        assert made.size == (40, 24)


def test_requests(client: httpx.Client) -> None:
    requests = pytest.importorskip("requests", reason="requests is not installed")
    with requests.Session() as session:
        session.trust_env = False
        answer = session.post(f"{client.base_url}/upscale", files={"file": io.BytesIO(PNG)})
    assert answer.status_code == 200
    assert picture(answer).size == (40, 24)


def test_fetch_across_origins(tmp_path: Path) -> None:
    """What a browser looks at when a page of another origin sends a FormData, with and without a preflight."""
    page = {"origin": "https://page.example"}
    ask = page | {"access-control-request-method": "POST", "access-control-request-headers": "x-api-key,prefer"}
    with served(local(tmp_path, cors_origins="https://page.example, https://other.example")) as client:
        answer = client.post("/upscale", files={"file": ("photo.png", PNG)}, headers=page)
        assert answer.headers["access-control-allow-origin"] == "https://page.example"
        assert "X-Upscale-Model" in answer.headers["access-control-expose-headers"]
        assert client.options("/upscale", headers=ask).status_code == 200
        refused = client.post("/upscale?scale=9", files={"file": ("photo.png", PNG)}, headers=page)
        check_problem(refused, 422, "bad_options")
        assert refused.headers["access-control-allow-origin"] == "https://page.example"
        stranger = client.post("/estimate", json={"width": 9, "height": 9}, headers={"origin": "https://evil.example"})
        assert "access-control-allow-origin" not in stranger.headers


def test_other_origins_are_shut_out_unless_configured(client: httpx.Client) -> None:
    answer = client.post("/upscale", files={"file": ("a.png", PNG)}, headers={"origin": "https://page.example"})
    assert "access-control-allow-origin" not in answer.headers
    check_problem(client.options("/upscale"), 405, "method_not_allowed")
