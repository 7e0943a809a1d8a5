"""Cross-modal attention behind a forget gate: how much of what one modality says enters another.

Shapes: N rows, T query steps, S source steps, D width. Source: Jiang and Ji, arXiv 2208.11893 (abstract); the equations
as two independent implementations and the gate's ancestor (Liu et al., EMNLP 2020, ``forkarinda/MFN``) agree on them.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from moodal.core.batch import Stream
from moodal.core.errors import check
from moodal.layers.masks import masked_softmax, zero_padding

Residual = Literal["query", "source", "mfn"]


class Gated(NamedTuple):
    """``values`` (N, T, D), zeros on padded query steps; ``gate`` (N, T, D) in (0, 1): 0 forgets the source."""

    values: Tensor
    gate: Tensor


class ForgetGateAttention(nn.Module):
    """H = ReLU(R + (A W_m + b_m) * F) with A = softmax(Q K^T / sqrt(d)) V and the gate F = sigmoid([A; Z] W_f + b_f).

    Q is made from the query modality Z, K and V from the source. ``residual``: R is "query" (Z), "source" (needs
    sequences of one length) or "mfn", the ancestor's H = ReLU(Z + W_u [Z; (A W_m + b_m) * F]) without b_f.
    """

    def __init__(self, width: int, *, heads: int = 1, residual: Residual = "query") -> None:
        super().__init__()
        check(width % heads == 0, f"width is {width} and heads is {heads}; width must be a multiple of heads.")
        self.heads, self.residual = heads, residual
        self.query = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width, bias=False)
        self.forget = nn.Linear(2 * width, width, bias=residual != "mfn")
        self.memory = nn.Linear(width, width)
        self.join = nn.Linear(2 * width, width, bias=False) if residual == "mfn" else None
        for part in self.modules():
            if isinstance(part, nn.Linear):
                nn.init.xavier_uniform_(part.weight)
                if part.bias is not None:
                    nn.init.zeros_(part.bias)

    def forward(self, query: Stream, source: Stream) -> Gated:
        """(N, T, D) over (N, S, D). Raises ``MoodalError`` if ``residual`` is "source" and T is not S."""
        attended = self.attend(query, source)
        gate = torch.sigmoid(self.forget(torch.cat([attended, query.data], dim=-1)))
        heard = self.memory(attended) * gate
        # A source without a real step has nothing to say, its biases included.
        heard = heard * source.mask.any(dim=1)[:, None, None]
        return Gated(zero_padding(torch.relu(self._kept(query, source, heard)), query.mask), gate)

    def attend(self, query: Stream, source: Stream) -> Tensor:
        """(N, T, D) what each query step draws from the source; zeros where the source has no real step."""
        asked, found, given = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in (self.query(query.data), self.key(source.data), self.value(source.data))
        )
        scores = asked @ found.transpose(2, 3) / math.sqrt(asked.shape[-1])
        weights = masked_softmax(scores, source.mask[:, None, None, :])
        return (weights @ given).transpose(1, 2).flatten(2)

    def _kept(self, query: Stream, source: Stream, heard: Tensor) -> Tensor:
        if self.join is not None:
            return query.data + self.join(torch.cat([query.data, heard], dim=-1))
        if self.residual == "query":
            return query.data + heard
        steps, others = query.data.shape[1], source.data.shape[1]
        check(
            steps == others,
            f"model.residual=source adds sequences step by step, and they have {steps} and {others} steps; "
            "use residual=query, or aligned data.",
        )
        return source.data + heard
