"""Multi-head attention with a LayerNorm of its own before each of query, key and value.

Shapes: N rows, T target steps, S source steps, D width, H heads of width d. The three norms of a self-attention see
the same input: it is standardised once, and their scales and shifts are folded into the projection, so that query,
key and value are one matrix product. Source: Rao et al., AAAI 2026, figure 3 (pre-norm attention).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moodal.layers.dot_product import additive, by_head, dot_product

EPSILON = 1e-5


def uniform_(tensor: Tensor, fan_in: int) -> None:
    """Fill with the uniform distribution that ``nn.Linear`` uses for weights and biases."""
    bound = fan_in**-0.5
    nn.init.uniform_(tensor, -bound, bound)


def standardise(values: Tensor) -> Tensor:
    """LayerNorm without scale and shift over the last axis."""
    return F.layer_norm(values, (values.shape[-1],), eps=EPSILON)


class Attention(nn.Module):
    """out(softmax(q k^T / sqrt(d)) v) with q, k, v = W LN(x), no biases in the three maps, one in the output map."""

    def __init__(self, width: int, *, heads: int, head_width: int, dropout: float = 0.0):
        super().__init__()
        inner = heads * head_width
        self.heads, self.head_width = heads, head_width
        # Order along the first axis: query, key, value.
        self.scale = nn.Parameter(torch.ones(3, width))
        self.shift = nn.Parameter(torch.zeros(3, width))
        self.weight = nn.Parameter(torch.empty(3, inner, width))
        uniform_(self.weight.data, width)
        self.unit: Tensor
        self.register_buffer("unit", torch.tensor([[head_width**-0.5], [1.0], [1.0]]), persistent=False)
        self.out = nn.Linear(inner, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, target: Tensor, source: Tensor | None = None, *, mask: Tensor | None = None) -> Tensor:
        """(N, T, D) attends to ``source`` (N, S, D), or to itself. ``mask``: (N, S), one real step per row at least."""
        alone = by_head(target, (target if source is None else source).shape[1])
        query, key, value = self._project(target, source, split=alone)
        mixed = dot_product(query, key, value, mask, heads_alone=alone)
        return self.dropout(self.out(mixed.flatten(2)))

    def at(self, sequence: Tensor, places: Sequence[int], *, mask: Tensor | None = None) -> Tensor:
        """Self-attention of (N, T, D) evaluated at the steps ``places`` only: (N, len(places), D).

        Keys and values are never formed: W_k moves to the query and W_v behind the weighted mean, because
        (W_q a)·(W_k b) = (W_k^T W_q a)·b. With few queries this is cheaper by about head_width / len(places).
        """
        steps = standardise(sequence)
        weight, bias = self._folded(0, 3)
        chosen = torch.stack([steps[:, place] for place in places], dim=1)
        rows, count, width = chosen.shape
        by_head = weight.view(3, self.heads, self.head_width, width)
        shift = bias.view(3, self.heads, self.head_width)
        query = (F.linear(chosen, weight[: self.inner], bias[: self.inner])).view(-1, self.heads, self.head_width)
        query = query.transpose(0, 1)  # (H, N * count, d)
        constant = torch.bmm(query, shift[1].unsqueeze(-1))  # equal for all keys of a query
        reach = torch.cat([torch.bmm(query, by_head[1]), constant], dim=-1).view(self.heads, rows, count, width + 1)
        reach = reach.permute(1, 2, 0, 3).flatten(1, 2)  # (N, count * H, D + 1)
        scores = torch.bmm(reach[..., :-1], steps.transpose(1, 2)) + reach[..., -1:]
        if mask is not None:
            scores = scores + additive(mask, scores.dtype)
        mean = torch.bmm(scores.softmax(dim=-1), steps).view(rows * count, self.heads, width).transpose(0, 1)
        value = torch.baddbmm(shift[2].unsqueeze(1), mean, by_head[2].transpose(1, 2))  # weights sum to 1: shift once
        return self.dropout(self.out(value.transpose(0, 1).reshape(rows, count, self.inner)))

    @property
    def inner(self) -> int:
        return self.heads * self.head_width

    def _folded(self, first: int, last: int) -> tuple[Tensor, Tensor]:
        """Weight and bias of the maps ``first`` up to ``last`` acting on the standardised input: W (s * x + b).

        The query's map carries the scale 1 / sqrt(d) of the scores.
        """
        weight, unit = self.weight[first:last], self.unit[first:last]
        bias = weight @ (self.shift[first:last] * unit).unsqueeze(-1)
        return (weight * (self.scale[first:last] * unit).unsqueeze(1)).flatten(0, 1), bias.flatten()

    def _project(self, target: Tensor, source: Tensor | None, *, split: bool) -> list[Tensor]:
        """Query, key and value (N, T, H, d); with ``split`` in memory of their own, otherwise views of one product."""
        if source is None:
            return self._maps(standardise(target), 0, 3, split=split)
        query = self._maps(standardise(target), 0, 1, split=split)
        return query + self._maps(standardise(source), 1, 3, split=split)

    def _maps(self, steps: Tensor, first: int, last: int, *, split: bool) -> list[Tensor]:
        weight, bias = self._folded(first, last)
        shape = (*steps.shape[:2], self.heads, self.head_width)
        if not split:
            return [part.view(shape) for part in F.linear(steps, weight, bias).chunk(last - first, dim=-1)]
        pairs = zip(weight.chunk(last - first), bias.chunk(last - first))
        return [F.linear(steps, own, shift).view(shape) for own, shift in pairs]


class FeedForward(nn.Module):
    """W2 GELU(W1 LN(x) + b1) + b2."""

    def __init__(self, width: int, hidden: int, *, dropout: float = 0.0):
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=EPSILON)
        self.first = nn.Linear(width, hidden)
        self.second = nn.Linear(hidden, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, values: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        return self.dropout(self.second(self.dropout(F.gelu(self.first(self.norm(values))))))
