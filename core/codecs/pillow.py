"""JPEG, PNG, WebP, BMP, GIF and AVIF, read through Pillow; its guards against bombs, and what it leaves to do.

Sizes and numbers of frames are known before Pillow allocates anything for them.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from typing import BinaryIO

import numpy as np
from PIL import Image, JpegImagePlugin, PngImagePlugin

from core.codecs import png
from core.codecs.decode import READ_FORMATS, Picture, Pixels, Probe, check_size, decoder_errors, scaled, upright
from core.errors import TooLarge, UnreadableImage
from core.metadata import carried as metadata
from core.metadata.carried import Metadata
from core.options import Limits
from core.pixels import colour

# A second guard under our own, which looks at the header before any pixel is decoded (see `raise_guard`).
warnings.filterwarnings("error", category=Image.DecompressionBombWarning)
# A colour profile of more than Pillow's usual limit of 1 MB for a chunk is no attack yet.
PngImagePlugin.MAX_TEXT_CHUNK = max(PngImagePlugin.MAX_TEXT_CHUNK, metadata.MAX_BLOCK)
# Odd metadata is not the user's concern when the pixels decode.
warnings.filterwarnings("ignore", category=UserWarning, module="PIL")

_ORIENTATION = 0x0112
_XMP_EXTENSION = b"http://ns.adobe.com/xmp/extension/"
#: A progressive JPEG has about ten scans. Each goes over the whole picture, so thousands in a small file are a trap.
_MAX_SCANS = 200


def raise_guard(limits: Limits) -> None:
    """Let Pillow's own guard against bombs, which is one number for the whole process, be no stricter than ours."""
    if Image.MAX_IMAGE_PIXELS is not None:
        Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS, limits.input_pixels)


def opened(
    stream: BinaryIO, format: str, head: bytes, size: int, limits: Limits, stack: ExitStack
) -> tuple[Probe, Callable[[], Iterator[Picture]]]:
    """The header of a file, and a function that decodes its frames.

    Args:
        stream: the file.
        format: what it is.
        head: its first 4,096 bytes.
        size: of the file, bytes.
        limits: what to refuse.
        stack: closes what is opened here.

    Raises:
        UnreadableImage: damaged.
        TooLarge: over a limit.
    """
    frames = 0
    if format == "gif":
        width, height, frames = _walk_gif(stream, limits)
        check_size(width, height, frames, limits)
    elif format == "webp":  # Pillow allocates the canvas when it opens one
        check_size(*_webp_size(head), 1, limits)
    elif format == "png":
        check_size(int.from_bytes(head[16:20], "big"), int.from_bytes(head[20:24], "big"), 1, limits)
    raise_guard(limits)
    image = stack.enter_context(Image.open(stream, formats=[READ_FORMATS[format]]))
    frames = frames or (1 if format == "jpeg" else int(getattr(image, "n_frames", 1)))
    first = 1 if getattr(image, "default_image", False) and frames > 1 else 0  # a PNG's still, shown by old software
    frames -= first
    width, height = image.size
    if _orientation(image) >= 5:
        width, height = height, width
    check_size(width, height, frames, limits)
    bits = _bits(format, head)
    alpha = image.has_transparency_data or frames > 1
    plays = _plays(image) if frames > 1 else None
    kept_bits = bits if frames == 1 or format == "png" else 8
    found = Probe(format, width, height, size, image.mode, frames, plays, alpha, kept_bits)

    notes: list[str] = []
    if bits > kept_bits:
        notes.append(f"the frames have {bits} bits, of which 8 are read")
    if first:
        notes.append("the still picture for software without animation was left out")
    if any(marker == "APP1" and data.startswith(_XMP_EXTENSION) for marker, data in getattr(image, "applist", ())):
        notes.append("the extension of the XMP packet, beyond 64 kB, was left out")
    if image.format == "MPO":
        notes.append(f"the first of {getattr(image, 'n_frames', 1)} pictures in the file was taken")

    def decode_pages() -> Iterator[Picture]:
        deep: Iterator[Pixels] | None = None
        if kept_bits > 8:
            at = stream.tell()  # Pillow reads on from here
            stream.seek(0)
            deep = _read_deep(stream.read(), format, bits, frames)
            stream.seek(at)
        for index in range(first, first + frames):
            with decoder_errors():
                if format == "jpeg":
                    _count_scans(stream)
                if index:
                    image.seek(index)
                if deep is not None and frames > 1:
                    # Drawn in `core.codecs.png`; Pillow would fail to blend greys of 16 bits.
                    image.blend_op = PngImagePlugin.Blend.OP_SOURCE  # type: ignore[attr-defined]
                if image.width * image.height > limits.input_pixels:
                    raise TooLarge("a frame is larger than the picture's header says")
                image.load()
                later, samples = index > first, None if deep is None else next(deep)
                picture = _picture(image, format, stream, samples, later, plays is not None)
                picture = replace(_on_canvas(picture, width, height), notes=(*notes, *picture.notes))
                samples = None  # these would be held for as long as the picture is worked on
                if frames == 1:
                    image.close()
                    deep = None
            yield picture

    return found, decode_pages


def _bits(format: str, head: bytes) -> int:
    """Bits of a channel of a PNG or AVIF, from its header; 8 for all others."""
    if format == "png":
        return 16 if head[24:25] == b"\x10" else 8
    at = head.find(b"av1C") + 6  # AV1 codec configuration record
    if format != "avif" or at < 6 or at >= len(head) or not head[at] & 0x40:
        return 8
    return 12 if head[at] & 0x20 else 10


def _on_canvas(picture: Picture, width: int, height: int) -> Picture:
    """A frame of the size that the header says: a GIF's later frames may be larger than its first ones.

    Raises:
        UnreadableImage: it is larger, or smaller and no frame of an animation.
    """
    tall, wide = picture.pixels.shape[:2]
    if (tall, wide) == (height, width):
        return picture
    if tall > height or wide > width or picture.alpha is None:
        raise UnreadableImage("the picture is damaged: it is not of the size that its header says")
    margin = ((0, height - tall), (0, width - wide))
    return replace(picture, pixels=np.pad(picture.pixels, (*margin, (0, 0))), alpha=np.pad(picture.alpha, margin))


def _plays(image: Image.Image) -> int:
    """How often an animation is played, 0 for ever."""
    loop = image.info.get("loop")
    if image.format == "GIF":  # the extension counts repetitions after the first time
        return 1 if loop is None else 0 if loop == 0 else int(loop) + 1
    return max(0, int(loop or 0))


def _walk_gif(stream: BinaryIO, limits: Limits) -> tuple[int, int, int]:
    """Canvas and number of frames of a GIF, from its block headers alone (GIF89a specification).

    Pillow lets a frame enlarge the canvas, and counts frames only by going through all of them.
    """
    head = stream.read(13)
    width, height = int.from_bytes(head[6:8], "little"), int.from_bytes(head[8:10], "little")
    if len(head) == 13 and head[10] & 0x80:
        stream.seek(3 << (head[10] & 7) + 1, os.SEEK_CUR)
    frames = 0
    while frames <= limits.frames:
        block = stream.read(1)
        if block == b"!":
            stream.read(1)  # the label
        elif block == b",":
            where = stream.read(9)
            if len(where) < 9:
                break
            left, top, wide, high = (int.from_bytes(where[at : at + 2], "little") for at in range(0, 8, 2))
            width, height = max(width, left + wide), max(height, top + high)
            frames += 1
            stream.seek((3 << (where[8] & 7) + 1 if where[8] & 0x80 else 0) + 1, os.SEEK_CUR)
        elif block != b";" and block:
            continue  # Pillow skips what it does not know
        else:
            break
        while length := stream.read(1):  # data in blocks of up to 255 bytes
            if length == b"\0":
                break
            stream.seek(length[0], os.SEEK_CUR)
    stream.seek(0)
    return width, height, frames


def _webp_size(head: bytes) -> tuple[int, int]:
    """Canvas of a WebP (RFC 9649)."""
    if head[12:16] == b"VP8X":
        return 1 + int.from_bytes(head[24:27], "little"), 1 + int.from_bytes(head[27:30], "little")
    if head[12:16] == b"VP8L":
        bits = int.from_bytes(head[21:25], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    return int.from_bytes(head[26:28], "little") & 0x3FFF, int.from_bytes(head[28:30], "little") & 0x3FFF


def _webp_is_lossless(stream: BinaryIO) -> bool:
    """True when the first frame of a WebP is coded without loss (RFC 9649)."""
    at = 12
    for _ in range(64):
        stream.seek(at)
        chunk = stream.read(8)
        if chunk[:4] in (b"VP8L", b"VP8 ") or len(chunk) < 8:
            return chunk[:4] == b"VP8L"
        length = int.from_bytes(chunk[4:], "little")
        at += 8 + (16 if chunk[:4] == b"ANMF" else length + length % 2)
    return False


def _count_scans(stream: BinaryIO) -> None:
    """Refuse a JPEG with absurdly many scans before it is decoded."""
    stream.seek(0)
    scans = 0
    while block := stream.read(1 << 20):
        scans += block.count(b"\xff\xda")
    if scans > _MAX_SCANS:
        raise UnreadableImage(f"the picture has {scans} scans, which no camera writes")


def _orientation(image: Image.Image) -> int:
    """What is left to be turned (EXIF tag 0x0112, or XMP's where EXIF says nothing)."""
    try:
        value = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # EXIF that cannot be parsed says nothing about orientation
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _picture(
    image: Image.Image, format: str, stream: BinaryIO, deep: Pixels | None, later: bool, animated: bool
) -> Picture:
    """A loaded image as a picture, with its samples of more than eight bits where it has such."""
    meta, notes = metadata.bounded(metadata.from_pillow(image))
    orientation = _orientation(image)
    duration = image.info.get("duration", 0.0) if animated else 0.0
    lossless = format in ("png", "bmp", "gif")
    quality = subsampling = None
    if format == "jpeg":
        quality, subsampling = _jpeg_coding(image)
    elif format == "webp" and not later:
        lossless = _webp_is_lossless(stream)
    pixels: Pixels
    alpha: Pixels | None
    icc = meta.icc
    if deep is not None:
        pixels, alpha = _without_alpha(deep)
    elif image.mode == "CMYK":
        converted, said = colour.cmyk_to_rgb(np.asarray(image), icc)
        pixels, alpha, icc, notes = converted, None, None, notes + said
    else:
        pixels, alpha = split(image)
    if icc is None and meta.icc is None and format in ("png", "avif"):
        icc, said = _profile_in_numbers(image, stream)
        notes += said
    icc, said = colour.checked(icc, "GRAY" if pixels.shape[2] == 1 else "RGB")
    if animated:
        alpha = np.full(pixels.shape[:2], 255, np.uint8) if alpha is None else alpha
    return Picture(
        pixels=upright(pixels, orientation),
        alpha=None if alpha is None else upright(alpha, orientation),
        meta=Metadata(icc=icc) if later else replace(meta, icc=icc),
        duration=float(duration) if isinstance(duration, (int, float)) else 0.0,
        lossless=lossless,
        quality=quality,
        subsampling=subsampling,
        notes=() if later else notes + said,
    )


def _read_deep(data: bytes, format: str, bits: int, frames: int) -> Iterator[Pixels]:
    """(h, w, 1 to 4) uint16, alpha last, for each frame of a PNG or AVIF of which Pillow would keep eight bits."""
    import imagecodecs

    if frames > 1:
        yield from png.read_frames(data)
    else:
        values = imagecodecs.png_decode(data) if format == "png" else imagecodecs.avif_decode(data)
        if values.dtype != np.uint16 or values.ndim not in (2, 3):
            raise ValueError("not the pixels that its header says")
        yield scaled(values.reshape(*values.shape[:2], -1), bits)
    raise ValueError("it ends before its last frame")


def _without_alpha(values: Pixels) -> tuple[Pixels, Pixels | None]:
    """Colour (h, w, 1 or 3) and alpha (h, w) of (h, w, 1 to 4)."""
    if values.shape[2] in (2, 4):
        return np.ascontiguousarray(values[:, :, :-1]), np.ascontiguousarray(values[:, :, -1])
    return values, None


def _profile_in_numbers(image: Image.Image, stream: BinaryIO) -> tuple[bytes | None, tuple[str, ...]]:
    """A profile for a file that states its colours in code points or numbers instead of one."""
    stream.seek(0)
    head = stream.read(1 << 16)
    at = head.find(b"cICP") + 4 if image.format == "PNG" else head.find(b"colrnclx") + 8
    if at >= 8 and at < head.find(b"IDAT" if image.format == "PNG" else b"mdat"):
        step = 1 if image.format == "PNG" else 2
        primaries, transfer = (int.from_bytes(head[at + i * step : at + (i + 1) * step], "big") for i in range(2))
        return colour.profile_of_code_points(primaries, transfer)
    gamma = image.info.get("gamma")
    if "srgb" in image.info or not gamma:
        return None, ()
    return colour.profile_of_numbers(image.info.get("chromaticity"), 1 / gamma), ()


def _jpeg_coding(image: Image.Image) -> tuple[int | None, str | None]:
    """Quality, as libjpeg counts it, and subsampling of a JPEG."""
    tables = getattr(image, "quantization", None) or {}
    table = tables.get(0)
    subsampling = {0: "4:4:4", 1: "4:2:2", 2: "4:2:0"}.get(JpegImagePlugin.get_sampling(image))
    if not table:
        return None, subsampling
    # libjpeg scales the table of the standard (Annex K, sum 3,679) by 50 / q below 50, and by 2 - q / 50 above.
    factor = sum(table) / 3679
    quality = 50 / factor if factor > 1 else 100 - 50 * factor
    return max(1, min(100, round(quality))), subsampling


def split(image: Image.Image) -> tuple[Pixels, Pixels | None]:
    """Colour (h, w, 1 or 3) and alpha (h, w) of an image of up to 8 bits in any mode."""
    grey = image.mode in ("1", "L", "LA", "La")
    if image.has_transparency_data:
        return _without_alpha(np.asarray(image.convert("LA" if grey else "RGBA")))
    values = np.asarray(image.convert("L" if grey else "RGB"))
    return values.reshape(*values.shape[:2], -1), None
