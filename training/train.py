"""Train an embedded model: python -m training.train compact-x2 --data PHOTOS --run runs/compact-x2 --hours 0.25

Resumable: started again with the same --run, it goes on from the last checkpoint, and the schedule follows the time
trained (on a CPU that of the processor), not the steps, so that a slower or a shared machine still ends with a finished
schedule.

The recipe. Inputs are made of photos with MATLAB-style antialiased bicubic (compact-*), or as phones and the web make
them (photo-*, see `training.degrade`). Patches are drawn in proportion to their mean absolute Laplacian: sky and blur
teach nothing. The loss is L1, with an L1 term on the Fourier coefficients (Cho et al. 2021, arXiv:2108.05054) in the
last part, where patches are also larger. Matrices of hidden convolutions are stepped by Muon (orthogonalised momentum:
Jordan et al. 2024), everything else by Adam; cosine schedule; what is published is an exponential moving average of
the weights. On CUDA a whole step, drawing included, is one CUDA graph in bf16.
"""

from __future__ import annotations

import argparse
import functools
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from core.atomic import atomic_file
from core.networks.compact import Compact
from core.networks.compact_config import CompactConfig
from training.degrade import Bicubic, Degrade
from training.optimisers import Adam, Muon
from training.photos import Patches, decode, held_back
from training.selection import JPEG_QUALITIES, Selection, bf16_is_fast
from training.weights import build, export

MUON_RATE, ADAM_RATE, WARM_UP_STEPS = 0.005, 2e-3, 100
FOURIER_WEIGHT = 0.05  # beside L1
TEACHER_WEIGHT = 0.65  # beside the photos
KEEP_SECONDS = 300  # between two checkpoints
STEPS_AT_ONCE = 20  # between two looks at the clock
KINDS = ("compact", "photo", "detail")


@dataclass(frozen=True)
class Phase:
    """A part of the schedule.

    Attributes:
        until: share of the schedule at which it ends.
        count: patches in a batch.
        size: side of a patch, in pixels of the input.
        fourier: whether the loss has the Fourier term.
    """

    until: float
    count: int
    size: int
    fourier: bool


#: For a CUDA card, and for a CPU, which sees a hundredth of the pixels.
CUDA_PHASES = (Phase(0.55, 32, 64, False), Phase(0.75, 32, 64, True), Phase(1.0, 16, 96, True))
CPU_PHASES = (Phase(0.6, 8, 48, False), Phase(0.75, 8, 48, True), Phase(1.0, 8, 64, True))


class Training:
    """A network on its way, with all that a step needs and all that a checkpoint keeps.

    Attributes:
        start_rate: of the full rates, where training begins with trained weights.
    """

    start_rate = 0.5

    def __init__(self, net: Compact, patches: Patches, inputs: Bicubic | Degrade) -> None:
        self.net, self.patches, self.inputs, self.device = net, patches, inputs, patches.device
        self.bf16 = bf16_is_fast(self.device)
        hidden = {layer.weight for layer in [*net.body, net.fuse]}
        parameters = list(net.parameters())
        self.muon = Muon([weight for weight in parameters if weight in hidden])
        self.adam = Adam([weight for weight in parameters if weight not in hidden])
        self.average = torch.cat([weight.detach().flatten() for weight in parameters])
        # Rates are tensors, so that a recorded step reads them anew.
        self.rates = {name: torch.zeros((), device=self.device) for name in ("muon", "adam", "average", "loss")}
        self.rate = 1.0  # of the rates
        self.strength = 1.0  # of what draws detail, where the loss has such a part
        self.steps, self.seconds, self.best = 0, 0.0, -math.inf
        self.keep_every, self.steps_at_once = float(KEEP_SECONDS), STEPS_AT_ONCE
        self.clock: Callable[[], float] = worked if self.device.type == "cpu" else time.monotonic

    def step(self, phase: Phase) -> None:
        """Draw a batch, and move the weights and their average."""
        scale = self.net.config.scale
        # (count, 3, size, size) and (count, 3, scale * size, scale * size)
        small, large = self.inputs(self.patches.draw(phase.count, (phase.size + self.inputs.margin) * scale, scale))
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            made = self.net(small.contiguous(memory_format=torch.channels_last))
        loss = self.loss(made.float(), small, large, phase)
        parameters = list(self.net.parameters())
        for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
            parameter.grad = gradient.float()
        with torch.no_grad():
            self.muon.step(self.rates["muon"])
            self.adam.step(self.rates["adam"])
            self.average.lerp_(torch.cat([weight.flatten() for weight in parameters]), self.rates["average"])
            self.rates["loss"].lerp_(loss, 0.01)

    def loss(self, made: Tensor, small: Tensor, large: Tensor, phase: Phase) -> Tensor:  # noqa: ARG002  # detail's looks
        """What a result (count, 3, side, side) of an input is worth, beside its target, (count, 3 or 6, side, side)."""
        target, *teacher = torch.split(large, 3, 1)  # (count, 3, side, side)
        difference = made - target
        loss = difference.abs().mean()
        if teacher:
            loss = (1 - TEACHER_WEIGHT) * loss + TEACHER_WEIGHT * (made - teacher[0]).abs().mean()
        if phase.fourier:
            loss = loss + FOURIER_WEIGHT * torch.view_as_real(torch.fft.rfft2(difference)).abs().mean()
        return loss

    def recorded(self, phase: Phase) -> Callable[[], None]:
        """A step of this phase as something to call; on CUDA a recording of it."""
        plain = functools.partial(self.step, phase)
        if self.device.type != "cuda":
            return plain
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                plain()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            plain()
        return graph.replay

    def set_rates(self, share: float) -> None:
        """The rates at a share of the schedule."""
        rate = self.rate * min(1, (self.steps + 1) / WARM_UP_STEPS)
        rate *= 0.5 * (1 + math.cos(math.pi * min(1, share))) + 1e-3
        self.rates["muon"].fill_(MUON_RATE * rate)
        self.rates["adam"].fill_(ADAM_RATE * rate)
        self.rates["average"].fill_(max(1e-3, 4 / (self.steps + 4)))

    def averaged(self) -> Compact:
        """A copy of the network with the averaged weights, on the CPU."""
        net = Compact(self.net.config)
        values = torch.split(self.average.cpu(), [weight.numel() for weight in self.net.parameters()])
        with torch.no_grad():
            for weight, value in zip(net.parameters(), values, strict=True):
                weight.copy_(value.view_as(weight))
        return net.eval()

    def state(self) -> dict[str, object]:
        """All that a checkpoint keeps."""
        return {
            "net": self.net.state_dict(),
            "average": self.average,
            "muon": self.muon.state,
            "adam": self.adam.state,
            "steps": self.steps,
            "seconds": self.seconds,
            "best": self.best,
        }

    def restore(self, kept: dict[str, Any]) -> None:
        """Go on from what `state` gave."""
        self.net.load_state_dict(kept["net"])
        self.average.copy_(kept["average"])
        for ours, theirs in zip(self.muon.state + self.adam.state, kept["muon"] + kept["adam"], strict=True):
            ours.copy_(theirs)
        self.steps, self.seconds, self.best = kept["steps"], kept["seconds"], kept["best"]


def worked() -> float:
    """Seconds that this process ran, by which one that waits for others finishes its schedule, too."""
    return time.process_time() / torch.get_num_threads()


def train(training: Training, phases: tuple[Phase, ...], seconds: float, selection: Selection, run: Path) -> Path:
    """Train until the time is over, and keep the best averaged weights by the selection split.

    Args:
        training: where it stands; goes on from `run`/checkpoint.pt where that is.
        phases: the schedule.
        seconds: of training, those before a resumption included.
        selection: decides which weights are best.
        run: folder for checkpoint.pt, best/ and last/ (model directories).

    Returns:
        The best model directory, `run`/best.
    """
    run.mkdir(parents=True, exist_ok=True)
    checkpoint = run / "checkpoint.pt"
    if checkpoint.is_file():
        training.restore(torch.load(checkpoint, map_location=training.device, weights_only=True))

    def keep() -> None:
        with atomic_file(checkpoint) as stream:
            torch.save(training.state(), stream)
        averaged = training.averaged()
        export(averaged, run / "last")
        figure = selection.score(averaged, training.device)
        if figure > training.best:
            training.best = figure
            export(training.averaged(), run / "best")
        loss = float(training.rates["loss"])
        print(
            f"step {training.steps}, {training.seconds / 60:.1f} min, loss {loss:.5f}, "
            f"split {figure:.3f} dB, best {training.best:.3f}",
            flush=True,
        )

    keep()
    last = kept = training.clock()
    for phase in phases:
        if training.seconds >= phase.until * seconds:
            continue
        training.set_rates(training.seconds / seconds)
        step = training.recorded(phase)
        while training.seconds < phase.until * seconds:
            for _ in range(training.steps_at_once):
                training.set_rates(training.seconds / seconds)
                step()
                training.steps += 1
            if training.device.type == "cuda":
                torch.cuda.synchronize()
            now = training.clock()
            training.seconds += min(now - last, 60.0)  # a machine that slept did not train
            last = now
            if now - kept > training.keep_every:
                keep()
                last = kept = training.clock()
    keep()
    return run / "best"


def kind_of(kind: str) -> type[Training]:
    """The training of a kind of model: what draws detail has a loss of its own, which needs more packages."""
    if kind != "detail":
        return Training
    from training.detail import DetailTraining

    return DetailTraining


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Train an embedded model.")
    parser.add_argument("model", choices=[f"{kind}-x{scale}" for kind in KINDS for scale in (2, 3, 4)])
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="folders of photos")
    parser.add_argument("--run", type=Path, required=True, help="folder for checkpoints, and the best model")
    parser.add_argument("--cache", type=Path, help="folder for the decoded photos (beside the run)")
    parser.add_argument("--start", type=Path, help="model directory whose weights to begin with")
    parser.add_argument("--rate", type=float, help="of the full rates (less of them with a start)")
    parser.add_argument("--teacher", type=Path, help="directory of a better model of the same scale (compact-* only)")
    parser.add_argument("--hours", type=float, default=2.0)
    arguments = parser.parse_args()
    kind, _, scale = arguments.model.partition("-x")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    phases = CUDA_PHASES if device.type == "cuda" else CPU_PHASES
    inputs = Bicubic(int(scale), device) if kind == "compact" else Degrade(int(scale), device, wide=kind == "detail")
    largest = max(phase.size for phase in phases) + inputs.margin
    decoded = decode(arguments.data, arguments.cache or arguments.run.parent)
    patches = Patches(decoded, device, largest * int(scale))
    print(f"{patches.photos} photos and reduced copies, {len(patches.values) / 1e6:.1f} megapixels", flush=True)
    if arguments.teacher and kind == "compact":
        patches.teach(arguments.teacher)
    qualities = (None,) if kind == "compact" else JPEG_QUALITIES
    selection = Selection(held_back(arguments.data), int(scale), qualities)
    net = build(replace(CompactConfig(), scale=int(scale)), arguments.start, device)
    training = kind_of(kind)(net, patches, inputs)
    training.rate = arguments.rate or (training.start_rate if arguments.start else 1.0)
    best = train(training, phases, arguments.hours * 3600, selection, arguments.run)
    print(f"{training.best:.3f} dB on the split: {best}")


if __name__ == "__main__":
    main()
