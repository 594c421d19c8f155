"""The key of a result, by a template: `scans/a/b.tif` becomes `results/a/b-x2.tif`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import PurePosixPath

import core
from core.formats import READ_SUFFIXES, SUFFIXES, suffix_format
from handler.storage import check_key

TEMPLATE = "{path}{stem}{suffix}{ending}"
#: Longest name, without folders, in bytes of UTF-8: what file systems take when the results are copied to one.
MAX_NAME = 255
#: Prefixes of the service, which hold no pictures of anybody's.
_OURS = ("jobs/", "archives/", "orders/", "models/", "work/", "sweep/")
_WRITTEN_OUT = {"": "%", ".": "%2E", "..": "%2E%2E"}
_FIELD = re.compile(r"\{([^{}]*)\}")
_FIELDS = ("path", "stem", "suffix", "ending")


def check_template(template: str) -> str:
    """The template itself, if it names each result by its source.

    Raises:
        core.OptionsError: it does not.
    """
    unknown = [name for name in _FIELD.findall(template) if name not in _FIELDS]
    if unknown or "{stem}" not in template or not template.endswith("{ending}"):
        raise core.OptionsError(
            f"a template of names has {{path}}, {{stem}}, {{suffix}} and, at its end, {{ending}}, as in {TEMPLATE}; "
            "{stem} must be there"
        )
    return template


def target_keys(source: str, below: str, target: str, template: str, options: core.Options) -> Iterator[str]:
    """Keys for the result of a source, the plainest first; take the first that no other result has.

    Args:
        source: key of the input.
        below: prefix of the source that is left out, ending in a slash, or empty.
        target: prefix of the results, ending in a slash.
        template: from `check_template`.
        options: of the work.

    Yields:
        `results/a/b-x2.tif`, `results/a/b.tif-x2.tif`, then numbers.

    Raises:
        InvalidKey: the source has no key for a result: that would be too long.
    """
    *folders, name = source.removeprefix(below).split("/")
    ending = PurePosixPath(name).suffix if ending_of(name) in READ_SUFFIXES else ""
    stem = name.removesuffix(ending)
    out = predicted_ending(ending, options)

    def key(stem: str) -> str:
        room = MAX_NAME - len((options.name_suffix + out).encode())
        fields = {
            # Parts that no store of ours takes are written out; whose name looks so already takes a number.
            "path": "".join(f"{_WRITTEN_OUT.get(part, part)}/" for part in folders),
            "stem": stem.encode()[:room].decode(errors="ignore"),
            "suffix": options.name_suffix,
            "ending": out,
        }
        return check_key(target + _FIELD.sub(lambda field: fields[field[1]], template))

    yield key(stem)
    yield key(name)
    for number in range(2, 1_000_000):
        yield key(f"{stem.encode()[:200].decode(errors='ignore')}-{number}")


def predicted_ending(ending: str, options: core.Options) -> str:
    """The ending of a result by the source's ending alone; the worker, who knows the content, may find another."""
    if options.format is not None:
        return ending if suffix_format(ending) == options.format else SUFFIXES[options.format]
    if ending and suffix_format(ending) is None:  # read, not written
        return ".png" if ending.lower() == ".gif" else ".jpg"
    return ending


def with_ending(key: str, format: str) -> str:
    """The key with an ending of this format, which it may have already."""
    folder, slash, name = key.rpartition("/")
    ending = PurePosixPath(name).suffix
    if suffix_format(ending) == format:
        return key
    stem = name.removesuffix(ending) if ending.lower() in READ_SUFFIXES else name
    return check_key(folder + slash + stem + SUFFIXES[format])


def ending_of(key: str) -> str:
    """The ending of a key, in lower case: ".tif"; empty without one."""
    return PurePosixPath(key.rpartition("/")[2]).suffix.lower()


def check_prefixes(source: str, target: str) -> None:
    """Refuse prefixes that belong to the service, or that would feed results back as pictures.

    Args:
        source: prefix of the pictures, ending in a slash; empty for a list.
        target: prefix of the results, ending in a slash.

    Raises:
        core.OptionsError, InvalidKey: with what to give instead.
    """
    for prefix in filter(None, (source, target)):
        check_key(prefix + "x")
    for prefix in (*_OURS, "uploads/"):
        if target.startswith(prefix):
            raise core.OptionsError(f"{target} belongs to the service: give another prefix for results")
    if source.startswith("uploads/"):
        raise core.OptionsError("what lies under uploads/ is made larger by itself: give another prefix")
    if source.startswith(_OURS):
        raise core.OptionsError(f"{source} belongs to the service: there are no pictures")
    if source and (source.startswith(target) or target.startswith(source)):
        raise core.OptionsError(
            f"{source} and {target} lie in each other, so that results would be taken for pictures: give prefixes apart"
        )
