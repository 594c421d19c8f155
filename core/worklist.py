"""What the command line makes from what: one result for each input, and nothing overwritten that it did not make.

A finished result is known by a record in its folder (`.upscale.jsonl`, one JSON object a line, later lines win): which
source it was made from, with which options, and how both files looked. So a second run goes on where the first stopped,
makes anew what has changed, takes no result for an input, and finds out that a name is taken by somebody else's file
before any work. A line says "started" before the result appears: what a killed run left is known, too.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from core.codecs.read import probe
from core.errors import OutputError, UpscaleError, describe
from core.formats import READ_SUFFIXES, suffix_format
from core.options import Options

RECORD = ".upscale.jsonl"
#: What file managers, NAS systems and archivers keep beside pictures: previews and rubbish, no pictures of people.
_PASSED_OVER_FOLDERS = frozenset({"@eadir", "__macosx", "$recycle.bin", "system volume information"})


class UsageError(Exception):
    """Inputs and output contradict each other; the text says what to give instead."""


@dataclass(frozen=True)
class Work:
    """One picture to make.

    Attributes:
        source: path of the input, or None for standard input.
        target: path of the result, or None for standard output.
        done: the result is there already, made from this source with these options.
    """

    source: Path | None
    target: Path | None
    done: bool = False


@dataclass(frozen=True)
class Worklist:
    """All the work of one call.

    Attributes:
        work: in order.
        passed_over: files and folders that are no inputs, with the reason.
    """

    work: list[Work]
    passed_over: list[tuple[Path, str]] = field(default_factory=list)


@dataclass(frozen=True)
class _Found:
    """An input, and the folder that its result goes to when nothing else takes its name."""

    source: Path
    folder: Path
    resume: bool


def plan(
    inputs: Sequence[str], output: str | None, options: Options, *, recursive: bool = False, overwrite: bool = False
) -> Worklist:
    """What to make from what.

    Args:
        inputs: files, folders, or "-" for standard input.
        output: a file, a folder (always, when there are several inputs), "-" for standard output, or None for beside
            the input.
        options: of the work; they are part of what a finished result is known by.
        recursive: folders with everything below.
        overwrite: results may take the place of files that were not made here.

    Raises:
        UsageError: contradicting inputs and output, or a result would take the place of another file.
    """
    if "" in inputs or output == "":
        raise UsageError("an empty name is no file and no folder")
    if "-" in inputs:
        if len(inputs) > 1:
            raise UsageError("- (standard input) stands alone: give other files in another call")
        if output in (None, "-"):
            return Worklist([Work(None, None)])
        if _is_folder(str(output)):
            raise UsageError(f"{output} is a folder, and standard input has no name: give a file")
    several = len(inputs) > 1 or Path(inputs[0]).is_dir()
    if output == "-":
        if several:
            raise UsageError("standard output takes one picture: give a folder with --output")
        return Worklist([Work(Path(inputs[0]), None)])
    if output is not None and several and Path(output).exists() and not Path(output).is_dir():
        raise UsageError(f"{output} is a file: several pictures need a folder")
    if output is not None and not several and not _is_folder(output):
        target = Path(output)
        _check_name(target, options)
        found = Worklist([Work(None if inputs[0] == "-" else Path(inputs[0]), target)])
    else:
        found = _plan_folders(inputs, output, options, recursive)
    if not found.work:
        over = f"; {len(found.passed_over)} passed over" if found.passed_over else ""
        raise UsageError(f"no pictures in {', '.join(inputs)}{over}" + ("" if recursive else " (try --recursive)"))
    if not overwrite:
        _refuse_to_overwrite(found.work)
    return found


def _is_folder(output: str) -> bool:
    return output.endswith(("/", "\\")) or Path(output).is_dir()


def _check_name(target: Path, options: Options) -> None:
    """Refuse an output name that promises another content than it would get."""
    if target.exists() and not target.is_file():
        return  # a device or a pipe: its name says nothing
    ending = target.suffix
    named = suffix_format(ending)
    if ending and named is None:
        raise UsageError(
            f"{target.name}: no format that can be written; end it in .jpg, .png, .webp, .tif, .bmp or .avif"
        )
    if named is not None and options.format is not None and named != options.format:
        raise UsageError(f"{target.name} is a name for {named}, but the format asked for is {options.format}: give one")


def _plan_folders(inputs: Sequence[str], output: str | None, options: Options, recursive: bool) -> Worklist:
    """Results beside their inputs, or below one folder."""
    found: list[_Found] = []
    passed_over: list[tuple[Path, str]] = []
    seen: set[Path] = set()
    records = _Records()
    for name in inputs:
        path = Path(name)
        if not path.is_dir():
            folder = Path(output) if output else path.parent
            if output is None and _is_stream(path):
                raise UsageError(f"{name} has no folder for a result: give --output")
            if path.resolve() not in seen:
                found.append(_Found(path, folder, False))
                seen.add(path.resolve())
            continue
        root = Path(output) if output else _beside(path, options)
        for source, reason in _pictures(path, recursive, root, records):
            if reason:
                passed_over.append((source, reason))
            elif source.resolve() not in seen:
                seen.add(source.resolve())
                found.append(_Found(source, root / source.parent.relative_to(path), True))
    return Worklist(_named(found, options, records), passed_over)


def _beside(folder: Path, options: Options) -> Path:
    """The folder for the results of a folder: photos becomes photos-x2."""
    whole = folder if folder.name not in ("", "..") else folder.resolve()
    if not whole.name:
        raise UsageError(f"{folder} has no folder beside it: give --output")
    return whole.with_name(whole.name + options.name_suffix)


def _is_stream(path: Path) -> bool:
    """A pipe or a device, such as that of a shell's `<(...)`."""
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):
        return False
    return not stat.S_ISREG(mode) and not stat.S_ISDIR(mode)


def _pictures(folder: Path, recursive: bool, root: Path, records: _Records) -> Iterator[tuple[Path, str]]:
    """Files in a folder in a stable order, each with the reason why it is passed over, or an empty text."""
    apart = root.resolve() if root.resolve() != folder.resolve() else None
    for place, below, files in os.walk(folder):
        here = Path(place)
        for name in sorted(below):
            hidden = name.startswith(".") or name.lower() in _PASSED_OVER_FOLDERS
            if recursive and hidden:
                yield here / name, "a folder of a system or hidden"
        below[:] = sorted(n for n in below if not n.startswith(".") and n.lower() not in _PASSED_OVER_FOLDERS)
        if not recursive:
            below.clear()
        is_results = apart is not None and here.resolve() == apart
        for name in sorted(files):
            path = here / name
            if path.suffix.lower() not in READ_SUFFIXES or name.startswith("._") or not path.is_file():
                continue
            if name.startswith("."):
                yield path, "hidden"
            elif records.made(path) or (is_results and not records.known(here)):
                yield path, "a result of an earlier run"
            else:
                yield path, ""


def _named(found: Sequence[_Found], options: Options, records: _Records) -> list[Work]:
    """Each input with a name for its result that no other result of this call has, whatever the file system's case."""
    taken: set[str] = set()
    work = []
    top = _common([item.source.parent for item in found])
    for item in found:
        names = _names(item, options, top)
        target = next(target for target in names if str(target.resolve()).casefold() not in taken)
        taken.add(str(target.resolve()).casefold())
        work.append(Work(item.source, target, item.resume and records.finished(item.source, target, options)))
    return work


def _common(folders: Sequence[Path]) -> Path | None:
    """The folder that all of them lie in."""
    try:
        return Path(os.path.commonpath([folder.resolve() for folder in folders])) if folders else None
    except ValueError:  # on two drives
        return None


def _names(item: _Found, options: Options, top: Path | None) -> Iterator[Path]:
    """Places for a result, the plainest first: photo-x2.png, folder/photo-x2.png, photo.jpg-x2.png, numbers."""
    format = options.format
    if format is None:
        try:
            # A pipe can be read once, and its name has no ending to keep.
            format = "png" if _is_stream(item.source) else probe(item.source).result_format
        except UpscaleError:
            format = suffix_format(item.source.suffix)  # it will be reported when its turn comes
    plain = options.result_name(item.source.name, format)
    yield item.folder / plain
    if top is not None:
        yield item.folder / item.source.resolve().parent.relative_to(top) / plain
    yield item.folder / options.result_name(item.source.name + Path(plain).suffix, format)
    for number in range(2, 1_000_000):
        yield item.folder / options.result_name(f"{item.source.stem[:200]}-{number}{item.source.suffix}", format)


def _refuse_to_overwrite(work: Sequence[Work]) -> None:
    """Refuse before any work when a result would take the place of a file that was not made for it."""
    records = _Records()
    taken = []
    for item in work:
        if item.target is None or item.done or not item.target.is_file():
            continue
        if item.source is not None and _same(item.source, item.target):
            taken.append(f"{item.target} is the input itself")
        elif (owner := records.owner(item.target)) is None:
            taken.append(f"{item.target} is there already and was not made by this program, or was changed since")
        elif owner != _origin(item):
            taken.append(f"{item.target} is the result of {owner}")
    if taken:
        more = f" (and {len(taken) - 3} more)" if len(taken) > 3 else ""
        raise UsageError(f"{'; '.join(taken[:3])}{more}: give another --output, or --overwrite")


def _origin(work: Work) -> str:
    """The input of some work, as records name it."""
    return "-" if work.source is None else str(work.source.resolve())


def _same(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except OSError:
        return False


def _looks(path: Path) -> list[int] | None:
    """Size in bytes and time of change in nanoseconds; None when it is not there."""
    try:
        found = path.stat()
    except OSError:
        return None
    return [found.st_size, found.st_mtime_ns]


def _fingerprint(options: Options) -> str:
    return hashlib.sha256(json.dumps(asdict(options), sort_keys=True).encode()).hexdigest()[:16]


def record(work: Work, options: Options, *, finished: bool | None) -> None:
    """Note in the result's folder that a result is begun, finished, or given up.

    Args:
        work: with a path for the result.
        options: that it is made with.
        finished: False before the work, True once the result is there, None where it failed: an earlier result stays
            ours, and what appears under a name that was free is somebody else's.

    Raises:
        OutputError: the folder cannot be written to.
    """
    target = work.target
    if target is None or (target.exists() and not target.is_file()):
        return  # a device or a pipe
    looks = None if finished is False else _looks(target)
    line = {
        "result": target.name,
        "source": None if finished is None and looks is None else _origin(work),
        "source_looks": None if work.source is None else _looks(work.source),
        "options": None if finished is None else _fingerprint(options),
        "result_looks": looks,
    }
    try:
        with (target.parent / RECORD).open("ab") as stream:  # a short line is appended whole, also by two processes
            stream.write(json.dumps(line).encode() + b"\n")
    except OSError as error:
        raise OutputError(f"cannot write to {target.parent}: {describe(error)}") from error


class _Records:
    """The records of folders, each read once."""

    def __init__(self) -> None:
        self._folders: dict[Path, dict[str, dict[str, object]]] = {}

    def _of(self, target: Path) -> dict[str, object] | None:
        folder = target.parent
        if folder not in self._folders:
            entries: dict[str, dict[str, object]] = {}
            try:
                lines = (folder / RECORD).read_bytes().splitlines()
            except OSError:
                lines = []
            for line in lines:
                try:
                    entry = json.loads(line)
                    entries[str(entry["result"])] = entry
                except (ValueError, KeyError, TypeError):
                    continue  # a line that a full disk cut off
            self._folders[folder] = entries
        return self._folders[folder].get(target.name)

    def known(self, folder: Path) -> bool:
        """Whether a folder has a record."""
        self._of(folder / "any")
        return bool(self._folders[folder])

    def owner(self, target: Path) -> str | None:
        """The source that a file was made from; None when it was not made here, or was changed since."""
        entry = self._of(target)
        # Begun and not finished: a result that is there appeared at the very end of a run that was killed.
        if entry is None or entry.get("source") is None or entry.get("result_looks") not in (None, _looks(target)):
            return None
        return str(entry.get("source"))

    def made(self, path: Path) -> bool:
        """Whether a file is a result of an earlier run."""
        return self.owner(path) is not None

    def finished(self, source: Path, target: Path, options: Options) -> bool:
        """Whether a result is there, made from this source as it is now with these options."""
        entry = self._of(target)
        return (
            entry is not None
            and entry.get("result_looks") is not None
            and entry.get("result_looks") == _looks(target)
            and entry.get("source") == str(source.resolve())
            and entry.get("source_looks") == _looks(source)
            and entry.get("options") == _fingerprint(options)
        )
