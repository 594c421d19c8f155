"""What a caller can ask for, and what the caller gets back. No heavy imports: the HTTP layer needs these early."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import PurePath

from core.errors import OptionsError
from core.formats import FORMATS, SUFFIXES, named_format, suffix_format

MAX_SCALE = 8.0
#: Called with tiles done and tiles in all; it may raise `core.errors.Cancelled` to stop between two tiles.
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Options:
    """One request, checked on construction.

    Attributes:
        model: a name from `core.models.MODELS`, a hub id, a file of weights, or a directory; None chooses the default.
        scale: factor of both sides, 1 to 8, fractions allowed; 1 is for models that restore without enlarging, and what
            None means with them. Otherwise None means 2 unless width or height is given.
        width: exact output width in pixels; alone, the height follows the proportions. Excludes scale.
        height: exact output height in pixels; alone, the width follows the proportions. Excludes scale.
        tile: side in pixels of the input that is upscaled at once, halo not counted; None chooses.
        halo: context in pixels around a tile's own part; None chooses (see `exact`).
        exact: halo of at least the model's receptive field, so that tiles equal the untiled result.
        device: "auto", "cpu" or "cuda".
        format: one of `FORMATS`, or what people call it ("jpg", "PNG", ".tif"); None keeps the input's format.
        quality: 1 to 100 for JPEG, WebP and AVIF; None chooses by the input (see `core.codecs.encode`).
        strip: leave out everything but pixels and colour profile: EXIF, XMP, IPTC, resolution, texts.
        drop_gps: leave out where the picture was taken: coordinates, and places by name in IPTC, XMP and texts.
        keep_size: keep the printed size: more dots an inch. Otherwise the number of dots an inch is kept.
        pyramid: a TIFF of tiles with smaller copies of the picture (a pyramid), for viewers; makes the format "tiff".

    Raises:
        OptionsError: a value outside its range, or a combination that contradicts itself.
    """

    model: str | None = None
    scale: float | None = None
    width: int | None = None
    height: int | None = None
    tile: int | None = None
    halo: int | None = None
    exact: bool = False
    device: str = "auto"
    format: str | None = None
    quality: int | None = None
    strip: bool = False
    drop_gps: bool = False
    keep_size: bool = False
    pyramid: bool = False

    def __post_init__(self) -> None:
        if self.scale is not None:
            if not math.isfinite(self.scale) or not 1 <= self.scale <= MAX_SCALE:
                raise OptionsError(f"scale must be at least 1 and at most {MAX_SCALE:g}, not {self.scale:g}")
            if self.width is not None or self.height is not None:
                raise OptionsError("give either scale or width/height, not both")
        for name, low, high in (
            ("width", 1, 200_000),
            ("height", 1, 200_000),
            ("tile", 16, 8192),
            ("halo", 0, 1024),
            ("quality", 1, 100),
        ):
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                raise OptionsError(f"{name} must be from {low} to {high}, not {value}")
        if self.exact and self.halo is not None:
            raise OptionsError("exact chooses the halo itself: give either exact or halo, not both")
        if self.device not in ("auto", "cpu", "cuda"):
            raise OptionsError(f"device must be auto, cpu or cuda, not {self.device!r}")
        if self.format is not None:
            known = named_format(self.format)
            if known is None:
                raise OptionsError(f"format must be one of {', '.join(FORMATS)}, not {self.format!r}")
            object.__setattr__(self, "format", known)
        if self.pyramid and self.format not in (None, "tiff"):
            raise OptionsError(f"a pyramid is a TIFF, not {self.format}: choose tiff")
        if self.pyramid:
            object.__setattr__(self, "format", "tiff")
        if self.model is not None and not self.model.strip():
            raise OptionsError("model must be a name, a hub id or a directory, not an empty text")

    def output_size(self, width: int, height: int) -> tuple[int, int]:
        """The exact output (width, height) for an oriented input of these sides.

        Raises:
            OptionsError: the size asked for is not larger than the input, or more than 8 times as large.
        """
        if self.width is None and self.height is None:
            scale = self.scale or 2.0
            return max(1, round(width * scale)), max(1, round(height * scale))
        out_width = self.width or max(1, round(width * (self.height or 0) / height))
        out_height = self.height or max(1, round(height * (self.width or 0) / width))
        if out_width < width or out_height < height or (out_width, out_height) == (width, height):
            raise OptionsError(
                f"this makes pictures larger: {out_width}x{out_height} was asked for, the input is {width}x{height}"
            )
        if out_width > width * MAX_SCALE or out_height > height * MAX_SCALE:
            raise OptionsError(
                f"at most {MAX_SCALE:g} times as large: {out_width}x{out_height} was asked for, "
                f"the input is {width}x{height}"
            )
        return out_width, out_height

    @property
    def name_suffix(self) -> str:
        """What is added to a file's name, such as "-x2" or "-800x"."""
        if self.width is None and self.height is None:
            return f"-x{self.scale or 2:g}"
        return f"-{self.width or ''}x{self.height or ''}"

    def result_name(self, name: str, format: str | None, *, max_bytes: int = 255) -> str:
        """The name of a result: photo.jpg becomes photo-x2.jpg, or photo-x2.png when it is stored as a PNG.

        Args:
            name: of the input, without folders.
            format: of the result, one of `FORMATS`; None keeps the ending.
            max_bytes: longest name in UTF-8; file systems of Linux and macOS end at 255. The part before the suffix is
                shortened, never the suffix or the ending.
        """
        path = PurePath(name)
        ending = path.suffix
        if format is not None and suffix_format(ending) != format:
            ending = SUFFIXES[format]
        rest = self.name_suffix + ending
        # Names of files may hold bytes that are no UTF-8: Python keeps them as lone surrogates.
        room = max(1, max_bytes - len(os.fsencode(rest)))
        stem = os.fsencode(path.stem)
        if len(stem) > room:
            return stem[:room].decode(errors="ignore") + rest
        return path.stem + rest

    def factor(self, width: int, height: int) -> float:
        """How many times as large an oriented input of these sides becomes, along the side that grows more.

        Raises:
            OptionsError: as `output_size`.
        """
        out_width, out_height = self.output_size(width, height)
        return max(out_width / width, out_height / height)


@dataclass(frozen=True)
class Estimate:
    """What a request will take, before it runs.

    Attributes:
        width: of the output, pixels.
        height: of the output, pixels.
        model: the model that will run if nothing goes wrong.
        seconds: wall clock on this machine's device, model loading not counted.
        memory: peak resident bytes of the process.
        file_bytes: size of the result's file, about.
        mood: how many times longer `seconds` are than usual on this machine, by what was learned of it lately; what is
            decided by `seconds` / `mood` does not change with other load.
        tiles: pieces of work.
        megapixels: of the input.
        device: "cpu" or "cuda".
        measured: False when the rate is a default and not yet measured on this machine.
    """

    width: int
    height: int
    model: str
    seconds: float
    memory: int
    tiles: int
    megapixels: float
    device: str
    measured: bool
    file_bytes: int = 0
    mood: float = 1.0


@dataclass(frozen=True)
class Result:
    """A finished picture.

    Attributes:
        data: the encoded file, when no output path was given; else None.
        format: one of `FORMATS`.
        media_type: for HTTP, such as "image/png".
        width: of the output, pixels.
        height: of the output, pixels.
        model: the model that made it ("lanczos" when every network failed).
        degraded: True when that is not the model asked for.
        reason: why, in one line; empty when not degraded.
        device: "cpu" or "cuda".
        dtype: of the network, such as "float32".
        tiles: pieces of work done.
        seconds: decode to encode; model loading not counted.
        load_seconds: spent loading the model; 0 when it was warm.
        notes: one line for each thing worth knowing (a tile redone smaller, for example).
        frames: of the animation, or pages; 1 for a single picture.
    """

    data: bytes | None
    format: str
    media_type: str
    width: int
    height: int
    model: str
    degraded: bool
    reason: str
    device: str
    dtype: str
    tiles: int
    seconds: float
    load_seconds: float
    notes: tuple[str, ...] = ()
    frames: int = 1
