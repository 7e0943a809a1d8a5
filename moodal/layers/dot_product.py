"""softmax(q k^T) v for many short sequences.

PyTorch's fused kernel is made for long sequences: on a CPU, with 50 to 150 steps, it spends most of its time on small
products, on clearing gradients and on putting them together again. Here each head of the whole batch is one batched
product that reads the projections where they lie. Everywhere else the fused kernel is used.

Shapes: N rows, T target steps, S source steps, H heads of width d. The scale is expected inside ``query``.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

#: Largest N * T * S for which the scores of one head are held at once (32 MB in float32).
LARGEST_SCORES = 8 * 2**20


def by_head(values: Tensor, source_steps: int) -> bool:
    """Whether :func:`dot_product` goes head by head for targets like ``values`` (N, T, D), outside of compilation."""
    if torch.compiler.is_compiling() or values.device.type != "cpu" or torch.is_autocast_enabled("cpu"):
        return False
    return values.shape[0] * values.shape[1] * source_steps <= LARGEST_SCORES


def dot_product(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, *, heads_alone: bool) -> Tensor:
    """(N, T, H, d), (N, S, H, d) twice -> (N, T, H, d). ``mask``: (N, S), at least one real step in every row."""
    hidden = None if mask is None else additive(mask, query.dtype)
    if heads_alone:
        return _ByHead.apply(query, key, value, hidden)
    spread = None if hidden is None else hidden.unsqueeze(1)
    parts = (part.transpose(1, 2) for part in (query, key, value))
    return F.scaled_dot_product_attention(*parts, attn_mask=spread, scale=1.0).transpose(1, 2)


def additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """(N, S) -> (N, 1, S): 0 on real steps and minus infinity elsewhere, which kernels add faster than they select."""
    zeros = torch.zeros(mask.shape, dtype=dtype, device=mask.device)
    return zeros.masked_fill(~mask, float("-inf")).unsqueeze(1)


class _ByHead(torch.autograd.Function):
    """One head after the other; the weights are kept for the backward pass, in pieces small enough to be reused."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, hidden: Tensor | None) -> Tensor:
        rows, steps, heads, _ = query.shape
        mixed = query.new_empty(query.shape)
        scores = query.new_empty(rows, steps, key.shape[1])
        weights = []
        for h in range(heads):
            if hidden is None:
                torch.bmm(query[:, :, h], key[:, :, h].transpose(1, 2), out=scores)
            else:
                torch.baddbmm(hidden, query[:, :, h], key[:, :, h].transpose(1, 2), out=scores)
            weights.append(scores.softmax(dim=-1))
            mixed[:, :, h] = torch.bmm(weights[h], value[:, :, h])
        ctx.save_for_backward(query, key, value, mixed, *weights)
        return mixed

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, mixed, *weights = ctx.saved_tensors
        to_query, to_key, to_value = (part.new_empty(part.shape) for part in (query, key, value))
        # sum_j P_ij dP_ij, the part of the softmax's gradient that is common to a row.
        common = (gradient * mixed).sum(dim=-1)
        scores = query.new_empty(weights[0].shape)
        for h, weight in enumerate(weights):
            to_value[:, :, h] = torch.bmm(weight.transpose(1, 2), gradient[:, :, h])
            torch.bmm(gradient[:, :, h], value[:, :, h].transpose(1, 2), out=scores)
            scores.sub_(common[:, :, h, None]).mul_(weight)
            to_query[:, :, h] = torch.bmm(scores, key[:, :, h])
            to_key[:, :, h] = torch.bmm(scores.transpose(1, 2), query[:, :, h])
        return to_query, to_key, to_value, None
