"""Working folders: removed at the end, also that of a process that was killed."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

from handler.workspace import PREFIX, workspace
from tests.integration.work import left_behind


def test_working_folders_of_killed_processes_are_removed_and_others_are_not(scratch: Path) -> None:
    code = "import sys, handler.workspace as w; c = w.workspace(); print(c.__enter__(), flush=True); sys.stdin.read()"
    environment = {**os.environ, "TMPDIR": str(scratch)}
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, text=True
    ) as process:
        assert process.stdout
        held = Path(process.stdout.readline().strip())
        (held / "file").write_text("x")
        strange = scratch / "other-program"
        strange.mkdir()
        with workspace() as mine:
            assert {mine, held, strange} == set(scratch.iterdir())
        assert (held / "file").exists()
        process.kill()
    with workspace() as mine:
        assert {mine, strange} == set(scratch.iterdir())
    assert not left_behind(scratch)


def test_many_threads_make_and_remove_working_folders(scratch: Path) -> None:
    failures: list[BaseException] = []

    def work() -> None:
        try:
            for _ in range(20):
                with workspace() as folder:
                    (folder / "file").write_text("x")
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert not list(scratch.glob(f"{PREFIX}*"))
