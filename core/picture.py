"""What travels through the house: what a header says, and a decoded picture with all that comes with it."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

import numpy.typing as npt

from core.formats import ANIMATED, PAGED
from core.metadata.carried import Metadata
from core.pixels.bands import Bands, bands_of, gather

#: uint8 or uint16.
Pixels = npt.NDArray[Any]


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
        plays: how often an animation is played; 0 forever, None when it is no animation.
        alpha: True when there may be transparency.
        bits: of the deepest channel; more than 8 become 16-bit pixels.
        pixels: of all frames or pages together; 0 stands for frames of this size.
        streams: whether it is decoded from top to bottom; else it is held whole.
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
    streams: bool = True

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
class SampleRange:
    """How pixels stand for a TIFF's numbers of another type (`core.codecs.tiff_numbers.to_numbers`).

    Attributes:
        dtype: of the numbers in the file, as numpy calls it.
        low: the number for 0.
        high: the number for the greatest pixel value.
        middle: of the curve on which the pixels are even, a number.
        scale: how far from the middle the curve begins to bend; 0 for a straight line.
        nodata: the number that stands for "no data", which is where the picture is transparent; None for none.
    """

    dtype: str
    low: float
    high: float
    middle: float = 0.0
    scale: float = 0.0
    nodata: float | None = None


@dataclass(frozen=True, kw_only=True)
class _Described:
    """What is known of a picture, frame or page beside its pixels.

    Attributes:
        meta: what comes with it. Of an animation, the first frame has it all, the others only the profile.
        duration: milliseconds that the frame is shown.
        levels: for a TIFF of floats or wide integers, what the pixels stand for.
        lossless: True when the file holds the exact pixels.
        quality: of a JPEG, 1 to 100, estimated from its tables; else None.
        subsampling: of a JPEG, such as "4:2:0"; else None.
        notes: one line for each thing that was changed or left out.
    """

    meta: Metadata = field(default_factory=Metadata)
    duration: float = 0.0
    levels: SampleRange | None = None
    lossless: bool = True
    quality: int | None = None
    subsampling: str | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Picture(_Described):
    """A decoded picture, frame or page, upright, held whole.

    Attributes:
        pixels: (height, width, channels), uint8 or uint16, one channel for greyscale, three for colour.
        alpha: (height, width) of the same type, or None when there is no transparency.
    """

    pixels: Pixels
    alpha: Pixels | None = None


@dataclass(frozen=True)
class Scan(_Described):
    """A picture, frame or page, upright, that comes from top to bottom and is never held whole.

    Attributes:
        bands: its pixels: uint8 or uint16.
    """

    bands: Bands


def scan_of(picture: Picture | Scan) -> Scan:
    """A picture in bands, whether it is held or not."""
    if isinstance(picture, Scan):
        return picture
    return Scan(bands=bands_of(picture.pixels, picture.alpha), **description(picture))


def held(picture: Picture | Scan) -> Picture:
    """A picture held whole, for codecs that know no other."""
    if isinstance(picture, Picture):
        return picture
    pixels, alpha = gather(picture.bands)
    return Picture(pixels, alpha, **description(picture))


def description(picture: Picture | Scan) -> dict[str, Any]:
    """All that a picture and a scan have in common, by name."""
    return {one.name: getattr(picture, one.name) for one in fields(_Described)}


def frames_kept(format: str, source: Probe) -> int:
    """How many frames or pages of an input a result of this format holds; the others are not even decoded."""
    kept = ANIMATED if source.plays is not None else PAGED
    return source.frames if format in kept else 1
