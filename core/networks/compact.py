"""The embedded network: small, convolutional and strictly local.

Every output pixel depends on a fixed neighbourhood of the input and on nothing else (no pooling, no
statistics over the image), so tiles with a halo of `receptive_field` equal the untiled result.
The shape is that of the efficient super-resolution networks (residual 3x3 convolutions at the input
resolution, one pixel shuffle at the end: Shi et al. 2016, arXiv:1609.05158).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.networks import onednn
from core.networks.compact_config import CompactConfig

#: Pixels of what is in work at once on a CPU. Its features stay in the cache, and under the 32 MiB above which glibc
#: gives each freed tensor back to the kernel and has to be given it again, page by page.
BAND_PIXELS = 1 << 15


class Conv(nn.Conv2d):
    """A convolution that keeps the size, with what follows it: SiLU, or the addition of another tensor.

    For inference on a CPU both run inside oneDNN's convolution kernel. That saves a pass over memory, and it makes a
    pixel's bits independent of where the tensor ends: PyTorch's own SiLU computes the last few elements of a tensor,
    or of a thread's share, with another exponential than the rest (2e-7 apart, enough for tiles not to be equal).
    """

    def __init__(self, inputs: int, outputs: int, side: int = 3) -> None:
        super().__init__(inputs, outputs, side, padding=side // 2)
        self._packed: tuple[tuple[torch.dtype, int], Tensor] | None = None

    def forward(self, x: Tensor, silu: bool = False, add: Tensor | None = None) -> Tensor:
        """Convolve, add, and apply SiLU.

        Args:
            x: (n, inputs, h, w).
            silu: whether SiLU follows.
            add: (n, outputs, h, w), added before SiLU.

        Returns:
            (n, outputs, h, w).
        """
        x = super().forward(x)
        x = x if add is None else x + add
        return F.silu(x) if silu else x

    def forward_unpadded(self, x: Tensor, silu: bool = False, add: Tensor | None = None) -> Tensor:
        """Do the same on a CPU for inference, for rows that come with their context.

        Args:
            x: (1, inputs, rows + side - 1, w); padded with zeros at the left and right only.
            silu: whether SiLU follows.
            add: (1, outputs, rows, w), added before SiLU.

        Returns:
            (1, outputs, rows, w).
        """
        key = (self.weight.dtype, self.weight._version)  # the version counts changes made in place
        if self._packed is None or self._packed[0] != key:
            self._packed = key, onednn.pack_convolution(self.weight, list(x.shape))
        return onednn.convolve_rows(x, self._packed[1], self.bias, self.kernel_size[1], silu, add)


class Compact(nn.Module):
    """RGB in [0, 1] to RGB, `scale` times as large; not clipped."""

    def __init__(self, config: CompactConfig) -> None:
        super().__init__()
        self.config = config
        width, out = config.width, 3 * config.scale**2
        self.head = Conv(3, width)
        self.body = nn.ModuleList(Conv(width, width) for _ in range(2 * config.blocks))
        self.fuse = Conv(width, width)
        self.tail = Conv(width, out)
        # The picture itself takes a short way round: a 5x5 convolution that starts as bicubic interpolation.
        self.skip = Conv(3, out, side=5)

    def forward(self, x: Tensor) -> Tensor:
        """Upscale n pictures.

        Args:
            x: (n, 3, h, w) in [0, 1].

        Returns:
            (n, 3, scale * h, scale * w). Without gradients held to what the input has around each pixel, see
            `local_range`.
        """
        if x.is_cpu and not torch.is_grad_enabled() and torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
            return torch.cat([self._in_bands(picture[None]) for picture in x]) if len(x) > 1 else self._in_bands(x)
        shallow = self.head(x)  # (n, width, h, w)
        deep = shallow
        for first, second in self._blocks():
            deep = second(first(deep, silu=True), add=deep)  # (n, width, h, w)
        features = self.fuse(deep, silu=True) + shallow  # (n, width, h, w)
        made = self.tail(features, add=self.skip(x))  # (n, 3 * scale ** 2, h, w)
        if not torch.is_grad_enabled():
            made = clamp_to_local_range(made, *local_range(x))
        return F.pixel_shuffle(made, self.config.scale)

    def _blocks(self) -> list[tuple[Conv, Conv]]:
        """The convolutions of the body, two by two."""
        layers = [layer for layer in self.body if isinstance(layer, Conv)]
        return list(zip(layers[::2], layers[1::2], strict=True))

    def _in_bands(self, x: Tensor) -> Tensor:
        """`forward` of one picture on a CPU, a band of rows through all layers before the next: (1, 3, h, w).

        Each layer keeps the last rows of its input for the band that follows, so nothing is computed twice, and what
        is in work stays in the processor's cache. A pixel's bits do not depend on the bands.
        """
        height, width, scale = x.shape[2], x.shape[3], self.config.scale
        out = x.new_empty(1, 3, scale * height, scale * width)
        blocks = [(*pair, RowCache(), RowCache()) for pair in self._blocks()]
        above_fuse, above_tail = RowCache(), RowCache()
        shallow = x.new_empty(1, self.config.width, 0, width)
        # Every layer is a row behind the one before it: the first band is larger by that.
        rows = max(4, BAND_PIXELS // width)
        starts = [0, *range(rows + self.config.receptive_field, height, rows)]
        done = 0
        low, high = local_range(x)
        for top, bottom in zip(starts, [*starts[1:], height], strict=True):
            last = bottom == height
            band = self.head.forward_unpadded(_window(x, top - 1, bottom + 1))  # (1, width, rows, w)
            shallow = stack_rows(shallow, band)
            for first, second, above_first, above_second in blocks:
                deep = above_first.join(band, last)
                inner = above_second.join(first.forward_unpadded(deep, silu=True), last)
                lead = 1 if top == 0 else 0  # the padding above
                band = second.forward_unpadded(inner, add=deep[:, :, lead : lead + inner.shape[2] - 2])
            band = self.fuse.forward_unpadded(above_fuse.join(band, last), silu=True)
            band.add_(shallow[:, :, : band.shape[2]])
            shallow = shallow[:, :, band.shape[2] :]
            band = above_tail.join(band, last)
            end = done + band.shape[2] - 2
            band = self.tail.forward_unpadded(band, add=self.skip.forward_unpadded(_window(x, done - 2, end + 2)))
            band = clamp_to_local_range(band, low[:, :, done:end], high[:, :, done:end])
            out[:, :, scale * done : scale * end] = F.pixel_shuffle(band, scale)
            done = end
        return out


class RowCache:
    """The last two rows of a layer's input: a 3x3 convolution of the band below needs them."""

    def __init__(self) -> None:
        self.rows: Tensor | None = None

    def join(self, band: Tensor, last: bool) -> Tensor:
        """Put a band below the rows kept, and keep its last two.

        Args:
            band: (1, channels, rows, w).
            last: whether the picture ends with this band.

        Returns:
            (1, channels, rows + 2, w); at the picture's own edges a row of zeros takes the place of a neighbour.
        """
        parts = [band] if self.rows is None else [self.rows, band]
        joined = stack_rows(*parts, above=self.rows is None, below=last)
        self.rows = joined[:, :, -2:].clone()  # a view would keep the whole band in memory
        return joined


def local_range(x: Tensor) -> tuple[Tensor, Tensor]:
    """Find what results may lie between: the range of the 5x5 pixels around each, widened by its own width.

    Photos hold few strong flat colours, and a network that has not seen one may make another of it. Where the input is
    flat the result is, and sharpening keeps the room that it needs.

    Args:
        x: (n, 3, h, w).

    Returns:
        The lowest and the highest value, (n, 3, h, w) each.
    """
    high = F.max_pool2d(x, 5, 1, 2)
    low = -F.max_pool2d(-x, 5, 1, 2)
    room = (high - low) + 0.5 / 255
    return low - room, high + room


def clamp_to_local_range(made: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Hold what the last layer made within the range of the input around it.

    Args:
        made: (n, 3 * scale ** 2, h, w), before the pixel shuffle.
        low: (n, 3, h, w), from `local_range`.
        high: (n, 3, h, w), from `local_range`.

    Returns:
        The same shape as `made`. NaN stays, and infinity becomes NaN: clamping would hide that it was there.
    """
    made = made + (made - made)
    count = made.shape[1] // 3
    return made.clamp(low.repeat_interleave(count, 1), high.repeat_interleave(count, 1))


def _window(x: Tensor, top: int, bottom: int) -> Tensor:
    """Rows [top, bottom) of a picture; those that it does not have are black, as in a padded convolution."""
    height = x.shape[2]
    inside = x[:, :, max(0, top) : min(height, bottom)]
    above, below = max(0, -top), max(0, bottom - height)
    return stack_rows(inside, above=above, below=below)


def stack_rows(*parts: Tensor, above: int = 0, below: int = 0) -> Tensor:
    """Join bands one below the other.

    Args:
        parts: (1, channels, rows, w) each.
        above: rows of zeros before the first.
        below: rows of zeros after the last.

    Returns:
        (1, channels, all rows, w), channels_last.
    """
    _, channels, _, width = parts[0].shape
    rows = above + sum(part.shape[2] for part in parts) + below
    # A view of what is channels_last for certain: of a single row the strides do not tell.
    out = parts[0].new_empty(1, rows, width, channels).permute(0, 3, 1, 2)
    out[:, :, :above] = 0
    out[:, :, rows - below :] = 0
    for part in parts:
        out[:, :, above : above + part.shape[2]] = part
        above += part.shape[2]
    return out
