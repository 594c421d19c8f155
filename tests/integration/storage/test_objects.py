"""What both stores promise, tried on a directory, on an S3 that checks signatures, and on moto."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from handler.storage import (
    Changed,
    Exists,
    InvalidKey,
    NotFound,
    S3Storage,
    Storage,
)
from tests.integration.storage.support import BAD_KEYS, KEYS, fresh, unique
from tests.integration.together import Together


def test_put_get_head_list_delete(storage: Storage) -> None:
    key = unique("a")
    etag = storage.put(key, b"one", "image/webp")
    assert storage.get(key) == (b"one", etag)
    info = storage.head(key)
    assert (info.key, info.size, info.etag, info.content_type) == (key, 3, etag, "image/webp")
    assert abs(info.modified - datetime.now(UTC)) < timedelta(minutes=5)
    assert [(found.key, found.size, found.etag) for found in storage.list(key[:-1])] == [(key, 3, etag)]

    assert storage.put(key, b"other", "image/png") != etag
    assert storage.get(key)[0] == b"other"
    assert storage.head(key).content_type == "image/png"

    storage.delete(key)
    storage.delete(key)
    assert list(storage.list(key)) == []


def test_what_is_missing(storage: Storage, tmp_path: Path) -> None:
    for key in (unique("missing"), "nothing"):
        with pytest.raises(NotFound):
            storage.get(key)
        with pytest.raises(NotFound):
            storage.head(key)
        with pytest.raises(NotFound):
            storage.read_range(key, 0, 10)
        with pytest.raises(NotFound):
            storage.download(key, tmp_path / "target")
        with pytest.raises(Changed):
            storage.swap(key, b"", '"etag"')
        storage.delete(key)
        assert list(storage.list(key)) == []
    assert not [path for path in tmp_path.iterdir() if path.is_file()], "a failed download leaves no file"


@pytest.mark.parametrize("key", KEYS)
def test_any_name(storage: Storage, key: str) -> None:
    etag = storage.put(key, key.encode(), "text/plain")
    try:
        assert storage.get(key) == (key.encode(), etag)
        assert storage.head(key).key == key
        assert [found.key for found in storage.list(key)] == [key]
        assert [found.key for found in storage.list(key[:-1]) if found.key == key] == [key]
    finally:
        storage.delete(key)


@pytest.mark.parametrize("key", BAD_KEYS, ids=[ascii(key[:20]) for key in BAD_KEYS])
def test_bad_names(storage: Storage, key: str, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"x")
    calls: list[Callable[[], object]] = [
        lambda: storage.get(key),
        lambda: storage.read_range(key, 0, 1),
        lambda: storage.download(key, tmp_path / "target"),
        lambda: storage.put(key, b"", "text/plain"),
        lambda: storage.upload(file, key, "text/plain"),
        lambda: storage.create(key, b""),
        lambda: storage.swap(key, b"", '"x"'),
        lambda: storage.delete(key),
        lambda: storage.head(key),
        lambda: storage.upload_link(key, "text/plain", 1, 60),
        lambda: storage.download_link(key, "x", 60),
    ]
    for call in calls:
        with pytest.raises(InvalidKey):
            call()


def test_ranges(storage: Storage) -> None:
    key = unique("digits")
    storage.put(key, b"0123456789", "text/plain")
    assert storage.read_range(key, 0, 4) == b"0123"
    assert storage.read_range(key, 8, 100) == b"89"
    assert storage.read_range(key, 10, 1) == b""
    assert storage.read_range(key, 99, 1) == b""
    assert storage.read_range(key, 3, 0) == b""
    storage.put(key, b"", "text/plain")
    assert storage.read_range(key, 0, 10) == b""
    assert storage.get(key)[0] == b""


def test_large_files_in_parts(storage: Storage, tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(os.urandom(1 << 20) * 17)  # over boto3's 8 MB a part
    key = unique("large.png")
    storage.upload(source, key, "image/png")
    info = storage.head(key)
    assert (info.size, info.content_type) == (17 << 20, "image/png")
    target.write_bytes(b"old")
    storage.download(key, target)
    assert target.read_bytes() == source.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == ["source", "target"]
    storage.delete(key)


def test_listing_is_by_text_not_by_folder(storage: Storage) -> None:
    base = unique("")
    for name in ("a/1", "a/2", "ab/1", "b"):
        storage.put(base + name, b"", "text/plain")
    assert {found.key for found in storage.list(base + "a")} == {base + "a/1", base + "a/2", base + "ab/1"}
    assert {found.key for found in storage.list(base + "a/")} == {base + "a/1", base + "a/2"}
    assert {found.key for found in storage.list(base)} == {base + name for name in ("a/1", "a/2", "ab/1", "b")}


# Whole listings of more than a page (1000 objects) are slow to make on a server, so they are tried on moto only.
def test_listing_goes_over_pages(moto_bucket: tuple[str, str]) -> None:
    store = S3Storage(moto_bucket[1], endpoint_url=moto_bucket[0])
    store.client.meta.events.register(
        "before-parameter-build.s3.ListObjectsV2", lambda params, **_: params.update(MaxKeys=3)
    )
    base = unique("")
    for number in range(10):
        store.put(f"{base}{number}", b"", "text/plain")
    assert len({found.key for found in store.list(base)}) == 10


def test_create_and_swap(storage: Storage) -> None:
    key = unique("a.json")
    first = storage.create(key, b"1")
    assert storage.head(key).content_type == "application/json"
    with pytest.raises(Exists):
        storage.create(key, b"2")
    second = storage.swap(key, b"2", first)
    assert storage.get(key) == (b"2", second)
    with pytest.raises(Changed):
        storage.swap(key, b"3", first)
    assert storage.get(key) == (b"2", second)
    third = storage.swap(key, b"longer", second)
    storage.delete(key)
    with pytest.raises(Changed):
        storage.swap(key, b"3", third)
    storage.create(key, b"again")
    assert storage.get(key)[0] == b"again"


def create_once(number: int, storage: Storage, keys: list[str]) -> list[bool]:
    won = []
    for key in keys:
        try:
            storage.create(key, f"{number}".encode())
            won.append(True)
        except Exists:
            won.append(False)
    return won


def count_up(number: int, storage: Storage, key: str, times: int) -> int:
    """Add one, `times` times; gives how often somebody came between."""
    beaten = 0
    for _ in range(times):
        while True:
            data, etag = storage.get(key)
            try:
                storage.swap(key, b"%d" % (int(data) + 1), etag)
                break
            except Changed:
                beaten += 1
    return beaten


def test_one_creator_wins(atomic: Storage, four: Together) -> None:
    keys = [unique(f"{number}") for number in range(25)]
    won = four(create_once, fresh(atomic), keys)
    for place, key in enumerate(keys):
        winners = [number for number in range(4) if won[number][place]]
        assert len(winners) == 1
        assert atomic.get(key)[0] == f"{winners[0]}".encode()


def test_no_swap_is_lost(atomic: Storage, four: Together) -> None:
    key = unique("counter")
    atomic.create(key, b"0")
    beaten = four(count_up, fresh(atomic), key, 25)
    assert atomic.get(key)[0] == b"100"
    assert sum(beaten) > 0, "nobody came between anybody: this was no race"
