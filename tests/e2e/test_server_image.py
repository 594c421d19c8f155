"""The image of the whole service for one machine: docker run -p 8000:8000."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import pytest

from tests.e2e.containers import CONFINED, TORCH_INDEX, container, docker, ran, same
from tests.integration.web.support import finished
from tests.integration.work import PATIENCE, picture, wait_for

pytestmark = pytest.mark.slow

#: As people run it, and with less rights than they would give it; no /tmp that can be written to.
RUN = [*(flag for flag in CONFINED if not flag.startswith("--tmpfs")), "--publish=127.0.0.1::8000"]


@pytest.fixture(scope="module")
def image(base: str) -> str:
    """What `make server-image` builds."""
    ran(["make", "server-image", f"TORCH_INDEX={TORCH_INDEX}"], BASE_IMAGE=base)
    return "upscaler-server"


@pytest.fixture(scope="module")
def server(image: str) -> Iterator[str]:
    """A container that is asked for its health every second; its id."""
    with container(*RUN, "--health-interval=1s", "--env=API_KEY=a key", image) as id:
        yield id


@contextmanager
def client_of(id: str) -> Iterator[httpx.Client]:
    """When the service answers; after a restart it has another port."""
    address = docker("port", id, "8000/tcp").splitlines()[0]
    headers = {"x-api-key": "a key"}
    with httpx.Client(base_url=f"http://{address}", headers=headers, timeout=PATIENCE, trust_env=False) as client:
        end = time.monotonic() + PATIENCE
        while True:
            try:
                client.get("/health").raise_for_status()
                break
            except httpx.TransportError:
                assert time.monotonic() < end, docker("logs", id)
                time.sleep(0.1)
        yield client


def test_it_is_small_and_holds_no_torch(base: str, image: str) -> None:
    size, bare = (int(docker("image", "inspect", "--format={{.Size}}", name)) for name in (image, base))
    assert 0 < size - bare <= 450_000_000
    found = docker("run", "--rm", "--network=none", image, "sh", "-c", "ls /app; which gcc make || true")
    assert not {"torch", "transformers", "pytest", "nvidia", "openvino"} & set(found.split())
    assert "gcc" not in found
    config = json.loads(docker("image", "inspect", "--format={{json .Config}}", image))
    assert (config["User"], list(config["Volumes"])) == ("10001:10001", ["/data"])


def test_it_serves_and_keeps_what_it_made_over_a_restart(server: str) -> None:
    data = picture(60, 40)
    with client_of(server) as client:
        answer = client.post("/upscale?scale=2", files={"file": ("a.png", data)})
        assert answer.status_code == 200, answer.text
        assert answer.headers["x-upscale-degraded"] == "false"
        assert same(answer.content, data)
        sent = {"file": ("a.png", data)}
        job = client.post("/upscale", files=sent, headers={"prefer": "respond-async"}).json()["id"]
        assert finished(client, job)["state"] == "succeeded"
        assert "Enlarge" in client.get("/").text
        assert client.get("/models", headers={"x-api-key": "another"}).status_code == 401
    wait_for(lambda: docker("inspect", "--format={{.State.Health.Status}}", server) == "healthy", "the health check")
    assert docker("exec", server, "id", "-u") == "10001"
    for path in ("/app/x", "/x", "/tmp/x"):
        refused = subprocess.run(["docker", "exec", server, "touch", path], capture_output=True, text=True)
        assert "Read-only file system" in refused.stderr
    docker("restart", server)
    assert docker("inspect", "--format={{.State.ExitCode}}", server) == "0"
    with client_of(server) as client:
        result = client.get(f"/jobs/{job}/result", follow_redirects=True)
        assert same(result.content, data)


def test_it_ends_in_order(server: str) -> None:
    with client_of(server):
        pass
    docker("stop", "--time=60", server)  # after which it would be killed
    assert docker("inspect", "--format={{.State.ExitCode}}", server) == "0"
