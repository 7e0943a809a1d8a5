"""Fusing one vector per modality into one: (N, D) each -> (N, D) and the weights used."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def weighted_sum(weights: Tensor, vectors: Tensor) -> Tensor:
    """(N, M), (N, M, D) -> (N, D)."""
    return torch.bmm(weights.unsqueeze(1), vectors).squeeze(1)


class GatedFusion(nn.Module):
    """Softmax weights from all ``inputs`` vectors together, then their weighted sum. Rao et al., AAAI 2026, section 3."""

    def __init__(self, width: int, inputs: int) -> None:
        super().__init__()
        self.gate = nn.Linear(inputs * width, inputs)

    def forward(self, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """(N, M, D) -> (N, D), (N, M)."""
        gates = self.gate(vectors.flatten(1)).softmax(dim=-1)
        return weighted_sum(gates, vectors), gates


class MeanFusion(nn.Module):
    """The plain mean: every vector weighs the same, nothing is learnt."""

    def forward(self, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """(N, M, D) -> (N, D), (N, M)."""
        count = vectors.shape[1]
        return vectors.mean(dim=1), vectors.new_full((len(vectors), count), 1 / count)
