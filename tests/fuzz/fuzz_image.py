"""Coverage-guided fuzzing of everything that touches a stranger's file: probe, decode, metadata, encode.

    python -m tests.fuzz.fuzz_image CORPUS_FOLDER -max_total_time=600

The folder is filled with the seeds of tests/unit/hostile.py when it is empty; what libFuzzer finds worth keeping is
added to it. A file that raises anything but an input error stops the run and is written beside it (crash-...).
Python code is instrumented (ours, Pillow's, tifffile's); the C libraries are run, but not instrumented.
"""

from __future__ import annotations

import io
import random
import struct
import sys
from dataclasses import replace
from pathlib import Path

import atheris  # type: ignore[import-untyped]

with atheris.instrument_imports(include=["core", "PIL", "tifffile"]):
    from PIL import (  # noqa: F401
        AvifImagePlugin,
        BmpImagePlugin,
        GifImagePlugin,
        JpegImagePlugin,
        PngImagePlugin,
        TiffImagePlugin,
        WebPImagePlugin,
    )

    # Whatever is imported before is not seen by the fuzzer.
    import core
    from core.codecs import bmp, gif, heif, isobmff, jpeg, pillow, png, streams, tiff, webp  # noqa: F401
    from core.codecs.encode import encode
    from core.codecs.read import pages
    from core.formats import MAX_SIDE, sniff
    from core.metadata.carried import for_result
    from core.picture import frames_kept


from tests.unit import hostile

LIMITS = core.Limits(input_bytes=200_000, input_pixels=250_000, output_pixels=1_000_000, frames=20)
_FORMATS = ("png", "tiff", "jpeg", "bmp", "webp")  # AVIF takes too long to write
_NAMES = {"jpeg", "png", "webp", "tiff", "bmp", "gif", "avif", "heif"}


def one_file(data: bytes) -> None:
    """Read a file, and write what was read: every way but the network."""
    try:
        header = core.probe(data, LIMITS)
        pictures = []
        for picture in pages(data, LIMITS):
            size = (picture.pixels.shape[1], picture.pixels.shape[0])
            meta, _ = for_result(
                picture.meta,
                size,
                (2 * size[0], 2 * size[1]),
                drop_gps=len(data) % 2 == 0,
                keep_size=len(data) % 3 == 0,
            )
            pictures.append(replace(picture, meta=meta))
        format = _FORMATS[len(data) % len(_FORMATS)]
        if format == "webp" and max(header.width, header.height) > MAX_SIDE["webp"]:
            return
        kept = frames_kept(format, header)
        encode(pictures[:kept], io.BytesIO(), format, source=header)
    except core.InputError:
        pass


def mutated(data: bytes, max_size: int, seed: int) -> bytes:
    """Half of the time a change of the format's own parts, else one of libFuzzer's."""
    name = sniff(data)
    if name in _NAMES and seed % 2:
        try:
            return hostile.rearranged(name, data, random.Random(seed))[:max_size]
        except (ValueError, IndexError, struct.error):
            pass  # too broken to be taken apart
    return bytes(atheris.Mutate(data, max_size))


def main() -> None:
    """Run libFuzzer with its own arguments."""
    folders = [Path(argument) for argument in sys.argv[1:] if not argument.startswith("-")]
    if folders:
        folders[0].mkdir(parents=True, exist_ok=True)
        if not any(folders[0].iterdir()):
            for name, data in hostile.seeds().items():
                (folders[0] / name).write_bytes(data)
    atheris.Setup(sys.argv, one_file, custom_mutator=mutated)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
