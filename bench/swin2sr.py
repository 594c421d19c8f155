"""Our Swin2SR against transformers' forward, in turns in one process: python -m bench.swin2sr CHECKPOINT

Same weights, same input, same threads; medians and their ratio, and the agreement of the two results.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from core import models
from core.engine import allocator
from core.engine.pytorch import open_network


def seconds(run: Callable[[Any], object], x: Any) -> float:
    """Of one call."""
    start = time.perf_counter()
    run(x)
    return time.perf_counter() - start


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Swin2SR: ours and transformers' forward.")
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--sides", nargs="*", type=int, default=[128, 256])
    parser.add_argument("--dtypes", nargs="*", default=["float32", "bfloat16"])
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    from transformers import Swin2SRForImageSuperResolution

    allocator.keep_freed()
    spec = models.spec_of(str(arguments.checkpoint))
    theirs = Swin2SRForImageSuperResolution.from_pretrained(arguments.checkpoint)
    theirs.train(False)
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}, {os.cpu_count()} cores")
    print("| input | dtype | transformers fp32, s | ours, s | ratio | agreement, dB |\n|---|---|---|---|---|---|")
    for side in arguments.sides:
        x = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(0))
        for name in arguments.dtypes:
            ours = open_network(spec, arguments.checkpoint, "cpu", name)
            pixels = x.numpy()
            with torch.inference_mode():
                made, truth = torch.from_numpy(ours(pixels)), theirs(x).reconstruction[..., : 2 * side, : 2 * side]
                error = float((made - truth).double().square().mean())
                turns = [(seconds(theirs, x), seconds(ours, pixels)) for _ in range(arguments.rounds)]
            reference, own = (statistics.median(values) for values in zip(*turns, strict=True))
            agreement = 10 * math.log10(1 / error) if error else math.inf
            print(f"| {side}x{side} | {name} | {reference:.2f} | {own:.2f} | {reference / own:.2f} | {agreement:.0f} |")


if __name__ == "__main__":
    main()
