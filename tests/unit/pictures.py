"""Pictures that tests are made of. Each is built here, so that what it holds is known exactly."""

from __future__ import annotations

import functools
import io
import struct
import zlib
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageCms, ImageDraw

Array = npt.NDArray[Any]


def corners(height: int = 12, width: int = 20, channels: int = 3) -> Array:
    """(height, width, channels) uint8: smooth, and different in each corner, so that no two orientations agree."""
    y, x = np.mgrid[0:height, 0:width]
    y, x = y / max(1, height - 1), x / max(1, width - 1)
    layers = [40 + 170 * x, 30 + 190 * y, 220 - 100 * x - 80 * y, 60 + 120 * x * y]
    found: Array = np.rint(np.stack(layers[:channels], axis=-1)).astype(np.uint8)
    return found


def patches() -> Array:
    """(96, 192, 3) uint8: 18 flat patches of 32 px; greys, skin, sky, leaf, and colours within sRGB's reach."""
    colours = [
        *((0, 0, 0), (128, 128, 128), (255, 255, 255), (64, 64, 64), (192, 192, 192), (32, 32, 32)),
        *((200, 150, 130), (90, 60, 50), (90, 120, 160), (90, 110, 60), (130, 130, 175), (110, 185, 170)),
        *((205, 130, 50), (80, 90, 165), (185, 90, 100), (95, 65, 105), (160, 185, 75), (225, 165, 60)),
    ]
    return np.array(colours, np.uint8).reshape(3, 6, 3).repeat(32, axis=0).repeat(32, axis=1)


def saved(image: Image.Image | Array, format: str, **options: Any) -> bytes:
    """A picture as an encoded file."""
    stream = io.BytesIO()
    if not isinstance(image, Image.Image):
        image = Image.fromarray(image[:, :, 0] if image.ndim == 3 and image.shape[2] == 1 else image)
    image.save(stream, format, **options)
    return stream.getvalue()


def opened(data: bytes | None) -> Image.Image:
    """An encoded file as a decoded picture."""
    assert data is not None
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


@functools.cache  # it holds the second in which it was made
def srgb_profile() -> bytes:
    """An ICC profile, about half a kilobyte, the same one throughout a run."""
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def exif_block(**tags: Any) -> bytes:
    """EXIF with a maker and an artist, and with any base tags by name (`Orientation=6`)."""
    exif = Image.Exif()
    exif[0x010F] = "Maker"
    exif[0x013B] = "Artist"
    names = {"Orientation": 0x0112}
    for name, value in tags.items():
        exif[names[name]] = value
    return exif.tobytes()


def full_exif(order: str = "<", orientation: int = 6, width: int = 20, height: int = 12) -> bytes:
    """EXIF such as a camera writes, built by hand: sizes, resolution, maker note, place, and a thumbnail at the end."""
    thumbnail = saved(np.full((8, 8, 3), 77, np.uint8), "JPEG")

    def directory(at: int, entries: list[tuple[int, int, int, bytes]], following: int = 0) -> bytes:
        head = struct.pack(order + "H", len(entries))
        tail = b""
        start = at + 2 + 12 * len(entries) + 4
        for tag, kind, number, value in sorted(entries):
            field = value
            if len(value) > 4:
                field = struct.pack(order + "I", start + len(tail))
                tail += value + bytes(len(value) % 2)
            head += struct.pack(order + "HHI", tag, kind, number) + field.ljust(4, b"\0")
        return head + struct.pack(order + "I", following) + tail

    def short(value: int) -> bytes:
        return struct.pack(order + "H", value)

    def long(value: int) -> bytes:
        return struct.pack(order + "I", value)

    def ratio(*values: int) -> bytes:
        return struct.pack(f"{order}{len(values)}I", *values)

    artist = "Artist Näme".encode() + b"\0"
    below = [
        (0xA002, 4, 1, long(width)),
        (0xA003, 4, 1, long(height)),
        (0x927C, 7, 40, b"MAKER NOTE" + bytes(range(30))),
        (0x829A, 5, 1, ratio(1, 125)),
    ]
    place = [(1, 2, 2, b"N\0"), (2, 5, 3, ratio(48, 1, 51, 1, 30, 1)), (0x1D, 2, 11, b"2020:01:02\0")]
    first = [
        (0x010F, 2, 6, b"Maker\0"),
        (0x0112, 3, 1, short(orientation)),
        (0x011A, 5, 1, ratio(300, 1)),
        (0x011B, 5, 1, ratio(300, 1)),
        (0x0128, 3, 1, short(2)),
        (0x013B, 2, len(artist), artist),
        (0x8769, 4, 1, long(0)),
        (0x8825, 4, 1, long(0)),
    ]
    size = len(directory(8, first))
    exif_at = 8 + size
    gps_at = exif_at + len(directory(exif_at, below))
    thumb_at = gps_at + len(directory(gps_at, place))
    first[6], first[7] = (0x8769, 4, 1, long(exif_at)), (0x8825, 4, 1, long(gps_at))
    second = [(0x0103, 3, 1, short(6)), (0x0201, 4, 1, long(0)), (0x0202, 4, 1, long(len(thumbnail)))]
    data_at = thumb_at + len(directory(thumb_at, second))
    second[1] = (0x0201, 4, 1, long(data_at))
    head = (b"II*\0" if order == "<" else b"MM\0*") + long(8)
    parts = [directory(8, first, thumb_at), directory(exif_at, below), directory(gps_at, place)]
    return head + b"".join(parts) + directory(thumb_at, second) + thumbnail


XMP = b"""<?xpacket begin="" id="W5M0MpCehiHzreSzNTczkc9d"?><x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF
xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/"
xmlns:exif="http://ns.adobe.com/exif/1.0/" xmlns:dc="http://purl.org/dc/elements/1.1/" tiff:Orientation="6"
exif:PixelXDimension="20" exif:GPSLatitude="48,51.5N" exif:GPSLongitude='2,21E'>
<exif:PixelYDimension>12</exif:PixelYDimension>
<dc:title>T\xc3\xaftle</dc:title></rdf:Description></rdf:RDF></x:xmpmeta><?xpacket end="w"?>"""


def iptc_records() -> bytes:
    """IPTC-IIM: one keyword and a caption."""
    found = b""
    for dataset, value in ((25, b"keyword"), (120, b"caption")):
        found += bytes([0x1C, 2, dataset]) + struct.pack(">H", len(value)) + value
    return found


def app13(records: bytes) -> bytes:
    """The JPEG segment that carries IPTC, as Photoshop writes it: with another resource before it."""
    other = b"8BIM" + struct.pack(">H", 0x0BB7) + b"\x03abc" + struct.pack(">I", 3) + b"xyz\0"
    block = b"8BIM" + struct.pack(">HHI", 0x0404, 0, len(records)) + records + bytes(len(records) % 2)
    data = b"Photoshop 3.0\0" + other + block
    return b"\xff\xed" + struct.pack(">H", len(data) + 2) + data


def with_everything(pixels: Array, format: str = "JPEG", icc: bytes | None = None, orientation: int = 1) -> bytes:
    """A file with everything that a JPEG can carry beside its pixels."""
    height, width = pixels.shape[:2]
    return saved(
        pixels,
        format,
        quality=92,
        exif=b"Exif\0\0" + full_exif("<", orientation, width, height),
        xmp=XMP,
        icc_profile=icc or srgb_profile(),
        comment="Comment wïth more".encode(),
        extra=app13(iptc_records()),
        dpi=(300, 300),
    )


def segment(marker: int, content: bytes) -> bytes:
    """One segment of a JPEG."""
    return struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content


def motion_photo(still: bytes) -> bytes:
    """A still with a video behind it, as phones write them."""
    video = b"\0\0\0\x18ftypmp42" + bytes(range(256)) * 90 + b"\xff\xda" * 900
    packet = XMP.replace(
        b"<rdf:Description ", b'<rdf:Description GCamera:MotionPhoto="1" GCamera:MicroVideoOffset="9" '
    )
    return still[:20] + segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + packet) + still[20:] + video


def ultra_hdr(still: bytes) -> bytes:
    """A picture with a gain map behind it (Ultra HDR)."""
    said = (
        b'<rdf:Description xmlns:hdrgm="http://ns.adobe.com/hdr-gain-map/1.0/" hdrgm:Version="1.0" '
        b'xmlns:Container="http://ns.google.com/photos/1.0/container/"><Container:Directory><rdf:Seq><rdf:li>'
        b'<Container:Item Item:Semantic="GainMap"/></rdf:li></rdf:Seq></Container:Directory>'
    )
    packet = XMP.replace(b"<rdf:Description ", said + b"</rdf:Description><rdf:Description ")
    return still[:20] + segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + packet) + still[20:] + still


def png_chunk(name: bytes, data: bytes) -> bytes:
    """One PNG chunk with its length and checksum."""
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def huge_png(width: int = 50_000, height: int = 50_000, size: int = 100_000) -> bytes:
    """A PNG of about `size` bytes that claims (and would unpack to) an enormous picture."""
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    pressed = zlib.compress(bytes(size * 1000), 9)[:size]
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + png_chunk(b"IDAT", pressed) + png_chunk(b"IEND", b"")


#: Pillow's names of the formats that it writes.
PILLOW = {"jpeg": "JPEG", "png": "PNG", "webp": "WEBP", "tiff": "TIFF", "bmp": "BMP"}


def turned(upright: Array, orientation: int) -> Array:
    """Pixels as a camera stores them, so that the orientation tag makes them `upright` (EXIF 2.32, tag 0x0112)."""
    moves: dict[int, Any] = {
        1: lambda p: p,
        2: lambda p: p[:, ::-1],
        3: lambda p: p[::-1, ::-1],
        4: lambda p: p[::-1],
        5: lambda p: p.transpose(1, 0, 2),
        6: lambda p: np.rot90(p, 1),
        7: lambda p: np.rot90(p.transpose(1, 0, 2), 2),
        8: lambda p: np.rot90(p, -1),
    }
    return np.ascontiguousarray(moves[orientation](upright))


def logo() -> Array:
    """(64, 64, 4): a white ring and bar over transparent black, with soft edges."""
    drawn = Image.new("L", (256, 256))
    pen = ImageDraw.Draw(drawn)
    pen.ellipse((30, 30, 200, 200), outline=255, width=24)
    pen.rectangle((120, 180, 240, 220), fill=255)
    alpha = np.asarray(drawn.resize((64, 64), Image.Resampling.BOX))
    return np.dstack([np.where(alpha[:, :, None] > 0, np.uint8(255), np.uint8(0)).repeat(3, axis=2), alpha])


def animated(format: str, count: int = 5, **options: Any) -> bytes:
    """An animation of (16, 24, 3) frames, each shown for 80 ms."""
    frames = [Image.fromarray(np.roll(corners(16, 24), 4 * index, axis=1)) for index in range(count)]
    return saved(frames[0], format, save_all=True, append_images=frames[1:], **{"duration": 80, **options})


def deep_ramp(channels: int = 3) -> Array:
    """(32, 256, channels) uint16: rises by 37 of 65,535 for each column, so neighbours agree in their upper bits."""
    ramp = 11_000 + 37 * np.arange(256)
    return np.repeat(np.tile(ramp, (32, 1))[:, :, None], channels, axis=2).astype(np.uint16)
