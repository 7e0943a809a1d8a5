"""Gaussians with independent coordinates. Shapes: N rows, D dimensions; deviations are standard deviations."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

KLReduction = Literal["mean", "sum"]


def standard_kl(mean: Tensor, deviation: Tensor, *, reduction: KLReduction = "sum") -> Tensor:
    """(N, D), (N, D) -> (N,) KL(N(mean, deviation²) ‖ N(0, I)) in nats: ½(mean² + deviation² - 1) - ln deviation.

    ``reduction`` over the D dimensions: "sum" is the divergence, "mean" a D-th of it (what several papers' code has).
    """
    # A deviation that underflowed to 0 has a large, not an infinite, divergence.
    logarithm = deviation.clamp(min=torch.finfo(deviation.dtype).tiny).log()
    each = 0.5 * (mean.square() + deviation.square() - 1) - logarithm
    return each.mean(dim=-1) if reduction == "mean" else each.sum(dim=-1)
