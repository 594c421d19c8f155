"""The command line: `upscale photo.jpg`, or `python -m core photo.jpg`."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NoReturn

import core
from core.codecs.read import probe
from core.formats import FORMATS, READ_SUFFIXES, suffix_format
from core.limits import Limits, check_output_size
from core.models import MODELS
from core.options import MAX_SCALE, Options, Result
from core.picture import frames_kept

EXIT_OK, EXIT_INTERNAL, EXIT_USAGE, EXIT_UNREADABLE, EXIT_TOO_LARGE, EXIT_CANNOT_WRITE = range(6)

_EPILOG = f"""exit codes: {EXIT_OK} done, {EXIT_INTERNAL} internal failure, {EXIT_USAGE} bad usage,
{EXIT_UNREADABLE} unreadable image, {EXIT_TOO_LARGE} too large, {EXIT_CANNOT_WRITE} cannot write;
with several pictures, the code of the first failure."""


@dataclass(frozen=True)
class _Work:
    """One picture to make: from a path or standard input (None), to a path or standard output (None)."""

    source: Path | None
    target: Path | None
    skip: bool = False


class _UsageError(Exception):
    pass


def _parser() -> argparse.ArgumentParser:
    command = "upscale" if Path(sys.argv[0]).stem == "upscale" else "python -m core"
    parser = argparse.ArgumentParser(prog=command, description="Upscale pictures.", epilog=_EPILOG, allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"%(prog)s {core.__version__}")
    parser.add_argument("inputs", nargs="+", metavar="INPUT", help="files, folders, or - for standard input")
    parser.add_argument("-o", "--output", help="file or folder to write to, or - for standard output")
    parser.add_argument("-r", "--recursive", action="store_true", help="folders: with everything below")
    parser.add_argument("--model", help=f"{', '.join(MODELS)}, a hub id, or a directory")
    parser.add_argument("--scale", type=float, help=f"more than 1, at most {MAX_SCALE:g}; fractions allowed (2)")
    parser.add_argument("--width", type=int, help="exact width in pixels, instead of a scale")
    parser.add_argument("--height", type=int, help="exact height in pixels, instead of a scale")
    parser.add_argument(
        "--format", choices=list(FORMATS), help="of the result (that of the output's name, or of the input)"
    )
    parser.add_argument("--quality", type=int, help="1 to 100, for jpeg, webp and avif (by the input)")
    parser.add_argument("--strip", action="store_true", help="leave out metadata, keep the colour profile")
    parser.add_argument("--drop-gps", action="store_true", help="leave out where a picture was taken")
    parser.add_argument("--keep-size", action="store_true", help="keep the printed size (the number of dots an inch)")
    parser.add_argument("--exact", action="store_true", help="tiles equal to the untiled result for every model")
    parser.add_argument("--tile", type=int, help="side of a tile in pixels")
    parser.add_argument("--halo", type=int, help="context around a tile in pixels")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--max-megapixels", type=float, help="refuse larger inputs (250)")
    parser.add_argument("--estimate", action="store_true", help="say seconds, memory and size; make nothing")
    parser.add_argument("--json", action="store_true", help="one JSON object a line on standard output")
    parser.add_argument("--quiet", action="store_true", help="no progress, no summary")
    return parser


def _result_name(source: Path, options: Options) -> str:
    """photo.jpg becomes photo-x2.jpg; with another format, or when its content is another, photo-x2.png."""
    format = options.format
    if format is None:
        try:
            format = probe(source).result_format
        except core.UpscaleError:
            format = suffix_format(source.suffix)  # it will be reported when its turn comes
    return options.result_name(source.name, format)


def _plan(arguments: argparse.Namespace, options: Options) -> list[_Work]:
    """What to make from what.

    Raises:
        _UsageError: contradicting inputs and output.
    """
    inputs: list[str] = arguments.inputs
    output: str | None = arguments.output
    if "-" in inputs:
        if len(inputs) > 1:
            raise _UsageError("- (standard input) stands alone: give other files in another call")
        return [_Work(None, None if output in (None, "-") else Path(str(output)))]
    if output == "-":
        if len(inputs) > 1 or Path(inputs[0]).is_dir():
            raise _UsageError("standard output takes one picture: give a folder with --output")
        return [_Work(Path(inputs[0]), None)]
    several = len(inputs) > 1 or Path(inputs[0]).is_dir()
    if output is not None and several and Path(output).is_file():
        raise _UsageError(f"{output} is a file: several pictures need a folder")
    work: list[_Work] = []
    taken: set[Path] = set()

    def add(source: Path, folder: Path, resume: bool) -> None:
        target = folder / _result_name(source, options)
        if target in taken:  # a.jpg and a.png in one format
            target = target.with_name(source.name + options.name_suffix + target.suffix)
        taken.add(target)
        done = resume and target.is_file() and target.stat().st_mtime >= source.stat().st_mtime
        work.append(_Work(source, target, done))

    for name in inputs:
        path = Path(name)
        if path.is_dir():
            root = Path(output) if output else path.with_name(path.resolve().name + options.name_suffix)
            for source in _pictures(path, arguments.recursive, root):
                add(source, root / source.parent.relative_to(path), True)
        elif output is None:
            add(path, path.parent, False)
        elif several or output.endswith(("/", "\\")) or Path(output).is_dir():
            add(path, Path(output), False)
        else:
            work.append(_Work(path, Path(output)))
    if not work:
        raise _UsageError(f"no pictures in {', '.join(inputs)}" + ("" if arguments.recursive else " (try --recursive)"))
    return work


def _pictures(folder: Path, recursive: bool, results: Path) -> Iterator[Path]:
    """Pictures in a folder in a stable order; never our own results, which may lie below it."""
    for path in sorted(folder.rglob("*") if recursive else folder.iterdir()):
        if path.suffix.lower() in READ_SUFFIXES and path.is_file() and not path.name.startswith("."):
            if results != folder and results.resolve() in path.resolve().parents:
                continue
            yield path


@contextmanager
def _progress_bar(label: str, shown: bool) -> Iterator[Callable[[int, int], None] | None]:
    if not shown:
        yield None
        return
    from tqdm import tqdm

    with tqdm(desc=label[-30:], unit="tile", leave=False, delay=0.5, file=sys.stderr) as bar:

        def update(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield update


def _printable(name: str) -> str:
    """A file's name without what would steer a terminal or begin a new line."""
    return "".join(letter if letter.isprintable() else "?" for letter in name)


def _exit_code(error: core.UpscaleError) -> int:
    if isinstance(error, core.OptionsError):
        return EXIT_USAGE
    if isinstance(error, core.TooLarge):
        return EXIT_TOO_LARGE
    if isinstance(error, core.InputError):
        return EXIT_UNREADABLE
    if isinstance(error, core.OutputError):
        return EXIT_CANNOT_WRITE
    return EXIT_INTERNAL


def _estimate(work: _Work, data: bytes | None, options: Options, limits: Limits) -> dict[str, Any]:
    header = probe(data if data is not None else str(work.source), limits)
    found = core.estimate(header.width, header.height, options, picture=header, measure=True)
    format = options.format or header.result_format
    check_output_size(format, found.width, found.height, limits, frames_kept(format, header))
    return asdict(found)


def _say_estimate(name: str, found: dict[str, Any]) -> str:
    return (
        f"{name}: {found['width']}x{found['height']} px, about {found['seconds']:.1f} s and "
        f"{found['memory'] / 1e6:.0f} MB of memory with {found['model']} on {found['device']}"
    )


def _say_result(name: str, target: Path | None, result: Result) -> str:
    line = (
        f"{name} -> {target or 'standard output'}  {result.width}x{result.height} px, "
        f"{result.model} on {result.device}, {result.seconds:.1f} s"
    )
    if result.degraded:
        line += f"\n  not the model asked for: {result.reason}"
    return "\n  ".join([line, *result.notes])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parsed = _parser().parse_args(arguments)
    try:
        options = Options(
            model=parsed.model,
            scale=parsed.scale,
            width=parsed.width,
            height=parsed.height,
            tile=parsed.tile,
            halo=parsed.halo,
            exact=parsed.exact,
            device=parsed.device,
            format=parsed.format or _format_of(parsed.output),
            quality=parsed.quality,
            strip=parsed.strip,
            drop_gps=parsed.drop_gps,
            keep_size=parsed.keep_size,
        )
        limits = Limits()
        if parsed.max_megapixels is not None:
            limits = Limits(input_pixels=int(parsed.max_megapixels * 1e6))
        work = _plan(parsed, options)
    except (core.OptionsError, _UsageError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_USAGE

    code = EXIT_OK
    talk = sys.stderr if any(item.target is None for item in work) else sys.stdout
    skipped = sum(item.skip for item in work)
    for number, item in enumerate((item for item in work if not item.skip), start=1):
        exact = "standard input" if item.source is None else str(item.source)
        name = _printable(exact)
        try:
            data = sys.stdin.buffer.read(limits.input_bytes + 1) if item.source is None else None
            if parsed.estimate:
                found = _estimate(item, data, options, limits)
                print(json.dumps({"input": exact, **found}) if parsed.json else _say_estimate(name, found), flush=True)
                continue
            label = name if len(work) == 1 else f"{number + skipped}/{len(work)} {name}"
            with _progress_bar(label, sys.stderr.isatty() and not parsed.quiet) as progress:
                result = _make(item, data, options, limits, progress)
            if parsed.json:
                fields = {key: value for key, value in asdict(result).items() if key != "data"}
                print(json.dumps({"input": exact, "output": str(item.target or "-"), **fields}), file=talk, flush=True)
            elif not parsed.quiet:
                print(_say_result(name, item.target, result), file=talk, flush=True)
        except core.UpscaleError as error:
            code = code or _exit_code(error)
            if parsed.json:
                failure = {"input": exact, "error": {"code": error.code, "message": str(error)}}
                print(json.dumps(failure), file=talk, flush=True)
            print(f"error: {name}: {error}", file=sys.stderr)
    if skipped and not parsed.quiet and not parsed.json:
        print(f"{skipped} already finished, skipped", file=talk)
    return code


def _format_of(output: str | None) -> str | None:
    """The format that an output file's name asks for."""
    return suffix_format(Path(output).suffix) if output and output != "-" else None


def _make(
    item: _Work, data: bytes | None, options: Options, limits: Limits, progress: Callable[[int, int], None] | None
) -> Result:
    source = data if data is not None else str(item.source)
    if item.target is None:
        result = core.upscale(source, options, limits=limits, progress=progress)
        try:
            sys.stdout.buffer.write(result.data or b"")
            sys.stdout.buffer.flush()
        except OSError as error:
            raise core.OutputError(f"cannot write to standard output: {error.strerror}") from error
        return result
    try:
        item.target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise core.OutputError(f"cannot make the folder {item.target.parent}: {error.strerror}") from error
    return core.upscale(source, options, output=item.target, limits=limits, progress=progress)


def run() -> NoReturn:
    """The console command: `main`, and one line instead of a stack trace whatever happens."""
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(EXIT_CANNOT_WRITE)
    except Exception as error:
        # A defect of ours: the user gets one line and a file to send, not a wall of text.
        import traceback

        with tempfile.NamedTemporaryFile("w", prefix="upscale-", suffix=".log", delete=False) as log:
            traceback.print_exc(file=log)
        print(f"internal failure ({type(error).__name__}): please report {log.name}", file=sys.stderr)
        sys.exit(EXIT_INTERNAL)


if __name__ == "__main__":
    run()
