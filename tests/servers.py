"""Real servers, once for each process: an S3 that checks signatures (SeaweedFS) and one that reports events (moto).

Both listen on free ports of 127.0.0.1. A test that needs one is skipped, with the reason, where it is not installed.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from handler.storage import LocalStorage, S3Storage, Storage
from tests.integration.together import Together
from tests.integration.work import PATIENCE

ACCESS_KEY, SECRET_KEY = "test-access-key", "test-secret-key"
#: Fixtures that start a server or processes.
SERVERS = {"seaweedfs", "moto", "seaweedfs_bucket", "moto_bucket", "four"}


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now, for servers that have to be given one.

    They bind it a moment later, so it is none that the system gives away: those begin at 32768, or above.
    """
    dice, found = random.SystemRandom(), set[int]()  # two runs of the tests may ask at the same moment
    while len(found) < count:
        port = dice.randrange(10_000, 32_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            found.add(port)
    return list(found)


def listens(port: int) -> bool:
    """Whether something on this machine does."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def binary(name: str) -> str:
    """The program beside this Python or on the PATH; skips the test where there is none."""
    found = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    if not found:
        pytest.skip(f"{name} is not installed (pip install -e '.[dev]')")
    return found


def run_server(command: list[str], log: Path, ready: Callable[[], bool]) -> Iterator[None]:
    """Run a server until the fixture is done with it; it is stopped by its own process id."""
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, stdin=subprocess.DEVNULL, cwd=log.parent)
    try:
        end = time.monotonic() + PATIENCE
        while not ready():
            if process.poll() is not None:
                pytest.fail(f"{command[0]} ended with {process.returncode}: {log.read_text()[-2000:]}")
            if time.monotonic() > end:
                pytest.fail(f"{command[0]} did not start: {log.read_text()[-2000:]}")
            time.sleep(0.1)
        yield
    finally:
        process.kill()  # what it holds is thrown away: no need to wait for an orderly end
        process.wait()


def make_bucket(endpoint: str) -> str:
    """A new bucket; its name."""
    name = f"test-{uuid.uuid4().hex[:12]}"
    S3Storage(name, endpoint_url=endpoint).client.create_bucket(Bucket=name)
    return name


def answers(endpoint: str) -> Callable[[], bool]:
    """Whether an S3 server is up as far as storing objects."""

    def ready() -> bool:
        try:
            with socket.create_connection(("127.0.0.1", int(endpoint.rpartition(":")[2])), timeout=1):
                pass
            store = S3Storage(make_bucket(endpoint), endpoint_url=endpoint, attempts=1, timeout=5)
            store.put("ready", b"1", "text/plain")
        except Exception:
            return False
        return True

    return ready


@pytest.fixture(scope="session", autouse=True)
def aws_environment() -> Iterator[None]:
    """Credentials that only our servers know, and nothing of this machine's own configuration."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            patch.delenv(name)
        patch.setenv("AWS_ACCESS_KEY_ID", ACCESS_KEY)
        patch.setenv("AWS_SECRET_ACCESS_KEY", SECRET_KEY)
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        patch.setenv("AWS_CONFIG_FILE", os.devnull)
        patch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
        yield


@pytest.fixture(scope="session")
def seaweedfs(tmp_path_factory: pytest.TempPathFactory, aws_environment: None) -> Iterator[str]:
    """The URL of an S3 server that checks signatures, policies and expiry as S3 does."""
    weed = binary("weed")
    folder = tmp_path_factory.mktemp("seaweedfs")
    credentials = [{"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}]
    identity = {"name": "test", "credentials": credentials, "actions": ["Admin", "Read", "Write", "List"]}
    (folder / "s3.json").write_text(json.dumps({"identities": [identity]}))
    (folder / "data").mkdir()
    names = ["master", "volume", "filer", "s3"]
    ports = free_ports(2 * len(names))
    command = [weed, "server", f"-dir={folder / 'data'}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-filer", "-s3"]
    command += ["-master.telemetry=false", "-volume.max=1000", "-master.volumeSizeLimitMB=64"]
    command += ["-s3.config=" + str(folder / "s3.json"), "-s3.port.iceberg=0", "-s3.port.lance=0"]
    for i, name in enumerate(names):
        command += [f"-{name}.port={ports[2 * i]}", f"-{name}.port.grpc={ports[2 * i + 1]}"]
    endpoint = f"http://127.0.0.1:{ports[6]}"
    for _ in run_server(command, folder / "log", answers(endpoint)):
        yield endpoint


@pytest.fixture(scope="session")
def moto(tmp_path_factory: pytest.TempPathFactory, aws_environment: None) -> Iterator[str]:
    """The URL of a server that speaks S3, SQS, EventBridge and Batch, but checks no signatures."""
    server = binary("moto_server")
    [port] = free_ports(1)
    endpoint = f"http://127.0.0.1:{port}"
    command = [server, "-H", "127.0.0.1", "-p", str(port)]
    for _ in run_server(command, tmp_path_factory.mktemp("moto") / "log", answers(endpoint)):
        yield endpoint


@pytest.fixture(scope="session")
def seaweedfs_bucket(seaweedfs: str) -> tuple[str, str]:
    """(endpoint, bucket) on SeaweedFS."""
    return seaweedfs, make_bucket(seaweedfs)


@pytest.fixture(scope="session")
def moto_bucket(moto: str) -> tuple[str, str]:
    """(endpoint, bucket) on moto."""
    return moto, make_bucket(moto)


@pytest.hookimpl(tryfirst=True)  # before -m chooses
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark as slow whatever needs one of the servers."""
    for item in items:
        if SERVERS & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(params=["local", *(pytest.param(server, marks=pytest.mark.slow) for server in ("seaweedfs", "moto"))])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    """Each store in turn; keys are the test's own business, buckets last as long as their server."""
    if request.param == "local":
        return LocalStorage(tmp_path / "store")
    endpoint, bucket = request.getfixturevalue(f"{request.param}_bucket")
    return S3Storage(bucket, endpoint_url=endpoint)


@pytest.fixture(scope="session")
def four(aws_environment: None) -> Iterator[Together]:
    """Four processes that do something at the same moment."""
    with Together(4) as processes:
        yield processes
