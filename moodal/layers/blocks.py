"""Multi-head attention from its maps in to its map out, on a CPU, one block of rows after the other: exact.

Shapes: N rows, n rows of a block, T queries, S keys, D width, H heads of width d, C width of the result.

What attention costs on a CPU beside its products is memory: heads copied apart and together again, every result on new
pages. Here a block of rows goes through all of it while it lies in the cache, its steps first (T n, H d): the heads of
all its rows are then matrices at equal distances, which a batched product reads where they are. The weights of short
sequences are kept for the backward pass, those of long ones computed again.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.amp import custom_bwd, custom_fwd
from torch.autograd.function import once_differentiable

#: weights (H T S) in a block; a row that has more is a block of its own.
_WEIGHTS = 2**21
#: queries times keys up to which weights are kept.
_KEPT = 2**15
#: weights of a row from which on they should not all be formed at once.
_MANY = 2**24


def fits_blocks(target: Tensor, source: Tensor, heads: int) -> bool:
    """Whether ``block_attention`` of (N, T, D) over (N, S, D) pays: on a CPU, unless rows are very long."""
    few = heads * target.shape[1] * source.shape[1] <= _MANY
    return few and target.device.type == "cpu" and not torch.compiler.is_compiling()


def block_attention(
    target: Tensor,
    source: Tensor | None,
    weight: Tensor,
    shift: Tensor,
    out_weight: Tensor,
    out_bias: Tensor,
    *,
    heads: int,
    hidden: Tensor | None = None,
) -> Tensor:
    """out(softmax(q k^T + hidden) v) of (N, T, D) over ``source`` (N, S, D), or over itself: (N, T, C).

    ``weight``: (3, H d, D) of query (which carries the scale), key, value; ``shift`` (H d) the query's bias;
    ``out_weight`` (C, H d), ``out_bias`` (C). ``hidden``: (N, 1, S), 0 where seen and minus infinity elsewhere; a row
    sees one key at least. Under autocast too in float32: few CPUs multiply 16-bit numbers faster.
    """
    tensors = (target, source, weight, shift, out_weight, out_bias, hidden)
    found: Tensor = _BlockAttention.apply(*tensors, heads, torch.is_grad_enabled())
    return found


class _Saved(NamedTuple):
    """What the backward pass needs of a block."""

    target: Tensor  # (T n, D)
    source: Tensor  # (S n, D)
    query: Tensor  # (n H, T, d)
    key: Tensor  # (n H, S, d)
    value: Tensor  # (n H, S, d)
    mixed: Tensor  # (T n, H d)
    weights: Tensor | None  # (n H, T, S), None where computed again
    hidden: Tensor | None  # (n, 1, S), None where all keys are seen


class _BlockAttention(torch.autograd.Function):
    @staticmethod
    @custom_fwd(device_type="cpu", cast_inputs=torch.float32)
    def forward(
        ctx: Any,
        target: Tensor,
        source: Tensor | None,
        weight: Tensor,
        shift: Tensor,
        out_weight: Tensor,
        out_bias: Tensor,
        hidden: Tensor | None,
        heads: int,
        remember: bool,
    ) -> Tensor:
        rows, steps, _ = target.shape
        keys = steps if source is None else source.shape[1]
        out = target.new_empty(rows, steps, len(out_weight))
        blocks = _blocks(rows, heads * steps * keys)
        saved: list[Tensor | None] = []
        for block in blocks:
            count = block.stop - block.start
            x = _steps_first(target[block])
            y = x if source is None else _steps_first(source[block])
            query = _by_head((x @ weight[0].T).add_(shift), count, heads)
            key, value = (_by_head(y @ own.T, count, heads) for own in weight[1:])
            seen = None if hidden is None or not hidden[block].any() else hidden[block]
            weights = _weights(query, key, seen)
            mixed = _together(weights @ value, count)
            out[block] = _rows_first(torch.addmm(out_bias, mixed, out_weight.T), count)
            if remember:
                kept = weights if steps * keys <= _KEPT else None
                saved += _Saved(x, y, query, key, value, mixed, kept, seen)
        ctx.save_for_backward(weight, out_weight, *saved)
        ctx.blocks, ctx.heads, ctx.keys, ctx.alone = blocks, heads, keys, source is None
        return out

    @staticmethod
    @once_differentiable
    @custom_bwd(device_type="cpu")
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        weight, out_weight, *saved = ctx.saved_tensors
        rows, steps, _ = gradient.shape
        of_weight, of_shift = torch.zeros_like(weight), weight.new_zeros(weight.shape[1])
        of_out, of_bias = torch.zeros_like(out_weight), gradient.sum(dim=(0, 1))
        of_target = gradient.new_empty(rows, steps, weight.shape[2])
        of_source = None if ctx.alone else gradient.new_empty(rows, ctx.keys, weight.shape[2])
        size = len(_Saved._fields)
        for number, block in enumerate(ctx.blocks):
            of = _Saved(*saved[number * size : (number + 1) * size])
            count = block.stop - block.start
            arriving = _steps_first(gradient[block])
            of_out.addmm_(arriving.T, of.mixed)
            of_mixed = _by_head(arriving @ out_weight, count, ctx.heads)
            weights = _weights(of.query, of.key, of.hidden) if of.weights is None else of.weights
            scores = of_mixed @ of.value.mT
            torch._softmax_backward_data(scores, weights, -1, scores.dtype, grad_input=scores)
            to_query = _together(scores @ of.key, count)
            to_key = _together(scores.mT @ of.query, count)
            to_value = _together(weights.mT @ of_mixed, count)
            of_shift += to_query.sum(dim=0)
            of_weight[0].addmm_(to_query.T, of.target)
            of_weight[1].addmm_(to_key.T, of.source)
            of_weight[2].addmm_(to_value.T, of.source)
            to_target = to_query @ weight[0]
            to_source = to_target if of_source is None else torch.zeros_like(of.source)
            to_source.addmm_(to_key, weight[1]).addmm_(to_value, weight[2])
            of_target[block] = _rows_first(to_target, count)
            if of_source is not None:
                of_source[block] = _rows_first(to_source, count)
        return of_target, of_source, of_weight, of_shift, of_out, of_bias, None, None, None


def _blocks(rows: int, weights: int) -> list[slice]:
    """The rows, each of so many ``weights``, in blocks of nearly the same size."""
    size = min(rows, max(1, _WEIGHTS // weights))
    size = -(-rows // -(-rows // size))
    return [slice(begin, min(begin + size, rows)) for begin in range(0, rows, size)]


def _weights(query: Tensor, key: Tensor, hidden: Tensor | None) -> Tensor:
    """softmax(q k^T + hidden), (n H, T, S)."""
    scores = query @ key.mT
    if hidden is not None:
        scores.view(len(hidden), -1, *scores.shape[1:]).add_(hidden.unsqueeze(1))
    return torch._softmax(scores, -1, False, out=scores)


def _steps_first(values: Tensor) -> Tensor:
    """(n, T, D) -> (T n, D)."""
    return values.transpose(0, 1).flatten(0, 1)


def _rows_first(values: Tensor, rows: int) -> Tensor:
    """(T n, D) -> (n, T, D)."""
    return values.view(-1, rows, values.shape[1]).transpose(0, 1)


def _by_head(values: Tensor, rows: int, heads: int) -> Tensor:
    """(T n, H d) -> (n H, T, d), where it lies."""
    return values.view(-1, rows * heads, values.shape[1] // heads).transpose(0, 1)


def _together(values: Tensor, rows: int) -> Tensor:
    """(n H, T, d) -> (T n, H d)."""
    return values.transpose(0, 1).reshape(values.shape[1] * rows, -1)
