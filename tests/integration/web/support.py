"""What the tests of the HTTP interface share: a server in this process, and readers of its answers."""

from __future__ import annotations

import io
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import uvicorn
from fastapi import FastAPI
from PIL import Image

import core
from handler import jobs
from handler.settings import Settings
from handler.storage import Storage
from handler.web import problems
from handler.web.app import build
from tests.integration.work import PATIENCE
from tests.unit.pictures import corners, saved

PNG = saved(corners(), "PNG")  # 20 x 12
FORM = {"content-type": "multipart/form-data; boundary=x"}
ROOT = Path(__file__).parents[3]
UUID = "6f9619ff-8b86-4011-b42d-00c04fc964ff"
WANTED = {"filename": "photo.png", "content_type": "image/png", "bytes": len(PNG), "options": {"scale": 2}}


@contextmanager
def served(
    settings: Settings, storage: Storage | None = None, start: Callable[[str], None] = lambda _: None, **config: Any
) -> Iterator[httpx.Client]:
    """A running server, and a client that knows its address; `config` is uvicorn's."""
    with serving(build(settings, storage, start), **config) as client:
        yield client


@contextmanager
def serving(app: FastAPI, as_it_is: uvicorn.Config | None = None, **config: Any) -> Iterator[httpx.Client]:
    """The same of an application, or all of a configuration."""
    usual: dict[str, Any] = {"lifespan": "off", "ws": "none", "log_config": None, "access_log": False}
    server = uvicorn.Server(as_it_is or uvicorn.Config(app, **usual, **config))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            url = f"http://127.0.0.1:{listener.getsockname()[1]}"
            with httpx.Client(base_url=url, timeout=PATIENCE, trust_env=False) as client:
                yield client
        finally:
            server.should_exit = True
            thread.join()


def local(folder: Path, **values: Any) -> Settings:
    return Settings(**{"data_dir": folder, "rate_limit": "none", "warm_model": "none", "bucket": "", **values})


def picture(response: httpx.Response) -> Image.Image:
    return Image.open(io.BytesIO(response.content))


def check_problem(response: httpx.Response, status: int, code: str) -> str:
    """The detail of an answer that is a problem as RFC 9457 has it."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == problems.MEDIA_TYPE
    found = response.json()
    assert set(found) == {"type", "title", "status", "detail", "code", "request_id"}
    assert (found["status"], found["code"], found["type"]) == (status, code, "about:blank")
    assert found["request_id"] == response.headers["x-request-id"]
    detail = found["detail"]
    assert isinstance(detail, str)
    assert detail
    assert "\n" not in detail
    return detail


def finished(client: httpx.Client, id: str) -> dict[str, Any]:
    end = time.monotonic() + PATIENCE
    while True:
        job: dict[str, Any] = client.get(f"/jobs/{id}").json()
        if jobs.State(job["state"]).final:
            return job
        assert time.monotonic() < end, f"not finished: {job}"
        time.sleep(0.05)


class Slow:
    """Stands in for `core.upscale`: takes until it is told, and counts."""

    def __init__(self) -> None:
        self.go, self.cancelled = threading.Event(), threading.Event()
        self.lock, self.running, self.most = threading.Lock(), 0, 0
        self.real = core.upscale

    def __call__(self, *args: Any, progress: Callable[[int, int], None], **kwargs: Any) -> core.Result:
        with self.lock:
            self.running += 1
            self.most = max(self.most, self.running)
        try:
            while not self.go.wait(0.01):
                progress(0, 1)
        except core.Cancelled:
            self.cancelled.set()
            raise
        finally:
            with self.lock:
                self.running -= 1
        return self.real(*args, **kwargs)


def send(client: httpx.Client, upload: dict[str, Any], data: bytes = PNG) -> httpx.Response:
    return client.request(upload["method"], upload["url"], data=upload["fields"], files={"file": ("any", data)})
