"""How weights move: Muon for the matrices of hidden convolutions, Adam for everything else."""

from __future__ import annotations

import torch
from torch import Tensor


def orthogonalised(gradients: Tensor) -> Tensor:
    """The nearest semi-orthogonal matrices to (n, rows, columns), by five Newton-Schulz steps (Jordan et al. 2024)."""
    x: Tensor = gradients / (gradients.norm(dim=(1, 2), keepdim=True) + 1e-7)
    tall = x.shape[1] > x.shape[2]
    x = x.mT if tall else x
    for _ in range(5):
        gram = x @ x.mT
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x.mT if tall else x


class Muon:
    """Momentum whose steps are orthogonalised, for convolutions seen as (out, in * side * side) matrices."""

    def __init__(self, weights: list[Tensor]) -> None:
        shapes = sorted({tuple(weight.shape) for weight in weights})
        self.groups = [[weight for weight in weights if tuple(weight.shape) == shape] for shape in shapes]
        self.state = [torch.zeros_like(torch.stack(group).flatten(2)) for group in self.groups]

    def step(self, rate: Tensor) -> None:
        """One step with Nesterov momentum 0.95."""
        for group, momentum in zip(self.groups, self.state, strict=True):
            gradient = torch.stack([weight.grad.flatten(1) for weight in group if weight.grad is not None])
            momentum.lerp_(gradient, 0.05)
            steps = orthogonalised(gradient.lerp(momentum, 0.95)) * rate
            for weight, step in zip(group, steps, strict=True):
                weight.sub_(step.view_as(weight))


class Adam:
    """Adam (Kingma and Ba 2015, arXiv:1412.6980) over all its parameters at once; a warm-up stands in for its bias."""

    def __init__(self, weights: list[Tensor]) -> None:
        self.weights = weights
        count = sum(weight.numel() for weight in weights)
        self.state = [torch.zeros(count, device=weights[0].device) for _ in range(2)]

    def step(self, rate: Tensor) -> None:
        """One step with betas 0.9 and 0.99."""
        gradient = torch.cat([weight.grad.flatten() for weight in self.weights if weight.grad is not None])
        mean, square = self.state
        mean.lerp_(gradient, 0.1)
        square.lerp_(gradient.square(), 0.01)
        steps = torch.split(mean / (square.sqrt() + 1e-8) * rate, [weight.numel() for weight in self.weights])
        for weight, step in zip(self.weights, steps, strict=True):
            weight.sub_(step.view_as(weight))
