"""Losses between the rows of a batch of embeddings: near to the same identity, far from others, also across modalities.

Shapes  N rows, D width of an embedding, identity (N,) int64, modality (N,) int64 (0 visible, 1 infrared).
Source  Tian et al., CVPR 2021, released code: the ranking loss (positives and negatives of the own and of the other
        modality apart) and the transport distance. Batch-hard triplets: Hermans et al. 2017, arXiv 1703.07737.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

#: in every denominator of the ranking loss, as released.
TINY = 1e-5


def unit_distances(embedding: Tensor) -> Tensor:
    """(N, D) -> (N, N) Euclidean distances between the rows scaled to length one, in [1e-6, 2]; always in float32."""
    with torch.autocast(embedding.device.type, enabled=False):
        unit = F.normalize(embedding.float(), dim=1)
        square = unit.square().sum(dim=1)
        return (square[:, None] + square[None, :] - 2 * unit @ unit.T).clamp(min=1e-12).sqrt()


def ranking_loss(
    embedding: Tensor,
    identity: Tensor,
    modality: Tensor,
    *,
    margins: tuple[float, float] = (0.9, 1.0),
    limits: tuple[float, float] = (2.2, 2.0),
) -> Tensor:
    """Mean over anchors of four parts: positives and negatives, each of the own and of the other modality.

    With distances d between unit rows, limit a and margin m (each: own, other modality): positives mean
    max(0, d - (a - m)); negatives nearer than a the mean of a - d weighted by exp(a - d). A part without rows is 0.
    """
    distance = unit_distances(embedding)
    same = identity[:, None] == identity[None, :]
    own = modality[:, None] == modality[None, :]
    others = ~torch.eye(len(identity), dtype=torch.bool, device=identity.device)
    total = distance.new_zeros(())
    for margin, limit, group in zip(margins, limits, (own, ~own)):
        positive = same & others & group
        pull = ((distance - (limit - margin)).clamp(min=0) * positive).sum(dim=1) / (positive.sum(dim=1) + TINY)
        gap = limit - distance
        weight = gap.exp() * (~same & group & (gap > 0))
        push = (gap * weight).sum(dim=1) / (weight.sum(dim=1) + TINY)
        total = total + (pull + push).mean()
    return total


def hard_triplet_loss(embedding: Tensor, identity: Tensor, *, margin: float = 0.3) -> Tensor:
    """Mean over anchors of max(0, margin + furthest positive - nearest negative), distances between unit rows.

    Anchors without a positive or without a negative are left out; without any anchor the loss is 0.
    """
    distance = unit_distances(embedding)
    same = identity[:, None] == identity[None, :]
    positive = same & ~torch.eye(len(identity), dtype=torch.bool, device=identity.device)
    furthest = distance.masked_fill(~positive, 0.0).amax(dim=1)
    nearest = distance.masked_fill(same, 2.0).amin(dim=1)
    anchors = positive.any(dim=1) & ~same.all(dim=1)
    losses = (margin + furthest - nearest).clamp(min=0) * anchors
    return losses.sum() / anchors.sum().clamp(min=1)


def transport_plan(
    cost: Tensor, *, regulariser: float = 0.01, iterations: int = 100, tolerance: float = 0.1, floor: float = 0.0
) -> Tensor:
    """(N, M) cost -> (N, M) entropic transport plan between uniform marginals, by Sinkhorn's iteration on potentials.

    It stops when the potentials of the rows change by less than ``tolerance`` in sum; the columns' marginals are then
    exact and those of the rows nearly so. Gradients flow through the iterations. ``floor`` is added inside each
    logarithm of a sum of exponentials: 1e-6 in the released code, which weakens rows that are far from everything.
    """
    rows, columns = (torch.full((size,), 1.0 / size, device=cost.device).add(1e-8).log() for size in cost.shape)
    u, v = torch.zeros_like(rows), torch.zeros_like(columns)

    def scores() -> Tensor:
        return (u[:, None] + v - cost) / regulariser

    for _ in range(iterations):
        before = u
        u = u + regulariser * (rows - _log_sum_exp(scores(), dim=1, floor=floor))
        v = v + regulariser * (columns - _log_sum_exp(scores(), dim=0, floor=floor))
        if float((u - before).detach().abs().sum()) < tolerance:
            break
    return scores().exp()


def _log_sum_exp(values: Tensor, *, dim: int, floor: float) -> Tensor:
    total = torch.logsumexp(values, dim=dim)
    return total if floor == 0 else torch.logaddexp(total, torch.full_like(total, math.log(floor)))


def transport_distance(first: Tensor, second: Tensor, **settings: float) -> Tensor:
    """Sinkhorn distance between two sets of rows, (N, D) and (M, D), the cost of a pair being its squared distance.

    0 for equal sets of one-hot rows; slightly above 0 for equal sets of soft rows, whose entropic plan is no identity.
    ``settings``: those of :func:`transport_plan`.
    """
    cost = (first[:, None] - second[None, :]).square().sum(dim=2)
    return (transport_plan(cost, **settings) * cost).sum()  # type: ignore[arg-type]
