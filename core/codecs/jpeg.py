"""JPEG: written here, from the pixels as they are, as Pillow would copy them first, four bytes for each.

Pillow reads it (`core.codecs.pillow`); what to know of a file's scans and of its coding is here.

Follows JFIF 1.02 and its neighbours: EXIF 2.32 (APP1), XMP part 3 (APP1), ICC.1 annex B (APP2), IPTC in Photoshop's
image resources (APP13).
"""

from __future__ import annotations

import io
import re
import struct
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO, Literal

import numpy as np
from PIL import Image, JpegImagePlugin

from core.codecs.base import USUAL_QUALITY, to_16_bits
from core.errors import UnreadableImage
from core.metadata.carried import Metadata, comment_of
from core.metadata.iptc import has_others, jpeg_segment
from core.picture import Pixels, Scan
from core.pixels.bands import in_rows

_XMP = b"http://ns.adobe.com/xap/1.0/\0"
_ICC = b"ICC_PROFILE\0"
_MOST = 65_533  # bytes in a segment
_LEAST_QUALITY = 85
#: A progressive JPEG has about ten scans. Each goes over the whole picture, so thousands in a small file are a trap.
_MAX_SCANS = 200
#: Bytes of XMP that there is a place for.
MAX_XMP = _MOST - len(_XMP)


def write(stream: BinaryIO, scan: Scan, quality: int | None) -> None:
    """Write a picture without alpha, band by band.

    Each band is coded as a JPEG that stands alone, and their scans are joined by restart markers (ITU-T T.81, E.1.4),
    at which a decoder begins anew: the coefficients are those of the picture coded at once.

    Args:
        stream: open for writing, binary.
        scan: uint8; its metadata fits into segments.
        quality: 1 to 100, as libjpeg counts; None takes the input's, at least 85, with its subsampling, else 95.
    """
    import imagecodecs

    if quality is None and scan.quality is not None:
        quality, subsampling = max(_LEAST_QUALITY, scan.quality), scan.subsampling
    else:
        quality = quality or USUAL_QUALITY
        subsampling = scan.subsampling or ("4:4:4" if quality >= 90 else "4:2:0")
    bands = scan.bands
    chosen = None if bands.channels == 1 else (subsampling or "4:4:4").replace(":", "")
    wide, tall = _BLOCKS[chosen]
    units = -(-bands.width // wide)  # in a row; what a restart interval counts
    rows = max(1, min(_ROWS // tall, 0xFFFF // units))
    for index, band in enumerate(in_rows(bands, rows * tall)):
        samples = np.ascontiguousarray(band[:, :, 0] if bands.channels == 1 else band)
        data = memoryview(imagecodecs.jpeg8_encode(samples, quality, subsampling=chosen, optimize=False))
        start = _scan_of(data)
        if index:
            stream.write(bytes([0xFF, 0xD0 + (index - 1) % 8]))
        else:
            interval = rows * units if rows * tall < bands.height else 0
            stream.write(_header(data[:start], bands.height, interval, scan.meta))
        stream.write(data[start:-2])  # without EOI
    stream.write(b"\xff\xd9")


#: Pixels of the unit that is coded at once, by subsampling (ITU-T T.81, A.2.3).
_BLOCKS = {None: (8, 8), "444": (8, 8), "422": (16, 8), "420": (16, 16)}
_ROWS = 128  # coded at once


def _scan_of(data: memoryview) -> int:
    """Where the coded pixels of a JPEG begin."""
    at = 2
    while data[at + 1] != 0xDA:
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")


def _header(head: memoryview, height: int, interval: int, meta: Metadata) -> bytes:
    """All before the coded pixels of a JPEG of `height` rows, made from one of its first rows.

    Args:
        head: of that one.
        height: pixels.
        interval: units from one restart to the next; 0 for none.
        meta: what is carried beside the pixels.
    """
    parts = [bytearray(head[:20])]  # SOI and the JFIF segment
    if meta.dpi is not None and max(meta.dpi) < 65_535.5:
        parts[0][13:18] = struct.pack(">BHH", 1, *(round(value) for value in meta.dpi))
    parts += [bytearray(segment) for segment in _segments(meta)]
    at = 20
    while at < len(head):
        length = 2 + int.from_bytes(head[at + 2 : at + 4], "big")
        segment = bytearray(head[at : at + length])
        if segment[1] in (0xC0, 0xC1):  # the frame
            segment[5:7] = struct.pack(">H", height)
        elif segment[1] == 0xDA and interval:
            parts.append(bytearray(struct.pack(">BBHH", 0xFF, 0xDD, 4, interval)))
        parts.append(segment)
        at += length
    return b"".join(parts)


def _segments(meta: Metadata) -> Iterator[bytes]:
    def segment(marker: int, content: bytes) -> bytes:
        return struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content

    if meta.exif is not None:
        yield segment(0xE1, b"Exif\0\0" + meta.exif)
    if meta.xmp is not None:
        yield segment(0xE1, _XMP + meta.xmp)
    if meta.icc is not None:
        room = _MOST - len(_ICC) - 2
        parts = [meta.icc[at : at + room] for at in range(0, len(meta.icc), room)]
        for index, part in enumerate(parts, start=1):
            yield segment(0xE2, _ICC + bytes([index, len(parts)]) + part)
    if meta.iptc is not None:
        yield jpeg_segment(meta.iptc)
    if comment := comment_of(meta):
        yield segment(0xFE, comment.encode())


@dataclass(frozen=True)
class Checked:
    """A JPEG as it goes to the decoder.

    Attributes:
        data: the one picture, from its first marker to its end marker, with a header of whole segments only; empty
            where it is usual and ended, and need not be held.
        stream: the same with a frame header that Pillow opens.
        bits: of a sample.
        scans: how often the decoder goes over the picture.
        usual: False for kinds that Pillow does not read.
        ended: False when the end marker is missing.
        emptied: of what the XMP packet may speak although it is gone (`core.metadata.xmp.without`).
        notes: one line for each thing that was left out.
    """

    data: bytes
    stream: BinaryIO
    bits: int
    scans: int
    usual: bool
    ended: bool
    emptied: bool
    notes: tuple[str, ...]


def check(stream: BinaryIO) -> Checked:
    """Walk through the markers of a JPEG, as libjpeg does, and no further than to the end of the picture.

    What stands behind it (videos of motion photos, gain maps, further pictures) has markers of its own.

    Raises:
        UnreadableImage: of a kind that is not read, or with more scans than any camera writes.
    """
    raw = _Lazy(stream)
    head = bytearray(raw[:2])
    at, frame, left_out, counted = 2, -1, Counter[str](), 0
    while True:
        at = raw.find(b"\xff", at)
        while at >= 0 and raw[at + 1 : at + 2] == b"\xff":
            at += 1
        if at < 0 or at + 4 > len(raw):
            raise UnreadableImage("the picture is damaged: it ends in its header")
        marker, length = raw[at + 1 : at + 2][0], int.from_bytes(raw[at + 2 : at + 4], "big")
        if marker in (0x00, 0x01, *range(0xD0, 0xD9)):  # these stand alone, and have no business here
            at += 2
            continue
        if marker == 0xDA or length < 2:
            break
        segment = raw[at : at + 2 + length]
        at += 2 + length
        named, counts = _left_out(marker, segment[4:])
        counted = max(counted, counts)
        if named:
            left_out[named] += 1
        if named != _UNSAID and not (marker == 0xE0 and segment[4:9] == b"JFIF\0" and length < 16):
            if marker in _FRAMES:
                frame = len(head)
            head += segment
    if frame < 0:
        raise UnreadableImage("the picture is damaged: it has no frame header")
    kind, bits = head[frame + 1], head[frame + 4]
    if _FRAMES[kind]:
        raise UnreadableImage(f"this is a {_FRAMES[kind]} JPEG, which is not read: save it as a usual (baseline) one")
    end, scans = _end_of(raw, at)
    if scans > _MAX_SCANS:
        raise UnreadableImage(f"the picture has {scans} scans, which no camera writes")
    notes = _notes(left_out, counted, _Trailer(raw, end), b"hdrgm:" in head)
    ended = raw[max(at, end - 2) : end] == b"\xff\xd9"
    usual = bits == 8 and kind != _LOSSLESS
    if usual and ended:
        rest = io.BufferedReader(_Spliced(bytes(head), stream, at, end))
        return Checked(b"", rest, bits, scans, usual, ended, bool(notes), notes)
    data = bytes(head) + raw[at:end]
    if not usual:
        head[frame + 1], head[frame + 4] = 0xC0, 8
    data = data if ended else data + b"\xff\xd9"
    header = data if usual else bytes(head) + data[len(head) :]
    return Checked(data, io.BytesIO(header), bits, scans, usual, ended, bool(notes), notes)


def header_alone(stream: BinaryIO) -> bytes | None:
    """All that stands before the first scan of a JPEG, as a JPEG without pixels; None for anything else.

    For files of which the rest is far away: only the segments are read.
    """
    found = bytearray(stream.read(2))
    if found != b"\xff\xd8":
        return None
    while True:
        marker = stream.read(4)
        length = int.from_bytes(marker[2:], "big")
        if len(marker) < 4 or marker[0] != 0xFF or not 0xC0 <= marker[1] < 0xFF or length < 2:
            return None  # odd, or broken: the whole file will tell
        segment = stream.read(length - 2)
        found += marker + segment
        if marker[1] == 0xDA:
            return bytes(found) + b"\xff\xd9"


class _Lazy:
    """The bytes of a file, read when they are asked for: what stands behind a picture may be long."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._length = file.seek(0, io.SEEK_END)

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, part: slice) -> bytes:
        start, stop, _ = part.indices(self._length)
        self._file.seek(start)
        return self._file.read(max(0, stop - start))

    def find(self, byte: bytes, start: int) -> int:
        """Where a byte is next, -1 for nowhere."""
        size = 64  # it is nearly always the first
        while start < self._length:
            if (found := self[start : start + size].find(byte)) >= 0:
                return start + found
            start, size = start + size, min(2 * size, _PIECE)
        return -1


class _Trailer:
    """What stands behind the end of a picture.

    Args:
        raw: the file.
        end: where that is.

    Attributes:
        length: bytes.
        filled: how many of them are not zero.
    """

    def __init__(self, raw: _Lazy, end: int) -> None:
        self.length, self.filled = len(raw) - end, 0
        self._found: set[bytes] = set()
        before = b""
        for at in range(end, len(raw), _PIECE):
            piece = raw[at : at + _PIECE]
            self.filled += len(piece) - piece.count(0)
            both = before + piece[: max(map(len, _NAMES))]  # a name may lie across
            self._found |= {name for name in _NAMES if name in piece or name in both}
            before = piece[-max(map(len, _NAMES)) :]

    def __contains__(self, name: bytes) -> bool:
        """Whether one of `_NAMES` stands in it."""
        return name in self._found


class _Spliced(io.RawIOBase):
    """A header, and then the bytes [start, stop) of a file, which are read from it when they are wanted."""

    def __init__(self, header: bytes, file: BinaryIO, start: int, stop: int) -> None:
        self._header, self._file, self._start, self._length = header, file, start, len(header) + stop - start
        self._at = 0

    def readable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """It is."""
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        """Go to a place, counted from the start, from here or from the end."""
        self._at = max(0, offset + (0, self._at, self._length)[whence])
        return self._at

    def readinto(self, buffer: Any) -> int:
        """Some of the bytes that follow, and how many these are."""
        if self._at < len(self._header):
            data = self._header[self._at : self._at + len(buffer)]
        else:
            self._file.seek(self._start + self._at - len(self._header))
            data = self._file.read(max(0, min(len(buffer), self._length - self._at)))
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)


#: Frame headers (ITU-T T.81, table B.1), and names of those that are not read.
_LOSSLESS = 0xC3
_FRAMES = {0xC0: "", 0xC1: "", 0xC2: "", _LOSSLESS: "", 0xC9: "", 0xCA: ""}
_FRAMES |= dict.fromkeys((0xC5, 0xC6, 0xC7, 0xCD, 0xCE, 0xCF), "hierarchical")
_FRAMES |= {0xCB: "lossless arithmetic", 0xF7: "JPEG-LS"}
_UNSAID = "a table of the file's other pictures"
#: Application segments by their first bytes, and what is left out with each; "" for what is kept or says nothing.
_SEGMENTS = (
    (0xE0, b"JFXX\0", "a thumbnail (JFXX)"),
    (0xE0, b"", ""),
    (0xE1, b"Exif\0", ""),
    (0xE1, b"http://ns.adobe.com/", ""),
    (0xE1, b"FLIR\0", "thermal data (FLIR)"),
    (0xE2, b"ICC_PROFILE\0", ""),
    (0xE2, b"MPF\0", _UNSAID),
    (0xE2, b"FPXR\0", "FlashPix data"),
    (0xE2, b"urn:iso:std:iso:ts:21496:-1\0", "the gain map's numbers (ISO 21496-1)"),
    (0xEB, b"JP", "content credentials or other boxes (JUMBF)"),
    (0xEC, b"Ducky", ""),
    (0xED, b"Photoshop 3.0\0", ""),
    (0xEE, b"Adobe", ""),
)


def _left_out(marker: int, content: bytes) -> tuple[str, int]:
    """What is left out with a segment, "" for nothing, and how many pictures an MPF segment counts."""
    if not 0xE0 <= marker <= 0xEF:
        return "", 0
    name = next((name for kind, start, name in _SEGMENTS if kind == marker and content.startswith(start)), None)
    if name is None:
        return f"data of an application (APP{marker - 0xE0})", 0
    if marker == 0xED and len(content) > 14 and has_others(content[14:]):
        return "Photoshop's own blocks", 0
    if name != _UNSAID:
        return name, 0
    at = content.find(b"\xb0\x01\0\x04")  # CIPA DC-007: number of images
    order: Literal["big", "little"] = "big"
    if at < 0:
        at, order = content.find(b"\x01\xb0\x04\0"), "little"
    return name, int.from_bytes(content[at + 8 : at + 12], order) if at >= 0 else 0


def _end_of(raw: _Lazy, at: int) -> tuple[int, int]:
    """Where the picture ends whose first scan begins at an offset, behind its end marker, and how many scans it has."""
    scans, base, piece = 0, at, b""
    while True:
        found = _MARKER.search(piece, at - base)
        if found is None:
            at = max(at, base + len(piece) - piece.endswith(b"\xff"))  # half a marker may stand at the end
            base, piece = at, raw[at : at + _PIECE]
            if len(piece) < 2:
                return len(raw), scans
            continue
        end, marker = base + found.end(), piece[found.end() - 1]
        if marker == 0xD9:
            return end, scans
        scans += marker == 0xDA
        size = piece[found.end() : found.end() + 2]
        at = end + int.from_bytes(size if len(size) == 2 else raw[end : end + 2], "big")


_MARKER = re.compile(rb"\xff+[^\x00\x01\xff\xd0-\xd8]", re.DOTALL)
_PIECE = 1 << 20  # bytes that are read at once
#: Names that tell what stands behind a picture: of gain maps, and of a video.
_NAMES = (b"hdrgm:", b"HDRGainMap", b"ftyp")


def _notes(left_out: Counter[str], counted: int, trailer: _Trailer, hdr: bool) -> tuple[str, ...]:
    notes = []
    others = max(counted - 1, 0)
    if hdr or any("21496" in name for name in left_out) or b"hdrgm:" in trailer or b"HDRGainMap" in trailer:
        notes.append("the gain map, which makes the picture brighter on HDR screens, was left out")
        others -= 1
    if b"ftyp" in trailer:
        notes.append("the video of a motion photo was left out")
    if others > 0:
        notes.append(f"the first of {others + 1} pictures in the file was taken")
    if not notes and trailer.filled > 16:
        notes.append(f"{trailer.length:,} bytes behind the end of the picture were left out")
    names = [name for name in left_out if name and name != _UNSAID and "21496" not in name]
    if names:
        notes.append(f"left out: {', '.join(names)}")
    return tuple(notes)


def decode_unusual(checked: Checked) -> Pixels:
    """(h, w, 1 or 3) uint8 or uint16 of a JPEG of 12 bits, or a lossless one.

    Raises:
        ValueError: its colours are of a kind that is not read.
    """
    import imagecodecs

    values = imagecodecs.jpeg8_decode(checked.data)
    values = values.reshape(*values.shape[:2], -1)
    if values.shape[2] not in (1, 3):
        raise ValueError("a JPEG of more than 8 bits is read in grey and RGB only")
    return to_16_bits(values, checked.bits) if values.dtype == np.uint16 else values


def refuse_truncated(checked: Checked, seen: Pixels) -> None:
    """Refuse a JPEG without its end marker if pixels are missing, too.

    If it is whole, further bits change nothing; else they are taken for the missing pixels.

    Args:
        checked: the file.
        seen: the pixels as decoded with an end marker added.

    Raises:
        UnreadableImage: it is truncated.
    """
    if checked.ended:
        return
    with Image.open(io.BytesIO(checked.data[:-2] + b"\x55" * 256 + b"\xff\xd9"), formats=["JPEG"]) as image:
        again = np.asarray(image)
    if not np.array_equal(again.reshape(-1), seen.reshape(-1)):
        raise UnreadableImage("the picture is damaged: it ends before its last row")


def coding(image: Image.Image) -> tuple[int | None, str | None]:
    """Quality, 1 to 100 as libjpeg counts it, and subsampling of a JPEG that Pillow has opened; None where unknown."""
    tables = getattr(image, "quantization", None) or {}
    table = tables.get(0)
    subsampling = {0: "4:4:4", 1: "4:2:2", 2: "4:2:0"}.get(JpegImagePlugin.get_sampling(image))
    if not table:
        return None, subsampling
    # libjpeg scales the table of the standard (Annex K, sum 3,679) by 50 / q below 50, and by 2 - q / 50 above.
    factor = sum(table) / 3679
    quality = 50 / factor if factor > 1 else 100 - 50 * factor
    return max(1, min(100, round(quality))), subsampling
