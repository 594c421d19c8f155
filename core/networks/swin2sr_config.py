"""What a Swin2SR checkpoint's `config.json` says, and what follows from it without loading the network.

The keys are those of Hugging Face's `Swin2SRConfig`. Nothing heavy is imported here: routing and estimates
need scale, receptive field and cost before, or without, torch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from core.errors import ModelError

#: Channels inside the upsamplers; the checkpoint format has no key for it.
UPSAMPLER_WIDTH = 64

#: Keys of which the format allows more than the network here does, with the one value that it does. All
#: published checkpoints have these values.
_FIXED = {
    "model_type": "swin2sr",
    "num_channels": 3,
    "num_channels_out": 3,
    "patch_size": 1,
    "hidden_act": "gelu",
    "use_absolute_embeddings": False,
}

_SCALES = {
    "pixelshuffle": (2, 3, 4, 8),
    "pixelshuffledirect": (2, 3, 4, 5, 6, 7, 8),
    "pixelshuffle_aux": (2, 3, 4, 8),
    "nearest+conv": (4,),
}


@dataclass(frozen=True)
class Swin2SRConfig:
    """The shape of a Swin2SR network (Conde et al. 2022, arXiv:2209.11345); RGB to RGB.

    Attributes:
        embed_dim: channels of the tokens; one token is one input pixel.
        depths: attention layers of each stage; every second one has its windows shifted.
        num_heads: attention heads of each stage.
        window_size: side of the attention windows in input pixels.
        mlp_ratio: hidden channels of the MLP, divided by `embed_dim`.
        qkv_bias: whether query and value have a bias (key never has).
        layer_norm_eps: added to the variance in layer norms, but the first (1e-5).
        upscale: integer factor of both sides.
        img_range: input and output are multiplied and divided by this.
        resi_connection: "1conv" or "3conv", the convolutions at the end of each stage.
        upsampler: "pixelshuffle", "pixelshuffledirect", "pixelshuffle_aux" or "nearest+conv".
    """

    embed_dim: int = 180
    depths: tuple[int, ...] = (6, 6, 6, 6, 6, 6)
    num_heads: tuple[int, ...] = (6, 6, 6, 6, 6, 6)
    window_size: int = 8
    mlp_ratio: float = 2.0
    qkv_bias: bool = True
    layer_norm_eps: float = 1e-5
    upscale: int = 2
    img_range: float = 1.0
    resi_connection: str = "1conv"
    upsampler: str = "pixelshuffle"

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> Swin2SRConfig:
        """Read a parsed `config.json`; keys that are absent take the format's defaults, others are ignored.

        Raises:
            ModelError: not a Swin2SR, a value of the wrong type, or a variant that we do not run.
        """
        for key, only in _FIXED.items():
            value = raw.get(key)
            if value is not None and value != only:
                raise ModelError(f"config.json: {key} must be {only!r}, not {value!r}")
        values: dict[str, Any] = {}
        for key, kind in (
            ("embed_dim", int),
            ("window_size", int),
            ("mlp_ratio", float),
            ("qkv_bias", bool),
            ("layer_norm_eps", float),
            ("upscale", int),
            ("img_range", float),
            ("resi_connection", str),
            ("upsampler", str),
        ):
            if key in raw:
                values[key] = _checked(key, raw[key], kind)
        for key in ("depths", "num_heads"):
            if key in raw:
                if not isinstance(raw[key], list | tuple):
                    raise ModelError(f"config.json: {key} must be a list, not {raw[key]!r}")
                values[key] = tuple(_checked(key, item, int) for item in raw[key])
        config = cls(**values)
        config._check(raw.get("image_size", 64))
        return config

    def _check(self, image_size: object) -> None:
        """Refuse combinations that make no network."""
        if self.upsampler not in _SCALES:
            raise ModelError(f"config.json: upsampler must be one of {', '.join(_SCALES)}, not {self.upsampler!r}")
        if self.upscale not in _SCALES[self.upsampler]:
            raise ModelError(
                f"config.json: upscale with {self.upsampler} must be one of "
                f"{', '.join(map(str, _SCALES[self.upsampler]))}, not {self.upscale}"
            )
        if self.resi_connection not in ("1conv", "3conv"):
            raise ModelError(f"config.json: resi_connection must be 1conv or 3conv, not {self.resi_connection!r}")
        if self.embed_dim < 4 or not all(map(math.isfinite, (self.mlp_ratio, self.img_range, self.layer_norm_eps))):
            raise ModelError("config.json: embed_dim must be at least 4; mlp_ratio, img_range, layer_norm_eps finite")
        if self.hidden < 1 or self.img_range <= 0 or self.layer_norm_eps < 0:
            raise ModelError("config.json: mlp_ratio, img_range and layer_norm_eps must be positive")
        if not self.depths or len(self.depths) != len(self.num_heads) or min(self.depths) < 1:
            raise ModelError("config.json: depths and num_heads need one positive entry for each stage")
        if any(heads < 1 or self.embed_dim % heads for heads in self.num_heads):
            raise ModelError(f"config.json: each of num_heads must divide embed_dim = {self.embed_dim}")
        sides = image_size if isinstance(image_size, list | tuple) and image_size else [image_size]
        # With a training picture of one window, the format means smaller windows and no shift.
        largest = min(32, *(_checked("image_size", side, int) - 1 for side in sides))
        if not 2 <= self.window_size <= largest:
            raise ModelError(f"config.json: window_size must be 2 to 32 and below image_size, not {self.window_size}")

    @property
    def scale(self) -> int:
        """Output pixels for each input pixel along a side."""
        return self.upscale

    @property
    def window(self) -> int:
        """Both sides of the input must be multiples of this; tiles must start at multiples of it."""
        return self.window_size

    @property
    def hidden(self) -> int:
        """Channels inside the MLPs."""
        return int(self.mlp_ratio * self.embed_dim)

    @property
    def receptive_field(self) -> int:
        """Input pixels on each side that the output of one input pixel can depend on, at the worst place in a window.

        Found by walking back from the output of a pixel to the interval of inputs that reaches it, along one side.
        """
        return max(max(p - low, high - p) for p in range(self.window) for low, high in [self._support(p)])

    def _support(self, pixel: int) -> tuple[int, int]:
        """First and last input position that the output of `pixel` depends on."""
        scale = self.scale
        low, high = scale * pixel, scale * pixel + scale - 1
        for step in self._upsampler_steps():  # from the last layer to the first
            # A factor undoes a pixel shuffle or nearest-neighbour step; 1 stands for a 3x3 convolution.
            low, high = (low - 1, high + 1) if step == 1 else (low // step, high // step)
        low, high = low - 1, high + 1  # the convolution after the stages
        for depth in reversed(self.depths):
            reach = 1 if self.resi_connection == "1conv" else 2
            low, high = low - reach, high + reach
            for layer in reversed(range(depth)):
                shift = self.shift(layer)
                low = (low - shift) // self.window * self.window + shift
                high = ((high - shift) // self.window + 1) * self.window + shift - 1
        return low - 1, high + 1  # the first convolution

    def _upsampler_steps(self) -> list[int]:
        """Layers of the upsampler, last first: 1 for a 3x3 convolution, a factor where the resolution rises."""
        if self.upsampler == "pixelshuffledirect":
            return [self.scale, 1]
        if self.upsampler == "nearest+conv":
            return [1, 1, 1, 2, 1, 2, 1]
        shuffles = [step for factor in reversed(self.shuffles) for step in (factor, 1)]
        return [1, *shuffles, 1] if self.upsampler == "pixelshuffle" else [1, *shuffles, 1, 1, 1]

    @property
    def shuffles(self) -> tuple[int, ...]:
        """Factors of the pixel shuffles in "pixelshuffle" and "pixelshuffle_aux"; their product is the scale."""
        return {2: (2,), 3: (3,), 4: (2, 2), 8: (2, 2, 2)}[self.scale]

    def shift(self, layer: int) -> int:
        """Pixels by which the windows of a stage's layer number `layer` (from 0) lie right of and below the grid."""
        return self.window // 2 if layer % 2 else 0

    @property
    def operations_per_pixel(self) -> float:
        """Multiplications and additions of matrix products and convolutions for one input pixel."""
        dim, window, wide = self.embed_dim, self.window, UPSAMPLER_WIDTH
        layer = 4 * dim**2 + 2 * dim * self.hidden + 2 * dim * window**2
        narrow = dim // 4
        stage = 9 * dim**2 if self.resi_connection == "1conv" else 18 * dim * narrow + narrow**2
        total = sum(self.depths) * layer + len(self.depths) * stage
        # A column of ones beside each head's value.
        total += dim * sum(depth * heads for depth, heads in zip(self.depths, self.num_heads, strict=True))
        total += 9 * 3 * dim + dim**2 + 9 * dim**2  # first convolution, patch embedding, convolution after the stages
        if self.upsampler == "pixelshuffledirect":
            return 2.0 * (total + 9 * dim * 3 * self.scale**2)
        total += 9 * dim * wide + 9 * wide * 3 * self.scale**2  # first and last convolution of the upsampler
        if self.upsampler == "nearest+conv":
            return 2.0 * (total + 9 * wide**2 * (4 + 16 + 16))
        area = 1
        for factor in self.shuffles:
            total += 9 * wide**2 * factor**2 * area
            area *= factor**2
        if self.upsampler == "pixelshuffle_aux":
            total += 2 * 9 * wide * 3 + 9 * 3 * wide * area
        return 2.0 * total


def _checked(key: str, value: object, kind: type) -> Any:
    """`value` as `kind`; an integer may stand for a float, and nothing else for anything else."""
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind:
        raise ModelError(f"config.json: {key} must be of type {kind.__name__}, not {value!r}")
    return value
