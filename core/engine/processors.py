"""How much of this machine's processors is granted to this process."""

from __future__ import annotations

import math
import os
from functools import lru_cache
from pathlib import Path

_CGROUPS = Path("/sys/fs/cgroup")


@lru_cache(maxsize=1)
def granted_threads() -> int:
    """Count the threads that find a processor.

    A container may see more processors than it gets time of: a Lambda function of 3008 MB sees two and is given 1.7.

    Returns:
        The processors that this process may run on, but no more than its control groups grant time for, rounded up.
    """
    seen = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.ceil(min(seen, _quota(Path("/proc/self/cgroup"), _CGROUPS))))


def _quota(membership: Path, root: Path) -> float:
    """Processors' worth of time that the control groups of a process grant; infinity where there is no limit.

    Linux's documentation of cgroup v2 (cpu.max) and v1 (cpu.cfs_quota_us, cpu.cfs_period_us). The group's own path may
    be one that only the host sees; then the mount is the group itself.
    """
    least = math.inf
    try:
        lines = membership.read_text(encoding="ascii").splitlines()
    except (OSError, UnicodeDecodeError):
        return least  # not Linux
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        mounts = [root, root / "unified"] if not controllers else [root / "cpu", root / controllers]
        for mount in mounts:
            group = mount / path.strip("/")
            for place in (group, *group.parents):
                least = min(least, _quota_of(place))
                if place == mount:
                    break
    return least


def _quota_of(group: Path) -> float:
    try:
        if (group / "cpu.max").exists():
            quota, period = (group / "cpu.max").read_text(encoding="ascii").split()
        else:
            quota, period = (
                (group / f"cpu.cfs_{name}_us").read_text(encoding="ascii").strip() for name in ("quota", "period")
            )
        return float(quota) / float(period) if quota not in ("max", "-1") else math.inf
    except (OSError, ValueError, ZeroDivisionError):
        return math.inf
