"""Contrast of pairs: each row's vector must find its own partner among those of the other rows.

Shapes: N rows, D width. The loss of n rows is ln n less the InfoNCE bound (``losses.bounds``), so it is at most
about ln n for vectors that know nothing of each other, and I(X; Y) >= ln n - loss.
"""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor

from moodal.losses.bounds import infonce


def cosine_scores(first: Tensor, second: Tensor) -> Tensor:
    """(N, D), (M, D) -> (N, M) cosines between rows of ``first`` and of ``second``; a vector of zeros gives 0."""
    return F.normalize(first, dim=-1) @ F.normalize(second, dim=-1).T


def contrastive_loss(
    anchors: Tensor, others: Tensor, *, temperature: float = 1.0, valid: Tensor | None = None
) -> Tensor:
    """() mean over rows of ln Σ_j e^(cos(a_i, b_j) / temperature) - cos(a_i, b_i) / temperature.

    ``anchors``, ``others``: (N, D), row i of one belonging to row i of the other. Rows that are not ``valid`` (N,) are
    neither anchors nor partners; the loss is 0 with one valid row or none. Not symmetric: j runs over ``others``.
    Source: van den Oord et al., 2018 (contrastive predictive coding), with cosines as scores.
    """
    scores = cosine_scores(anchors, others) / temperature
    if valid is None:
        return math.log(len(scores)) - infonce(scores)
    count = valid.sum().clamp(min=1)
    # A row with nobody beside it adds 0 to the bound, so the rows that are not valid only enlarge what it is divided by.
    bound = infonce(scores, apart=valid[:, None] & valid[None, :]) * len(scores) / count
    return count.log() - bound
