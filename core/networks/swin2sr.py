"""Swin2SR for inference, from Hugging Face checkpoints and without transformers (Conde et al. 2022, arXiv:2209.11345).

The result is that of transformers' `Swin2SRForImageSuperResolution`; the way there is shorter:

- What depends on the weights alone is computed once, on loading: position biases, logit scales, query, key and
  value as one matrix, and the 1x1 convolution that follows each stage's last 3x3 folded into it.
- Tokens stay in window order through the attention layers. One gather takes them from one layer's windows to the
  next one's, where the reference rolls, partitions, reverses and rolls back the whole picture.
- Windows go through a whole layer in chunks that fit the processor's cache. All chunks have the same shape (the
  last is filled up), so a window's result has the same bits whatever the picture around it: tiles equal the whole.
- Where OpenVINO is installed, it computes the attention layers of a chunk (`core.networks.swin2sr_openvino`).

Shapes below: n pictures of h x w pixels, one token a pixel; C channels, H heads of D = C / H channels, N tokens in
a window, B windows in a chunk, T = B * N. Where windows lie and in which order is in `core.networks.swin2sr_windows`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from core.errors import ModelError
from core.networks import onednn
from core.networks.swin2sr_config import UPSAMPLER_WIDTH, Swin2SRConfig
from core.networks.swin2sr_openvino import LayerGraph, mask_of
from core.networks.swin2sr_windows import Runs, Tables, offsets, shift_masks, window_tables
from core.networks.threads import for_each

#: The training pictures' mean colour, for which the format has no key.
_MEAN = (0.4488, 0.4371, 0.4040)

#: Tokens in a chunk, at most: 32 windows of 8x8. The scores of one head take 512 KB then.
_CHUNK = 2048

#: A graph in OpenVINO, and a layer's weights for it.
_Compiled = tuple[LayerGraph, list[Any]]

#: take(name, *shape): the tensor of that name in the checkpoint, in fp32.
_Take = Callable[..., Tensor]


class Swin2SR(nn.Module):
    """RGB in [0, 1] to RGB, `scale` times as large; not clipped.

    Without weights until `load`. After that, `to(torch.bfloat16)` and `to("cuda")` work as usual.
    """

    def __init__(self, config: Swin2SRConfig) -> None:
        super().__init__()
        self.config = config

    @torch.no_grad()
    def load(self, state: dict[str, Tensor]) -> None:
        """Take the weights, and compute what depends on them alone.

        Args:
            state: tensors under transformers' names.

        Raises:
            ModelError: a tensor is missing, left over, or not of the shape that the configuration says.
        """
        rest = dict(state)

        def take(name: str, *shape: int) -> Tensor:
            tensor = rest.pop(name, None)
            if tensor is None:
                raise ModelError(f"the checkpoint has no {name}")
            if tensor.shape != shape:
                raise ModelError(f"the checkpoint's {name} is {tuple(tensor.shape)}, config.json says {shape}")
            return tensor.detach().to("cpu", torch.float32)

        config, dim = self.config, self.config.embed_dim
        self.first = _conv(take, "swin2sr.first_convolution", 3, dim)
        self.embed = _conv(take, "swin2sr.embeddings.patch_embeddings.projection", dim, dim, side=1)
        self.norm_embed = _norm(take, "swin2sr.embeddings.patch_embeddings.layernorm", dim, 1e-5)
        stages = range(len(config.depths))
        self.stages = nn.ModuleList(_Stage(take, f"swin2sr.encoder.stages.{i}", config, i) for i in stages)
        self.norm = _norm(take, "swin2sr.layernorm", dim, config.layer_norm_eps)
        self.after_body = _conv(take, "swin2sr.conv_after_body", dim, dim)
        self.upsample, self.last = _upsampler(take, config)
        aux = config.upsampler == "pixelshuffle_aux"
        self.bicubic = _conv(take, "upsample.conv_bicubic", 3, UPSAMPLER_WIDTH) if aux else None
        if rest:
            raise ModelError(f"the checkpoint has {min(rest)}, which config.json does not say")

    def use_openvino(self, dtype: str, threads: int) -> None:
        """Have attention layers computed by OpenVINO from now on, on the processor.

        Args:
            dtype: what products are computed in, "float32" or "bfloat16".
            threads: how many chunks of windows at once.
        """
        graphs: dict[int, LayerGraph] = {}  # by heads
        config = self.config
        for layer in (module for module in self.modules() if isinstance(module, _Layer)):
            shape = (_chunk(config), config.window**2, config.embed_dim, layer.heads, config.hidden)
            if layer.heads not in graphs:
                graphs[layer.heads] = LayerGraph(shape, config.layer_norm_eps, dtype, threads)
            layer.compiled = graphs[layer.heads], graphs[layer.heads].weights(layer.arrays())

    def forward(self, x: Tensor) -> Tensor:
        """Upscale n pictures.

        Args:
            x: (n, 3, h, w) in [0, 1].

        Returns:
            (n, 3, scale * h, scale * w), in fp32 whatever the type of the weights.

        Raises:
            ValueError: h or w is not a multiple of the window.
        """
        n, _, h, w = x.shape
        config, window = self.config, self.config.window
        if h % window or w % window or not n * h * w:
            raise ValueError(f"both sides must be multiples of {window}, not {h} and {w}")
        # On a GPU, chunks would only be more launches.
        tables = window_tables(n, h, w, window, _chunk(config) if x.is_cpu else n * h * w // window**2, x.device)
        x = x.float()
        mean = _mean(x.device)  # (1, 3, 1, 1)
        y = ((x - mean) * config.img_range).to(self.first.weight.dtype)
        shallow = self.first(y.contiguous(memory_format=torch.channels_last))  # (n, C, h, w)
        y = _picture(self.norm_embed(_tokens(self.embed(shallow))), shallow)
        for stage in self.stages:
            y = stage(y, tables)  # (n, C, h, w)
        y = self.after_body(_picture(self.norm(_tokens(y)), shallow)) + shallow
        y = self.upsample(y)
        if self.bicubic is not None:
            size = (config.scale * h, config.scale * w)
            large = F.interpolate(x, size, mode="bicubic", align_corners=False)
            y = y + self.bicubic(large.to(y.dtype))  # (n, UPSAMPLER_WIDTH, scale * h, scale * w)
        # bf16 is too coarse for the sum of detail and mean, so that is fp32.
        result: Tensor = self.last(y).float() / config.img_range + mean
        return result


@lru_cache(maxsize=4)  # a new one for each tile would make a card wait for the processor
@torch.inference_mode(False)  # else one kept from a call in inference mode would fail one that wants gradients
def _mean(device: torch.device) -> Tensor:
    return torch.tensor(_MEAN, device=device).view(1, 3, 1, 1)


def _upsampler(take: _Take, config: Swin2SRConfig) -> tuple[nn.Sequential, nn.Sequential]:
    """Features to those of the large picture, and those to RGB; "pixelshuffle_aux" adds something in between."""
    dim, wide, name = config.embed_dim, UPSAMPLER_WIDTH, "upsample"
    if config.upsampler == "pixelshuffledirect":
        conv = _conv(take, f"{name}.conv", dim, 3 * config.scale**2)
        return nn.Sequential(conv, nn.PixelShuffle(config.scale)), nn.Sequential()

    def relu(slope: float = 0.01) -> nn.Module:
        return nn.LeakyReLU(slope, inplace=True)

    steps: list[nn.Module] = [_conv(take, f"{name}.conv_before_upsample", dim, wide), relu()]
    if config.upsampler == "nearest+conv":
        for conv_up in ("conv_up1", "conv_up2"):
            steps += [nn.Upsample(scale_factor=2), _conv(take, f"{name}.{conv_up}", wide, wide), relu(0.2)]
        steps += [_conv(take, f"{name}.conv_hr", wide, wide), relu(0.2)]
    if config.upsampler == "pixelshuffle_aux":
        # Through RGB at the input's size: trained to be the input without its compression artefacts.
        steps += [_conv(take, f"{name}.conv_aux", wide, 3), _conv(take, f"{name}.conv_after_aux.0", 3, wide), relu()]
    if config.upsampler in ("pixelshuffle", "pixelshuffle_aux"):
        for i, factor in enumerate(config.shuffles):
            convolution = f"{name}.upsample.convolution" + ("" if factor == 3 else f"_{i}")
            steps += [_conv(take, convolution, wide, wide * factor**2), nn.PixelShuffle(factor)]
    return nn.Sequential(*steps), nn.Sequential(_conv(take, f"{name}.final_convolution", wide, 3))


class _Stage(nn.Module):
    """Attention layers, then convolutions; and a way around both."""

    def __init__(self, take: _Take, name: str, config: Swin2SRConfig, number: int) -> None:
        super().__init__()
        dim, narrow = config.embed_dim, config.embed_dim // 4
        layers = range(config.depths[number])
        heads = config.num_heads[number]
        self.layers = nn.ModuleList(_Layer(take, f"{name}.layers.{i}", config, heads, config.shift(i)) for i in layers)
        if config.resi_connection == "1conv":
            convs = [_conv(take, f"{name}.conv", dim, dim)]
        else:
            squeeze, expand = _conv(take, f"{name}.conv.0", dim, narrow), _conv(take, f"{name}.conv.4", narrow, dim)
            convs = [squeeze, _conv(take, f"{name}.conv.2", narrow, narrow, side=1), expand]
        # A 1x1 convolution follows the last one with nothing in between: one convolution does both.
        last, embed = convs.pop(), _conv(take, f"{name}.patch_embed.projection", dim, dim, side=1)
        matrix = embed.weight[:, :, 0, 0].double()  # (C, C)
        weight = torch.einsum("om,mihw->oihw", matrix, last.weight.double())
        self.convs = nn.ModuleList([*convs, _Conv(weight.float(), (matrix @ last.bias.double() + embed.bias).float())])

    def forward(self, x: Tensor, tables: Tables) -> Tensor:
        """(n, C, h, w) -> (n, C, h, w), both channels_last."""
        y = _tokens(x)  # (n * h * w, C)
        for i, layer in enumerate(self.layers):
            table, chunks = tables.into_layer(i)
            y = _in_chunks(layer, y, table, chunks)
        y = _picture(y.index_select(0, tables.out_of_layer(i)).to(x.dtype), x)  # (n, C, h, w)
        for conv in self.convs[:-1]:
            y = F.leaky_relu(conv(y), 0.2, inplace=True)
        return self.convs[-1](y) + x  # type: ignore[no-any-return]


def _in_chunks(layer: nn.Module, x: Tensor, table: Tensor, chunks: list[Runs]) -> Tensor:
    """An attention layer's result for the tokens that the table takes from x."""
    places = table.chunk(len(chunks))
    if isinstance(layer, _Layer) and layer.compiled is not None:
        return _in_openvino(layer, layer.compiled, x, places, chunks)
    if not x.is_cpu or (torch.is_grad_enabled() and x.requires_grad):
        done = [layer(x.index_select(0, place), runs) for place, runs in zip(places, chunks, strict=True)]
        return done[0] if len(done) == 1 else torch.cat(done)
    result = x.new_empty(len(table), x.shape[1])
    parts = result.chunk(len(chunks))

    def work(number: int) -> None:
        parts[number].copy_(layer(x.index_select(0, places[number]), chunks[number]))

    for_each(work, len(chunks))
    return result


def _in_openvino(layer: _Layer, compiled: _Compiled, x: Tensor, places: Sequence[Tensor], chunks: list[Runs]) -> Tensor:
    """`_in_chunks` in fp32, whatever the type of x, by a layer's graph."""
    graph, weights = compiled
    x = x.float()
    result = x.new_empty(sum(map(len, places)), x.shape[1])
    parts = result.chunk(len(chunks))

    def work(number: int) -> None:
        mask = mask_of(layer.window, layer.shift, chunks[number])
        graph.run(weights, x.index_select(0, places[number]), mask, parts[number])

    for_each(work, len(chunks))
    return result


class _Layer(nn.Module):
    """Attention in windows by cosine similarity and position, then an MLP; a norm follows each (arXiv:2111.09883)."""

    gain: Tensor
    bias: Tensor
    factor: Tensor

    def __init__(self, take: _Take, name: str, config: Swin2SRConfig, heads: int, shift: int) -> None:
        super().__init__()
        dim, hidden, attention = config.embed_dim, config.hidden, f"{name}.attention.self"
        self.heads, self.tokens = heads, config.window**2
        self.window, self.shift = config.window, shift
        self.compiled: _Compiled | None = None
        parts = [take(f"{attention}.{part}.weight", dim, dim) for part in ("query", "key", "value")]
        bias = torch.zeros(3, dim)  # key has none
        if config.qkv_bias:
            bias[0], bias[2] = take(f"{attention}.query.bias", dim), take(f"{attention}.value.bias", dim)
        # Each head's value has one column more, which is 1: weighted and added up as the others are, it is the sum
        # of the weights, by which softmax divides.
        value = F.pad(parts[2].view(heads, -1, dim), (0, 0, 0, 1)).flatten(0, 1)  # (C + H, C)
        ones = F.pad(bias[2].view(heads, -1), (0, 1), value=1.0).flatten()  # (C + H,)
        self.qkv = _Linear(torch.cat([*parts[:2], value]), torch.cat([bias[0], bias[1], ones]))
        self.project = _linear(take, f"{name}.attention.output.dense", dim, dim)
        self.norm_attention = _norm(take, f"{name}.layernorm_before", dim, config.layer_norm_eps)
        self.expand = _linear(take, f"{name}.intermediate.dense", dim, hidden, gelu=True)
        self.reduce = _linear(take, f"{name}.output.dense", hidden, dim)
        self.norm_mlp = _norm(take, f"{name}.layernorm_after", dim, config.layer_norm_eps)

        scale = take(f"{attention}.logit_scale", heads, 1, 1).clamp(max=math.log(100)).exp()
        self.register_buffer("gain", torch.cat([scale.view(heads, 1), torch.ones(heads, 1)]))  # (2H, 1)
        mlp = f"{attention}.continuous_position_bias_mlp"
        between, index = offsets(config.window)
        hats = F.linear(between, take(f"{mlp}.0.weight", 512, 2), take(f"{mlp}.0.bias", 512)).relu()
        by_offset = 16 * F.linear(hats, take(f"{mlp}.2.weight", heads, 512)).sigmoid()  # ((2 * window - 1)**2, H)
        position = by_offset[index].permute(2, 0, 1)  # (H, N, N)
        # Softmax ignores what a row has in common. Without it, the biases that matter are near 0, where bf16 is fine.
        position = position - position.amax(-1, keepdim=True)
        # Three dimensions: a network that is made channels_last must not rearrange it.
        bias = (position + shift_masks(config.window, shift)).flatten(0, 1)  # (kinds * H, N, N)
        self.register_buffer("bias", bias)
        # No logit is beyond the scale: up to here its exponential needs no maximum taken off, nor does it underflow.
        self.moderate = float(scale.max()) <= 60
        self.register_buffer("factor", bias.exp())  # (kinds * H, N, N)

    def forward(self, x: Tensor, runs: Runs) -> Tensor:
        """(T, C) -> (T, C)."""
        qkv = self.qkv(x)  # (T, 3C + H)
        fast = x.is_cpu and x.dtype == torch.float32 and not (torch.is_grad_enabled() and x.requires_grad)
        room = -(x.shape[1] // self.heads) % 8 if x.is_cuda else 0  # else in fp32, all scores in memory: pytorch#110630
        y = self._attend_by_head(qkv, runs) if fast else self._attend(qkv, runs, room)  # (T, C)
        x = self.norm_attention(self.project(y)).add_(x)
        result: Tensor = self.norm_mlp(self.reduce(self.expand(x))).add_(x)
        return result

    def arrays(self) -> list[NDArray[np.float32]]:
        """The weights in the order of `core.networks.swin2sr_openvino`'s graph."""
        heads, dim = self.heads, self.project.weight.shape[0]
        query, key, value = self.qkv.weight.split_with_sizes([dim, dim, dim + heads])
        query_bias, _, value_bias = self.qkv.bias.split_with_sizes([dim, dim, dim + heads])
        value = value.view(heads, -1, dim)[:, :-1].flatten(0, 1)  # (C, C), without the columns of ones
        value_bias = value_bias.view(heads, -1)[:, :-1].flatten()
        tensors = [query.T, query_bias[None], key.T, value.T, value_bias[None]]
        tensors += [self.gain[:heads].view(1, heads, 1, 1), self.bias[None, :heads]]
        for linear, norm in ((self.project, self.norm_attention), (self.expand, None), (self.reduce, self.norm_mlp)):
            tensors += [linear.weight.T, linear.bias[None]]
            tensors += [norm.weight[None], norm.bias[None]] if norm else []
        return [tensor.float().numpy() for tensor in tensors]

    def _factors(self, qk: Tensor) -> Tensor:
        """(T, 2H, D) -> (T, 2H, 1), fp32: what makes keys as long as 1, queries as the logit scale."""
        lengths = torch.linalg.vector_norm(qk, dim=-1, keepdim=True, dtype=torch.float32)
        factors: Tensor = self.gain / lengths.clamp_min(1e-12)
        return factors

    def _attend(self, qkv: Tensor, runs: Runs, room: int = 0) -> Tensor:
        """(T, 3C + H) -> (T, C), by the attention that PyTorch has, with so many zeros more in each head."""
        heads, width = self.heads, qkv.shape[1] // (3 * self.heads)  # H, D
        qk = qkv[:, : 2 * heads * width].view(-1, 2 * heads, width)  # (T, 2H, D)
        wide = qkv.new_zeros(len(qkv), 3 * heads, width + room)
        wide[:, : 2 * heads, :width] = qk * self._factors(qk)
        wide[:, 2 * heads :, :width] = qkv[:, 2 * heads * width :].view(-1, heads, width + 1)[..., :width]
        q, k, v = wide.view(-1, self.tokens, 3, heads, width + room).permute(2, 0, 3, 1, 4)  # (B, H, N, D + room) each
        parts, start = [], 0
        for count, kind in runs:
            run, bias = slice(start, start + count), self.bias[None, kind * heads : (kind + 1) * heads]  # (1, H, N, N)
            y = F.scaled_dot_product_attention(q[run], k[run], v[run], attn_mask=bias, scale=1.0)
            parts.append(y.transpose(1, 2)[..., :width])  # (count, N, H, D)
            start += count
        return (parts[0] if len(parts) == 1 else torch.cat(parts)).reshape(len(qkv), -1)

    def _attend_by_head(self, qkv: Tensor, runs: Runs) -> Tensor:
        """The same on a CPU in fp32, and faster: PyTorch's takes small blocks of each window, and copies q, k and v.

        Head by head, the scores of all windows of the chunk stay in the cache, and q, k and v stay where they are.
        """
        heads = self.heads
        width = qkv.shape[1] // (3 * heads)  # D
        qk = qkv[:, : 2 * heads * width].view(-1, 2 * heads, width)  # (T, 2H, D)
        qk.mul_(self._factors(qk))
        qkv = qkv.view(-1, self.tokens, qkv.shape[1])  # (B, N, 3C + H)
        # Slices are made in few calls: each call is a chance for two threads to wait for each other.
        widths = [width] * (2 * heads) + [width + 1] * heads
        columns, rows = qkv.split_with_sizes(widths, 2), qkv.mT.split_with_sizes(widths, 1)
        y = qkv.new_empty(len(qkv), self.tokens, heads * width)
        scores = qkv.new_empty(len(qkv), self.tokens, self.tokens)
        parts = scores.split_with_sizes([count for count, _ in runs])
        values = qkv.new_empty(len(qkv), self.tokens, width + 1)
        sums, total = values.split_with_sizes([width, 1], 2)
        biases = (self.factor if self.moderate else self.bias).unbind()
        for head, result in enumerate(y.split_with_sizes([width] * heads, 2)):
            torch.bmm(columns[head], rows[heads + head], out=scores)
            if self.moderate:
                scores.exp_()
            for part, (_, kind) in zip(parts, runs, strict=True):
                bias = biases[kind * heads + head]  # (N, N)
                if self.moderate:
                    part.mul_(bias)
                else:
                    part.add_(bias)
            weights = scores if self.moderate else scores.softmax(-1)
            torch.bmm(weights, columns[2 * heads + head], out=values)
            torch.div(sums, total, out=result)
        return y.flatten(0, 1)


class _Weights(nn.Module):
    """A weight and a bias, as buffers: nothing here is trained."""

    weight: Tensor
    bias: Tensor

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)


class _Conv(_Weights):
    """Convolution that keeps the size."""

    def forward(self, x: Tensor) -> Tensor:
        """(n, in, h, w) -> (n, out, h, w)."""
        if onednn.supports(x):
            return onednn.convolve(x, self.weight, self.bias)
        return F.conv2d(x, self.weight, self.bias, padding=self.weight.shape[-1] // 2)


class _Norm(_Weights):
    """Layer norm over the channels."""

    def __init__(self, weight: Tensor, bias: Tensor, eps: float) -> None:
        super().__init__(weight, bias)
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """(tokens, C) -> (tokens, C)."""
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)


class _Linear(_Weights):
    """Matrix product, and GELU if asked for.

    PyTorch gives fp32 products to MKL, which is slow on processors that are not Intel's, and rearranges bf16
    weights in every call. oneDNN with the weight packed once does neither, and applies GELU on the way.
    """

    def __init__(self, weight: Tensor, bias: Tensor, gelu: bool = False) -> None:
        super().__init__(weight, bias)
        self.gelu = gelu
        self.packed: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """(T, in) -> (T, out)."""
        if onednn.supports(x) and not (torch.is_grad_enabled() and x.requires_grad):
            if self.packed is None or self.packed.dtype != x.dtype:
                self.packed = onednn.pack_linear(self.weight, x.shape[0])
            return onednn.linear(x, self.packed, self.bias, self.gelu)
        out = F.linear(x, self.weight, self.bias)
        return F.gelu(out) if self.gelu else out

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "packed": None}  # oneDNN's layout can be neither copied nor pickled


def _conv(take: _Take, name: str, inputs: int, outputs: int, side: int = 3) -> _Conv:
    return _Conv(take(f"{name}.weight", outputs, inputs, side, side), take(f"{name}.bias", outputs))


def _norm(take: _Take, name: str, dim: int, eps: float) -> _Norm:
    return _Norm(take(f"{name}.weight", dim), take(f"{name}.bias", dim), eps)


def _linear(take: _Take, name: str, inputs: int, outputs: int, gelu: bool = False) -> _Linear:
    return _Linear(take(f"{name}.weight", outputs, inputs), take(f"{name}.bias", outputs), gelu)


def _tokens(x: Tensor) -> Tensor:
    """(n, C, h, w) -> (n * h * w, C); no copy where x is channels_last."""
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])


def _picture(tokens: Tensor, like: Tensor) -> Tensor:
    """(n * h * w, C) -> (n, C, h, w), channels_last, with n, h and w from `like`."""
    n, _, h, w = like.shape
    return tokens.view(n, h, w, -1).permute(0, 3, 1, 2)


def _chunk(config: Swin2SRConfig) -> int:
    """Windows in a chunk on a CPU: a power of two, since the windows of a tile often divide by one."""
    return 1 << int(math.log2(max(1, _CHUNK // config.window**2)))
