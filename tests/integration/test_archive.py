"""Archives against a store: whole runs, kills at random points, duplicates, failures, odd keys.

The network is replaced by one that copies, where the pixels are not the point; the last test has the real one.
"""

from __future__ import annotations

import csv
import io
import random
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import boto3
import pytest

import core
from bench.archive import Killed, MemoryStorage
from core import enlarge
from handler import batch_job, jobs
from handler.archive import __main__ as command
from handler.archive import document, part, planning, submission
from handler.archive.document import MADE_FROM
from handler.jobs import Backend, State
from handler.settings import Settings
from handler.storage import Changed, Exists, LocalStorage, NotFound, S3Storage, Storage
from tests.integration.work import AT_ONCE, configured, picture, upscaling_by_copying


class Counted:
    """A store that counts what is asked of it, and kills the process at one of the questions."""

    def __init__(self, storage: Storage) -> None:
        self.storage, self.count, self.kill_at = storage, 0, -1
        self.created: Counter[str] = Counter()

    def __getattr__(self, name: str) -> Any:
        real = getattr(self.storage, name)

        def call(*arguments: Any, **named: Any) -> Any:
            if threading.current_thread() is not threading.main_thread():
                return real(*arguments, **named)
            self.count += 1
            after = self.count % 2  # every second one dies after it was done, before the answer is heard
            if self.count == self.kill_at and not after:
                raise Killed
            found = real(*arguments, **named)
            if name == "create_file":
                self.created[arguments[1]] += 1
            if self.count == self.kill_at:
                raise Killed
            return found

        return call if callable(real) else real


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Upscaling by copying."""
    return upscaling_by_copying(monkeypatch)


def archive(store: Any, settings: Settings, *arguments: str, stop: Callable[[], bool] = lambda: False) -> int:
    return command.run(store, settings, command.parser().parse_args(["--here", "--rate", "60", *arguments]), stop)


def manifest(store: Storage) -> dict[str, dict[str, str]]:
    [found] = [found for found in store.list("archives/") if found.key.endswith("manifest.csv")]
    rows = list(csv.DictReader(io.StringIO(store.get(found.key)[0].decode(), newline="")))
    assert len({row["source"] for row in rows}) == len(rows)
    return {row["source"]: row for row in rows}


def fill(store: Storage, count: int) -> dict[str, str]:
    """So many pictures and their results, in folders; what is no picture, too."""
    data = picture(8, 8)
    names = [f"{number % 3}/été {number}+%.png" for number in range(count)]
    for name in names:
        store.put(f"scans/{name}", data, "image/png")
    store.put("scans/readme.txt", b"no picture", "text/plain")
    return {f"scans/{name}": f"out/{name.removesuffix('.png')}-x2.png" for name in names}


def test_every_picture_has_its_result(
    store: LocalStorage, settings: Settings, quick: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = fill(store, 7)
    store.put("scans/broken.png", b"no picture", "image/png")
    store.put("scans/taken.png", picture(8, 8), "image/png")
    store.put("out/taken-x2.png", b"somebody else's", "image/png")
    assert archive(store, settings, "scans", "out", "--estimate") == command.DONE
    assert not list(store.list("archives/"))
    assert archive(store, settings, "scans", "out") == command.FAILED
    rows = manifest(store)
    assert {row["source"]: row["result"] for row in rows.values() if not row["error"]} == wanted
    assert {source: row["error"] for source, row in rows.items() if row["error"]} == {
        "scans/broken.png": "unreadable_image",
        "scans/taken.png": "target_taken",
    }
    assert store.get("out/taken-x2.png")[0] == b"somebody else's"
    told = capsys.readouterr()
    assert "1 x .txt" in told.out
    assert "failed: scans/broken.png: unreadable_image" in told.err

    before = len(quick)
    assert archive(store, settings, "scans/", "out/") == command.FAILED  # the same words: nothing to do
    assert len(quick) == before
    store.put("scans/broken.png", picture(8, 8), "image/png")
    store.delete("out/taken-x2.png")
    assert archive(store, settings, "scans", "out", "--redo") == command.DONE
    assert len(quick) == before + 2
    assert {row["error"] for row in manifest(store).values()} == {""}


def test_an_archive_that_is_killed_again_and_again_ends(
    tmp_path: Path, quick: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """At every kind of touch of the store, before it and after it; each time the next process goes on."""
    settings = configured(tmp_path, lease_seconds=0.2)
    monkeypatch.setattr(command, "POLL_HERE", 0.02)
    counted = Counted(MemoryStorage())
    wanted = fill(counted.storage, 24)  # 60 seconds for 12 megapixels of unknown size, and a few for each of these
    chance = random.Random(7)
    kills = 0
    while True:
        counted.count, counted.kill_at = 0, chance.randrange(1, 90) if kills < 15 else -1
        try:
            code = archive(counted, settings, "scans", "out")
            break
        except Killed:
            kills += 1
    assert kills >= 5
    rows = manifest(counted.storage)
    results = {found.key for found in counted.storage.list("out/")}
    assert rows.keys() == wanted.keys()
    assert set(counted.created.values()) == {1}, "no result is made twice"
    # A picture in whose making workers were lost may be a failure, which --redo tries again.
    lost = {source for source, row in rows.items() if row["error"]}
    assert {rows[source]["error"] for source in lost} <= {"worker_lost"}
    assert code == (command.FAILED if lost else command.DONE)
    if lost:
        counted.kill_at = -1
        assert archive(counted, settings, "scans", "out", "--redo") == command.DONE
    assert {row["result"] for row in manifest(counted.storage).values()} == set(wanted.values())
    assert (
        {found.key for found in counted.storage.list("out/")} == results | set(wanted.values()) == set(wanted.values())
    )


def planned(store: LocalStorage, settings: Settings) -> jobs.Job:
    """The job of the one part of an archive, which was stopped before it began."""
    with pytest.raises(submission.Interrupted):
        archive(store, settings, "scans", "out", stop=lambda: True)
    [list_of] = [found.key for found in store.list("archives/") if found.key.endswith("000001.jsonl")]
    plan = planning.read(store, list_of.split("/")[1])
    assert plan
    return submission._job(store, settings, plan[0], list_of, document.job_id(list_of, 0))


def work(store: Storage, settings: Settings, job: jobs.Job, **more: Any) -> jobs.Job | None:
    return part.run_part(store, settings, job.id, backend=Backend.BATCH, worker="w", retry_delays=AT_ONCE, **more)


def test_a_stopped_container_hands_the_rest_back(store: LocalStorage, settings: Settings, quick: list[Path]) -> None:
    wanted = fill(store, 6)
    job = planned(store, settings)
    left = work(store, settings, job, stop=lambda: len(quick) >= 3)
    assert left
    assert (left.state, left.lost) == (State.QUEUED, 0)
    done = work(store, settings, job)
    assert done
    assert (done.state, done.progress.total, len(quick)) == (State.SUCCEEDED, 6, 6)
    assert {found.key for found in store.list("out/")} == set(wanted.values())


def test_a_long_picture_goes_on_at_its_first_missing_band(
    tmp_path: Path, store: LocalStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a Spot machine that is taken away."""
    monkeypatch.setattr(enlarge, "KEPT_WORK", 0)
    settings = configured(tmp_path, bucket="b", tile_size=48, lease_seconds=3)
    store.put("scans/tall.png", data := picture(40, 230), "image/png")
    job = planned(store, settings)
    upscale, seen = core.upscale, list[tuple[int, int]]()

    def noted(*arguments: Any, progress: Callable[[int, int], None], **named: Any) -> core.Result:
        def note(done: int, total: int) -> None:
            seen.append((done, total))
            progress(done, total)

        return upscale(*arguments, progress=note, **named)

    monkeypatch.setattr(core, "upscale", noted)
    left = work(store, settings, job, stop=lambda: len(seen) >= 3)
    assert left
    assert left.state is State.QUEUED
    assert len(list(store.list(f"work/{job.id}/"))) in (1, 2, 3)
    before = len(seen)
    done = work(store, settings, job)
    assert done
    assert done.state is State.SUCCEEDED
    assert seen[before][0] > 0, "it did not begin anew"
    assert store.get("out/tall-x2.png")[0] == upscale(data, core.Options(tile=48)).data
    assert not list(store.list("work/"))


def test_a_picture_that_kills_its_worker_does_not_take_the_others_along(
    store: LocalStorage, settings: Settings, quick: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = fill(store, 4)
    store.put("scans/bomb.png", picture(9, 9), "image/png")
    copy = core.upscale

    def upscale(source: Path, *arguments: Any, **named: Any) -> core.Result:
        if core.probe(source).width == 9:
            raise Killed
        return copy(source, *arguments, **named)

    monkeypatch.setattr(core, "upscale", upscale)
    job = planned(store, settings)
    short = settings.model_copy(update={"lease_seconds": 0.1})
    for _ in range(2):
        with pytest.raises(Killed):
            work(store, short, job)
        while not jobs.claimable(jobs.get(store, job.id), jobs.utc_now()):
            pass
    assert work(store, short, job)
    assert archive(store, settings, "scans", "out") == command.FAILED
    rows = manifest(store)
    assert rows["scans/bomb.png"]["error"] == "worker_lost"
    assert {row["result"] for row in rows.values() if row["result"]} == set(wanted.values())


def test_two_workers_on_one_part_make_one_result_each(
    store: LocalStorage, settings: Settings, quick: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second comes while the first is at a picture and has lost its lease without knowing."""
    wanted = fill(store, 3)
    job = planned(store, settings)
    copy = core.upscale
    second: list[jobs.Job | None] = []

    def upscale(*arguments: Any, **named: Any) -> core.Result:
        if not second:
            second.append(None)
            jobs.change(store, job.id, lambda now: now.model_copy(update={"lease": None}))
            second.append(work(store, settings, job))
        return copy(*arguments, **named)

    monkeypatch.setattr(core, "upscale", upscale)
    work(store, settings, job)
    assert second[1] is not None
    assert second[1].state is State.SUCCEEDED
    assert {found.key for found in store.list("out/")} == set(wanted.values())
    assert archive(store, settings, "scans", "out") == command.DONE


def test_a_source_that_was_replaced_is_reported(store: LocalStorage, settings: Settings, quick: list[Path]) -> None:
    fill(store, 2)
    job = planned(store, settings)
    replaced = next(found.key for found in store.list("scans/") if found.key.endswith(".png"))
    store.put(replaced, picture(12, 12), "image/png")
    work(store, settings, job)
    assert archive(store, settings, "scans", "out") == command.FAILED
    assert manifest(store)[replaced]["error"] == "source_changed"
    assert archive(store, settings, "scans", "out", "--redo") == command.DONE


def test_a_job_that_fails_for_good_leaves_no_picture_without_a_word(
    store: LocalStorage, settings: Settings, quick: list[Path]
) -> None:
    fill(store, 2)
    job = planned(store, settings)
    jobs.cancel(store, job.id)
    assert archive(store, settings, "scans", "out") == command.FAILED
    assert {row["error"] for row in manifest(store).values()} == {"cancelled"}


def test_the_store_creates_files_once_and_reads_versions(storage: Storage, tmp_path: Path) -> None:
    """The two methods that archives need, on each store."""
    file, read = tmp_path / "file", tmp_path / "read"
    file.write_bytes(b"1" * 3_000_000)
    key = f"out/{tmp_path.name}/été +.png"
    storage.create_file(file, key, "image/png", {MADE_FROM: "abc"})
    with pytest.raises(Exists):
        storage.create_file(file, key, "image/png", {})
    found = storage.head(key)
    assert (found.size, found.content_type, found.metadata) == (3_000_000, "image/png", {MADE_FROM: "abc"})
    for etag in (found.etag, found.etag.strip('"'), ""):
        storage.download_version(key, read, etag)
        assert read.read_bytes() == file.read_bytes()
        read.unlink()
    storage.put(key, b"2", "image/png")
    with pytest.raises(Changed):
        storage.download_version(key, read, found.etag)
    assert not read.exists()
    assert storage.head(key).metadata == {}
    with pytest.raises(NotFound):
        storage.download_version("out/none", read, "")
    assert [path.name for path in tmp_path.iterdir() if path.suffix == ".part"] == []


@pytest.mark.slow
def test_an_archive_in_s3_by_the_real_network(seaweedfs_bucket: tuple[str, str], tmp_path: Path) -> None:
    endpoint, bucket = seaweedfs_bucket
    settings = configured(tmp_path, bucket=bucket, s3_endpoint_url=endpoint)
    store = S3Storage(bucket, endpoint_url=endpoint)
    data = {f"scans/{seed}/a+b %é.png": picture(20, 14, seed=seed) for seed in range(3)}
    for key, content in data.items():
        store.put(key, content, "image/png")
    store.put("scans/broken.tif", b"no picture", "image/tiff")
    assert archive(store, settings, "scans", "upscaled") == command.FAILED
    for key, content in data.items():
        result = "upscaled/" + key.removeprefix("scans/").removesuffix(".png") + "-x2.png"
        assert store.get(result)[0] == core.upscale(content).data
    assert {row["error"] for row in manifest(store).values()} == {"", "unreadable_image"}
    assert archive(store, settings, "scans", "upscaled") == command.FAILED


def test_parts_are_submitted_to_batch_so_many_at_a_time(
    store: LocalStorage,
    tmp_path: Path,
    quick: list[Path],
    batch: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Batch is moto's server, which takes jobs and runs none: the test runs what it was told to run."""
    monkeypatch.setattr(command, "POLL_BATCH", 0.0)
    monkeypatch.setattr(planning, "MOST_PICTURES", 2)
    settings = configured(tmp_path, bucket="b", **batch)
    wanted = fill(store, 9)
    client = boto3.client("batch")
    run: set[str] = set()
    most, stops = 0, 0

    def containers() -> list[list[str]]:
        found = client.list_jobs(jobQueue=batch["batch_queue"], filters=[{"name": "JOB_NAME", "values": ["*"]}])
        ids = [one["jobId"] for one in found["jobSummaryList"]]
        return [one["container"]["command"] for one in client.describe_jobs(jobs=ids)["jobs"]] if ids else []

    def between() -> bool:
        """What happens between two steps of the command: a container ends; once, the command is stopped."""
        nonlocal most, stops
        asked = [words[-1] for words in containers()]
        assert len(asked) == len(set(asked)), "submitted once"
        waiting = [id for id in asked if id not in run]
        most = max(most, len(waiting))
        if len(waiting) == 2:
            run.add(waiting[0])
            assert batch_job.run(store, settings, waiting[0], threading.Event()) == batch_job.ENDED
            stops += 1
            return stops == 2
        if len(asked) == 5:  # the last ones
            for id in waiting:
                run.add(id)
                batch_job.run(store, settings, id, threading.Event())
        return False

    given = command.parser().parse_args(["scans", "out", "--at-once", "2", "--rate", "60"])
    with pytest.raises(submission.Interrupted):
        command.run(store, settings, given, between)
    before = len(containers())
    assert before < 5
    assert command.run(store, settings, given, between) == command.DONE
    assert most == 2
    assert len(run) == len(containers()) == 5
    assert all(words[:4] == ["python", "-m", "handler.batch_job", "--job"] for words in containers())
    assert {row["result"] for row in manifest(store).values()} == set(wanted.values())
    assert len(quick) == 9
