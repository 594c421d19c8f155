"""JPEG, PNG, WebP, BMP, GIF and AVIF, read through Pillow, and some of them written.

Sizes and numbers of frames are known before Pillow allocates anything for them.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any, BinaryIO

import numpy as np
from PIL import BmpImagePlugin, Image

from core.codecs import bmp, gif, isobmff, jpeg, pillow_metadata, png, streams, webp
from core.codecs.base import USUAL_QUALITY, decoder_errors, raise_guard, split, to_16_bits, upright, without_alpha
from core.errors import TooLarge, UnreadableImage
from core.formats import FORMATS, READ_FORMATS
from core.limits import Limits, check_held, check_size
from core.metadata.carried import Metadata, bounded
from core.metadata.exif import orientation_of
from core.metadata.xmp import without_others
from core.picture import Picture, Pixels, Probe, Scan, held
from core.pixels import colour
from core.pixels.bands import mirrored

_XMP_EXTENSION = b"http://ns.adobe.com/xmp/extension/"
#: Where the orientation of an AVIF is kept beside what Pillow found.
_TURNED = "irot and imir"


def open_image(
    stream: BinaryIO, format: str, head: bytes, size: int, limits: Limits, stack: ExitStack
) -> tuple[Probe, Callable[[], Iterator[Picture | Scan]]]:
    """The header of a file, and a function that decodes its frames.

    Args:
        stream: the file.
        format: what it is.
        head: its first 4,096 bytes.
        size: of the file, bytes.
        limits: what to refuse.
        stack: closes what is opened here.

    Raises:
        UnreadableImage: damaged.
        TooLarge: over a limit.
    """
    if format == "bmp" and bmp.wanted(head):
        return bmp.open_bmp(stream, head, size, limits)
    file = _prepared(stream, format, head, limits)
    stream, checked, primary, notes = file.stream, file.checked, file.primary, list(file.notes)
    raise_guard(limits)
    image = stack.enter_context(Image.open(stream, formats=[READ_FORMATS[format]]))
    frames = len(file.screen.frames) if file.screen else (1 if format == "jpeg" else int(getattr(image, "n_frames", 1)))
    first = 1 if getattr(image, "default_image", False) and frames > 1 else 0  # a PNG's still, shown by old software
    frames -= first
    _put_right(image, file)
    known = _without_pixels(stream) if format == "png" else image
    crop = _crop(file, frames)
    width, height = (file.screen or crop or image).width, (file.screen or crop or image).height
    if _orientation(known) >= 5:
        width, height = height, width
    check_size(width, height, frames, limits)
    bits = checked.bits if checked else primary.bits if primary else _bits(format, head)
    alpha = image.has_transparency_data or frames > 1
    plays = _plays(image, format) if frames > 1 else None
    kept_bits = bits if frames == 1 or format == "png" else 8
    streams_down = frames == 1 and not first and _streams(image, format, head, checked) and _orientation(known) <= 2
    if not streams_down:
        check_held(width * height, limits)
    found = Probe(format, width, height, size, image.mode, frames, plays, alpha, kept_bits, streams=streams_down)

    notes += _left_out(image, bits if bits > kept_bits else 0, bool(first))

    def decode_pages() -> Iterator[Picture | Scan]:
        if streams_down:
            with decoder_errors():
                scan = _scan(image, known, format, stream)
            yield replace(scan, notes=(*notes, *scan.notes))
            return
        for picture in _frames(file, image, known if frames > 1 else image, found, head, first, limits):
            yield replace(picture, notes=(*notes, *picture.notes))

    return found, decode_pages


@dataclass(frozen=True)
class _File:
    """A file as it goes to Pillow, and what was found in it before: each format has at most one of these.

    Attributes:
        stream: the file, or what has to be read in its place.
        screen: of a GIF.
        checked: of a JPEG.
        primary: of an AVIF.
        notes: one line for each thing that was left out.
    """

    stream: BinaryIO
    screen: gif.Screen | None = None
    checked: jpeg.Checked | None = None
    primary: isobmff.Primary | None = None
    notes: tuple[str, ...] = ()


def _prepared(stream: BinaryIO, format: str, head: bytes, limits: Limits) -> _File:
    """What has to be known, and refused, before Pillow opens a file."""
    if format == "gif":
        screen = gif.measure(stream, limits)
        widest = max((frame.left + frame.width for frame in screen.frames), default=0)
        highest = max((frame.top + frame.height for frame in screen.frames), default=0)
        check_size(max(screen.width, widest), max(screen.height, highest), len(screen.frames), limits)
        return _File(stream, screen=screen)
    if format == "webp":  # Pillow allocates the canvas when it opens one
        check_size(*webp.canvas_size(head), 1, limits)
        return _File(webp.with_alpha(stream))
    if format == "jpeg":
        checked = jpeg.check(stream)
        return _File(checked.stream, checked=checked, notes=checked.notes)
    if format == "avif":
        data = stream.read()
        primary = isobmff.read(data)
        if primary.crop_at:
            data = isobmff.without_crop(data, primary)
        return _File(io.BytesIO(data), primary=primary)
    if format == "png":
        whole, notes = png.whole(stream)
        check_size(int.from_bytes(head[16:20], "big"), int.from_bytes(head[20:24], "big"), 1, limits)
        return _File(whole, notes=notes)
    return _File(stream)


def _frames(
    file: _File, image: Image.Image, known: Image.Image, found: Probe, head: bytes, first: int, limits: Limits
) -> Iterator[Picture]:
    """Frames that are held whole.

    Args:
        file: what was prepared.
        image: opened by Pillow.
        known: the same, to read metadata from.
        found: the header.
        head: first bytes of the file.
        first: which of Pillow's frames is the first.
        limits: what to refuse.
    """
    stream, checked, format, frames = file.stream, file.checked, found.format, found.frames
    at = stream.tell()  # Pillow reads on from here
    with decoder_errors():
        drawn, durations = _drawn(stream, format, file.screen, frames, found.bits)
        if checked and not checked.usual:
            drawn = iter([jpeg.decode_unusual(checked)])
    crop = _crop(file, frames)
    for index in range(first, first + frames):
        with decoder_errors():
            if index and drawn is None:
                image.seek(index)
            if image.width * image.height > limits.input_pixels:
                raise TooLarge("a frame is larger than the picture's header says")
            if drawn is None or (index == first and not checked and known is image):
                stream.seek(at)
                image.load()
            if checked and checked.usual:
                jpeg.refuse_truncated(checked, np.asarray(image))
            later, samples = index > first, None if drawn is None else next(drawn)
            duration = durations[index - first] if durations else image.info.get("duration", 0.0)
            picture = _picture(known, format, head, stream, samples, later, found.plays is not None, duration, crop)
            if picture.pixels.shape[:2] != (found.height, found.width):
                raise UnreadableImage("the picture is damaged: it is not of the size that its header says")
            samples = None  # these would be held for as long as the picture is worked on
            if frames == 1:
                image.close()
                drawn = None
        yield picture


def _crop(file: _File, frames: int) -> isobmff.Crop | None:
    return file.primary.crop if file.primary and frames == 1 else None


def _put_right(image: Image.Image, file: _File) -> None:
    """Metadata as the file has it where Pillow changes it, and without what speaks of things that are left out."""
    if file.primary and file.primary.still:
        image.info[_TURNED] = orientation_of(image.info.get("exif"))  # what irot and imir say, by Pillow
        image.info["exif"] = file.primary.exif or b""
    if file.checked and file.checked.emptied and (packet := image.info.get("xmp")):
        image.info["xmp"] = without_others(packet)


def _left_out(image: Image.Image, deep: int, still: bool) -> tuple[str, ...]:
    """A note for each thing in a file that is not read: samples of so many bits, the still beside an animation, ..."""
    notes = []
    if deep:
        notes.append(f"the frames have {deep} bits, of which 8 are read")
    if still:
        notes.append("the still picture for software without animation was left out")
    if any(marker == "APP1" and data.startswith(_XMP_EXTENSION) for marker, data in getattr(image, "applist", ())):
        notes.append("the extension of the XMP packet, beyond 64 kB, was left out")
    return tuple(notes)


def _drawn(
    stream: BinaryIO, format: str, screen: gif.Screen | None, frames: int, bits: int
) -> tuple[Iterator[Pixels] | None, list[float]]:
    """Frames (h, w, 1 to 4), alpha last, where Pillow does not draw them, and their milliseconds.

    Pillow keeps eight bits of sixteen, and puts frames on each other in its own way.
    """
    if screen is not None:
        return gif.draw(stream, screen), [frame.duration for frame in screen.frames]
    if bits > 8 or (format == "png" and frames > 1):
        stream.seek(0)
        data = stream.read()
        durations = png.durations(data) if frames > 1 else []
        return _read_deep(data, format, bits, frames), durations
    return None, []


def _bits(format: str, head: bytes) -> int:
    """Bits of a channel of a PNG, from its header; 8 for all others."""
    return 16 if format == "png" and head[24:25] == b"\x10" else 8


def _orientation(image: Image.Image) -> int:
    """What is left to be turned: by the file's own word where the format has one, else by EXIF, never by XMP."""
    turned = image.info.get(_TURNED)
    return turned if isinstance(turned, int) else orientation_of(pillow_metadata.found(image)[0].exif)


def _plays(image: Image.Image, format: str) -> int:
    """How often an animation is played, 0 forever."""
    if format == "gif":
        return gif.plays(image)
    return max(0, int(image.info.get("loop") or 0))


def _streams(image: Image.Image, format: str, head: bytes, checked: jpeg.Checked | None) -> bool:
    """Whether a picture can be decoded from top to bottom."""
    few = head[25:26] == b"\0" and head[24] < 8 and "transparency" in image.info  # see `png.grey_key`
    kinds = {
        "jpeg": image.mode in ("L", "RGB") and checked is not None and checked.usual and checked.ended,
        "png": not image.info.get("interlace") and not few,
        "bmp": streams.is_plain_bmp(image),
    }
    return kinds.get(format, False)


def _without_pixels(stream: BinaryIO) -> Image.Image:
    """A PNG with all that stands behind its pixels, such as texts, but without these; the stream's place is kept."""
    at = stream.tell()
    described = Image.open(io.BytesIO(png.without_pixels(stream)))
    described.load()
    stream.seek(at)
    return described


def _scan(image: Image.Image, known: Image.Image, format: str, stream: BinaryIO) -> Scan:
    """A picture that is decoded from top to bottom, with the metadata of `known`."""
    width, height = image.size
    if isinstance(image, BmpImagePlugin.BmpImageFile):
        bands = streams.open_bmp(stream, image)
    else:
        bands = streams.open_vips(stream, format, height, width)
    if _orientation(known) == 2:
        bands = mirrored(bands)
    return Scan(bands=bands, **_described(known, format, stream, bands.channels, later=False))


def _picture(
    image: Image.Image,
    format: str,
    head: bytes,
    stream: BinaryIO,
    drawn: Pixels | None,
    later: bool,
    animated: bool,
    duration: object,
    crop: isobmff.Crop | None,
) -> Picture:
    """A loaded image as a picture, with the pixels that were drawn without Pillow where there are such."""
    orientation = _orientation(image)
    duration = duration if animated else 0.0
    pixels: Pixels
    alpha: Pixels | None = None
    converted: tuple[str, ...] | None = None
    if drawn is not None:
        pixels, alpha = without_alpha(drawn)
    elif format == "png" and (keyed := png.grey_key(image, head)) is not None:
        pixels, alpha = keyed
    elif image.mode == "CMYK":
        pixels, converted = colour.cmyk_to_rgb(np.asarray(image), bounded(pillow_metadata.found(image)[0])[0].icc)
    else:
        pixels, alpha = split(image)
    if format in ("gif", "webp") and not animated and alpha is not None and alpha.min() == 255:
        alpha = None  # it was decoded in case there is some
    if crop is not None:
        place = np.s_[crop.top : crop.top + crop.height, crop.left : crop.left + crop.width]
        pixels, alpha = pixels[place], None if alpha is None else alpha[place]
    if animated:
        alpha = np.full(pixels.shape[:2], 255, np.uint8) if alpha is None else alpha
    return Picture(
        pixels=upright(pixels, orientation),
        alpha=None if alpha is None else upright(alpha, orientation),
        duration=float(duration) if isinstance(duration, (int, float)) else 0.0,
        **_described(image, format, stream, pixels.shape[2], later, converted),
    )


def _described(
    image: Image.Image,
    format: str,
    stream: BinaryIO,
    channels: int,
    later: bool,
    converted: tuple[str, ...] | None = None,
) -> dict[str, Any]:
    """All but the pixels of a picture.

    Args:
        image: as Pillow has opened it.
        format: of the file.
        stream: the file; its position is changed.
        channels: of colour.
        later: of an animation, not its first frame.
        converted: notes on a conversion to sRGB, after which the file's profile is no longer that of the pixels.
    """
    found, lost = pillow_metadata.found(image)
    meta, notes = bounded(found)
    notes += lost
    lossless = format in ("png", "bmp", "gif")
    quality = subsampling = None
    if format == "jpeg":
        quality, subsampling = jpeg.coding(image)
    elif format == "webp" and not later:
        lossless = webp.is_lossless(stream)
    icc = meta.icc if converted is None else None
    notes += converted or ()
    if meta.icc is None and format in ("png", "avif"):
        icc, said = png.stated_profile(image, stream) if format == "png" else _avif_profile(stream)
        notes += said
    icc, said = colour.checked(icc, "GRAY" if channels == 1 else "RGB")
    return {
        "meta": Metadata(icc=icc) if later else replace(meta, icc=icc),
        "lossless": lossless,
        "quality": quality,
        "subsampling": subsampling,
        "notes": () if later else notes + said,
    }


def _read_deep(data: bytes, format: str, bits: int, frames: int) -> Iterator[Pixels]:
    """(h, w, 1 to 4) uint16, alpha last, for each frame of a PNG or AVIF of which Pillow would keep eight bits."""
    import imagecodecs

    if frames > 1:
        yield from png.read_frames(data)
    else:
        values = imagecodecs.png_decode(data) if format == "png" else imagecodecs.avif_decode(data)
        if values.dtype != np.uint16 or values.ndim not in (2, 3):
            raise ValueError("not the pixels that its header says")
        values = values.reshape(*values.shape[:2], -1)
        yield to_16_bits(values, bits, out=values)
    raise ValueError("it ends before its last frame")


def _avif_profile(stream: BinaryIO) -> tuple[bytes | None, tuple[str, ...]]:
    """A profile for an AVIF that states its colours in code points (ISO/IEC 23008-12, nclx), and notes."""
    stream.seek(0)
    points = isobmff.read(stream.read()).code_points
    return (None, ()) if points is None else colour.profile_of_code_points(*points)


def write(stream: BinaryIO, scans: Iterator[Scan], format: str, quality: int | None, plays: int | None) -> None:
    """Write a WebP or AVIF, or an animation, which are held whole.

    Args:
        stream: open for writing, binary.
        scans: one for each frame, at least one; the first one's metadata is written.
        format: "webp" or "avif".
        quality: 1 to 100; None chooses.
        plays: how often an animation is played, 0 forever; None for a single picture.
    """
    pictures = (held(scan) for scan in scans)
    first = next(pictures)
    meta = first.meta
    extra: dict[str, Any] = {}
    if format == "webp":
        extra = webp.save_options(first, quality)
    elif format == "avif":
        extra = {"quality": quality or USUAL_QUALITY, "subsampling": "4:4:4", "speed": 6}
    if meta.icc is not None:
        extra["icc_profile"] = meta.icc
    if meta.exif is not None:
        extra["exif"] = b"Exif\0\0" + (isobmff.reserved(meta.exif) if format == "avif" else meta.exif)
    if meta.xmp is not None:
        extra["xmp"] = meta.xmp
    target = io.BytesIO() if format == "avif" else _Plain(stream)
    if plays is not None:
        durations = [round(first.duration)]
        images = [_image(first)]
        for picture in pictures:
            durations.append(round(picture.duration))
            images.append(_image(picture))
        extra.update(save_all=True, append_images=images[1:], duration=durations, loop=plays)
        images[0].save(target, FORMATS[format], **extra)  # type: ignore[arg-type]
    else:
        _image(first).save(target, FORMATS[format], **extra)  # type: ignore[arg-type]
        for _ in pictures:  # nothing is left, but the generator that counts notes has to end
            pass
    if isinstance(target, io.BytesIO):
        stream.write(isobmff.with_exif(target.getvalue(), meta.exif))


def _image(picture: Picture) -> Image.Image:
    samples = picture.pixels if picture.alpha is None else np.dstack([picture.pixels, picture.alpha])
    return Image.fromarray(np.ascontiguousarray(samples[:, :, 0] if samples.shape[2] == 1 else samples))


class _Plain:
    """A stream without a file descriptor: Pillow writes to descriptors past Python, and loses the system's reason."""

    def __init__(self, stream: BinaryIO) -> None:
        self.write, self.flush, self.seek, self.tell = stream.write, stream.flush, stream.seek, stream.tell
        self.read = stream.read
