"""What the tests of workers and events share: small jobs, a store that fails on demand, Lambda's context."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import unquote_plus

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from pydantic import JsonValue

import core
from handler import jobs
from handler.jobs import Job, Request, changes
from handler.settings import Settings
from handler.storage import Storage, StorageError, Unavailable
from handler.workspace import PREFIX

ROOT = Path(__file__).parents[2]
EVENTS = ROOT / "tests" / "events"
TTL = timedelta(days=1)
#: No pause between repetitions of a storage call.
AT_ONCE = (0.0, 0.0, 0.0)
#: Seconds after which what a test waits for is given up. Only a test that hangs takes them; a loaded machine is slow.
PATIENCE = 300.0
#: Starts a container of Batch, in a process.
Start = Callable[..., "subprocess.Popen[bytes]"]


@contextmanager
def containers() -> Iterator[Start]:
    """Processes of Python, given arguments and variables; what still runs at the end is killed."""
    started: list[subprocess.Popen[bytes]] = []

    def begin(arguments: list[str], variables: dict[str, str]) -> subprocess.Popen[bytes]:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **variables}
        started.append(subprocess.Popen([sys.executable, *arguments], env=environment, stderr=subprocess.DEVNULL))
        return started[-1]

    yield begin
    for process in started:
        process.kill()
        process.wait()


def upscaling_by_copying(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """In place of the network: results are copies of the pictures, which are noted in the list."""
    made: list[Path] = []

    def copy(source: Path, options: core.Options, *, output: Path, **_: Any) -> core.Result:
        header = core.probe(source)
        shutil.copyfile(source, output)
        made.append(source)
        return core.Result(
            data=None, format=header.result_format, media_type="image/png", width=1, height=1, model="copy",
            degraded=False, reason="", device="cpu", dtype="none", tiles=1, seconds=0.5, load_seconds=0.0, notes=(),
            frames=1,
        )  # fmt: skip

    monkeypatch.setattr(core, "upscale", copy)
    return made


def one_tile_only() -> None:
    """In this process, no work gets beyond its first tile: it is asked whether to go on until the answer is no.

    For tests in which a worker has to be at work at a certain moment, however fast the machine is.
    """
    upscale = core.upscale

    def held(*arguments: Any, progress: Callable[[int, int], None], **named: Any) -> core.Result:
        def after(done: int, total: int) -> None:
            progress(done, total)
            while done:
                time.sleep(0.02)
                progress(done, total)

        return upscale(*arguments, progress=after, **named)

    setattr(core, "upscale", held)  # noqa: B010 - mypy refuses the other way
    changes.HEARTBEAT_SECONDS = 0.0  # each question is one of the job's document


def tile_without_end() -> None:
    """In this process, the network computes the first tile of a picture again and again."""
    from core.engine import onnx

    def endless(load: Callable[[Path, int], onnx.Network]) -> Callable[[Path, int], onnx.Network]:
        def loaded(file: Path, threads: int) -> onnx.Network:
            net = load(file, threads)

            def run(x: NDArray[np.float32]) -> NDArray[np.float32]:
                while True:
                    made = net(x)
                    if x.shape[2] <= 8:  # it is only tried out
                        return made

            return run

        return loaded

    for name in ("_onnxruntime", "_openvino"):
        setattr(onnx, name, endless(getattr(onnx, name)))


def picture(width: int = 24, height: int = 16, *, format: str = "PNG", seed: int = 0) -> bytes:
    """A small picture with something in it everywhere."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format)
    return stream.getvalue()


def configured(folder: Path, **values: Any) -> Settings:
    """Settings of local mode, or of S3 where `bucket` is among the values."""
    return Settings(**{"data_dir": folder / "data", "bucket": "", "warm_model": "none", **values})


def queued(
    storage: Storage, data: bytes, name: str = "photo.png", webhook: str | None = None, **options: JsonValue
) -> Job:
    """A job whose upload has arrived."""
    request = Request(filename=name, content_type="image/png", bytes=len(data), options=options, webhook=webhook)
    job, _ = jobs.put(storage, str(uuid.uuid4()), request, ttl=TTL)
    storage.put(job.input.key, data, "image/png")
    return jobs.uploaded(storage, job.id)


def result(storage: Storage, job: Job) -> bytes:
    """The bytes of a job's result."""
    assert job.output is not None, job
    return storage.get(job.output.key)[0]


def results(storage: Storage, job: Job) -> list[str]:
    """Keys of everything that lies where the job's results go."""
    return sorted(found.key for found in storage.list(f"results/{job.id}/"))


def left_behind(folder: Path) -> list[Path]:
    """Working folders that nobody removed."""
    return list(folder.glob(f"{PREFIX}*"))


def event(name: str) -> dict[str, Any]:
    """One of tests/events."""
    found: dict[str, Any] = json.loads((EVENTS / name).read_text(encoding="utf-8"))
    return found


def as_stored(storage: Storage, sent: Any) -> Any:
    """An event with the ETags of what really lies in the store: those of the examples only stand in for them."""
    if isinstance(sent, list):
        return [as_stored(storage, part) for part in sent]
    if not isinstance(sent, dict):
        return sent
    sent = {key: as_stored(storage, value) for key, value in sent.items()}
    if sent.get("eventSource") == "aws:sqs":
        with suppress(ValueError):
            sent["body"] = json.dumps(as_stored(storage, json.loads(sent["body"])))
    for name in ("eTag", "etag"):
        if name in sent:
            with suppress(StorageError):
                sent[name] = storage.head(unquote_plus(sent["key"])).etag.strip('"')
    return sent


@dataclass
class Failing:
    """A store that fails as often as it is told to; `times` maps a method and the beginning of a key to a count."""

    storage: Storage
    times: dict[tuple[str, str], float] = field(default_factory=dict)
    failed: int = 0

    def __getattr__(self, name: str) -> Any:
        real = getattr(self.storage, name)
        if not callable(real):
            return real

        def call(*arguments: Any, **named: Any) -> Any:
            key = next((value for value in arguments if isinstance(value, str)), "")
            for (method, prefix), left in self.times.items():
                if name == method and key.startswith(prefix) and left > 0:
                    self.times[method, prefix] = left - 1
                    self.failed += 1
                    raise Unavailable(f"the store failed: {name} 503")
            return real(*arguments, **named)

        return call


@dataclass
class Context:
    """Lambda's context; `seconds` is how long the invocation may still take."""

    seconds: float = 900.0
    function_name: str = "uploads"
    memory_limit_in_mb: int = 3008
    invoked_function_arn: str = "arn:aws:lambda:us-east-1:123456789012:function:uploads"
    aws_request_id: str = "52fdfc07-2182-454f-963f-5f0f9a621d72"
    asked: int = 0
    ends_after: int | None = None

    def get_remaining_time_in_millis(self) -> int:
        """As Lambda's; `ends_after` so many questions, one second is left."""
        self.asked += 1
        if self.ends_after is not None and self.asked > self.ends_after:
            return 1000
        return int(self.seconds * 1000)


def wait_for(condition: Callable[[], object], what: str) -> None:
    """Wait until a function says yes."""
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, f"waited in vain for {what}"
        time.sleep(0.02)
