"""`python -m handler` as a process while the machine fails it: disks, descriptors, and tiles that take long."""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from handler import jobs
from handler.storage import LocalStorage
from tests.integration.test_local_server import QUICK, SMALL, Running, running, wait_until
from tests.integration.web.support import check_problem
from tests.integration.work import PATIENCE
from tests.unit.pictures import corners, saved

pytestmark = pytest.mark.slow


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 40 MB of its own."""
    folder = tmp_path / "data"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=40m,mode=700", "tmpfs", str(folder)]
    mount = shutil.which("mount") and subprocess.run(command, capture_output=True, text=True)
    if not mount or mount.returncode:
        pytest.skip(f"no file system can be mounted here: {mount.stderr.strip() if mount else 'there is no mount'}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@contextlib.contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """Another mount over a folder: one with files that are open for writing cannot be turned."""
    subprocess.run(["mount", "--bind", str(folder), str(folder)], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,ro,bind", str(folder)], check=True)
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def queue(client: httpx.Client) -> httpx.Response:
    return client.post("/upscale", files={"file": ("a.png", SMALL)}, headers={"prefer": "respond-async"})


def is_ready(server: Running) -> bool:
    return server.client.get("/ready").status_code == 200


def check_fails(server: Running, cause: str) -> None:
    """Work is refused, /health says why it would be, and the log has the cause."""
    wait_until(lambda: not is_ready(server))
    check_problem(server.client.get("/ready"), 503, "storage_unavailable")
    health = server.client.get("/health")
    assert (health.status_code, health.json()["storage"]) == (200, "failing")
    check_problem(queue(server.client), 503, "storage_unavailable")
    said = (server.data.parent / "stderr").read_text()
    assert cause in said
    assert "Traceback" not in said


def check_works(server: Running) -> None:
    """All goes on, without a new start."""
    wait_until(lambda: is_ready(server))
    taken: list[str] = []

    def take() -> bool:  # what /ready found is believed for two seconds
        answer = queue(server.client)
        taken.extend([answer.json()["id"]] if answer.status_code == 202 else [])
        return bool(taken)

    wait_until(take)
    wait_until(lambda: server.client.get(f"/jobs/{taken[0]}").json()["state"] == "succeeded")


def test_a_disk_that_is_full_or_read_only_or_emptied(disk: Path, tmp_path: Path) -> None:
    """Issue 16: each was a bare 503 with nothing in the log, until somebody started the service anew."""
    with running(tmp_path, **QUICK, RATE_LIMIT="none") as server:
        check_works(server)
        with contextlib.suppress(OSError), (disk / "filler").open("wb") as filler:
            while True:
                filler.write(bytes(1 << 20))
                filler.flush()
        check_fails(server, "No space left on device")
        (disk / "filler").unlink()
        check_works(server)

        with read_only(disk):
            check_fails(server, "Read-only file system")
        check_works(server)

        for path in disk.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        check_works(server)
        assert (disk / ".logs" / "service.log").stat().st_size, "the log goes on, too"


def test_few_descriptors(tmp_path: Path) -> None:
    """Issue 16: without descriptors, accepting failed in a loop that took a processor, and nobody was answered."""
    first = "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (90, 90))"
    with running(tmp_path, **QUICK, RATE_LIMIT="none", first=first) as server, contextlib.ExitStack() as stack:
        assert queue(server.client).status_code == 202
        host, port = server.client.base_url.host, server.client.base_url.port
        assert port
        for _ in range(100):
            with contextlib.suppress(OSError):  # where more wait than the system holds, it is slow to say so
                one = stack.enter_context(socket.create_connection((host, port), timeout=0.2))
                one.sendall(b"POST /upscale HTTP/1.1\r\nHost: a\r\nX-Half: ")
        for _ in range(3):
            assert (
                httpx.get(server.client.base_url.join("/health"), timeout=PATIENCE, trust_env=False).status_code == 200
            )
        before = processor_seconds(server.process.pid)
        time.sleep(1)
        assert processor_seconds(server.process.pid) - before < 0.7
        answer = httpx.post(
            server.client.base_url.join("/upscale"), files={"file": ("a.png", SMALL)}, timeout=PATIENCE, trust_env=False
        )
        assert answer.status_code == 200
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] > 90, "only the server was limited"


def processor_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_a_tile_longer_than_the_time_to_stop(tmp_path: Path) -> None:
    """Issue 16: it ended in "terminate called", with the job lost to a worker that was none."""
    settings = {**QUICK, "TILE_SIZE": "400", "LEASE_SECONDS": "3600"}
    first = "from tests.integration import work; work.tile_without_end(); server.GRACE_SECONDS = 0"
    with running(tmp_path, **settings, first=first) as server:
        body = {"file": ("a.png", saved(corners(400, 400), "PNG"))}
        id = server.client.post("/upscale", files=body, headers={"prefer": "respond-async"}).json()["id"]
        store = LocalStorage(server.data)
        wait_until(lambda: jobs.get(store, id).progress.total > 0)
        before = processor_seconds(server.process.pid)  # of the network: another process decodes
        wait_until(lambda: processor_seconds(server.process.pid) - before > 1)
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(PATIENCE) == 0
        job = jobs.get(store, id)
    said = (tmp_path / "stderr").read_text()
    assert "in the middle of a tile" in said
    assert "terminate called" not in said
    assert "Traceback" not in said
    assert (job.state, job.lost) == (jobs.State.QUEUED, 0)
