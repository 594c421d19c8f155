"""examples/upscale.sh, .py and .mjs against the running service: each way that an answer can take."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from PIL import Image

from handler.local import Workers
from handler.storage import LocalStorage
from tests.integration.receiver import Receiver
from tests.integration.web.support import ROOT, local, served
from tests.integration.work import PATIENCE, picture

PROGRAMS = {
    "sh": ["sh", "examples/upscale.sh"],
    "py": [sys.executable, "examples/upscale.py"],
    "mjs": ["node", "examples/upscale.mjs"],
}
#: Where people copy their first line from.
DOCUMENTS = [
    *(ROOT / name for name in ("README.md", "handler/web/schemas.py")),
    *sorted((ROOT / "docs").glob("*.md")),
]


def missing(kind: str) -> str:
    """What a program needs and is not here; empty where it can run."""
    if kind == "sh" and shutil.which("curl") is None:
        return "curl is not installed"
    if kind == "mjs":
        asked = subprocess.run(["node", "--version"], capture_output=True, text=True) if shutil.which("node") else None
        if asked is None or int(asked.stdout.lstrip("v").partition(".")[0]) < 18:
            return "node is not installed, or older than 18 (apt-get install nodejs)"
    return ""


@pytest.fixture(params=PROGRAMS)
def program(request: pytest.FixtureRequest) -> list[str]:
    if lacks := missing(request.param):
        pytest.skip(lacks)
    return PROGRAMS[request.param]


def run(program: list[str], photo: Path, url: str, *more: str, key: str = "") -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "UPSCALE_URL": url, "UPSCALE_KEY": key, "UPSCALE_WAIT": "300", "no_proxy": "*"}
    command = [*program, str(photo), *more]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=PATIENCE)


@pytest.fixture(params=["inline", "job"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A service that answers with the picture, or with a job; it wants a key."""
    settings = local(tmp_path / "data", api_key="the key", inline_seconds=20 if request.param == "inline" else 0)
    workers = Workers(LocalStorage(settings.data_dir), settings)
    workers.start()
    try:
        with served(settings, LocalStorage(settings.data_dir), workers.put) as client:
            yield str(client.base_url)
    finally:
        workers.stop(30)


def test_the_result_lies_beside_the_picture(program: list[str], url: str, tmp_path: Path) -> None:
    photo = tmp_path / "été photo+1.png"
    photo.write_bytes(picture(30, 20))
    ended = run(program, photo, url, key="the key")
    assert ended.returncode == 0, ended.stderr
    made = tmp_path / "été photo+1-x2.png"
    assert ended.stdout.strip() == str(made)
    with Image.open(made) as found:
        assert found.size == (60, 40)
    assert {path.name for path in tmp_path.iterdir()} == {photo.name, made.name, "data"}
    assert run(program, photo, url, key="the key").returncode == 2, "what is there is not overwritten"


def test_a_file_too_large_for_a_request_goes_by_a_job(program: list[str], url: str, tmp_path: Path) -> None:
    photo = tmp_path / "large.png"
    photo.write_bytes(picture() + bytes(4_000_000))  # large, and soon done: decoders stop at the picture's end
    ended = run(program, photo, url, key="the key")
    assert ended.returncode == 0, ended.stderr
    with Image.open(tmp_path / "large-x2.png") as found:
        assert found.size == (48, 32)


def test_refusals_are_told(program: list[str], url: str, tmp_path: Path) -> None:
    photo = tmp_path / "photo.png"
    photo.write_bytes(b"this is text")
    without_key = run(program, photo, url)
    assert (without_key.returncode, "401" in without_key.stderr) == (1, True)
    assert "X-API-Key" in without_key.stderr
    ended = run(program, photo, url, key="the key")
    assert ended.returncode == 1
    assert "picture" in ended.stderr
    assert not list(tmp_path.glob("*x2*"))


def test_they_wait_when_they_are_asked_to(tmp_path: Path) -> None:
    """Five seconds where they are not told how long; all programs at the same time."""

    def waits(program: list[str]) -> None:
        photo = tmp_path / program[-1] / "photo.png"
        photo.parent.mkdir(parents=True)
        photo.write_bytes(picture())
        with Receiver((429, {"Retry-After": "1"}), (503, {}), 200) as receiver:
            ended = run(program, photo, receiver.url.partition("/hook")[0])
        assert ended.returncode == 0, ended.stderr
        assert len(receiver.requests) == 3
        assert photo.with_name("photo-x2.png").read_bytes() == b""

    there = [program for kind, program in PROGRAMS.items() if not missing(kind)]
    assert there
    with ThreadPoolExecutor(len(there)) as pool:
        list(pool.map(waits, there))


def test_lines_that_people_copy_save_nothing_but_the_picture() -> None:
    """An error, or a job, must not become photo-x2.jpg."""
    found = []
    for path in DOCUMENTS:
        text = path.read_text().replace("\\\n", " ")
        found += [line for line in text.splitlines() if "curl" in line and "--output" in line]
    assert len(found) >= 3
    for line in found:
        assert "--fail-with-body" in line, line
        assert "Prefer: wait=" in line or "202" in line, line
