"""A picture of before and after: python -m bench.picture IN OUT --box 180 60 130 100 --zoom 3

Left the input enlarged by bicubic interpolation, right the same part of our result, both shown at the same size.
"""

from __future__ import annotations

import argparse
import io
from pathlib import Path

from PIL import Image

import core


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Before and after, side by side.")
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--box", nargs=4, type=int, default=[170, 50, 130, 130], help="left, top, width, height")
    parser.add_argument("--zoom", type=int, default=3, help="screen pixels for one of the input")
    parser.add_argument("--model")
    arguments = parser.parse_args()
    left, top, width, height = arguments.box
    part = (left, top, left + width, top + height)
    size = (width * arguments.zoom, height * arguments.zoom)
    result = core.upscale(arguments.source, core.Options(model=arguments.model, format="png"))
    before = Image.open(arguments.source).convert("RGB").crop(part).resize(size, Image.Resampling.BICUBIC)
    after = Image.open(io.BytesIO(result.data or b"")).convert("RGB").crop(tuple(2 * side for side in part))
    sheet = Image.new("RGB", (2 * size[0] + 8, size[1]), "white")
    sheet.paste(before, (0, 0))
    sheet.paste(after.resize(size, Image.Resampling.BICUBIC), (size[0] + 8, 0))
    sheet.save(arguments.target)


if __name__ == "__main__":
    main()
