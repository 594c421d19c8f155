"""Pieces of work on threads of their own."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from core.networks.threads import for_each

ROOT = Path(__file__).parents[3]


@pytest.fixture(autouse=True, params=[1, 2])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    count: int = request.param
    torch.set_num_threads(count)
    yield count
    torch.set_num_threads(before)


def test_each_piece_is_done_once(threads: int) -> None:
    done: list[int] = []
    for_each(done.append, 100)
    assert sorted(done) == list(range(100))
    for_each(done.append, 0)
    assert len(done) == 100


def test_pieces_are_at_work_at_the_same_time_and_each_computes_alone(threads: int) -> None:
    together, seen = threading.Barrier(threads, timeout=300), set()

    def work(_: int) -> None:
        together.wait()  # breaks unless that many pieces are at work
        seen.add((torch.get_num_threads(), torch.is_inference_mode_enabled()))

    for_each(work, 4 * threads)
    assert seen == {(1, True)}


def test_other_threads_compute_as_before(threads: int) -> None:
    for_each(int, 4)
    assert torch.get_num_threads() == threads
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(torch.get_num_threads).result() == threads


def test_a_failure_is_raised_when_all_have_stopped(threads: int) -> None:
    done = []

    def work(piece: int) -> None:
        if piece == 3:
            raise MemoryError("this one")
        done.append(piece)

    with pytest.raises(MemoryError, match="this one"):
        for_each(work, 20)
    count = len(done)
    for_each(int, 1)
    assert len(done) == count
    assert (threads == 1 and done == [0, 1, 2]) or (threads == 2 and len(done) == 19)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_the_child_of_a_fork_has_threads_of_its_own(threads: int) -> None:
    code = f"""
import os, torch
from core.networks.threads import for_each
torch.set_num_threads({threads})
for_each(int, 4)
child = os.fork()
done = []
for_each(done.append, 4)
if not child:
    os._exit(sorted(done) != [0, 1, 2, 3])
raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, env=environment, timeout=300)
