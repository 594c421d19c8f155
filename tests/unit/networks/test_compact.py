"""What the embedded networks say of themselves against measurements."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from core import models
from core.engine.pytorch import build

EMBEDDED = sorted(name for name, spec in models.MODELS.items() if spec.kind == "compact")


@pytest.mark.parametrize("name", EMBEDDED)
def test_the_declared_receptive_field_by_gradient_support(name: str) -> None:
    """What a pixel's gradient reaches is exactly what is declared: not a pixel more, and not less."""
    spec = models.MODELS[name]
    torch.manual_seed(0)
    net = build(spec, models.fetch(spec)).double()
    field = spec.receptive_field
    side = 2 * field + 9
    x = torch.rand(1, 3, side, side, dtype=torch.float64, requires_grad=True)
    centre = side // 2
    net(x)[..., centre * spec.scale : (centre + 1) * spec.scale, centre * spec.scale].sum().backward()
    assert x.grad is not None
    touched = (x.grad[0].abs().sum(0) > 0).nonzero()
    assert touched.min().item() == centre - field
    assert touched.max().item() == centre + field


def test_operations_are_those_counted() -> None:
    """What the configuration says is what PyTorch counts."""
    spec = models.MODELS["compact-x2"]
    net = build(spec, models.fetch(spec))
    with FlopCounterMode(display=False) as counter:
        net(torch.zeros(1, 3, 32, 32))
    assert counter.get_total_flops() / 32**2 == pytest.approx(spec.operations, rel=0.01)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_flat_colours_stay_on_a_card(dtype: torch.dtype) -> None:
    """What a card computes, on the CPU: what is added and clamped at the end is fp32."""
    spec = models.MODELS["compact-x2"]
    net = build(spec, models.fetch(spec)).to(dtype)
    for colour in ((255, 0, 0), (0, 255, 255), (20, 200, 31), (128, 129, 130)):
        x = torch.tensor(colour).view(1, 3, 1, 1).expand(1, 3, 12, 14) / 255
        with torch.inference_mode():
            made = net(x.to(memory_format=torch.channels_last))
        assert made.dtype == torch.float32
        assert float((255 * made - 255 * x[..., :1, :1]).abs().max()) <= 0.4901
