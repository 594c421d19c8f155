"""Objects by key. What the rest of the service uses is named here; the stores' insides are their own.

`base` is the interface and its errors, `s3` and `local` are the two stores, `open` chooses one by the settings.
"""

from handler.storage.base import (
    JSON,
    Changed,
    Exists,
    ForeignDirectory,
    InvalidKey,
    LinkRefused,
    NotFound,
    ObjectInfo,
    Storage,
    StorageError,
    Unavailable,
    UploadLink,
    check_key,
)
from handler.storage.local import DOWNLOAD_PATH, UPLOAD_PATH, Grant, LocalStorage
from handler.storage.open import open_from_environment, open_storage
from handler.storage.s3 import S3Storage

__all__ = [
    "DOWNLOAD_PATH",
    "JSON",
    "UPLOAD_PATH",
    "Changed",
    "Exists",
    "ForeignDirectory",
    "Grant",
    "InvalidKey",
    "LinkRefused",
    "LocalStorage",
    "NotFound",
    "ObjectInfo",
    "S3Storage",
    "Storage",
    "StorageError",
    "Unavailable",
    "UploadLink",
    "check_key",
    "open_from_environment",
    "open_storage",
]
