"""`detail-x4` beside `photo-x4`, to look at: python -m bench.detail, to docs/detail.png

Each row makes a quarter of the sample photo, and shows a part of: the photo itself, bicubic interpolation, and what the
two models make of that quarter.
"""

from __future__ import annotations

from bench.failures import ROOT, Case, draw
from bench.photo import SAMPLE
from bench.quality import by_bicubic, by_model, encoded, pixels

ROWS = {"bicubic": by_bicubic, "photo-x4": by_model("photo-x4"), "detail-x4": by_model("detail-x4")}


def main() -> None:
    """Write docs/detail.png."""
    photo = pixels(SAMPLE.read_bytes())
    cases: list[Case] = [
        ("face", photo, (40, 160), lambda small: encoded(small, None)),
        ("letters", photo, (300, 300), lambda small: encoded(small, None)),
        ("machine", photo, (60, 300), lambda small: encoded(small, None)),
        ("JPEG of quality 75", photo, (110, 170), lambda small: encoded(small, 75)),
    ]
    draw(cases, ROWS, 4, ROOT / "docs" / "detail.png")


if __name__ == "__main__":
    main()
