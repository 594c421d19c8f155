"""Choosing between checkpoints: PSNR on photos that were kept out of training, clean and as JPEG."""

from __future__ import annotations

import torch
from torch import Tensor

from bench.metrics import psnr_y
from bench.quality import encoded, pixels
from core.networks.compact import Compact
from training.photos import reduce

JPEG_QUALITIES = (None, 75)  # what a model for JPEGs is chosen by: both count alike


class Selection:
    """Photos of the split with their inputs, made once.

    Args:
        photos: (h, w, 3) uint8 each.
        scale: of the models to compare.
        qualities: of the inputs: None for clean ones, else of a JPEG with 4:2:0 chroma.
    """

    def __init__(self, photos: list[Tensor], scale: int, qualities: tuple[int | None, ...] = (None,)) -> None:
        self.scale, self.pairs = scale, []
        for photo in photos:
            large = photo[: len(photo) // scale * scale, : photo.shape[1] // scale * scale]
            small = reduce(large, scale)
            self.pairs += [(pixels(encoded(small, quality)), large) for quality in qualities]

    @torch.no_grad()
    def score(self, net: Compact, device: torch.device) -> float:
        """Mean PSNR in dB on Y, `scale` pixels shaved, over all inputs; in bf16 where that is fast."""
        net, values = net.to(device), []
        dtype = torch.bfloat16 if bf16_is_fast(device) else torch.float32
        net = net.to(dtype)
        for small, large in self.pairs:
            x = (small.permute(2, 0, 1)[None].float() / 255).to(device, dtype)
            made = net(x.contiguous(memory_format=torch.channels_last)).float().clamp(0, 1)
            made = (made[0].permute(1, 2, 0) * 255).round().byte().cpu()
            values.append(psnr_y(made, large, shave=self.scale))
        return sum(values) / len(values)


def bf16_is_fast(device: torch.device) -> bool:
    """Whether training in bfloat16 pays: on CUDA cards, and on CPUs with AMX (8 times as fast as fp32)."""
    return device.type == "cuda" or bool(torch.cpu._is_amx_tile_supported())
