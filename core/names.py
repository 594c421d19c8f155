"""The name that a result is saved under, for the command line and for the service."""

from __future__ import annotations

from pathlib import PurePath

from core.formats import SUFFIXES, suffix_format
from core.options import Options


def size_suffix(options: Options) -> str:
    """What is added to a name: `-x2` for a factor, `-640x480`, `-640x` or `-x480` for sides in pixels."""
    if options.width is None and options.height is None:
        return f"-x{options.scale or 2:g}"
    return f"-{options.width or ''}x{options.height or ''}"


def result_name(name: str, options: Options, format: str | None) -> str:
    """photo.jpg becomes photo-x2.jpg, or photo-x2.png where the result is a PNG.

    Args:
        name: of the input's file, without its folder.
        options: of the work.
        format: of the result; None where it is unknown, which leaves the ending as it is.
    """
    path = PurePath(name)
    ending = path.suffix
    if format is not None and suffix_format(ending) != format:
        ending = SUFFIXES[format]
    return path.stem + size_suffix(options) + ending
