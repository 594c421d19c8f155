"""The store that the settings name."""

from __future__ import annotations

from functools import cache

from handler.settings import Settings, get_settings
from handler.storage.base import Storage
from handler.storage.local import LocalStorage
from handler.storage.s3 import S3Storage


def open_storage(settings: Settings) -> Storage:
    """The store that the settings name: S3 where there is a bucket, else the local directory."""
    if settings.bucket:
        return S3Storage(settings.bucket, endpoint_url=settings.s3_endpoint_url or None)
    return LocalStorage(settings.data_dir)


@cache
def open_from_environment() -> tuple[Settings, Storage]:
    """The settings of this process and the store that they name, opened once.

    Raises:
        pydantic.ValidationError: as `get_settings`.
    """
    settings = get_settings()
    return settings, open_storage(settings)
