"""Encoded files to upright pixels, losing nothing on the way that this package can carry.

`probe` reads a header only, so that limits and estimates come before decoding. A file is opened only by the one decoder
that its first bytes name, and only if that is on the list here. Whatever a decoder raises becomes `UnreadableImage`:
these libraries raise a dozen kinds of exception on damaged files, and all of them mean the same to the caller.

What a file holds beside the pixels is in `core.metadata`, colours are in `core.pixels.colour`, TIFF, HEIF and 16-bit
PNG in separate modules, and the way back to a file is `core.codecs.encode`.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from core.errors import OptionsError, TooLarge, UnreadableImage
from core.metadata.carried import Metadata
from core.options import FORMATS, Limits

#: uint8 or uint16.
Pixels = npt.NDArray[Any]
Source = str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryIO

#: What is read, with Pillow's name; HEIF is read by a library of its own.
READ_FORMATS = {**FORMATS, "gif": "GIF", "heif": "HEIF"}
MEDIA_TYPES = {
    "jpeg": "image/jpeg",
    "png": "image/png",
    "webp": "image/webp",
    "tiff": "image/tiff",
    "bmp": "image/bmp",
    "avif": "image/avif",
    "gif": "image/gif",
    "heif": "image/heif",
}
SUFFIXES = {
    "jpeg": ".jpg",
    "png": ".png",
    "webp": ".webp",
    "tiff": ".tif",
    "bmp": ".bmp",
    "avif": ".avif",
    "gif": ".gif",
    "heif": ".heic",
}
_BY_SUFFIX = {
    **{suffix: name for name, suffix in SUFFIXES.items()},
    **dict.fromkeys((".jpeg", ".jpe", ".jfif"), "jpeg"),
    **dict.fromkeys((".tiff",), "tiff"),
    **dict.fromkeys((".heif", ".hif"), "heif"),
    **dict.fromkeys((".apng",), "png"),
    **dict.fromkeys((".dib",), "bmp"),
}
#: Endings of files that can be read.
READ_SUFFIXES = frozenset(_BY_SUFFIX)
_BY_MEDIA_TYPE = {
    **{media_type: name for name, media_type in MEDIA_TYPES.items()},
    **dict.fromkeys(("image/jpg", "image/pjpeg"), "jpeg"),
    **dict.fromkeys(("image/apng", "image/x-png", "image/vnd.mozilla.apng"), "png"),
    **dict.fromkeys(("image/tif", "image/x-tiff"), "tiff"),
    **dict.fromkeys(("image/x-ms-bmp", "image/x-bmp"), "bmp"),
    **dict.fromkeys(("image/avif-sequence",), "avif"),
    **dict.fromkeys(("image/heic", "image/heic-sequence", "image/heif-sequence"), "heif"),
}
#: Longest side that a format can hold, in pixels.
MAX_SIDE = {"jpeg": 65_535, "webp": 16_383, "avif": 32_768}
#: A BMP states its size in 32 bits; three bytes a pixel.
MAX_BMP_PIXELS = 0xFFFF_0000 // 3
#: For messages.
READABLE = "JPEG, PNG, WebP, TIFF, BMP, GIF, HEIC or AVIF"


def suffix_format(suffix: str) -> str | None:
    """The output format that a file name's suffix stands for, or None: ".jpg" is "jpeg"."""
    name = _BY_SUFFIX.get(suffix.lower())
    return name if name in FORMATS else None


@dataclass(frozen=True)
class Probe:
    """What a header says.

    Attributes:
        format: one of `READ_FORMATS`.
        width: pixels, orientation applied.
        height: pixels, orientation applied.
        bytes: size of the encoded file.
        mode: Pillow's name of the pixel layout, or a similar one; for people.
        frames: of an animation, or pages.
        plays: how often an animation is played; 0 for ever, None when it is no animation.
        alpha: True when there may be transparency.
        bits: of the deepest channel; more than 8 become 16-bit pixels.
        pixels: of all frames or pages together; 0 stands for frames of this size.
    """

    format: str
    width: int
    height: int
    bytes: int
    mode: str
    frames: int = 1
    plays: int | None = None
    alpha: bool = False
    bits: int = 8
    pixels: int = 0

    @property
    def result_format(self) -> str:
        """One of `FORMATS`: what a result is stored as unless something else was asked for.

        The input's own format, where that can be written. A GIF becomes a PNG, an animated one a WebP, neither of
        which needs a palette; a HEIF becomes a JPEG, or a PNG when it is transparent.
        """
        if self.format == "gif":
            return "png" if self.plays is None else "webp"
        if self.format == "heif":
            return "png" if self.alpha else "jpeg"
        return self.format


@dataclass(frozen=True)
class Levels:
    """How pixels of 0 to 65,535 stand for a TIFF's numbers of another type.

    Attributes:
        dtype: of the numbers in the file, as numpy calls it.
        low: the number for 0.
        high: the number for 65,535.
    """

    dtype: str
    low: float
    high: float


@dataclass(frozen=True)
class Picture:
    """A decoded picture, frame or page, upright.

    Attributes:
        pixels: (height, width, channels), uint8 or uint16, one channel for greyscale, three for colour.
        alpha: (height, width) of the same type, or None when there is no transparency.
        meta: what comes with it. Of an animation, the first frame has it all, the others only the profile.
        duration: milliseconds that the frame is shown.
        levels: for a TIFF of floats or wide integers, what the pixels stand for.
        lossless: True when the file holds the exact pixels.
        quality: of a JPEG, 1 to 100, estimated from its tables; else None.
        subsampling: of a JPEG, such as "4:2:0"; else None.
        notes: one line for each thing that was changed or left out.
    """

    pixels: Pixels
    alpha: Pixels | None = None
    meta: Metadata = field(default_factory=Metadata)
    duration: float = 0.0
    levels: Levels | None = None
    lossless: bool = True
    quality: int | None = None
    subsampling: str | None = None
    notes: tuple[str, ...] = ()


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
        from core.codecs.sandbox import probe as probe_elsewhere

        found = probe_elsewhere(source, limits)
    else:
        with _opened(source, limits) as (found, _):
            pass
    if not isinstance(source, (str, os.PathLike, bytes, bytearray, memoryview)) and source.seekable():
        source.seek(0)
    check_declared(found.format, declared)
    return found


def pages(source: Source, limits: Limits | None = None) -> Generator[Picture]:
    """Decode frame by frame, or page by page, to upright pixels; a single picture is one page.

    Args:
        source: a path, the encoded bytes, or a binary file object (left open).
        limits: what to refuse; the defaults of `Limits` when None.

    Raises:
        UnreadableImage: not an image in a format that we read, or damaged.
        TooLarge: over a limit.
    """
    limits = limits or Limits()
    if limits.worker:
        from core.codecs.sandbox import pages as pages_elsewhere

        yield from pages_elsewhere(source, limits)
        return
    with _opened(source, limits) as (_, decode_pages):
        yield from decode_pages()


def decode(source: Source, limits: Limits | None = None) -> Picture:
    """The first frame or page of `pages`, or the only one."""
    with closing(pages(source, limits)) as found:
        return next(found)


def rewindable(source: Source, limits: Limits) -> Source:
    """The same source, read into memory when it is a pipe: a header and then the pixels will be read from it."""
    if isinstance(source, (str, os.PathLike, bytes, bytearray, memoryview)) or source.seekable():
        return source
    return source.read(limits.input_bytes + 1)


def check_declared(format: str, declared: str | None) -> None:
    """Refuse a file that is not what it came as.

    Args:
        format: what it is, one of `READ_FORMATS`.
        declared: a media type ("image/png"; parameters are ignored), a file name, or None. Types and endings that
            say nothing ("application/octet-stream", "photo") are not held against the file.

    Raises:
        UnreadableImage: they disagree.
    """
    if not declared:
        return
    name = declared.split(";")[0].strip().lower()
    said = _BY_MEDIA_TYPE.get(name) or _BY_SUFFIX.get(Path(name).suffix)
    # AVIF is stored in HEIF, and some call it so.
    if said is not None and said != format and {said, format} != {"heif", "avif"}:
        raise UnreadableImage(f"declared as {said}, but the content is {format}: give the true type")


@contextmanager
def _opened(source: Source, limits: Limits) -> Iterator[tuple[Probe, Callable[[], Iterator[Picture]]]]:
    """Open a source lazily: the header is read, the pixels are not. Gives the header and a function to decode."""
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
            raise UnreadableImage(f"not a picture that can be read: give {READABLE}")
        with decoder_errors():
            if format == "tiff":
                from core.codecs import tiff

                found, decode_pages = tiff.opened(stream, size, limits)
            elif format == "heif":
                from core.codecs import heif

                found, decode_pages = heif.opened(stream, size, limits)
            else:
                from core.codecs import pillow

                found, decode_pages = pillow.opened(stream, format, head, size, limits, stack)
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


def sniff(head: bytes) -> str | None:
    """The format that a file's first bytes name, one of `READ_FORMATS`, or None."""
    if head.startswith(b"\xff\xd8\xff"):
        return "jpeg"
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return "png"
    if head.startswith((b"GIF87a", b"GIF89a")):
        return "gif"
    if head.startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")):
        return "tiff"
    if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        return "webp"
    if head[4:8] == b"ftyp":  # ISO/IEC 14496-12: major brand, version, compatible brands
        length = min(int.from_bytes(head[:4], "big"), 256)
        brands = {head[8:12], *(head[at : at + 4] for at in range(16, length, 4))}
        if brands & {b"avif", b"avis"}:
            return "avif"
        return "heif" if brands & {b"heic", b"heix", b"heim", b"heis", b"mif1", b"msf1", b"hevc", b"hevx"} else None
    return "bmp" if head.startswith(b"BM") else None


def describe(error: BaseException) -> str:
    """One short line of plain characters about an exception; a decoder's text may quote the file."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    lines = str(error).strip().splitlines()
    text = re.sub(r"[^ -~]", "?", lines[0] if lines else "")[:200]
    return text or type(error).__name__


@contextmanager
def decoder_errors() -> Iterator[None]:
    """Whatever a decoder raises, as one of our input errors."""
    try:
        yield
    except (TooLarge, UnreadableImage):
        raise
    except MemoryError as error:
        raise TooLarge("the input does not fit into memory when decoded: give a smaller picture") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise TooLarge("the input has more pixels than the limit: give a smaller picture") from error
    except UnidentifiedImageError as error:
        raise UnreadableImage("the picture is damaged: its header makes no sense") from error
    except Exception as error:
        raise UnreadableImage(f"the picture is damaged: {describe(error)}") from error


def check_size(width: int, height: int, frames: int, limits: Limits) -> None:
    """Refuse an input by its header.

    Raises:
        UnreadableImage: there are no pixels.
        TooLarge: over a limit.
    """
    if width < 1 or height < 1 or frames < 1:
        raise UnreadableImage("the picture is damaged: it has no pixels")
    size = f"{width}x{height}" + (f" pixels in {frames} frames" if frames > 1 else " pixels")
    if frames > limits.frames:
        raise TooLarge(f"the input has more frames or pages than the limit of {limits.frames:,}")
    if max(width, height) > limits.side:
        raise TooLarge(f"the input has {size}, over the limit of {limits.side:,} pixels a side")
    if width * height * frames > limits.input_pixels:
        megapixels = f"{limits.input_pixels / 1e6:,.6g} megapixels"
        raise TooLarge(f"the input has {size}, over the limit of {megapixels}")


def scaled(values: Pixels, bits: int) -> Pixels:
    """uint16 of fewer bits, such as 10, over the whole range."""
    if bits == 16:
        return np.ascontiguousarray(values)
    top = (1 << bits) - 1
    return (np.minimum(values, top).astype(np.uint32) * 65535 // top).astype(np.uint16)


def upright(values: Pixels, orientation: int) -> Pixels:
    """Apply an EXIF orientation (EXIF 2.32, tag 0x0112) to (h, w) or (h, w, channels)."""
    if orientation >= 5:
        values = values.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        values = values[::-1]
    if orientation in (2, 3, 6, 7):
        values = values[:, ::-1]
    return np.ascontiguousarray(values)


def check_output_size(format: str, width: int, height: int, limits: Limits, frames: int = 1) -> None:
    """Refuse a result that is over the limit, or that the format cannot hold, before the work.

    Raises:
        TooLarge: more output pixels than the limit.
        OptionsError: a side is longer than the format can store.
    """
    if width * height * frames > limits.output_pixels:
        raise TooLarge(
            f"the result would have {width}x{height} pixels{f' in {frames} frames' if frames > 1 else ''}, "
            f"over the limit of {limits.output_pixels / 1e6:,.6g} megapixels: ask for a smaller scale"
        )
    longest = MAX_SIDE.get(format)
    if longest is not None and max(width, height) > longest:
        raise OptionsError(f"{format} holds at most {longest} pixels a side, not {width}x{height}: choose png or tiff")
    if format == "bmp" and width * height > MAX_BMP_PIXELS:
        raise OptionsError(f"bmp holds at most {MAX_BMP_PIXELS / 1e6:.0f} megapixels: choose png or tiff")
