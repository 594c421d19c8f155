"""The directory that stands in for a bucket."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import uuid
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from handler.storage import (
    ForeignDirectory,
    InvalidKey,
    LocalStorage,
    NotFound,
    Unavailable,
)
from handler.storage.owned import MARKER
from tests.integration.together import Together

WRITE_FOR_EVER = """
import sys
from pathlib import Path
from handler.storage import LocalStorage

store = LocalStorage(Path(sys.argv[1]))
while True:
    for letter in b"ab":
        store.put("victim", bytes([letter]) * 3_000_000, "text/plain")
    Path(sys.argv[2]).touch()
"""


@pytest.mark.slow
def test_a_killed_writer_leaves_nothing_half_done(tmp_path: Path) -> None:
    store = LocalStorage(tmp_path / "store")
    for pause in (0.0, 0.003, 0.007, 0.011):
        (tmp_path / "ready").unlink(missing_ok=True)
        process = subprocess.Popen(
            [sys.executable, "-c", WRITE_FOR_EVER, store.root, tmp_path / "ready"], cwd=Path(__file__).parents[3]
        )
        while not (tmp_path / "ready").exists():
            assert process.poll() is None
            data, _ = store.get("victim") if list(store.list("victim")) else (b"a" * 3_000_000, "")
            assert len(data) == 3_000_000 and len(set(data)) == 1, "a reader never sees half a write"  # noqa: PT018
            time.sleep(0.01)
        store.sweep(datetime.min.replace(tzinfo=UTC))
        time.sleep(pause)
        process.send_signal(signal.SIGKILL)
        process.wait()
        data, etag = store.get("victim")
        assert len(data) == 3_000_000
        assert len(set(data)) == 1
        store.swap("victim", data, etag)  # its lock is free
        store.sweep(datetime.min.replace(tzinfo=UTC))
        assert list((store.root / ".tmp").iterdir()) == []


def test_sweep_removes_what_is_old(tmp_path: Path) -> None:
    store = LocalStorage(tmp_path / "store")
    first, second = str(uuid.uuid4()), str(uuid.uuid4())
    old, new = store.root / "results" / first / "1" / "old", f"results/{second}/1/new"
    store.put(f"results/{first}/1/old", b"", "x/old")
    store.put(f"jobs/{first}.json", b"", "application/json")
    store.put(f"uploads/{first}/a.png", b"", "image/png")
    store.put(new, b"", "x/new")
    for path in store.root.glob(f"*/{first}*"):
        for file in [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]:
            os.utime(file, (1000, 1000))
    assert store.sweep(datetime.now(UTC) - timedelta(days=7)) == 3
    assert [found.key for found in store.list("")] == [new]
    assert not old.parent.exists()
    assert [path.name for path in (store.root / ".types").rglob("*") if path.is_file()] == ["new"]


def test_sweep_leaves_what_people_put_there(tmp_path: Path) -> None:
    """Issue 16: a folder that had old files in it lost them within seconds."""
    store = LocalStorage(tmp_path / "store")
    id = str(uuid.uuid4())
    names = [
        "thesis.doc",
        "jobs/list.txt",
        "uploads/holiday/a.jpg",
        f"results/{id}/a.png",
        f"jobs/{id}.json.bak",
        ".x/y",
    ]
    for name in names:
        path = store.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("mine")
        os.utime(path, (1000, 1000))
    assert store.sweep(datetime.now(UTC)) == 0
    assert all((store.root / name).read_text() == "mine" for name in names)


def test_a_directory_with_somebodys_files_is_refused(tmp_path: Path) -> None:
    mine = tmp_path / "data" / "thesis.doc"
    mine.parent.mkdir()
    mine.write_text("mine")
    with pytest.raises(ForeignDirectory, match="DATA_DIR"):
        LocalStorage(tmp_path / "data")
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["thesis.doc"], "nothing is put there either"


def test_a_directory_of_ours_is_known_again(tmp_path: Path) -> None:
    LocalStorage(tmp_path).put("jobs/a", b"", "text/plain")
    (tmp_path / "notes.txt").touch()  # beside the mark, a person may put what they like
    LocalStorage(tmp_path)
    (tmp_path / "notes.txt").unlink()
    (tmp_path / MARKER).unlink()  # as versions before the mark have left it
    assert LocalStorage(tmp_path).get("jobs/a")[0] == b""
    assert (tmp_path / MARKER).exists()


def test_sweep_leaves_living_writers_alone(tmp_path: Path) -> None:
    store = LocalStorage(tmp_path / "store")
    (store.root / ".tmp" / "dead").write_bytes(b"left by a killed process")
    with store._temporary() as file:
        store.sweep(datetime.now(UTC))
        assert [path.name for path in (store.root / ".tmp").iterdir()] == [Path(file.name).name]
    assert list((store.root / ".tmp").iterdir()) == []


def sign_one(number: int, root: Path) -> str:
    return LocalStorage(root, clock=lambda: 0.0).download_link("key", "name", 60)


def test_processes_agree_on_the_signing_key(tmp_path: Path, four: Together) -> None:
    assert len(set(four(sign_one, tmp_path))) == 1
    assert (tmp_path / ".secret").stat().st_mode & 0o777 == 0o600


def test_etags_differ_also_within_a_tick_of_the_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.time_ns", lambda: 10**18)
    store = LocalStorage(tmp_path)
    seen = [store.create("key", b"0")]
    for number in range(50):
        seen.append(store.swap("key", b"%d" % (number % 10), seen[-1]))
    assert len(set(seen)) == len(seen)


def test_object_and_folder_at_once_is_refused(tmp_path: Path) -> None:
    store = LocalStorage(tmp_path)
    store.put("a", b"object", "text/plain")
    with pytest.raises(InvalidKey):
        store.put("a/b", b"", "text/plain")
    store.put("c/d", b"", "text/plain")
    with pytest.raises(InvalidKey):
        store.create("c", b"")
    assert store.get("a")[0] == b"object"
    for missing in ("a/b", "c"):
        with pytest.raises(NotFound):
            store.get(missing)


def test_a_disk_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = LocalStorage(tmp_path)
    store.put("key", b"old", "text/plain")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(Unavailable, match="No space left"):
        store.put("key", b"new", "text/plain")
    assert store.get("key")[0] == b"old"
    assert list((tmp_path / ".tmp").iterdir()) == []
