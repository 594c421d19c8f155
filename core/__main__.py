"""The command line: `upscale photo.jpg`, or `python -m core photo.jpg`."""

from __future__ import annotations

import argparse
import io
import json
import math
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NoReturn, TextIO

import core
from core import model_folder
from core.codecs.read import probe
from core.engine import allocator
from core.formats import FORMATS, suffix_format
from core.limits import Limits, check_output_size
from core.models import MODELS, ModelSpec
from core.networks.checkpoints import SUFFIXES
from core.options import MAX_SCALE, Options, Result
from core.picture import frames_kept
from core.worklist import UsageError, Work, plan, record

EXIT_OK, EXIT_INTERNAL, EXIT_USAGE, EXIT_UNREADABLE, EXIT_TOO_LARGE, EXIT_CANNOT_WRITE = range(6)

_EPILOG = f"""exit codes: {EXIT_OK} done, {EXIT_INTERNAL} internal failure, {EXIT_USAGE} bad usage,
{EXIT_UNREADABLE} unreadable image, {EXIT_TOO_LARGE} too large, {EXIT_CANNOT_WRITE} cannot write;
with several pictures, the code of the first failure."""


class _Stopped(BaseException):
    """SIGTERM: like Ctrl-C it ends the work in order, so that nothing half-written stays."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line and the way to the rest: the whole usage would hide what is wrong."""
        self.exit(EXIT_USAGE, f"error: {message} ({self.prog} --help lists what can be given)\n")


def _parser() -> argparse.ArgumentParser:
    command = "upscale" if Path(sys.argv[0]).stem == "upscale" else "python -m core"
    parser = _Parser(prog=command, description="Upscale pictures.", epilog=_EPILOG, allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"%(prog)s {core.__version__}")
    parser.add_argument("inputs", nargs="*", metavar="INPUT", help="files, folders, or - for standard input")
    parser.add_argument("-o", "--output", help="file or folder to write to, or - for standard output")
    parser.add_argument("-r", "--recursive", action="store_true", help="folders: with everything below")
    parser.add_argument(
        "--model",
        help=f"{', '.join(MODELS)}, lanczos, a name in --models-dir, a file ({', '.join(SUFFIXES)}), a hub id, or a "
        "directory",
    )
    parser.add_argument(
        "--models-dir", type=Path, default=os.environ.get("MODELS_DIR"), help="folder of models (MODELS_DIR)"
    )
    parser.add_argument("--list-models", action="store_true", help="say which models there are; make nothing")
    parser.add_argument(
        "--scale", type=float, help=f"1 to {MAX_SCALE:g}, fractions allowed (2; 1 with models that only restore)"
    )
    parser.add_argument("--width", type=int, help="exact width in pixels, instead of a scale")
    parser.add_argument("--height", type=int, help="exact height in pixels, instead of a scale")
    parser.add_argument(
        "--format", help=f"of the result: {', '.join(FORMATS)} (that of the output's name, or of the input)"
    )
    parser.add_argument("--quality", type=int, help="1 to 100, for jpeg, webp and avif (by the input)")
    parser.add_argument("--strip", action="store_true", help="leave out metadata, keep the colour profile")
    parser.add_argument("--drop-gps", action="store_true", help="leave out coordinates, and places by name")
    parser.add_argument("--keep-size", action="store_true", help="keep the printed size (the number of dots an inch)")
    parser.add_argument(
        "--pyramid", action="store_true", help="a TIFF of tiles, with smaller copies for viewers (a pyramid)"
    )
    parser.add_argument("--exact", action="store_true", help="tiles equal to the untiled result for every model")
    parser.add_argument("--tile", type=int, help="side of a tile in pixels")
    parser.add_argument("--halo", type=int, help="context around a tile in pixels")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--max-megapixels", type=float, help="refuse larger inputs (250, of what memory has to hold)")
    parser.add_argument("--estimate", action="store_true", help="say seconds, memory and size; make nothing")
    parser.add_argument("--overwrite", action="store_true", help="also files that were not made by this program")
    parser.add_argument("--json", action="store_true", help="one JSON object a line on standard output")
    parser.add_argument("--quiet", action="store_true", help="no progress, no summary")
    return parser


@contextmanager
def _progress_bar(label: str, shown: bool) -> Iterator[Callable[[int, int], None] | None]:
    if not shown:
        yield None
        return
    from tqdm import tqdm

    with tqdm(desc=label[-30:], unit="tile", leave=False, delay=0.5, file=sys.stderr) as bar:
        started = time.monotonic()
        first = 0  # tiles that were there when it began, of a picture that goes on

        def update(done: int, total: int) -> None:
            nonlocal first
            if bar.total is None:
                first = done
            bar.total = total
            bar.update(done - bar.n)
            if done > first:  # beside tqdm's rate and time left: when that will be
                left = (time.monotonic() - started) / (done - first) * (total - done)
                bar.set_postfix_str(time.strftime("until %a %H:%M", time.localtime(time.time() + left)), refresh=False)

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


def _estimate(work: Work, data: bytes | None, options: Options, limits: Limits) -> dict[str, Any]:
    header = probe(data if data is not None else str(work.source), limits)
    found = core.estimate(header.width, header.height, options, picture=header, measure=True)
    format = options.format or header.result_format
    check_output_size(format, found.width, found.height, limits, frames_kept(format, header))
    return asdict(found)


def _say_estimate(name: str, found: dict[str, Any]) -> str:
    return (
        f"{name}: {found['width']}x{found['height']} px, about {_duration(found['seconds'])}, "
        f"{_size(found['memory'])} of memory and a file of {_size(found['file_bytes'])} "
        f"with {found['model']} on {found['device']}"
    )


def _duration(seconds: float) -> str:
    """Such as "40 s", "12 min" or "3.5 h"."""
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _size(count: float) -> str:
    """Such as "3 MB" or "1.2 GB"."""
    return f"{count / 1e6:.0f} MB" if count < 1e9 else f"{count / 1e9:.1f} GB"


def _say_result(name: str, target: Path | None, result: Result) -> str:
    place = "standard output" if target is None else _printable(str(target))
    line = (
        f"{name} -> {place}  {result.width}x{result.height} px, "
        f"{result.model} on {result.device}, {result.seconds:.1f} s"
    )
    if result.degraded:
        line += f"\n  not the model asked for: {result.reason}"
    return "\n  ".join([line, *result.notes])


def _model(name: str | None, folder: Path | None) -> str | None:
    """The model asked for: what the folder has under that name, or else the name itself."""
    found = model_folder.find(name, folder) if name and folder else None
    return str(found) if found else name


def _list_models(folder: Path | None, as_json: bool) -> int:
    """Print a line for each model: those that are known by name, and those in the folder."""
    try:
        found: dict[str, ModelSpec | core.ModelError] = {
            **MODELS,
            **(model_folder.list_models(folder) if folder else {}),
        }
    except core.ModelError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_USAGE
    rows = [("name", "network", "scale", "size", "licence", "")]
    for name, spec in found.items():
        if isinstance(spec, core.ModelError):
            rows.append((_printable(name), "-", "-", "-", "-", f"does not run here: {spec}"))
            continue
        size = model_folder.bytes_on_disk(spec)
        if as_json:
            fields = {key: getattr(spec, key) for key in ("kind", "scale", "licence", "about", "receptive_field")}
            print(json.dumps({"name": name, **fields, "bytes": size}))
        told = f"{size / 1e6:.1f} MB" if size else "on the hub"
        rows.append((_printable(name), spec.kind, f"x{spec.scale}", told, spec.licence or "?", spec.about))
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    for row in () if as_json else rows:
        print("  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[5]]).rstrip())
    return EXIT_OK


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    allocator.share_heap()
    parser = _parser()
    parsed = parser.parse_args(arguments)
    if parsed.list_models:
        return _list_models(parsed.models_dir, parsed.json)
    if not parsed.inputs:
        parser.error("no pictures given")
    try:
        options = Options(
            model=_model(parsed.model, parsed.models_dir),
            scale=parsed.scale,
            width=parsed.width,
            height=parsed.height,
            tile=parsed.tile,
            halo=parsed.halo,
            exact=parsed.exact,
            device=parsed.device,
            format=parsed.format or _format_of(parsed.inputs, parsed.output),
            quality=parsed.quality,
            strip=parsed.strip,
            drop_gps=parsed.drop_gps,
            keep_size=parsed.keep_size,
            pyramid=parsed.pyramid,
        )
        options = model_folder.fit_scale(options)
        limits = _limits(parsed.max_megapixels)
        found = plan(
            parsed.inputs,
            parsed.output,
            options,
            recursive=parsed.recursive,
            overwrite=parsed.overwrite or parsed.estimate,
        )
    except (core.OptionsError, core.ModelError, UsageError, OSError, ValueError) as error:
        print(f"error: {_printable(str(error))}", file=sys.stderr)
        return EXIT_INTERNAL if isinstance(error, core.ModelError) else EXIT_USAGE
    work = found.work

    code = EXIT_OK
    talk = sys.stderr if any(item.target is None for item in work) else sys.stdout
    say = _Say(talk, parsed.json, parsed.quiet)
    say.passed_over(found.passed_over)
    done = sum(item.done for item in work)
    for number, item in enumerate((item for item in work if not item.done), start=1):
        exact = "standard input" if item.source is None else str(item.source)
        name = _printable(exact)
        try:
            data = sys.stdin.buffer.read(limits.input_bytes + 1) if item.source is None else None
            if parsed.estimate:
                guess = _estimate(item, data, options, limits)
                print(json.dumps({"input": exact, **guess}) if parsed.json else _say_estimate(name, guess), flush=True)
                continue
            label = name if len(work) == 1 else f"{number + done}/{len(work)} {name}"
            with _progress_bar(label, sys.stderr.isatty() and not parsed.quiet) as progress:
                result = _make(item, data, options, limits, progress)
            say.result(exact, item.target, result)
        except core.UpscaleError as error:
            code = code or _exit_code(error)
            say.failure(exact, error)
    if done and not parsed.quiet and not parsed.json:
        print(f"{done} already finished, skipped", file=talk)
    return code


@dataclass(frozen=True)
class _Say:
    """What is reported, for people or for programs."""

    talk: TextIO
    json: bool
    quiet: bool

    def passed_over(self, paths: Sequence[tuple[Path, str]]) -> None:
        """Files and folders that are no inputs: listed for programs, counted for people."""
        if self.json:
            for path, reason in paths:
                print(json.dumps({"passed_over": str(path), "reason": reason}), file=self.talk, flush=True)
        elif paths and not self.quiet:
            print(f"{len(paths)} passed over ({', '.join(sorted({reason for _, reason in paths}))})", file=self.talk)

    def result(self, name: str, target: Path | None, result: Result) -> None:
        """A finished picture; that another model made it is said in any case."""
        if self.json:
            fields = {key: value for key, value in asdict(result).items() if key != "data"}
            print(json.dumps({"input": name, "output": str(target or "-"), **fields}), file=self.talk, flush=True)
        elif not self.quiet:
            print(_say_result(_printable(name), target, result), file=self.talk, flush=True)
        elif result.degraded:
            print(f"{_printable(name)}: made with {result.model}, {result.reason}", file=sys.stderr)

    def failure(self, name: str, error: core.UpscaleError) -> None:
        """Why a picture could not be made."""
        if self.json:
            failure = {"input": name, "error": {"code": error.code, "message": str(error)}}
            print(json.dumps(failure), file=self.talk, flush=True)
        print(f"error: {_printable(name)}: {_printable(str(error))}", file=sys.stderr)


def _limits(max_megapixels: float | None) -> Limits:
    """The limits of a machine of one's own.

    Raises:
        OptionsError: not a number of megapixels.
    """
    if max_megapixels is None:
        return Limits()
    if not math.isfinite(max_megapixels) or max_megapixels <= 0:
        raise core.OptionsError(f"--max-megapixels must be a number above 0, not {max_megapixels:g}")
    most = int(max_megapixels * 1e6)
    return Limits(input_pixels=most, held_pixels=most)


def _format_of(inputs: Sequence[str], output: str | None) -> str | None:
    """The format that an output file's name asks for; a folder's name asks for none."""
    if output in (None, "", "-") or len(inputs) > 1 or Path(inputs[0]).is_dir() or Path(str(output)).is_dir():
        return None
    return suffix_format(Path(str(output)).suffix)


def _make(
    item: Work, data: bytes | None, options: Options, limits: Limits, progress: Callable[[int, int], None] | None
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
    record(item, options, finished=False)
    try:
        result = core.upscale(source, options, output=item.target, limits=limits, progress=progress)
    except BaseException:
        with suppress(core.OutputError):  # the disk may be full; the failure itself is what has to be reported
            record(item, options, finished=None)
        raise
    record(item, options, finished=True)
    return result


def _stop(*_: object) -> NoReturn:
    raise _Stopped


def run() -> NoReturn:
    """The console command: `main`, and one line instead of a stack trace whatever happens."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal without the letters of a file's name
    signal.signal(signal.SIGTERM, _stop)
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        sys.exit(130)
    except _Stopped:
        print("stopped", file=sys.stderr)
        sys.exit(128 + signal.SIGTERM)
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
