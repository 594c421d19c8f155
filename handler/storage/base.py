"""One small interface for objects named by keys; `s3` and `local` are the two stores behind it.

StorageError
├── InvalidKey     a key that no store takes
├── NotFound       nothing is stored under the key
├── Exists         create() came second
├── Changed        swap() came second: the object is no longer the one that was read
├── ForeignDirectory  a local directory with somebody's own files in it
├── LinkRefused    a local link was tampered with, is expired, or does not allow this
└── Unavailable    the store did not answer, or failed, also when asked again

Both stores make the same promises. An object is there whole or not at all: nobody reads half of a write. `create` and
`swap` have one winner, over threads, processes and machines. Deleting what is not there is no error.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Protocol

JSON = "application/json"
#: Bytes of the largest object that S3 stores by one request, which is what makes it conditional.
MAX_ONE_WRITE = 5 * 1024**3


class StorageError(Exception):
    """Base of the tree."""


class InvalidKey(StorageError):
    """A key that no store takes: see `check_key`."""


class NotFound(StorageError):
    """Nothing is stored under the key."""


class Exists(StorageError):
    """Something is stored under the key already."""


class Changed(StorageError):
    """The object is no longer the one that was read; it may also be gone."""


class LinkRefused(StorageError):
    """A local link was tampered with, is expired, or does not allow this content type or size."""


class ForeignDirectory(StorageError):
    """A local directory has files in it that are not the service's: nothing of ours may be put, and deleted, there."""


class Unavailable(StorageError):
    """The store did not answer or failed, also when asked again; trying later may help."""


@dataclass(frozen=True)
class ObjectInfo:
    """What is known of an object without reading it.

    Attributes:
        key: the object's name.
        size: bytes.
        etag: changes with every write; opaque, for `swap`.
        modified: time of the last write, in UTC.
        content_type: media type; empty in the answers of `list`, which S3 does not give it to.
        metadata: what `create_file` was given; empty in the answers of `list`, too.
    """

    key: str
    size: int
    etag: str
    modified: datetime
    content_type: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class UploadLink:
    """How a client sends a file without credentials: a form (multipart/form-data) with `fields`, then the part `file`.

    Attributes:
        url: where to; of `LocalStorage`, a path on the service itself unless it was given a `base_url`.
        method: always "POST".
        fields: form fields to send before the file, unchanged.
        max_bytes: a larger file is refused, and so is an empty one.
        expires: in UTC.
    """

    url: str
    method: str
    fields: dict[str, str]
    max_bytes: int
    expires: datetime


class Storage(Protocol):
    """Objects by key. Every method raises `InvalidKey` for a bad key, and `Unavailable` when the store fails."""

    def get(self, key: str) -> tuple[bytes, str]:
        """The whole object and its etag, for small ones.

        Raises:
            NotFound.
        """

    def read_range(self, key: str, start: int, length: int, etag: str = "") -> bytes:
        """At most `length` bytes from `start` on; fewer, or none, where the object ends.

        Args:
            key: of the object.
            start: first byte.
            length: bytes.
            etag: read this version only, with or without its quotes; empty for whatever is there.

        Raises:
            NotFound, Changed.
        """

    def download(self, key: str, path: Path) -> None:
        """Write the object to a file, whole or not at all.

        Raises:
            NotFound.
        """

    def download_version(self, key: str, path: Path, etag: str) -> None:
        """Write the object to a file, whole or not at all, if it is still the version that has this etag.

        For what others have stored: a key that `check_key` refuses is read all the same where the store can hold it.

        Args:
            key: of the object.
            path: of the file.
            etag: with or without its quotes; empty for whatever is there.

        Raises:
            NotFound, Changed.
        """

    def put(self, key: str, data: bytes, content_type: str) -> str:
        """Store bytes, replacing what was there.

        Returns:
            The etag.
        """

    def upload(self, path: Path, key: str, content_type: str) -> None:
        """Store a file of any size, streaming, replacing what was there."""

    def create(self, key: str, data: bytes, content_type: str = JSON) -> str:
        """Store bytes where nothing is stored yet.

        Returns:
            The etag.

        Raises:
            Exists.
        """

    def create_file(self, path: Path, key: str, content_type: str, metadata: Mapping[str, str]) -> None:
        """Store a file where nothing is stored yet, streaming.

        Args:
            path: of the file, at most `MAX_ONE_WRITE` bytes.
            key: of the object.
            content_type: media type.
            metadata: printable ASCII, given back by `head`; names in lower case.

        Raises:
            Exists.
            StorageError: the file is too large for a conditional write.
        """

    def swap(self, key: str, data: bytes, etag: str, content_type: str = JSON) -> str:
        """Replace exactly the object that has this etag.

        Returns:
            The new etag.

        Raises:
            Changed.
        """

    def delete(self, key: str) -> None:
        """Remove the object if it is there."""

    def head(self, key: str) -> ObjectInfo:
        """Size, type and etag.

        Raises:
            NotFound.
        """

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """Every object whose key starts with this text.

        Yields:
            What is known of each, in no order that means anything.
        """

    def upload_link(self, key: str, content_type: str, max_bytes: int, seconds: int) -> UploadLink:
        """Let somebody store one file of exactly this type, of 1 to `max_bytes` bytes, for some seconds."""

    def download_link(self, key: str, filename: str, seconds: int) -> str:
        """A URL that downloads the object under this file name, for some seconds."""

    def sweep(self, older_than: datetime) -> int:
        """Remove what was last written before this time, and say how many; S3 leaves it to the lifecycle rule: 0."""


def check_key(key: str) -> str:
    """The key itself, if both stores take it.

    Any text goes, spaces, `+`, `%` and `été` included, except: empty, over 1024 bytes of UTF-8, a NUL, a lone
    surrogate, and parts between slashes that are empty, `.` or `..` (so no key is absolute or leaves its folder).

    Raises:
        InvalidKey: with the reason.
    """
    try:
        size = len(key.encode())
    except UnicodeEncodeError:
        raise InvalidKey("a key must be valid Unicode") from None
    if not 0 < size <= 1024:
        raise InvalidKey(f"a key has 1 to 1024 bytes, this one has {size}")
    if "\0" in key:
        raise InvalidKey("a key holds no NUL")
    if any(part in ("", ".", "..") for part in key.split("/")):
        raise InvalidKey("a key has no empty part, no '.' and no '..' between its slashes")
    return key
