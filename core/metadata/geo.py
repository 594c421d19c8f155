"""What a TIFF says that only a TIFF has a place for: where on Earth its pixels lie (GeoTIFF), and of what size
microscopy's are (OME-XML). Made true of the result, or left out with a note.

Kept as a block like EXIF's, a classic TIFF structure. Follows OGC GeoTIFF 1.1 (19-008r4), GDAL's tags for "no data" and
metadata, and OME-TIFF (2016-06).
"""

from __future__ import annotations

import re
import struct

from core.metadata import ifd
from core.metadata.ifd import Directory, Entry, Order

PIXEL_SCALE, TIE_POINTS, TRANSFORMATION, KEYS, _DOUBLES, _TEXTS = 33550, 33922, 34264, 34735, 34736, 34737
_GDAL_METADATA, NODATA = 42112, 42113
#: Rational polynomials of satellites and such, whose numbers would all have to be fitted anew.
_UNKEPT = 50844
_PLACE = frozenset([PIXEL_SCALE, TIE_POINTS, TRANSFORMATION, KEYS, _DOUBLES, _TEXTS, _GDAL_METADATA, _UNKEPT])
#: Fields of a directory that `separated` looks at.
TAGS = _PLACE | {NODATA, ifd.IMAGE_DESCRIPTION}
_DOUBLE = 12
_RASTER_TYPE, _IS_POINT = 1025, 2

Size = tuple[int, int]


def separated(
    fields: Directory, described: list[Entry], orientation: int
) -> tuple[bytes | None, list[Entry], tuple[str, ...]]:
    """The block of what only a TIFF has a place for, the rest of its description, and notes.

    Args:
        fields: a page's directory, of which `TAGS` have been read.
        described: descriptive fields of the same page.
        orientation: of the page, 1 to 8; the places of a turned picture's pixels are left out.
    """
    notes: tuple[str, ...] = ()
    kept = [entry for entry in fields.entries if entry.tag in _PLACE - {_UNKEPT} or entry.tag == NODATA]
    if any(entry.tag == _UNKEPT for entry in fields.entries):
        notes += ("the rational polynomials that place the picture (RPC) were left out",)
    if orientation != 1 and any(entry.tag in _PLACE for entry in kept):
        kept = [entry for entry in kept if entry.tag == NODATA]
        notes += ("the GeoTIFF tags were left out: they do not fit a picture that is turned",)
    others = []
    for entry in described:
        if entry.tag == ifd.IMAGE_DESCRIPTION and is_ome(entry.value):
            kept.append(entry)
        elif entry.tag == ifd.IMAGE_DESCRIPTION and re.match(rb'\s*\{"shape": \[[^{}]*\}\s*\0*$', entry.value):
            continue  # tifffile's note of the shape as it was
        else:
            others.append(entry)
    block = ifd.write_block(Directory(fields.order, kept)) if kept else None
    return block, others, notes


def is_ome(description: bytes) -> bool:
    """True when an image description is OME-XML."""
    return b"<OME" in description[:1000]


def name_of(block: bytes) -> str:
    """What a block holds, for notes."""
    tags = {entry.tag for entry in ifd.read_block(block).entries}
    names = {
        "GeoTIFF tags": tags & _PLACE,
        "OME-XML": tags & {ifd.IMAGE_DESCRIPTION},
        "a no-data number": tags == {NODATA},
    }
    return " and ".join(name for name, there in names.items() if there)


def fields(block: bytes | None, order: Order) -> list[Entry]:
    """The fields of a block, in a byte order."""
    if block is None:
        return []
    directory = ifd.read_block(block)
    if directory.order == order:
        return directory.entries
    found = []
    for entry in directory.entries:
        size = {3: 2, 4: 4, 5: 4, _DOUBLE: 8}.get(entry.type, 1)
        parts = (entry.value[at : at + size][::-1] for at in range(0, len(entry.value), size))
        found.append(entry._replace(value=b"".join(parts)))
    return found


def corrected(block: bytes, size: Size, out_size: Size, drop_gps: bool) -> tuple[bytes | None, tuple[str, ...]]:
    """A block that is true of the result, or None when nothing of it may stay; and notes.

    Args:
        block: of the input.
        size: of the input, (width, height) in pixels.
        out_size: of the result, (width, height) in pixels.
        drop_gps: leave out where the picture was taken.
    """
    try:
        directory = ifd.read_block(block)
        across, down = out_size[0] / size[0], out_size[1] / size[1]
        point = _is_point(directory)
        kept = []
        for entry in directory.entries:
            if drop_gps and entry.tag in _PLACE:
                continue
            kept.append(_entry(entry, directory.order, across, down, 0.5 if point else 0.0, out_size))
    except (ValueError, struct.error):
        return None, ("the GeoTIFF tags are damaged and were left out",)
    return (ifd.write_block(Directory(directory.order, kept)) if kept else None), ()


def _is_point(directory: Directory) -> bool:
    """True when raster coordinates count from the middle of the first pixel, not from its corner."""
    for entry in directory.entries:
        if entry.tag == KEYS and entry.type == ifd.SHORT:
            keys = struct.unpack(f"{directory.order}{entry.number}H", entry.value)
            return any(keys[at : at + 4] == (_RASTER_TYPE, 0, 1, _IS_POINT) for at in range(4, len(keys) - 3, 4))
    return False


def _entry(entry: Entry, order: Order, across: float, down: float, middle: float, out_size: Size) -> Entry:
    """One field, corrected; `middle` is where in the first pixel raster coordinates begin."""
    if entry.tag == ifd.IMAGE_DESCRIPTION:
        value = _ome(entry.value, across, down, out_size)
        return Entry(entry.tag, entry.type, len(value), value)
    if entry.tag not in (PIXEL_SCALE, TIE_POINTS, TRANSFORMATION):
        return entry
    if entry.type != _DOUBLE:
        raise ValueError("no floating-point numbers")
    numbers = list(struct.unpack(f"{order}{entry.number}d", entry.value))
    if entry.tag == PIXEL_SCALE:
        numbers[:2] = [numbers[0] / across, numbers[1] / down]
    elif entry.tag == TIE_POINTS:
        for at in range(0, len(numbers) - 5, 6):
            numbers[at] = (numbers[at] + middle) * across - middle
            numbers[at + 1] = (numbers[at + 1] + middle) * down - middle
    else:
        if len(numbers) != 16:
            raise ValueError("no matrix")
        for at in range(0, 16, 4):  # model = matrix (i, j, k, 1), i = (i' + middle) / across - middle
            i, j = numbers[at], numbers[at + 1]
            numbers[at], numbers[at + 1] = i / across, j / down
            numbers[at + 3] += middle * (i * (1 / across - 1) + j * (1 / down - 1))
    return entry._replace(value=struct.pack(f"{order}{len(numbers)}d", *numbers))


def _ome(text: bytes, across: float, down: float, out_size: Size) -> bytes:
    """OME-XML with the sizes of the result: sides in pixels, and what a pixel measures."""

    def size(found: re.Match[bytes]) -> bytes:
        factor = across if found[2] == b"X" else down
        return b"%s%.12g%s" % (found[1] + found[2] + found[3], float(found[4]) / factor, found[5])

    for axis, side in ((b"X", out_size[0]), (b"Y", out_size[1])):
        text = re.sub(rb"(\sSize" + axis + rb'\s?=\s?")\d{1,9}(")', rb"\g<1>%d\g<2>" % side, text)
    number = rb"[-+]?\d{1,20}(?:\.\d{0,20})?(?:[eE][-+]?\d{1,3})?"
    return re.sub(rb'(\sPhysicalSize)([XY])(\s?=\s?")(' + number + rb')(")', size, text)
