"""One download for all who wait."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from core import downloads, hub
from core.errors import ModelError, NotHereYet


def test_one_for_all_and_nobody_waits_longer_than_they_want() -> None:
    """Issue 16: a hub that dripped held everybody up."""
    go, calls = threading.Event(), []

    def drip() -> Path:
        calls.append(1)
        go.wait(300)
        return Path("there")

    with ThreadPoolExecutor(8) as pool:
        for call in [pool.submit(downloads.once, "slow/slow", drip, 0.2) for _ in range(8)]:
            with pytest.raises(ModelError, match="not here yet"):
                call.result()
        patient = pool.submit(downloads.once, "slow/slow", drip)
        go.set()
        assert patient.result() == Path("there")
    assert len(calls) == 1


def test_a_failure_is_remembered_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def fail() -> Path:
        calls.append(1)
        raise ModelError("too large")

    for _ in range(3):
        with pytest.raises(ModelError, match="too large"):
            downloads.once("large/large", fail)
    assert len(calls) == 1
    monkeypatch.setattr(downloads, "AGAIN_SECONDS", 0.0)
    with pytest.raises(ModelError):
        downloads.once("large/large", fail)
    assert len(calls) == 2


def test_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of an estimate, which need not wait for a model."""
    go = threading.Event()

    def drip() -> Path:
        go.wait(300)
        return Path("there")

    with pytest.raises(NotHereYet), downloads.patience(0.1):
        downloads.once("later/later", drip)
    go.set()
    assert downloads.once("later/later", drip) == Path("there")


class Hub:
    """A hub with one file, which never ends."""

    def __init__(self, declared: int, size: int) -> None:
        self.hung_up = threading.Event()

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(handler) -> None:  # noqa: N805
                handler.send_response(200)
                for name, value in {"ETag": '"1"', "X-Repo-Commit": "a" * 40, "Content-Length": str(declared)}.items():
                    handler.send_header(name, value)
                handler.end_headers()

            def do_GET(handler) -> None:  # noqa: N805
                handler.do_HEAD()
                try:
                    for _ in range(10_000):
                        handler.wfile.write(bytes(size))
                        time.sleep(0.02)
                except OSError:
                    self.hung_up.set()

            def log_message(handler, *_: object) -> None:  # noqa: N805
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.server.block_on_close = False
        self.address = f"http://127.0.0.1:{self.server.server_port}"


@pytest.fixture
def dripping(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    pytest.importorskip("huggingface_hub")
    found = Hub(10_000_000, 10)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", found.address)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setenv("NO_PROXY", "*")
    thread = threading.Thread(target=found.server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield found
    found.server.shutdown()
    found.server.server_close()
    thread.join()


@pytest.mark.slow
def test_a_download_over_the_limit_is_stopped(dripping: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Not only the waiting for it: issue 16."""
    monkeypatch.setattr(downloads, "SECONDS", 6.0)
    with pytest.raises(ModelError, match="not here yet"):
        hub.fetch_file("slow/slow/4x.pth")
    assert dripping.hung_up.wait(300), "the hub is left alone"
    with pytest.raises(ModelError, match="stopped"):
        hub.fetch_file("slow/slow/4x.pth")


def test_what_writes_more_than_it_may_is_ended(tmp_path: Path) -> None:
    code = "open(sys.argv[1], 'wb').write(bytes(100_000))"
    with pytest.raises(ModelError, match="File too large"):
        downloads.in_process(code, [str(tmp_path / "file")], {}, 10_000)
    assert (tmp_path / "file").stat().st_size <= 10_000
    assert downloads.in_process("print(len(sys.argv), 'is', 'it')", ["a"], {}, 1) == "2 is it"
