"""On a CUDA card: correctness first, then speed, against transformers and the card's own rate: python -m bench.gpu

Every variant is tried by itself: one that fails is told in the table and ends nothing. Writes gpu.json to $OUT, or to
the current directory. Without a card it says so and ends.
"""

from __future__ import annotations

import copy
import itertools
import json
import math
import os
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from core import cuda, engine, models
from core.compact import Compact
from core.compact_config import CompactConfig
from core.swin2sr import Swin2SR
from core.swin2sr_config import Swin2SRConfig
from core.swin2sr_cuda import Swin2SRCuda, _Layer

SECONDS = 190.0
BEGIN = time.perf_counter()
CLASSICAL: dict[str, Any] = {
    "embed_dim": 180, "depths": [6] * 6, "num_heads": [6] * 6, "window_size": 8, "mlp_ratio": 2.0, "upscale": 2,
    "upsampler": "pixelshuffle", "resi_connection": "1conv", "img_range": 1.0,
}  # fmt: skip
LIGHTWEIGHT = CLASSICAL | {"embed_dim": 60, "depths": [6] * 4, "num_heads": [6] * 4, "upsampler": "pixelshuffledirect"}

#: Batches and sides of tiles that are timed.
SIZES = ((1, 128), (2, 128), (4, 128), (8, 128), (16, 128), (4, 192), (1, 256), (4, 256), (2, 512))

found: dict[str, Any] = {"errors": {}}
rows: list[tuple[str, str]] = []


def say(name: str, value: str) -> None:
    rows.append((name, value))
    print(f"[{time.perf_counter() - BEGIN:6.1f}] {name}: {value}", flush=True)


@contextmanager
def trying(name: str, needs: float = 0.0) -> Iterator[None]:
    """Go on after a failure; skip nothing silently."""
    try:
        if time.perf_counter() - BEGIN + needs > SECONDS:
            raise TimeoutError("no time left")
        yield
    except Exception as error:
        say(name, f"FAILED {type(error).__name__}: {str(error).strip()[:300]}")
        found["errors"][name] = traceback.format_exc()[-3000:]
        torch.cuda.synchronize()
        torch.cuda.empty_cache()


def seconds(call: Callable[[], object], budget: float = 0.6, least: int = 3) -> float:
    """Median of one call, by the card's own clock; enough calls to fill the budget."""
    call()
    torch.cuda.synchronize()
    taken: list[float] = []
    begin = time.perf_counter()
    while len(taken) < least or (time.perf_counter() - begin < budget and len(taken) < 100):
        start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()  # type: ignore[no-untyped-call]
        call()
        stop.record()  # type: ignore[no-untyped-call]
        torch.cuda.synchronize()
        taken.append(start.elapsed_time(stop) / 1e3)  # type: ignore[no-untyped-call]
    return statistics.median(taken)


def agreement(made: Tensor, truth: Tensor) -> float:
    """In dB, of the range of what is expected."""
    error = float((made.double() - truth.double()).square().mean())
    return 10 * math.log10(float(truth.max() - truth.min()) ** 2 / max(error, 1e-30))


def random_state(theirs: nn.Module) -> dict[str, Tensor]:
    """Weights at which every term of the network matters."""
    generator = torch.Generator().manual_seed(0)
    state = {}
    for name, tensor in theirs.state_dict().items():
        noise = torch.randn(tensor.shape, generator=generator)
        if name.endswith("logit_scale"):
            made = math.log(10) + 0.3 * noise
        elif tensor.ndim > 1:
            made = noise / math.sqrt(tensor[0].numel())
        else:
            made = 0.1 * noise + (1 if "layernorm" in name and name.endswith("weight") else 0)
        state[name] = made
    return state


def graph_of(net: nn.Module, x: Tensor) -> Callable[[], object]:
    """A replay of one forward."""
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(2):
            net(x)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        net(x)
    return graph.replay


def picture(n: int, side: int, dtype: torch.dtype) -> Tensor:
    x = torch.rand(n, 3, side, side, device="cuda", dtype=torch.float32)
    return x.to(dtype).contiguous(memory_format=torch.channels_last)


def card() -> float:
    """The card, and its dense bf16 rate in operations a second."""
    properties = torch.cuda.get_device_properties(0)
    say("card", f"{properties.name}, {properties.multi_processor_count} multiprocessors, torch {torch.__version__}")
    a = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
    b = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
    rate = 2 * 8192**3 / seconds(lambda: a @ b, 1.0)
    large = torch.randint(0, 255, (1 << 30,), device="cuda", dtype=torch.uint8)
    other = torch.empty_like(large)
    bandwidth = 2 * large.numel() / seconds(lambda: other.copy_(large), 0.3)
    say("dense bf16 product 8192^3", f"{rate / 1e12:.0f} TFLOP/s; copy {bandwidth / 1e12:.2f} TB/s")
    found.update(card=properties.name, torch=torch.__version__, dense=rate, copy=bandwidth)
    return rate


def swin2sr(name: str, raw: dict[str, Any], dense: float) -> None:
    """Correctness of each implementation, then seconds of each, then sizes of batch and tile."""
    from transformers import Swin2SRConfig as TheirConfig
    from transformers import Swin2SRForImageSuperResolution

    config = Swin2SRConfig.from_dict(raw)
    torch.manual_seed(0)
    theirs = Swin2SRForImageSuperResolution(TheirConfig(**raw)).train(False)
    state = random_state(theirs)
    theirs.load_state_dict(state)
    theirs = theirs.cuda().requires_grad_(False)
    x = picture(1, 128, torch.float32)
    torch.backends.cudnn.allow_tf32 = False
    with torch.inference_mode():
        truth = theirs(x).reconstruction[..., :256, :256]
    nets: dict[str, nn.Module] = {}

    with trying(f"{name} fp32 agreement"):
        net = Swin2SRCuda(config, state).cuda()
        with torch.inference_mode():
            say(f"{name} fp32 operators, agreement", f"{agreement(net(x), truth):.0f} dB")
    with trying(f"{name} bf16 operators"):
        nets["operators bf16"] = Swin2SRCuda(config, state).to("cuda", torch.bfloat16)
        with torch.inference_mode():
            say(f"{name} bf16 operators, agreement", f"{agreement(nets['operators bf16'](x), truth):.1f} dB")
    with trying(f"{name} kernels"):
        start = time.perf_counter()
        net = Swin2SRCuda(config, state).to("cuda", torch.bfloat16)
        what = cuda.prepare(net)
        say(f"{name} kernels", f"{what} ({time.perf_counter() - start:.1f} s to compile and check)")
        net.fuse(True)
        with torch.inference_mode():
            made = net(x)
            say(f"{name} kernels, agreement", f"{agreement(made, truth):.1f} dB")
            found[f"{name} agreement"] = agreement(made, truth)
            again = net(x)
            say(f"{name} kernels, same bits twice", str(bool(torch.equal(made, again))))
        nets["kernels bf16"] = net
    with trying(f"{name} core.swin2sr"):
        ours = Swin2SR(config)
        ours.load(state)
        nets["core.swin2sr bf16"] = ours.to("cuda", torch.bfloat16)

    torch.backends.cudnn.allow_tf32 = True  # PyTorch's default, and so transformers'
    per_pixel = config.operations_per_pixel

    def report(what: str, n: int, side: int, taken: float) -> float:
        speed = n * side * side / taken
        share = speed * per_pixel / dense
        say(f"{name} {what}, {n} x {side}^2", f"{taken * 1e3:.2f} ms, {speed / 1e6:.2f} MP/s, {share:.1%} of dense")
        found.setdefault("timings", []).append([name, what, n, side, taken, speed, share])
        return speed

    best_theirs = 0.0
    with torch.inference_mode():
        for n, side in ((1, 128), (4, 128), (1, 256)):
            with trying(f"{name} transformers fp32"):
                x = picture(n, side, torch.float32)
                best_theirs = max(best_theirs, report("transformers fp32", n, side, seconds(partial(theirs, x))))
        with trying(f"{name} others"):
            for what in ("operators bf16", "core.swin2sr bf16"):
                if what in nets:
                    x = picture(4, 128, torch.float32)
                    report(what, 4, 128, seconds(partial(nets[what], x)))
        best = 0.0
        if "kernels bf16" in nets:
            net = nets["kernels bf16"]
            for n, side in SIZES:
                with trying(f"{name} kernels {n} x {side}", 2):
                    x = picture(n, side, torch.float32)
                    best = max(best, report("kernels eager", n, side, seconds(partial(net, x), 0.3)))
            for n, side in ((1, 128), (2, 128), (4, 128), (16, 128), (4, 256)):
                with trying(f"{name} graph {n} x {side}", 2):
                    x = picture(n, side, torch.float32)
                    best = max(best, report("kernels graph", n, side, seconds(graph_of(net, x), 0.3)))
    if best_theirs and best:
        ratio, share = best / best_theirs, best * per_pixel / dense
        say(f"{name} RESULT", f"{ratio:.1f} x transformers fp32, {share:.1%} of dense bf16")
        found[f"{name} result"] = {"ratio": ratio, "share": share, "speed": best}


def sweep(dense: float) -> None:
    """The kernels of one classical layer by themselves, cut up in different ways."""
    from transformers import Swin2SRConfig as TheirConfig
    from transformers import Swin2SRForImageSuperResolution

    from core import swin2sr_triton as kernels

    raw = CLASSICAL | {"depths": [2], "num_heads": [6]}
    state = random_state(Swin2SRForImageSuperResolution(TheirConfig(**raw)))
    net = Swin2SRCuda(Swin2SRConfig.from_dict(raw), state).to("cuda", torch.bfloat16)
    layers = [module for module in net.modules() if isinstance(module, _Layer)]
    shifted = layers[1]
    n, side = 8, 128
    tokens = n * side * side
    x = torch.randn(n, side, side, 192, device="cuda").to(torch.bfloat16)
    x[..., 180:] = 0

    def attend() -> Tensor:
        return kernels.run_attend(x, shifted.weight, shifted.bias, shifted.position, shifted.gain, shifted.shift)

    def feed() -> Tensor:
        matrices = (shifted.project, shifted.expand, shifted.reduce)
        return kernels.run_feed(x, attended, *matrices, shifted.vectors, shifted.hidden_bias, 180, 1e-5)

    def timed(what: str, call: Callable[[], object], operations: float) -> float:
        taken = seconds(call, 0.1)
        say(what, f"{taken * 1e6:.0f} us, {tokens * operations / taken / dense:.1%} of dense bf16 (without padding)")
        found.setdefault("sweep", []).append([what, taken])
        return taken

    def checked(what: str, made: Tensor, truth: Tensor) -> None:
        apart = agreement(made, truth)
        if not apart > 45:
            raise ValueError(f"{what} gives something else: {apart:.1f} dB")

    expected = shifted(x)  # by PyTorch's operators
    attended = shifted._attended(x)
    best: dict[str, tuple[float, dict[str, int]]] = {}

    def choose(kernel: str, call: Callable[[], Tensor], truth: Tensor, operations: float, **cut: int) -> None:
        settings: dict[str, int] = getattr(kernels, kernel)
        what = f"{kernel.lower()} " + " ".join(f"{name} {value}" for name, value in cut.items())
        before = dict(settings)
        with trying(what, 3):
            settings.update(cut)
            checked(what, call(), truth)
            taken = timed(what, call, operations)
            if kernel not in best or taken < best[kernel][0]:
                best[kernel] = taken, cut
        settings.update(before)

    for stages, programs, warps in itertools.product((1, 2, 3), (1, 2, 3, 4), (4, 8)):
        if (stages == 1 and programs == 1) or (stages == 3 and programs > 2) or (warps == 8 and programs > 2):
            continue
        cut = {"stages": stages, "programs": programs, "warps": warps}
        choose("ATTEND", attend, attended, 2 * (3 * 180**2 + 2 * 64 * 180), **cut)
    for block, wide, stages, warps in (
        (128, 64, 1, 8), (128, 64, 2, 8), (128, 64, 3, 8), (128, 128, 1, 8), (128, 32, 2, 8), (128, 32, 3, 8),
        (64, 64, 1, 4), (64, 64, 2, 4), (64, 32, 2, 4), (64, 64, 2, 8), (64, 128, 1, 8),
    ):  # fmt: skip
        cut = {"block": block, "wide": wide, "stages": stages, "warps": warps}
        choose("FEED", feed, expected, 2 * (180**2 + 2 * 180 * 360), **cut)
    for kernel, (taken, cut) in best.items():
        getattr(kernels, kernel).update(cut)
        say(f"best {kernel.lower()}, used from here on", f"{cut}, {taken * 1e6:.0f} us")
    with torch.inference_mode():
        with trying("convolution"):
            conv, y = net.after_body, x.permute(0, 3, 1, 2)
            timed("convolution 180 to 180", lambda: conv(y), 2 * 9 * 180**2)
        with trying("parts"):
            timed("first convolution", lambda: net.first(torch.ones_like(y[:, :8])), 2 * 27 * 180)
            timed("norm, operators", lambda: net.norm(y), 0)
            net.fuse(True)
            timed("norm, kernel", lambda: net.norm(y), 0)
            timed("upsampler", lambda: net.last(net.upsample(y)), 2 * 9 * (180 * 64 + 64 * 256 + 4 * 64 * 3))
            timed("sum", lambda: y.clone().add_(y), 0)


def compact(name: str, net: nn.Module, config: CompactConfig, dense: float) -> None:
    """The convolutional network: agreement with fp32, then speed by type, size and way."""
    exact = net.float().cuda().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    x = picture(1, 256, torch.float32)
    torch.backends.cudnn.allow_tf32 = False
    with torch.inference_mode():
        truth = exact(x)
        low = copy.deepcopy(exact).to(torch.bfloat16)
        say(f"{name} bf16, agreement", f"{agreement(low(x.to(torch.bfloat16)).float(), truth):.1f} dB")
        torch.backends.cudnn.allow_tf32 = True

        def report(what: str, n: int, side: int, taken: float) -> None:
            speed = n * side * side / taken
            share = speed * config.operations_per_pixel / dense
            say(f"{name} {what}, {n} x {side}^2", f"{taken * 1e3:.2f} ms, {speed / 1e6:.1f} MP/s, {share:.1%} of dense")
            found.setdefault("timings", []).append([name, what, n, side, taken, speed, share])

        with trying(f"{name} fp32"):
            x = picture(4, 256, torch.float32)
            report("fp32 eager", 4, 256, seconds(partial(exact, x), 0.2))
        for n, side in ((1, 256), (4, 256), (16, 256), (1, 384), (8, 384), (1, 1024), (4, 1024)):
            with trying(f"{name} bf16 {n} {side}", 1):
                x = picture(n, side, torch.bfloat16)
                report("bf16 eager", n, side, seconds(partial(low, x), 0.2))
        for n, side in ((1, 256), (4, 256), (8, 384)):
            with trying(f"{name} graph {n} {side}", 1):
                x = picture(n, side, torch.bfloat16)
                report("bf16 graph", n, side, seconds(graph_of(low, x), 0.2))
        for mode in ("max-autotune-no-cudagraphs",) if name == "compact-x2" else ():
            with trying(f"{name} compile {mode}", 45):
                x = picture(8, 384, torch.bfloat16)
                start = time.perf_counter()
                made = torch.compile(low, mode=mode)
                made(x)
                torch.cuda.synchronize()
                say(f"{name} compile {mode}", f"{time.perf_counter() - start:.1f} s")
                report(f"bf16 {mode}", 8, 384, seconds(partial(made, x), 0.2))


def engine_rate() -> None:
    """The whole way from pixels in memory to strips in memory."""
    model, taken = engine.load("compact-x2", torch.device("cuda"))
    say("engine load compact-x2", f"{taken:.2f} s")
    pixels = np.random.default_rng(0).integers(0, 256, (3000, 4000, 3), np.uint8)
    for tile in (320, 640, 1024):
        with trying(f"engine tile {tile}", 5):
            job = models.make_job(model.spec, 2, exact=False, tile=tile)
            start = time.perf_counter()
            for _ in engine.upscale_strips(model, pixels, job):
                pass
            taken = time.perf_counter() - start
            start = time.perf_counter()
            for _ in engine.upscale_strips(model, pixels, job):
                pass
            again = time.perf_counter() - start
            say(f"engine compact-x2, 12 MP, tile {tile}", f"{taken:.2f} s, then {again:.2f} s, {12 / again:.1f} MP/s")
    with trying("engine agreement", 5):
        small = pixels[:300, :400]
        job = models.make_job(model.spec, 2, exact=True, tile=96)
        made = np.concatenate(list(engine.upscale_strips(model, small, job)))
        exact, _ = engine.load("compact-x2", torch.device("cpu"), torch.float32)
        truth = np.concatenate(list(engine.upscale_strips(exact, small, job)))
        apart = agreement(torch.from_numpy(made), torch.from_numpy(truth))
        say("engine in batches on the card against the CPU in fp32", f"{apart:.1f} dB")


def main() -> None:
    """All of it, within `SECONDS`."""
    if not torch.cuda.is_available():
        print("no CUDA card on this machine: nothing to measure")
        return
    dense = card()
    with trying("sweep"):
        sweep(dense)
    with trying("classical"):
        swin2sr("classical-x2", CLASSICAL, dense)
    with trying("lightweight"):
        swin2sr("lightweight-x2", LIGHTWEIGHT, dense)
    with trying("engine"):
        engine_rate()
    with trying("compact-x2"):
        spec = models.MODELS["compact-x2"]
        directory = models.fetch(spec)
        config = models.read_config(directory)
        assert isinstance(config, CompactConfig)
        with trying("compact 14 blocks"):
            deeper = CompactConfig(scale=2, width=config.width, blocks=14)
            compact("compact 14 blocks", Compact(deeper), deeper, dense)
        compact("compact-x2", engine.build(spec, directory), config, dense)
    print("\n| what | result |\n|---|---|")
    for name, value in rows:
        print(f"| {name} | {value} |")
    out = Path(os.environ.get("OUT", "."))
    (out / "gpu.json").write_text(json.dumps(found | {"table": rows}, indent=1), encoding="utf-8")
    print(f"{time.perf_counter() - BEGIN:.0f} s in all")


if __name__ == "__main__":
    sys.exit(main())
