"""A job whose worker was killed goes on at the first band that is missing, and makes the same to the bit."""

from __future__ import annotations

import io
import random
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

import core
from bench.archive import Killed, MemoryStorage
from core import enlarge
from handler import jobs, worker
from handler.jobs import Backend, Job, State
from handler.settings import Settings
from handler.storage import LocalStorage, Storage, Unavailable
from tests.integration.work import AT_ONCE, Failing, configured, picture, queued, result, wait_for

#: Rows of a picture, and rows of tiles that lie over it, each of which is a band of the result.
HEIGHT, BANDS = 230, 4


@pytest.fixture(autouse=True)
def _kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures of any size are worth keeping."""
    monkeypatch.setattr(enlarge, "KEPT_WORK", 0)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    (tmp_path / "data").mkdir()
    return configured(tmp_path, lease_seconds=0.3, tile_size=48)


DATA = picture(40, HEIGHT)


def tall(storage: Storage) -> Job:
    """A job of so many bands."""
    return queued(storage, DATA, scale=1.7)


@pytest.fixture(scope="module")
def expected() -> bytes:
    found = core.upscale(DATA, core.Options(scale=1.7, tile=48)).data
    assert found
    return found


class Dying:
    """A store that kills the worker at one of its touches, before it or after it, and counts the bands it was given."""

    def __init__(self, storage: Any, kill_at: float = float("inf"), *, after: bool = False) -> None:
        self.storage, self.kill_at, self.after = storage, kill_at, after
        self.touched = 0
        self.kept: Counter[str] = Counter()
        self.dead = False

    def __getattr__(self, name: str) -> Any:
        real = getattr(self.storage, name)

        def call(*arguments: Any, **named: Any) -> Any:
            if threading.current_thread().name.startswith("lease-"):
                if self.dead:
                    raise Unavailable("a dead process renews no lease")
                return real(*arguments, **named)
            self.touched += 1
            self.dead = self.dead or self.touched >= self.kill_at
            if self.dead and not (self.after and self.touched == self.kill_at):
                raise Killed
            found = real(*arguments, **named)
            if name == "put" and arguments[0].startswith("work/"):
                self.kept[arguments[0]] += 1
            if self.dead:
                raise Killed
            return found

        return call if callable(real) else real


def run(storage: Any, settings: Settings, job: Job, **named: Any) -> Job | None:
    named = {"backend": Backend.LAMBDA, "retry_delays": AT_ONCE, **named}
    return worker.run_job(storage, settings, job.id, worker="test", **named)


def went_on(storage: Any, settings: Settings, job: Job) -> Job:
    """What the next worker makes of the job, once the lease of the one before has run out."""
    if not worker.wait_until_claimable(storage, job.id):
        return jobs.get(storage, job.id)
    return run(storage, settings, job) or jobs.get(storage, job.id)


def killings(touches: int) -> Iterator[tuple[int, bool]]:
    """Touches of the store to die at, before or after: one of each eighth. All of them, in many runs of the tests."""
    for eighth in range(8):
        yield 2 + int((touches - 2) * (eighth + random.random()) / 8), random.random() < 0.5


def test_killed_at_touches_of_the_store(settings: Settings, expected: bytes) -> None:
    undisturbed = Dying(MemoryStorage())
    job = tall(undisturbed.storage)
    run(undisturbed, settings, job)
    touches = undisturbed.touched
    assert len(undisturbed.kept) == BANDS
    assert touches > 2 * BANDS
    spared = 0
    for point, after in killings(touches):
        store = Dying(MemoryStorage(), point, after=after)
        job = tall(store.storage)
        with suppress(Killed):  # how often the document is written goes by the clock: a quick run may end before
            run(store, settings, job)
        before = set(store.kept)
        again = Dying(store.storage)
        again.kept = store.kept
        done = went_on(again, settings, job)
        assert (done.state, done.error) == (State.SUCCEEDED, None), (point, after)
        assert result(store.storage, done) == expected, (point, after)
        assert set(store.kept.values()) <= {1}, "a finished band was made again"
        spared += len(before) if store.kept.keys() > before else 0
        left = {key for key in store.storage.objects if not key.startswith("jobs/")}
        assert left <= {job.input.key, done.output and done.output.key, *stray(point, store.storage, done)}
    assert spared


def stray(_point: int, storage: Any, done: Job) -> list[str]:
    """A worker that died after the job had ended could not tidy up: the lifecycle rule of work/ does."""
    return [key for key in storage.objects if key.startswith("work/")] if done.attempt == 1 else []


@pytest.mark.parametrize("stops_at", [1, 3])
def test_a_worker_that_is_stopped_hands_its_bands_over(stops_at: int, settings: Settings, expected: bytes) -> None:
    store = Dying(MemoryStorage())
    job = tall(store.storage)
    back = run(store, settings, job, stop=lambda: len(store.kept) >= stops_at)
    assert back is not None
    assert (back.state, back.lost) == (State.QUEUED, 0)
    # Bands are made and resized beside each other: up to two were on their way when it was looked.
    assert stops_at <= len(store.kept) <= min(stops_at + 2, BANDS)
    done = run(store, settings, job)
    assert done is not None
    assert result(store.storage, done) == expected
    assert sorted(store.kept.values()) == [1] * BANDS
    assert not list(store.storage.list("work/"))


def test_damaged_bands_and_those_of_others_are_not_used(settings: Settings, expected: bytes) -> None:
    store = Dying(MemoryStorage())
    job = tall(store.storage)
    run(store, settings, job, stop=lambda: len(store.kept) >= 3)
    first, second, third, *_ = sorted(store.kept)
    store.storage.put(second, store.storage.get(second)[0][:-1], "")
    store.storage.put(third, store.storage.get(first)[0], "")
    other = first.replace(first.split("/")[2], "0" * 32)
    store.storage.put(other, store.storage.get(first)[0], "")
    done = run(store, settings, job)
    assert done is not None
    assert result(store.storage, done) == expected
    assert {key: store.kept[key] for key in (first, second, third)} == {first: 1, second: 2, third: 2}
    assert not list(store.storage.list("work/"))


def test_an_upload_that_was_replaced_meanwhile_is_not_mixed_with_what_was_made_of_the_first(
    settings: Settings,
) -> None:
    store = Dying(MemoryStorage())
    job = tall(store.storage)
    run(store, settings, job, stop=lambda: len(store.kept) >= 2)
    other = picture(40, HEIGHT, seed=1)
    store.storage.put(job.input.key, other, "image/png")
    done = run(store, settings, job)  # its version is not known: it is made of what lies there
    assert done is not None
    assert result(store.storage, done) == core.upscale(other, core.Options(scale=1.7, tile=48)).data

    job = tall(store.storage)
    etag = store.storage.head(job.input.key).etag
    known = {"input": job.input.model_copy(update={"version": etag})}
    job = jobs.change(store.storage, job.id, lambda now: now.model_copy(update=known))
    run(store, settings, job, stop=lambda: bool(list(store.storage.list(f"work/{job.id}/"))))
    store.storage.put(job.input.key, other, "image/png")
    done = run(store, settings, job)
    assert done is not None
    assert done.error is not None
    assert (done.state, done.error.code) == (State.FAILED, "upload_replaced")
    assert not list(store.storage.list("work/"))


def test_a_store_that_takes_no_bands_only_ends_the_keeping(
    store: LocalStorage, settings: Settings, expected: bytes
) -> None:
    """As a disk that is full for a while: the result has room again."""
    failing = Failing(store, {("put", "work/"): float("inf")})
    job = tall(store)
    done = run(failing, settings, job)
    assert done is not None
    assert result(store, done) == expected
    assert failing.failed >= BANDS


def test_whoever_ends_a_job_deletes_its_bands(store: LocalStorage, settings: Settings) -> None:
    job = tall(store)
    run(store, settings, job, stop=lambda: len(list(store.list("work/"))) >= 2)
    assert list(store.list(f"work/{job.id}/"))
    jobs.cancel(store, job.id)
    assert not list(store.list("work/"))


def test_a_picture_that_ends_early_leaves_nothing(store: LocalStorage, settings: Settings) -> None:
    """It is found at the last strip, when nearly all bands are made."""
    stream = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (HEIGHT, 40, 3), np.uint8)
    tifffile.imwrite(stream, pixels, photometric="rgb", rowsperstrip=16)
    job = queued(store, stream.getvalue()[:-100], "scan.tif", scale=1.7)
    done = run(store, settings, job)
    assert done is not None
    assert done.error is not None
    assert (done.state, done.error.code) == (State.FAILED, "unreadable_image")
    assert {found.key.split("/")[0] for found in store.list("")} == {"jobs", "uploads"}
    wait_for(lambda: not list((store.root / ".tmp").iterdir()), "temporary files to go")
