"""Stochastic bottleneck: a vector becomes a Gaussian with independent coordinates, and that a code.

Shapes: N rows, D width of what enters, K width of the code. Source: Mai et al., IEEE Trans. Multimedia 2022 (MIB).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

#: Added before the softplus: a new map starts with deviations of about softplus(-5) = 0.0067.
START = -5.0
#: An expert cannot be surer than this deviation, so that its precision stays finite.
SUREST = 1e-6


class Gaussian(NamedTuple):
    """Means and standard deviations, (..., K) each."""

    mean: Tensor
    deviation: Tensor

    def sample(self, noise: Tensor | None = None) -> Tensor:
        """(..., K) mean + deviation * noise, differentiable in both; ``noise`` is drawn from N(0, I) unless given."""
        return self.mean + self.deviation * (torch.randn_like(self.mean) if noise is None else noise)


class GaussianMap(nn.Module):
    """mean = W1 x + b1; deviation = softplus(W2 x + b2 - 5)."""

    def __init__(self, width: int, code: int) -> None:
        super().__init__()
        self.mean = nn.Linear(width, code)
        self.deviation = nn.Linear(width, code)

    def forward(self, values: Tensor) -> Gaussian:
        """(..., D) -> means and deviations (..., K)."""
        return Gaussian(self.mean(values), F.softplus(self.deviation(values) + START))


class GaussianBottleneck(nn.Module):
    """A Gaussian map behind one hidden layer with ReLU; the code is as wide as what enters."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.enter = nn.Linear(width, hidden)
        self.code = GaussianMap(hidden, width)

    def forward(self, values: Tensor) -> Gaussian:
        """(..., D) -> means and deviations (..., D)."""
        return self.code(F.relu(self.enter(values)))


def product_of_experts(experts: Sequence[Gaussian], present: Tensor | None = None) -> Gaussian:
    """The normalised product of M ``experts``, (N, K) each, and N(0, I) as one more.

    Variance 1 / (1 + Σ 1/s²), mean variance * Σ mean/s². ``present``: (N, M), False where an expert has nothing to say
    and is left out; with the prior alone the product is the prior.
    """
    means = torch.stack([expert.mean for expert in experts], dim=1)
    deviations = torch.stack([expert.deviation for expert in experts], dim=1)
    precisions = deviations.clamp(min=SUREST).square().reciprocal()
    if present is not None:
        precisions = precisions * present.unsqueeze(-1)
    variance = 1 / (1 + precisions.sum(dim=1))
    return Gaussian(variance * (precisions * means).sum(dim=1), variance.sqrt())
