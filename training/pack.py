"""One file with the training pictures, small enough to travel to a card: python -m training.pack PHOTOS... --to FILE

The most detailed part of every photo that is trained on, as JPEG of high quality with all its colour, until the file
has the size that was asked for; and the most detailed part of the photos of the split, lossless.
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

SIDE = 448  # pixels at most, of what is kept of a copy
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


def pack(folders: list[Path], to: Path, mebibytes: float, quality: int = 92) -> int:
    """Write the pack, a zip; returns how many pictures are in it.

    The pictures keep their names, which decide over the split; what they are is said by their first bytes.

    Args:
        folders: searched for photos.
        to: the pack.
        mebibytes: of the pack at most. One copy of each photo comes first, then the further copies of large ones.
        quality: of JPEG, in 4:4:4; the split is lossless.
    """
    paths = listed(folders)
    turns = [(turn, index) for index, path in enumerate(paths) for turn in range(1 if is_held_back(path) else 3)]
    room, count = int(mebibytes * MEBIBYTE), 0
    with atomic_file(to) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
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
            name = f"{turn}/{index}/{paths[index].name}"
            room -= stream.tell() + 2 * len(name) + 100  # both of its headers
            if room < 100:
                break
            archive.writestr(name, stream.getvalue())
            count += 1
    return count


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Pack the training pictures into one file.")
    parser.add_argument("photos", type=Path, nargs="+", help="folders of photos")
    parser.add_argument("--to", type=Path, required=True)
    parser.add_argument("--mebibytes", type=float, default=58.0)
    arguments = parser.parse_args()
    count = pack(arguments.photos, arguments.to, arguments.mebibytes)
    print(f"{arguments.to}: {count} pictures, {arguments.to.stat().st_size / MEBIBYTE:.1f} MiB")


if __name__ == "__main__":
    main()
