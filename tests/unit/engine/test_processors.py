"""How many threads find a processor: files of control groups as Linux writes them, and this machine's own."""

from __future__ import annotations

import math
import os
from pathlib import Path

import pytest

from core.engine.processors import _quota, granted_threads


def files(root: Path, **contents: str) -> Path:
    """A file system: names with __ for a slash; returns the membership file."""
    for name, text in contents.items():
        path = root / name.replace("__", "/").replace("_dot_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root / "membership"


@pytest.mark.parametrize(
    ("contents", "granted"),
    [
        ({"membership": "0::/\n"}, math.inf),
        ({"membership": "0::/\n", "cpu_dot_max": "170000 100000\n"}, 1.7),
        ({"membership": "0::/\n", "cpu_dot_max": "max 100000\n"}, math.inf),
        ({"membership": "0::/a/b\n", "a__cpu_dot_max": "100000 100000", "a__b__cpu_dot_max": "max 100000"}, 1),
        ({"membership": "0::/a/b\n", "a__cpu_dot_max": "300000 100000", "a__b__cpu_dot_max": "50000 100000"}, 0.5),
        ({"membership": "0::/seen/by/the/host\n", "cpu_dot_max": "250000 100000"}, 2.5),
        (
            {
                "membership": "4:memory:/\n3:cpu,cpuacct:/box\n0::/\n",
                "cpu,cpuacct__box__cpu_dot_cfs_quota_us": "170000\n",
                "cpu,cpuacct__box__cpu_dot_cfs_period_us": "100000\n",
            },
            1.7,
        ),
        (
            {
                "membership": "1:cpu:/docker/0123\n",
                "cpu__cpu_dot_cfs_quota_us": "100000\n",
                "cpu__cpu_dot_cfs_period_us": "100000\n",
            },
            1,
        ),
        (
            {
                "membership": "1:cpu:/\n",
                "cpu__cpu_dot_cfs_quota_us": "-1\n",
                "cpu__cpu_dot_cfs_period_us": "100000\n",
            },
            math.inf,
        ),
        ({"membership": "0::/\n", "cpu_dot_max": "nonsense"}, math.inf),
    ],
    ids=str,
)
def test_quotas(contents: dict[str, str], granted: float, tmp_path: Path) -> None:
    assert _quota(files(tmp_path, **contents), tmp_path) == granted


def test_no_control_groups(tmp_path: Path) -> None:
    assert _quota(tmp_path / "absent", tmp_path) == math.inf


def test_this_machine() -> None:
    assert 1 <= granted_threads() <= (os.cpu_count() or 1)
