"""Encoded files to upright pixels, by the one decoder that the first bytes name.

Whatever a decoder raises becomes `UnreadableImage`: these libraries raise a dozen kinds of exception on damaged files,
and all of them mean the same to the caller. This runs where it is called; `core.codecs.read` chooses where that is.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO

from core.codecs.base import Source, decoder_errors
from core.errors import TooLarge, UnreadableImage, describe
from core.formats import READABLE, sniff, unread
from core.limits import Limits
from core.picture import Picture, Probe, Scan


@contextmanager
def open_source(source: Source, limits: Limits) -> Iterator[tuple[Probe, Callable[[], Iterator[Picture | Scan]]]]:
    """Open a source lazily: the header is read, the pixels are not.

    Args:
        source: a path, the encoded bytes, or a binary file object (left open).
        limits: what to refuse.

    Yields:
        The header, and a function that decodes frame by frame, or page by page, to upright pixels.

    Raises:
        UnreadableImage: not an image in a format that we read, or damaged.
        TooLarge: over a limit.
    """
    with ExitStack() as stack:
        stream = _stream(source, limits, stack)
        try:
            size = stream.seek(0, os.SEEK_END)
            stream.seek(0)
            head = stream.read(1 << 12)
            stream.seek(0)
        except (OSError, ValueError) as error:
            raise UnreadableImage(f"cannot read the input: {describe(error)}") from error
        if size == 0:
            raise UnreadableImage(f"the input is empty: give a {READABLE} file")
        if size > limits.input_bytes:
            raise TooLarge(f"the input is over the limit of {limits.input_bytes:,} bytes")
        format = sniff(head)
        if format is None:
            raise UnreadableImage(unread(head))
        with decoder_errors():
            if format == "tiff":
                from core.codecs import tiff

                found, decode_pages = tiff.open_tiff(stream, size, limits)
            elif format == "heif":
                from core.codecs import heif

                found, decode_pages = heif.open_heif(stream, size, limits)
            else:
                from core.codecs import pillow

                found, decode_pages = pillow.open_image(stream, format, head, size, limits, stack)
        yield found, decode_pages


def _stream(source: Source, limits: Limits, stack: ExitStack) -> BinaryIO:
    """A seekable stream over any source; the stack closes what was opened here."""
    if isinstance(source, (bytes, bytearray, memoryview)):
        return io.BytesIO(source)
    try:
        if isinstance(source, (str, os.PathLike)):
            return stack.enter_context(Path(source).open("rb"))
        return source if source.seekable() else io.BytesIO(source.read(limits.input_bytes + 1))
    except (OSError, ValueError) as error:  # ValueError: a path with a zero byte
        raise UnreadableImage(f"cannot read the input: {describe(error)}") from error
