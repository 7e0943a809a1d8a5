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

from moodal.layers.masks import additive

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
        query, key, value = (part.transpose(1, 2) for part in self._project(target, source))
        hidden = None if mask is None else additive(mask, query.dtype).unsqueeze(1)
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=hidden, scale=1.0)
        return self._leave(mixed.transpose(1, 2).flatten(2))

    def at(self, sequence: Tensor, places: Sequence[int], *, mask: Tensor | None = None) -> Tensor:
        """Self-attention of (N, T, D) evaluated at the steps ``places`` only: (N, len(places), D).

        Keys and values are never formed: W_k moves to the query and W_v behind the weighted mean, because
        (W_q a)·(W_k b) = (W_k^T W_q a)·b. With few queries this is cheaper by about head_width / len(places).
        """
        steps = standardise(sequence)
        weight, bias = self._folded()
        chosen = torch.stack([steps[:, place] for place in places], dim=1)
        rows, count, width = chosen.shape
        by_head = weight.view(3, self.heads, self.head_width, width)
        query = F.linear(chosen, weight[0], bias).view(-1, self.heads, self.head_width).transpose(0, 1)
        reach = torch.bmm(query, by_head[1]).view(self.heads, rows, count, width)
        reach = reach.permute(1, 2, 0, 3).flatten(1, 2)  # (N, count * H, D)
        scores = torch.bmm(reach, steps.transpose(1, 2))
        if mask is not None:
            scores = scores + additive(mask, scores.dtype)
        mean = torch.bmm(scores.softmax(dim=-1), steps).view(rows * count, self.heads, width).transpose(0, 1)
        value = torch.bmm(mean, by_head[2].transpose(1, 2))
        return self._leave(value.transpose(0, 1).reshape(rows, count, -1))

    def _folded(self) -> tuple[Tensor, Tensor]:
        """(3, H d, D) maps acting on the standardised input, W (s * x + b) = (W s) x + W b, and W b of the query.

        The query's map carries the scale 1 / sqrt(d). The key's W b adds the same to all scores of a query, which the
        softmax does not see; the value's passes through the weighted mean unchanged and is added in ``_leave``.
        """
        weight = self.weight * (self.scale * self.unit).unsqueeze(1)
        return weight, self.weight[0] @ (self.shift[0] * self.unit[0])

    def _leave(self, mixed: Tensor) -> Tensor:
        """The output map of (N, T, H d), with the value's shift in its bias."""
        bias = self.out.bias + self.out.weight @ (self.weight[2] @ self.shift[2])
        return self.dropout(F.linear(mixed, self.out.weight, bias))

    def _project(self, target: Tensor, source: Tensor | None) -> list[Tensor]:
        """Query, key and value (N, T, H, d)."""
        weight, bias = self._folded()
        if source is None:
            return self._maps(standardise(target), weight, bias)
        query = self._maps(standardise(target), weight[:1], bias)
        return query + self._maps(standardise(source), weight[1:], None)

    def _maps(self, steps: Tensor, weight: Tensor, bias: Tensor | None) -> list[Tensor]:
        """(N, T, D) through (M, H d, D) maps, ``bias`` (H d) being that of the first: M parts (N, T, H, d).

        One product for all maps; on a CPU one each, where it is faster: a result three times as large is new memory in
        every step, and its gradient would have to be put together from three parts.
        """
        count, inner, _ = weight.shape
        shape = (*steps.shape[:2], self.heads, self.head_width)
        if steps.device.type == "cpu":
            biases = [bias, *[None] * (count - 1)]
            return [F.linear(steps, own, shift).view(shape) for own, shift in zip(weight.unbind(0), biases)]
        whole = None if bias is None else F.pad(bias, (0, (count - 1) * inner))
        return [part.view(shape) for part in F.linear(steps, weight.flatten(0, 1), whole).chunk(count, dim=-1)]


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
