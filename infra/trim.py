"""Remove from a folder of installed packages what never runs, and compile the rest to byte code.

    python infra/trim.py FOLDER [PREFIX...]   with prefixes, also all packages whose names begin with none of them

A step of the Dockerfile; in Python because Lambda's base images have no `find`.
"""

from __future__ import annotations

import compileall
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from py_compile import PycInvalidationMode

FOLDERS = {"test", "tests", "include", "share"}
SUFFIXES = {".a", ".c", ".h", ".pxd", ".pyi", ".pyx"}
#: torch looks for this program when it is imported, and has test programs beside it.
NEEDED = "torch_shm_manager"


def trim(folder: Path, prefixes: Sequence[str] = ()) -> None:
    """Change a folder of packages as said above."""
    for package in folder.iterdir():
        if package.name == "bin" or (prefixes and not package.name.startswith(tuple(prefixes))):
            remove(package)
    for path in sorted(folder.rglob("*"), reverse=True):  # what is in a folder before the folder
        if path.is_symlink() or not path.exists():
            continue
        useless = path.name in FOLDERS if path.is_dir() else path.suffix in SUFFIXES
        if useless or (path.parent.name == "bin" and path.name != NEEDED):
            remove(path)
    # Without comparing times with the source: those of an image may be anything. Templates that are no Python fail.
    compileall.compile_dir(folder, quiet=2, workers=0, invalidation_mode=PycInvalidationMode.UNCHECKED_HASH)


def remove(path: Path) -> None:
    """Delete a file or a folder."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


if __name__ == "__main__":
    trim(Path(sys.argv[1]), sys.argv[2:])
