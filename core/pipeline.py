"""The whole way of one picture: bytes, probe, decode, strips of tiles, encode, bytes."""

from __future__ import annotations

import hashlib
import io
import itertools
import math
import os
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from core import model_folder, models
from core.atomic import atomic_file
from core.codecs.base import Source
from core.codecs.encode import encode
from core.codecs.read import probe, rewindable, scans
from core.engine import allocator
from core.enlarge import Keep, enlarge
from core.errors import Cancelled, ModelError, TooLarge, UnreadableImage
from core.formats import MEDIA_TYPES, stored_bytes, suffix_format
from core.kept import Keeping, KeptBands, kept_bands, key_of, room_for_bands
from core.limits import Limits, check_output_size, check_room
from core.metadata.carried import for_result
from core.options import MAX_SCALE, Options, Progress, Result
from core.picture import Picture, Probe, Scan, description, frames_kept, held, scan_of
from core.pixels.bands import Bands, Samples, ahead

if TYPE_CHECKING:
    from core.engine.load import Loaded

_ENDS = 1 << 20  # bytes of a file that tell it from another
_COMPARED_PIXELS = 1 << 22  # of a page that is compared with the one before


def upscale(
    source: Source,
    options: Options | None = None,
    *,
    output: str | os.PathLike[str] | None = None,
    limits: Limits | None = None,
    progress: Progress | None = None,
    declared: str | None = None,
    keeping: Keeping | None = None,
) -> Result:
    """Upscale one picture, animation or document of several pages.

    Args:
        source: a path, the encoded bytes, or a binary file object.
        options: what to make; twice as large with the default model when None.
        output: where to write; it appears there only when complete. None returns the bytes in `Result.data`.
        limits: what to refuse; the defaults of `Limits` when None.
        progress: called with tiles done and tiles in all; raise `Cancelled` in it to stop between two tiles.
        declared: the media type or file name that the picture came with, if it shall be held to that.
        keeping: where the finished bands of a long run are kept; None for a folder beside `output`.

    Raises:
        UpscaleError: one of the tree in `core.errors`; nothing is left at `output` then.
    """
    options, limits = model_folder.fit_scale(options or Options()), limits or Limits()
    source = rewindable(source, limits)
    if output is None:  # the result is held
        limits = replace(limits, output_pixels=min(limits.output_pixels, 4 * limits.held_pixels))
    header = probe(source, limits, declared=declared)
    named = None if output is None else suffix_format(Path(output).suffix)
    format = options.format or named or header.result_format
    _check_size(header, options, format, limits, None if output is None else Path(output).parent)
    try:
        if output is None:
            buffer = io.BytesIO()
            result = _run(source, header, options, limits, progress, buffer, format)
            return replace(result, data=buffer.getvalue())
        # Opened before the work: an unwritable place is reported at once. Kept bands go once the file is complete.
        with ExitStack() as stack, atomic_file(Path(output)) as stream:
            target, notes = Path(output), list[str]()

            def beside(facts: tuple[object, ...], machine: tuple[object, ...], _count: int) -> KeptBands | None:
                key = key_of(*_identity(source), header, facts, machine)
                pixels = _pixels_at_most(header, options, 1)
                held = pixels * (4 if header.alpha else 3) * (2 if header.bits > 8 else 1)  # they hardly compress
                room = room_for_bands(target, _stored_bytes(header, options, format, pixels), held)
                if not room:
                    notes.append("finished bands were not kept: the disk has no room for them beside the result")
                return stack.enter_context(kept_bands(target, key, room))

            keep = Keep(beside) if keeping is None else _kept_elsewhere(keeping, header)
            result = _run(source, header, options, limits, progress, stream, format, keep)
            return replace(result, notes=result.notes + tuple(notes))
    finally:
        allocator.give_back()


def upscale_part(
    source: Source,
    options: Options,
    keeping: Keeping,
    part: tuple[int, int],
    *,
    folder: Path,
    limits: Limits | None = None,
    progress: Progress | None = None,
) -> None:
    """Make some of the bands of a picture, and keep them for an `upscale` with the same `keeping` to put together.

    Nothing is made of what is not worth it: animations, pages, small work, or where no network runs. That is left to
    that `upscale`, as is what is damaged.

    Args:
        source: as for `upscale`.
        options: as for `upscale`.
        keeping: where bands are kept; those that are there are not made again.
        part: (which, of how many): counted from 0, cut into equal numbers of bands.
        folder: of a disk as large as that on which the result will be written: where it does not fit, nothing is made.
        limits: as for `upscale`.
        progress: as for `upscale`; counts the tiles of the whole picture.

    Raises:
        UpscaleError: as `upscale`.
    """
    options, limits = model_folder.fit_scale(options), limits or Limits()
    header = probe(source, limits)
    format = options.format or header.result_format
    _check_size(header, options, format, limits, folder)
    if frames_kept(format, header) > 1:
        return
    try:
        keep = replace(_kept_elsewhere(keeping, header), part=part)
        loaded = _load(header, options)
        for picture in _upscaled(source, format, options, limits, loaded, _Counter(progress, 1), keep):
            for _ in scan_of(picture).bands:
                pass
    finally:
        allocator.give_back()


def _kept_elsewhere(keeping: Keeping, header: Probe) -> Keep:
    def opened(facts: tuple[object, ...], machine: tuple[object, ...], count: int) -> KeptBands:
        made_by = () if keeping.anywhere else machine
        return KeptBands(keeping.open(key_of(keeping.version, header, facts, made_by), count))

    return Keep(opened)


def _check_size(header: Probe, options: Options, format: str, limits: Limits, folder: Path | None) -> None:
    """Whether the result is allowed, and has room in the folder that it is written to, None for nowhere."""
    width, height = options.output_size(header.width, header.height)
    frames = frames_kept(format, header)
    check_output_size(format, width, height, limits, frames)
    if folder is not None:
        pixels = _pixels_at_most(header, options, frames)
        check_room(folder, _stored_bytes(header, options, format, pixels))


def _stored_bytes(header: Probe, options: Options, format: str, pixels: int) -> int:
    return stored_bytes(format, pixels, alpha=header.alpha, bits=header.bits, pyramid=options.pyramid)


@dataclass
class _Counter:
    """Progress over all frames: those to come are taken to be as large as the one in work.

    Attributes:
        progress: the caller's.
        frames: that will be made.
        shown: frames that are done.
        finished: tiles of these.
        tiles: of these and of the one in work.
    """

    progress: Progress | None
    frames: int
    shown: int = 0
    finished: int = 0
    tiles: int = 0

    def count(self, done: int, total: int) -> None:
        """Report that `done` of `total` tiles of the frame in work are done."""
        self.tiles = self.finished + total
        if self.progress:
            self.progress(self.finished + done, self.finished + total * (self.frames - self.shown))

    def end_frame(self) -> None:
        """The frame in work is done."""
        self.finished, self.shown = self.tiles, self.shown + 1


def _run(
    source: Source,
    header: Probe,
    options: Options,
    limits: Limits,
    progress: Progress | None,
    stream: BinaryIO,
    format: str,
    keep: Keep | None = None,
) -> Result:
    loaded = _load(header, options)
    start = time.perf_counter()
    counter = _Counter(progress, frames_kept(format, header))
    # What was noted while it was loaded for this picture belongs to it.
    noted = len(loaded.model.notes) if loaded.model and not loaded.seconds else 0
    width, height = options.output_size(header.width, header.height)
    pixels = _pixels_at_most(header, options, counter.frames)
    keep = None if counter.frames > 1 else keep
    pictures = _upscaled(source, format, options, limits, loaded, counter, keep)
    notes = encode(pictures, stream, format, options.quality, source=header, pixels=pixels, pyramid=options.pyramid)
    return Result(
        data=None,
        format=format,
        media_type=MEDIA_TYPES[format],
        width=width,
        height=height,
        model=loaded.name,
        degraded=loaded.degraded,
        reason=loaded.reason,
        device=loaded.model.device if loaded.model else "cpu",
        dtype=loaded.model.dtype if loaded.model else "float32",
        tiles=counter.tiles,
        seconds=time.perf_counter() - start,
        load_seconds=loaded.seconds,
        notes=notes + (tuple(loaded.model.notes[noted:]) if loaded.model else ()),
        frames=counter.frames,
    )


def _load(header: Probe, options: Options) -> Loaded:
    from core.engine import load  # here, so that importing core stays cheap

    device = load.pick_device(options.device)
    chain = models.fallback_chain(options.model, options.factor(header.width, header.height), header.format)
    loaded = load.load_first(chain, device)
    if loaded.model is None and options.scale == 1:
        raise ModelError(f"{loaded.reason}; nothing else restores without enlarging")
    return _precise(loaded) if header.bits > 8 else loaded


def _upscaled(
    source: Source,
    format: str,
    options: Options,
    limits: Limits,
    loaded: Loaded,
    counter: _Counter,
    keep: Keep | None,
) -> Iterator[Picture | Scan]:
    """Yield each frame or page, which is upscaled while the encoder goes through its bands."""
    before: tuple[Picture, Picture] | None = None
    made = 0  # pixels; pages may differ in size, so that the first one's does not say it all
    with closing(scans(source, limits)) as decoded:
        for picture in itertools.islice(decoded, counter.frames):
            if counter.frames > 1 and _is_small(picture):
                picture = held(picture)  # to see whether the next one is the same: animations hold still frames
            bands = scan_of(picture).bands
            size = bands.width, bands.height
            out_size = options.output_size(*size)
            check_output_size(format, *out_size, limits)
            made += out_size[0] * out_size[1]
            if made > limits.output_pixels:
                raise TooLarge(f"the pages would have more than {limits.output_pixels / 1e6:,.6g} megapixels together")
            meta, notes = for_result(
                picture.meta,
                size,
                out_size,
                strip=options.strip,
                drop_gps=options.drop_gps,
                keep_size=options.keep_size,
            )
            result: Picture | Scan = Scan(
                bands=_enlarged(bands, *out_size, options, loaded, counter.count, keep),
                **description(replace(picture, meta=meta, notes=picture.notes + notes)),
            )
            if counter.frames > 1 and isinstance(picture, Picture):
                if before is not None and _same_pixels(before[0], picture):
                    result = replace(held(picture), **description(result))
                    result = replace(result, pixels=before[1].pixels, alpha=before[1].alpha)
                else:
                    result = held(result)
                before = picture, result
            yield result
            counter.end_frame()
    if counter.shown < counter.frames:
        raise UnreadableImage("the picture is damaged: it ends before its last frame")


def _is_small(picture: Picture | Scan) -> bool:
    """True when two such pages, and their results, may be held to be compared."""
    bands = scan_of(picture).bands
    return bands.height * bands.width <= _COMPARED_PIXELS


def _pixels_at_most(header: Probe, options: Options, frames: int) -> int:
    """Of the whole result; pages may differ in size."""
    width, height = options.output_size(header.width, header.height)
    if frames == 1 or not header.pixels:
        return width * height * frames
    exact = options.width is not None or options.height is not None
    factor = MAX_SCALE**2 if exact else width * height / (header.width * header.height)
    return math.ceil(header.pixels * factor)


def _precise(loaded: Loaded) -> Loaded:
    """The same model in fp32: bf16 has eight bits for a number, and a deep picture has more."""
    from core.engine import load

    if loaded.model is None or loaded.model.dtype == "float32":
        return loaded
    model, seconds = load.load(loaded.name, loaded.model.device, "float32")
    return replace(loaded, model=model, seconds=loaded.seconds + seconds)


def _same_pixels(one: Picture, other: Picture) -> bool:
    """True when the result of one can be taken for the other: animations hold still frames."""
    if one.pixels.dtype != other.pixels.dtype:
        return False
    if one.alpha is None or other.alpha is None:
        return one.alpha is other.alpha and np.array_equal(one.pixels, other.pixels)
    return np.array_equal(one.pixels, other.pixels) and np.array_equal(one.alpha, other.alpha)


def _enlarged(
    bands: Bands,
    out_width: int,
    out_height: int,
    options: Options,
    loaded: Loaded,
    progress: Progress,
    keep: Keep | None,
) -> Bands:
    """A picture's bands, enlarged each time that they are read."""

    def read() -> Iterator[Samples]:
        stopped = threading.Event()

        def count(done: int, total: int) -> None:
            if stopped.is_set():
                raise Cancelled("stopped")
            progress(done, total)

        found = enlarge(bands, out_width, out_height, options, loaded.model, count, keep)
        # The network, or Lanczos, computes the next band while the one before is encoded.
        return ahead(found, stopped)

    return replace(bands, width=out_width, height=out_height, read=read, read_from=None)


def _identity(source: Source) -> tuple[object, ...]:
    """What tells a source from one that was changed since: all of its bytes, or of a file its time and ends."""
    if isinstance(source, (bytes, bytearray, memoryview)):
        return (hashlib.sha256(source).hexdigest(),)
    if isinstance(source, (str, os.PathLike)):
        known = Path(source).stat()
        with Path(source).open("rb") as file:
            ends = file.read(_ENDS)
            file.seek(max(0, known.st_size - _ENDS))
            ends += file.read(_ENDS)
        return known.st_size, known.st_mtime_ns, hashlib.sha256(ends).hexdigest()
    source.seek(0)
    digest = hashlib.sha256()
    while piece := source.read(_ENDS):
        digest.update(piece)
    source.seek(0)
    return (digest.hexdigest(),)
