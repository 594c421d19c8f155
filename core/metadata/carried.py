"""What a file says beside its pixels: read, made true of the result, and bounded.

Nothing here is ever shown to a user or written to a log: names and texts of strangers stay in the file.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace

from core.metadata import exif, geo, ifd
from core.metadata.iptc import without_places
from core.metadata.resolution import Dpi, exif_dpi, valid_dpi
from core.metadata.xmp import corrected_xmp

#: Larger blocks are left out, with a note: 4 MB is more than any profile or packet in use.
MAX_BLOCK = 4 << 20
#: Letters of all texts together; more are left out, with a note.
MAX_TEXT = 1 << 20
#: Names of texts that say where a picture was taken.
_PLACE = re.compile(
    r"gps|latitude|longitude|location|city|country|province|geo:|iptc.*2:(?:26|27|9[025]|10[01])", re.IGNORECASE
)


@dataclass(frozen=True)
class Metadata:
    """Everything that is carried beside the pixels, in no file format's shape.

    Attributes:
        icc: colour profile that the pixel values are in; None means sRGB.
        exif: EXIF block without the prefix "Exif".
        xmp: XMP packet.
        iptc: IPTC-IIM records.
        dpi: horizontal and vertical resolution, dots an inch.
        text: comments and other texts, by name; "Comment" is what most formats have one of.
        tiff: what only a TIFF has a place for (`core.metadata.geo`).
    """

    icc: bytes | None = field(default=None, repr=False)
    exif: bytes | None = field(default=None, repr=False)
    xmp: bytes | None = field(default=None, repr=False)
    iptc: bytes | None = field(default=None, repr=False)
    dpi: Dpi | None = None
    text: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    tiff: bytes | None = field(default=None, repr=False)


def bounded(meta: Metadata) -> tuple[Metadata, tuple[str, ...]]:
    """The same without blocks that are too large, and a note for each of them."""
    notes = []
    changes: dict[str, object] = {}
    for name, limit in (
        ("icc", MAX_BLOCK),
        ("exif", ifd.MAX_BYTES),
        ("xmp", MAX_BLOCK),
        ("iptc", MAX_BLOCK),
        ("tiff", MAX_BLOCK),
    ):
        block = getattr(meta, name)
        if block is not None and len(block) > limit:
            notes.append(f"the {name.upper()} block is larger than {limit >> 20} MB and was left out")
            changes[name] = None
    if sum(len(key) + len(value) for key, value in meta.text) > MAX_TEXT:
        notes.append(f"the texts are larger than {MAX_TEXT >> 20} MB and were left out")
        changes["text"] = ()
    return replace(meta, **changes), tuple(notes)  # type: ignore[arg-type]


def for_result(
    meta: Metadata,
    size: tuple[int, int],
    out_size: tuple[int, int],
    *,
    strip: bool = False,
    drop_gps: bool = False,
    keep_size: bool = False,
) -> tuple[Metadata, tuple[str, ...]]:
    """What the result shall carry: corrected for its size and orientation, and without what was not wanted.

    Args:
        meta: of the input.
        size: of the input, upright, (width, height) in pixels.
        out_size: of the result, (width, height) in pixels.
        strip: keep the colour profile only.
        drop_gps: leave out where the picture was taken: coordinates, and places by name.
        keep_size: keep the printed size, with more dots an inch.

    Returns:
        The metadata, and a note for each thing that could not be kept.
    """
    if strip:
        return Metadata(icc=meta.icc), ()
    notes = []
    width, height = out_size
    dpi = meta.dpi
    if dpi is not None and keep_size:
        dpi = valid_dpi((dpi[0] * width / size[0], dpi[1] * height / size[1]))
    block = None
    if meta.exif is not None:
        block = exif.corrected(meta.exif, width, height, dpi if keep_size else None, drop_gps)
        if block is None:
            notes.append("the EXIF block is damaged and was left out")
    xmp = None
    if meta.xmp is not None:
        xmp = corrected_xmp(meta.xmp, width, height, drop_gps)
        if xmp is None:
            notes.append("the XMP packet was left out: its places cannot be separated from the rest")
    iptc, text = meta.iptc, meta.text
    if drop_gps:
        text = tuple((key, value) for key, value in text if not _PLACE.search(key))
        iptc = None if iptc is None else without_places(iptc)
        if iptc is None and meta.iptc is not None:
            notes.append("the IPTC records were left out: nothing but places, or these cannot be separated")
    bound = None
    if meta.tiff is not None:
        bound, said = geo.corrected(meta.tiff, size, out_size, drop_gps)
        notes += said
    return replace(meta, exif=block, xmp=xmp, iptc=iptc, text=text, dpi=dpi, tiff=bound), tuple(notes)


def comment_of(meta: Metadata) -> str | None:
    """The one text that formats with room for one comment get."""
    texts = {key.lower(): value for key, value in meta.text}
    return texts.get("comment") or texts.get("description")


def exif_with_resolution(meta: Metadata) -> bytes | None:
    """The EXIF block, made when there is none, so that it states the resolution: WebP and AVIF have no other place."""
    if meta.dpi is None:
        return meta.exif
    if meta.exif is None:
        return ifd.write_block(ifd.Directory("<", list(ifd.resolution(meta.dpi))))
    if exif_dpi(meta.exif) is not None:
        return meta.exif
    return exif.with_resolution(meta.exif, meta.dpi)
