"""Attention with dropout on its weights, on a CPU, in tiles: exact, and never a whole matrix of weights in memory.

Shapes: N rows, H heads, T queries, S keys, d width of a head.

The fused attention of a CPU knows no dropout; with it torch forms all N H T S weights and as many random numbers, several
times. Here the weights of a tile of queries are computed, dropped and used while they lie in the cache; backward computes
them again, from the logarithms of their sums, and draws the same random bits again. A tile reads no further than the
last key that one of its queries sees, so a causal mask saves work.
Source of the idea: Dao, Fu, Ermon, Rudra, Re. FlashAttention. NeurIPS 2022. arXiv 2205.14135.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from moodal.layers.dropout import VALUES, threshold

#: weights in a tile, so that it fits into the second cache of a core, and its queries at most.
_WEIGHTS, _QUERIES = 2**19, 64

#: rows, queries, keys.
_Tile = tuple[slice, slice, slice]


@torch.compiler.disable
def dropped_attention(query: Tensor, key: Tensor, value: Tensor, *, share: float, mask: Tensor | None = None) -> Tensor:
    """drop(softmax(q k^T + mask)) v, (N, H, T, d), (N, H, S, d), (N, H, S, e) -> (N, H, T, e). The query carries the scale.

    ``mask``: (N or 1, 1, T or 1, S), 0 where seen and minus infinity elsewhere; a query sees one key at least. ``share`` (to
    the nearest 1 / 65536) of the weights is dropped, the others are divided by what is kept. One number of torch's
    generator seeds the random bits.
    """
    seed = int(torch.randint(2**62, (), dtype=torch.int64))
    whole = None if mask is None else mask.expand(-1, -1, query.shape[2], -1)
    found: Tensor = _DroppedAttention.apply(query, key, value, whole, share, seed)
    return found


class _DroppedAttention(torch.autograd.Function):
    """Keys, values and results lie transposed, (N, H, d, S) and (N, H, e, T): the products of a tile are then fastest."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, share: float, seed: int
    ) -> Tensor:
        q, k, v = query, _turned(key), _turned(value)
        tiles, bits = _tiles(q.shape, k.shape[-1], mask), _Bits(share, seed)
        out, sums = v.new_empty((*v.shape[:3], q.shape[2])), q.new_empty(q.shape[:3])
        for rows, queries, keys in tiles:
            weights = _scores(q, k, mask, (rows, queries, keys))
            top = weights.amax(dim=-1, keepdim=True)
            total = weights.sub_(top).exp_().sum(dim=-1, keepdim=True)
            sums[rows, :, queries] = (top + total.log()).squeeze(-1)
            weights *= bits.kept(weights)
            out[rows, ..., queries] = v[rows, ..., keys] @ weights.mT * (bits.scale / total).mT
        ctx.save_for_backward(q, k, v, mask, out, sums)
        ctx.tiles, ctx.share, ctx.seed = tiles, share, seed
        return out.mT

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        q, k, v, mask, out, sums = ctx.saved_tensors
        bits, turned = _Bits(ctx.share, ctx.seed), _turned(gradient)
        of_weights, inner = turned.mT * bits.scale, (turned * out).sum(dim=2).unsqueeze(-1)
        # One more channel subtracts the logarithm of the sum within the product: its exponential is the weight.
        q_sums, k_ones = (
            torch.cat([q, -sums.unsqueeze(-1)], dim=-1),
            torch.cat([k, torch.ones_like(k[:, :, :1])], dim=2),
        )
        to_q, to_k, to_v = q.new_empty(q.mT.shape), torch.zeros_like(k), torch.zeros_like(v)
        for rows, queries, keys in ctx.tiles:
            weights = _scores(q_sums, k_ones, mask, (rows, queries, keys)).exp_()
            kept = bits.kept(weights)
            scores = of_weights[rows, :, queries] @ v[rows, ..., keys]
            scores.mul_(kept).sub_(inner[rows, :, queries]).mul_(weights)
            to_v[rows, ..., keys] += turned[rows, ..., queries] @ kept.mul_(weights)
            to_k[rows, ..., keys] += q[rows, :, queries].mT @ scores
            to_q[rows, ..., queries] = k[rows, ..., keys] @ scores.mT
        return to_q.mT, to_k.mT, to_v.mT * bits.scale, None, None, None


class _Bits:
    """What is kept, tile after tile, always the same for a seed; ``scale`` is one over the share kept.

    Backward draws them again from the seed; numpy's generator is made in no time and draws faster than torch's.
    """

    def __init__(self, share: float, seed: int) -> None:
        self.dropped = threshold(share)
        self.scale = VALUES / (VALUES - self.dropped)
        self.source = np.random.SFC64(seed)

    def kept(self, like: Tensor) -> Tensor:
        """Zeros and ones of the shape and type of ``like``."""
        count = like.numel()
        numbers = np.asarray(self.source.random_raw(-(-count // 4))).view(np.int16)[:count]
        signed = self.dropped - VALUES // 2
        return torch.ge(torch.from_numpy(numbers).view(like.shape), signed, out=torch.empty_like(like))


def _scores(q: Tensor, k: Tensor, mask: Tensor | None, tile: _Tile) -> Tensor:
    """(n, H, t, s) of one tile."""
    rows, queries, keys = tile
    scores = q[rows, :, queries] @ k[rows, ..., keys]
    if mask is not None:
        scores += mask[rows if len(mask) > 1 else slice(None), :, queries, keys]
    return scores


def _turned(values: Tensor) -> Tensor:
    """(N, H, T, d) -> (N, H, d, T), in that order in memory."""
    return values.mT.contiguous()


def _tiles(shape: torch.Size, keys: int, mask: Tensor | None) -> list[_Tile]:
    """Tiles that cover (N, H, T, d) queries, each with the keys that some of its queries see."""
    rows, heads, queries, _ = shape
    tiles = []
    for begin in range(0, queries, _QUERIES):
        chosen = slice(begin, min(begin + _QUERIES, queries))
        seen = slice(0, keys if mask is None else _last_seen(mask[:, 0, chosen]))
        count = max(1, _WEIGHTS // (heads * (chosen.stop - begin) * seen.stop))
        tiles += [(slice(n, min(n + count, rows)), chosen, seen) for n in range(0, rows, count)]
    return tiles


def _last_seen(mask: Tensor) -> int:
    """(N, T, S) additive mask -> how many keys there are up to the last that is seen."""
    seen = (mask > float("-inf")).flatten(0, 1).any(dim=0)
    return int((seen * torch.arange(1, len(seen) + 1)).amax().clamp(min=1))
