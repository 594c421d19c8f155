"""Pictures to encoded files: what each format can carry, and a note for each thing that it cannot.

Where no quality is asked for, the input decides: a JPEG keeps its quality (at least 85, so that a second lossy step
costs little) and its subsampling; what was stored without loss stays without loss where the format can do that (WebP
up to 20 megapixels); the rest gets 95 with full colour resolution.
"""

from __future__ import annotations

import io
import os
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image

from core.codecs import jpeg, png, tiff
from core.codecs.decode import Picture, Probe, describe
from core.errors import OutputError
from core.metadata import carried as metadata
from core.metadata.carried import Metadata
from core.options import FORMATS
from core.pixels import alpha as transparency
from core.pixels import colour

#: Formats that store frames with times, and those that store pages.
ANIMATED, PAGED = frozenset({"png", "webp", "avif"}), frozenset({"tiff"})
_DEEP = frozenset({"png", "tiff"})
#: Pixels of a frame; libwebp takes 30 bytes for each when it codes without loss.
_MAX_LOSSLESS_WEBP = 20_000_000


def frames_kept(format: str, source: Probe) -> int:
    """How many frames or pages of an input a result of this format holds; the others are not even decoded."""
    kept = ANIMATED if source.plays is not None else PAGED
    return source.frames if format in kept else 1


def encode(
    pictures: Iterable[Picture],
    stream: BinaryIO,
    format: str,
    quality: int | None = None,
    *,
    source: Probe | None = None,
    pixels: int = 0,
) -> tuple[str, ...]:
    """Write a picture, an animation or pages; returns one line for each thing that the format could not carry.

    Args:
        pictures: one for each frame or page that is kept (see `frames_kept`).
        stream: open for writing, binary; for TIFF also seekable.
        format: one of `FORMATS`.
        quality: 1 to 100 for JPEG, WebP and AVIF; None chooses.
        source: what was read, when there is more to it than one picture.
        pixels: that all of them together have at most, for TIFF, which has two kinds of file.

    Raises:
        OutputError: the stream cannot be written (a full disk, for example).
    """
    notes: dict[str, None] = {}  # in order, each once
    frames = 1 if source is None else frames_kept(format, source)
    plays = source.plays if source is not None and frames > 1 else None
    if source is not None and source.frames > frames:
        kind = "frames" if source.plays is not None else "pages"
        better = "webp or png" if source.plays is not None else "tiff"
        notes[f"{format} holds one picture: the first of {source.frames} {kind} was taken; choose {better}"] = None

    def fitting() -> Iterator[Picture]:
        for picture in pictures:
            fits, said = _fitted(picture, format, quality)
            notes.update(dict.fromkeys(picture.notes + said))
            yield fits

    try:
        if format == "png":
            png.write(stream, fitting(), frames, plays)
        elif format == "tiff":
            notes.update(dict.fromkeys(tiff.write(stream, fitting(), pixels)))
        elif format == "jpeg":
            for picture in fitting():  # one
                jpeg.write(stream, picture, quality)
        else:
            _by_pillow(stream, fitting(), format, quality, plays)
    except OSError as error:
        raise OutputError(f"cannot write the result: {describe(error)}") from error
    return tuple(notes)


def _fitted(picture: Picture, format: str, quality: int | None) -> tuple[Picture, tuple[str, ...]]:
    """The nearest that a format can hold, and notes."""
    notes = []
    pixels, alpha, meta = picture.pixels, picture.alpha, picture.meta
    if alpha is not None and format in ("jpeg", "bmp"):
        if alpha.min() < np.iinfo(alpha.dtype).max:
            pixels = transparency.over_white(pixels, alpha)
            notes.append(f"{format} has no transparency: the picture was put on white")
        alpha = None
    if picture.levels is not None and format != "tiff":
        low, high = picture.levels.low, picture.levels.high
        if (low, high) != (0.0, 1.0):
            notes.append(f"numbers from {low:g} to {high:g} became black to white: only tiff holds them as they are")
    if pixels.dtype == np.uint16 and format not in _DEEP:
        pixels = _eight_bits(pixels)
        alpha = None if alpha is None else _eight_bits(alpha)
        notes.append(f"{format} is written with 8 bits: choose png or tiff to keep 16")
    # WebP and AVIF store grey as colour; a grey profile does not fit that.
    grey = pixels.shape[2] == 1
    widened = grey and format in ("webp", "avif")
    if meta.icc is not None and (format == "bmp" or (widened and colour.space_of(meta.icc) == "GRAY")):
        try:
            pixels = colour.to_srgb(pixels, meta.icc)
            if grey and not widened:
                pixels = pixels[:, :, 1:2]
            notes.append(f"{format} cannot carry the colour profile: colours were converted to sRGB")
        except ValueError:
            notes.append(f"{format} cannot carry the colour profile, which could not be applied: it was left out")
        meta = replace(meta, icc=None)
    elif widened:
        pixels = np.repeat(pixels, 3, axis=2)
    if format == "webp" and quality is None and picture.lossless and _pixels(picture) > _MAX_LOSSLESS_WEBP:
        size = f"{_MAX_LOSSLESS_WEBP / 1e6:g} megapixels"
        notes.append(f"over {size}, webp is written with quality {jpeg.USUAL_QUALITY}: choose png to lose nothing")
    meta, lost = _carried(meta, format)
    if lost:
        notes.append(f"{format} has no place for {', '.join(lost)}")
    return replace(picture, pixels=pixels, alpha=alpha, meta=meta), tuple(notes)


def _eight_bits(values: Any) -> Any:
    out = np.empty(values.shape, np.uint8)
    for row in range(0, len(values), 256):
        out[row : row + 256] = (values[row : row + 256].astype(np.uint32) + 128) // 257
    return out


def _carried(meta: Metadata, format: str) -> tuple[Metadata, list[str]]:
    """What of the metadata a format has a place for, and the names of what it has none for."""
    lost = []
    changes: dict[str, Any] = {}

    def drop(name: str, value: object, called: str) -> None:
        if value:
            lost.append(called)
            changes[name] = None if name != "text" else ()

    if format == "bmp":
        drop("exif", meta.exif, "EXIF")
        drop("xmp", meta.xmp, "XMP")
    if format in ("webp", "avif", "bmp"):
        drop("iptc", meta.iptc, "IPTC")
        drop("text", meta.text, "texts")
    if format == "jpeg":
        if meta.exif is not None and len(meta.exif) > 65_527:
            drop("exif", meta.exif, "EXIF of more than 64 kB")
        if meta.xmp is not None and len(meta.xmp) > jpeg.MAX_XMP:
            drop("xmp", meta.xmp, "XMP of more than 64 kB")
        if meta.iptc is not None and len(meta.iptc) > 65_000:
            drop("iptc", meta.iptc, "IPTC of more than 64 kB")
    if format in ("jpeg", "tiff"):
        comment = metadata.comment_of(meta)
        if any(value != comment for _, value in meta.text):
            lost.append("texts other than a comment")
        if format == "jpeg" and comment is not None and len(comment.encode()) > 65_000:
            drop("text", meta.text, "a comment of more than 64 kB")
    if format in ("webp", "avif"):
        changes["exif"] = metadata.exif_with_resolution(meta)
    return replace(meta, **changes), lost


def _by_pillow(
    stream: BinaryIO, pictures: Iterator[Picture], format: str, quality: int | None, plays: int | None
) -> None:
    first = next(pictures)
    meta = first.meta
    extra: dict[str, Any] = {}
    if format == "webp":
        exact = quality is None and first.lossless and _pixels(first) <= _MAX_LOSSLESS_WEBP
        extra = {"quality": quality or jpeg.USUAL_QUALITY, "method": 4, "exact": True}
        if exact:  # here the numbers mean effort: more of it takes six times as long and twice the memory for 5 %
            extra.update(lossless=True, quality=20, method=2)
    elif format == "avif":
        extra = {"quality": quality or jpeg.USUAL_QUALITY, "subsampling": "4:4:4", "speed": 6}
    if meta.icc is not None:
        extra["icc_profile"] = meta.icc
    if meta.exif is not None:
        extra["exif"] = b"Exif\0\0" + meta.exif
    if meta.xmp is not None:
        extra["xmp"] = meta.xmp
    if meta.dpi is not None and max(meta.dpi) < 65_536 and format == "bmp":
        extra["dpi"] = meta.dpi
    if plays is not None:
        durations = [round(first.duration)]
        images = [_image(first)]
        for picture in pictures:
            durations.append(round(picture.duration))
            images.append(_image(picture))
        extra.update(save_all=True, append_images=images[1:], duration=durations, loop=plays)
        images[0].save(_Plain(stream), FORMATS[format], **extra)  # type: ignore[arg-type]
        return
    _image(first).save(_Plain(stream), FORMATS[format], **extra)  # type: ignore[arg-type]
    for _ in pictures:  # nothing is left, but the generator that counts notes has to end
        pass


def _pixels(picture: Picture) -> int:
    height, width = picture.pixels.shape[:2]
    return int(height * width)


def _image(picture: Picture) -> Image.Image:
    samples = picture.pixels if picture.alpha is None else np.dstack([picture.pixels, picture.alpha])
    return Image.fromarray(np.ascontiguousarray(samples[:, :, 0] if samples.shape[2] == 1 else samples))


class _Plain:
    """A stream without a file descriptor: Pillow writes to descriptors past Python, and loses the system's reason."""

    def __init__(self, stream: BinaryIO) -> None:
        self.write, self.flush, self.seek, self.tell = stream.write, stream.flush, stream.seek, stream.tell
        self.read = stream.read


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """A file that appears under its name only when it is complete; nothing is left behind on failure.

    What is no file (a device, a pipe) is written to, and links are followed.

    Raises:
        OutputError: the directory is missing or not writable, or the disk is full.
    """
    path = Path(os.path.realpath(path))
    if path.exists() and not path.is_file() and not path.is_dir():
        buffer = io.BytesIO()
        yield buffer
        try:
            with path.open("wb") as stream:
                stream.write(buffer.getbuffer())
        except OSError as error:
            raise OutputError(f"cannot write {path}: {describe(error)}") from error
        return
    part = path.with_name(f".{path.name[:180]}.{os.getpid()}-{threading.get_ident():x}.part")
    try:
        stream = part.open("wb")
    except OSError as error:
        raise OutputError(f"cannot write to {path.parent}: {describe(error)}") from error
    try:
        with stream:
            yield stream
        part.replace(path)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {describe(error)}") from error
    finally:
        part.unlink(missing_ok=True)
