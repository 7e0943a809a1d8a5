"""Entropies of Gaussians fitted to groups of vectors, up to the constant (K/2) ln(2 pi e).

Shapes: R rows, K width, C groups.
"""

from __future__ import annotations

import torch
from torch import Tensor


def log_determinants(vectors: Tensor, groups: Tensor, *, count: int, jitter: float = 0.0) -> tuple[Tensor, Tensor]:
    """(R, K) vectors and their (R,) groups -> ln det of each group's covariance (C,), and which groups have one (C,).

    ``groups``: 0 to ``count`` - 1, or -1 for rows of none. The covariance is the biased one (a mean over the rows) plus
    ``jitter`` on its diagonal. A group of fewer than K + 1 rows has no covariance of full rank: its place holds 0.
    """
    with torch.autocast(vectors.device.type, enabled=False):  # determinants need the whole precision
        return _log_determinants(vectors.to(torch.promote_types(vectors.dtype, torch.float32)), groups, count, jitter)


def _log_determinants(vectors: Tensor, groups: Tensor, count: int, jitter: float) -> tuple[Tensor, Tensor]:
    width = vectors.shape[1]
    member = (groups == torch.arange(count, device=groups.device)[:, None]).to(vectors.dtype)  # (C, R)
    rows = member.sum(dim=1)
    means = (member @ vectors) / rows.clamp(min=1)[:, None]
    apart = (vectors - means[:, None]) * member[..., None]  # (C, R, K)
    unit = torch.eye(width, dtype=vectors.dtype, device=vectors.device)
    covariance = apart.transpose(1, 2) @ apart / rows.clamp(min=1)[:, None, None] + jitter * unit
    enough = rows > width
    return torch.linalg.slogdet(covariance.where(enough[:, None, None], unit)).logabsdet, enough


def mixture_entropy(vectors: Tensor, groups: Tensor, *, count: int, jitter: float = 0.0) -> Tensor:
    """() mean over the groups with enough rows of ½ ln det of their covariance; 0 if there is none.

    The mean entropy of the components of a mixture of Gaussians with equal weights, without the constant.
    """
    values, enough = log_determinants(vectors, groups, count=count, jitter=jitter)
    return 0.5 * values.sum() / enough.sum().clamp(min=1)
