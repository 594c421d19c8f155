"""Work in pieces on a CPU: each piece on one thread from its first operation to its last.

PyTorch's own threads share each single operation and wait for each other after it. With thousands of short operations,
any other process that takes a processor for a moment then holds up all threads, each time: on a busy machine
Swin2SR took several times as long. Pieces also stay in the cache of the processor that works on them.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from functools import lru_cache

import torch


def for_each(work: Callable[[int], object], count: int) -> None:
    """Do pieces of work in inference mode, on as many threads as PyTorch is set to use.

    Whatever their number, each piece is computed on a single one, so that its bits do not depend on it.

    Args:
        work: called with the number of a piece.
        count: pieces, numbered from 0.

    Raises:
        Exception: the first that `work` raised, after all threads have stopped.
    """
    pieces = iter(range(count))  # shared: who is done with one takes the next

    def some() -> None:
        with torch.inference_mode():
            for piece in pieces:
                work(piece)

    threads = torch.get_num_threads()
    if threads == 1:
        some()
        return
    running = [_pool(threads).submit(some) for _ in range(min(threads, count))]
    wait(running)
    for one in running:
        one.result()


@lru_cache(maxsize=1)
def _pool(threads: int) -> ThreadPoolExecutor:
    """Threads of which each computes alone."""
    ready = threading.Barrier(threads + 1)

    def start() -> None:
        torch.get_num_threads()  # a thread takes over the number of the process once: now, and not after the next line
        torch.set_num_threads(1)
        ready.wait()

    pool = ThreadPoolExecutor(threads, "network", start)
    for _ in range(threads):
        pool.submit(int)  # one that still waits at the barrier takes no work, so this starts another
    ready.wait()
    torch.set_num_threads(threads)  # the last number set anywhere is what threads of others start with
    return pool


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)  # the child of a fork has none of these threads
