"""Formats of picture files: their names, endings, media types and signatures, and what each can hold."""

from __future__ import annotations

from pathlib import Path

from core.errors import UnreadableImage

#: Output formats by their names in options, with Pillow's name.
FORMATS = {"jpeg": "JPEG", "png": "PNG", "webp": "WEBP", "tiff": "TIFF", "bmp": "BMP", "avif": "AVIF"}
#: What is read, with Pillow's name; HEIF is read by a separate library.
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
#: Longest side that a format can hold, in pixels (JPEG: that libjpeg reads).
MAX_SIDE = {"jpeg": 65_500, "webp": 16_383, "avif": 32_768}
#: A BMP states its size in 32 bits; three bytes a pixel.
MAX_BMP_PIXELS = 0xFFFF_0000 // 3
#: Output formats that are written from top to bottom; the others hold a picture whole.
STREAMED = frozenset({"jpeg", "png", "tiff", "bmp"})
#: Bytes of a file for a byte of pixels, about, measured on photographs.
_STORED = {"jpeg": 0.25, "png": 0.65, "webp": 0.5, "tiff": 0.75, "bmp": 1.0, "avif": 0.2}
#: For messages.
READABLE = "JPEG, PNG, WebP, TIFF, BMP, GIF, HEIC or AVIF"
#: Formats that store frames with times, and those that store pages.
ANIMATED, PAGED = frozenset({"png", "webp", "avif"}), frozenset({"tiff"})


def stored_bytes(format: str, pixels: int, *, alpha: bool, bits: int, pyramid: bool = False) -> int:
    """About how large a file becomes.

    Args:
        format: one of `FORMATS`.
        pixels: width * height, all frames or pages together.
        alpha: whether there is opacity.
        bits: of a channel.
        pyramid: with smaller copies, which have a third as many pixels together.
    """
    deep = bits > 8 and format in ("png", "tiff")
    channels = 4 if alpha and format not in ("jpeg", "bmp") else 3
    return int(_STORED[format] * pixels * channels * (2 if deep else 1) * (4 / 3 if pyramid else 1))


def suffix_format(suffix: str) -> str | None:
    """The output format that a file name's suffix stands for, or None: ".jpg" is "jpeg"."""
    name = _BY_SUFFIX.get(suffix.lower())
    return name if name in FORMATS else None


def named_format(name: str) -> str | None:
    """The output format that people mean, or None: "PNG" is "png", "jpg" and ".JPG" are "jpeg"."""
    lower = name.strip().lower()
    return lower if lower in FORMATS else suffix_format("." + lower.removeprefix("."))


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


#: First bytes, at an offset, of kinds that are not read, and what each is.
_UNREAD = (
    (0, b"\xff\x0a", "JPEG XL"),
    (0, b"\0\0\0\x0cJXL ", "JPEG XL"),
    (0, b"\0\0\0\x0cjP  ", "JPEG 2000"),
    (0, b"\xff\x4f\xff\x51", "JPEG 2000"),
    (0, b"II\xbc", "JPEG XR"),
    (0, b"8BPS", "Photoshop"),
    (0, b"%PDF", "PDF"),
    (0, b"%!PS", "PostScript"),
    (0, b"\x76\x2f\x31\x01", "OpenEXR"),
    (0, b"#?R", "Radiance HDR"),
    (0, b"DDS ", "DDS"),
    (0, b"\0\0\1\0", "Windows icon"),
    (0, b"\0\0\2\0", "Windows cursor"),
    (0, b"icns", "Apple icon"),
    (0, b"qoif", "QOI"),
    (0, b"gimp xcf", "GIMP"),
    (0, b"SIMPLE  =", "FITS"),
    (128, b"DICM", "DICOM"),
    (0, b"\x1aE\xdf\xa3", "Matroska or WebM video"),
    (0, b"RIFF", "RIFF (AVI or WAV)"),
    (0, b"PK\3\4", "ZIP"),
    (0, b"\x1f\x8b", "gzip"),
    (0, b"<svg", "SVG"),
    (0, b"<?xml", "XML (SVG, perhaps)"),
    (0, b"<!DOCTYPE html", "HTML"),
    (0, b"<html", "HTML"),
    (0, b"version https://git-lfs", "Git LFS pointer"),
)
_RAW = (
    (0, b"FUJIFILMCCD-RAW"),
    (0, b"IIRO"),
    (0, b"IIRS"),
    (0, b"MMOR"),
    (0, b"IIU\0"),
    (0, b"FOVb"),
    (4, b"ftypcrx "),
)
_RAW_SUFFIXES = "RAF, ORF, RW2, X3F, CR3"


def unread(head: bytes) -> str:
    """Why a file that `sniff` does not know is not read, and the way out."""
    if any(head[at : at + len(start)] == start for at, start in _RAW):
        return f"this is a camera's raw file ({_RAW_SUFFIXES} or the like): develop it first, to TIFF or JPEG"
    kind = next((kind for at, start, kind in _UNREAD if head[at : at + len(start)] == start), None)
    if kind is None and head[:1] == b"P" and head[1:2] in b"1234567" and head[2:3].isspace():
        kind = "Netpbm"
    if kind is None and head[4:8] == b"ftyp":
        kind = "MP4 or QuickTime video"
    if kind is None:
        return f"not a picture that can be read: give {READABLE}"
    return f"{kind} files are not read: save it as {READABLE}"


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
