"""Every refusal before any work: of an input by its header, of a result by its size."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from core.errors import OptionsError, OutputError, TooLarge, UnreadableImage
from core.formats import MAX_BMP_PIXELS, MAX_SIDE, STREAMED


@dataclass(frozen=True)
class Limits:
    """What is refused before any work. The defaults suit one's own machine.

    Attributes:
        input_bytes: size of the encoded input.
        input_pixels: width * height of the input, from its header, all frames or pages together.
        output_pixels: width * height of the result, all frames or pages together.
        held_pixels: width * height of an input that cannot be decoded from top to bottom, so that memory has to hold
            it, and a quarter of a result of that kind.
        frames: frames of an animation, or pages.
        side: longer side of the input.
        worker: decode in a separate process, where a crash, a hang or a blow-up of the decoder ends only that
            process; for pictures of strangers (Linux and macOS).
        worker_seconds: CPU time that it may take for one picture.
        worker_bytes: memory that it may take for one picture.
    """

    input_bytes: int = 1_000_000_000
    input_pixels: int = 40_000_000_000
    output_pixels: int = 2_560_000_000_000
    held_pixels: int = 250_000_000
    frames: int = 1_000
    side: int = 200_000
    worker: bool = False
    worker_seconds: int = 60
    worker_bytes: int = 4_000_000_000


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


def check_held(pixels: int, limits: Limits) -> None:
    """Refuse what would have to be held whole to be decoded, by its header.

    Raises:
        TooLarge: over the limit.
    """
    if pixels > limits.held_pixels:
        raise TooLarge(
            f"the input has {pixels / 1e6:,.6g} megapixels that have to be held in memory at once, over the limit of "
            f"{limits.held_pixels / 1e6:,.6g}: save it as a TIFF of strips or tiles, a PNG or an upright JPEG"
        )


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
    if (frames > 1 or format not in STREAMED) and width * height * frames > 4 * limits.held_pixels:
        raise TooLarge(
            f"the result would have {width}x{height} pixels{f' in {frames} frames' if frames > 1 else ''} that have to "
            f"be held in memory at once, over the limit of {4 * limits.held_pixels / 1e6:,.6g} megapixels: choose tiff"
        )
    longest = MAX_SIDE.get(format)
    if longest is not None and max(width, height) > longest:
        raise OptionsError(f"{format} holds at most {longest} pixels a side, not {width}x{height}: choose png or tiff")
    if format == "bmp" and width * height > MAX_BMP_PIXELS:
        raise OptionsError(f"bmp holds at most {MAX_BMP_PIXELS / 1e6:.0f} megapixels: choose png or tiff")


def check_room(folder: Path, needed: int) -> None:
    """Refuse a result that its disk has no room for, before the work.

    Args:
        folder: where the file will be.
        needed: bytes, about.

    Raises:
        OutputError: less is free.
    """
    free = free_bytes(folder)
    if free is not None and needed > free:
        raise OutputError(
            f"the result takes about {needed / 1e9:,.1f} GB, and {free / 1e9:,.1f} GB are free in {folder}: "
            "make room, or ask for a smaller scale or for jpeg"
        )


def free_bytes(folder: Path) -> int | None:
    """What is free on a folder's disk; None where that cannot be said, which is reported when a file is made."""
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return None
