"""Which servers of a data directory are alive: each holds a lock (flock), which the system frees when it dies.

A process number says less: it is 1 in every container, and is given again after a restart.
"""

from __future__ import annotations

import fcntl
import os
import secrets
from contextlib import suppress
from pathlib import Path


class Server:
    """This process, among those that work in the same directory.

    Args:
        data: the directory; a folder `.servers` is made in it.

    Attributes:
        name: of this server, unlike any other's.

    Raises:
        OSError: the directory cannot be written to.
    """

    def __init__(self, data: Path) -> None:
        self._folder = data / ".servers"
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        while True:
            self.name = secrets.token_hex(16)
            self._file = (self._folder / self.name).open("xb")
            fcntl.flock(self._file, fcntl.LOCK_EX)
            if os.fstat(self._file.fileno()).st_nlink:
                return
            self._file.close()  # another server looked between opening and locking, and took it for a dead one's

    def is_dead(self, name: str) -> bool:
        """Whether the server of this name is gone; its file is removed then."""
        if name == self.name:
            return False
        path = self._folder / name
        try:
            with path.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()
        except FileNotFoundError:
            return True
        except OSError:  # held, or unreadable: better wait for its leases to run out
            return False
        return True

    def close(self) -> None:
        """This server works no more."""
        with suppress(OSError):
            (self._folder / self.name).unlink()
        self._file.close()
