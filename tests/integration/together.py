"""Processes that start to do something at the same moment, to find out who wins."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from functools import lru_cache
from multiprocessing.context import ForkServerContext
from multiprocessing.synchronize import Barrier
from typing import Any, Self

import pytest

_start: Barrier


@lru_cache(maxsize=1)
def quick_processes() -> ForkServerContext:
    """Makes processes that have torch and our code already, so that each starts in no time."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["core.engine.run", "handler.s3_event", "tests.integration.test_chaos"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")  # a fork would copy a pool of threads without its threads
        first = context.Process(target=int)
        first.start()
        first.join()
    return context


def _prepare(barrier: Barrier) -> None:
    global _start
    _start = barrier


def _run(task: tuple[Callable[..., Any], tuple[Any, ...]]) -> Any:
    fn, args = task
    _start.wait(300)
    return fn(*args)


class Together:
    """A pool of processes in which every one gets one call, and none begins before all are there."""

    def __init__(self, count: int) -> None:
        context = quick_processes()
        self.count = count
        self._pool = context.Pool(count, _prepare, (context.Barrier(count),))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.terminate()
        self._pool.join()

    def __call__(self, fn: Callable[..., Any], *args: Any) -> list[Any]:
        """`fn(number, *args)` in each process, numbers from 0; the answers in order."""
        tasks = [(fn, (number, *args)) for number in range(self.count)]
        return self._pool.map_async(_run, tasks, chunksize=1).get(600)
