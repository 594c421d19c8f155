"""On a CUDA card, against transformers and the card's own rate: python -m bench.gpu

Agreement first, then seconds, megapixels a second, and the share of the card's dense bf16 rate. Each part is tried by
itself: one that fails is told in the table and ends nothing, unless it takes the card with it. Writes gpu.json to $OUT,
or to the current directory. Without a card it says so and ends.
"""

from __future__ import annotations

import json
import math
import os
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from core import models
from core.engine import batches
from core.engine.load import load
from core.engine.plan import make_plan
from core.engine.pytorch import build
from core.engine.run import upscale_strips
from core.networks.swin2sr import Swin2SR
from core.networks.swin2sr_config import Swin2SRConfig

#: No part begins later than this.
SECONDS = 190.0
BEGIN = time.perf_counter()
CLASSICAL: dict[str, Any] = {
    "embed_dim": 180, "depths": [6] * 6, "num_heads": [6] * 6, "window_size": 8, "mlp_ratio": 2.0, "upscale": 2,
    "upsampler": "pixelshuffle", "resi_connection": "1conv", "img_range": 1.0,
}  # fmt: skip
LIGHTWEIGHT = CLASSICAL | {"embed_dim": 60, "depths": [6] * 4, "num_heads": [6] * 4, "upsampler": "pixelshuffledirect"}
#: Batches and sides of tiles that are timed.
SIZES = ((1, 128), (4, 128), (16, 128), (1, 192), (7, 192), (1, 256), (4, 256))

rows: list[tuple[str, str]] = []


def say(name: str, value: str) -> None:
    """A line of the table, and at once: what follows may not come to an end."""
    rows.append((name, value))
    print(f"[{time.perf_counter() - BEGIN:6.1f}] {name}: {value}", flush=True)


@contextmanager
def trying(name: str) -> Iterator[None]:
    """Go on after a failure; skip nothing silently."""
    try:
        if time.perf_counter() - BEGIN > SECONDS:
            raise TimeoutError("no time left")
        yield
    except Exception as error:
        say(name, f"FAILED {type(error).__name__}: {str(error).strip()[:300]}")
        torch.cuda.synchronize()  # raises where the card takes no more work: then everything after would fail, too
        torch.cuda.empty_cache()


def seconds(call: Callable[[], object], budget: float = 0.5) -> float:
    """Median of one call, by the card's own clock; enough calls to fill the budget, three at least."""
    call()
    torch.cuda.synchronize()
    taken: list[float] = []
    begin = time.perf_counter()
    while len(taken) < 3 or (time.perf_counter() - begin < budget and len(taken) < 100):
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        start.record()
        call()
        stop.record()
        torch.cuda.synchronize()
        taken.append(start.elapsed_time(stop) / 1e3)
    return statistics.median(taken)


def agreement(made: Tensor, truth: Tensor) -> float:
    """In dB, of the range of what is expected."""
    error = float((made.double() - truth.double()).square().mean())
    return 10 * math.log10(float(truth.max() - truth.min()) ** 2 / max(error, 1e-30))


def random_state(net: nn.Module) -> dict[str, Tensor]:
    """Weights at which every term of the network matters."""
    generator = torch.Generator().manual_seed(0)
    state = {}
    for name, tensor in net.state_dict().items():
        noise = torch.randn(tensor.shape, generator=generator)
        if name.endswith("logit_scale"):
            state[name] = math.log(10) + 0.3 * noise
        elif tensor.ndim > 1:
            state[name] = noise / math.sqrt(tensor[0].numel())
        else:
            state[name] = 0.1 * noise + (1 if "layernorm" in name and name.endswith("weight") else 0)
    return state


def picture(n: int, side: int) -> Tensor:
    """(n, 3, side, side) fp32, channels_last."""
    return torch.rand(n, 3, side, side, device="cuda").contiguous(memory_format=torch.channels_last)


def dense_rate() -> float:
    """Of bf16 products, in operations a second."""
    properties = torch.cuda.get_device_properties(0)
    say("card", f"{properties.name}, {properties.multi_processor_count} multiprocessors, torch {torch.__version__}")
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    rate = 2 * 8192**3 / seconds(lambda: a @ b)
    say("dense bf16 product 8192^3", f"{rate / 1e12:.0f} TFLOP/s")
    return rate


def rate_of(name: str, net: Callable[[Tensor], object], n: int, side: int, operations: float, dense: float) -> float:
    """Input pixels a second of n tiles at once."""
    taken = seconds(partial(net, picture(n, side)))
    speed = n * side * side / taken
    share = speed * operations / dense
    say(f"{name}, {n} x {side}^2", f"{taken * 1e3:.2f} ms, {speed / 1e6:.2f} MP/s, {share:.1%} of dense")
    return speed


def swin2sr(name: str, raw: dict[str, Any], dense: float) -> None:
    """Ours against transformers with the same random weights."""
    from transformers import Swin2SRConfig as TheirConfig
    from transformers import Swin2SRForImageSuperResolution

    config = Swin2SRConfig.from_dict(raw)
    theirs = Swin2SRForImageSuperResolution(TheirConfig(**raw)).train(False).requires_grad_(False)
    state = random_state(theirs)
    theirs.load_state_dict(state)
    theirs = theirs.cuda()
    ours = Swin2SR(config)
    ours.load(state)
    ours = ours.eval().to(memory_format=torch.channels_last).cuda()  # type: ignore[call-overload]
    operations = config.operations_per_pixel
    x = picture(2, 128)
    with torch.inference_mode():
        batches.full_precision()
        truth = theirs(x).reconstruction[..., :256, :256]
        say(f"{name} fp32, agreement", f"{agreement(ours(x), truth):.0f} dB")
        ours = ours.to(torch.bfloat16)
        say(f"{name} bf16, agreement", f"{agreement(ours(x), truth):.1f} dB")
        best_theirs = best = 0.0
        torch.backends.cudnn.allow_tf32 = True  # PyTorch's default, and so transformers'
        for n, side in SIZES:
            with trying(f"{name} transformers fp32 {n} x {side}"):
                rate = rate_of(f"{name} transformers fp32", theirs, n, side, operations, dense)
                best_theirs = max(best_theirs, rate)
        for n, side in SIZES:
            with trying(f"{name} bf16 {n} x {side}"):
                best = max(best, rate_of(f"{name} bf16", ours, n, side, operations, dense))
    if best_theirs and best:
        say(f"{name} RESULT", f"{best / best_theirs:.1f} x transformers fp32, {best * operations / dense:.1%} of dense")


def compact(dense: float) -> None:
    """The embedded network: bf16 against fp32, and its speed by size."""
    batches.full_precision()
    spec = models.MODELS["compact-x2"]
    net = build(spec, models.fetch(spec)).cuda()
    x = picture(1, 256)
    with torch.inference_mode():
        truth = net(x)
        net = net.to(torch.bfloat16)
        say("compact-x2 bf16, agreement", f"{agreement(net(x.bfloat16()), truth):.1f} dB")
        for n, side in ((1, 256), (4, 256), (16, 256), (1, 1024), (4, 1024)):
            with trying(f"compact-x2 bf16 {n} x {side}"):
                rate_of("compact-x2 bf16", lambda x: net(x.bfloat16()), n, side, spec.operations, dense)


def whole_way() -> None:
    """From pixels in memory to strips in memory, with all copies; and the same pixels as the CPU makes."""
    model, taken = load("compact-x2", "cuda")
    say("compact-x2 load", f"{taken:.2f} s")
    pixels = np.random.default_rng(0).integers(0, 256, (3000, 4000, 3), np.uint8)
    for tile in (256, 512, 1024):
        with trying(f"compact-x2, 12 MP, tile {tile}"):
            plan = make_plan(model.spec, 2, exact=False, tile=tile)
            times = []
            for _ in range(3):  # the first picks kernels and asks for memory
                start = time.perf_counter()
                for _ in upscale_strips(model, pixels, plan):
                    pass
                times.append(time.perf_counter() - start)
            taken = statistics.median(times)
            say(f"compact-x2, 12 MP, tile {tile}", f"first {times[0]:.2f} s, then {taken:.2f} s, {12 / taken:.1f} MP/s")
    with trying("compact-x2 in batches on the card against the CPU in fp32"):
        small, made = pixels[:300, :400], []
        plan = make_plan(model.spec, 2, exact=True, tile=96)
        for device in ("cuda", "cpu"):
            model, _ = load("compact-x2", device, "float32")
            made.append(torch.from_numpy(np.concatenate(list(upscale_strips(model, small, plan)))))
        say("compact-x2 in batches on the card against the CPU in fp32", f"{agreement(*made):.1f} dB")


def main() -> None:
    """All of it; no part begins after `SECONDS`."""
    if not torch.cuda.is_available():
        print("no CUDA card on this machine: nothing to measure")
        return
    try:
        dense = dense_rate()
        with trying("classical"):
            swin2sr("classical-x2", CLASSICAL, dense)
        with trying("compact-x2"):
            compact(dense)
        with trying("whole way"):
            whole_way()
        with trying("lightweight"):
            swin2sr("lightweight-x2", LIGHTWEIGHT, dense)
    finally:
        print("\n| what | result |\n|---|---|")
        for name, value in rows:
            print(f"| {name} | {value} |")
        (Path(os.environ.get("OUT", ".")) / "gpu.json").write_text(json.dumps(rows, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
