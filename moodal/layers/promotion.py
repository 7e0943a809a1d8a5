"""Mutual promotion: a few context tokens and long sequences improve each other, layer after layer.

Shapes: N rows, T steps, D width, M modalities and as many context tokens, L layers. One unit U (half of a mutual
promotion), pre-norm, each line with its residual, GEGLU(a, g) = a * GELU(g):

    U(x, c):  x += Attention(LN(x), LN'(c))    x += Attention(LN(x))    x += W2 GEGLU(W1 LN(x))

One layer, from the old values on both sides:  H_m <- U(H_m, G)    G_m = U(G, H_m)    G <- pool of the G_m over m.
Sequences meet in G only, so what one modality costs another grows with the sum of the lengths, not with their products;
the self-attention within a sequence stays quadratic in its own length.
Source: Sun et al., IEEE TAC 2023 (arXiv 2208.07589), section 3; sunlicai/EMT-DLFR @ e9f0960 for what the paper leaves open.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moodal.core.batch import Stream
from moodal.core.errors import check
from moodal.core.spec import Modality
from moodal.layers.attention import scaled_attention
from moodal.layers.dropout import Dropout

#: How many times wider than the unit its feed-forward is.
EXPANSION = 4


class NormedAttention(nn.Module):
    """Out(softmax(Q K^T / sqrt(D / heads)) V) of normed steps, Q, K and V without biases, Out with one: self-attention.

    A row without a real step to attend to draws nothing; with ``uniform`` the plain mean of all its steps, padding
    included. Raises ``MoodalError`` if ``heads`` does not divide ``width``.
    """

    def __init__(self, width: int, *, heads: int, dropout: float = 0.0, uniform: bool = False) -> None:
        super().__init__()
        check(width % heads == 0, f"The width {width} is not a multiple of the number of heads, {heads}.")
        self.heads, self.scale, self.uniform = heads, (width // heads) ** -0.5, uniform
        self.norm = nn.LayerNorm(width)
        self.query = nn.Linear(width, width, bias=False)
        self.key_value = nn.Linear(width, 2 * width, bias=False)
        self.out = nn.Linear(width, width)
        self.dropout = Dropout(dropout)

    def forward(self, target: Tensor, *, mask: Tensor | None = None) -> Tensor:
        """(N, T, D) attends to itself -> (N, T, D)."""
        steps = self.norm(target)
        parts = (F.linear(steps, self.query.weight * self.scale), *self.key_value(steps).chunk(2, dim=-1))
        query, key, value = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts)
        hidden = None if mask is None else _hidden(mask, query.dtype).unsqueeze(1)
        dropout = self.dropout.p if self.training else 0.0
        mixed = scaled_attention(query, key, value, hidden, dropout=dropout).transpose(1, 2).flatten(2)
        return self.out(self._drawn(mixed, mask))

    def _drawn(self, mixed: Tensor, mask: Tensor | None) -> Tensor:
        """Zeros for rows that have nothing to attend to."""
        return mixed if mask is None or self.uniform else mixed * mask.any(dim=1)[:, None, None]

    def _by_head(self, weight: Tensor) -> Tensor:
        """A map's (D, W) weight -> (H, D / H, W)."""
        return weight.unflatten(0, (self.heads, -1))


class ContextAttention(NormedAttention):
    """The same between a context of few tokens and a long sequence, either of them attending to the other.

    The maps that the long side would pass through move to the short one: (W_q a)·(W_k b) = a·(W_q^T W_k b), and a weighted
    mean may be taken before or after a map. So a long step costs 2 D products per token and head instead of 2 D^2.
    """

    def __init__(self, width: int, *, heads: int, dropout: float = 0.0, uniform: bool = False) -> None:
        super().__init__(width, heads=heads, dropout=dropout, uniform=uniform)
        self.source_norm = nn.LayerNorm(width)

    def forward(self, target: Tensor, source: Tensor, *, mask: Tensor | None = None) -> Tensor:  # type: ignore[override]
        """(N, T, D) attends to (N, S, D) with its mask (N, S) -> (N, T, D)."""
        steps, read = self.norm(target), self.source_norm(source)
        if steps.shape[1] < read.shape[1]:
            return self._few_ask(steps, read, mask)
        return self._few_answer(steps, read, mask)

    def _few_ask(self, steps: Tensor, read: Tensor, mask: Tensor | None) -> Tensor:
        to_key, to_value = (self._by_head(weight) for weight in self.key_value.weight.chunk(2))
        query = self.query(steps).unflatten(-1, (self.heads, -1)) * self.scale
        asked = torch.einsum("nthd,hdw->nthw", query, to_key)  # (N, T, H, D)
        scores = torch.bmm(asked.flatten(1, 2), read.transpose(1, 2))
        scores = scores if mask is None else scores + _hidden(mask, scores.dtype)
        means = torch.bmm(self.dropout(scores.softmax(dim=-1)), read).view_as(asked)
        return self.out(self._drawn(torch.einsum("nthw,hdw->nthd", means, to_value).flatten(2), mask))

    def _few_answer(self, steps: Tensor, read: Tensor, mask: Tensor | None) -> Tensor:
        key, value = (part.unflatten(-1, (self.heads, -1)) for part in self.key_value(read).chunk(2, dim=-1))
        asked = torch.einsum("nshd,hdw->nhsw", key * self.scale, self._by_head(self.query.weight))  # (N, H, S, D)
        given = torch.einsum("nshd,hdw->nhsw", value, self._by_head(self.out.weight.T))
        scores = torch.bmm(steps, asked.flatten(1, 2).transpose(1, 2)).unflatten(-1, (self.heads, -1))
        scores = scores if mask is None else scores + _hidden(mask, scores.dtype).unsqueeze(1)
        weights = self.dropout(scores.softmax(dim=-1)).flatten(2)
        return self._drawn(torch.bmm(weights, given.flatten(1, 2)), mask) + self.out.bias


def _hidden(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """(N, S) -> (N, 1, S) to add to scores. Finite, so that a row without real steps has a softmax: a uniform one."""
    zeros = torch.zeros(mask.shape, dtype=dtype, device=mask.device)
    return zeros.masked_fill(~mask, torch.finfo(dtype).min / 2).unsqueeze(1)  # half: scores added to it stay finite


class PromotionUnit(nn.Module):
    """U(x, c): x reads the context c, then itself, then passes through a gated feed-forward."""

    def __init__(
        self, width: int, *, heads: int, attention_dropout: float = 0.0, dropout: float = 0.0, uniform: bool = False
    ) -> None:
        super().__init__()
        shared: dict[str, Any] = {"heads": heads, "dropout": attention_dropout, "uniform": uniform}
        self.cross, self.own = ContextAttention(width, **shared), NormedAttention(width, **shared)
        self.norm = nn.LayerNorm(width)
        self.first = nn.Linear(width, 2 * EXPANSION * width)
        self.second = nn.Linear(EXPANSION * width, width)
        self.dropout = Dropout(dropout)

    def forward(
        self, x: Tensor, context: Tensor, *, mask: Tensor | None = None, context_mask: Tensor | None = None
    ) -> Tensor:
        """(N, T, D) promoted by (N, S, D) -> (N, T, D). No mask: all steps are real."""
        x = x + self.cross(x, context, mask=context_mask)
        x = x + self.own(x, mask=mask)
        value, gate = self.first(self.norm(x)).chunk(2, dim=-1)
        return x + self.dropout(self.second(value * F.gelu(gate)))


class AttentionPool(nn.Module):
    """The weighted mean of M versions of a vector, weights softmax over M of w2 tanh(W1 v + b1) + b2.

    b2 changes nothing; it is there because the official checkpoints have it.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(width, width), nn.Linear(width, 1)

    def forward(self, versions: Tensor) -> tuple[Tensor, Tensor]:
        """(N, M, D) -> (N, D) and the weights (N, M)."""
        weights = self.second(torch.tanh(self.first(versions))).squeeze(-1).softmax(dim=-1)
        return torch.bmm(weights.unsqueeze(1), versions).squeeze(1), weights


class Promoted(NamedTuple):
    """``context`` (N, M, D); ``sequences`` (rows asked for, T, D) each; ``weights`` (N, L, M) of the pools."""

    context: Tensor
    sequences: Mapping[Modality, Tensor]
    weights: Tensor


class MutualPromotion(nn.Module):
    """L layers between the context and the sequences of ``modalities``.

    Units are shared over layers, modalities and the two directions unless told otherwise; the pool over layers.
    ``uniform``: see :class:`NormedAttention`; the published form.
    """

    def __init__(
        self,
        width: int,
        modalities: tuple[Modality, ...],
        *,
        heads: int,
        layers: int,
        share_layers: bool = True,
        share_modalities: bool = True,
        share_directions: bool = True,
        attention_dropout: float = 0.0,
        dropout: float = 0.0,
        uniform: bool = False,
    ) -> None:
        super().__init__()
        self.modalities, self.layers = modalities, layers
        #: how many different units there are over layers, modalities and directions.
        self.kinds = (
            1 if share_layers else layers,
            1 if share_modalities else len(modalities),
            1 if share_directions else 2,
        )
        self.units = nn.ModuleList(
            PromotionUnit(width, heads=heads, attention_dropout=attention_dropout, dropout=dropout, uniform=uniform)
            for _ in range(math.prod(self.kinds))
        )
        self.pools = nn.ModuleList(AttentionPool(len(modalities) * width) for _ in range(self.kinds[0]))

    def unit(self, layer: int, modality: int, direction: int) -> int:
        """The place in ``units`` of the unit at that layer, modality and direction (0: to the sequence, 1: to the context)."""
        layers, modalities, directions = self.kinds
        return ((layer % layers) * modalities + modality % modalities) * directions + direction % directions

    def forward(self, context: Tensor, sequences: Mapping[Modality, Stream], *, rows: slice = slice(None)) -> Promoted:
        """Context (N, M, D) and sequences (N, T, D), the latter before positions.

        ``rows``: those whose sequences are wanted. The context never reads the last layer's sequences, so the other
        rows are spared that. What stands on unreal steps means nothing.
        """
        values = {m: sequences[m].data + positions_like(sequences[m].data) for m in self.modalities}
        masks = {m: sequences[m].mask for m in self.modalities}
        weights = []
        for layer in range(self.layers):
            promoted, share = self._context(layer, context, values, masks)
            if layer + 1 == self.layers:
                context, values, masks = context[rows], _at(values, rows), _at(masks, rows)
            if len(context):
                values = {
                    m: self.units[self.unit(layer, i, 0)](values[m], context, mask=masks[m])
                    for i, m in enumerate(self.modalities)
                }
            context = promoted
            weights.append(share)
        return Promoted(context, values, torch.stack(weights, dim=1))

    def _context(
        self, layer: int, context: Tensor, values: Mapping[Modality, Tensor], masks: Mapping[Modality, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """The context (N, M, D) promoted by each sequence and pooled over them, and the weights (N, M)."""
        versions = [
            self.units[self.unit(layer, i, 1)](context, values[m], context_mask=masks[m]).flatten(1)
            for i, m in enumerate(self.modalities)
        ]
        pooled, weights = self.pools[layer % len(self.pools)](torch.stack(versions, dim=1))
        return pooled.view_as(context), weights


def _at(tensors: Mapping[Modality, Tensor], rows: slice) -> dict[Modality, Tensor]:
    return {m: tensor[rows] for m, tensor in tensors.items()}


def positions_like(values: Tensor) -> Tensor:
    """(T, D) positions for (N, T, D): channel 2j is sin(t w_j), channel 2j + 1 cos(t w_j), w_j = 10000^(-2j / D)."""
    steps, width = values.shape[1:]
    rates = torch.exp(torch.arange(0, width, 2, device=values.device).float() * (-math.log(10000.0) / width))
    angles = torch.arange(steps, device=values.device).float()[:, None] * rates
    both = torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)
    return both[:, :width].to(values.dtype)
