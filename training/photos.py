"""Photos for training: decoded once into one tensor, and drawn from as patches on the device that trains.

The tensor holds the targets only; inputs are made of the patches drawn (`training.degrade`), so the same cache serves
every scale and every kind of input.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from bench.metrics import bicubic
from core import models
from core.atomic import atomic_file
from core.engine.pytorch import build

SUFFIXES = (".png", ".webp", ".jpg", ".jpeg")
LARGE_JPEG = 2_000_000  # pixels; a JPEG of more comes from a camera, and its compression shows at full size
SPLIT = 26  # one photo of so many is kept out of training, to choose between checkpoints
GRID, WINDOW = 16, 96  # pixels of the target: steps between places that a patch may lie around, and side for its detail
SMALLEST = 160  # pixels: photos with a shorter side are left out
TEACHER_GRID = 8  # pixels: sides that any teacher takes are multiples of it (Swin2SR's window)


def read(path: Path) -> Tensor:
    """(h, w, 3) uint8."""
    with Image.open(path) as image:
        return torch.from_numpy(np.array(image.convert("RGB")))


def reduce(pixels: Tensor, factor: int) -> Tensor:
    """(h, w, 3) uint8 to (h // factor, w // factor, 3): MATLAB's antialiased bicubic; what is left over is cut."""
    height, width = pixels.shape[0] // factor, pixels.shape[1] // factor
    return bicubic(pixels[: height * factor, : width * factor], height, width)


def is_held_back(path: Path) -> bool:
    """Whether a photo belongs to the split that chooses between checkpoints: by its name, so wherever it lies."""
    return zlib.crc32(path.name.encode()) % SPLIT == 0


def listed(folders: Sequence[Path]) -> list[Path]:
    """The photos in some folders, in order.

    Raises:
        SystemExit: there are none.
    """
    found = sorted(path for folder in folders for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not found:
        raise SystemExit(f"no photos in {', '.join(map(str, folders))}: give folders of PNG, WebP or JPEG files")
    return found


def copies(path: Path) -> Iterator[np.ndarray]:
    """One photo as targets: (h, w, 3) uint8.

    Large JPEGs are halved at least, which hides their compression; smaller copies have more detail for each pixel.
    Small JPEGs and what is lossless are taken as they are, and halved too where that leaves enough.
    """
    with Image.open(path) as image:
        photo = image.convert("RGB")
        lossy = path.suffix.lower() in (".jpg", ".jpeg") and photo.width * photo.height > LARGE_JPEG
    for factor in (2, 3, 4) if lossy else (1, 2):
        height, width = photo.height // factor, photo.width // factor
        if min(height, width) >= (SMALLEST if factor == 1 else 2 * SMALLEST):
            box = (0, 0, width * factor, height * factor)
            yield np.array(photo if factor == 1 else photo.resize((width, height), Image.Resampling.BICUBIC, box))


@dataclass(frozen=True)
class Pixels:
    """Photos one after another.

    Attributes:
        values: (all pixels, 3) uint8.
        shapes: (photos, 2) int64, height and width.
        detail: mean absolute Laplacian of windows GRID pixels apart, (rows, columns) of each photo.
    """

    values: Tensor
    shapes: Tensor
    detail: list[Tensor]

    def photos(self) -> Iterator[Tensor]:
        """Each photo, (h, w, 3) uint8."""
        first = 0
        for height, width in self.shapes.tolist():
            yield self.values[first : first + height * width].view(height, width, 3)
            first += height * width


def detail(photo: Tensor) -> Tensor:
    """Mean absolute Laplacian of (h, w, 3) uint8, halved: (rows, columns), of windows GRID pixels apart."""
    grey = F.avg_pool2d(photo.permute(2, 0, 1)[None].float().mean(1, keepdim=True), 2)
    kernel = grey.new_tensor([[0, -1, 0], [-1, 4, -1], [0, -1, 0]])
    edges = F.pad(F.conv2d(grey, kernel[None, None]).abs(), (1, 1, 1, 1))
    return F.avg_pool2d(edges, WINDOW // 2, GRID // 2)[0, 0] + 0.5


def decode(folders: Sequence[Path], cache: Path) -> Pixels:
    """The photos to train on, decoded once: a second call with the same files reads the cache.

    Args:
        folders: searched with all folders in them; photos of the split are left out.
        cache: folder for the decoded pixels.
    """
    paths = [path for path in listed(folders) if not is_held_back(path)]
    seal = hashlib.sha256(repr([(str(path), path.stat().st_size) for path in paths]).encode()).hexdigest()[:16]
    file = cache / f"photos-{seal}.pt"
    if not file.is_file():
        with ThreadPoolExecutor() as pool:
            decoded = [photo for found in pool.map(lambda path: list(copies(path)), paths) for photo in found]
        values = torch.empty(sum(photo.shape[0] * photo.shape[1] for photo in decoded), 3, dtype=torch.uint8)
        torch.cat([torch.from_numpy(photo).flatten(0, 1) for photo in decoded], out=values)
        cache.mkdir(parents=True, exist_ok=True)
        shapes = torch.tensor([photo.shape[:2] for photo in decoded])
        details = [detail(torch.from_numpy(photo)) for photo in decoded]
        with atomic_file(file) as stream:
            torch.save({"values": values, "shapes": shapes, "detail": details}, stream)
    kept = torch.load(file, weights_only=True, mmap=True)
    return Pixels(**kept)


def held_back(folders: Sequence[Path], side: int = 384) -> list[Tensor]:
    """The photos of the split, (h, w, 3) uint8: of each first copy the middle, at most `side` x `side`."""
    kept = []
    for path in listed(folders):
        if is_held_back(path):
            photo = torch.from_numpy(next(copies(path)))
            top, left = (max(0, length - side) // 2 for length in photo.shape[:2])
            kept.append(photo[top : top + side, left : left + side].contiguous())
    return kept


class Patches:
    """Draws targets at random places, those with more detail more often.

    Args:
        pixels: the photos.
        device: where they stay.
        largest: side of the largest target that will be drawn; smaller photos are left out.
    """

    def __init__(self, pixels: Pixels, device: torch.device, largest: int) -> None:
        self.device, self.photos = device, len(pixels.shapes)
        self.values = pixels.values.to(device)
        self.shapes = pixels.shapes.to(device)
        counts = self.shapes.prod(1)
        self.first = counts.cumsum(0) - counts
        places, weights = [], []
        for index, found in enumerate(pixels.detail):
            if int(pixels.shapes[index].min()) < largest:
                continue
            steps = [torch.arange(count) * GRID + WINDOW // 2 for count in found.shape]
            rows, columns = torch.meshgrid(*steps, indexing="ij")
            places.append(torch.stack([torch.full_like(rows, index), rows, columns], -1).flatten(0, 1))
            # A photo counts by the root of the detail in it: a large one does not outweigh twenty small ones.
            weights.append((found / found.sum().sqrt()).flatten())
        self.places = torch.cat(places).to(device)  # (places, 3): photo, row, column
        self.cumulative = torch.cat(weights).double().cumsum(0).to(device)

    def draw(self, count: int, side: int, scale: int) -> Tensor:
        """Targets (count, 3, side, side) in [0, 1], flipped and turned at random, their corners multiples of scale.

        With a teacher its picture follows in three more channels.
        """
        chance = torch.rand(count, device=self.device, dtype=torch.float64) * self.cumulative[-1]
        place = self.places[torch.searchsorted(self.cumulative, chance).clamp(max=len(self.places) - 1)]  # (count, 3)
        height, width = self.shapes[place[:, 0]].unbind(1)
        shift = torch.randint(GRID, (2, count), device=self.device)
        y = (place[:, 1] + shift[0] - side // 2).clamp(min=0).minimum(height - side) // scale * scale
        x = (place[:, 2] + shift[1] - side // 2).clamp(min=0).minimum(width - side) // scale * scale
        along = torch.arange(side, device=self.device)
        flips = torch.rand(3, count, device=self.device) < 0.5
        rows, columns = (torch.where(flip[:, None], side - 1 - along, along) for flip in flips[:2])  # (count, side)
        corner = self.first[place[:, 0]] + y * width + x
        index = corner[:, None, None] + (rows * width[:, None])[:, :, None] + columns[:, None, :]
        index = torch.where(flips[2][:, None, None], index.transpose(1, 2), index)
        return self.values[index].permute(0, 3, 1, 2).float() / 255

    @torch.no_grad()
    def teach(self, directory: Path) -> None:
        """Have a better model upscale every photo; what it makes is drawn beside the photo itself.

        Learning from another network is Hinton et al. 2015, arXiv:1503.02531.
        """
        spec = models.spec_of(str(directory))
        scale, taught = spec.scale, []
        net = build(spec, directory).to(self.device).eval()
        for photo in Pixels(self.values, self.shapes.cpu(), []).photos():
            small = reduce(photo, scale).permute(2, 0, 1)[None].float() / 255  # (1, 3, h, w)
            height, width = small.shape[2:]
            padded = F.pad(small, (0, -width % TEACHER_GRID, 0, -height % TEACHER_GRID), mode="reflect")
            large = net(padded)[0, :, : height * scale, : width * scale].float().clamp(0, 1)
            made = photo.clone()  # what is left over at the edges stays the photo's
            made[: height * scale, : width * scale] = (large * 255).round().byte().permute(1, 2, 0)
            taught.append(made.flatten(0, 1))
        self.values = torch.cat([self.values, torch.cat(taught)], 1)  # (all, 6)

    def forget(self) -> None:
        """Draw photos without the teacher's pictures again."""
        self.values = self.values[:, :3].contiguous()
