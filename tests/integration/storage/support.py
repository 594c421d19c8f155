"""What the tests of the stores share."""

from __future__ import annotations

import os

from handler.storage import (
    LocalStorage,
    S3Storage,
    Storage,
)

KEYS = [
    "uploads/1/a+b %.jpg",
    "uploads/1/été/фото 1.png",
    "uploads/1/%2e%2e/%00",
    "uploads/1/" + "ф" * 100 + ".png",
    "uploads/1/" + "n" * 255,
    "uploads/1/.hidden/..two",
    "uploads/1/" + "n" * 200 + "..",
    "uploads/1/" + "n" * 200 + "../x",
    "uploads/1/😀 'quoted' \"&<>?#;=.jpg",
]
BAD_KEYS = ["", "/etc/passwd", "a//b", "a/", "../x", "a/../../x", "a/./b", ".", "..", "nul\0", "\ud800", "é" * 513]


def fresh(storage: Storage) -> Storage:
    """The same store as somebody else sees it, in a state that can be sent to another process."""
    if isinstance(storage, S3Storage):
        return S3Storage(storage.bucket, endpoint_url=storage.endpoint_url)
    assert isinstance(storage, LocalStorage)
    return LocalStorage(storage.root)


def unique(name: str) -> str:
    """A key that no other test uses: buckets are shared."""
    return f"jobs/{os.urandom(8).hex()}/{name}"
