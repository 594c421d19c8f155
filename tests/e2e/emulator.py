"""Lambda's runtime interface emulator, without Docker: real processes, time-outs and payload limits.

Only one invocation at a time: the emulator does not take more.
"""

from __future__ import annotations

import json
import os
import platform
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.integration.work import PATIENCE
from tests.servers import free_ports, listens

ROOT = Path(__file__).parents[2]
EVENTS = ROOT / "tests" / "events"


def program() -> Path:
    """The emulator's program; skips the test where there is none."""
    pytest.importorskip("awslambdaric", reason="awslambdaric is not installed (pip install -e '.[dev]')")
    named = os.environ.get("AWS_LAMBDA_RIE")
    kind = "arm64" if platform.machine() in ("aarch64", "arm64") else "x86_64"
    inside = f"lib/python*/site-packages/samcli/local/rapid/aws-lambda-rie-{kind}"
    found = [Path(named)] if named else sorted(ROOT.glob(f".venv*/{inside}"))
    if not found or not found[0].is_file():
        pytest.skip(
            "no runtime interface emulator: install aws-sam-cli, whose wheel carries it, into .venv-infra, "
            "or set AWS_LAMBDA_RIE to the path of aws-lambda-rie"
        )
    return found[0]


@dataclass(frozen=True)
class Function:
    """A handler in the emulator."""

    url: str
    log: Path
    pid: int

    def __call__(self, event: Mapping[str, Any] | str, timeout: float = PATIENCE) -> Any:
        """Invoke it with an event, or with one of tests/events by name; gives what it answers, errors as well."""
        data = (EVENTS / event).read_bytes() if isinstance(event, str) else json.dumps(event).encode()
        with urllib.request.urlopen(urllib.request.Request(self.url, data), timeout=timeout) as answer:
            body = answer.read().decode()
        try:
            return json.loads(body)
        except ValueError:  # the emulator's own words
            return body


def family(pid: int) -> Iterator[int]:
    """A process and all its children, by their ids."""
    yield pid
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            yield from family(int(child))


@contextmanager
def function(handler: str, folder: Path, environment: Mapping[str, str], *, seconds: int = 200) -> Iterator[Function]:
    """Run a handler in the emulator.

    Args:
        handler: such as "handler.api.handler".
        folder: for temporary files and the log.
        environment: its variables; of this process's own only those that find programs.
        seconds: its time-out.
    """
    rie = program()
    front, behind = free_ports(2)
    temporary = folder / "tmp"
    temporary.mkdir()
    variables = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(ROOT),
        "HOME": str(temporary),
        "TMPDIR": str(temporary),
        "HF_HUB_OFFLINE": "1",
        "AWS_LAMBDA_FUNCTION_TIMEOUT": str(seconds),
        "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": "3008",
        **{name: value for name, value in os.environ.items() if name.startswith("AWS_")},
        **environment,
    }
    addresses = [f"--runtime-interface-emulator-address=127.0.0.1:{front}", f"--runtime-api-address=127.0.0.1:{behind}"]
    command = [str(rie), *addresses, sys.executable, "-m", "awslambdaric", handler]
    log = folder / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, cwd=ROOT, env=variables, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
            start_new_session=True,
        )  # fmt: skip
    try:
        end = time.monotonic() + PATIENCE
        while not listens(front):
            if process.poll() is not None:
                pytest.fail(f"the emulator ended with {process.returncode}: {log.read_text()[-2000:]}")
            if time.monotonic() > end:
                pytest.fail(f"the emulator did not start: {log.read_text()[-2000:]}")
            time.sleep(0.1)
        yield Function(f"http://127.0.0.1:{front}/2015-03-31/functions/function/invocations", log, process.pid)
    finally:
        for pid in list(family(process.pid)):  # the runtime that it started has a group of its own
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()
