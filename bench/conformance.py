"""Every file of a folder read by this package and by independent decoders: python -m bench.conformance FOLDER

Decoders that are installed are asked: libvips (pyvips), ImageMagick (convert or magick), ffmpeg, avifdec, djpeg. Pixels
are compared with a tolerance by format, and a table of differences goes to standard output. With --end-to-end each file
is also doubled and halved again, compared with itself, and what exiftool finds before and after is compared.

A difference is no verdict: where two decoders disagree the specification decides. Colours are compared as stored: CMYK,
Lab, and numbers whose range is a matter of choice are left out.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import core
from core.codecs.read import pages
from core.errors import describe
from core.picture import held

Pixels = npt.NDArray[np.float32]

SECONDS = 30  # for one decoder and one file
#: Largest mean difference, of 255, by format; chroma is upsampled in several ways, and each has its own inverse DCT.
TOLERANCES = {"jpeg": 1.0, "webp": 1.0, "avif": 1.5, "heif": 1.5}
USUAL_TOLERANCE = 0.01
#: Mean difference, of 255, between an input and its halved result.
HALVED = 4.0
#: Groups of exiftool's tags that speak of the file and not of the picture.
_FILE_GROUPS = ("ExifTool", "System", "File", "Composite", "PNG", "JFIF", "RIFF", "Meta", "Track", "ICC_Profile", "GIF")
#: Tags of how a file stores its pixels, which a result stores in its own way.
_CODING = re.compile(r":(?:ColorMap|Orientation|ReferenceBlackWhite|YCbCr\w+|[XY]Resolution|ResolutionUnit)$")


def ours(path: Path) -> tuple[Pixels, core.Probe]:
    """The first frame, (h, w, 4) from 0 to 1, and the header."""
    header = core.probe(path)
    decoded = pages(path)
    picture = held(next(decoded))
    decoded.close()
    if picture.levels is not None or any("converted to sRGB" in note for note in picture.notes):
        raise NotImplementedError("numbers or colours that were converted")
    top = np.iinfo(picture.pixels.dtype).max
    alpha = np.full(picture.pixels.shape[:2], top, picture.pixels.dtype) if picture.alpha is None else picture.alpha
    colour = np.broadcast_to(picture.pixels, (*picture.pixels.shape[:2], 3))
    return (np.dstack([colour, alpha]) / top).astype(np.float32), header


def _run(*command: str | Path) -> bytes:
    done = subprocess.run([str(part) for part in command], capture_output=True, timeout=SECONDS)
    if done.returncode or not done.stdout:
        raise ValueError(done.stderr.decode(errors="replace").strip().splitlines()[-1:] or "no output")
    return done.stdout


def _of_pam(data: bytes) -> Pixels:
    """(h, w, 4) from 0 to 1 of the first PAM or PPM file in some bytes."""
    if data[:2] == b"P7":
        head, _, body = data.partition(b"ENDHDR\n")
        found = dict(line.split(maxsplit=1) for line in head.decode().splitlines()[1:] if " " in line)
        width, height, depth, top = (int(found[name]) for name in ("WIDTH", "HEIGHT", "DEPTH", "MAXVAL"))
    else:
        kind, size, limit, body = data.split(b"\n", 3)
        (width, height), top, depth = map(int, size.split()), int(limit), 3 if kind == b"P6" else 1
    values = np.frombuffer(body, ">u2" if top > 255 else "u1", width * height * depth)
    return _as_rgba(values.reshape(height, width, depth) / np.float32(top))


def _as_rgba(values: npt.NDArray[Any]) -> Pixels:
    """(h, w, 1 to 4) as (h, w, 4)."""
    depth = values.shape[2]
    colour = values[:, :, : 3 if depth > 2 else 1]
    alpha = values[:, :, -1:] if depth in (2, 4) else np.ones((*values.shape[:2], 1))
    colour = np.broadcast_to(colour, (*values.shape[:2], 3))
    return np.concatenate([colour, alpha], axis=2).astype(np.float32)


def by_vips(path: Path) -> Pixels:
    """By libvips."""
    import pyvips

    image = pyvips.Image.new_from_file(str(path)).autorot()
    if image.interpretation not in ("srgb", "rgb", "b-w", "rgb16", "grey16", "multiband") or image.bands > 4:
        raise NotImplementedError(image.interpretation)
    top = {"uchar": 255, "ushort": 65535}[image.format]
    return _as_rgba(image.numpy().reshape(image.height, image.width, image.bands) / np.float32(top))


def by_magick(path: Path) -> Pixels:
    """By ImageMagick."""
    program = shutil.which("magick") or "convert"
    return _of_pam(_run(program, f"{path}[0]", "-auto-orient", "-type", "TrueColorAlpha", "-depth", "16", "pam:-"))


def by_ffmpeg(path: Path) -> Pixels:
    """By ffmpeg, whose own way between colour models costs a step or two."""
    out = ("-frames:v", "1", "-f", "image2pipe", "-c:v", "pam", "-pix_fmt", "rgba", "-")
    return _of_pam(_run("ffmpeg", "-v", "error", "-i", path, *out))


def by_avifdec(path: Path) -> Pixels:
    """By libavif's own program."""
    import imagecodecs

    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "out.png")
        subprocess.run(["avifdec", path, out], check=True, capture_output=True, timeout=SECONDS)
        values = imagecodecs.png_decode(out.read_bytes())
    return _as_rgba(values.reshape(*values.shape[:2], -1) / np.float32(np.iinfo(values.dtype).max))


def by_djpeg(path: Path) -> Pixels:
    """By libjpeg's own program, which does not turn pictures."""
    if core.probe(path).mode in ("CMYK", "YCCK"):
        raise NotImplementedError("CMYK")
    return _of_pam(_run("djpeg", "-pnm", path))


DECODERS: dict[str, tuple[Callable[[Path], Pixels], frozenset[str] | None]] = {
    "libvips": (by_vips, None),
    "ImageMagick": (by_magick, None),
    "ffmpeg": (by_ffmpeg, None),
    "avifdec": (by_avifdec, frozenset({"avif"})),
    "djpeg": (by_djpeg, frozenset({"jpeg"})),
}


def installed() -> dict[str, tuple[Callable[[Path], Pixels], frozenset[str] | None]]:
    """The decoders that this machine has."""
    try:
        import pyvips  # noqa: F401

        vips = True
    except (ImportError, OSError):
        vips = False
    there = {
        **{"libvips": vips, "ImageMagick": bool(shutil.which("magick") or shutil.which("convert"))},
        **{name: bool(shutil.which(name)) for name in ("ffmpeg", "avifdec", "djpeg")},
    }
    return {name: decoder for name, decoder in DECODERS.items() if there[name]}


def difference(one: Pixels, other: Pixels, format: str) -> str:
    """Equality, or in what two decoded pictures differ."""
    if one.shape != other.shape:
        return f"{one.shape[1]}x{one.shape[0]} and {other.shape[1]}x{other.shape[0]}"
    seen = (one[:, :, 3] > 0) & (other[:, :, 3] > 0)
    gaps = np.abs(one - other) * 255
    colour = float(gaps[:, :, :3][seen].mean()) if seen.any() else 0.0
    alpha, limit = float(gaps[:, :, 3].mean()), TOLERANCES.get(format, USUAL_TOLERANCE)
    if colour <= limit and alpha <= limit:
        return "equal"
    return f"mean {colour:.2f}, most {gaps[:, :, :3][seen].max(initial=0):.0f}" + (
        f", alpha {alpha:.2f}" if alpha > limit else ""
    )


def outcomes(path: Path, decoders: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """For each decoder that reads such files, how it compares with us."""
    try:
        mine, header = ours(path)
    except NotImplementedError:
        yield "all", "not compared"
        return
    except core.InputError as error:
        mine, header, reason = None, None, describe(error)
    for name, (decode, formats) in decoders.items():
        if formats is not None and (header is None or header.format not in formats):
            continue
        try:
            other = decode(path)
        except NotImplementedError:
            continue
        except Exception:  # whatever a decoder says, it does not read the file
            if mine is not None:
                yield name, "only we read it"
            continue
        yield (
            name,
            f"only they read it: {reason}"
            if mine is None
            else difference(mine, other, header.format if header else ""),
        )


def end_to_end(path: Path) -> Iterator[str]:
    """What is wrong with a result: far from its input once halved, or tags that went without a note."""
    try:
        mine, _ = ours(path)
        result = core.upscale(path)
    except (NotImplementedError, core.UpscaleError):
        return
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, f"out.{result.format}")
        out.write_bytes(result.data or b"")
        try:
            doubled, _ = ours(out)
            height, width = mine.shape[:2]
            halved = doubled.reshape(height, 2, width, 2, 4).mean(axis=(1, 3))
            gap = float((np.abs(halved - mine)[mine[:, :, 3] > 0]).mean() * 255) if mine[:, :, 3].any() else 0.0
            if gap > HALVED:
                yield f"halved, the result is {gap:.1f} off"
        except NotImplementedError:
            pass
        if shutil.which("exiftool"):
            before, after = tags(path), tags(out)
            lost = sorted(
                name for name in before - after if not (name.startswith(_FILE_GROUPS) or _CODING.search(name))
            )
            if lost and not result.notes:
                yield f"without a note: {', '.join(lost[:8])}"


def tags(path: Path) -> set[str]:
    """Names, with their group, of what exiftool finds."""
    found = json.loads(_run("exiftool", "-j", "-G1", path))[0]
    return {str(name) for name in found}


def main() -> None:
    """Compare, and print what differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--end-to-end", action="store_true", help="also double each file, and compare")
    parsed = parser.parse_args()
    decoders = installed()
    print(f"decoders: {', '.join(decoders) or 'none installed'}", file=sys.stderr)
    counts: dict[str, Counter[str]] = {}
    lines = []
    for path in sorted(path for path in parsed.folder.rglob("*") if path.is_file()):
        for name, outcome in outcomes(path, decoders):
            plain = outcome.startswith(("equal", "only", "not compared"))
            counts.setdefault(name, Counter())[outcome.split(":")[0] if plain else "different"] += 1
            if outcome not in ("equal", "not compared", "only we read it"):
                lines.append(f"| {path.relative_to(parsed.folder)} | {name} | {outcome} |")
        if parsed.end_to_end:
            lines += [f"| {path.relative_to(parsed.folder)} | end to end | {wrong} |" for wrong in end_to_end(path)]
    kinds = ["equal", "different", "only they read it", "only we read it", "not compared"]
    print(f"| | {' | '.join(kinds)} |\n|---{'|---' * len(kinds)}|")
    for name, found in counts.items():
        print(f"| {name} | {' | '.join(str(found[kind]) for kind in kinds)} |")
    if lines:
        print("\n| file | decoder | difference |\n|---|---|---|")
        print("\n".join(lines))


if __name__ == "__main__":
    main()
