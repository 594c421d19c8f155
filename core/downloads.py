"""One download for all who wait for it, in a thread of its own, so that nobody waits longer than they want to."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path

from core.errors import ModelError

#: How long anybody waits for a download. The largest published Swin2SR has 50 MB.
SECONDS = 300.0
#: Seconds for which what could not be had is not asked for again.
AGAIN_SECONDS = 30.0

_lock = threading.Lock()
_downloads: dict[str, tuple[float, Future[Path]]] = {}


def once(name: str, fetch: Callable[[], Path], seconds: float | None = None) -> Path:
    """Call a function that downloads, or wait for whoever does so already.

    Args:
        name: of what is downloaded.
        fetch: downloads it, and gives its place; may raise anything, which becomes everybody's error.
        seconds: to wait at most; None for `SECONDS` since the download began. The download itself goes on.

    Returns:
        What `fetch` gave.

    Raises:
        ModelError: it could not be had a moment ago, or takes too long.
    """
    now = time.monotonic()
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
        raise ModelError(f"{name} is not here yet: its download takes longer than {left:.0f} s") from None
    with _lock:
        _downloads.pop(name, None)  # from now on it is on this machine
    return found


def _run(fetch: Callable[[], Path], future: Future[Path]) -> None:
    try:
        future.set_result(fetch())
    except BaseException as error:
        future.set_exception(error)
