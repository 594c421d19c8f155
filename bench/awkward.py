"""Ten awkward pictures before and after, each as a colour-managed viewer shows it: docs/awkward.jpg.

    python -m bench.awkward

Left the input, enlarged by repeating pixels, right the result; Pillow reads and converts both, not this project.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
from PIL import Image, ImageCms, ImageDraw, ImageFont, ImageOps

import core
from tests.unit import profiles

ROOT = Path(__file__).parents[1]
SIDE = 150  # of an input, pixels


def _saved(image: Image.Image, format: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format, **options)
    return stream.getvalue()


def _in_space(photo: Image.Image, icc: bytes, mode: str = "RGB") -> Image.Image:
    profile = ImageCms.ImageCmsProfile(io.BytesIO(icc))
    found = ImageCms.profileToProfile(photo, ImageCms.createProfile("sRGB"), profile, outputMode=mode)
    assert found is not None
    return found


def inputs(photo: Image.Image) -> dict[str, bytes]:
    """By a name for people: ten files that upscalers are known to get wrong."""
    turned = photo.transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6
    p3, adobe = profiles.rgb_profile(profiles.DISPLAY_P3), profiles.rgb_profile(profiles.ADOBE_RGB)
    linear, press = profiles.grey_profile(1.0), profiles.cmyk_profile()
    # Inks that give about this photo on the test's press; that press has no way back, so by the plain formula.
    inks = np.dstack([255 - np.asarray(photo), np.zeros((SIDE, SIDE), np.uint8)])
    dark = (np.asarray(photo).astype(np.uint16) * 257) // 64
    logo = Image.new("RGBA", (SIDE, SIDE))
    pen = ImageDraw.Draw(logo)
    pen.ellipse((10, 10, 140, 140), fill=(255, 255, 255, 255))
    pen.text((32, 40), "logo", font=ImageFont.load_default(48), fill=(0, 0, 0, 0))
    indexed = photo.quantize(16)
    frames = []
    for index in range(3):
        frame = Image.new("RGBA", (SIDE, SIDE))
        frame.paste(photo.resize((70, 70)), (5 + 35 * index, 5 + 35 * index))
        frames.append(frame)
    return {
        "turned by EXIF": _saved(turned, "JPEG", exif=exif, quality=95),
        "Display P3": _saved(_in_space(photo, p3), "PNG", icc_profile=p3),
        "Adobe RGB": _saved(_in_space(photo, adobe), "TIFF", icc_profile=adobe),
        "CMYK, its own press": _saved(Image.fromarray(inks, "CMYK"), "TIFF", icc_profile=press),
        "grey, linear light": _saved(_in_space(photo, linear, "L"), "PNG", icc_profile=linear),
        "white logo on clear black": _saved(logo, "PNG"),
        "16 bits, 6 stops too dark": bytes(imagecodecs.png_encode(dark)),
        "palette, one colour clear": _saved(indexed, "PNG", transparency=indexed.getpixel((5, 5))),
        "one bit": _saved(photo.convert("1"), "PNG"),
        "frame 3, cleared each time": _saved(
            frames[0], "GIF", save_all=True, append_images=frames[1:], duration=100, disposal=2
        ),
    }


def as_shown(data: bytes) -> Image.Image:
    """What a colour-managed viewer shows, over a chessboard where it is clear."""
    image = Image.open(io.BytesIO(data))
    if getattr(image, "n_frames", 1) == 3:
        image.seek(2)
    icc = image.info.get("icc_profile")
    deep = imagecodecs.png_decode(data) if data[:4] == b"\x89PNG" and data[24] == 16 else None
    shown = ImageOps.exif_transpose(image)
    assert shown is not None
    if deep is not None:  # six stops brighter, from all sixteen bits
        shown = Image.fromarray(np.clip(deep.astype(int) * 64 // 257, 0, 255).astype(np.uint8))
    if icc and shown.mode != "P":
        there = ImageCms.profileToProfile(
            shown, ImageCms.ImageCmsProfile(io.BytesIO(icc)), ImageCms.createProfile("sRGB"), outputMode="RGB"
        )
        assert there is not None
        shown = there
    # Made as large as the result before it is laid on the board, so that both boards agree.
    clear = shown.convert("RGBA").resize((2 * SIDE, 2 * SIDE), Image.Resampling.NEAREST)
    board = np.add(*np.indices(clear.size[::-1]) // 16)
    ground = Image.fromarray(np.where(board % 2, 110, 150).astype(np.uint8)).convert("RGBA")
    return Image.alpha_composite(ground, clear).convert("RGB")


def main() -> None:
    """Write docs/awkward.jpg."""
    with Image.open(ROOT / "samples" / "astronaut.jpg") as image:
        photo = image.convert("RGB").crop((130, 20, 430, 320)).resize((SIDE, SIDE), Image.Resampling.LANCZOS)
    pair, gap = 4 * SIDE, 12
    sheet = Image.new("RGB", (2 * pair + 3 * gap, 5 * (2 * SIDE + 26) + gap), "white")
    pen = ImageDraw.Draw(sheet)
    for index, (name, data) in enumerate(inputs(photo).items()):
        left, top = gap + index % 2 * (pair + gap), gap + index // 2 * (2 * SIDE + 26)
        result = core.upscale(data)
        pen.text((left, top - 4), f"{name}: input, result", font=ImageFont.load_default(15), fill="black")
        sheet.paste(as_shown(data), (left, top + 16))
        sheet.paste(as_shown(result.data or b""), (left + 2 * SIDE, top + 16))
    sheet.save(ROOT / "docs" / "awkward.jpg", quality=80)


if __name__ == "__main__":
    main()
