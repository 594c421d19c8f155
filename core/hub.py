"""Models from the Hugging Face hub: by `owner/name`, or one file of a repository by `owner/name/path/to/file.pth`.

What is in the cache is used without a question to anybody; a warm machine needs no network.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from urllib.parse import quote

from core import downloads
from core.errors import ModelError
from core.networks import checkpoints

#: How long the hub may take to answer before the next model is tried.
HUB_SECONDS = 5

#: What the process does that downloads.
_CALL = """
from core import hub
hub.HUB_SECONDS = {seconds}
try:
    print(hub.{function}(*sys.argv[1:]))
except Exception as error:
    sys.exit(hub.one_line(error))
"""
_FILE = re.compile(r"([\w-][\w.-]*/[\w-][\w.-]*)/((?:[\w-][\w.-]*/)*[\w-][\w .+-]*)")


def is_file_name(name: str) -> bool:
    """Say whether a name means one file of a hub repository.

    Args:
        name: such as `owner/name/4x-model.pth`.
    """
    return name.endswith(checkpoints.SUFFIXES) and _FILE.fullmatch(name) is not None


def fetch_file(name: str) -> Path:
    """Find one file of a repository on disk, downloaded unless it is in the cache.

    Args:
        name: `owner/name/path/to/file`, with an ending of a checkpoint.

    Returns:
        Where it is.

    Raises:
        ModelError: the hub does not answer, has no such file, or it is too large to be one of our models.
    """
    match = _FILE.fullmatch(name)
    if match is None:
        raise ModelError(f"a file on the hub is named owner/name/file, not {name[:100]!r}")
    from huggingface_hub import try_to_load_from_cache

    repository, file = match.groups()
    cached = try_to_load_from_cache(repository, file)
    if isinstance(cached, str):
        return Path(cached)
    return downloads.once(name, lambda: _in_process(name, "download_file", repository, file))


def fetch_folder(hub_id: str, wanted: tuple[str, ...], weights: tuple[str, ...]) -> Path:
    """Find a repository's files on disk, downloaded unless they are in the cache.

    Args:
        hub_id: `owner/name`.
        wanted: names of files; the first must be there.
        weights: those of them of which one is enough.

    Returns:
        The folder with them.

    Raises:
        ModelError: the hub does not answer, or does not know the id.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    needed, files = wanted[0], [*wanted, *weights]
    try:
        cached = Path(snapshot_download(hub_id, allow_patterns=files, local_files_only=True))
        if (cached / needed).is_file() and (not weights or any((cached / name).is_file() for name in weights)):
            return cached
    except (LocalEntryNotFoundError, OSError, ValueError):
        pass  # not in the cache
    return downloads.once(
        f"{hub_id} ({', '.join(files)})", lambda: _in_process(hub_id, "download_folder", hub_id, *files)
    )


def is_cached(name: str, wanted: tuple[str, ...], weights: tuple[str, ...]) -> bool:
    """Say whether a model is on this machine; nothing is asked of the network.

    Args:
        name: `owner/name`, or a file of a repository.
        wanted: as for `fetch_folder`, of a repository.
        weights: as there.
    """
    from huggingface_hub import snapshot_download, try_to_load_from_cache
    from huggingface_hub.errors import LocalEntryNotFoundError

    match = _FILE.fullmatch(name)
    if match is not None:
        return isinstance(try_to_load_from_cache(match[1], match[2]), str)
    try:
        cached = Path(snapshot_download(name, allow_patterns=[*wanted, *weights], local_files_only=True))
    except (LocalEntryNotFoundError, OSError, ValueError):
        return False
    return (cached / wanted[0]).is_file() and any((cached / each).is_file() for each in weights)


def download_file(repository: str, file: str) -> Path:
    """Fetch one file of a repository into the cache; may take any time.

    Args:
        repository: `owner/name`.
        file: in it.

    Raises:
        ModelError: too large.
        Exception: whatever the hub client, and its HTTP library, raise.
    """
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_download

    address = f"{constants.ENDPOINT}/{repository}/resolve/main/{quote(file)}"
    checkpoints.check_size(get_hf_file_metadata(address, timeout=HUB_SECONDS).size or 0, file)
    return Path(hf_hub_download(repository, file, etag_timeout=HUB_SECONDS))


def download_folder(hub_id: str, *files: str) -> Path:
    """Fetch files of a repository into the cache; may take any time.

    Args:
        hub_id: `owner/name`.
        files: their names; the first must be there.

    Raises:
        ModelError: too large.
        Exception: whatever the hub client, and its HTTP library, raise.
    """
    from huggingface_hub import constants, get_hf_file_metadata, get_session, hf_hub_url, snapshot_download
    from huggingface_hub.errors import EntryNotFoundError

    # The listing that a download begins with has no time limit: first see whether anybody answers at all.
    get_session().head(f"{constants.ENDPOINT}/{hub_id}/resolve/main/{files[0]}", timeout=HUB_SECONDS)
    for file in files:
        try:
            found = get_hf_file_metadata(hf_hub_url(hub_id, file), timeout=HUB_SECONDS)
        except EntryNotFoundError:
            continue
        checkpoints.check_size(found.size or 0, file)
    return Path(snapshot_download(hub_id, allow_patterns=list(files), etag_timeout=HUB_SECONDS))


def _in_process(name: str, function: str, *arguments: str) -> Path:
    """Call one of the two above in a process that can be ended, with this one's hub and cache.

    Raises:
        ModelError.
    """
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        raise ModelError(f"the hub did not give {name}: it is not asked (HF_HUB_OFFLINE)")
    environment = {
        "HF_ENDPOINT": constants.ENDPOINT,
        "HF_HUB_CACHE": constants.HF_HUB_CACHE,
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
    }
    code = _CALL.format(function=function, seconds=HUB_SECONDS)
    try:
        return Path(downloads.in_process(code, list(arguments), environment, checkpoints.MAX_BYTES))
    except ModelError as error:
        raise ModelError(f"the hub did not give {name}: {error}") from error


def one_line(error: BaseException) -> str:
    """What an exception says first; its name where it says nothing."""
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
