"""How good the models are: python -m bench.quality --sets ../shared/bench [--models compact-x2 ...] [--peers]

PSNR and SSIM on Y against the true picture, borders shaved, inputs made by MATLAB-style antialiased bicubic. The whole
path is measured: encoded input, our decoding, tiles, encoded PNG. Also on inputs saved as JPEG. A second table has what
tells more of how a picture looks, on every third picture of Kodak24: SSIMULACRA2 against the truth (higher is better;
90 looks the same), NIQE without it (lower is more natural, and invented detail counts as natural), and processor
seconds for a megapixel of input, all threads together. Prints Markdown.
Not LPIPS or DISTS: their packages hold the last layers only, and download the network below them.
"""

from __future__ import annotations

import argparse
import io
import math
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

import core
from bench.metrics import bicubic, psnr_y, ssim_y
from bench.niqe import niqe
from bench.peers import available
from bench.runtimes import CHECKPOINT
from core import models

Upscaler = Callable[[bytes, int, int], Tensor]


def pixels(data: bytes) -> Tensor:
    """(h, w, 3) uint8 of an encoded picture, (h, w, 1) of a greyscale one."""
    with Image.open(io.BytesIO(data)) as image:
        values = np.array(image if image.mode == "L" else image.convert("RGB"))
    return torch.from_numpy(values.reshape(*values.shape[:2], -1))


def encoded(values: Tensor, quality: int | None) -> bytes:
    """PNG, or JPEG of a quality with 4:2:0 chroma, as phones and web pages save it."""
    stream = io.BytesIO()
    image = Image.fromarray(values.numpy().squeeze(-1) if values.shape[-1] == 1 else values.numpy())
    if quality is None:
        image.save(stream, "PNG", compress_level=1)
    else:
        image.save(stream, "JPEG", quality=quality, subsampling=2)
    return stream.getvalue()


def by_model(name: str) -> Upscaler:
    """`core.upscale` with a model, through PNG."""

    def run(data: bytes, width: int, height: int) -> Tensor:
        options = core.Options(model=name, width=width, height=height, format="png")
        result = core.upscale(data, options)
        if result.degraded and name != "lanczos":
            raise SystemExit(f"{name} did not run: {result.reason}")
        return pixels(result.data or b"")

    return run


def by_bicubic(data: bytes, width: int, height: int) -> Tensor:
    """MATLAB's imresize, the baseline of the literature."""
    return bicubic(pixels(data), height, width)


def by_lanczos(data: bytes, width: int, height: int) -> Tensor:
    """Pillow's Lanczos, what a picture viewer or a build script would do."""
    with Image.open(io.BytesIO(data)) as image:
        made = image.resize((width, height), Image.Resampling.LANCZOS)
    return pixels(encoded(torch.from_numpy(np.array(made)).reshape(height, width, -1), None))


def truths(folder: Path, scale: int) -> Iterator[Tensor]:
    """(h, w, 3) or greyscale (h, w, 1) uint8 pictures whose sides the scale divides."""
    for path in sorted(folder.glob("*.png")):
        truth = pixels(path.read_bytes())
        yield truth[: truth.shape[0] // scale * scale, : truth.shape[1] // scale * scale]


def measure(run: Upscaler, folder: Path, scale: int, quality: int | None) -> tuple[float, float, float]:
    """Mean PSNR in dB, mean SSIM, and seconds in all, over a folder."""
    psnr, ssim, seconds = [], [], 0.0
    for truth in truths(folder, scale):
        height, width = truth.shape[:2]
        small = encoded(bicubic(truth, height // scale, width // scale), quality)
        start = time.perf_counter()
        made = run(small, width, height)
        seconds += time.perf_counter() - start
        psnr.append(psnr_y(made, truth, shave=scale))
        ssim.append(ssim_y(made, truth, shave=scale))
    return sum(psnr) / len(psnr), sum(ssim) / len(ssim), seconds


def ssimulacra2(made: Tensor, truth: Tensor) -> float:
    """Of (h, w, 3) or (h, w, 1) uint8 pictures; not a number where its package (the extra `bench`) is not installed."""
    try:
        from ssimulacra2 import compute_ssimulacra2
    except ImportError:
        return math.nan
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / name for name in ("truth.png", "made.png")]
        for file, picture in zip(files, (truth, made), strict=True):
            file.write_bytes(encoded(picture.expand(-1, -1, 3), None))
        return float(compute_ssimulacra2(*map(str, files)))


def looks(run: Upscaler, folder: Path, scale: int, quality: int | None) -> tuple[float, float, float, float]:
    """Mean PSNR in dB, SSIMULACRA2, NIQE, and processor seconds a megapixel of input, over every third picture."""
    found, seconds, size = [], 0.0, 0
    for truth in list(truths(folder, scale))[::3]:
        height, width = truth.shape[:2]
        small = encoded(bicubic(truth, height // scale, width // scale), quality)
        start = time.process_time()
        made = run(small, width, height)
        seconds += time.process_time() - start
        size += height * width // scale**2
        found.append((psnr_y(made, truth, shave=scale), ssimulacra2(made, truth), niqe(made)))
    psnr, visible, natural = (sum(values) / len(values) for values in zip(*found, strict=True))
    return psnr, visible, natural, seconds / size * 1e6


def windows(folder: Path, scale: int, side: int, count: int) -> Iterator[tuple[Tensor, slice, slice]]:
    """Of `count` pictures the most detailed side x side pixels with what lies around: (h, w, 3), rows and columns."""
    around = 32 * scale  # so that nobody sees the edge
    pictures = list(truths(folder, scale))
    for truth in pictures[:: max(1, len(pictures) // count)][:count]:
        detail = truth.float().mean(2).diff(dim=0)[:, 1:].abs()[None]
        blocks = torch.nn.functional.avg_pool2d(detail, side, side)[0]  # (rows, columns)
        place = [side * int(corner) for corner in divmod(int(blocks.argmax()), blocks.shape[1])]
        first = [max(0, corner - around) // scale * scale for corner in place]
        part = truth[first[0] : place[0] + side + around, first[1] : place[1] + side + around]
        part = part[: len(part) // scale * scale, : part.shape[1] // scale * scale]
        rows, columns = (
            slice(corner - start, corner - start + side) for corner, start in zip(place, first, strict=True)
        )
        yield part, rows, columns


def contact_sheet(rows: dict[str, Upscaler], folder: Path, scale: int, count: int = 12, side: int = 96) -> Image.Image:
    """The truth and each upscaler side by side: a detailed crop of some pictures, from clean inputs and JPEG 75."""
    zoom, sheet = 2, []
    for truth, y, x in windows(folder, scale, side, count):
        for quality in (None, 75):
            height, width = truth.shape[:2]
            small = encoded(bicubic(truth, height // scale, width // scale), quality)
            made = [truth, *(run(small, width, height) for run in rows.values())]
            cut = [part[y, x].expand(-1, -1, 3) for part in made]
            sheet.append(torch.cat(cut, 1).repeat_interleave(zoom, 0).repeat_interleave(zoom, 1))
    return Image.fromarray(torch.cat(sheet).numpy())


def usual(scale: int) -> list[str]:
    """The embedded models of this scale, and Swin2SR where its checkpoint is."""
    found = [name for name in (f"compact-x{scale}", f"photo-x{scale}", f"detail-x{scale}") if name in models.MODELS]
    if scale == 2 and CHECKPOINT.is_dir():
        return [*found, str(CHECKPOINT)]
    print(f"Without Swin2SR: it is x2, and {'that is not asked for' if scale != 2 else f'{CHECKPOINT} is not here'}.\n")
    return found


def print_truth(rows: dict[str, Upscaler], sets: Path, only: list[str], jpeg: list[int], scale: int) -> None:
    """The table of PSNR, SSIM and seconds."""
    columns: list[tuple[str, int | None]] = [(name, None) for name in only]
    if "Kodak24" in only:
        columns += [("Kodak24", quality) for quality in jpeg]
    print(f"| x{scale} | " + " | ".join(name + (f" JPEG {q}" if q else "") for name, q in columns) + " |")
    print("|---" * (len(columns) + 1) + "|")
    for label, run in rows.items():
        cells = []
        for name, quality in columns:
            psnr, ssim, seconds = measure(run, sets / name, scale, quality)
            cells.append(f"{psnr:.2f} / {ssim:.4f} ({seconds:.1f} s)")
        print(f"| {Path(label).name} | " + " | ".join(cells) + " |", flush=True)


def print_looks(rows: dict[str, Upscaler], folder: Path, scale: int) -> None:
    """The table of SSIMULACRA2, NIQE and cost."""
    print(f"\n| x{scale}, eight of Kodak24 | PSNR / SSIMULACRA2 / NIQE | the same at JPEG 75 | CPU-s a MP |")
    print("|---" * 4 + "|")
    for label, run in rows.items():
        clean, damaged = (looks(run, folder, scale, quality) for quality in (None, 75))
        cells = [f"{found[0]:.2f} / {found[1]:.1f} / {found[2]:.1f}" for found in (clean, damaged)]
        print(f"| {Path(label).name} | " + " | ".join(cells) + f" | {clean[3]:.1f} |", flush=True)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="PSNR, SSIM, SSIMULACRA2, NIQE and cost of the models.")
    parser.add_argument("--sets", type=Path, required=True, help="folder with Set5, Set14, Kodak24")
    parser.add_argument("--models", nargs="*", help="names, hub ids or directories (the embedded ones, and Swin2SR)")
    parser.add_argument("--only", nargs="*", default=["Set5", "Set14", "Kodak24"], help="of these sets")
    parser.add_argument("--jpeg", nargs="*", type=int, default=[90, 75, 50], help="qualities for Kodak24")
    parser.add_argument("--scale", type=int, nargs="+", default=[2])
    parser.add_argument("--peers", action="store_true", help="rows of other upscalers, where they are installed")
    parser.add_argument("--sheet", type=Path, help="also write pictures of crops, NAME-x2.png for NAME.png")
    arguments = parser.parse_args()
    if math.isnan(ssimulacra2(torch.zeros(16, 16, 3).byte(), torch.zeros(16, 16, 3).byte())):
        print("Without SSIMULACRA2: pip install ssimulacra2.\n")
    for scale in arguments.scale:
        rows: dict[str, Upscaler] = {"bicubic": by_bicubic, "Lanczos": by_lanczos}
        rows |= {name: by_model(name) for name in arguments.models or usual(scale)}
        if arguments.peers:
            peers, missing = available(scale)
            rows |= peers
            print("\n".join([*missing, ""]))
        print_truth(rows, arguments.sets, arguments.only, arguments.jpeg, scale)
        if "Kodak24" in arguments.only:
            print_looks(rows, arguments.sets / "Kodak24", scale)
            print()
        if arguments.sheet:
            name = arguments.sheet.with_name(f"{arguments.sheet.stem}-x{scale}.png")
            contact_sheet(rows, arguments.sets / "Kodak24", scale).save(name)


if __name__ == "__main__":
    main()
