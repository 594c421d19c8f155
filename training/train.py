"""Train an embedded model: python -m training.train --data PHOTOS --run runs/compact-x2 --hours 2

Resumable: started again with the same --run, it goes on from the last checkpoint, and the schedule follows the hours
trained, not the steps, so that a slower or a shared machine still ends with a finished schedule.

The recipe. Photos are halved once where they are JPEG (which hides the compression), and again for the input, with
MATLAB-style antialiased bicubic. Crops are drawn in proportion to their mean absolute Laplacian: sky and blur teach
nothing. The loss is L1, with an L1 term on the Fourier coefficients (Cho et al. 2021, arXiv:2108.05054) in the last
part. Hidden convolutions are stepped by Muon (orthogonalised momentum: Jordan et al. 2024), everything else by AdamW;
cosine schedule; what is published is an exponential moving average of the weights.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import random
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from bench.metrics import halve, luma
from core.compact import Compact
from core.compact_config import CompactConfig

Pair = tuple[Tensor, Tensor]  # input (h, w, 3) and target (scale * h, scale * w, 3), uint8

MUON_RATE, ADAM_RATE, WARM_UP_STEPS = 0.005, 2e-3, 100
FOURIER_FROM, FOURIER_WEIGHT = 0.6, 0.05  # share of the schedule, weight beside L1
LARGE_FROM = 0.75  # share of the schedule after which patches are larger
CHECKPOINT_SECONDS = 300
WORKERS = 2  # threads; a divisor of the batch


def read_photo(path: Path) -> Tensor:
    """(h, w, 3) uint8, halved where the file is a JPEG, cut to even sides."""
    with Image.open(path) as image:
        pixels = torch.from_numpy(np.array(image.convert("RGB")))
    if path.suffix.lower() in (".jpg", ".jpeg"):
        pixels = halve(pixels)
    return pixels[: pixels.shape[0] // 2 * 2, : pixels.shape[1] // 2 * 2].contiguous()


def read_pairs(folder: Path) -> list[Pair]:
    """Every photo below a folder, as input and target."""
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".png", ".jpg", ".jpeg"))
    return [(halve(photo), photo) for photo in map(read_photo, paths)]


class Crops:
    """Draws patches, those with more detail more often."""

    def __init__(self, pairs: list[Pair], grid: int = 8, window: int = 48) -> None:
        self.pairs, self.grid = pairs, grid
        places, weights = [], []
        for index, (small, _) in enumerate(pairs):
            grey = small.float().mean(2)
            detail = torch.zeros_like(grey)
            around = grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:]
            detail[1:-1, 1:-1] = (4 * grey[1:-1, 1:-1] - around).abs()
            mean = F.avg_pool2d(detail[None, None], window, grid)[0, 0]  # (rows, columns)
            rows, columns = torch.meshgrid(torch.arange(mean.shape[0]), torch.arange(mean.shape[1]), indexing="ij")
            places.append(torch.stack([torch.full_like(rows, index), rows * grid, columns * grid], -1).reshape(-1, 3))
            weights.append((mean + 0.5).flatten())
        self.places = torch.cat(places)
        self.cumulative = torch.cat(weights).double().cumsum(0)

    def draw(self, count: int, size: int) -> tuple[Tensor, Tensor]:
        """(count, 3, size, size) and (count, 3, scale * size, scale * size) in [0, 1], flipped and turned at random."""
        inputs: list[Tensor] = []
        targets: list[Tensor] = []
        for place in torch.searchsorted(self.cumulative, torch.rand(count).double() * self.cumulative[-1]).tolist():
            index, y, x = self.places[place].tolist()
            small, large = self.pairs[index]
            scale = large.shape[0] // small.shape[0]
            y = min(y + random.randrange(self.grid), small.shape[0] - size)
            x = min(x + random.randrange(self.grid), small.shape[1] - size)
            pair = (small[y : y + size, x : x + size], large[scale * y :, scale * x :][: scale * size, : scale * size])
            flips = [axis for axis in (0, 1) if random.random() < 0.5]
            turn = random.random() < 0.5
            for patch, patches in zip(pair, (inputs, targets), strict=True):
                patch = patch.flip(flips)
                patches.append(patch.transpose(0, 1) if turn else patch)
        return tuple(torch.stack(part).permute(0, 3, 1, 2).float() / 255 for part in (inputs, targets))  # type: ignore[return-value]


def start_as_bicubic(net: Compact) -> None:
    """Make the untrained network a bicubic interpolation: the skip does it, the tail adds little."""
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
        torch.nn.init.zeros_(net.skip.bias)  # type: ignore[arg-type]
        for colour in range(3):
            for row in range(scale):
                for column in range(scale):
                    out = colour * scale**2 + row * scale + column
                    net.skip.weight[out, colour] = taps(row)[:, None] * taps(column)[None, :]
        net.tail.weight.mul_(0.1)
        torch.nn.init.zeros_(net.tail.bias)  # type: ignore[arg-type]
        for layer in _hidden(net)[1:-1:2]:
            layer.weight.mul_(0.1)  # residual blocks begin as little more than the identity


def _hidden(net: Compact) -> list[nn.Conv2d]:
    """The width-to-width convolutions, in order: two for each block, and the one behind them."""
    layers = [module for module in net.modules() if isinstance(module, nn.Conv2d)]
    return [layer for layer in layers if layer.in_channels == layer.out_channels]


def orthogonalised(gradient: Tensor) -> Tensor:
    """The nearest semi-orthogonal matrix to (rows, columns), by five Newton-Schulz steps (Jordan et al. 2024)."""
    x: Tensor = gradient / (gradient.norm() + 1e-7)
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x.T if tall else x


class Muon:
    """Momentum whose steps are orthogonalised, for convolutions seen as (out, in * 3 * 3) matrices."""

    def __init__(self, parameters: list[Tensor]) -> None:
        self.parameters = parameters
        self.momentum = [torch.zeros_like(parameter) for parameter in parameters]

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """One step with Nesterov momentum 0.95."""
        for parameter, momentum in zip(self.parameters, self.momentum, strict=True):
            if parameter.grad is None:
                continue
            momentum.lerp_(parameter.grad, 0.05)
            ahead: Tensor = parameter.grad.lerp(momentum, 0.95)
            parameter.sub_(orthogonalised(ahead.flatten(1)).view_as(parameter), alpha=rate)


def loss_of(made: Tensor, target: Tensor, share: float) -> Tensor:
    """Mean absolute error, with the Fourier term once this share of the schedule is over."""
    loss: Tensor = F.l1_loss(made, target)
    if share >= FOURIER_FROM:
        difference = torch.fft.rfft2(made - target)
        loss = loss + FOURIER_WEIGHT * torch.view_as_real(difference).abs().mean()
    return loss


@torch.no_grad()
def validate(net: Compact, pairs: list[Pair]) -> float:
    """Mean PSNR in dB on Y, two pixels shaved, of pictures kept out of training."""
    values = []
    for small, large in pairs:
        made = net(small.permute(2, 0, 1)[None].float() / 255).clamp(0, 1)[0].permute(1, 2, 0)
        error = (luma((made * 255).round()) - luma(large.float()))[2:-2, 2:-2]
        values.append(10 * math.log10(255**2 / float(error.square().mean())))
    return sum(values) / len(values)


def train(config: CompactConfig, pairs: list[Pair], held_back: list[Pair], run: Path, hours: float) -> Compact:
    """Train until the hours are over; returns the averaged network. Checkpoints are in `run`."""
    run.mkdir(parents=True, exist_ok=True)
    checkpoint = run / "checkpoint.pt"
    net = Compact(config)
    net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    start_as_bicubic(net)
    average = copy.deepcopy(net)
    hidden: list[Tensor] = [layer.weight for layer in _hidden(net)]
    others = [parameter for parameter in net.parameters() if not any(parameter is weight for weight in hidden)]
    muon, adam = Muon(hidden), torch.optim.AdamW(others, lr=ADAM_RATE, betas=(0.9, 0.99), weight_decay=0)
    step, spent = 0, 0.0
    if checkpoint.is_file():
        kept = torch.load(checkpoint, weights_only=True)
        net.load_state_dict(kept["net"])
        average.load_state_dict(kept["average"])
        adam.load_state_dict(kept["adam"])
        for momentum, value in zip(muon.momentum, kept["muon"], strict=True):
            momentum.copy_(value)
        step, spent = kept["step"], kept["spent"]

    def save() -> None:
        part = checkpoint.with_suffix(".part")
        torch.save(
            {
                "net": net.state_dict(),
                "average": average.state_dict(),
                "adam": adam.state_dict(),
                "muon": muon.momentum,
                "step": step,
                "spent": spent,
            },
            part,
        )
        part.replace(checkpoint)

    # One thread for each half of a batch, which meet once a step: threads inside each operation meet hundreds of times,
    # and one that waits for a busy core holds up the other each time.
    pool = ThreadPoolExecutor(WORKERS, initializer=torch.set_num_threads, initargs=(1,))

    def gradients(inputs: Tensor, targets: Tensor, share: float) -> tuple[float, tuple[Tensor, ...]]:
        loss = loss_of(net(inputs.contiguous(memory_format=torch.channels_last)), targets, share)
        return loss.item(), torch.autograd.grad(loss, list(net.parameters()))

    crops, total, saved = Crops(pairs), 0.0, time.monotonic()
    for share, seconds in _clock(spent, hours * 3600):
        spent += seconds
        count, size = (8, 48) if share < LARGE_FROM else (8, 64)
        inputs, targets = crops.draw(count, size)  # (count, 3, size, size) and its target
        halves = zip(inputs.chunk(WORKERS), targets.chunk(WORKERS), strict=True)
        done = list(pool.map(lambda half, share=share: gradients(half[0], half[1], share), halves))
        total += sum(loss for loss, _ in done) / WORKERS
        for parameter, *parts in zip(net.parameters(), *(parts for _, parts in done), strict=True):
            parameter.grad = torch.stack(parts).mean(0)
        rate = min(1, (step + 1) / WARM_UP_STEPS) * (0.5 * (1 + math.cos(math.pi * share)) + 1e-3)
        muon.step(MUON_RATE * rate)
        for group in adam.param_groups:
            group["lr"] = ADAM_RATE * rate
        adam.step()
        step += 1
        with torch.no_grad():
            for kept_value, value in zip(average.parameters(), net.parameters(), strict=True):
                kept_value.lerp_(value, max(1e-3, 4 / (step + 4)))
        if step % 500 == 0:
            print(f"step {step}, {spent / 60:.1f} min, loss {total / 500:.5f}", flush=True)
            total = 0.0
        if time.monotonic() - saved > CHECKPOINT_SECONDS:
            save()
            figure = f", held back {validate(average, held_back):.3f} dB" if held_back else ""
            print(f"step {step}, checkpoint{figure}", flush=True)
            saved = time.monotonic()
    save()
    return average


def export(net: Compact, directory: Path) -> None:
    """Write config.json and model.safetensors (fp16), as hub checkpoints are laid out."""
    directory.mkdir(parents=True, exist_ok=True)
    config = {"model_type": "compact", **asdict(net.config)}
    (directory / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    state = {name: value.half().contiguous() for name, value in net.state_dict().items()}
    save_file(state, directory / "model.safetensors")


def _clock(spent: float, seconds: float) -> Iterator[tuple[float, float]]:
    """Shares of the schedule until it is over, each with the seconds of the step before."""
    last = time.monotonic()
    while spent < seconds:
        now = time.monotonic()
        gone = min(now - last, 60.0)  # a machine that slept, or a paused process, did not train
        last, spent = now, spent + gone
        yield spent / seconds, gone


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Train an embedded model.")
    parser.add_argument("--data", type=Path, required=True, help="folder of photos")
    parser.add_argument("--held-back", type=Path, help="folder of photos for validation")
    parser.add_argument("--run", type=Path, required=True, help="folder for checkpoints")
    parser.add_argument("--export", type=Path, help="folder for config.json and model.safetensors at the end")
    parser.add_argument("--hours", type=float, default=2.0)
    parser.add_argument("--scale", type=int, default=2, choices=[2])
    arguments = parser.parse_args()
    torch.manual_seed(0)
    random.seed(0)
    pairs = read_pairs(arguments.data)
    held_back = read_pairs(arguments.held_back) if arguments.held_back else []
    print(f"{len(pairs)} photos, {sum(small[..., 0].numel() for small, _ in pairs) / 1e6:.1f} megapixels of input")
    net = train(CompactConfig(scale=arguments.scale), pairs, held_back, arguments.run, arguments.hours)
    if arguments.export:
        export(net, arguments.export)


if __name__ == "__main__":
    main()
