"""What in a local directory is the service's own: nothing else is ever deleted, and it does not move in with others."""

from __future__ import annotations

import errno
import os
import re
import shutil
from pathlib import Path

from handler.storage.base import ForeignDirectory

#: Bytes that must be free on the disk.
LEAST_FREE = 16 << 20
#: Says that a directory is one of ours.
MARKER = ".serverless-upscaler"
_MARKER_TEXT = "Pictures and jobs of serverless-upscaler lie here; what has expired is deleted.\n"
#: What versions before the marker have made, at the top of their directory.
_BEFORE_MARKER = frozenset({".tmp", ".locks", ".types", ".secret", ".logs", "jobs", "uploads", "results"})
_UUID = "[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"
#: What a server that runs makes again when its directory was emptied or came back empty.
_AT_ANY_TIME = frozenset({".logs", ".servers"})
#: The prefixes of what expires, and what the service's keys look like there: see `handler.jobs.document`.
EXPIRING = {
    "jobs/": re.compile(rf"jobs/{_UUID}\.json"),
    "orders/": re.compile(rf"orders/{_UUID}\.json"),
    "uploads/": re.compile(rf"uploads/{_UUID}/[^/]+"),
    "results/": re.compile(rf"results/{_UUID}/\d+/[^/]+"),
    "work/": re.compile(rf"work/{_UUID}/[0-9a-f]{{32}}/\d{{6}}\.band"),
}


def check_space(root: Path) -> None:
    """Whether the disk has room for a result.

    Raises:
        OSError: it has not, or is not there.
    """
    if shutil.disk_usage(root).free < LEAST_FREE:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def claim(root: Path) -> None:
    """Mark an empty directory as ours; it is ours, too, if it has the mark, or all of it is from an older version.

    Args:
        root: an existing directory.

    Raises:
        ForeignDirectory: anything else: what has expired is deleted, and these may be a person's own files.
        OSError: it cannot be read or written to.
    """
    marker = root / MARKER
    if marker.exists():
        return
    names = {path.name for path in root.iterdir()} - _AT_ANY_TIME
    # Whoever makes the directory at the same time writes the mark first, so the mark is there when anything else is.
    if names and not (".locks" in names and names <= _BEFORE_MARKER) and not marker.exists():
        raise ForeignDirectory(
            f"{root} has files in it that are not this service's: "
            f"name an empty or a new directory with DATA_DIR, for what has expired is deleted there"
        )
    marker.write_text(_MARKER_TEXT, encoding="utf-8")
