"""Encoded bytes to pixels and back, losing nothing on the way that this package can carry.

`probe` reads a header only, so that limits and estimates come before decoding. Only the formats of the allow-list are
ever opened. Whatever a decoder raises becomes `UnreadableImage`: these libraries raise a dozen kinds of exception on
damaged files, and all of them mean the same to the caller.
"""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from core.errors import OptionsError, OutputError, TooLarge, UnreadableImage
from core.options import FORMATS, Limits

Pixels = npt.NDArray[np.uint8]
Source = str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryIO

MEDIA_TYPES = {
    "jpeg": "image/jpeg",
    "png": "image/png",
    "webp": "image/webp",
    "tiff": "image/tiff",
    "bmp": "image/bmp",
}
SUFFIXES = {"jpeg": ".jpg", "png": ".png", "webp": ".webp", "tiff": ".tif", "bmp": ".bmp"}
_BY_SUFFIX = {".jpg": "jpeg", ".jpeg": "jpeg", ".jpe": "jpeg", ".tif": "tiff"}
#: Longest side that a format can hold, in pixels.
MAX_SIDE = {"jpeg": 65_535, "webp": 16_383}

# Our own limit is checked against the header before any pixel is decoded; Pillow's would only warn, process-wide.
Image.MAX_IMAGE_PIXELS = None
# Odd metadata is not the user's concern when the pixels decode.
warnings.filterwarnings("ignore", category=UserWarning, module="PIL")

_ORIENTATION = 0x0112
#: Tags that say how a TIFF's pixels are stored: true of the input file only.
_TIFF_STRUCTURE = (
    *range(0xFE, 0x108),
    0x10A,
    0x111,
    *range(0x115, 0x11D),
    0x128,
    *range(0x13D, 0x146),
    *range(0x152, 0x158),
    0x8773,
)
#: For messages.
READABLE = "JPEG, PNG, WebP, TIFF or BMP"


def suffix_format(suffix: str) -> str | None:
    """The format that a file name's suffix stands for, or None: ".jpg" is "jpeg"."""
    name = _BY_SUFFIX.get(suffix.lower(), suffix.lower().lstrip("."))
    return name if name in FORMATS else None


@dataclass(frozen=True)
class Probe:
    """What a header says.

    Attributes:
        format: one of `FORMATS`.
        width: pixels, orientation applied.
        height: pixels, orientation applied.
        bytes: size of the encoded file.
        mode: Pillow's name of the pixel layout.
    """

    format: str
    width: int
    height: int
    bytes: int
    mode: str


@dataclass(frozen=True)
class Picture:
    """A decoded picture, upright.

    Attributes:
        pixels: (height, width, channels) with one channel for greyscale, three for colour.
        alpha: (height, width), or None when there is no transparency.
        format: of the file it came from, one of `FORMATS`.
        icc: colour profile that the pixel values are in, or None.
        exif: EXIF block with the orientation removed, or None.
        dpi: horizontal and vertical resolution, or None.
    """

    pixels: Pixels
    alpha: Pixels | None
    format: str
    icc: bytes | None = field(default=None, repr=False)
    exif: bytes | None = field(default=None, repr=False)
    dpi: tuple[float, float] | None = None


@contextmanager
def _opened(source: Source, limits: Limits) -> Iterator[tuple[Image.Image, int]]:
    """Open a source lazily: the header is read, the pixels are not. Gives the image and the file's size in bytes."""
    with ExitStack() as stack:
        stream = _stream(source, limits, stack)
        try:
            size = stream.seek(0, os.SEEK_END)
            stream.seek(0)
        except (OSError, ValueError) as error:
            raise UnreadableImage(f"cannot read the input: {error}") from error
        if size == 0:
            raise UnreadableImage(f"the input is empty: give a {READABLE} file")
        if size > limits.input_bytes:
            raise TooLarge(f"the input is over the limit of {limits.input_bytes:,} bytes")
        with _decoder_errors():
            image = Image.open(stream, formats=list(FORMATS.values()))
        stack.enter_context(image)
        if image.width * image.height > limits.input_pixels:
            raise TooLarge(
                f"the input has {image.width}x{image.height} pixels, "
                f"over the limit of {limits.input_pixels / 1e6:,.6g} megapixels"
            )
        yield image, size


def _stream(source: Source, limits: Limits, stack: ExitStack) -> BinaryIO:
    """A seekable stream over any source; the stack closes what was opened here."""
    if isinstance(source, (bytes, bytearray, memoryview)):
        return io.BytesIO(source)
    try:
        if isinstance(source, (str, os.PathLike)):
            return stack.enter_context(Path(source).open("rb"))
        return source if source.seekable() else io.BytesIO(source.read(limits.input_bytes + 1))
    except OSError as error:
        raise UnreadableImage(f"cannot read the input: {error.strerror}") from error


@contextmanager
def _decoder_errors() -> Iterator[None]:
    try:
        yield
    except (TooLarge, UnreadableImage):
        raise
    except MemoryError as error:
        raise TooLarge("the input does not fit into memory when decoded: give a smaller picture") from error
    except UnidentifiedImageError as error:
        raise UnreadableImage(f"not a picture that can be read: give {READABLE}") from error
    except Exception as error:
        detail = str(error).strip().splitlines()
        raise UnreadableImage(f"the picture is damaged: {detail[0] if detail else type(error).__name__}") from error


def probe(source: Source, limits: Limits | None = None) -> Probe:
    """Read the header only.

    Args:
        source: a path, the encoded bytes, or a binary file object (left open and rewound).
        limits: what to refuse; the defaults of `Limits` when None.

    Raises:
        UnreadableImage: not an image in a format that we read, or its header is damaged.
        TooLarge: over a limit.
    """
    with _opened(source, limits or Limits()) as (image, size):
        width, height = image.size
        if _orientation(image) in (5, 6, 7, 8):
            width, height = height, width
        found = Probe(_format(image), width, height, size, image.mode)
    if not isinstance(source, (str, os.PathLike, bytes, bytearray, memoryview)) and source.seekable():
        source.seek(0)
    return found


def decode(source: Source, limits: Limits | None = None) -> Picture:
    """Decode to upright pixels.

    Args:
        source: a path, the encoded bytes, or a binary file object (left open).
        limits: what to refuse; the defaults of `Limits` when None.

    Raises:
        UnreadableImage: not an image in a format that we read, or damaged.
        TooLarge: over a limit.
    """
    with _opened(source, limits or Limits()) as (image, _), _decoder_errors():
        image.load()
        name = _format(image)
        icc = image.info.get("icc_profile") or None
        dpi = image.info.get("dpi")
        orientation = _orientation(image)
        exif = _exif_without_orientation(image)
        if image.mode in ("CMYK", "LAB", "YCbCr", "HSV"):
            icc = None  # the profile describes values that are converted away here
        pixels, alpha = _split(image)
        pixels = _upright(pixels, orientation)
        alpha = None if alpha is None else _upright(alpha, orientation)
        return Picture(pixels, alpha, name, icc, exif, _valid_dpi(dpi))


def _format(image: Image.Image) -> str:
    return next((name for name, pillow in FORMATS.items() if pillow == image.format), "jpeg")


def _orientation(image: Image.Image) -> int:
    """What is left to be turned (EXIF tag 0x0112): Pillow itself turns a TIFF, in its size and in its pixels."""
    if image.format == "TIFF":
        return 1
    try:
        value = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # EXIF that cannot be parsed says nothing about orientation
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _exif_without_orientation(image: Image.Image) -> bytes | None:
    try:
        exif = image.getexif()
        for tag in (_ORIENTATION, *(_TIFF_STRUCTURE if image.format == "TIFF" else ())):
            exif.pop(tag, None)
        return exif.tobytes() if len(exif) else None
    except Exception:  # a block that cannot be parsed cannot be corrected either, and a wrong one is worse than none
        return None


def _valid_dpi(dpi: object) -> tuple[float, float] | None:
    try:
        horizontal, vertical = (float(value) for value in dpi)  # type: ignore[attr-defined]
    except (TypeError, ValueError, ZeroDivisionError):
        return None
    return (horizontal, vertical) if 0 < horizontal < 1e5 and 0 < vertical < 1e5 else None


def _split(image: Image.Image) -> tuple[Pixels, Pixels | None]:
    """Colour (h, w, 1 or 3) and alpha (h, w) of an image in any mode."""
    if image.mode.startswith("I") or image.mode == "F":
        values = np.asarray(image, dtype=np.float64)
        top = 65535.0 if values.max(initial=0) > 255 or image.mode.startswith("I;16") else 255.0
        return np.clip(values / top * 255 + 0.5, 0, 255).astype(np.uint8)[:, :, None], None
    has_alpha = image.mode in ("LA", "RGBA", "PA", "La", "RGBa") or "transparency" in image.info
    grey = image.mode in ("1", "L", "LA", "La")
    image = image.convert({(True, True): "LA", (True, False): "L", (False, True): "RGBA"}.get((grey, has_alpha), "RGB"))
    values8 = np.asarray(image)
    if values8.ndim == 2:
        return values8[:, :, None], None
    if has_alpha:
        return np.ascontiguousarray(values8[:, :, :-1]), np.ascontiguousarray(values8[:, :, -1])
    return values8, None


def _upright(values: Pixels, orientation: int) -> Pixels:
    """Apply an EXIF orientation (EXIF 2.32, tag 0x0112) to (h, w) or (h, w, channels)."""
    if orientation >= 5:
        values = values.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        values = values[::-1]
    if orientation in (2, 3, 6, 7):
        values = values[:, ::-1]
    return np.ascontiguousarray(values)


def check_output_size(format: str, width: int, height: int, limits: Limits) -> None:
    """Refuse a result that is over the limit, or that the format cannot hold, before the work.

    Raises:
        TooLarge: more output pixels than the limit.
        OptionsError: a side is longer than the format can store.
    """
    if width * height > limits.output_pixels:
        raise TooLarge(
            f"the result would have {width}x{height} pixels, over the limit of "
            f"{limits.output_pixels / 1e6:,.6g} megapixels: ask for a smaller scale"
        )
    longest = MAX_SIDE.get(format)
    if longest is not None and max(width, height) > longest:
        raise OptionsError(f"{format} holds at most {longest} pixels a side, not {width}x{height}: choose png or tiff")


def encode(picture: Picture, stream: BinaryIO, format: str, quality: int | None = None) -> tuple[str, ...]:
    """Write a picture; returns one line for each thing that the format could not carry.

    Args:
        picture: what to write; its own `format` does not matter.
        stream: open for writing, binary.
        format: one of `FORMATS`.
        quality: 1 to 100 for JPEG and WebP; None means 95.

    Raises:
        OutputError: the stream cannot be written (a full disk, for example).
    """
    pixels, alpha, notes = picture.pixels, picture.alpha, []
    if alpha is not None and format == "jpeg":
        # JPEG has no transparency: composite over white, as a browser would show it on a page.
        weight = alpha[:, :, None].astype(np.float32) / 255
        pixels = (pixels * weight + 255 * (1 - weight) + 0.5).astype(np.uint8)
        alpha = None
        notes.append("jpeg has no transparency: the picture was put on white")
    layers = [pixels[:, :, channel] for channel in range(pixels.shape[2])]
    if alpha is not None and format in ("bmp", "webp") and len(layers) == 1:
        layers = layers * 3  # these two store alpha beside colour only
    if alpha is not None:
        layers.append(alpha)
    image = Image.fromarray(layers[0] if len(layers) == 1 else np.stack(layers, axis=-1))
    extra: dict[str, object] = {}
    if format == "jpeg":
        extra = {"quality": quality or 95, "subsampling": 0 if (quality or 95) >= 90 else 2}
    elif format == "webp":
        extra = {"quality": quality or 95, "method": 4, "exact": True}
    elif format == "png":
        extra = {"compress_level": 4}  # 6 takes three times as long for 2 % less
    elif format == "tiff":
        extra = {"compression": "tiff_adobe_deflate", "big_tiff": image.width * image.height * len(layers) > 3 << 30}
    if picture.icc is not None and format != "bmp":
        extra["icc_profile"] = picture.icc
    if picture.exif is not None and format != "bmp":
        extra["exif"] = picture.exif
    if picture.dpi is not None and format != "webp":
        extra["dpi"] = picture.dpi
    try:
        image.save(_Plain(stream), FORMATS[format], **extra)  # type: ignore[arg-type]
    except OSError as error:
        raise OutputError(f"cannot write the result: {error.strerror or error}") from error
    return tuple(notes)


class _Plain:
    """A stream without a file descriptor: Pillow writes to descriptors past Python, and loses the system's reason."""

    def __init__(self, stream: BinaryIO) -> None:
        self.write, self.flush, self.seek, self.tell = stream.write, stream.flush, stream.seek, stream.tell
        self.read = stream.read


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """A file that appears under its name only when it is complete; nothing is left behind on failure.

    Raises:
        OutputError: the directory is missing or not writable, or the disk is full.
    """
    path = Path(os.path.realpath(path))  # through links, which stay
    device = path.exists() and not path.is_file()  # /dev/stdout is written, not replaced
    part = path if device else path.with_name(f".{path.name[:200]}.{os.getpid()}.part")
    try:
        stream = part.open("wb")
    except OSError as error:
        raise OutputError(f"cannot write to {path.parent}: {error.strerror}") from error
    try:
        with stream:
            yield stream
        if not device:
            part.replace(path)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        if not device:
            part.unlink(missing_ok=True)
