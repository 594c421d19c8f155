"""On a CUDA card, against transformers and the card's own rate: python -m bench.gpu [--seconds S] [--rehearse]

From pixels in memory to strips, megapixels a second and peak memory; tiles against transformers, and the share of the
card's dense bf16 rate; agreement with the CPU; recovery from memory that ran out; where the time goes. Each part is
tried by itself: one that fails is told in the table and ends nothing, unless it takes the card with it. The table is
printed and written to gpu.json in $OUT, or in the current directory, line by line. Without a card it says so and ends;
--rehearse takes all steps on the CPU with tiny networks and pictures, and its figures say nothing.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import math
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from core import models
from core.engine import batches, load, pytorch
from core.engine.load import Model
from core.engine.plan import make_plan
from core.engine.run import upscale_bands
from core.models import ModelSpec
from core.picture import Pixels
from core.pixels.bands import Samples, bands_of

CLASSICAL: dict[str, Any] = {
    "embed_dim": 180, "depths": [6] * 6, "num_heads": [6] * 6, "window_size": 8, "mlp_ratio": 2.0, "upscale": 2,
    "upsampler": "pixelshuffle", "resi_connection": "1conv", "img_range": 1.0,
}  # fmt: skip
LIGHTWEIGHT = CLASSICAL | {"embed_dim": 60, "depths": [6] * 4, "num_heads": [6] * 4, "upsampler": "pixelshuffledirect"}

#: Numbers and sides of tiles.
Tiles = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Setting:
    """What is measured; sizes in pixels, of pictures height first. Of a tile, None is what the engine chooses."""

    device: str  # "cuda", or "cpu" for a rehearsal
    classical: dict[str, Any]
    lightweight: dict[str, Any]
    product: int  # side of the matrices that the card's rate is measured with
    side: int  # of the picture for the whole way
    large: tuple[int, int]  # another one, for the embedded network
    small: tuple[int, int]  # one that the CPU makes, too
    scarce: tuple[int, int]  # one for which memory does not suffice
    tile: int  # of that one
    tiles: Tiles  # of Swin2SR, ours and transformers'
    compact_tiles: Tiles
    swin2sr_sides: tuple[int | None, ...]  # of tiles for the whole way
    compact_sides: tuple[int | None, ...]
    budget: float  # seconds for one timing


CARD = Setting(
    "cuda", CLASSICAL, LIGHTWEIGHT, 8192, 2048, (3000, 4000), (256, 320), (512, 512), 64,
    tiles=((4, 256), (16, 128), (1, 256)), compact_tiles=((1, 1024), (4, 512), (16, 256)),
    swin2sr_sides=(None, 480), compact_sides=(None, 512), budget=0.25,
)  # fmt: skip
_TINY = {"embed_dim": 12, "depths": [2], "num_heads": [2]}
REHEARSAL = Setting(
    "cpu", CLASSICAL | _TINY, LIGHTWEIGHT | _TINY, 64, 48, (40, 64), (48, 64), (64, 96), 16,
    tiles=((2, 16), (1, 32)), compact_tiles=((1, 16),), swin2sr_sides=(None, 32), compact_sides=(32,), budget=0.0,
)  # fmt: skip


class NoTimeLeft(Exception):
    """What it says."""


class Report:
    """The table, on the screen and on the disk line by line: what follows a line may not come to an end.

    Args:
        file: where it is kept.
        seconds: no part begins later than this.
        setting: what is measured; with it goes `dense`, operations a second in bf16, once that is known.
    """

    def __init__(self, file: Path, seconds: float, setting: Setting) -> None:
        self.file, self.seconds, self.setting = file, seconds, setting
        self.device, self.dense = torch.device(setting.device), math.nan
        self.begin, self.rows = time.perf_counter(), list[tuple[str, str]]()

    def say(self, name: str, value: str) -> None:
        """Add a line."""
        self.rows.append((name, value))
        print(f"[{time.perf_counter() - self.begin:6.1f}] {name}: {value}", flush=True)
        part = self.file.with_suffix(".part")
        part.write_text(json.dumps(self.rows, indent=1), encoding="utf-8")
        part.replace(self.file)

    def share(self, speed: float, operations: float) -> str:
        """Megapixels a second, what part of the card's rate they are, and the most memory since `start_peak`."""
        peak = f"peak {torch.cuda.max_memory_allocated() / 2**20:.0f} MiB"
        return f"{speed:.2f} MP/s, {speed * 1e6 * operations / self.dense:.1%} of dense, {peak}"

    @contextmanager
    def trying(self, name: str) -> Iterator[None]:
        """Go on after a failure; where no time is left, end what is around this, too."""
        if time.perf_counter() - self.begin > self.seconds:
            raise NoTimeLeft(f"no time left for {name}")
        try:
            yield
        except Exception as error:
            self.say(name, f"FAILED {type(error).__name__}: {str(error).strip()[:300]}")
            wait(self.device)  # raises where the card takes no more work: then everything after would fail, too
            torch.cuda.empty_cache()


def wait(device: torch.device) -> None:
    """Until a device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(call: Callable[[], object], device: torch.device, budget: float) -> float:
    """Median of one call; enough calls to fill the budget, two at least."""
    call()
    wait(device)
    taken: list[float] = []
    begin = time.perf_counter()
    while len(taken) < 2 or (time.perf_counter() - begin < budget and len(taken) < 100):
        start = time.perf_counter()
        call()
        wait(device)
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def agreement(made: Tensor, truth: Tensor) -> float:
    """In dB, of the range of what is expected."""
    error = float((made.double() - truth.double()).square().mean())
    return 10 * math.log10(float(truth.max() - truth.min()) ** 2 / max(error, 1e-30))


def noise(height: int, width: int) -> Pixels:
    """(height, width, 3) uint8."""
    made: Pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    return made


def dense_rate(report: Report) -> None:
    """Of bf16 products."""
    name = "CPU: a rehearsal, these figures say nothing"
    if report.device.type == "cuda":
        properties = torch.cuda.get_device_properties(0)
        name = f"{properties.name}, {properties.multi_processor_count} multiprocessors"
    report.say("card", f"{name}, torch {torch.__version__}; device auto is {load.pick_device('auto')}")
    n = report.setting.product
    a, b = (torch.randn(n, n, device=report.device, dtype=torch.bfloat16) for _ in range(2))
    report.dense = 2 * n**3 / seconds(lambda: a @ b, report.device, report.setting.budget)
    report.say(f"dense bf16 product {n}^3", f"{report.dense / 1e12:.0f} TFLOP/s")


def opened(spec: ModelSpec, device: torch.device, dtype: str) -> Model:
    """A model as the engine runs it on a card: in PyTorch and in batches, in a rehearsal too."""
    return Model(spec, pytorch.open_network(spec, models.fetch(spec), device.type, dtype), "cuda", dtype)


def module_of(model: Model) -> nn.Module:
    assert isinstance(model.net, pytorch.TorchNetwork)
    return model.net.module


def strips(model: Model, pixels: Pixels, tile: int | None, *, exact: bool, rounded: bool) -> Iterator[Samples]:
    """The result of the whole way over a picture, x2."""
    plan = make_plan(model.spec, 2, exact=exact, tile=tile)
    for _, strip in upscale_bands(model, bands_of(pixels), plan, rounded=rounded):
        yield strip


def whole(model: Model, pixels: Pixels, tile: int | None = None, *, exact: bool = False) -> Tensor:
    """All of it, (2 * height, 2 * width, 3) fp32."""
    return torch.from_numpy(np.concatenate(list(strips(model, pixels, tile, exact=exact, rounded=False))))


def start_peak(device: torch.device) -> None:
    """Of memory: what `Report.share` says counts from here."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def whole_way(
    report: Report, name: str, model: Model, pixels: Pixels, tile: int | None, *, rounded: bool = False
) -> float:
    """From pixels in memory to strips in memory, with all copies; megapixels a second."""
    start_peak(report.device)
    taken = []
    for _ in range(3):  # the first picks kernels and asks for memory
        start = time.perf_counter()
        for _ in strips(model, pixels, tile, exact=False, rounded=rounded):
            pass
        taken.append(time.perf_counter() - start)
    speed: float = pixels.shape[0] * pixels.shape[1] / min(taken[1:]) / 1e6
    notes = f"; {'; '.join(model.notes)}" if model.notes else ""
    report.say(
        f"{name} {model.dtype}, {pixels.shape[1]} x {pixels.shape[0]}, tile {tile or 'as chosen'}, "
        f"to {'bytes' if rounded else 'floats'}",
        f"first {taken[0]:.3f} s, then {min(taken[1:]):.3f} s, {report.share(speed, model.spec.operations)}{notes}",
    )
    return speed


def tile_rates(
    report: Report, name: str, net: Callable[[Tensor], object], dtype: torch.dtype, tiles: Tiles, operations: float
) -> float:
    """Tiles that are on the card already: megapixels a second of the best."""
    best = 0.0
    for n, side in tiles:
        name_of_tile = f"{name}, {n} x {side}^2"
        with report.trying(name_of_tile), torch.inference_mode():
            start_peak(report.device)
            x = torch.rand(n, 3, side, side, device=report.device).to(dtype, memory_format=torch.channels_last)
            taken = seconds(partial(net, x), report.device, report.setting.budget)
            speed = n * side * side / taken / 1e6
            best = max(best, speed)
            report.say(name_of_tile, f"{taken * 1e3:.2f} ms, {report.share(speed, operations)}")
    return best


def against_cpu(report: Report, name: str, truth: Model, tile: int, size: tuple[int, int], *, exact: bool) -> None:
    """The same tiles on the card and, by a model in fp32, on the CPU."""
    pixels = noise(*size)
    expected = whole(truth, pixels, tile, exact=exact)
    for dtype in ("float32", "bfloat16"):
        made = whole(opened(truth.spec, report.device, dtype), pixels, tile, exact=exact)
        report.say(f"{name} {dtype} against the CPU in fp32", f"{agreement(made, expected):.1f} dB")


def compact(report: Report) -> None:
    """The embedded network."""
    name, spec, setting = "compact-x2", models.MODELS["compact-x2"], report.setting
    square, large = noise(setting.side, setting.side), noise(*setting.large)
    model, first = opened(spec, report.device, "bfloat16"), setting.compact_sides[0]
    for tile in setting.compact_sides:
        with report.trying(f"{name} whole way, tile {tile}"):
            whole_way(report, name, model, square, tile)
    with report.trying(f"{name} to bytes"):
        whole_way(report, name, model, square, first, rounded=True)
    with report.trying(f"{name} large"):
        whole_way(report, name, model, large, first, rounded=True)
    tile_rates(report, f"{name} bf16", module_of(model), torch.float32, setting.compact_tiles, spec.operations)
    with report.trying(f"{name} fp32"):
        whole_way(report, name, opened(spec, report.device, "float32"), square, first)
    with report.trying(f"{name} against the CPU"):
        against_cpu(report, name, load.load(name, "cpu", "float32")[0], 96, setting.small, exact=True)


def random_state(net: nn.Module) -> dict[str, Tensor]:
    """Weights at which every term of the network matters."""
    generator = torch.Generator().manual_seed(0)
    state = {}
    for name, tensor in net.state_dict().items():
        made = torch.randn(tensor.shape, generator=generator)
        if name.endswith("logit_scale"):
            state[name] = math.log(10) + 0.3 * made
        elif tensor.ndim > 1:
            state[name] = made / math.sqrt(tensor[0].numel())
        else:
            state[name] = 0.1 * made + (1 if "layernorm" in name and name.endswith("weight") else 0)
    return state


def swin2sr(report: Report, name: str, raw: dict[str, Any], folder: Path) -> None:
    """Ours against transformers with the same random weights."""
    from transformers import Swin2SRConfig as TheirConfig
    from transformers import Swin2SRForImageSuperResolution

    theirs = Swin2SRForImageSuperResolution(TheirConfig(**raw)).train(False).requires_grad_(False)
    state = random_state(theirs)
    theirs.load_state_dict(state)
    theirs = theirs.to(report.device)
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(raw), encoding="utf-8")
    save_file(state, folder / "model.safetensors")
    spec, setting = models.spec_of(str(folder)), report.setting
    model = opened(spec, report.device, "bfloat16")
    with report.trying(f"{name} against transformers"), torch.inference_mode():
        x = torch.rand(1, 3, 64, 64, device=report.device)
        truth = theirs(x).reconstruction
        for ours in (opened(spec, report.device, "float32"), model):
            made = module_of(ours)(x)
            report.say(f"{name} {ours.dtype} against transformers in fp32", f"{agreement(made, truth):.1f} dB")
    best = tile_rates(report, f"{name} bf16", module_of(model), torch.float32, setting.tiles, spec.operations)
    ways = [0.0]
    for tile in setting.swin2sr_sides:
        with report.trying(f"{name} whole way, tile {tile}"):
            ways.append(whole_way(report, name, model, noise(setting.side, setting.side), tile))
    share = best * 1e6 * spec.operations / report.dense
    report.say(f"{name} RESULT, ours", f"tiles {best:.2f} MP/s, {share:.1%} of dense; whole way {max(ways):.2f} MP/s")
    for dtype, label in ((torch.float32, "transformers fp32"), (torch.bfloat16, "transformers bf16")):
        torch.backends.cudnn.allow_tf32 = True  # PyTorch's default, and so transformers'
        speed = tile_rates(report, f"{name} {label}", theirs.to(dtype), dtype, setting.tiles, spec.operations)
        batches.full_precision()
        if speed:
            report.say(f"{name} RESULT, to {label}", f"tiles {best / speed:.2f} x, whole way {max(ways) / speed:.2f} x")
    with report.trying(f"{name} against the CPU"):
        on_cpu = Model(spec, pytorch.open_network(spec, folder, "cpu", "float32"), "cpu", "float32")
        against_cpu(report, name, on_cpu, 64, (64, 128), exact=False)


@contextmanager
def hooked(net: nn.Module, look: Callable[[torch.Size], None]) -> Iterator[None]:
    """Look at the shape of what a network is given."""
    hook = net.register_forward_pre_hook(lambda _, inputs: look(inputs[0].shape))
    try:
        yield
    finally:
        hook.remove()


@contextmanager
def at_most_bytes(more: float) -> Iterator[None]:
    """Let so many bytes more of the card be had than now, by PyTorch's own limit; or none, by taking all there are."""
    torch.cuda.empty_cache()
    held: list[Tensor] = []
    try:
        if more:
            whole_card = torch.cuda.get_device_properties(0).total_memory
            torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + more) / whole_card)
        size = 0 if more else torch.cuda.mem_get_info()[0]
        while size >= 512:
            try:
                held.append(torch.empty(size, dtype=torch.uint8, device="cuda"))
            except torch.OutOfMemoryError:
                size //= 2
        yield
    finally:
        held.clear()
        torch.cuda.set_per_process_memory_fraction(1.0)
        torch.cuda.empty_cache()


def out_of_memory(report: Report, name: str, tile: int | None, share: float) -> None:
    """The engine goes on with fewer tiles at once, with smaller tiles, or on the CPU, and makes the same pixels."""
    model = opened(models.MODELS["compact-x2"], report.device, "float32")
    net, pixels = module_of(model), noise(*report.setting.scarce)
    usual, tried = list[torch.Size](), list[torch.Size]()
    start_peak(report.device)
    before = torch.cuda.memory_allocated()
    with hooked(net, usual.append):
        truth = whole(model, pixels, tile, exact=True)
    needed = torch.cuda.max_memory_allocated() - before

    def refuse(shape: torch.Size) -> None:
        if shape.numel() > share * usual[0].numel():
            raise torch.OutOfMemoryError("CUDA out of memory: a rehearsal")

    scarcity = at_most_bytes(share * needed) if report.device.type == "cuda" else hooked(net, refuse)
    faced, start = replace(model, notes=[]), time.perf_counter()
    with hooked(net, tried.append), scarcity:
        made = whole(faced, pixels, tile, exact=True)
    taken = time.perf_counter() - start
    again = whole(replace(model, notes=[]), pixels, tile, exact=True)
    report.say(
        f"out of memory, {name}",
        f"{agreement(made, truth):.1f} dB with {share:.0%} of {needed / 2**20:.0f} MiB in {taken:.2f} s, at the end on "
        f"{faced.device}; shape at first {[*usual[0]]}, last on the card {[*tried[-1]] if tried else 'none'}; "
        f"{len(faced.notes)} notes{''.join(f', last: {note}' for note in faced.notes[-1:])}; "
        f"with all memory again {agreement(again, truth):.1f} dB",
    )


def where_time_goes(report: Report, name: str, net: nn.Module, tile: tuple[int, int]) -> None:
    """The operators that take most of a batch."""
    on_card = report.device.type == "cuda"
    with torch.inference_mode():
        x = torch.rand(tile[0], 3, tile[1], tile[1], device=report.device).contiguous(memory_format=torch.channels_last)
        net(x)
        wait(report.device)
        with profile(activities=[ProfilerActivity.CUDA if on_card else ProfilerActivity.CPU]) as profiled:
            net(x)
            wait(report.device)
    taken = {
        event.key: event.self_device_time_total if on_card else event.self_cpu_time_total
        for event in profiled.key_averages()
    }
    total = max(sum(taken.values()), 1e-9)
    for key, value in sorted(taken.items(), key=lambda item: -item[1])[:10]:
        report.say(f"{name} {tile[0]} x {tile[1]}^2, of {total / 1e3:.1f} ms", f"{value / total:.1%} {key[:110]}")


def all_parts(report: Report, folder: Path) -> None:
    """What matters most comes first."""
    setting = report.setting
    dense_rate(report)
    with report.trying("compact-x2"):
        compact(report)
    with report.trying("classical-x2"):
        swin2sr(report, "classical-x2", setting.classical, folder / "classical")
    for name, tile, share in (("few tiles at once", setting.tile, 0.4), ("a large tile", None, 0.4)):
        with report.trying(f"out of memory, {name}"):
            out_of_memory(report, name, tile, share)
    with report.trying("lightweight-x2"):
        swin2sr(report, "lightweight-x2", setting.lightweight, folder / "lightweight")
    with report.trying("out of memory, the whole card is taken"):
        out_of_memory(report, "the whole card is taken", setting.tile, 0.0)
    with report.trying("where time goes"):
        classical = module_of(opened(models.spec_of(str(folder / "classical")), report.device, "bfloat16"))
        where_time_goes(report, "classical-x2", classical, setting.tiles[0])
        embedded = module_of(opened(models.MODELS["compact-x2"], report.device, "bfloat16"))
        where_time_goes(report, "compact-x2", embedded, setting.compact_tiles[0])


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Measure this package on a CUDA card.")
    parser.add_argument("--seconds", type=float, default=85.0, help="no part begins later than this")
    parser.add_argument("--rehearse", action="store_true", help="all steps on the CPU, tiny")
    wanted = parser.parse_args(arguments)
    if not wanted.rehearse and not torch.cuda.is_available():
        print("no CUDA card on this machine: nothing to measure")
        return
    faulthandler.dump_traceback_later(wanted.seconds + 20, exit=True, file=2)  # a card may hang
    setting = REHEARSAL if wanted.rehearse else CARD
    report = Report(Path(os.environ.get("OUT", ".")) / "gpu.json", wanted.seconds, setting)
    try:
        with tempfile.TemporaryDirectory() as folder:
            all_parts(report, Path(folder))
    except NoTimeLeft as end:
        report.say("end", str(end))
    finally:
        faulthandler.cancel_dump_traceback_later()
        print("\n| what | result |\n|---|---|")
        for name, value in report.rows:
            print(f"| {name} | {value} |")


if __name__ == "__main__":
    main()
