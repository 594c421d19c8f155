"""Train an embedded model: python -m training.train compact-x2 --data PHOTOS --run runs/compact-x2 --hours 0.25

Resumable: started again with the same --run, it goes on from the last checkpoint, and the schedule follows the time
trained, not the steps, so that a slower or a shared machine still ends with a finished schedule.

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
import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from bench.metrics import psnr_y
from bench.quality import encoded, pixels
from core.atomic import atomic_file
from core.networks.compact import Compact
from core.networks.compact_config import CompactConfig
from training.degrade import MARGIN, Degrade
from training.photos import SUFFIXES, Patches, read, reduce

MUON_RATE, ADAM_RATE, WARM_UP_STEPS = 0.005, 2e-3, 100
FOURIER_WEIGHT = 0.05  # beside L1
TEACHER_WEIGHT = 0.65  # beside the photos
START_RATE = 0.5  # of the rates, where training begins with trained weights
CHECKPOINT_SECONDS = 120
STEPS_AT_ONCE = 20  # between two looks at the clock


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


def start_as_bicubic(net: Compact) -> None:
    """Make the untrained network a bicubic interpolation: the skip does it, the rest adds little."""
    scale = net.config.scale

    def taps(phase: int) -> Tensor:
        offset = (phase + 0.5) / scale - 0.5
        distance = (torch.arange(-2, 3) - offset).abs()  # (5,)
        near = 1.5 * distance**3 - 2.5 * distance**2 + 1
        far = -0.5 * distance**3 + 2.5 * distance**2 - 4 * distance + 2
        weights = torch.where(distance <= 1, near, torch.where(distance < 2, far, torch.zeros(5)))
        return torch.Tensor(weights / weights.sum())

    with torch.no_grad():
        net.skip.weight.zero_()
        nn.init.zeros_(net.skip.bias)  # type: ignore[arg-type]
        for colour in range(3):
            for row in range(scale):
                for column in range(scale):
                    out = colour * scale**2 + row * scale + column
                    net.skip.weight[out, colour] = taps(row)[:, None] * taps(column)[None, :]
        net.tail.weight.mul_(0.1)
        nn.init.zeros_(net.tail.bias)  # type: ignore[arg-type]
        for layer in net.body[1::2]:
            layer.weight.mul_(0.1)  # type: ignore[operator]  # residual blocks begin as little more than the identity


def orthogonalised(gradients: Tensor) -> Tensor:
    """The nearest semi-orthogonal matrices to (n, rows, columns), by five Newton-Schulz steps (Jordan et al. 2024)."""
    x: Tensor = gradients / (gradients.norm(dim=(1, 2), keepdim=True) + 1e-7)
    tall = x.shape[1] > x.shape[2]
    x = x.mT if tall else x
    for _ in range(5):
        gram = x @ x.mT
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x.mT if tall else x


class Muon:
    """Momentum whose steps are orthogonalised, for convolutions seen as (out, in * side * side) matrices."""

    def __init__(self, weights: list[Tensor]) -> None:
        shapes = sorted({tuple(weight.shape) for weight in weights})
        self.groups = [[weight for weight in weights if tuple(weight.shape) == shape] for shape in shapes]
        self.state = [torch.zeros_like(torch.stack(group).flatten(2)) for group in self.groups]

    def step(self, rate: Tensor) -> None:
        """One step with Nesterov momentum 0.95."""
        for group, momentum in zip(self.groups, self.state, strict=True):
            gradient = torch.stack([weight.grad.flatten(1) for weight in group if weight.grad is not None])
            momentum.lerp_(gradient, 0.05)
            steps = orthogonalised(gradient.lerp(momentum, 0.95)) * rate
            for weight, step in zip(group, steps, strict=True):
                weight.sub_(step.view_as(weight))


class Adam:
    """Adam (Kingma and Ba 2015, arXiv:1412.6980) over all its parameters at once; a warm-up stands in for its bias."""

    def __init__(self, weights: list[Tensor]) -> None:
        self.weights = weights
        count = sum(weight.numel() for weight in weights)
        self.state = [torch.zeros(count, device=weights[0].device) for _ in range(2)]

    def step(self, rate: Tensor) -> None:
        """One step with betas 0.9 and 0.99."""
        gradient = torch.cat([weight.grad.flatten() for weight in self.weights if weight.grad is not None])
        mean, square = self.state
        mean.lerp_(gradient, 0.1)
        square.lerp_(gradient.square(), 0.01)
        steps = torch.split(mean / (square.sqrt() + 1e-8) * rate, [weight.numel() for weight in self.weights])
        for weight, step in zip(self.weights, steps, strict=True):
            weight.sub_(step.view_as(weight))


class Training:
    """A network on its way, with all that a step needs and all that a checkpoint keeps."""

    def __init__(self, net: Compact, patches: Patches, degrade: Degrade | None) -> None:
        self.net, self.patches, self.degrade, self.device = net, patches, degrade, patches.device
        hidden = {layer.weight for layer in [*net.body, net.fuse]}
        parameters = list(net.parameters())
        self.muon = Muon([weight for weight in parameters if weight in hidden])
        self.adam = Adam([weight for weight in parameters if weight not in hidden])
        self.average = torch.cat([weight.detach().flatten() for weight in parameters])
        # Rates are tensors, so that a recorded step reads them anew.
        self.rates = {name: torch.zeros((), device=self.device) for name in ("muon", "adam", "average", "loss")}
        self.rate = 1.0  # of the rates
        self.steps, self.seconds = 0, 0.0

    def step(self, phase: Phase) -> None:
        """Draw a batch, and move the weights and their average."""
        extra = MARGIN if self.degrade else 0
        small, large = self.patches.draw(phase.count, phase.size + extra)
        if self.degrade:
            small, large = self.degrade(small, large)  # (count, 3, size, size) and (count, 3, scale * size, ...)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            made = self.net(small.contiguous(memory_format=torch.channels_last))
        target, *teacher = torch.split(large, 3, 1)  # (count, 3, scale * size, scale * size)
        difference = made.float() - target
        loss = difference.abs().mean()
        if teacher:
            loss = (1 - TEACHER_WEIGHT) * loss + TEACHER_WEIGHT * (made.float() - teacher[0]).abs().mean()
        if phase.fourier:
            loss = loss + FOURIER_WEIGHT * torch.view_as_real(torch.fft.rfft2(difference)).abs().mean()
        parameters = list(self.net.parameters())
        for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
            parameter.grad = gradient.float()
        with torch.no_grad():
            self.muon.step(self.rates["muon"])
            self.adam.step(self.rates["adam"])
            self.average.lerp_(torch.cat([weight.flatten() for weight in parameters]), self.rates["average"])
            self.rates["loss"].lerp_(loss, 0.01)

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
        }

    def resume(self, file: Path) -> None:
        """Go on from a checkpoint."""
        kept = torch.load(file, map_location=self.device, weights_only=True)
        self.net.load_state_dict(kept["net"])
        self.average.copy_(kept["average"])
        for ours, theirs in zip(self.muon.state + self.adam.state, kept["muon"] + kept["adam"], strict=True):
            ours.copy_(theirs)
        self.steps, self.seconds = kept["steps"], kept["seconds"]


@torch.no_grad()
def validate(net: Compact, photos: list[Tensor], device: torch.device, quality: int | None = None) -> float:
    """Mean PSNR in dB on Y, `scale` pixels shaved, of photos kept out of training; input through JPEG if a quality."""
    net, scale, values = net.to(device), net.config.scale, []
    for photo in photos:
        large = photo[: len(photo) // scale * scale, : photo.shape[1] // scale * scale]
        small = pixels(encoded(reduce(large, scale), quality))
        x = (small.permute(2, 0, 1)[None].float() / 255).to(device).contiguous(memory_format=torch.channels_last)
        made = (net(x).clamp(0, 1)[0].permute(1, 2, 0) * 255).round().byte().cpu()
        values.append(psnr_y(made, large, shave=scale))
    return sum(values) / len(values)


def build(config: CompactConfig, start: Path | None, device: torch.device) -> Compact:
    """A network to train: new, or with the weights of a model directory, of which the ends fit only the same scale."""
    net = Compact(config)
    start_as_bicubic(net)
    if start:
        weights, own = load_file(start / "model.safetensors"), net.state_dict()
        net.load_state_dict(
            {
                name: weights[name].float() if weights[name].shape == value.shape else value
                for name, value in own.items()
            }
        )
    return net.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def train(training: Training, phases: tuple[Phase, ...], seconds: float, held_back: list[Tensor], run: Path) -> Compact:
    """Train until the time is over; returns the averaged network. Checkpoints are in `run`."""
    run.mkdir(parents=True, exist_ok=True)
    checkpoint = run / "checkpoint.pt"
    if checkpoint.is_file():
        training.resume(checkpoint)

    def save() -> None:
        with atomic_file(checkpoint) as stream:
            torch.save(training.state(), stream)

    last = saved = time.monotonic()
    for phase in phases:
        if training.seconds >= phase.until * seconds:
            continue
        training.set_rates(training.seconds / seconds)
        step = training.recorded(phase)
        while training.seconds < phase.until * seconds:
            for _ in range(STEPS_AT_ONCE):
                training.set_rates(training.seconds / seconds)
                step()
                training.steps += 1
            if training.device.type == "cuda":
                torch.cuda.synchronize()
            now = time.monotonic()
            training.seconds += min(now - last, 60.0)  # a machine that slept, or a paused process, did not train
            last = now
            if now - saved > CHECKPOINT_SECONDS:
                save()
                figure = (
                    f", held back {validate(training.averaged(), held_back, training.device):.3f} dB"
                    if held_back
                    else ""
                )
                print(
                    f"step {training.steps}, {training.seconds / 60:.1f} min, "
                    f"loss {float(training.rates['loss']):.5f}{figure}",
                    flush=True,
                )
                saved = time.monotonic()
                last = saved
    save()
    return training.averaged()


def export(net: Compact, directory: Path) -> None:
    """Write config.json and model.safetensors (fp16), as hub checkpoints are laid out."""
    directory.mkdir(parents=True, exist_ok=True)
    config = {"model_type": "compact", **asdict(net.config)}
    (directory / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    state = {name: value.half().contiguous() for name, value in net.state_dict().items()}
    save_file(state, directory / "model.safetensors")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Train an embedded model.")
    parser.add_argument("model", choices=[f"{kind}-x{scale}" for kind in ("compact", "photo") for scale in (2, 3, 4)])
    parser.add_argument("--data", type=Path, required=True, help="folder of photos")
    parser.add_argument("--held-back", type=Path, help="folder of photos for validation")
    parser.add_argument("--run", type=Path, required=True, help="folder for checkpoints")
    parser.add_argument("--start", type=Path, help="model directory whose weights to begin with")
    parser.add_argument("--teacher", type=Path, help="directory of a better model of the same scale (compact-* only)")
    parser.add_argument("--export", type=Path, help="folder for config.json and model.safetensors at the end")
    parser.add_argument("--hours", type=float, default=2.0)
    arguments = parser.parse_args()
    kind, _, scale = arguments.model.partition("-x")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    patches = Patches(arguments.data, int(scale), device)
    print(f"{patches.photos} photos and reduced copies, {len(patches.small) / 1e6:.1f} megapixels of input")
    if arguments.teacher and kind == "compact":
        patches.teach(arguments.teacher)
    held_back = []
    if arguments.held_back:
        held_back = [read(file) for file in sorted(arguments.held_back.iterdir()) if file.suffix.lower() in SUFFIXES]
    net = build(replace(CompactConfig(), scale=int(scale)), arguments.start, device)
    training = Training(net, patches, Degrade(int(scale), device) if kind == "photo" else None)
    training.rate = START_RATE if arguments.start else 1.0
    phases = CUDA_PHASES if device.type == "cuda" else CPU_PHASES
    net = train(training, phases, arguments.hours * 3600, held_back, arguments.run)
    if arguments.export:
        export(net, arguments.export)


if __name__ == "__main__":
    main()
