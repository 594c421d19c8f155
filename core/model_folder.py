"""A folder of models, such as people collect them: files of weights, and folders with a config.json."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from core import models
from core.errors import ModelError
from core.models import ModelSpec
from core.networks import checkpoints


def find(name: str, folder: Path) -> Path | None:
    """Find a model by its short name.

    Args:
        name: of a file without its ending, or of a folder with config.json and weights.
        folder: of models.

    Returns:
        The file or folder; None when there is none of that name.
    """
    if not name or Path(name).name != name or name.startswith("."):
        return None
    for suffix in checkpoints.SUFFIXES:
        if (folder / (name + suffix)).is_file():
            return folder / (name + suffix)
    return folder / name if (folder / name / "config.json").is_file() else None


def list_models(folder: Path) -> dict[str, ModelSpec | ModelError]:
    """Look through a folder of models.

    Args:
        folder: with files of weights, and folders with config.json and weights.

    Returns:
        By short name what each is, or why it does not run here.

    Raises:
        ModelError: the folder cannot be read.
    """
    try:
        names = sorted(path.stem if path.suffix in checkpoints.SUFFIXES else path.name for path in folder.iterdir())
    except OSError as error:
        raise ModelError(f"the folder of models {folder} cannot be read: {error.strerror}") from error
    found: dict[str, ModelSpec | ModelError] = {}
    for name in names:
        path = find(name, folder)
        if path is not None:
            try:
                found[name] = replace(models.spec_of(str(path)), name=name)
            except ModelError as error:
                found[name] = error
    return found


def bytes_on_disk(spec: ModelSpec) -> int:
    """Measure a model's weights.

    Args:
        spec: of the model.

    Returns:
        Bytes; 0 when they are not on this machine, or only in the hub's cache.
    """
    path = Path(spec.source)
    files = [path, *(path / name for name in models.WEIGHT_FILES)]
    return next((file.stat().st_size for file in files if file.is_file()), 0)
