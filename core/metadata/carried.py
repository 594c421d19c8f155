"""What a file says beside its pixels: read, made true of the result, and bounded.

Nothing here is ever shown to a user or written to a log: names and texts of strangers stay in the file.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass, field, replace

from PIL import Image

from core.metadata import exif
from core.options import Options

Dpi = tuple[float, float]

#: Larger blocks are left out, with a note: 4 MB is more than any profile or packet in use.
MAX_BLOCK = 4 << 20
MAX_TEXT = 1 << 20

_IPTC_RESOURCE = 0x0404
_PHOTOSHOP = b"Photoshop 3.0\0"
#: Texts of a PNG that are blocks of their own in disguise.
_DISGUISED = re.compile(r"xml:com\.adobe\.xmp$|raw profile type ", re.IGNORECASE)


@dataclass(frozen=True)
class Metadata:
    """Everything that is carried beside the pixels, in no file format's own shape.

    Attributes:
        icc: colour profile that the pixel values are in; None means sRGB.
        exif: EXIF block without the prefix "Exif".
        xmp: XMP packet.
        iptc: IPTC-IIM records.
        dpi: horizontal and vertical resolution, dots an inch.
        text: comments and other texts, by name; "Comment" is what most formats have one of.
    """

    icc: bytes | None = field(default=None, repr=False)
    exif: bytes | None = field(default=None, repr=False)
    xmp: bytes | None = field(default=None, repr=False)
    iptc: bytes | None = field(default=None, repr=False)
    dpi: Dpi | None = None
    text: tuple[tuple[str, str], ...] = field(default=(), repr=False)


def valid_dpi(dpi: object) -> Dpi | None:
    """A resolution as two sensible numbers, or None for anything else that a file may state."""
    try:
        horizontal, vertical = (float(value) for value in dpi)  # type: ignore[attr-defined]
    except (TypeError, ValueError, ZeroDivisionError, OverflowError):
        return None
    return (horizontal, vertical) if 0 < horizontal < 1e5 and 0 < vertical < 1e5 else None


def bounded(meta: Metadata) -> tuple[Metadata, tuple[str, ...]]:
    """The same without blocks that are too large, and a note for each of them."""
    notes = []
    changes: dict[str, object] = {}
    for name, limit in (("icc", MAX_BLOCK), ("exif", exif.MAX_BYTES), ("xmp", MAX_BLOCK), ("iptc", MAX_BLOCK)):
        block = getattr(meta, name)
        if block is not None and len(block) > limit:
            notes.append(f"the {name.upper()} block is larger than {limit >> 20} MB and was left out")
            changes[name] = None
    if sum(len(key) + len(value) for key, value in meta.text) > MAX_TEXT:
        notes.append(f"the texts are larger than {MAX_TEXT >> 20} MB and were left out")
        changes["text"] = ()
    return replace(meta, **changes), tuple(notes)  # type: ignore[arg-type]


def from_pillow(image: Image.Image) -> Metadata:
    """What Pillow found in a file that it has loaded (TIFF: see `core.deep`, whose directory holds it all)."""
    info = image.info
    block = info.get("exif")
    if not block and image.format == "PNG" and "Raw profile type exif" in info:
        block = image.getexif().tobytes()
    xmp = info.get("xmp") or info.get("XML:com.adobe.xmp")
    photoshop = info.get("photoshop")
    iptc = photoshop.get(_IPTC_RESOURCE) if isinstance(photoshop, dict) else None
    texts: dict[str, str] = {}
    if image.format == "PNG":
        found = getattr(image, "text", {})
        texts = {str(key): str(value) for key, value in found.items() if not _DISGUISED.match(str(key))}
        for key, value in found.items():
            if str(key).lower() == "raw profile type iptc":
                iptc = _from_raw_profile(str(value))
    elif "comment" in info:
        comment = info["comment"]
        texts = {"Comment": _decoded(comment) if isinstance(comment, bytes) else str(comment)}
    resolution = valid_dpi(info.get("dpi"))
    return Metadata(
        icc=_bytes(info.get("icc_profile")),
        exif=(_bytes(block) or b"").removeprefix(b"Exif\0\0") or None,
        xmp=_bytes(xmp),
        iptc=_bytes(iptc),
        dpi=resolution or exif_dpi(_bytes(block)),
        text=tuple(texts.items()),
    )


def _bytes(value: object) -> bytes | None:
    if isinstance(value, str):
        value = value.encode("utf-8", "replace")
    return value if isinstance(value, bytes) and value else None


def _decoded(value: bytes) -> str:
    value = value.rstrip(b"\0")
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        return value.decode("latin-1")


def exif_dpi(block: bytes | None) -> Dpi | None:
    """The resolution that an EXIF block states, for formats that have no place of their own for it."""
    if block is None:
        return None
    try:
        directory = exif.read_block(block.removeprefix(b"Exif\0\0"))
    except (ValueError, struct.error):
        return None
    return dpi_of(directory)


def dpi_of(directory: exif.Directory) -> Dpi | None:
    """The resolution that a directory states in inches or centimetres."""
    values = {entry.tag: entry.value for entry in directory.entries if entry.number == 1}
    sides = []
    for tag in (exif.X_RESOLUTION, exif.Y_RESOLUTION):
        raw = values.get(tag, b"")
        if len(raw) != 8:
            return None
        numerator, denominator = struct.unpack(directory.order + "II", raw)
        if not denominator:
            return None
        sides.append(numerator / denominator)
    raw = values.get(exif.RESOLUTION_UNIT, b"")
    unit = struct.unpack(directory.order + "H", raw)[0] if len(raw) == 2 else 2
    if unit not in (2, 3):
        return None
    factor = 2.54 if unit == 3 else 1.0
    return valid_dpi((sides[0] * factor, sides[1] * factor))


def for_result(
    meta: Metadata, options: Options, size: tuple[int, int], out_size: tuple[int, int]
) -> tuple[Metadata, tuple[str, ...]]:
    """What the result shall carry: corrected for its size and orientation, and without what was not wanted.

    Args:
        meta: of the input.
        options: `strip`, `drop_gps` and `keep_size` count here.
        size: of the input, upright, (width, height) in pixels.
        out_size: of the result, (width, height) in pixels.

    Returns:
        The metadata, and a note for each thing that could not be kept.
    """
    if options.strip:
        return Metadata(icc=meta.icc), ()
    notes = []
    width, height = out_size
    dpi = meta.dpi
    if dpi is not None and options.keep_size:
        dpi = valid_dpi((dpi[0] * width / size[0], dpi[1] * height / size[1]))
    block = None
    if meta.exif is not None:
        block = exif.corrected(meta.exif, width, height, dpi if options.keep_size else None, options.drop_gps)
        if block is None:
            notes.append("the EXIF block is damaged and was left out")
    xmp = None
    if meta.xmp is not None:
        xmp = corrected_xmp(meta.xmp, width, height, options.drop_gps)
        if xmp is None:
            notes.append("the XMP packet was left out: its places cannot be told from the rest")
    return replace(meta, exif=block, xmp=xmp, dpi=dpi), tuple(notes)


def corrected_xmp(packet: bytes, width: int, height: int, drop_gps: bool = False) -> bytes | None:
    """An XMP packet that is true of the result; None when places cannot be taken out of it for certain.

    Done on the text, so that everything else stays as it was to the byte. The patterns look ahead only to the next
    quote or bracket, so that a hostile packet costs no more than its length.
    """
    for names, value in (
        (rb"tiff:Orientation", 1),
        (rb"(?:exif:PixelXDimension|tiff:ImageWidth)", width),
        (rb"(?:exif:PixelYDimension|tiff:ImageLength)", height),
    ):
        packet = re.sub(rb"(" + names + rb"\s{0,9}(?:=\s{0,9}[\"']|>))\d{1,9}", rb"\g<1>%d" % value, packet)
    start = packet.find(b"<xmp:Thumbnails")
    end = packet.rfind(b"</xmp:Thumbnails>")
    if 0 <= start < end:
        packet = packet[:start] + packet[end + len(b"</xmp:Thumbnails>") :]
    if drop_gps:
        packet = re.sub(rb"\s(?:exif|exifEX):GPS\w{1,40}\s{0,9}=\s{0,9}(?:\"[^\"<]*\"|'[^'<]*')", b"", packet)
        packet = re.sub(rb"<((?:exif|exifEX):GPS\w{1,40})>[^<]*</\1>", b"", packet)
        if b"GPS" in packet or b"G\0P\0S" in packet:
            return None
    return packet


def photoshop_block(iptc: bytes) -> bytes:
    """IPTC records as the Photoshop image resource that JPEG and PNG carry them in."""
    padded = iptc + bytes(len(iptc) % 2)
    return b"8BIM" + struct.pack(">HHI", _IPTC_RESOURCE, 0, len(iptc)) + padded


def iptc_of(resources: bytes) -> bytes | None:
    """IPTC records in Photoshop image resources, or None."""
    at = 0
    while resources[at : at + 4] == b"8BIM" and at + 12 <= len(resources):
        (kind,) = struct.unpack_from(">H", resources, at + 4)
        name = resources[at + 6]
        at += 6 + (name + 2) // 2 * 2
        if at + 4 > len(resources):
            break
        (size,) = struct.unpack_from(">I", resources, at)
        if kind == _IPTC_RESOURCE:
            return resources[at + 4 : at + 4 + size]
        at += 4 + size + size % 2
    return None


def jpeg_segment(iptc: bytes) -> bytes:
    """The APP13 segment of a JPEG that carries IPTC records."""
    data = _PHOTOSHOP + photoshop_block(iptc)
    return b"\xff\xed" + struct.pack(">H", len(data) + 2) + data


def raw_profile(iptc: bytes) -> str:
    """IPTC records as the text "Raw profile type iptc", ImageMagick's convention for PNG, which ExifTool reads too."""
    data = photoshop_block(iptc)
    lines = data.hex()
    return f"\niptc\n{len(data):8d}\n" + "\n".join(lines[at : at + 72] for at in range(0, len(lines), 72)) + "\n"


def _from_raw_profile(value: str) -> bytes | None:
    parts = value.split()
    try:
        data = bytes.fromhex("".join(parts[2:]))
    except ValueError:
        return None
    return iptc_of(data) if data.startswith(b"8BIM") else data or None


def comment_of(meta: Metadata) -> str | None:
    """The one text that formats with room for one comment get."""
    texts = {key.lower(): value for key, value in meta.text}
    return texts.get("comment") or texts.get("description")


def exif_with_resolution(meta: Metadata) -> bytes | None:
    """The EXIF block, made when there is none, so that it states the resolution: WebP and AVIF have no other place."""
    if meta.dpi is None:
        return meta.exif
    if meta.exif is None:
        return exif.write_block(exif.Directory("<", list(exif.resolution(meta.dpi))))
    if exif_dpi(meta.exif) is not None:
        return meta.exif
    try:
        directory = exif.read_block(meta.exif)
    except (ValueError, struct.error):
        return meta.exif
    kept = [entry for entry in directory.entries if entry.tag not in (0x011A, 0x011B, 0x0128)]
    directory.entries = kept + list(exif.resolution(meta.dpi, directory.order))
    return exif.write_block(directory)
