"""Small networks and pictures for tests of the engine."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from core.engine.load import Model
from core.engine.plan import make_plan
from core.engine.pytorch import TorchNetwork
from core.engine.run import upscale_strips
from core.models import spec_from_config
from core.networks.compact import Compact
from core.networks.compact_config import CompactConfig
from core.picture import Pixels
from core.pixels.resize import Rows

CPU = "cpu"
#: A Swin2SR that is small enough to be tiled exactly many times: two stages of two layers.
SMALL_SWIN2SR: dict[str, Any] = {
    "model_type": "swin2sr",
    "embed_dim": 24,
    "depths": [2, 2],
    "num_heads": [2, 2],
    "window_size": 8,
    "mlp_ratio": 2.0,
    "upscale": 2,
    "upsampler": "pixelshuffledirect",
    "resi_connection": "1conv",
    "img_range": 1.0,
}


def compact() -> Model:
    """A network like the embedded one, with random weights, that takes milliseconds on one thread."""
    config = CompactConfig(scale=2, width=8, blocks=2)
    torch.manual_seed(0)
    net = Compact(config).eval().requires_grad_(False).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return Model(spec_from_config("small", "", config), TorchNetwork(net, CPU), CPU, "float32")


def noise(height: int, width: int, channels: int = 3, dtype: type = np.uint8) -> Pixels:
    made: Pixels = np.random.default_rng(0).integers(0, np.iinfo(dtype).max + 1, (height, width, channels), dtype)
    return made


def upscaled(model: Model, pixels: Pixels, tile: int, *, exact: bool = True, passes: int = 1) -> Rows:
    """The whole result: (scale * h, scale * w, 3)."""
    plan = make_plan(model.spec, model.spec.scale**passes, exact=exact, tile=tile)
    return np.concatenate(list(upscale_strips(model, pixels, plan)))
