"""The whole way of one picture: bytes, probe, decode, strips of tiles, encode, bytes."""

from __future__ import annotations

import io
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
from PIL import Image

from core import image, models
from core.image import Pixels, Source
from core.options import Limits, Options, Result
from core.resize import Rows, resize_rows

if TYPE_CHECKING:
    from core.engine import Loaded

Progress = Callable[[int, int], None]

_LANCZOS_ROWS = 256  # input rows at a time where no network cuts the picture into strips


def upscale(
    source: Source,
    options: Options | None = None,
    *,
    output: str | os.PathLike[str] | None = None,
    limits: Limits | None = None,
    progress: Progress | None = None,
) -> Result:
    """Upscale one picture.

    Args:
        source: a path, the encoded bytes, or a binary file object.
        options: what to make; twice as large with the default model when None.
        output: where to write; it appears there only when complete. None returns the bytes in `Result.data`.
        limits: what to refuse; the defaults of `Limits` when None.
        progress: called with tiles done and tiles in all; raise `Cancelled` in it to stop between two tiles.

    Raises:
        UpscaleError: one of the tree in `core.errors`; nothing is left at `output` then.
    """
    options, limits = options or Options(), limits or Limits()
    header = image.probe(source, limits)
    width, height = options.output_size(header.width, header.height)
    format = options.format or _format_of_name(output) or header.format
    image.check_output_size(format, width, height, limits)
    if output is None:
        buffer = io.BytesIO()
        result = _run(source, options, limits, progress, buffer, format)
        return replace(result, data=buffer.getvalue())
    with image.atomic_file(Path(output)) as stream:  # opened before the work: an unwritable place is told at once
        return _run(source, options, limits, progress, stream, format)


def _format_of_name(output: str | os.PathLike[str] | None) -> str | None:
    return None if output is None else image.suffix_format(Path(output).suffix)


def _run(
    source: Source,
    options: Options,
    limits: Limits,
    progress: Progress | None,
    stream: BinaryIO,
    format: str,
) -> Result:
    from core import engine  # torch is imported here, once a picture has been found to be one

    device = engine.pick_device(options.device)
    loaded = engine.load_first(models.fallback_chain(options.model), device)
    start = time.perf_counter()
    picture = image.decode(source, limits)
    height, width = picture.pixels.shape[:2]
    out_width, out_height = options.output_size(width, height)
    tiles = 0

    def count(done: int, total: int) -> None:
        nonlocal tiles
        tiles = total
        if progress:
            progress(done, total)

    noted = len(loaded.model.notes) if loaded.model else 0
    pixels = _upscale_pixels(picture.pixels, out_height, out_width, options, loaded, count)
    alpha = None if picture.alpha is None else _upscale_alpha(picture.alpha, out_height, out_width)
    notes = image.encode(replace(picture, pixels=pixels, alpha=alpha), stream, format, options.quality)
    return Result(
        data=None,
        format=format,
        media_type=image.MEDIA_TYPES[format],
        width=out_width,
        height=out_height,
        model=loaded.name,
        degraded=loaded.degraded,
        reason=loaded.reason,
        device=str(loaded.model.device if loaded.model else "cpu"),
        dtype=str(loaded.model.dtype).removeprefix("torch.") if loaded.model else "float32",
        tiles=tiles,
        seconds=time.perf_counter() - start,
        load_seconds=loaded.seconds,
        notes=notes + (tuple(loaded.model.notes[noted:]) if loaded.model else ()),
    )


def _upscale_pixels(
    pixels: Pixels, out_height: int, out_width: int, options: Options, loaded: Loaded, progress: Progress
) -> Pixels:
    """(h, w, 1 or 3) to (out_height, out_width, 1 or 3); one strip in float is held beside the two pictures."""
    from core import engine

    height, width, channels = pixels.shape
    strips: Iterator[Rows]
    if loaded.model is None:
        strips, tall, wide = _lanczos_strips(pixels, progress), height, width
    else:
        wanted = max(out_height / height, out_width / width)
        job = models.make_job(loaded.model.spec, wanted, exact=options.exact, tile=options.tile, halo=options.halo)
        strips = engine.upscale_strips(loaded.model, pixels, job, progress)
        tall, wide = height * job.scale, width * job.scale
    if channels == 1:
        strips = (strip.mean(axis=2, keepdims=True) for strip in strips)
    if (tall, wide) != (out_height, out_width):
        strips = resize_rows(strips, tall, wide, out_height, out_width)
    out = np.empty((out_height, out_width, channels), pixels.dtype)
    top, row = float(np.iinfo(pixels.dtype).max), 0
    for strip in strips:
        strip *= top
        out[row : row + len(strip)] = np.clip(np.rint(strip, out=strip), 0, top, out=strip)
        row += len(strip)
    return out


def _lanczos_strips(pixels: Pixels, progress: Progress) -> Iterator[Rows]:
    height, top = len(pixels), float(np.iinfo(pixels.dtype).max)
    total = -(-height // _LANCZOS_ROWS)
    for index in range(total):
        rows = pixels[index * _LANCZOS_ROWS : (index + 1) * _LANCZOS_ROWS]
        yield np.divide(rows, top, dtype=np.float32)
        progress(index + 1, total)


def _upscale_alpha(alpha: Pixels, out_height: int, out_width: int) -> Pixels:
    """(h, w) to (out_height, out_width); opaque stays opaque to the bit."""
    resized = Image.fromarray(alpha).resize((out_width, out_height), Image.Resampling.LANCZOS)
    return np.asarray(resized)
