"""Models that people bring: a folder of files of weights, and the scale that such a model implies."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from core import models
from core.errors import ModelError, OptionsError
from core.models import ModelSpec
from core.networks import checkpoints
from core.options import Options


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


def fit_scale(options: Options) -> Options:
    """Settle what a model without enlarging makes of the scale: it is 1 then, and nothing else can be asked for.

    Args:
        options: of a request.

    Returns:
        The same, or with a scale of 1.

    Raises:
        OptionsError: the model restores without enlarging and another size was asked for, or the other way round.
        ModelError: a scale of 1 was asked for, and there is no such model: nothing could stand in for it.
    """
    # All that runs from a folder with a config.json enlarges.
    named = options.model is not None and options.model.endswith(checkpoints.SUFFIXES)
    try:
        restores = named and models.spec_of(str(options.model)).scale == 1
    except ModelError:
        if options.scale == 1:
            raise
        return options  # its turn, and that of what stands in for it, comes later
    if not restores:
        if options.scale == 1:
            raise OptionsError("a scale of 1 needs a model that restores without enlarging: name one, or ask for more")
        return options
    if options.scale not in (None, 1) or options.width is not None or options.height is not None:
        raise OptionsError(
            f"{options.model} restores without enlarging: leave the size out, and enlarge its result with another model"
        )
    return replace(options, scale=1.0)
