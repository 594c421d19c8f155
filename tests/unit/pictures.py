"""Pictures that tests are made of. Each is built here, so that what it holds is known exactly."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageCms

Array = npt.NDArray[Any]


def corners(height: int = 12, width: int = 20, channels: int = 3) -> Array:
    """(height, width, channels) uint8: smooth, and different in each corner, so that no two orientations agree."""
    y, x = np.mgrid[0:height, 0:width]
    y, x = y / max(1, height - 1), x / max(1, width - 1)
    layers = [40 + 170 * x, 30 + 190 * y, 220 - 100 * x - 80 * y, 60 + 120 * x * y]
    found: Array = np.rint(np.stack(layers[:channels], axis=-1)).astype(np.uint8)
    return found


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


def srgb_profile() -> bytes:
    """An ICC profile, about half a kilobyte."""
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


def png_chunk(name: bytes, data: bytes) -> bytes:
    """One PNG chunk with its length and checksum."""
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def huge_png(width: int = 50_000, height: int = 50_000, size: int = 100_000) -> bytes:
    """A PNG of about `size` bytes that claims (and would unpack to) an enormous picture."""
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    pressed = zlib.compress(bytes(size * 1000), 9)[:size]
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + png_chunk(b"IDAT", pressed) + png_chunk(b"IEND", b"")
