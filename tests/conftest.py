"""What all tests share, and how they are divided among processes (`pytest -n auto`, as the Makefile has it)."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from typing import TYPE_CHECKING

import hypothesis
import pytest

if TYPE_CHECKING:
    from xdist.remote import Producer
    from xdist.scheduler import LoadFileScheduling


def _own_processors() -> None:
    """Each process of pytest-xdist, and what it starts, has its share of the processors.

    Otherwise the threads of the networks in one would wait for those of the others; measured, a fifth more work.
    """
    number, count = os.environ.get("PYTEST_XDIST_WORKER"), os.environ.get("PYTEST_XDIST_WORKER_COUNT")
    if number and count and hasattr(os, "sched_setaffinity"):
        processors = sorted(os.sched_getaffinity(0))
        first = int(number.removeprefix("gw"))
        os.sched_setaffinity(0, processors[first :: int(count)] or {processors[first % len(processors)]})


# An example may take as long as the machine likes.
hypothesis.settings.register_profile("any machine", hypothesis.settings(deadline=None))
hypothesis.settings.load_profile("any machine")
_own_processors()  # before anything is imported that starts threads
pytest_plugins = ["tests.servers"]  # one server of each kind, for all tests of a process


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> LoadFileScheduling:
    """A file stays together, for the sake of what its tests share. See `_unit`."""
    from xdist.scheduler import LoadFileScheduling

    config.option.loadscopereorder = False  # the order is that of `pytest_collection_modifyitems`
    scheduling = LoadFileScheduling(config, log)
    scheduling._split_scope = _unit
    return scheduling


def _unit(nodeid: str) -> str:
    """What of the tests is done by one process, in order: a file; all that use the container engine, and share layers.

    Tests of a file that share nothing and take long are units of their own.
    """
    file = nodeid.partition("::")[0]
    if file in ("tests/e2e/test_containers.py", "tests/e2e/test_server_image.py"):
        return "containers"
    return nodeid if file == "tests/unit/test_quality.py" else file


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests first: at the end of a run on several processors nobody waits for a long one."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope="session", autouse=True)
def _own_cache() -> Iterator[None]:
    """Rates measured while tests share the machine are no good for later: they are kept elsewhere."""
    before = os.environ.get("XDG_CACHE_HOME")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = folder
        yield
    if before is None:
        del os.environ["XDG_CACHE_HOME"]
    else:
        os.environ["XDG_CACHE_HOME"] = before
