"""Photos for training: read once, reduced to several sizes, and drawn from as patches on the device that trains."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from bench.metrics import bicubic
from core import models
from core.engine.load import load
from core.engine.plan import make_plan
from core.engine.run import upscale_strips

SUFFIXES = (".png", ".webp", ".jpg", ".jpeg")
GRID, WINDOW = 8, 48  # pixels of the input: steps between places that a patch may start at, and side for its detail


def read(path: Path) -> Tensor:
    """(h, w, 3) uint8."""
    with Image.open(path) as image:
        return torch.from_numpy(np.array(image.convert("RGB")))


def reduce(pixels: Tensor, factor: int) -> Tensor:
    """(h, w, 3) uint8 to (h // factor, w // factor, 3): MATLAB's antialiased bicubic; what is left over is cut."""
    height, width = pixels.shape[0] // factor, pixels.shape[1] // factor
    return bicubic(pixels[: height * factor, : width * factor], height, width)


def targets(path: Path, scale: int, device: torch.device) -> list[Tensor]:
    """One photo as targets: (h, w, 3) uint8, sides multiples of scale.

    JPEGs are halved, which hides their compression; smaller copies of every photo have more detail for each pixel.
    """
    pixels = read(path).to(device)
    lossy = path.suffix.lower() in (".jpg", ".jpeg")
    copies = [reduce(pixels, factor) if factor > 1 else pixels for factor in ((2, 3, 4) if lossy else (1, 2))]
    cut = [copy[: len(copy) // scale * scale, : copy.shape[1] // scale * scale] for copy in copies]
    return [copy.contiguous() for copy in cut if min(copy.shape[:2]) >= 144 * scale]


class Patches:
    """Draws patches of input and target at random places, those with more detail more often."""

    def __init__(self, folder: Path, scale: int, device: torch.device) -> None:
        paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
        if not paths:
            raise SystemExit(f"no photos in {folder}: give a folder of PNG, WebP or JPEG files")
        with ThreadPoolExecutor() as pool:
            large = [photo for photos in pool.map(lambda path: targets(path, scale, device), paths) for photo in photos]
        small = [reduce(photo, scale) for photo in large]
        self.scale, self.device, self.photos = scale, device, len(large)
        self.small, self.large = (torch.cat([photo.flatten(0, 1) for photo in photos]) for photos in (small, large))
        shapes = torch.tensor([photo.shape[:2] for photo in small], device=device)  # (photos, 2)
        counts = shapes.prod(1)
        self.table = torch.cat([(counts.cumsum(0) - counts)[:, None], shapes], 1)  # first pixel, height, width
        places, weights = [], []
        for index, photo in enumerate(small):
            detail = F.avg_pool2d(_detail(photo)[None, None], WINDOW, GRID)[0, 0]  # (rows, columns)
            rows, columns = torch.meshgrid(
                *(torch.arange(n, device=device) * GRID for n in detail.shape), indexing="ij"
            )
            places.append(torch.stack([torch.full_like(rows, index), rows, columns], -1).flatten(0, 1))
            weights.append(detail.flatten() + 0.5)
        self.places = torch.cat(places)  # (places, 3): photo, row, column
        self.cumulative = torch.cat(weights).double().cumsum(0)

    def teach(self, directory: Path) -> None:
        """Have a better model upscale every photo; what it makes is drawn beside the photo itself.

        Learning from another network is Hinton et al. 2015, arXiv:1503.02531.
        """
        spec = models.spec_of(str(directory))
        if spec.scale != self.scale:
            raise SystemExit(f"{directory} makes pictures {spec.scale} times as large, not {self.scale} times")
        model, _ = load(str(directory), self.device)
        plan, taught = make_plan(spec, self.scale, exact=False), []
        for first, height, width in self.table.tolist():
            photo = self.small[first : first + height * width].view(height, width, 3).cpu().numpy()
            strips = np.concatenate(list(upscale_strips(model, photo, plan)))  # (h, w, 3) in [0, 1]
            taught.append(torch.from_numpy(strips * 255).round().byte().flatten(0, 1).to(self.device))
        self.large = torch.cat([self.large, torch.cat(taught)], 1)  # (all, 6)

    def draw(self, count: int, size: int) -> tuple[Tensor, Tensor]:
        """Input (count, 3, size, size) and target in [0, 1], flipped and turned at random.

        The target is (count, 3, scale * size, scale * size); with a teacher its picture follows in three more channels.
        """
        chance = torch.rand(count, device=self.device, dtype=torch.float64) * self.cumulative[-1]
        place = self.places[torch.searchsorted(self.cumulative, chance).clamp(max=len(self.places) - 1)]  # (count, 3)
        first, height, width = self.table[place[:, 0]].unbind(1)
        shift = torch.randint(GRID, (2, count), device=self.device)
        y, x = (place[:, 1] + shift[0]).minimum(height - size), (place[:, 2] + shift[1]).minimum(width - size)
        flips = torch.rand(3, count, device=self.device) < 0.5
        small = _gather(self.small, first, width, y, x, size, flips)
        s = self.scale
        return small, _gather(self.large, first * s * s, width * s, y * s, x * s, size * s, flips)


def _detail(photo: Tensor) -> Tensor:
    """Absolute Laplacian of (h, w, 3) uint8: (h, w) float."""
    grey = photo.float().mean(2)
    detail = torch.zeros_like(grey)
    around = grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:]
    detail[1:-1, 1:-1] = (4 * grey[1:-1, 1:-1] - around).abs()
    return detail


def _gather(pixels: Tensor, first: Tensor, width: Tensor, y: Tensor, x: Tensor, side: int, flips: Tensor) -> Tensor:
    """Patches (count, channels, side, side) in [0, 1] of photos one after another in `pixels` (all, channels) uint8."""
    along = torch.arange(side, device=pixels.device)
    rows, columns = (torch.where(flip[:, None], side - 1 - along, along) for flip in flips[:2])  # (count, side)
    index = (first + y * width + x)[:, None, None] + (rows * width[:, None])[:, :, None] + columns[:, None, :]
    patches = pixels[
        torch.where(flips[2][:, None, None], index.transpose(1, 2), index)
    ]  # (count, side, side, channels)
    return patches.permute(0, 3, 1, 2).float() / 255
