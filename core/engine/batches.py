"""A network on a CUDA card: several tiles at once, and the processor and the copies back beside the computing.

While the card computes one batch, the result of the one before is on its way back and the caller works on it. What goes
wrong in a batch is not solved here: its tiles come back as None, and the caller does each alone.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from core.picture import Pixels
from core.pixels.bands import Samples

#: (n, 3, h, w) fp32 in [0, 1], channels_last, to (n, 3, scale * h, scale * w), not clipped.
Forward = Callable[[Tensor], Tensor]

#: Input pixels at once, halo included, that are taken to keep a card busy.
BATCH_PIXELS = 1 << 18
#: Memory that an output pixel takes while it is made, in bytes, with something to spare.
_BYTES = 4_000


def full_precision() -> None:
    """Multiply fp32 numbers as they are. By default cuDNN rounds them to TF32, which has 10 bits of mantissa."""
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False


def give_back() -> None:
    """Return what PyTorch keeps of a card's memory, after something did not fit."""
    torch.cuda.empty_cache()


def batch_size(height: int, width: int, scale: int, device: torch.device) -> int:
    """Choose how many regions to compute at once: enough to be fast, few enough to fit.

    Args:
        height: of a region, input pixels.
        width: of a region, input pixels.
        scale: of the result.
        device: where; on a card its free memory counts.

    Returns:
        The number of regions, at least 1.
    """
    wanted = max(1, BATCH_PIXELS // (height * width))
    if device.type != "cuda":
        return wanted
    free = torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return max(1, min(wanted, free // (height * width * scale**2 * _BYTES)))


@dataclass
class _Batch:
    """What is being made.

    Attributes:
        values: (n, scale * h, scale * w, 3) as `run` gives them, in the processor's memory; complete once `done`.
        finite: (n,) whether all values of one were, before they were clipped; complete once `done`.
        done: on a card.
        held: what the card may still read until then. Memory that is let go of may be given to other work.
    """

    values: Tensor
    finite: Tensor
    done: torch.cuda.Event | None = None
    held: tuple[Tensor, ...] = ()


def run(
    forward: Forward,
    regions: Iterable[Pixels],
    batch: int,
    device: torch.device,
    is_out_of_memory: Callable[[BaseException], bool],
    *,
    rounded: bool = False,
) -> Iterator[Samples | None]:
    """Regions through a network, in order, up to `batch` at once.

    Args:
        forward: the network.
        regions: (h, w, 1 or 3) uint8 or uint16 each, all of one shape and type.
        batch: regions at once; halved when they do not fit.
        device: where to compute. On a CPU the steps are the same, one after the other.
        is_out_of_memory: whether a smaller batch may cure an error; others are raised.
        rounded: give what the regions have, uint8 or uint16: an H200 made 56 MP/s to floats, and 23 when the
            processor had to round them.

    Yields:
        For each region (scale * h, scale * w, 3) float32 in [0, 1] unless rounded; or None when it was not finite or
        did not fit, or when one before it did not fit alone.
    """
    back = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
    source = iter(regions)
    again: list[Pixels] = []  # of a batch that did not fit
    under_way: deque[_Batch] = deque()
    try:
        while group := list(itertools.islice(itertools.chain(again, source), max(batch, 1))):
            again = again[len(group) :]
            if not batch:
                yield None
                continue
            made: _Batch | None = None
            try:
                made = _start(forward, group, device, back, rounded)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
            if made is not None:
                under_way.append(made)
            # One batch stays under way while the caller is busy with the one before.
            while len(under_way) > (1 if made is not None else 0):
                yield from _finish(under_way.popleft())
            if made is None:  # outside of the handler, so that the traceback no longer holds the tensors
                if back is not None:
                    torch.cuda.synchronize(device)
                    torch.cuda.empty_cache()
                batch = len(group) // 2
                again = group + again if batch else again
                if not batch:
                    yield None
        while under_way:
            yield from _finish(under_way.popleft())
    finally:
        if back is not None:  # the caller may have stopped early: nothing is let go of before the card is done with it
            torch.cuda.synchronize(device)


def _start(
    forward: Forward, group: list[Pixels], device: torch.device, back: torch.cuda.Stream | None, rounded: bool
) -> _Batch:
    """Everything of a batch on its way; on a card nothing is waited for."""
    top = float(np.iinfo(group[0].dtype).max)
    deep = group[0].dtype == np.uint16
    # Few operators take unsigned 16-bit integers: they travel as signed ones.
    shape, kind = (len(group), *group[0].shape), torch.int16 if deep else torch.uint8
    host = torch.empty(shape, dtype=kind, pin_memory=back is not None)
    np.stack(group, out=host.numpy().view(group[0].dtype))
    with torch.inference_mode():
        if back is None:
            return _Batch(*_compute(forward, host, top, rounded))
        x = host.to(device, non_blocking=True)
        values, finite = _compute(forward, x, top, rounded)
        # The result is 16 times as large as the input, so only its copy has a separate stream.
        back.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(back):
            copies = _to_host(values), _to_host(finite)
            return _Batch(*copies, back.record_event(), (host, x, values, finite))


def _compute(forward: Forward, x: Tensor, top: float, rounded: bool) -> tuple[Tensor, Tensor]:
    """(n, h, w, 1 or 3) integers -> (n, scale * h, scale * w, 3) fp32 in [0, 1], and (n,) whether all was finite.

    When rounded, the first is of the type of x.
    """
    kind = x.dtype
    x = (x.int() & 0xFFFF if x.dtype == torch.int16 else x).float() / top
    y = forward(x.expand(-1, -1, -1, 3).contiguous().permute(0, 3, 1, 2)).float()  # (n, 3, scale * h, scale * w)
    finite = y.isfinite().flatten(1).all(1)
    y = y.clamp(0, 1).permute(0, 2, 3, 1)
    if rounded:  # half to even, as NumPy does; NaN, of which any integer is made, is never used
        y = (y.nan_to_num() * top).round().int().to(kind)
    return y.contiguous(), finite


def _to_host(x: Tensor) -> Tensor:
    return torch.empty(x.shape, dtype=x.dtype, pin_memory=True).copy_(x, non_blocking=True)


def _finish(batch: _Batch) -> Iterator[Samples | None]:
    """Wait for a batch, and give each of its regions."""
    if batch.done is not None:
        batch.done.synchronize()
    values = batch.values.numpy()
    if values.dtype == np.int16:
        values = values.view(np.uint16)
    for one, finite in zip(values, batch.finite.tolist(), strict=True):
        yield one if finite else None
