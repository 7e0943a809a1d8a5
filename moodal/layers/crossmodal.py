"""The crossmodal encoder: a target sequence reads a source sequence, block after block; or a sequence reads itself.

Shapes: N rows, T target steps, S source steps, D width, H heads. Per block, with one LayerNorm for query, key and value:

    z = z + Drop(MHA(LN0(z), LN0(k0), LN0(v0)))      z = z + Drop(W2 Drop(ReLU(W1 LN1(z))))      at the end LN(z)

k0 and v0 are the source as it enters (times sqrt(D), plus positions) in every block. Self-attention reads z itself.
Causal: step i of the target sees the source up to step i + |S - T|, T and S being the real lengths of the row.
Source: Tsai et al., ACL 2019 (arXiv 1906.00295), section 3.2; yaohungt/Multimodal-Transformer @ a670936 for what the
paper leaves open. ``reference`` computes as published: positions where channel 0 is not exactly 0, T and S with padding,
keys on padding, the last step whether real or not.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moodal.core.errors import check
from moodal.layers.attention import scaled_attention
from moodal.layers.dropout import Dropout
from moodal.layers.masks import masked_last
from moodal.layers.positions import first_step, places, places_by_channel, sinusoids, span
from moodal.layers.transformer import Sequence

#: key and value (N, S, D) before LN0, or None where a sequence reads itself.
Source = tuple[Tensor, Tensor] | None


@dataclass(frozen=True, kw_only=True)
class CrossmodalDropout:
    """Shares dropped: of a sequence as it enters, of attention weights, inside the feed-forward, of each residual."""

    embedding: float = 0.0
    attention: float = 0.0
    relu: float = 0.0
    residual: float = 0.0


class Sight(NamedTuple):
    """``mask`` (N or 1, 1, T, S): 0 where a query sees a key, which is once at least, and minus infinity elsewhere (None: it
    sees all). ``present`` (N, 1, 1): rows that have a source (None: all); the others take nothing from it."""

    mask: Tensor | None = None
    present: Tensor | None = None


class PackedAttention(nn.Module):
    """Multi-head attention whose three maps are one (3 D, D) matrix; Xavier over that whole matrix, biases 0."""

    def __init__(self, width: int, *, heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        check(width % heads == 0, f"The width {width} is not a multiple of the number of heads, {heads}.")
        self.heads, self.dropout = heads, dropout
        self.weight = nn.Parameter(torch.empty(3 * width, width))
        self.bias = nn.Parameter(torch.zeros(3 * width))
        nn.init.xavier_uniform_(self.weight)
        self.out = _linear(width, width)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, sight: Sight) -> Tensor:
        """(N, T, D) reads (N, S, D) -> (N, T, D)."""
        return self.look(*self.maps(query, key, value), sight)

    def maps(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Query, key and value through their maps; what is given twice is mapped in one product."""
        if query is key and key is value:
            q, k, v = F.linear(query, self.weight, self.bias).chunk(3, dim=-1)
            return q, k, v
        weights, biases = self.weight.chunk(3), self.bias.chunk(3)
        q = F.linear(query, weights[0], biases[0])
        if key is value:
            k, v = F.linear(key, self.weight[len(weights[0]) :], self.bias[len(biases[0]) :]).chunk(2, dim=-1)
            return q, k, v
        return q, F.linear(key, weights[1], biases[1]), F.linear(value, weights[2], biases[2])

    def look(self, query: Tensor, key: Tensor, value: Tensor, sight: Sight) -> Tensor:
        """What follows the maps: (N, T, D), (N, S, D) twice -> (N, T, D)."""
        query = query * (query.shape[-1] // self.heads) ** -0.5
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (query, key, value))
        mixed = scaled_attention(q, k, v, sight.mask, dropout=self.dropout if self.training else 0.0)
        found: Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return found if sight.present is None else found * sight.present


class ReluFeedForward(nn.Module):
    """Drop(W2 Drop(ReLU(W1 LN(x) + b1)) + b2); Xavier, biases 0."""

    def __init__(self, width: int, hidden: int, *, dropout: CrossmodalDropout) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.first, self.second = _linear(width, hidden), _linear(hidden, width)
        self.inner_dropout, self.dropout = Dropout(dropout.relu), Dropout(dropout.residual)

    def forward(self, values: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        return self.dropout(self.second(self.inner_dropout(F.relu(self.first(self.norm(values))))))


class CrossmodalLayer(nn.Module):
    """One block: what the target sees is added to it, then the feed-forward."""

    def __init__(self, width: int, *, heads: int, hidden: int, dropout: CrossmodalDropout) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.attention = PackedAttention(width, heads=heads, dropout=dropout.attention)
        self.dropout = Dropout(dropout.residual)
        self.feed_forward = ReluFeedForward(width, hidden, dropout=dropout)

    def forward(self, target: Tensor, source: Source, sight: Sight) -> Tensor:
        """(N, T, D) reads ``source`` (N, S, D), or itself -> (N, T, D)."""
        query = self.norm(target)
        if source is None:
            key = value = query
        else:
            key = self.norm(source[0])
            value = key if source[1] is source[0] else self.norm(source[1])
        target = target + self.dropout(self.attention(query, key, value, sight))
        return target + self.feed_forward(target)


class CrossmodalEncoder(nn.Module):
    """``layers`` blocks and a LayerNorm. ``hidden``: of the feed-forward, 4 D unless given.

    ``positions``: add them to what enters (the port in MMSA does not). Raises ``MoodalError`` if ``heads`` does not
    divide ``width``.
    """

    def __init__(
        self,
        width: int,
        *,
        heads: int,
        layers: int,
        hidden: int | None = None,
        causal: bool = True,
        positions: bool = True,
        reference: bool = False,
        dropout: CrossmodalDropout | None = None,
    ) -> None:
        super().__init__()
        self.causal, self.positions, self.reference = causal, positions, reference
        shares = CrossmodalDropout() if dropout is None else dropout
        inner = 4 * width if hidden is None else hidden
        self.dropout = Dropout(shares.embedding)
        self.layers = nn.ModuleList(
            CrossmodalLayer(width, heads=heads, hidden=inner, dropout=shares) for _ in range(layers)
        )
        self.norm = nn.LayerNorm(width)

    def forward(self, target: Sequence, source: Sequence | None = None, *, last: bool = False) -> Tensor:
        """(N, T, D) reads ``source`` (N, S, D), or itself -> (N, T, D). What stands on unreal steps means nothing.

        ``last``: at the last real step alone, (N, D); zeros where there is none. The last block is evaluated at that step
        only, which sees the whole source: the same numbers for less work. As published: at all steps, and the last taken.
        """
        z, low = self._enter(target, source)
        seen = sight(target, source or target, causal=self.causal, reference=self.reference)
        *lower, top = self.layers
        for layer in lower:
            z = layer(z, low, seen)
        if self.reference or not last:
            found: Tensor = self.norm(top(z, low, seen))
            return found[:, -1] if last else found
        real = target[1]
        end = z[:, -1:] if real is None else masked_last(z, real).unsqueeze(1)
        whole = sight((end, None), source or target, causal=False)
        end = self.norm(top(end, (z, z) if low is None else low, whole)).squeeze(1)
        return end if real is None else end * real.any(dim=1, keepdim=True)

    def _enter(self, target: Sequence, source: Sequence | None) -> tuple[Tensor, Source]:
        """Target, and key and value, as they enter the first block; key and value differ in what was dropped only."""
        options = {"positions": self.positions, "reference": self.reference}
        z = self.dropout(enter(target, **options))
        if source is None:
            return z, None
        low = enter(source, **options)
        if not self.training or self.dropout.p == 0:
            return z, (low, low)
        return z, (self.dropout(low), self.dropout(low))


def enter(sequence: Sequence, *, positions: bool = True, reference: bool = False) -> Tensor:
    """(N, T, D) times sqrt(D), plus the positions of its real steps. ``reference``: of the steps whose channel 0 is not 0."""
    values, mask = sequence
    scaled = math.sqrt(values.shape[2]) * values
    if not positions:
        return scaled
    table = sinusoids(values.shape[1], values.shape[2], like=values)
    if reference:
        return scaled + table[places_by_channel(values)]
    return scaled + (table[1:] if mask is None else table[places(mask)])


def sight(target: Sequence, source: Sequence, *, causal: bool, reference: bool = False) -> Sight:
    """Which steps of (N, S, D) each step of (N, T, D) sees: real ones, and in the causal form none beyond i + |S - T|.

    ``reference``: padding counts as real. A row that reads itself and has no real step is left alone: all its steps mean nothing.
    """
    (values, own), (keys, other) = target, source
    if reference or (own is None and other is None):
        return Sight(_until(values, keys) if causal else None)
    if own is None:
        own = torch.ones(values.shape[:2], dtype=torch.bool, device=values.device)
    if other is None:
        other = torch.ones(keys.shape[:2], dtype=torch.bool, device=keys.device)
    present = other.any(dim=1)[:, None, None]
    seen = other[:, None]
    reads_itself = keys is values
    if causal:
        seen = seen & (_index(other)[:, None] <= _reach(own, other)[..., None])
    # A row without a source sees everything, so that no softmax is over nothing, and takes nothing (``present``).
    return Sight(_additive((seen | ~present).unsqueeze(1), values), None if reads_itself else present)


def _until(values: Tensor, keys: Tensor) -> Tensor:
    """(1, 1, T, S): step i sees keys up to i + |S - T|."""
    steps, length = values.shape[1], keys.shape[1]
    whole = torch.ones(steps, length, dtype=torch.bool, device=values.device)
    return _additive(whole.tril(abs(length - steps))[None, None], values)


def _additive(seen: Tensor, like: Tensor) -> Tensor:
    """0 where True, minus infinity elsewhere."""
    dtype = torch.promote_types(like.dtype, torch.float32)
    return torch.zeros(seen.shape, dtype=dtype, device=like.device).masked_fill_(~seen, float("-inf"))


def _index(mask: Tensor) -> Tensor:
    """(N, T) steps counted from the first real one, which is 0; negative before it."""
    return torch.arange(mask.shape[1], device=mask.device) - first_step(mask)[:, None]


def _reach(own: Tensor, other: Tensor) -> Tensor:
    """(N, T) the last of the source's S steps that each step of the target sees, both counted as in ``_index``; 0 at least."""
    return (_index(own) + (span(other) - span(own)).abs()[:, None]).clamp(min=0)


def _linear(inputs: int, outputs: int) -> nn.Linear:
    linear = nn.Linear(inputs, outputs)
    nn.init.xavier_uniform_(linear.weight)
    nn.init.zeros_(linear.bias)
    return linear
