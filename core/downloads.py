"""One download for all who wait for it, in a separate thread, so that nobody waits longer than they want to.

What a thread does cannot be stopped, so what might never end runs in a separate process: `in_process`.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

from core.errors import ModelError, NotHereYet

#: How long a download may take, and the longest that anybody waits for it. The largest published Swin2SR has 50 MB.
SECONDS = 300.0
#: Downloads at the same time; others wait.
AT_ONCE = 4
#: Seconds for which what could not be had is not asked for again.
AGAIN_SECONDS = 30.0

#: What a separate process does before anything else: it ends by itself, also where nobody is left to stop it, and
#: cannot write a larger file than that.
_LIMITED = """
import sys
seconds, size = int(sys.argv.pop(1)), int(sys.argv.pop(1))
try:
    import resource, signal
    signal.alarm(seconds)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
except (ImportError, AttributeError):
    pass  # Windows
"""

_patience: ContextVar[float | None] = ContextVar("patience", default=None)
_places = threading.BoundedSemaphore(AT_ONCE)
_lock = threading.Lock()
_downloads: dict[str, tuple[float, Future[Path]]] = {}


@contextmanager
def patience(seconds: float) -> Iterator[None]:
    """Whoever is inside waits no longer than that for a download, for each that there is.

    Args:
        seconds: to wait at most.
    """
    token = _patience.set(seconds)
    try:
        yield
    finally:
        _patience.reset(token)


def once(name: str, fetch: Callable[[], Path], seconds: float | None = None) -> Path:
    """Call a function that downloads, or wait for whoever does so already.

    Args:
        name: of what is downloaded.
        fetch: downloads it, and gives its place; may raise anything, which becomes everybody's error.
        seconds: to wait at most; None for `patience`, or `SECONDS` since the download began. The download goes on.

    Returns:
        What `fetch` gave.

    Raises:
        NotHereYet: it takes longer.
        ModelError: it could not be had, just now or a moment ago.
    """
    now = time.monotonic()
    seconds = _patience.get() if seconds is None else seconds
    with _lock:
        began, future = _downloads.get(name, (now, Future()))
        failed = future.done() and future.exception() is not None
        if name not in _downloads or (failed and now - began >= AGAIN_SECONDS):
            began, future = now, Future()
            _downloads[name] = began, future
            threading.Thread(target=_run, args=(fetch, future), name=f"download-{name}", daemon=True).start()
    left = max(0.0, began + SECONDS - now if seconds is None else seconds)
    try:
        found = future.result(timeout=left)
    except TimeoutError:
        raise NotHereYet(f"{name} is not here yet: its download takes longer than {left:.0f} s") from None
    with _lock:
        _downloads.pop(name, None)  # from now on it is on this machine
    return found


def _run(fetch: Callable[[], Path], future: Future[Path]) -> None:
    try:
        with _places:
            found = fetch()
        future.set_result(found)
    except BaseException as error:
        future.set_exception(error)


def in_process(code: str, arguments: list[str], environment: Mapping[str, str], most: int) -> str:
    """Run Python code that downloads, and end it after `SECONDS`.

    Args:
        code: finds the arguments in `sys.argv[1:]`.
        arguments: for it.
        environment: variables besides those of this process.
        most: bytes of one file.

    Returns:
        The last line that it printed.

    Raises:
        ModelError: it failed, with the last line of its errors, or was ended.
    """
    command = [sys.executable, "-c", _LIMITED + code, str(max(1, round(SECONDS))), str(most), *arguments]
    try:
        done = subprocess.run(  # noqa: S603 - this Python, and code of ours
            command,
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=SECONDS + 5,
        )
    except subprocess.TimeoutExpired:
        raise ModelError(f"the download took longer than {SECONDS:.0f} s, and was stopped") from None
    said = (done.stdout if done.returncode == 0 else done.stderr).strip().splitlines()
    if done.returncode < 0:
        raise ModelError(f"the download took longer than {SECONDS:.0f} s, and was stopped")
    if done.returncode or not said:
        raise ModelError(said[-1] if said else "the download failed")
    return said[-1]
