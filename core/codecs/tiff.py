"""TIFF, which holds more than any one library carries through: pages, 16 bits, floats, EXIF directories, over 4 GB.

Reading: directories are parsed here, so that sizes are known before any decoder runs. Pixels of up to 8 bits come from
Pillow (libtiff), deeper ones from tifffile. Writing is done here: Pillow has no 16-bit colour, and tifffile cannot
write the EXIF and GPS directories.

Follows TIFF 6.0 and, for files over 4 GB, BigTIFF.
"""

from __future__ import annotations

import logging
import re
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
from PIL import Image

from core.codecs.base import decoder_errors, raise_guard, split, to_16_bits, upright
from core.errors import TooLarge, UnreadableImage
from core.limits import Limits, check_size
from core.metadata import ifd
from core.metadata.carried import MAX_BLOCK, Metadata, bounded, comment_of
from core.metadata.ifd import Directory, Entry, Order
from core.metadata.iptc import iptc_of
from core.metadata.resolution import dpi_of
from core.picture import Picture, Pixels, Probe, SampleRange
from core.pixels import colour
from core.pixels.alpha import unpremultiply

Samples = npt.NDArray[Any]

_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC = 256, 257, 258, 259, 262
_STRIP_OFFSETS, _SAMPLES, _ROWS_PER_STRIP, _STRIP_BYTES, _PLANAR = 273, 277, 278, 279, 284
_PREDICTOR, _TILE_WIDTH, _TILE_HEIGHT, _EXTRA_SAMPLES, _SAMPLE_FORMAT = 317, 322, 323, 338, 339
_XMP, _IPTC, _PHOTOSHOP, _ICC = 700, 33723, 34377, 34675
_FACTS = frozenset([_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC, _SAMPLES, _PLANAR, _TILE_WIDTH, _TILE_HEIGHT])
_FACTS |= {_EXTRA_SAMPLES, _SAMPLE_FORMAT, _XMP, _IPTC, _PHOTOSHOP, _ICC}
_FACTS |= {ifd.ORIENTATION, ifd.X_RESOLUTION, ifd.Y_RESOLUTION, ifd.RESOLUTION_UNIT}
#: Compressions that tifffile is let decode: none, LZW, deflate (two numbers), PackBits, LZMA, Zstandard.
_DEEP_COMPRESSIONS = (1, 5, 8, 32946, 32773, 34925, 50000)
_MIN_IS_WHITE, _MIN_IS_BLACK, _RGB, _CMYK, _CIELAB, _ICCLAB = 0, 1, 2, 5, 8, 9
_COLOURS = {_MIN_IS_WHITE: 1, _MIN_IS_BLACK: 1, _RGB: 3, _CMYK: 4, _CIELAB: 3, _ICCLAB: 3}
_UNSIGNED, _SIGNED, _FLOAT = 1, 2, 3
#: Above this many bytes of pixels the file becomes a BigTIFF: offsets of 32 bits end at 4 GiB.
BIG = 0xF000_0000
_STRIP = 1 << 18  # bytes of pixels in one strip of what is written


@dataclass(frozen=True)
class _Page:
    """What one directory says, checked.

    Attributes:
        offset: of the directory, bytes.
        width: pixels, upright.
        height: pixels, upright.
        bits: of the deepest sample.
        kind: sample format, 1 unsigned, 2 signed, 3 float.
        samples: channels, alpha included.
        orientation: 1 to 8.
        fields: the directory's fields of `_FACTS`.
    """

    offset: int
    width: int
    height: int
    bits: int
    kind: int
    samples: int
    orientation: int
    fields: Directory

    def numbers(self, tag: int, default: tuple[int, ...]) -> tuple[int, ...]:
        """The whole numbers of a field."""
        return _numbers(self.fields, tag, default)

    def block(self, tag: int) -> bytes | None:
        """The bytes of a field, or None."""
        return next((entry.value for entry in self.fields.entries if entry.tag == tag and entry.value), None)


def _numbers(fields: Directory, tag: int, default: tuple[int, ...]) -> tuple[int, ...]:
    letters = {1: "B", 3: "H", 4: "I"}
    for entry in fields.entries:
        if entry.tag == tag and entry.type in letters and 0 < entry.number <= 1000:
            return struct.unpack(f"{fields.order}{entry.number}{letters[entry.type]}", entry.value)
    return default


def _read_pages(stream: BinaryIO, limits: Limits) -> tuple[list[_Page], bool]:
    """All directories of the chain, and whether the file is a BigTIFF.

    Raises:
        UnreadableImage: the chain is broken or runs in a circle.
        TooLarge: over a limit.
    """
    stream.seek(0)
    head = stream.read(16)
    order: Order = "<" if head.startswith(b"II") else ">"
    big = head[2:4] in (b"+\0", b"\0+")
    if len(head) < (16 if big else 8):
        raise UnreadableImage("the picture is damaged: it ends in its header")
    (offset,) = struct.unpack_from(order + ("Q" if big else "I"), head, 8 if big else 4)
    pages: list[_Page] = []
    seen: set[int] = set()
    pixels = 0
    while offset:
        if offset in seen:
            break  # a circle: the pages so far are what there is
        seen.add(offset)
        fields, following = ifd.read_fields(stream, offset, order, big, _FACTS, 4 * MAX_BLOCK)
        page = _page(offset, fields)
        check_size(page.width, page.height, len(pages) + 1, replace(limits, input_pixels=1 << 62))
        pixels += page.width * page.height
        if pixels > limits.input_pixels:
            check_size(page.width, page.height, 1, limits)
            raise TooLarge(
                f"the pages have more than the limit of {limits.input_pixels / 1e6:,.6g} megapixels together"
            )
        tile = page.numbers(_TILE_WIDTH, (0,))[0] * page.numbers(_TILE_HEIGHT, (0,))[0]
        if tile > max(limits.input_pixels, 1 << 20):
            raise TooLarge("the picture's tiles are larger than any picture may be")
        pages.append(page)
        offset = following
    if not pages:
        raise UnreadableImage("the picture is damaged: it has no pages")
    return pages, big


def _page(offset: int, fields: Directory) -> _Page:
    width, height = _numbers(fields, _WIDTH, (0,))[0], _numbers(fields, _HEIGHT, (0,))[0]
    samples = _numbers(fields, _SAMPLES, (1,))[0]
    orientation = _numbers(fields, ifd.ORIENTATION, (0,))[0]
    if not orientation:  # said in XMP only
        packet = next((entry.value for entry in fields.entries if entry.tag == _XMP), b"")
        found = re.search(rb"tiff:Orientation(?:=\"|>)([1-8])", packet)
        orientation = int(found[1]) if found else 1
    orientation = orientation if 1 <= orientation <= 8 else 1
    if orientation >= 5:
        width, height = height, width
    kinds = _numbers(fields, _SAMPLE_FORMAT, (_UNSIGNED,))
    kind = max(kind if kind <= _FLOAT else _UNSIGNED for kind in kinds)  # 4 is "undefined"
    return _Page(offset, width, height, max(_numbers(fields, _BITS, (1,))), kind, samples, orientation, fields)


def open_tiff(stream: BinaryIO, size: int, limits: Limits) -> tuple[Probe, Callable[[], Iterator[Picture]]]:
    """The header of a TIFF, and a function that decodes its pages.

    Raises:
        UnreadableImage: damaged, or of a kind that is not read.
        TooLarge: over a limit.
    """
    pages, big = _read_pages(stream, limits)
    first = pages[0]
    colours = _COLOURS.get(first.numbers(_PHOTOMETRIC, (_MIN_IS_BLACK,))[0], 3)
    mode = {1: "L", 3: "RGB", 4: "CMYK"}[colours]
    bits = max(8, *(page.bits for page in pages))
    alpha = first.samples > colours
    mode += "A" if alpha else ""
    pixels = sum(page.width * page.height for page in pages)
    found = Probe("tiff", first.width, first.height, size, mode, len(pages), None, alpha, bits, pixels)

    def decode_pages() -> Iterator[Picture]:
        for index, page in enumerate(pages):
            with decoder_errors():
                meta, notes = _metadata(stream, page, big)
                deep = page.bits > 8 or page.kind != _UNSIGNED
                picture = None if deep else _by_pillow(stream, index, page, meta, limits)
                if picture is None:
                    picture = _by_tifffile(stream, index, page, meta)
                if picture.pixels.shape[:2] != (page.height, page.width):
                    raise UnreadableImage("the picture is damaged: it is not of the size that its header says")
                picture = replace(picture, notes=notes + picture.notes)
            yield picture

    return found, decode_pages


def _metadata(stream: BinaryIO, page: _Page, big: bool) -> tuple[Metadata, tuple[str, ...]]:
    order = page.fields.order
    notes: tuple[str, ...] = ()
    block = None
    try:
        described = ifd.read_tiff(stream, page.offset, order, big)
        if described.entries or described.subdirectories:
            block = ifd.write_block(described)
    except (ValueError, struct.error):
        notes = ("the description of the picture is damaged and was left out",)
    iptc = page.block(_IPTC) or iptc_of(page.block(_PHOTOSHOP) or b"")
    found = Metadata(page.block(_ICC), block, page.block(_XMP), iptc, dpi_of(page.fields))
    found, said = bounded(found)
    return found, notes + said


def _by_pillow(stream: BinaryIO, index: int, page: _Page, meta: Metadata, limits: Limits) -> Picture | None:
    """A page of up to 8 bits; None when Pillow does not know its layout."""
    raise_guard(limits)
    stream.seek(0)
    try:
        image = Image.open(stream, formats=["TIFF"])
        image.seek(index)
    except (OSError, SyntaxError, EOFError, KeyError, TypeError):
        return None
    if page.width * page.height != image.width * image.height:
        raise UnreadableImage("the picture is damaged: its directory contradicts itself")
    image.load()  # which also turns it upright
    if image.size != (page.width, page.height):
        raise UnreadableImage("the picture is damaged: its directory contradicts itself")
    photometric = page.numbers(_PHOTOMETRIC, (_MIN_IS_BLACK,))[0]
    if image.mode == "LAB":
        raw = np.asarray(image)
        pixels = _lab(raw, photometric)
        notes: tuple[str, ...] = ("Lab was converted to sRGB",)
        return Picture(pixels, None, replace(meta, icc=None), notes=notes, lossless=_lossless(page))
    if image.mode == "CMYK":
        pixels, notes = colour.cmyk_to_rgb(np.asarray(image), meta.icc)
        return Picture(pixels, None, replace(meta, icc=None), notes=notes, lossless=_lossless(page))
    pixels, alpha = split(image)
    icc, notes = colour.checked(meta.icc, "GRAY" if pixels.shape[2] == 1 else "RGB")
    return Picture(pixels, alpha, replace(meta, icc=icc), notes=notes, lossless=_lossless(page))


def _lossless(page: _Page) -> bool:
    return page.numbers(_COMPRESSION, (1,))[0] not in (6, 7)  # JPEG, old and new


def _by_tifffile(stream: BinaryIO, index: int, page: _Page, meta: Metadata) -> Picture:
    """A page of any depth, in floats or integers."""
    import tifffile

    logging.getLogger("tifffile").setLevel(logging.CRITICAL + 1)  # it reports every oddity of a file
    photometric = page.numbers(_PHOTOMETRIC, (_MIN_IS_BLACK,))[0]
    compression = page.numbers(_COMPRESSION, (1,))[0]
    colours = _COLOURS.get(photometric)
    if colours is None or not colours <= page.samples <= colours + 4 or compression not in _DEEP_COMPRESSIONS:
        raise UnreadableImage("this kind of TIFF is not read: save it uncompressed, in grey, RGB or CMYK")
    stream.seek(0)
    with tifffile.TiffFile(stream, name="input") as file:
        series = file.pages[index]
        if not isinstance(series, tifffile.TiffPage) or series.dtype is None or series.imagedepth != 1:
            raise UnreadableImage("this kind of TIFF is not read: save it uncompressed, in grey, RGB or CMYK")
        size = (series.imagelength, series.imagewidth, series.samplesperpixel)
        if size[0] * size[1] != page.width * page.height or size[2] != page.samples:
            raise UnreadableImage("the picture is damaged: its directory contradicts itself")
        values = np.asarray(series.asarray(maxworkers=1))
    planar = page.numbers(_PLANAR, (1,))[0] == 2 or (values.ndim == 3 and values.shape == (size[2], *size[:2]))
    values = np.moveaxis(values.reshape(size[2], *size[:2]), 0, -1) if planar else values.reshape(size)
    picture = _interpreted(values, page, photometric, colours, meta)
    alpha = picture.alpha
    return replace(
        picture,
        pixels=upright(picture.pixels, page.orientation),
        alpha=None if alpha is None else upright(alpha, page.orientation),
        lossless=True,
    )


def _interpreted(values: Samples, page: _Page, photometric: int, colours: int, meta: Metadata) -> Picture:
    """Samples, (h, w, samples) of any type, as a picture, not yet upright."""
    notes: tuple[str, ...] = ()
    if photometric in (_CIELAB, _ICCLAB):
        return Picture(_lab(values, photometric), meta=replace(meta, icc=None), notes=("Lab was converted to sRGB",))
    pixels, levels = _to_pixels(values[:, :, :colours], page.bits)
    alpha: Pixels | None = None
    if values.shape[2] > colours:
        meaning = page.numbers(_EXTRA_SAMPLES, (0,))[0]
        if meaning in (1, 2):
            # The same scale as the colour, unless that was stretched to what occurs.
            alpha = _to_pixels(values[:, :, colours], page.bits, opaque=True)[0]
            if meaning == 1:
                pixels = unpremultiply(pixels, alpha)
        else:
            notes += ("a channel of no stated meaning was left out",)
    if photometric == _MIN_IS_WHITE:
        pixels = np.iinfo(pixels.dtype).max - pixels
    if photometric == _CMYK:
        pixels, said = colour.cmyk_to_rgb(pixels, meta.icc)
        return Picture(pixels, alpha, replace(meta, icc=None), notes=notes + said)
    icc, said = colour.checked(meta.icc, "GRAY" if pixels.shape[2] == 1 else "RGB")
    return Picture(pixels, alpha, replace(meta, icc=icc), levels=levels, notes=notes + said)


def _to_pixels(values: Samples, bits: int, opaque: bool = False) -> tuple[Pixels, SampleRange | None]:
    """Numbers of any type as uint8 or uint16, and what these stand for unless it is the type's own range.

    Floats from 0 to 1 are taken for that range, as in photographs; other floats, and integers other than plain 8 or
    16 bits, are stretched from 0 (or the least, when that is below) to the greatest that occurs.
    """
    if values.dtype == np.uint8 and bits == 8:
        return np.ascontiguousarray(values), None
    if values.dtype == np.bool_:
        return values.astype(np.uint8) * np.uint8(255), None
    if values.dtype.kind not in "uif":
        raise UnreadableImage("this kind of TIFF is not read: save it as integers or floats")
    if values.dtype == np.uint16:
        return to_16_bits(values, min(bits, 16)), None  # there are packed samples of 9 to 15 bits
    if values.dtype.kind == "f":
        finite = np.isfinite(values)
        low = float(values.min(where=finite, initial=0))
        high = float(values.max(where=finite, initial=low))
        if low >= 0 and (high <= 1 or opaque):
            low, high = 0.0, 1.0
    else:
        low, high = min(0.0, float(values.min())), float(values.max())
        if opaque:
            low, high = 0.0, float(np.iinfo(values.dtype).max)
    if not high > low:
        high = low + 1
    out = np.empty(values.shape, np.uint16)
    with np.errstate(all="ignore"):  # infinities are clipped, and what is no number becomes the least
        for row in range(0, len(out), 64):
            part = (values[row : row + 64].astype(np.float64) / (high - low) - low / (high - low)) * 65535
            out[row : row + 64] = np.rint(np.clip(np.nan_to_num(part, nan=0.0), 0, 65535))
    return out, SampleRange(values.dtype.str[1:], low, high)


def _lab(values: Samples, photometric: int) -> Pixels:
    """CIE Lab samples of 8 or 16 bits to sRGB of as many bits (TIFF 6.0, section 23; Adobe's ICCLab)."""
    if values.dtype not in (np.uint8, np.uint16):
        raise UnreadableImage("this kind of TIFF is not read: save Lab with 8 or 16 bits")
    deep = values.dtype == np.uint16
    unit = 256.0 if deep else 1.0
    wide = 65535 if deep and photometric == _CIELAB else 255 * unit
    lightness = values[:, :, 0] * (100.0 / wide)
    if photometric == _CIELAB:
        signed = np.int16 if deep else np.int8
        a, b = (np.asarray(values[:, :, i].view(signed), np.float64) / unit for i in (1, 2))
    else:
        a, b = (values[:, :, i] / unit - 128 for i in (1, 2))
    found: Pixels = colour.lab_to_rgb(lightness, a, b, values.dtype)
    return found


def write(stream: BinaryIO, pictures: Iterator[Picture], pixels: int) -> tuple[str, ...]:
    """Write pages, each with its own profile, resolution and description; returns notes.

    Strips are compressed with deflate and, for integers, horizontal differences.

    Args:
        stream: seekable, open for writing, binary, at its start.
        pictures: the pages.
        pixels: that all pages together have at most; decides whether 32-bit offsets will do.
    """
    notes: list[str] = []
    linked: int | None = None  # where the offset of the next directory belongs
    order: Order = "<"
    big = False
    for picture in pictures:
        samples = _samples(picture)
        described = Directory(order)
        if picture.meta.exif is not None:
            try:
                described = ifd.read_block(picture.meta.exif)
            except (ValueError, struct.error):
                notes.append("the EXIF block is damaged and was left out")
        if linked is None:
            order = described.order
            big = pixels * samples.shape[2] * samples.dtype.itemsize > BIG
            stream.write((b"II" if order == "<" else b"MM") + struct.pack(order + "H", 43 if big else 42))
            stream.write(struct.pack(order + "HHQ", 8, 0, 0) if big else bytes(4))
            linked = 8 if big else 4
        elif described.order != order:
            described = Directory(order)  # values of the other byte order; only a file in two orders has them
        linked = _write_page(stream, picture, samples, described, order, big, linked)
    return tuple(notes)


def _samples(picture: Picture) -> Samples:
    """(h, w, samples) as they are to be stored: alpha last, floats and wide integers in their own numbers again."""
    layers = picture.pixels
    if picture.levels is None:
        return layers if picture.alpha is None else np.dstack([layers, picture.alpha])
    dtype = np.dtype(picture.levels.dtype)
    low, high = picture.levels.low, picture.levels.high
    found = layers * ((high - low) / 65535) + low  # float64: exact for integers of up to 53 bits
    if dtype.kind in "iu":
        info = np.iinfo(dtype)
        most = np.nextafter(float(info.max), 0) if info.bits > 53 else info.max
        found = np.clip(np.rint(found), float(info.min), most)
    if picture.alpha is not None:
        top = 1.0 if dtype.kind == "f" else float(np.iinfo(dtype).max)
        found = np.dstack([found, picture.alpha * (top / 65535)])
    return found.astype(dtype)


def _write_page(
    stream: BinaryIO, picture: Picture, samples: Samples, described: Directory, order: Order, big: bool, linked: int
) -> int:
    """Write strips and directory; link the directory from `linked`. Gives where its own successor is to be linked."""
    height, width, count = samples.shape
    kind = {"u": _UNSIGNED, "i": _SIGNED, "f": _FLOAT}[samples.dtype.kind]
    predictor = 2 if kind != _FLOAT and samples.dtype.itemsize <= 4 else 1
    rows = max(1, _STRIP // (width * count * samples.dtype.itemsize))
    offsets, sizes = [], []
    for row in range(0, height, rows):
        strip = samples[row : row + rows]
        if predictor == 2:
            strip = np.concatenate([strip[:, :1], strip[:, 1:] - strip[:, :-1]], axis=1)  # wraps, as it should
        packed = zlib.compress(strip.astype(samples.dtype.newbyteorder(order)).tobytes(), 5)
        offsets.append(stream.tell())
        sizes.append(len(packed))
        stream.write(packed + bytes(len(packed) % 2))
    colours = picture.pixels.shape[2]
    entries = [
        _field(order, 4, _WIDTH, [width]),
        _field(order, 4, _HEIGHT, [height]),
        _field(order, 3, _BITS, [samples.dtype.itemsize * 8] * count),
        _field(order, 3, _COMPRESSION, [8]),
        _field(order, 3, _PHOTOMETRIC, [_RGB if colours == 3 else _MIN_IS_BLACK]),
        _field(order, 16 if big else 4, _STRIP_OFFSETS, offsets),
        _field(order, 3, _SAMPLES, [count]),
        _field(order, 4, _ROWS_PER_STRIP, [rows]),
        _field(order, 16 if big else 4, _STRIP_BYTES, sizes),
        _field(order, 3, _PLANAR, [1]),
        _field(order, 3, _PREDICTOR, [predictor]),
        _field(order, 3, _SAMPLE_FORMAT, [kind] * count),
    ]
    if count > colours:
        entries.append(_field(order, 3, _EXTRA_SAMPLES, [2]))
    meta = picture.meta
    for tag, block in ((_ICC, meta.icc), (_XMP, meta.xmp), (_IPTC, meta.iptc)):
        if block:
            entries.append(Entry(tag, 1 if tag == _XMP else 7, len(block), block))
    if meta.dpi is not None:
        entries += ifd.resolution(meta.dpi, order)
    kept = [entry for entry in described.entries if entry.tag in ifd.DESCRIPTIVE]
    comment = comment_of(meta)
    if comment and not any(entry.tag == ifd.IMAGE_DESCRIPTION for entry in kept):
        kept.append(ifd.text(ifd.IMAGE_DESCRIPTION, comment))
    at = stream.tell()
    directory, successor = ifd.pack(Directory(order, entries + kept, described.subdirectories), at, big)
    stream.write(directory)
    end = stream.tell()
    stream.seek(linked)
    stream.write(struct.pack(order + ("Q" if big else "I"), at))
    stream.seek(end)
    if end % 2:
        stream.write(b"\0")
    return at + successor


def _field(order: Order, kind: int, tag: int, values: Sequence[int]) -> Entry:
    letter = {3: "H", 4: "I", 16: "Q"}[kind]
    return Entry(tag, kind, len(values), struct.pack(f"{order}{len(values)}{letter}", *values))
