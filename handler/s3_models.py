"""Models named by an S3 prefix: `s3://bucket/prefix` with config.json and weights, fetched once per process."""

from __future__ import annotations

import atexit
import json
import threading
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import core
from core import models
from core.errors import ModelError
from handler.settings import MIB, Settings
from handler.storage import InvalidKey, NotFound, S3Storage, Storage, StorageError
from handler.workspace import workspace

SCHEME = "s3://"
#: The largest published Swin2SR checkpoint has 50 MB.
MAX_BYTES = 2048 * MIB

_fetched: dict[str, Path] = {}
_lock = threading.Lock()
_at_exit = ExitStack()
atexit.register(_at_exit.close)


def fetch(uri: str, settings: Settings) -> Path:
    """The local directory of a model that lies in S3; fetched by the first call of this process.

    Args:
        uri: `s3://bucket/prefix`, the prefix with or without a slash at its end.
        settings: for the endpoint.

    Raises:
        ModelError: no such model, too large, incomplete or damaged, or S3 does not answer.
    """
    uri = uri.rstrip("/")
    with _lock:  # a second caller waits for the first one's download
        if uri not in _fetched:
            bucket, _, prefix = uri.removeprefix(SCHEME).partition("/")
            if not bucket or not prefix:
                raise ModelError(f"a model in S3 is named {SCHEME}bucket/prefix, not {uri!r}")
            with ExitStack() as stack:
                folder = stack.enter_context(workspace())
                _download(S3Storage(bucket, endpoint_url=settings.s3_endpoint_url or None), prefix, folder, uri)
                _at_exit.push(stack.pop_all())
            _fetched[uri] = folder
        return _fetched[uri]


def with_local_model(asked: core.Options, settings: Settings) -> tuple[core.Options, str]:
    """The options with an S3 prefix replaced by a directory, and why that could not be done (empty when it was)."""
    if asked.model is None or not asked.model.startswith(SCHEME):
        return asked, ""
    try:
        return replace(asked, model=str(fetch(asked.model, settings))), ""
    except ModelError as error:
        return asked, str(error)  # a name that the core does not know: it steps down its fall-back chain


def _download(storage: Storage, prefix: str, folder: Path, uri: str) -> None:
    """Fetch and check.

    Raises:
        ModelError.
    """
    try:
        storage.download(f"{prefix}/config.json", folder / "config.json")
        try:
            models.read_config(folder)
        except ModelError as error:
            raise ModelError(str(error).replace(str(folder), uri)) from error
        for name in models.WEIGHT_FILES:
            try:
                size = storage.head(f"{prefix}/{name}").size
            except NotFound:
                continue
            if size > MAX_BYTES:
                raise ModelError(f"the weights of {uri} have {size:,} bytes, over the limit of {MAX_BYTES:,}")
            storage.download(f"{prefix}/{name}", folder / name)
            _check_weights(folder / name, size, uri)
            return
    except NotFound:
        raise ModelError(f"there is no config.json under {uri}") from None
    except (StorageError, InvalidKey) as error:
        raise ModelError(f"{uri} cannot be fetched: {error}") from error
    raise ModelError(f"there is no {' or '.join(models.WEIGHT_FILES)} under {uri}")


def _check_weights(path: Path, size: int, uri: str) -> None:
    """Whether a file of weights is whole.

    A safetensors file begins with the length of its header, which says where the last tensor ends.
    """
    whole = path.stat().st_size == size
    if whole and path.suffix == ".safetensors":
        with path.open("rb") as file:
            try:
                length = int.from_bytes(file.read(8), "little")
                header = json.loads(file.read(min(length, size)))
                ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
                whole = bool(ends) and 8 + length + max(ends) == size
            except (ValueError, KeyError, TypeError, AttributeError):
                whole = False
    if not whole:
        raise ModelError(f"{path.name} of {uri} is damaged or incomplete: upload it again")
