"""`python -m handler` as a process: its start, its end, its crash, and too much work."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

from handler import jobs
from handler.storage import LocalStorage
from handler.workspace import PREFIX
from tests.integration.work import PATIENCE
from tests.unit.pictures import corners, saved

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
SMALL = saved(corners(), "PNG")


@dataclass(frozen=True)
class Running:
    """A server process.

    Attributes:
        process: of the server.
        data: its DATA_DIR.
        welcome: what it printed.
        client: knows its address.
    """

    process: subprocess.Popen[str]
    data: Path
    welcome: str
    client: httpx.Client

    def peak_memory(self) -> int:
        """Bytes."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        found = re.search(r"VmHWM:\s+(\d+) kB", status)
        assert found
        return int(found[1]) * 1024


def start(folder: Path, *, first: str = "", **settings: str) -> subprocess.Popen[str]:
    """The server on a free port, all of its files under the folder; Python code may come first in its process."""
    temporary = folder / "tmp"
    temporary.mkdir(exist_ok=True)
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(ROOT),
        "TMPDIR": str(temporary),
        "XDG_CACHE_HOME": str(folder / "cache"),
        "HF_HUB_OFFLINE": "1",
        "DATA_DIR": str(folder / "data"),
        "PORT": "0",
        **settings,
    }
    code = f"import sys; from handler import __main__ as server; {first}; sys.exit(server.main())"
    command = [sys.executable, *(["-c", code] if first else ["-m", "handler"])]
    with (folder / "stderr").open("a") as stderr:
        return subprocess.Popen(command, cwd=folder, env=environment, text=True, stdout=subprocess.PIPE, stderr=stderr)


@contextmanager
def running(folder: Path, *, first: str = "", **settings: str) -> Iterator[Running]:
    process = start(folder, first=first, **settings)
    try:
        assert process.stdout
        welcome = process.stdout.readline() + process.stdout.readline()
        found = re.search(r"http://\S+:\d+", welcome)
        assert found, (folder / "stderr").read_text()
        with httpx.Client(base_url=found[0], timeout=PATIENCE, trust_env=False) as client:
            yield Running(process, folder / "data", welcome, client)
    finally:
        process.kill()
        process.wait()
        if process.stdout:
            process.stdout.close()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(tmp_path_factory.mktemp("server"), RATE_LIMIT="none") as found:
        yield found


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.05)


def test_the_printed_curl_line_works(server: Running, tmp_path: Path) -> None:
    line = server.welcome.splitlines()[1].strip()
    assert line.startswith('curl --fail-with-body -H "Prefer: wait=')
    subprocess.run(["sh", "-c", f"{line} -sS --noproxy '*'"], cwd=tmp_path, check=True)
    [made] = tmp_path.iterdir()
    with Image.open(made) as picture, Image.open(ROOT / "samples" / "astronaut.jpg") as sample:
        assert picture.size == (2 * sample.width, 2 * sample.height)


def test_forty_calls_at_once(server: Running) -> None:
    """All are answered or sent away with a time to come back, and bodies wait on disk, not in memory."""
    weight = 4_000_000
    noise = np.random.default_rng(0).integers(0, 256, weight, np.uint8).tobytes()
    body = saved(corners(60, 80), "JPEG") + noise  # decoders stop at the end of the picture
    before = server.peak_memory()

    def call(number: int) -> httpx.Response:
        return server.client.post("/upscale", files={"file": (f"{number}.jpg", body)})

    with ThreadPoolExecutor(40) as pool:
        answers = list(pool.map(call, range(40)))
    for answer in answers:
        if answer.status_code == 200:
            assert Image.open(io.BytesIO(answer.content)).size == (160, 120)
        else:
            assert answer.status_code in (429, 503)
            assert int(answer.headers["retry-after"]) >= 1
            assert answer.json()["code"] in ("rate_limited", "busy")
    assert any(answer.status_code == 200 for answer in answers)
    assert server.peak_memory() - before < 40 * weight
    assert call(0).status_code == 200  # and it goes on
    wait_until(lambda: not list((server.data.parent / "tmp").iterdir()))  # they go when the answer has been sent


def test_the_log_is_json_lines_with_request_ids(server: Running) -> None:
    id = server.client.get("/health").headers["x-request-id"]
    log = server.data / ".logs" / "service.log"
    wait_until(lambda: id in log.read_text())  # it is written once the answer has been sent
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    [line] = [line for line in lines if line.get("request_id") == id]
    assert (line["message"], line["status"], line["level"]) == ("GET /health 200", 200, "INFO")


#: Code for a server whose jobs get no further than one tile.
HELD = "from tests.integration import work; work.one_tile_only()"


def begun_job(client: httpx.Client) -> str:
    """A job of several tiles that has begun, on a server that is `HELD`; its id."""
    body = {"file": ("large.png", saved(corners(120, 120), "PNG"))}
    id: str = client.post("/upscale?format=bmp", files=body, headers={"prefer": "respond-async"}).json()["id"]
    wait_until(lambda: client.get(f"/jobs/{id}").json()["state"] == "running")
    return id


QUICK = {"LEASE_SECONDS": "2", "TILE_SIZE": "48", "WARM_MODEL": "none"}


def test_what_a_crash_leaves_is_taken_up_again(tmp_path: Path) -> None:
    with running(tmp_path, first=HELD, **QUICK) as first:
        job = begun_job(first.client)
        waiting = first.client.post(
            "/upscale", files={"file": ("a.png", SMALL)}, headers={"prefer": "respond-async"}
        ).json()["id"]
        announced = first.client.post("/jobs", json={"filename": "a.png", "content_type": "image/png"}).json()
        first.process.kill()
        first.process.wait()
    # As if the kill had come between an upload and the change of its job.
    LocalStorage(first.data).put(announced["input"]["key"], SMALL, "image/png")
    left = tmp_path / "tmp" / f"{PREFIX}left"
    left.mkdir(exist_ok=True)
    unfinished = first.data / ".tmp" / "unfinished"
    unfinished.write_bytes(b"half")
    with running(tmp_path, **QUICK) as second:
        for id in (job, waiting, announced["id"]):
            wait_until(lambda id=id: jobs.get(LocalStorage(second.data), id).state.final)  # type: ignore[misc]
            assert second.client.get(f"/jobs/{id}").json()["state"] == "succeeded"
        result = second.client.get(f"/jobs/{job}/result", follow_redirects=True)
        assert Image.open(io.BytesIO(result.content)).size == (240, 240)
        results = [path for path in (second.data / "results" / job).rglob("*") if path.is_file()]
        assert len(results) == 1
    assert not left.exists()
    assert not unfinished.exists()
    assert not list((tmp_path / "tmp").iterdir())


def test_jobs_go_on_at_once_after_a_restart_and_are_not_counted_as_lost(tmp_path: Path) -> None:
    """Issue 16: of eight healthy jobs three were failed as worker_lost. The lease is long: nobody waits for it."""
    settings = {**QUICK, "LEASE_SECONDS": "3600"}
    ids: list[str] = []
    for _ in range(5):
        with running(tmp_path, first=HELD, **settings) as server:
            if not ids:
                ids.append(begun_job(server.client))
            wait_until(lambda: jobs.get(LocalStorage(server.data), ids[0]).state is not jobs.State.QUEUED)
            server.process.kill()
            server.process.wait()
    with running(tmp_path, **settings) as server:
        wait_until(lambda: jobs.get(LocalStorage(server.data), ids[0]).state.final)
        job = jobs.get(LocalStorage(server.data), ids[0])
    assert (job.state, job.lost) == (jobs.State.SUCCEEDED, 0)
    assert not [path for path in (server.data / ".servers").iterdir() if path.stat().st_size]


def test_stopping_hands_a_running_job_back(tmp_path: Path) -> None:
    with running(tmp_path, first=HELD, **QUICK) as server:
        job = begun_job(server.client)
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(PATIENCE) == 0
        assert jobs.get(LocalStorage(server.data), job).state is jobs.State.QUEUED
        assert not list((tmp_path / "tmp").glob(f"{PREFIX}*"))  # libraries may keep files of their own there


def test_what_has_expired_is_swept_away_at_the_start(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path / "data")
    ids = jobs.new_id(), jobs.new_id()
    for id in ids:
        storage.put(f"results/{id}/1/x.png", b"x", "image/png")
    old, new = (tmp_path / "data" / "results" / id / "1" / "x.png" for id in ids)
    long_ago = time.time() - 8 * 24 * 3600
    os.utime(old, (long_ago, long_ago))
    with running(tmp_path, WARM_MODEL="none"):
        wait_until(lambda: not old.exists())
    assert new.exists()


def ends(folder: Path, **settings: str) -> tuple[int, str]:
    process = start(folder, **settings)
    try:
        process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
    return process.returncode, (folder / "stderr").read_text()


def test_a_setting_that_is_wrong_is_named(tmp_path: Path) -> None:
    code, said = ends(tmp_path, INLINE_SECONDS="soon")
    assert code == 2
    assert re.fullmatch(r"error: INLINE_SECONDS: .*number.*\n", said)


def test_a_folder_with_somebodys_files_is_refused(tmp_path: Path) -> None:
    mine = tmp_path / "data" / "thesis.doc"
    mine.parent.mkdir()
    mine.write_text("mine")
    os.utime(mine, (1000, 1000))
    code, said = ends(tmp_path)
    assert code == 2
    assert re.fullmatch(r"error: .*/data has files in it .*DATA_DIR.*\n", said)
    assert list(mine.parent.iterdir()) == [mine]


@pytest.mark.parametrize("name", ["photo-x3", "/nowhere", "no/such"])
def test_a_model_that_there_cannot_be_stops_the_start(tmp_path: Path, name: str) -> None:
    code, said = ends(tmp_path, MODEL=name)
    assert code == 2
    assert re.fullmatch(rf"error: MODEL: .*{name}.*\n", said)


def test_a_port_in_use_is_said(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, said = ends(tmp_path, PORT=str(port))
    assert code == 1
    assert said == f"error: cannot listen on 127.0.0.1 port {port}: Address already in use\n"


def test_logs_rotate(tmp_path: Path) -> None:
    """In a process of its own, for it takes over the root logger."""
    code = f"""
import logging, pathlib
from handler import logs
logs.FILE_BYTES = 2000
logs.setup("INFO", pathlib.Path({str(tmp_path / "log")!r}) / "service.log")
for number in range(1000): logging.getLogger("handler").info("line %d", number)
"""
    subprocess.run(
        [sys.executable, "-c", code], check=True, cwd=ROOT, env={"PATH": "", "TMPDIR": tempfile.gettempdir()}
    )
    files = list((tmp_path / "log").iterdir())
    assert len(files) == 4
    assert all(0 < file.stat().st_size <= 2000 for file in files)
    assert "line 999" in (tmp_path / "log" / "service.log").read_text()
