"""The directories of a TIFF, checked before any decoder runs: which pages there are, and what each of them says.

Follows TIFF 6.0, its Technical Note 1 (trees of directories) and, for files over 4 GB, BigTIFF.
"""

from __future__ import annotations

import struct
from collections import Counter
from dataclasses import dataclass, replace
from typing import BinaryIO

from core.errors import TooLarge, UnreadableImage
from core.limits import Limits, check_size
from core.metadata import ifd
from core.metadata.carried import MAX_BLOCK
from core.metadata.ifd import Directory, Order

SUBFILE_KIND, OLD_SUBFILE_KIND = 254, 255
WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC = 256, 257, 258, 259, 262
STRIP_OFFSETS, SAMPLES, ROWS_PER_STRIP, STRIP_BYTES, PLANAR = 273, 277, 278, 279, 284
PREDICTOR, WHITE_POINT, COLOUR_MAP, TILE_WIDTH, TILE_HEIGHT, TILE_OFFSETS, TILE_BYTES = (
    317,
    318,
    320,
    322,
    323,
    324,
    325,
)
SUBDIRECTORIES, EXTRA_SAMPLES, SAMPLE_FORMAT = 330, 338, 339
XMP, IPTC, PHOTOSHOP, ICC, NODATA, DNG_VERSION = 700, 33723, 34377, 34675, 42113, 50706
MIN_IS_WHITE, MIN_IS_BLACK, RGB, PALETTE, MASK, CMYK, YCBCR, CIELAB, ICCLAB = 0, 1, 2, 3, 4, 5, 6, 8, 9
#: Colour filter arrays and linear raw data (TIFF/EP, DNG): what a sensor saw, before it is developed.
_RAW = frozenset([32803, 34892])
#: Samples of colour by photometric interpretation.
COLOURS = {MIN_IS_WHITE: 1, MIN_IS_BLACK: 1, RGB: 3, PALETTE: 1, CMYK: 4, YCBCR: 3, CIELAB: 3, ICCLAB: 3}
UNSIGNED, SIGNED, FLOAT = 1, 2, 3
_FACTS = frozenset([WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC, SAMPLES, PLANAR, TILE_WIDTH, TILE_HEIGHT])
_FACTS |= {EXTRA_SAMPLES, SAMPLE_FORMAT, XMP, IPTC, PHOTOSHOP, ICC, SUBFILE_KIND, OLD_SUBFILE_KIND, WHITE_POINT}
_FACTS |= {ROWS_PER_STRIP, COLOUR_MAP, SUBDIRECTORIES, NODATA, DNG_VERSION}
_FACTS |= {ifd.ORIENTATION, ifd.X_RESOLUTION, ifd.Y_RESOLUTION, ifd.RESOLUTION_UNIT}
_LETTERS = {1: "B", 3: "H", 4: "I", 13: "I"}
_DEVELOP = "this is a camera's raw file, of which only the preview could be read: develop it first, to TIFF or JPEG"


@dataclass(frozen=True)
class Page:
    """What one directory says, checked.

    Attributes:
        index: of the directory in the file's chain.
        offset: of the directory, bytes.
        width: pixels, upright.
        height: pixels, upright.
        bits: of the deepest sample.
        kind: sample format, 1 unsigned, 2 signed, 3 float.
        samples: channels, alpha included.
        orientation: 1 to 8.
        fields: the directory's fields that decide about pixels and blocks of metadata.
    """

    index: int
    offset: int
    width: int
    height: int
    bits: int
    kind: int
    samples: int
    orientation: int
    fields: Directory

    @property
    def photometric(self) -> int:
        """How samples stand for colours (TIFF 6.0, tag 262)."""
        return self.numbers(PHOTOMETRIC, (MIN_IS_BLACK,))[0]

    @property
    def compression(self) -> int:
        """How segments are compressed (TIFF 6.0, tag 259)."""
        return self.numbers(COMPRESSION, (1,))[0]

    @property
    def colours(self) -> int:
        """Samples of colour, alpha not counted; 3 where the interpretation is unknown."""
        return COLOURS.get(self.photometric, 3)

    def numbers(self, tag: int, default: tuple[int, ...]) -> tuple[int, ...]:
        """The whole numbers of a field."""
        return _numbers(self.fields, tag, default)

    def block(self, tag: int) -> bytes | None:
        """The bytes of a field, or None."""
        return next((entry.value for entry in self.fields.entries if entry.tag == tag and entry.value), None)


@dataclass(frozen=True)
class Pages:
    """The pages of a file.

    Attributes:
        pages: those that are pictures of their own, at least one.
        big: True for a BigTIFF.
        notes: one line for each kind of directory that is no page.
    """

    pages: tuple[Page, ...]
    big: bool
    notes: tuple[str, ...]


def _numbers(fields: Directory, tag: int, default: tuple[int, ...]) -> tuple[int, ...]:
    for entry in fields.entries:
        if entry.tag == tag and entry.type in _LETTERS and 0 < entry.number <= 3 << 16:
            return struct.unpack(f"{fields.order}{entry.number}{_LETTERS[entry.type]}", entry.value)
    return default


def read_pages(stream: BinaryIO, limits: Limits) -> Pages:
    """The pages among the directories of the chain; reduced copies, masks and what is beyond a break are noted.

    Raises:
        UnreadableImage: the first directory is broken, or this is a camera's raw file.
        TooLarge: over a limit.
    """
    stream.seek(0)
    head = stream.read(16)
    order: Order = "<" if head.startswith(b"II") else ">"
    big = head[2:4] in (b"+\0", b"\0+")
    if len(head) < (16 if big else 8):
        raise UnreadableImage("the picture is damaged: it ends in its header")
    if head[8:10] == b"CR" and not big:  # Canon's CR2
        raise UnreadableImage(_DEVELOP)
    (offset,) = struct.unpack_from(order + ("Q" if big else "I"), head, 8 if big else 4)
    found: list[Page] = []
    seen: set[int] = set()
    notes: list[str] = []
    while offset and offset not in seen:  # in a circle the pages so far are what there is
        seen.add(offset)
        try:
            fields, following = ifd.read_fields(stream, offset, order, big, _FACTS, 4 * MAX_BLOCK)
        except (ValueError, struct.error):
            if not found:
                raise
            notes.append(f"what follows page {len(found)} is damaged and was left out")
            break
        page = _page(len(found), offset, fields)
        _refuse_raw(stream, page, big)
        check_size(page.width, page.height, len(found) + 1, replace(limits, input_pixels=1 << 62))
        tile = page.numbers(TILE_WIDTH, (0,))[0] * page.numbers(TILE_HEIGHT, (0,))[0]
        if tile > max(min(limits.input_pixels, limits.held_pixels), 1 << 20):
            raise TooLarge("the picture's tiles are larger than any picture may be")
        found.append(page)
        offset = following
    if not found:
        raise UnreadableImage("the picture is damaged: it has no pages")
    pages, said = _without_copies(found)
    _check_pixels(pages, limits)
    return Pages(pages, big, (*notes, *said))


def _check_pixels(pages: tuple[Page, ...], limits: Limits) -> None:
    pixels = 0
    for page in pages:
        pixels += page.width * page.height
        if pixels > limits.input_pixels:
            check_size(page.width, page.height, 1, limits)
            raise TooLarge(
                f"the pages have more than the limit of {limits.input_pixels / 1e6:,.6g} megapixels together"
            )


def _without_copies(found: list[Page]) -> tuple[tuple[Page, ...], tuple[str, ...]]:
    """The pages that are no mask and no reduced copy of another (TIFF 6.0, NewSubfileType), and notes."""
    roles = Counter[str]()
    pages = []
    for page in found:
        kind = page.numbers(SUBFILE_KIND, (0,))[0]
        if kind & 4 or page.photometric == MASK:
            roles["mask"] += 1
        elif kind & 1 or page.numbers(OLD_SUBFILE_KIND, (0,))[0] == 2:
            roles["reduced copy"] += 1
        else:
            pages.append(page)
        roles["subdirectory"] += len(page.numbers(SUBDIRECTORIES, ()))
    if not pages:  # then the copies are all that there is
        return tuple(found), ()
    named = {"mask": "masks", "reduced copy": "reduced copies (thumbnails, or levels of a pyramid)"}
    named["subdirectory"] = "further pictures below the pages (reduced copies, most often)"
    notes = [f"{number} of the file's pictures left out: {named[role]}" for role, number in roles.items() if number]
    return tuple(pages), tuple(notes)


def _refuse_raw(stream: BinaryIO, page: Page, big: bool) -> None:
    """Refuse what a sensor saw (DNG, NEF, ARW, PEF and others): its preview is not the picture.

    Raises:
        UnreadableImage: the page, or one below it, is raw.
    """
    if page.photometric in _RAW or page.block(DNG_VERSION) is not None:
        raise UnreadableImage(_DEVELOP)
    for offset in page.numbers(SUBDIRECTORIES, ())[:16]:
        try:
            fields, _ = ifd.read_fields(stream, offset, page.fields.order, big, frozenset([PHOTOMETRIC]), 1 << 12)
        except (ValueError, struct.error):
            continue
        if _numbers(fields, PHOTOMETRIC, (0,))[0] in _RAW:
            raise UnreadableImage(_DEVELOP)


def _page(index: int, offset: int, fields: Directory) -> Page:
    width, height = _numbers(fields, WIDTH, (0,))[0], _numbers(fields, HEIGHT, (0,))[0]
    samples = _numbers(fields, SAMPLES, (1,))[0]
    # XMP alone turns nothing: libtiff, libvips, ImageMagick and ffmpeg go by the tag.
    orientation = _numbers(fields, ifd.ORIENTATION, (1,))[0]
    orientation = orientation if 1 <= orientation <= 8 else 1
    if orientation >= 5:
        width, height = height, width
    kinds = _numbers(fields, SAMPLE_FORMAT, (UNSIGNED,))
    kind = max(kind if kind <= FLOAT else UNSIGNED for kind in kinds)  # 4 is "undefined"
    bits = max(_numbers(fields, BITS, (1,)))
    return Page(index, offset, width, height, bits, kind, samples, orientation, fields)
