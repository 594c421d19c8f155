"""Swin2SR's forward for a CUDA card: few passes over memory, shapes that matrix units like (arXiv:2209.11345).

`core.swin2sr` goes through windows in chunks that fit a processor's cache. A card wants all windows at once, and is
bound by memory; rows of 180 channels, 360 bytes, suit neither its copies nor its matrix units. So here

- tokens have a multiple of 64 channels, and heads a power of two; what is filled up is 0 and stays 0;
- tokens stay in the picture's order; windows, shifted or not, are found by address;
- a layer is two kernels (`core.swin2sr_triton`) in bf16. Without Triton, PyTorch's operators do the same.

Shapes below: n pictures of h x w pixels, one token a pixel; C channels, filled up to P; H heads of d channels, filled
up to D; B windows of N tokens.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.errors import ModelError
from core.swin2sr_config import UPSAMPLER_WIDTH, Swin2SRConfig
from core.swin2sr_windows import offsets

#: The training pictures' mean colour, for which the format has no key.
_MEAN = (0.4488, 0.4371, 0.4040)

#: take(name, *shape): the tensor of that name in the checkpoint, in fp32.
_Take = Callable[..., Tensor]


class Swin2SRCuda(nn.Module):
    """RGB in [0, 1] to RGB, `scale` times as large; not clipped. Equal to `core.swin2sr.Swin2SR` but for rounding.

    `to(torch.bfloat16)` and `to("cuda")` work as usual. The kernels are used after `fuse`.

    Args:
        config: the network's shape.
        state: its weights under transformers' names.

    Raises:
        ModelError: a tensor is missing, left over, or not of the shape that the configuration says.
    """

    def __init__(self, config: Swin2SRConfig, state: dict[str, Tensor]) -> None:
        super().__init__()
        self.config = config
        rest = dict(state)

        def take(name: str, *shape: int) -> Tensor:
            tensor = rest.pop(name, None)
            if tensor is None:
                raise ModelError(f"the checkpoint has no {name}")
            if tensor.shape != shape:
                raise ModelError(f"the checkpoint's {name} is {tuple(tensor.shape)}, config.json says {shape}")
            return tensor.detach().to("cpu", torch.float32)

        dim, pad, wide = config.embed_dim, _round_up(config.embed_dim, 64), UPSAMPLER_WIDTH
        # 8 channels in: with 3, matrix units are not used.
        self.first = _conv(take, "swin2sr.first_convolution", (3, dim), (8, pad))
        self.embed = _conv(take, "swin2sr.embeddings.patch_embeddings.projection", (dim, dim), (pad, pad), side=1)
        self.norm_embed = _Norm(take, "swin2sr.embeddings.patch_embeddings.layernorm", dim, 1e-5)
        stages = range(len(config.depths))
        self.stages = nn.ModuleList(_Stage(take, f"swin2sr.encoder.stages.{i}", config, i) for i in stages)
        self.norm = _Norm(take, "swin2sr.layernorm", dim, config.layer_norm_eps)
        self.after_body = _conv(take, "swin2sr.conv_after_body", (dim, dim), (pad, pad))
        self.upsample = _upsampler(take, config)
        direct, aux = config.upsampler == "pixelshuffledirect", config.upsampler == "pixelshuffle_aux"
        self.bicubic = _conv(take, "upsample.conv_bicubic", (3, wide), (8, wide)) if aux else None
        self.last = None if direct else _conv(take, "upsample.final_convolution", (wide, 3), (wide, 8))
        if rest:
            raise ModelError(f"the checkpoint has {min(rest)}, which config.json does not say")
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, x: Tensor) -> Tensor:
        """(n, 3, h, w) -> (n, 3, scale * h, scale * w), in fp32 whatever the type of the weights.

        Raises:
            ValueError: h or w is not a multiple of the window.
        """
        n, _, h, w = x.shape
        config, window = self.config, self.config.window
        if h % window or w % window or not n * h * w:
            raise ValueError(f"both sides must be multiples of {window}, not {h} and {w}")
        x, mean, dtype = x.float(), _mean(x.device), self.first.weight.dtype
        shallow = self.first(_eight((x - mean) * config.img_range, dtype))  # (n, P, h, w)
        y = self.norm_embed(self.embed(shallow))
        for stage in self.stages:
            y = stage(y)  # (n, P, h, w)
        y = self.upsample(self.after_body(self.norm(y)).add_(shallow))
        if self.bicubic is not None:
            size = (config.scale * h, config.scale * w)
            large = F.interpolate(x, size, mode="bicubic", align_corners=False)
            y = y + self.bicubic(_eight(large, dtype))  # (n, UPSAMPLER_WIDTH, scale * h, scale * w)
        if self.last is not None:
            y = self.last(y)[:, :3]
        # bf16 is too coarse for the sum of detail and mean, so that is fp32.
        result: Tensor = y.float() / config.img_range + mean
        return result

    def fuse(self, wish: bool) -> bool:
        """Use the kernels from now on where they take this type and shape, or do not. True when they are used."""
        pad, layers = _round_up(self.config.embed_dim, 64), [m for m in self.modules() if isinstance(m, _Layer)]
        fits = self.config.window == 8 and pad <= 192 and all(layer.each <= 64 for layer in layers)
        fits = fits and self.first.weight.is_cuda and self.first.weight.dtype == torch.bfloat16
        fused = wish and fits and importlib.util.find_spec("triton") is not None
        for module in self.modules():
            if isinstance(module, _Norm | _Layer):
                module.fused = fused
        return fused


@lru_cache
@torch.inference_mode(False)
def _mean(device: torch.device) -> Tensor:
    return torch.tensor(_MEAN, device=device).view(1, 3, 1, 1)


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


def _filled(x: Tensor, *shape: int) -> Tensor:
    """The tensor in the corner of a larger one of zeros."""
    pads = [extra for have, want in zip(reversed(x.shape), reversed(shape), strict=True) for extra in (0, want - have)]
    return F.pad(x, pads).contiguous()


def _eight(x: Tensor, dtype: torch.dtype) -> Tensor:
    """(n, 3, h, w) -> (n, 8, h, w), channels_last: filled up with zeros."""
    return F.pad(x.permute(0, 2, 3, 1).to(dtype), (0, 5)).permute(0, 3, 1, 2)


class _Conv(nn.Module):
    """Convolution that keeps the size."""

    weight: Tensor
    bias: Tensor

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)

    def forward(self, x: Tensor) -> Tensor:
        """(n, in, h, w) -> (n, out, h, w), both channels_last."""
        return F.conv2d(x, self.weight, self.bias, padding=self.weight.shape[-1] // 2)


def _conv(take: _Take, name: str, channels: tuple[int, int], filled: tuple[int, int], side: int = 3) -> _Conv:
    """From the checkpoint: channels in and out as they are there, and as they are filled up to."""
    weight = take(f"{name}.weight", channels[1], channels[0], side, side)
    bias = take(f"{name}.bias", channels[1])
    return _Conv(_filled(weight, filled[1], filled[0], side, side), _filled(bias, filled[1]))


class _Norm(nn.Module):
    """Layer norm over the C channels of a picture; what is filled up stays 0."""

    weight: Tensor
    bias: Tensor

    def __init__(self, take: _Take, name: str, dim: int, eps: float) -> None:
        super().__init__()
        self.dim, self.eps, self.fused = dim, eps, False
        self.register_buffer("weight", _filled(take(f"{name}.weight", dim), _round_up(dim, 64)))
        self.register_buffer("bias", _filled(take(f"{name}.bias", dim), _round_up(dim, 64)))

    def forward(self, x: Tensor) -> Tensor:
        """(n, P, h, w) -> (n, P, h, w), both channels_last."""
        tokens = x.permute(0, 2, 3, 1).contiguous()  # (n, h, w, P)
        if self.fused:
            from core import swin2sr_triton

            made = swin2sr_triton.run_norm(tokens, self.weight, self.bias, self.dim, self.eps)
        else:
            made = _layer_norm(tokens, self.weight, self.bias, self.dim, self.eps)
        return made.permute(0, 3, 1, 2)


def _layer_norm(x: Tensor, weight: Tensor, bias: Tensor, dim: int, eps: float) -> Tensor:
    """(..., P) -> (..., P), over the first `dim` channels; 0 in the others."""
    made = F.layer_norm(x[..., :dim], (dim,), weight[:dim], bias[:dim], eps)
    return F.pad(made, (0, x.shape[-1] - dim))


def _upsampler(take: _Take, config: Swin2SRConfig) -> nn.Sequential:
    """Features to those of the large picture; with "pixelshuffledirect" to RGB."""
    dim, pad, wide, name = config.embed_dim, _round_up(config.embed_dim, 64), UPSAMPLER_WIDTH, "upsample"
    if config.upsampler == "pixelshuffledirect":
        out = 3 * config.scale**2
        conv = _conv(take, f"{name}.conv", (dim, out), (pad, _round_up(out, 8)))
        return nn.Sequential(conv, _Shuffle(config.scale, 3))

    def relu(slope: float = 0.01) -> nn.Module:
        return nn.LeakyReLU(slope, inplace=True)

    def wider(part: str) -> _Conv:
        return _conv(take, f"{name}.{part}", (wide, wide), (wide, wide))

    steps: list[nn.Module] = [_conv(take, f"{name}.conv_before_upsample", (dim, wide), (pad, wide)), relu()]
    if config.upsampler == "nearest+conv":
        for conv_up in ("conv_up1", "conv_up2"):
            steps += [nn.Upsample(scale_factor=2), wider(conv_up), relu(0.2)]
        return nn.Sequential(*steps, wider("conv_hr"), relu(0.2))
    if config.upsampler == "pixelshuffle_aux":
        # Through RGB at the input's size: trained to be the input without its compression artefacts.
        steps += [_conv(take, f"{name}.conv_aux", (wide, 3), (wide, 8))]
        steps += [_conv(take, f"{name}.conv_after_aux.0", (3, wide), (8, wide)), relu()]
    for i, factor in enumerate(config.shuffles):
        convolution, out = f"{name}.upsample.convolution" + ("" if factor == 3 else f"_{i}"), wide * factor**2
        steps += [_conv(take, convolution, (wide, out), (wide, out)), _Shuffle(factor, wide)]
    return nn.Sequential(*steps)


class _Shuffle(nn.Module):
    """Pixel shuffle that takes and gives channels_last, which PyTorch's does not."""

    def __init__(self, factor: int, channels: int) -> None:
        super().__init__()
        self.factor, self.channels = factor, channels

    def forward(self, x: Tensor) -> Tensor:
        """(n, at least channels * factor**2, h, w) -> (n, channels, factor * h, factor * w)."""
        n, _, h, w = x.shape
        factor, channels = self.factor, self.channels
        y = x[:, : channels * factor**2].reshape(n, channels, factor, factor, h, w)
        y = y.permute(0, 4, 2, 5, 3, 1).reshape(n, h * factor, w * factor, channels)
        return y.permute(0, 3, 1, 2)


class _Stage(nn.Module):
    """Attention layers, then convolutions; and a way around both."""

    def __init__(self, take: _Take, name: str, config: Swin2SRConfig, number: int) -> None:
        super().__init__()
        dim, pad, narrow = config.embed_dim, _round_up(config.embed_dim, 64), config.embed_dim // 4
        thin, layers = _round_up(narrow, 8), range(config.depths[number])
        self.layers = nn.ModuleList(_Layer(take, f"{name}.layers.{i}", config, number, i) for i in layers)
        if config.resi_connection == "1conv":
            convs = [_conv(take, f"{name}.conv", (dim, dim), (pad, pad))]
        else:
            convs = [
                _conv(take, f"{name}.conv.0", (dim, narrow), (pad, thin)),
                _conv(take, f"{name}.conv.2", (narrow, narrow), (thin, thin), side=1),
                _conv(take, f"{name}.conv.4", (narrow, dim), (thin, pad)),
            ]
        # A 1x1 convolution follows the last one with nothing in between: one convolution does both.
        last, embed = convs.pop(), _conv(take, f"{name}.patch_embed.projection", (dim, dim), (pad, pad), side=1)
        matrix = embed.weight[:, :, 0, 0].double()  # (P, P)
        weight = torch.einsum("om,mihw->oihw", matrix, last.weight.double()).float()
        self.convs = nn.ModuleList([*convs, _Conv(weight, (matrix @ last.bias.double() + embed.bias).float())])

    def forward(self, x: Tensor) -> Tensor:
        """(n, P, h, w) -> (n, P, h, w), both channels_last."""
        y = x.permute(0, 2, 3, 1).contiguous()  # (n, h, w, P)
        for layer in self.layers:
            y = layer(y)
        y = y.permute(0, 3, 1, 2)
        for conv in self.convs[:-1]:
            y = F.leaky_relu(conv(y), 0.2, inplace=True)
        result: Tensor = self.convs[-1](y).add_(x)
        return result


class _Layer(nn.Module):
    """Attention in windows by cosine similarity and position, then an MLP; a norm follows each (arXiv:2111.09883)."""

    weight: Tensor
    bias: Tensor
    position: Tensor
    gain: Tensor
    project: Tensor
    expand: Tensor
    hidden_bias: Tensor
    reduce: Tensor
    vectors: Tensor

    def __init__(self, take: _Take, name: str, config: Swin2SRConfig, stage: int, number: int) -> None:
        super().__init__()
        dim, heads, attention = config.embed_dim, config.num_heads[stage], f"{name}.attention.self"
        pad, each, hidden = _round_up(dim, 64), dim // heads, _round_up(config.hidden, 64)
        self.window, self.shift, self.heads = config.window, config.shift(number), heads
        self.dim, self.eps, self.fused = dim, config.layer_norm_eps, False
        self.each = max(16, 1 << (each - 1).bit_length())  # D

        weights, biases = [], []
        for part in ("query", "key", "value"):
            weight = take(f"{attention}.{part}.weight", dim, dim).view(heads, each, dim).transpose(1, 2)  # (H, C, d)
            weights.append(_filled(weight, heads, pad, self.each))
            has_bias = config.qkv_bias and part != "key"
            bias = take(f"{attention}.{part}.bias", dim) if has_bias else torch.zeros(dim)
            biases.append(_filled(bias.view(heads, each), heads, self.each))
        self.register_buffer("weight", torch.cat(weights))  # (3 * H, P, D)
        self.register_buffer("bias", torch.cat(biases))  # (3 * H, D)

        scale = take(f"{attention}.logit_scale", heads, 1, 1).clamp(max=math.log(100)).exp()
        self.register_buffer("gain", scale.flatten())  # (H,)
        mlp = f"{attention}.continuous_position_bias_mlp"
        between, index = offsets(config.window)
        hats = F.linear(between, take(f"{mlp}.0.weight", 512, 2), take(f"{mlp}.0.bias", 512)).relu()
        by_offset = 16 * F.linear(hats, take(f"{mlp}.2.weight", heads, 512)).sigmoid()  # ((2 * window - 1)**2, H)
        position = by_offset[index].permute(2, 0, 1)  # (H, N, N)
        # Softmax ignores what a row has in common. Without it, the biases that matter are near 0, where bf16 is fine.
        self.register_buffer("position", (position - position.amax(-1, keepdim=True)).contiguous())

        output = take(f"{name}.attention.output.dense.weight", dim, dim).t().reshape(heads, each, dim)
        self.register_buffer("project", _filled(output, heads, self.each, pad).flatten(0, 1))  # (H * D, P)
        expand = take(f"{name}.intermediate.dense.weight", config.hidden, dim)
        self.register_buffer("expand", _filled(expand.t(), pad, hidden))  # (P, hidden)
        self.register_buffer("hidden_bias", _filled(take(f"{name}.intermediate.dense.bias", config.hidden), hidden))
        reduce = take(f"{name}.output.dense.weight", dim, config.hidden)
        self.register_buffer("reduce", _filled(reduce.t(), hidden, pad))  # (hidden, P)
        names = ["attention.output.dense.bias", "layernorm_before.weight", "layernorm_before.bias"]
        names += ["output.dense.bias", "layernorm_after.weight", "layernorm_after.bias"]
        vectors = torch.stack([take(f"{name}.{vector}", dim) for vector in names])
        self.register_buffer("vectors", _filled(vectors, 6, pad))

    def forward(self, x: Tensor) -> Tensor:
        """(n, h, w, P) -> (n, h, w, P), contiguous."""
        if self.fused:
            from core import swin2sr_triton

            attended = swin2sr_triton.run_attend(x, self.weight, self.bias, self.position, self.gain, self.shift)
            matrices = (self.project, self.expand, self.reduce)
            return swin2sr_triton.run_feed(x, attended, *matrices, self.vectors, self.hidden_bias, self.dim, self.eps)
        bias, scale, shift, bias_mlp, scale_mlp, shift_mlp = self.vectors
        y = self._attended(x) @ self.project + bias
        y = _layer_norm(y, scale, shift, self.dim, self.eps) + x
        hidden = F.gelu(y @ self.expand + self.hidden_bias)  # (n, h, w, hidden)
        return _layer_norm(hidden @ self.reduce + bias_mlp, scale_mlp, shift_mlp, self.dim, self.eps) + y

    def _attended(self, x: Tensor) -> Tensor:
        """(n, h, w, P) -> (n, h, w, H * D)."""
        n, h, w, pad = x.shape
        window, heads, each = self.window, self.heads, self.each
        grid = (n, h // window, window, w // window, window)
        mask = self.position  # (H, N, N)
        if self.shift:
            x = x.roll((-self.shift, -self.shift), (1, 2))
            mask = mask + _apart(h, w, window, self.shift, x).repeat(n, 1, 1, 1)  # (B, H, N, N)
        y = x.view(*grid, pad).transpose(2, 3).reshape(-1, window**2, pad)  # (B, N, P)
        matrix = self.weight.transpose(0, 1).reshape(pad, -1)  # (P, 3 * H * D)
        qkv = (y @ matrix + self.bias.flatten()).view(-1, window**2, 3, heads, each)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # (B, H, N, D) each
        q = (F.normalize(q.float(), dim=-1) * self.gain.float().view(heads, 1, 1)).to(x.dtype)
        k = F.normalize(k.float(), dim=-1).to(x.dtype)
        made = F.scaled_dot_product_attention(q, k, v, mask, scale=1.0).transpose(1, 2)  # (B, N, H, D)
        made = made.reshape(n, h // window, w // window, window, window, heads * each)
        made = made.transpose(2, 3).reshape(n, h, w, heads * each)
        return made.roll((self.shift, self.shift), (1, 2)) if self.shift else made


def _apart(h: int, w: int, window: int, shift: int, like: Tensor) -> Tensor:
    """(windows, 1, N, N): -300 between tokens that come from opposite sides of the picture, else 0."""
    below = torch.arange(h, device=like.device) >= h - shift
    right = torch.arange(w, device=like.device) >= w - shift
    side = (2 * below[:, None] + 1 * right).view(h // window, window, w // window, window)
    side = side.transpose(1, 2).reshape(-1, 1, window**2)  # (windows, 1, N)
    return (side[:, :, :, None] != side[:, :, None, :]) * torch.tensor(-300.0, dtype=like.dtype, device=like.device)
