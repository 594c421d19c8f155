"""Memory that does not grow with the picture or with time: python -m bench.memory CHECKPOINT

Peak resident memory of the whole command, from a small picture to one many times as high and just as wide, for each
format that is read and written from top to bottom, by Lanczos and by a tiny network; the same by Swin2SR, the pictures
themselves taken off; resident memory over many requests in one process; and seconds a megapixel of the embedded model
from small pictures to large ones.

Swin2SR works layer by layer, and a layer's numbers are gone when the next but one is computed, so that its memory is
that of two layers, while its time is that of all. `--layers 2` measures large pictures in minutes instead of hours.
"""

from __future__ import annotations

import argparse
import io
import json
import re
import statistics
import tempfile
from pathlib import Path

import core
from bench.gigapixel import generate, tiny_network
from bench.photo import SAMPLE, photo, run

_WIDTH = 8_000  # of what is enlarged in bands, pixels
_REQUESTS_BEFORE = 20  # that fill caches


def shallow(checkpoint: Path, layers: int, folder: Path) -> Path:
    """The first layers of the first stage of a Swin2SR checkpoint, with all that comes before and after them."""
    from safetensors.torch import load_file, save_file

    config = json.loads((checkpoint / "config.json").read_text())
    config |= {"depths": [layers], "num_heads": config["num_heads"][:1], "num_layers": 1}
    (folder / "config.json").write_text(json.dumps(config))

    def stays(name: str) -> bool:
        found = re.search(r"stages\.(\d+)\.(?:layers\.(\d+))?", name)
        return found is None or (found[1] == "0" and int(found[2] or 0) < layers)

    state = load_file(checkpoint / "model.safetensors")
    save_file({name: value for name, value in state.items() if stays(name)}, folder / "model.safetensors")
    return folder


def flat(formats: list[str], models: list[str], sizes: list[float]) -> None:
    """Peak memory and seconds of the whole command, for pictures of one width and so many megapixels."""
    heads = ["enlarged, by", "input", "s", "s a MP", "CPU s", "peak MB", "peak to that of the first"]
    print("| " + " | ".join(heads) + " |\n" + "|---" * len(heads) + "|")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for format in formats:
            for model in models:
                first = 0.0
                for size in sizes:
                    width = min(_WIDTH, round((size * 4e6 / 3) ** 0.5))
                    source, target = folder / f"in.{format}", folder / f"out.{format}"
                    generate(source, round(size * 1e6 / width), width, format)
                    made = run(source, target, tiny_network(folder / "tiny") if model == "tiny" else model)
                    target.unlink()
                    first = first or made.peak
                    numbers = f"{made.seconds:.1f} | {made.seconds / size:.3f} | {made.cpu:.1f} | {made.peak / 1e6:.0f}"
                    print(f"| {format}, {model} | {size:g} MP | {numbers} | {made.peak / first:.2f} |", flush=True)


def peaks(model: str, sizes: list[float]) -> None:
    """Peak memory of the whole command, for pictures of so many megapixels."""
    heads = ["Swin2SR, input", "seconds", "peak MB", "of it pictures, MB", "the rest, MB", "rest to that of the first"]
    print("| " + " | ".join(heads) + " |\n" + "|---" * len(heads) + "|")
    first = 0.0
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "in.jpg"
        for size in sizes:
            photo(SAMPLE, size).save(source, quality=92)
            made = run(source, Path(folder) / "out.jpg", model)
            pictures = 3 * (size + size * (made.result["width"] / photo(SAMPLE, size).width) ** 2)  # MB
            rest = made.peak / 1e6 - pictures
            first = first or rest
            numbers = f"{made.result['seconds']:.1f} | {made.peak / 1e6:.0f} | {pictures:.0f} | {rest:.0f}"
            print(f"| {size:g} MP | {numbers} | {rest / first:.2f} |", flush=True)


def resident() -> float:
    """Memory of this process now, MB."""
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS:")]
    return int(line.split()[1]) * 1024 / 1e6


def growth(model: str, requests: int) -> None:
    """Resident memory over warm requests in this process, of one size and of many."""
    print("| requests | sizes | resident before, MB | after, MB | MB a request |\n|---|---|---|---|---|")
    for sizes in ("one", "many"):
        files = []
        for index in range(1 if sizes == "one" else 50):
            stream = io.BytesIO()
            photo(SAMPLE, 0.02 + 0.0005 * index).save(stream, "JPEG", quality=92)
            files.append(stream.getvalue())
        options = core.Options(model=model)
        for index in range(_REQUESTS_BEFORE):
            core.upscale(files[index % len(files)], options)
        seen = []
        for index in range(requests):
            core.upscale(files[index % len(files)], options)
            seen.append(resident())
        # The median of ten on either end: what the allocator keeps varies by some MB from one to the next.
        before, after = statistics.median(seen[:10]), statistics.median(seen[-10:])
        numbers = f"{before:.1f} | {after:.1f} | {(after - before) / requests:.3f}"
        print(f"| {requests} | {sizes} | {numbers} |", flush=True)


def cost(model: str, sizes: list[float]) -> None:
    """Seconds a megapixel, decoding to encoding."""
    heads = ["input", "s", "s a MP", "to the median", "peak MB"]
    print("| " + " | ".join(heads) + " |\n" + "|---" * len(heads) + "|")
    found = []
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "in.jpg"
        for size in sizes:
            photo(SAMPLE, size).save(source, quality=92)
            found.append(run(source, Path(folder) / "out.jpg", model))
    rates = [made.result["seconds"] / size for made, size in zip(found, sizes, strict=True)]
    for made, rate, size in zip(found, rates, sizes, strict=True):
        numbers = f"{made.result['seconds']:.1f} | {rate:.2f} | {rate / statistics.median(rates):.2f}"
        print(f"| {size:g} MP | {numbers} | {made.peak / 1e6:.0f} |", flush=True)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Peak memory, growth, and seconds a megapixel.")
    parser.add_argument("checkpoint", type=Path, nargs="?", help="of Swin2SR; without it only the embedded model")
    parser.add_argument("--layers", type=int, help="of Swin2SR that are run (all)")
    parser.add_argument("--megapixels", nargs="*", type=float, default=[3, 12], help="for the peak (3 12)")
    parser.add_argument("--flat", nargs="*", type=float, default=[12, 200], help="megapixels, 8,000 px wide (12 200)")
    parser.add_argument("--formats", nargs="*", default=["tiff", "png", "jpeg"])
    parser.add_argument("--by", nargs="*", default=["lanczos", "tiny"], help="for --flat: models, or a tiny network")
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--cost", nargs="*", type=float, default=[0.25, 1, 4, 16, 64], help="megapixels")
    arguments = parser.parse_args()
    if arguments.flat:
        flat(arguments.formats, arguments.by, arguments.flat)
        print()
    if arguments.checkpoint and arguments.megapixels:
        with tempfile.TemporaryDirectory() as folder:
            model = arguments.checkpoint
            if arguments.layers:
                model = shallow(model, arguments.layers, Path(folder))
                print(f"{arguments.layers} layers of Swin2SR\n")
            peaks(str(model), arguments.megapixels)
        print()
    if arguments.cost:
        cost("compact-x2", arguments.cost)
        print()
    if arguments.requests:  # last: a process that is started by a large one counts as large from the start
        growth("compact-x2", arguments.requests)


if __name__ == "__main__":
    main()
