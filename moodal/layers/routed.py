"""A transformer whose feed-forwards are text-routed experts, over several segments put one after the other.

Each segment has position rows of its own, so longer padding of one never moves another.
Source: Rao et al., AAAI 2026, section 3 (text-routed sparse mixture of experts).
"""

from __future__ import annotations

from collections.abc import Sequence as Many
from itertools import accumulate

import torch
from torch import Tensor, nn

from moodal.layers.attention import EPSILON, Attention, FeedForward
from moodal.layers.dropout import Dropout
from moodal.layers.experts import Experts, Router, Routing
from moodal.layers.masks import check_steps, joined
from moodal.layers.transformer import Sequence


class RoutedLayer(nn.Module):
    """x += Attention(x); x += Experts(LN(x)) chosen by the condition."""

    def __init__(
        self,
        width: int,
        *,
        heads: int,
        head_width: int,
        hidden: int,
        experts: int,
        top_k: int,
        noise: bool = True,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.attention = Attention(width, heads=heads, head_width=head_width, dropout=dropout)
        self.norm = nn.LayerNorm(width, eps=EPSILON)
        self.router = Router(width, experts=experts, top_k=top_k, noise=noise)
        self.experts = Experts(width, hidden=hidden, experts=experts, dropout=dropout)

    def mix(self, values: Tensor, condition: Tensor, *, capacity: float | None) -> tuple[Tensor, Routing]:
        """The second half of the layer: (N, T, D), (N, D) -> (N, T, D) and the decisions."""
        routing = self.router(condition, capacity=capacity)
        return values + self.experts(self.norm(values), routing), routing


class PlainLayer(nn.Module):
    """The same layer with one feed-forward for all rows: the "mixture -> transformer" ablation."""

    def __init__(self, width: int, *, heads: int, head_width: int, hidden: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.attention = Attention(width, heads=heads, head_width=head_width, dropout=dropout)
        self.feed_forward = FeedForward(width, hidden, dropout=dropout)

    def mix(self, values: Tensor, condition: Tensor, *, capacity: float | None) -> tuple[Tensor, None]:  # noqa: ARG002
        """The second half of the layer; nothing is routed."""
        return values + self.feed_forward(values), None


class MixtureTransformer(nn.Module):
    """``layers`` (RoutedLayer or PlainLayer) over up to ``segments`` segments of up to ``steps`` steps each."""

    def __init__(
        self, layers: Many[RoutedLayer | PlainLayer], *, width: int, segments: int, steps: int, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.positions = nn.Parameter(torch.randn(segments, steps, width))
        self.layers = nn.ModuleList(layers)
        self.dropout = Dropout(dropout)

    def forward(
        self, parts: Many[Sequence], condition: Tensor, *, capacity: float | None = None, summaries: bool = True
    ) -> tuple[Tensor, tuple[Routing, ...]]:
        """Segments (N, T_i, D) and the routing condition (N, D) -> outputs and the decisions of each layer.

        The output is (N, segments, D), the first step of each segment, or with ``summaries`` False all (N, T, D). The
        last layer is evaluated at the summaries alone: nothing else of it is used.
        """
        x, mask = self._join(parts)
        starts = [0, *accumulate(part.shape[1] for part, _ in parts)][:-1]
        decisions = []
        for number, layer in enumerate(self.layers):
            assert isinstance(layer, RoutedLayer | PlainLayer)
            if summaries and number == len(self.layers) - 1:
                x = torch.stack([x[:, start] for start in starts], dim=1) + layer.attention.at(x, starts, mask=mask)
            else:
                x = x + layer.attention(x, mask=mask)
            x, routing = layer.mix(x, condition, capacity=capacity)
            decisions.append(routing)
        return x, tuple(routing for routing in decisions if routing is not None)

    def _join(self, parts: Many[Sequence]) -> Sequence:
        values = [part for part, _ in parts]
        for part in values:
            check_steps("A segment", part.shape[1] - 1, self.positions.shape[1] - 1, "model.max_steps")
        rows = torch.cat([self.positions[i, : part.shape[1]] for i, part in enumerate(values)])
        return self.dropout(torch.cat(values, dim=1) + rows), joined([mask for _, mask in parts], values)
