"""Pictures to encoded files: what each format can carry, and a note for each thing that it cannot.

Where no quality is asked for, the input decides: a JPEG keeps its quality (at least 85, so that a second lossy step
costs little) and its subsampling; what was stored without loss stays without loss where the format can do that (WebP
up to 20 megapixels); the rest gets 95 with full colour resolution.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any, BinaryIO

import numpy as np

from core.codecs import bmp, jpeg, pillow, png, tiff_write, webp
from core.codecs.base import USUAL_QUALITY
from core.errors import OutputError, describe
from core.metadata import geo
from core.metadata.carried import Metadata, comment_of, exif_with_resolution
from core.picture import Picture, Probe, Scan, frames_kept, scan_of
from core.pixels import colour
from core.pixels.alpha import over_white
from core.pixels.bands import Bands, Samples

_DEEP = frozenset({"png", "tiff"})


def encode(
    pictures: Iterable[Picture | Scan],
    stream: BinaryIO,
    format: str,
    quality: int | None = None,
    *,
    source: Probe | None = None,
    pixels: int = 0,
    pyramid: bool = False,
) -> tuple[str, ...]:
    """Write a picture, an animation or pages; returns one line for each thing that the format could not carry.

    Args:
        pictures: one for each frame or page that is kept (see `frames_kept`).
        stream: open for writing, binary; for TIFF also seekable.
        format: one of `FORMATS`.
        quality: 1 to 100 for JPEG, WebP and AVIF; None chooses.
        source: what was read, when there is more to it than one picture.
        pixels: that all of them together have at most, for TIFF, which has two kinds of file.
        pyramid: with smaller copies for viewers, in TIFF.

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

    def fitting() -> Iterator[Scan]:
        for picture in pictures:
            fits, said, later = _fit(scan_of(picture), format, quality)
            notes.update(dict.fromkeys(picture.notes + said))
            yield fits
            notes.update(dict.fromkeys(later))  # what only its pixels could say

    try:
        if format == "png":
            png.write(stream, fitting(), frames, plays)
        elif format == "tiff":
            said = tiff_write.write(stream, fitting(), pixels, pyramid=pyramid, pages=frames)
            notes.update(dict.fromkeys(said))
        elif format == "jpeg":
            for scan in fitting():  # one
                jpeg.write(stream, scan, quality)
        elif format == "bmp":
            for scan in fitting():  # one
                bmp.write(stream, scan)
        else:
            pillow.write(stream, fitting(), format, quality, plays)
    except OSError as error:
        raise OutputError(f"cannot write the result: {describe(error)}") from error
    return tuple(notes)


def _fit(scan: Scan, format: str, quality: int | None) -> tuple[Scan, tuple[str, ...], list[str]]:
    """The nearest that a format can hold, notes, and notes that are known once its bands were read."""
    notes: list[str] = []
    later: list[str] = []
    bands, meta = scan.bands, scan.meta
    steps: list[Callable[[Samples], Samples]] = []
    if bands.alpha and format in ("jpeg", "bmp"):
        steps.append(_on_white(format, later))
        bands = replace(bands, alpha=False)
    if scan.levels is not None and format != "tiff":
        low, high = scan.levels.low, scan.levels.high
        if scan.levels.nodata is not None:
            notes.append("what has no data became transparent: only tiff has a number for it")
        if (low, high) not in ((0.0, 1.0), (0.0, float(np.iinfo(bands.dtype).max))):
            notes.append(f"numbers from {low:g} to {high:g} became black to white: only tiff holds them as they are")
    if bands.dtype == np.uint16 and format not in _DEEP:
        steps.append(_eight_bits)
        bands = replace(bands, dtype=np.dtype(np.uint8))
        notes.append(f"{format} is written with 8 bits: choose png or tiff to keep 16")
    # WebP and AVIF store grey as colour; a grey profile does not fit that.
    grey = bands.channels == 1
    widened = grey and format in ("webp", "avif")
    if meta.icc is not None and (format == "bmp" or (widened and colour.space_of(meta.icc) == "GRAY")):
        try:
            colour.to_srgb(np.zeros((1, 1, bands.channels), bands.dtype), meta.icc)
            steps.append(_in_srgb(meta.icc, grey and not widened, bands.channels))
            notes.append(f"{format} cannot carry the colour profile: colours were converted to sRGB")
            bands = replace(bands, channels=1 if grey and not widened else 3)
        except ValueError:
            notes.append(f"{format} cannot carry the colour profile, which could not be applied: it was left out")
        meta = replace(meta, icc=None)
    # libpng takes no RGB profile for greys, so they become colours.
    coloured = format == "png" and meta.icc is not None and colour.space_of(meta.icc) == "RGB"
    if (widened or coloured) and bands.channels == 1:
        steps.append(lambda band: np.concatenate([np.repeat(band[:, :, :1], 3, axis=2), band[:, :, 1:]], axis=2))
        bands = replace(bands, channels=3)
    if format == "webp" and quality is None and scan.lossless and not webp.lossless_fits(bands.height, bands.width):
        size = f"{webp.MAX_LOSSLESS_PIXELS / 1e6:g} megapixels"
        notes.append(f"over {size}, webp is written with quality {USUAL_QUALITY}: choose png to lose nothing")
    meta, lost = _fit_metadata(meta, format)
    if lost:
        notes.append(f"{format} has no place for {', '.join(lost)}")
    if steps:
        bands = replace(bands, read=_through(scan.bands, steps))
    return replace(scan, bands=bands, meta=meta), tuple(notes), later


def _through(bands: Bands, steps: list[Callable[[Samples], Samples]]) -> Callable[[], Iterator[Samples]]:
    """Bands after some steps, each of which works on any rows."""

    def read() -> Iterator[Samples]:
        for band in bands:
            for step in steps:
                band = step(band)
            yield band

    return read


def _on_white(format: str, later: list[str]) -> Callable[[Samples], Samples]:
    note = f"{format} has no transparency: the picture was put on white"

    def step(band: Samples) -> Samples:
        if (band[:, :, -1] == np.iinfo(band.dtype).max).all():
            return band[:, :, :-1]
        if note not in later:
            later.append(note)
        return over_white(band)

    return step


def _in_srgb(icc: bytes, one_channel: bool, channels: int) -> Callable[[Samples], Samples]:
    def step(band: Samples) -> Samples:
        converted = colour.to_srgb(band[:, :, :channels], icc)
        if one_channel:
            converted = converted[:, :, 1:2]
        return converted if band.shape[2] == channels else np.dstack([converted, band[:, :, -1]])

    return step


def _eight_bits(values: Samples) -> Samples:
    return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)


def _fit_metadata(meta: Metadata, format: str) -> tuple[Metadata, list[str]]:
    """What of the metadata a format has a place for, and the names of what it has none for."""
    lost = []
    changes: dict[str, Any] = {}

    def drop(name: str, value: object, called: str) -> None:
        if value:
            lost.append(called)
            changes[name] = None if name != "text" else ()

    if format != "tiff" and meta.tiff is not None:
        drop("tiff", meta.tiff, geo.name_of(meta.tiff))
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
        comment = comment_of(meta)
        if any(value != comment for _, value in meta.text):
            lost.append("texts other than a comment")
        if format == "jpeg" and comment is not None and len(comment.encode()) > 65_000:
            drop("text", meta.text, "a comment of more than 64 kB")
    if format in ("webp", "avif"):
        changes["exif"] = exif_with_resolution(meta)
    return replace(meta, **changes), lost
