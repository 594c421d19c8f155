"""What the tests of the service share; the servers are fixtures of tests.servers."""

from __future__ import annotations

import json
import os
import tempfile
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest

from handler.batch import batch_client
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


@pytest.fixture
def batch(moto: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    """A queue and a job definition on moto, which takes jobs and does not run them; as settings."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", moto)
    batch_client.cache_clear()
    body = json.dumps({"batch": {"use_docker": False}}).encode()
    urllib.request.urlopen(f"{moto}/moto-api/config", body, timeout=10).close()
    client = boto3.client("batch")
    role = boto3.client("iam").create_role(RoleName=os.urandom(4).hex(), AssumeRolePolicyDocument="{}")["Role"]["Arn"]
    name = f"test-{os.urandom(4).hex()}"
    environment = client.create_compute_environment(
        computeEnvironmentName=name, type="UNMANAGED", state="ENABLED", serviceRole=role
    )["computeEnvironmentArn"]
    client.create_job_queue(
        jobQueueName=name,
        state="ENABLED",
        priority=1,
        computeEnvironmentOrder=[{"order": 1, "computeEnvironment": environment}],
    )
    client.register_job_definition(
        jobDefinitionName=name,
        type="container",
        containerProperties={"image": "upscaler", "vcpus": 1, "memory": 512, "command": ["true"]},
    )
    yield {"batch_queue": name, "batch_job_definition": name}
    batch_client.cache_clear()
