"""The front of all reading: a header, or upright pixels, decoded here or in the sandbox.

`probe` reads a header only, so that limits and estimates come before decoding. Nothing is lost on the way that this
package can carry.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Generator
from contextlib import closing
from pathlib import Path

from core.codecs.base import Source
from core.codecs.decode import open_source
from core.errors import UnreadableImage, describe
from core.formats import check_declared
from core.limits import Limits, check_held
from core.picture import Picture, Probe, Scan, held, scan_of


def probe(source: Source, limits: Limits | None = None, *, declared: str | None = None) -> Probe:
    """Read the header only.

    Args:
        source: a path, the encoded bytes, or a binary file object (left open and rewound).
        limits: what to refuse; the defaults of `Limits` when None.
        declared: the media type or file name that the file came with; refused when the content is something else.

    Raises:
        UnreadableImage: not an image in a format that we read, not the declared one, or its header is damaged.
        TooLarge: over a limit.
    """
    limits = limits or Limits()
    if limits.worker:
        from core.codecs import sandbox  # only where it is wanted: Windows has no such processes

        found = sandbox.probe(source, limits)
    else:
        with open_source(source, limits) as (found, _):
            pass
    if not isinstance(source, (str, os.PathLike, bytes, bytearray, memoryview)) and source.seekable():
        source.seek(0)
    check_declared(found.format, declared)
    return found


def scans(source: Source, limits: Limits | None = None) -> Generator[Picture | Scan]:
    """Decode frame by frame, or page by page, to upright pixels; a single picture is one page.

    A scan is read while the generator waits, before the next page is asked for.

    Args:
        source: a path, the encoded bytes, or a binary file object (left open).
        limits: what to refuse; the defaults of `Limits` when None.

    Yields:
        Scans of what can be decoded from top to bottom, pictures held whole of all else.

    Raises:
        UnreadableImage: not an image in a format that we read, or damaged.
        TooLarge: over a limit.
    """
    limits = limits or Limits()
    if limits.worker:
        from core.codecs import sandbox

        yield from sandbox.scans(source, limits)
        return
    with open_source(source, limits) as (_, decode_pages):
        yield from decode_pages()


def pages(source: Source, limits: Limits | None = None) -> Generator[Picture]:
    """`scans`, each held whole. Raises: TooLarge, also when it is more than memory may hold."""
    limits = limits or Limits()
    for picture in scans(source, limits):
        bands = scan_of(picture).bands
        check_held(bands.height * bands.width, limits)
        yield held(picture)


def decode(source: Source, limits: Limits | None = None) -> Picture:
    """The first frame or page of `pages`, or the only one."""
    with closing(pages(source, limits)) as found:
        return next(found)


def rewindable(source: Source, limits: Limits) -> Source:
    """The same source, read into memory when it is a pipe: a header and then the pixels will be read from it.

    Raises:
        UnreadableImage: the pipe cannot be opened.
    """
    if isinstance(source, (bytes, bytearray, memoryview)):
        return source
    if isinstance(source, (str, os.PathLike)):
        try:
            mode = Path(source).stat().st_mode
            if not (stat.S_ISFIFO(mode) or stat.S_ISCHR(mode) or stat.S_ISSOCK(mode)):
                return source
            with Path(source).open("rb") as stream:
                return stream.read(limits.input_bytes + 1)
        except FileNotFoundError:
            return source  # the decoder says so, in the same words as for all other inputs
        except (OSError, ValueError) as error:
            raise UnreadableImage(f"cannot read the input: {describe(error)}") from error
    return source if source.seekable() else source.read(limits.input_bytes + 1)
