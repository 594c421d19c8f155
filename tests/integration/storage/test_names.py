"""Names: of keys, of files, and in headers."""

from __future__ import annotations

import os
import re
from pathlib import Path

import httpx
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from werkzeug.http import parse_options_header

from handler.names import content_disposition, file_name
from handler.storage import (
    InvalidKey,
    LocalStorage,
    S3Storage,
    check_key,
)

TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=60)


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(keys=st.sets(TEXT, min_size=1, max_size=4))
@example(keys={".tmp", ".locks/00", ".secret", ".types/a"})
@example(keys={"a+", "a%2B", "a%252B"})
@example(keys={"a" * 200, "a" * 201, "a" * 400, "a" * 401})
def test_any_names_in_a_directory(tmp_path: Path, keys: set[str]) -> None:
    store = LocalStorage(tmp_path / os.urandom(8).hex())
    kept = set()
    for key in keys:
        try:
            store.put(key, key.encode(), "text/plain")
            kept.add(key)
        except InvalidKey:
            folder = any(other.startswith(key + "/") or key.startswith(other + "/") for other in keys)
            bad = any(part in ("", ".", "..") for part in key.split("/")) or "\0" in key
            assert folder or bad
    assert {found.key for found in store.list("")} == kept
    for key in kept:
        assert store.get(key)[0] == key.encode()
        assert store.path(key).resolve().is_relative_to(store.root.resolve())
        assert all(len(os.fsencode(part)) <= 255 for part in store.path(key).parts)
    for key in kept:
        store.delete(key)
    assert not list(store.list(""))


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=40))
def test_any_names_on_a_server(seaweedfs_bucket: tuple[str, str], name: str) -> None:
    store = S3Storage(seaweedfs_bucket[1], endpoint_url=seaweedfs_bucket[0])
    key = f"names/{os.urandom(4).hex()}/{file_name(name)}"
    store.put(key, b"1", "text/plain")
    assert store.get(key)[0] == b"1"
    assert [found.key for found in store.list(key)] == [key]
    assert httpx.get(store.download_link(key, name, 60)).content == b"1"


@settings(deadline=None)
@given(raw=st.one_of(st.text(), st.text(st.sampled_from("./\\ aé\n\ud800😀"), max_size=250)))
@example(raw="../../x")
@example(raw="C:\\photos\\x.jpg")
@example(raw="x" * 10_000 + ".jpeg")
@example(raw="x." + "y" * 10_000)
@example(raw="é" * 300 + ".png")
@example(raw="0. .")
@example(raw="x" * 198 + ". y" * 20)
def test_file_name_is_safe(raw: str) -> None:
    name = file_name(raw)
    assert 1 <= len(name.encode()) <= 200
    assert not re.search(r"[/\\\0-\x1f\x7f]", name)
    assert name.strip(". ") != ""
    check_key(f"uploads/1/{name}")
    assert file_name(name) == name


def test_file_name_keeps_what_it_can() -> None:
    assert file_name("../../x") == "x"
    assert file_name("C:\\photos\\été 1.jpg") == "été 1.jpg"
    assert file_name("..") == file_name("") == file_name("\n") == "image"
    assert file_name("x" * 300 + ".jpeg") == "x" * 195 + ".jpeg"


@given(raw=st.text())
def test_content_disposition_is_one_header_line(raw: str) -> None:
    header = content_disposition(raw)
    assert re.fullmatch(r"[ -~]+", header)
    assert parse_options_header(header) == ("attachment", {"filename": file_name(raw)})
