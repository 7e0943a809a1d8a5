"""Sequence encoders: a learnt summary token in front, learnt positions, pre-norm layers; and cross-attention blocks.

Shapes: N rows, T steps, D width. Every block takes and gives (values, mask) with mask (N, T) or None (all real).
Source: Rao et al., AAAI 2026, section 3 (sequence encoders, explanation alignment).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from moodal.layers.attention import Attention, FeedForward
from moodal.layers.dropout import Dropout
from moodal.layers.masks import check_steps, pad_steps, with_first, zero_padding

#: values (N, T, D) and their mask (N, T), or None where every step is real.
Sequence = tuple[Tensor, Tensor | None]


class Layer(nn.Module):
    """x += Attention(x, source); x += FeedForward(x)."""

    def __init__(self, width: int, *, heads: int, head_width: int, feed_forward: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.attention = Attention(width, heads=heads, head_width=head_width, dropout=dropout)
        self.feed_forward = FeedForward(width, feed_forward, dropout=dropout)

    def forward(self, target: Tensor, source: Tensor | None = None, *, mask: Tensor | None = None) -> Tensor:
        """(N, T, D) over ``source`` (N, S, D) or itself, ``mask`` being that of what is attended to."""
        target = target + self.attention(target, source, mask=mask)
        return target + self.feed_forward(target)


class SequenceEncoder(nn.Module):
    """A summary token in front of (N, T, D), learnt positions, ``layers`` layers; T up to ``steps``. No final norm."""

    def __init__(
        self,
        width: int,
        *,
        steps: int,
        heads: int,
        head_width: int,
        feed_forward: int,
        layers: int = 1,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.summary = nn.Parameter(torch.zeros(1, width))
        self.positions = nn.Parameter(torch.randn(steps + 1, width))
        self.dropout = Dropout(dropout)
        self.layers = nn.ModuleList(
            Layer(width, heads=heads, head_width=head_width, feed_forward=feed_forward, dropout=dropout)
            for _ in range(layers)
        )

    def forward(self, values: Tensor, mask: Tensor | None) -> Sequence:
        """(N, T, D), (N, T) -> (N, 1 + T, D), (N, 1 + T). A row without real steps is its summary token alone."""
        rows, steps, width = values.shape
        check_steps("A sequence", steps, len(self.positions) - 1, "model.max_steps")
        x = torch.cat([self.summary.expand(rows, 1, width), values], dim=1) + self.positions[: steps + 1]
        x, mask = self.dropout(x), with_first(mask)
        for layer in self.layers:
            x = layer(x, mask=mask)
        return x, mask


class CrossAlignment(nn.Module):
    """Query = target, key = value = source, both with new positions; the residual stays on the target's side."""

    def __init__(
        self,
        width: int,
        *,
        source_steps: int,
        target_steps: int,
        heads: int,
        head_width: int,
        feed_forward: int,
        layers: int = 1,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.source_positions = nn.Parameter(torch.randn(source_steps, width))
        self.target_positions = nn.Parameter(torch.randn(target_steps, width))
        self.dropout = Dropout(dropout)
        self.layers = nn.ModuleList(
            Layer(width, heads=heads, head_width=head_width, feed_forward=feed_forward, dropout=dropout)
            for _ in range(layers)
        )

    def forward(self, target: Sequence, source: Sequence) -> Sequence:
        """(N, T, D) over (N, S, D) -> (N, T, D) with the target's mask. Each row of the source has a real step."""
        x = self.dropout(target[0] + self.target_positions[: target[0].shape[1]])
        y = self.dropout(source[0] + self.source_positions[: source[0].shape[1]])
        for layer in self.layers:
            x = layer(x, y, mask=source[1])
        return x, target[1]


class LinearAlignment(nn.Module):
    """One linear map of target and source side by side, step by step; a step is real where either is."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.join = nn.Linear(2 * width, width)

    def forward(self, target: Sequence, source: Sequence) -> Sequence:
        """(N, T, D) and (N, S, D) -> (N, max(T, S), D)."""
        steps = max(target[0].shape[1], source[0].shape[1])
        (x, own), (y, other) = pad_steps(*target, steps), pad_steps(*source, steps)
        both = torch.cat([zero_padding(x, own), zero_padding(y, other)], dim=-1)
        mask = None if own is None or other is None else own | other
        return self.join(both), mask
