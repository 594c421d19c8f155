"""The training pictures in files small enough to travel to a card: python -m training.pack PHOTOS... --to FILE [FILE]

The most detailed part of every photo that is trained on, as JPEG of high quality with all its colour, until each file
has the size that was asked for; and in the first the most detailed part of the photos of the split, lossless.
"""

from __future__ import annotations

import argparse
import io
import zipfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import torch
from PIL import Image

from core.atomic import atomic_file
from training.photos import GRID, WINDOW, copies, detail, is_held_back, listed

SIDE = 576  # pixels at most, of what is kept of a copy
MEBIBYTE = 1 << 20


def windows(path: Path, side: int) -> Iterator[Image.Image]:
    """The most detailed side x side pixels of each copy of a photo, or the whole copy where that is smaller."""
    for copy in copies(path):
        height, width = copy.shape[:2]
        size = max(WINDOW, min(side, height)), max(WINDOW, min(side, width))
        found = detail(torch.from_numpy(copy))  # (rows, columns)
        span = [max(1, (length - WINDOW) // GRID + 1) for length in size]
        span = [min(length, limit) for length, limit in zip(span, found.shape, strict=True)]
        means = torch.nn.functional.avg_pool2d(found[None, None].float(), span, 1)[0, 0]
        top, left = (GRID * int(place) for place in divmod(int(means.argmax()), means.shape[1]))
        yield Image.fromarray(copy[top : top + size[0], left : left + size[1]])


def pack(folders: list[Path], to: list[Path], mebibytes: list[float], quality: int = 92) -> int:
    """Write the packs, zip files; returns how many pictures are in them.

    The pictures keep their names, which decide over the split; what they are is said by their first bytes.

    Args:
        folders: searched for photos.
        to: the packs; each but the first has what the one before it had no room for.
        mebibytes: of each pack at most. One copy of each photo comes first, then the further copies of large ones.
        quality: of JPEG, in 4:4:4; the split is lossless.
    """
    written = 0
    pictures = _pictures(folders, quality)
    kept = next(pictures, None)
    for path, most in zip(to, mebibytes, strict=True):
        room = int(most * MEBIBYTE) - 100
        with atomic_file(path) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
            while kept:
                name, data = kept
                room -= len(data) + 2 * len(name) + 100  # both of its headers
                if room < 0:
                    break
                archive.writestr(name, data)
                written += 1
                kept = next(pictures, None)
    return written


def _pictures(folders: list[Path], quality: int) -> Iterator[tuple[str, bytes]]:
    """Names and files of what is packed, the most useful first."""
    paths = listed(folders)
    turns = [(turn, index) for index, path in enumerate(paths) for turn in range(1 if is_held_back(path) else 3)]
    for turn, index in sorted(turns, key=lambda item: (not is_held_back(paths[item[1]]), item)):
        split = is_held_back(paths[index])
        picture = next(islice(windows(paths[index], 384 if split else SIDE), turn, None), None)
        if picture is None:
            continue
        stream = io.BytesIO()
        if split:
            picture.save(stream, "PNG")
        else:
            picture.save(stream, "JPEG", quality=quality, subsampling=0)
        yield f"{turn}/{index}/{paths[index].name}", stream.getvalue()


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Pack the training pictures into files that can travel.")
    parser.add_argument("photos", type=Path, nargs="+", help="folders of photos")
    parser.add_argument("--to", type=Path, nargs="+", required=True)
    parser.add_argument("--mebibytes", type=float, nargs="+", default=[58.0], help="of each file")
    arguments = parser.parse_args()
    count = pack(arguments.photos, arguments.to, arguments.mebibytes)
    sizes = ", ".join(f"{path} {path.stat().st_size / MEBIBYTE:.1f} MiB" for path in arguments.to)
    print(f"{count} pictures: {sizes}")


if __name__ == "__main__":
    main()
