"""Two views of the same rows drawn together: projector, predictor, stopped gradients; batch statistics without traps.

Shapes: N rows, W width. p(x) = BN(W1 x + b1), without scale and shift; q(z) = W3 ReLU(BN(W2 z)) + b3; sg stops gradients:

    attraction = -1/2 [ cos(q(p(x')), sg p(x)) + cos(q(p(x)), sg p(x')) ]

b1 changes nothing behind batch statistics; it is there because the official checkpoints have it.
Source: Sun et al., IEEE TAC 2023 (arXiv 2208.07589), section 3.4, after SimSiam (Chen and He, CVPR 2021).
"""

from __future__ import annotations

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn


class RowBatchNorm(nn.BatchNorm1d):
    """Batch normalisation of (N, W) that takes a single row: it has no statistics of its own, so the running ones
    normalise it and stay as they are.

    Statistics are those of the rows given: of one process, and of one part of an accumulated batch.
    """

    def forward(self, values: Tensor) -> Tensor:
        """(N, W) -> (N, W)."""
        if self.training and len(values) == 1:
            return F.batch_norm(values, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        return super().forward(values)


class Projected(NamedTuple):
    """A view as its own target, z = p(x) (N, W), and its guess of the other view's, q(z) (N, W)."""

    projected: Tensor
    predicted: Tensor


class Siamese(nn.Module):
    """Projector and predictor of vectors of ``width``; ``bottleneck``: the predictor's width inside."""

    def __init__(self, width: int, bottleneck: int) -> None:
        super().__init__()
        self.projector = nn.Linear(width, width)
        self.projector_norm = RowBatchNorm(width, affine=False)
        self.enter = nn.Linear(width, bottleneck, bias=False)
        self.predictor_norm = RowBatchNorm(bottleneck)
        self.leave = nn.Linear(bottleneck, width)

    def forward(self, view: Tensor) -> Projected:
        """(N, W) of ONE view: statistics of the two views do not mix."""
        projected = self.projector_norm(self.projector(view))
        return Projected(projected, self.leave(F.relu(self.predictor_norm(self.enter(projected)))))


def attraction(one: Projected, other: Projected) -> Tensor:
    """(N,) in [-1, 1]: -1 where each view predicts the other's direction. No gradient reaches the predicted side."""
    there = F.cosine_similarity(other.predicted, one.projected.detach(), dim=1)
    back = F.cosine_similarity(one.predicted, other.projected.detach(), dim=1)
    return -(there + back) / 2
