"""What Pillow found in a file beside its pixels, and what of it is a block in disguise."""

from __future__ import annotations

import re

from PIL import Image

from core.metadata.carried import Metadata
from core.metadata.iptc import IPTC_RESOURCE, from_raw_profile, iptc_of
from core.metadata.resolution import exif_dpi, valid_dpi

_XMP_HEAD = b"http://ns.adobe.com/xap/1.0/\0"
_RAW = re.compile(r"raw profile type ", re.IGNORECASE)
#: Texts of a PNG that are separate blocks in disguise.
_DISGUISED = re.compile(r"xml:com\.adobe\.xmp$|raw profile type ", re.IGNORECASE)


def found(image: Image.Image) -> tuple[Metadata, tuple[str, ...]]:
    """What Pillow found (TIFF: see `core.codecs.tiff`, whose directory holds it all), and notes."""
    info = image.info
    block, icc = _bytes(info.get("exif")), _bytes(info.get("icc_profile"))
    xmp = _bytes(info.get("xmp") or info.get("XML:com.adobe.xmp"))
    photoshop = info.get("photoshop")
    iptc = _bytes(photoshop.get(IPTC_RESOURCE)) if isinstance(photoshop, dict) else None
    texts: dict[str, str] = {}
    notes: tuple[str, ...] = ()
    if image.format == "PNG":
        text = getattr(image, "text", {})
        texts = {str(key): str(value) for key, value in text.items() if not _DISGUISED.match(str(key))}
        raw = {str(key).lower(): from_raw_profile(str(value)) for key, value in text.items() if _RAW.match(str(key))}
        for name, data in raw.items():
            kind = name.removeprefix("raw profile type ")
            if kind in ("exif", "app1") and data is not None and not data.startswith(_XMP_HEAD):
                block = block or data
            elif kind in ("xmp", "app1") and data is not None:
                xmp = xmp or data.removeprefix(_XMP_HEAD)
            elif kind in ("iptc", "8bim") and data is not None:
                iptc = iptc or (iptc_of(data) if data.startswith(b"8BIM") else data)
            elif kind in ("icc", "icm") and data is not None:
                icc = icc or data
            else:
                notes += (f"a raw profile ({kind[:20]}) was left out",)
    elif "comment" in info:
        comment = info["comment"]
        texts = {"Comment": _decoded(comment) if isinstance(comment, bytes) else str(comment)}
    block = (block or b"").removeprefix(b"Exif\0\0") or None
    meta = Metadata(icc, block, xmp, iptc, valid_dpi(info.get("dpi")) or exif_dpi(block), tuple(texts.items()))
    return meta, notes


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
