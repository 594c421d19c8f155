"""A webhook from the job to its receiver: examples/receive.py, and a verifier that is not ours."""

from __future__ import annotations

import base64
import os
import select
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from handler.local import Workers
from handler.storage import LocalStorage
from tests.integration.receiver import Receiver
from tests.integration.web.support import PNG, ROOT, finished, local, picture, served
from tests.integration.work import PATIENCE, wait_for
from tests.servers import free_ports, listens

SECRETS = ["a word", "whsec_" + base64.b64encode(b"thirty-two bytes of a key, or so").decode()]
IMAGE = base64.b64encode(PNG).decode()


@pytest.fixture(params=SECRETS, ids=["word", "whsec"])
def secret(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def client(secret: str, tmp_path: Path) -> Iterator[httpx.Client]:
    """A service that signs."""
    settings = local(tmp_path / "data", webhook_allow_private=True, webhook_secret=secret)
    storage = LocalStorage(settings.data_dir)
    with served(settings, storage, lambda id: workers.put(id)) as client:
        # Links in webhooks need the address; uvicorn chose the port.
        here = settings.model_copy(update={"public_url": str(client.base_url)})
        workers = Workers(storage, here)
        workers.start()
        try:
            yield client
        finally:
            workers.stop(30)


def test_the_example_receives_what_a_job_sends(client: httpx.Client, secret: str, tmp_path: Path) -> None:
    [port] = free_ports(1)
    command = [sys.executable, "examples/receive.py", str(port)]
    environment = {**os.environ, "WEBHOOK_SECRET": secret}
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) as receiver:
        try:
            wait_for(lambda: listens(port), "the receiver")
            url = f"http://127.0.0.1:{port}/"
            job = client.post("/jobs", json={"image": IMAGE, "webhook": url}).json()
            assert receiver.stdout
            assert select.select([receiver.stdout], [], [], PATIENCE)[0], "nothing came"
            id, type, link = receiver.stdout.readline().split()
            assert (id, type) == (f"msg_{job['id']}", "job.succeeded")
            assert picture(httpx.get(link, trust_env=False)).size == (40, 24)
            wait_for(lambda: client.get(f"/jobs/{job['id']}").json()["webhook"]["state"] == "delivered", "the delivery")
            forged = httpx.post(url, json={"type": "job.succeeded"}, headers={"webhook-id": "x"}, trust_env=False)
            assert forged.status_code == 401
        finally:
            receiver.kill()


def test_a_verifier_that_is_not_ours(client: httpx.Client, secret: str) -> None:
    verifier = pytest.importorskip("standardwebhooks", reason="standardwebhooks is not installed")
    if not secret.startswith("whsec_"):
        secret = base64.b64encode(secret.encode()).decode()  # as their libraries take a key
    with Receiver() as receiver:
        job = client.post("/jobs", json={"image": IMAGE, "webhook": receiver.url}).json()
        finished(client, job["id"])
        wait_for(lambda: receiver.requests, "the call")
        [(method, _, headers, body)] = receiver.requests
    event = verifier.Webhook(secret).verify(body.decode(), {name.lower(): text for name, text in headers.items()})
    assert (method, event["id"], event["type"]) == ("POST", job["id"], "job.succeeded")
    with pytest.raises(verifier.WebhookVerificationError):
        verifier.Webhook(secret).verify(body.decode() + " ", {name.lower(): text for name, text in headers.items()})
    # And what is described is what is sent.
    openapi = client.get("/openapi.json").json()
    described = openapi["webhooks"]["job.succeeded"]["post"]
    assert set(event) == set(openapi["components"]["schemas"]["Event"]["properties"])
    assert {parameter["name"] for parameter in described["parameters"]} <= {name.lower() for name in headers}
    assert set(openapi["webhooks"]) == {"job.succeeded", "job.failed", "job.cancelled"}
