"""One gigapixel to 4.3 in bounded memory: python -m bench.gigapixel [--side 32768] [--pyramid] [--by lanczos tiny]

A TIFF is generated from top to bottom, enlarged by the command as its own process, and rows of the result at 20 places
are read by tifffile and by libvips and compared with what is computed from these places of the input alone. Takes some
minutes of two cores, and 2 GB of disk at the usual size.
"""

from __future__ import annotations

import argparse
import io
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

import core
from bench.photo import Made, run
from core.codecs.encode import encode
from core.picture import Scan
from core.pixels.bands import Bands

Rows = npt.NDArray[np.uint8]
_BAND = 256  # rows generated at once
_NEAR = 32  # rows of the input on either side of a place, more than what is computed there looks at


def pattern(top: int, bottom: int, width: int) -> Rows:
    """Rows [top, bottom) of a picture of cells, no two rows of cells alike; (rows, width, 3), small when compressed."""
    across, down = np.arange(width, dtype=np.uint32) >> 6, np.arange(top, bottom, dtype=np.uint32)[:, None] >> 6
    mixed = across * np.uint32(73856093) ^ down * np.uint32(19349663)
    return np.stack([mixed >> 4, mixed >> 11, mixed >> 18], axis=2).astype(np.uint8)


def generate(path: Path, height: int, width: int, format: str) -> None:
    """Write the pattern as a file."""

    def read() -> Iterator[Rows]:
        for top in range(0, height, _BAND):
            yield pattern(top, min(top + _BAND, height), width)

    scan = Scan(bands=Bands(height, width, 3, False, np.dtype(np.uint8), read))
    with path.open("wb") as stream:
        encode(iter([scan]), stream, format, pixels=height * width)


def tiny_network(folder: Path) -> str:
    """A network of the embedded kind that does little: one block of four channels."""
    import torch

    from core.networks.compact_config import CompactConfig
    from training.weights import build, export

    torch.manual_seed(0)
    export(build(CompactConfig(2, 4, 1), None, torch.device("cpu")), folder)
    return str(folder)


def expected(y: int, side: int, model: str) -> Rows:
    """Row y of the result, (2 * side, 3), from the rows of the input around it."""
    top, bottom = max(0, y // 2 - _NEAR) // 8 * 8, min(side, y // 2 + _NEAR)
    near = pattern(top, bottom, side)
    if model == "lanczos":
        wide = Image.fromarray(near).resize((2 * side, bottom - top), Image.Resampling.LANCZOS)
        box = (0, y / 2 - top, 2 * side, (y + 1) / 2 - top)
        row: Rows = np.asarray(wide.resize((2 * side, 1), Image.Resampling.LANCZOS, box))[0]
        return row
    stream = io.BytesIO()
    Image.fromarray(near).save(stream, "TIFF")
    made = core.upscale(stream.getvalue(), core.Options(model=model, format="bmp", device="cpu"))
    row = np.asarray(Image.open(io.BytesIO(made.data or b"")))[y - 2 * top]
    return row


def check(path: Path, side: int, model: str, places: list[int]) -> None:
    """Read rows by tifffile and libvips and compare them. Raises: SystemExit, when one differs."""
    import pyvips
    import tifffile

    with tifffile.TiffFile(path) as file:
        page = file.pages[0]
        assert isinstance(page, tifffile.TiffPage)
        rows, columns = page.chunks[:2]  # of a tile, or of a strip
        across = -(-page.imagewidth // columns)
        for y in places:
            row = np.empty((page.imagewidth, 3), np.uint8)
            for x in range(across):
                index = y // rows * across + x
                file.filehandle.seek(page.dataoffsets[index])
                tile = page.decode(file.filehandle.read(page.databytecounts[index]), index)[0][0]  # type: ignore[index]
                left = x * columns
                row[left : left + columns] = tile[y % rows, : page.imagewidth - left]
            seen = pyvips.Image.new_from_file(str(path)).crop(0, y, 2 * side, 1).numpy()[0]
            wanted = expected(y, side, model)
            if not (np.array_equal(row, wanted) and np.array_equal(seen, wanted)):
                raise SystemExit(f"row {y} of the result by {model} is not what it should be")


def measure(model: str, name: str, side: int, pyramid: bool, folder: Path) -> None:
    """Enlarge, compare, and print a row of the table."""
    source, target = folder / "in.tif", folder / f"{name.split()[0]}.tif"  # libvips remembers files by their names
    made: Made = run(source, target, model, *(["--pyramid"] if pyramid else []))
    places = sorted({0, 2 * side - 1, *np.random.default_rng(1).integers(0, 2 * side, 18).tolist()})
    check(target, side, model, places)
    heads = ["by", "result", "s", "CPU s", "peak MB", "file, MB", "rows equal"]
    print("| " + " | ".join(heads) + " |\n" + "|---" * len(heads) + "|")
    size = f"{made.result['width']}x{made.result['height']}"
    numbers = f"{made.seconds:.0f} | {made.cpu:.0f} | {made.peak / 1e6:.0f} | {target.stat().st_size / 1e6:.0f}"
    print(f"| {name} | {size} | {numbers} | {len(places)} by tifffile and libvips |", flush=True)
    target.unlink()


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="A gigapixel in bounded memory.")
    parser.add_argument("--side", type=int, default=32_768, help="of the input, pixels")
    parser.add_argument("--pyramid", action="store_true", help="with smaller copies")
    parser.add_argument("--by", nargs="*", choices=["lanczos", "tiny"], default=["lanczos"], help="a tiny network, too")
    parser.add_argument("--folder", type=Path, help="where there is room (the usual one for temporary files)")
    arguments = parser.parse_args()
    side = arguments.side
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = Path(name)
        if shutil.disk_usage(folder).free < 4 * side * side:
            raise SystemExit(f"too little room in {folder}: choose another --folder")
        generate(folder / "in.tif", side, side, "tiff")
        if "lanczos" in arguments.by:
            measure("lanczos", "Lanczos", side, arguments.pyramid, folder)
        if "tiny" in arguments.by:
            measure(tiny_network(folder / "tiny"), "tiny network", side, arguments.pyramid, folder)


if __name__ == "__main__":
    main()
