"""HEIC and HEIF, read through libheif; its primary picture, with the bits that it has."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import BinaryIO

import numpy as np

from core.codecs.base import decoder_errors, to_16_bits, without_alpha
from core.errors import UnreadableImage
from core.limits import Limits, check_held, check_size
from core.metadata.carried import Metadata, bounded
from core.metadata.resolution import exif_dpi
from core.picture import Picture, Pixels, Probe
from core.pixels import colour
from core.pixels.alpha import unpremultiply


def open_heif(stream: BinaryIO, size: int, limits: Limits) -> tuple[Probe, Callable[[], Iterator[Picture]]]:
    """The header of a HEIF, and a function that decodes its primary picture.

    Raises:
        UnreadableImage: damaged.
        TooLarge: over a limit.
    """
    import pi_heif  # type: ignore[import-untyped]

    pi_heif.options.THUMBNAILS = False
    file = pi_heif.open_heif(stream, convert_hdr_to_8bit=False, hdr_to_16bit=False)
    if not len(file):
        raise UnreadableImage("this HEIF holds a sequence and no still picture: take a frame of it, with ffmpeg")
    width, height = file.size
    check_size(width, height, 1, limits)
    others = len(file) - 1
    layers = str(file.mode).split(";")[0]
    check_held(width * height, limits)
    bits = int(file.info["bit_depth"])
    found = Probe("heif", width, height, size, str(file.mode), 1, None, layers[-1] in "Aa", bits, streams=False)

    def decode_pages() -> Iterator[Picture]:
        nonlocal file
        with decoder_errors():
            info = file.info
            depth = int(info["bit_depth"])
            values = np.array(file)  # a copy: libheif frees its pixels together with the file
            if values.shape[:2] != (height, width):
                raise ValueError("not the pixels that its header says")
            values = values.reshape(height, width, -1)
            if depth > 8:  # 10 or 12 bits
                values = to_16_bits(values, depth, out=values)
            picture = _picture(values, layers, info, others)
            file = None  # its pixels would be held for as long as the picture is worked on
        yield picture

    return found, decode_pages


def _picture(values: Pixels, layers: str, info: dict[str, object], others: int) -> Picture:
    pixels, alpha = without_alpha(values) if layers[-1] in "Aa" else (values, None)
    if alpha is not None and layers[-1] == "a":
        pixels = unpremultiply(pixels, alpha)
    block, xmp, icc = (info.get(name) or None for name in ("exif", "xmp", "icc_profile"))
    meta = Metadata(
        icc=icc if isinstance(icc, bytes) else None,
        exif=block.removeprefix(b"Exif\0\0") if isinstance(block, bytes) else None,
        xmp=xmp if isinstance(xmp, bytes) else None,
    )
    meta = replace(meta, dpi=exif_dpi(meta.exif))
    meta, notes = bounded(meta)
    said: tuple[str, ...] = ()
    nclx = info.get("nclx_profile")
    if meta.icc is None and isinstance(nclx, dict):
        profile, said = colour.profile_of_code_points(
            int(nclx["color_primaries"]), int(nclx["transfer_characteristics"])
        )
        meta = replace(meta, icc=profile)
    icc, wrong = colour.checked(meta.icc, "GRAY" if pixels.shape[2] == 1 else "RGB")
    if others > 0:
        said += (f"the first of {others + 1} pictures in the file was taken",)
    return Picture(pixels, alpha, meta=replace(meta, icc=icc), lossless=False, notes=notes + said + wrong)
