"""Vectors of locally aggregated descriptors: how far the steps of a sequence lie from a few learnt centres.

Shapes: N rows, T steps (descriptors), D width, K centres. Source: the NetVLAD form (Arandjelovic et al., CVPR 2016) with
one set of centres for all modalities and scales (Luo et al., arXiv 2112.01368).
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moodal.core.errors import check

Assignment = Literal["free", "tied"]
Aggregation = Literal["mean", "sum"]

EPSILON = 1e-6


class SharedVlad(nn.Module):
    """V_k = sum_i a_ik (x_i - c_k) over real steps, a_i = softmax over the centres of x_i W + b.

    ``assignment`` "tied" takes W and b from the centres, a = softmax(-sharpness ||x - c_k||^2); ``aggregation`` "mean"
    divides V_k by sum_i a_ik, so that long sequences do not drown short ones.
    """

    def __init__(
        self,
        width: int,
        centres: int,
        *,
        assignment: Assignment = "free",
        aggregation: Aggregation = "mean",
        sharpness: float = 1.0,
    ) -> None:
        super().__init__()
        check(centres >= 1, f"centres is {centres}; it must be 1 or more.")
        self.aggregation, self.sharpness = aggregation, sharpness
        self.centres = nn.Parameter(torch.randn(centres, width) * width**-0.5)
        # One centre is always chosen, whatever the weights: there is nothing to learn.
        self.assign = nn.Linear(width, centres) if assignment == "free" and centres > 1 else None

    def weights(self, values: Tensor) -> Tensor:
        """(N, T, D) -> (N, T, K), summing to 1 over the centres."""
        if self.assign is not None:
            return self.assign(values).softmax(dim=-1)
        nearness = 2 * values @ self.centres.T - self.centres.square().sum(dim=-1)
        return (self.sharpness * nearness).softmax(dim=-1)

    def forward(self, values: Tensor, mask: Tensor) -> Tensor:
        """(N, T, D), (N, T) -> (N, K, D); zeros for a row without real steps."""
        # Masked after the softmax: an unreal step would otherwise add -a_ik c_k.
        weights = self.weights(values) * mask[..., None]
        total = weights.sum(dim=1)[..., None]
        aggregated = torch.bmm(weights.transpose(1, 2), values) - total * self.centres
        return aggregated / (total + EPSILON) if self.aggregation == "mean" else aggregated


def windows(values: Tensor, mask: Tensor, size: int | None) -> tuple[Tensor, Tensor]:
    """Means over the real steps of windows of ``size`` steps: (N, T, D), (N, T) -> (N, ceil(T / size), D) and its mask.

    ``None``: one window over everything. Windows do not overlap; one without a real step is not real.
    """
    rows, steps, width = values.shape
    size = steps if size is None else size
    missing = -steps % size
    values, mask = F.pad(values, (0, 0, 0, missing)), F.pad(mask, (0, missing))
    real = mask.view(rows, -1, size)
    count = real.sum(dim=2, keepdim=True)
    total = (values.view(rows, -1, size, width) * real[..., None]).sum(dim=2)
    return total / count.clamp(min=1), count.squeeze(2) > 0
