"""Where the embedded models fail, to look at: python -m bench.failures, to docs/failures.png

Each row halves a picture, damages it in one way, and shows a part of: the picture itself, bicubic interpolation,
`compact-x2`, `photo-x2`. The photo is the sample; star and letters are drawn here.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from bench.metrics import bicubic
from bench.peers import Upscaler
from bench.photo import SAMPLE
from bench.quality import by_bicubic, by_model, encoded, pixels

ROOT = Path(__file__).parents[1]
SIDE, ZOOM = 112, 2  # of a part: pixels of the large picture, and of the screen for each
ROWS = {"bicubic": by_bicubic, "compact-x2": by_model("compact-x2"), "photo-x2": by_model("photo-x2")}


def star() -> Tensor:
    """(512, 512, 3) uint8: 60 spokes, finer towards the middle than any pixel."""
    y, x = np.mgrid[-1023:1025:2, -1023:1025:2] / 4  # four samples for each pixel
    spokes = (np.sin(60 * np.arctan2(y, x)) > 0) * 255.0
    grey = spokes.reshape(512, 2, 512, 2).mean((1, 3)).round().astype(np.uint8)
    return torch.from_numpy(np.repeat(grey[:, :, None], 3, 2))


def letters() -> Tensor:
    """(512, 512, 3) uint8: text of 11 pixels, of which the input has half."""
    page = Image.new("RGB", (512, 512), (250, 248, 240))
    pen, font = ImageDraw.Draw(page), ImageFont.load_default(11)
    for line in range(34):
        text = "The quick brown fox jumps over the lazy dog; 0123456789, (8B) [rn m] {cl d} Il1|. " * 2
        pen.text((4, 4 + 15 * line), text[line:], font=font, fill=(30, 30, 40))
    return torch.from_numpy(np.array(page))


def noisy(small: Tensor) -> bytes:
    """A clean input with noise of 8 levels, as a dark room gives it."""
    noise = torch.randn(small.shape, generator=torch.Generator().manual_seed(0)) * 8
    return encoded((small + noise).round().clamp(0, 255).byte(), None)


Case = tuple[str, Tensor, tuple[int, int], Callable[[Tensor], bytes]]


def draw(cases: list[Case], rows: Mapping[str, Upscaler], scale: int, file: Path) -> None:
    """Write a sheet: for each case a line with the picture, and what is made of it once it is `scale` times smaller.

    Args:
        cases: what it is called, (h, w, 3) uint8, top and left of the part that is shown, and what makes the input.
        rows: by name, from an input to its result.
        scale: of all of `rows`.
        file: a PNG.
    """
    head, width = 22, SIDE * ZOOM
    sheet = Image.new("RGB", ((len(rows) + 1) * width, len(cases) * (width + head)), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(15)
    for row, (name, truth, (y, x), damaged) in enumerate(cases):
        height, length = truth.shape[:2]
        data = damaged(bicubic(truth, height // scale, length // scale))
        made = {f"{name}: the picture": truth, **{key: run(data, length, height) for key, run in rows.items()}}
        for column, (title, values) in enumerate(made.items()):
            place = (column * width, row * (width + head))
            pen.text((place[0] + 2, place[1] + 1), title, font=font, fill="black")
            part = Image.fromarray(values[y : y + SIDE, x : x + SIDE].numpy())
            sheet.paste(part.resize((width, width), Image.Resampling.NEAREST), (place[0], place[1] + head))
    stream = io.BytesIO()
    sheet.quantize(256, dither=Image.Dither.NONE).save(stream, "PNG", optimize=True)
    file.write_bytes(stream.getvalue())


def main() -> None:
    """Write docs/failures.png."""
    photo = pixels(SAMPLE.read_bytes())
    cases: list[Case] = [
        ("clean photo", photo, (40, 160), lambda small: encoded(small, None)),
        ("JPEG of quality 30", photo, (110, 170), lambda small: encoded(small, 30)),
        ("noise", photo, (110, 170), noisy),
        ("lines finer than pixels", star(), (200, 200), lambda small: encoded(small, None)),
        ("letters of 5 pixels", letters(), (100, 100), lambda small: encoded(small, None)),
    ]
    draw(cases, ROWS, 2, ROOT / "docs" / "failures.png")


if __name__ == "__main__":
    main()
