"""The pictures of an archive: everything under a prefix, or what a list names.

A list is a CSV, gzip too, as S3 Inventory writes it (keys percent-encoded, no header), one with a header, or the
manifest.json of an inventory, which names the columns and the files.
https://docs.aws.amazon.com/AmazonS3/latest/userguide/storage-inventory-location.html
"""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO
from urllib.parse import unquote_plus

import core
from core.formats import READ_SUFFIXES
from handler.archive.document import Picture
from handler.archive.targets import ending_of
from handler.storage import NotFound, Storage
from handler.workspace import workspace

#: Columns of a list without a header.
COLUMNS = ("bucket", "key", "size", "etag")
_LISTS = (".csv", ".csv.gz", ".json")


def is_list(source: str) -> bool:
    """Whether a source names a list, and no prefix."""
    return source.endswith(_LISTS)


def list_prefix(storage: Storage, prefix: str) -> Iterator[Picture]:
    """Every object under a prefix; folders, which some programs store as empty objects, are none.

    Yields:
        Each, without a target.
    """
    for found in storage.list(prefix):
        if not found.key.endswith("/") or found.size:
            yield Picture(found.key, found.etag, found.size)


def read_list(storage: Storage, source: str, bucket: str, columns: Sequence[str] = COLUMNS) -> Iterator[Picture]:
    """What a list names, in its order; versions that are not the latest are left out.

    Args:
        storage: where the list is, unless it is a file here.
        source: path of a file, or key of an object.
        bucket: that the pictures must lie in; empty in local mode, for any.
        columns: of a CSV without a header.

    Yields:
        Each, without a target. The size is 0 and the ETag empty where the list has none.

    Raises:
        core.OptionsError: no list, or one that names another bucket.
        storage.NotFound: there is no such file and no such object.
    """
    with _opened(storage, source) as file:
        if source.endswith(".json"):
            try:
                manifest = json.load(file)
                columns = [name.strip().lower() for name in manifest["fileSchema"].split(",")]
                keys = [entry["key"] for entry in manifest["files"]]
            except (ValueError, KeyError, TypeError, AttributeError):
                raise core.OptionsError(f"{source} is no manifest of an S3 Inventory in CSV") from None
            for key in keys:
                with _opened(storage, key, packed=True) as part:
                    yield from _rows(part, key, bucket, columns, encoded=True)
        else:
            yield from _rows(file, source, bucket, [name.strip().lower() for name in columns], encoded=True)


def is_picture(key: str) -> bool:
    """Whether the ending says so."""
    return ending_of(key) in READ_SUFFIXES


@contextmanager
def _opened(storage: Storage, source: str, *, packed: bool = False) -> Iterator[IO[bytes]]:
    """A file here, or an object; unpacked. An object goes through a file, since it may be larger than memory."""
    with workspace() as folder:
        path = Path(source)
        if not path.is_file():
            path = folder / "list"
            try:
                storage.download(source, path)
            except NotFound:
                raise NotFound(f"there is no list {source}, neither here nor in the store") from None
        with path.open("rb") as file:
            is_gzip = file.read(2) == b"\x1f\x8b"
            file.seek(0)
            if is_gzip or (packed and source.endswith(".gz")):
                with gzip.open(file) as unpacked:
                    yield unpacked  # type: ignore[misc]
            else:
                yield file


def _rows(file: IO[bytes], name: str, bucket: str, columns: Sequence[str], *, encoded: bool) -> Iterator[Picture]:
    text = io.TextIOWrapper(file, "utf-8", newline="")
    rows = csv.reader(text)
    try:
        for number, row in enumerate(rows, 1):
            if number == 1 and "key" in (lower := [value.strip().lower() for value in row]):
                columns, encoded = lower, "bucket" in lower
                continue
            if not row:
                continue
            if "key" not in columns or len(row) <= columns.index("key"):
                raise core.OptionsError(f"{name}, line {number}: no key; the columns are {', '.join(columns)}")
            found = dict(zip(columns, row, strict=False))
            if "false" in found.get("islatest", "").lower() or "true" in found.get("isdeletemarker", "").lower():
                continue
            if bucket and found.get("bucket", bucket) != bucket:
                raise core.OptionsError(
                    f"{name}, line {number}: {found['bucket']} is another bucket, and containers read {bucket} only"
                )
            key = unquote_plus(found["key"], errors="strict") if encoded else found["key"]
            size = found.get("size", "")
            if not key.endswith("/"):
                yield Picture(key, found.get("etag", "").strip('"'), int(size) if size.isdecimal() else 0)
    except (UnicodeDecodeError, csv.Error, EOFError, OSError) as error:
        raise core.OptionsError(f"{name} is no CSV in UTF-8: {error}") from None
    finally:
        text.detach()  # whoever opened the file closes it
