"""Multi-head attention with a LayerNorm of its own before each of query, key and value.

Shapes: N rows, T target steps, S source steps, D width, H heads of width d. The three norms of a self-attention see
the same input: it is standardised once, and their scales and shifts are folded into the projections, so that query,
key and value come from one input without three norms of it. Source: Rao et al., AAAI 2026, figure 3 (pre-norm attention).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moodal.layers.blocks import block_attention, fits_blocks
from moodal.layers.dropout import Dropout, drop
from moodal.layers.masks import additive
from moodal.layers.tiles import dropped_attention

EPSILON = 1e-5
#: Up to this many steps squared, or so many weights in all, attention on a CPU is two plain products.
_SHORT = 64
_SMALL = 2**18


def uniform_(tensor: Tensor, fan_in: int) -> None:
    """Fill with the uniform distribution that ``nn.Linear`` uses for weights and biases."""
    bound = fan_in**-0.5
    nn.init.uniform_(tensor, -bound, bound)


def standardise(values: Tensor) -> Tensor:
    """LayerNorm without scale and shift over the last axis."""
    return F.layer_norm(values, (values.shape[-1],), eps=EPSILON)


class Attention(nn.Module):
    """out(softmax(q k^T / sqrt(d)) v) with q, k, v = W LN(x), no biases in the three maps, one in the output map."""

    def __init__(self, width: int, *, heads: int, head_width: int, dropout: float = 0.0) -> None:
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
        self.dropout = Dropout(dropout)

    def forward(self, target: Tensor, source: Tensor | None = None, *, mask: Tensor | None = None) -> Tensor:
        """(N, T, D) attends to ``source`` (N, S, D), or to itself. ``mask``: (N, S), one real step per row at least."""
        hidden = None if mask is None else additive(mask, target.dtype)
        x = standardise(target)
        y = x if source is None else standardise(source)
        # Whichever is smaller takes the norms' factors: the maps, or the steps.
        few = x.shape[0] * x.shape[1] < self.weight.shape[1]
        if not few and fits_blocks(x, y, self.heads):
            weight, shift = self._scaled_maps()
            maps = weight, shift, self.out.weight, self._out_bias()
            return self.dropout(
                block_attention(x, None if source is None else y, *maps, heads=self.heads, hidden=hidden)
            )
        mapped = self._of_scaled_steps(x, y) if few else self._of_scaled_maps(x, y)
        query, key, value = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in mapped)
        mixed = scaled_attention(query, key, value, None if hidden is None else hidden.unsqueeze(1))
        return self._leave(mixed.transpose(1, 2).flatten(2), self.out.bias if few else self._out_bias())

    def at(self, sequence: Tensor, places: Sequence[int], *, mask: Tensor | None = None) -> Tensor:
        """Self-attention of (N, T, D) evaluated at the steps ``places`` only: (N, len(places), D).

        Keys and values are never formed: W_k moves to the query and W_v behind the weighted mean, because
        (W_q a)·(W_k b) = (W_k^T W_q a)·b. With few queries this is cheaper by about head_width / len(places).
        """
        steps = standardise(sequence)
        weight, shift = self._scaled_maps()
        chosen = torch.stack([steps[:, place] for place in places], dim=1)
        rows, count, width = chosen.shape
        by_head = weight.view(3, self.heads, self.head_width, width)
        query = F.linear(chosen, weight[0], shift).view(-1, self.heads, self.head_width).transpose(0, 1)
        reach = torch.bmm(query, by_head[1]).view(self.heads, rows, count, width)
        reach = reach.permute(1, 2, 0, 3).flatten(1, 2)  # (N, count * H, D)
        scores = torch.bmm(reach, steps.transpose(1, 2))
        if mask is not None:
            scores = scores + additive(mask, scores.dtype)
        mean = torch.bmm(scores.softmax(dim=-1), steps).view(rows * count, self.heads, width).transpose(0, 1)
        value = torch.bmm(mean, by_head[2].transpose(1, 2))
        return self._leave(value.transpose(0, 1).reshape(rows, count, -1), self._out_bias())

    def _of_scaled_steps(self, target: Tensor, source: Tensor) -> list[Tensor]:
        """Query, key and value (N, T, H d) as written: W (s * x + b). The softmax does not see the key's shift."""
        factors, shift = self.scale * self.unit, self.shift * self.unit
        scaled = (
            torch.addcmul(shift[0], target, factors[0]),
            source * factors[1],
            torch.addcmul(shift[2], source, factors[2]),
        )
        return [F.linear(steps, own) for steps, own in zip(scaled, self.weight)]

    def _of_scaled_maps(self, target: Tensor, source: Tensor) -> list[Tensor]:
        """The same up to the value's shift, which enters in ``_out_bias``; one product for the maps of one input."""
        weight, shift = self._scaled_maps()
        parts = [(target, weight)] if target is source else [(target, weight[:1]), (source, weight[1:])]
        mapped = [part for steps, own in parts for part in F.linear(steps, own.flatten(0, 1)).chunk(len(own), dim=-1)]
        return [mapped[0] + shift, *mapped[1:]]

    def _scaled_maps(self) -> tuple[Tensor, Tensor]:
        """Maps (3, H d, D) of the standardised input and the query's bias (H d): W (s * x + b) = (W s) x + W b.

        The query's carry the scale 1 / sqrt(d). The key's W b adds the same to all scores of a query, which the softmax
        does not see; the value's passes through the weighted mean unchanged and is added in ``_out_bias``.
        """
        factors = self.scale * self.unit
        return self.weight * factors.unsqueeze(1), self.weight[0] @ (self.shift[0] * self.unit[0])

    def _out_bias(self) -> Tensor:
        """(C,) the output map's bias, with the value's shift carried through the map."""
        return self.out.bias + self.out.weight @ (self.weight[2] @ self.shift[2])

    def _leave(self, mixed: Tensor, bias: Tensor) -> Tensor:
        """The output map of (N, T, H d)."""
        return self.dropout(F.linear(mixed, self.out.weight, bias))


def scaled_attention(
    query: Tensor, key: Tensor, value: Tensor, hidden: Tensor | None, *, dropout: float = 0.0
) -> Tensor:
    """softmax(q k) v over (N, H, T, d), ``hidden`` added to the scores. Fused, except for short sequences on a CPU.

    There the fused kernel has more to do around the work than the work (measured at 51 steps: two plain products take
    0.6 of its time, forward and backward, and less for one clip, of 153 steps too). On a CPU always in float32, where
    the kernel's 16-bit backward pass is several times slower, and in tiles where weights are dropped, which that kernel
    cannot.
    The query carries the scale; ``dropout`` is the share of weights dropped now.
    """
    if query.device.type != "cpu":
        return F.scaled_dot_product_attention(query, key, value, attn_mask=hidden, dropout_p=dropout, scale=1.0)
    with torch.autocast("cpu", enabled=False):
        query, key, value = query.float(), key.float(), value.float()
        pairs = query.shape[2] * key.shape[2]
        if pairs > _SHORT**2 and pairs * query.shape[:2].numel() > _SMALL:
            wide = None if hidden is None else hidden.float()
            if dropout > 0:
                return dropped_attention(query, key, value, share=dropout, mask=wide)
            return F.scaled_dot_product_attention(query, key, value, attn_mask=wide, scale=1.0)
        scores = query @ key.transpose(2, 3)
        if hidden is not None:
            scores += hidden.float()  # in place: a product does not need its result for its gradient
        return drop(scores.softmax(dim=-1), dropout) @ value


class FeedForward(nn.Module):
    """W2 GELU(W1 LN(x) + b1) + b2."""

    def __init__(self, width: int, hidden: int, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=EPSILON)
        self.first = nn.Linear(width, hidden)
        self.second = nn.Linear(hidden, width)
        self.dropout = Dropout(dropout)

    def forward(self, values: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        return self.dropout(self.second(self.dropout(F.gelu(self.first(self.norm(values))))))
