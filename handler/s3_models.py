"""Models by short names and S3 prefixes: `s3://bucket/prefix` is a file of weights, or has config.json and weights.

They are fetched once per process.
"""

from __future__ import annotations

import atexit
import threading
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path

import core
from core import model_folder, models
from core.errors import ModelError
from core.networks import checkpoints
from handler.options import SCHEME, in_models_dir
from handler.settings import Settings
from handler.storage import InvalidKey, NotFound, S3Storage, Storage, StorageError
from handler.workspace import workspace

_fetched: dict[str, Path] = {}
_lock = threading.Lock()
_at_exit = ExitStack()
atexit.register(_at_exit.close)


def fetch(uri: str, settings: Settings) -> Path:
    """The local directory or file of a model that lies in S3; fetched by the first call of this process.

    Args:
        uri: `s3://bucket/prefix`, the prefix with or without a slash at its end; or of a file of weights, with or
            without its ending.
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
                store = S3Storage(bucket, endpoint_url=settings.s3_endpoint_url or None)
                found = _download(store, prefix, folder, uri)
                _at_exit.push(stack.pop_all())
            _fetched[uri] = found
        return _fetched[uri]


def with_local_model(asked: core.Options, settings: Settings) -> tuple[core.Options, str]:
    """The options with a model's name replaced by where it lies here, and why it does not (empty when it does).

    Raises:
        core.OptionsError: it restores without enlarging, and another size was asked for.
    """
    name = in_models_dir(asked.model, settings)
    try:
        if name is not None and name.startswith(SCHEME):
            name = str(fetch(name, settings))
    except ModelError as error:
        return asked, str(error)  # a name that the core does not know: it steps down its fallback chain
    return model_folder.fit_scale(replace(asked, model=name)), ""


def _download(storage: Storage, prefix: str, folder: Path, uri: str) -> Path:
    """Fetch and check; gives the folder, or the file of weights in it.

    Raises:
        ModelError.
    """
    try:
        file = _find_file(storage, prefix)
        if file is not None:
            _download_weights(storage, file, folder / Path(file).name, uri)
            return folder / Path(file).name
        storage.download(f"{prefix}/config.json", folder / "config.json")
        try:
            models.read_config(folder)
        except ModelError as error:
            raise ModelError(str(error).replace(str(folder), uri)) from error
        for name in models.WEIGHT_FILES:
            with suppress(NotFound):
                _download_weights(storage, f"{prefix}/{name}", folder / name, uri)
                return folder
    except NotFound:
        raise ModelError(f"there is no model under {uri}: neither a file of weights nor a config.json") from None
    except (StorageError, InvalidKey) as error:
        raise ModelError(f"{uri} cannot be fetched: {error}") from error
    raise ModelError(f"there is no {' or '.join(models.WEIGHT_FILES)} under {uri}")


def _find_file(storage: Storage, prefix: str) -> str | None:
    """The key of a model that is one file, named with its ending or without; None for a folder with a config.json."""
    if prefix.endswith(checkpoints.SUFFIXES):
        return prefix
    with suppress(NotFound):
        storage.head(f"{prefix}/config.json")
        return None
    for suffix in checkpoints.SUFFIXES:
        with suppress(NotFound):
            storage.head(prefix + suffix)
            return prefix + suffix
    return None


def _download_weights(storage: Storage, key: str, path: Path, uri: str) -> None:
    """Fetch one file of weights, if it is no larger than ours are, and see whether it is whole.

    Raises:
        NotFound, StorageError: as of the store.
        ModelError: too large, incomplete or damaged.
    """
    checkpoints.check_size(storage.head(key).size, key)
    storage.download(key, path)
    try:
        checkpoints.read_header(path)
    except ModelError as error:
        raise ModelError(f"{path.name} of {uri}: {str(error).replace(str(path), path.name)}") from error
