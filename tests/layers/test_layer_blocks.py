"""Attention in blocks of rows against attention written out."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from moodal.layers import blocks
from moodal.layers.attention import Attention
from moodal.layers.blocks import block_attention

ROWS, STEPS, KEYS, WIDTH, HEADS, HEAD_WIDTH, OUT = 7, 6, 9, 5, 3, 4, 2
INNER = HEADS * HEAD_WIDTH


def inputs(*, alone: bool, masked: bool) -> tuple[list[Tensor | None], Tensor | None]:
    """Target, source, weight, shift, out_weight, out_bias in float64; the additive mask."""
    torch.manual_seed(0)
    shapes = [(ROWS, STEPS, WIDTH), (ROWS, KEYS, WIDTH), (3, INNER, WIDTH), (INNER,), (OUT, INNER), (OUT,)]
    tensors: list[Tensor | None] = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    if alone:
        tensors[1] = None
    hidden = torch.zeros(ROWS, 1, STEPS if alone else KEYS, dtype=torch.float64)
    hidden[1, :, 2:], hidden[5, :, :3] = -torch.inf, -torch.inf
    return tensors, hidden if masked else None


def written_out(tensors: list[Tensor | None], hidden: Tensor | None) -> Tensor:
    target, source, weight, shift, out_weight, out_bias = tensors
    assert target is not None and weight is not None and shift is not None and out_weight is not None
    source = target if source is None else source
    query, key, value = (
        (steps @ own.T + (shift if number == 0 else 0)).unflatten(-1, (HEADS, HEAD_WIDTH)).transpose(1, 2)
        for number, (steps, own) in enumerate(zip((target, source, source), weight))
    )
    scores = query @ key.mT
    weights = (scores if hidden is None else scores + hidden.unsqueeze(1)).softmax(dim=-1)
    return (weights @ value).transpose(1, 2).flatten(2) @ out_weight.T + out_bias


@pytest.mark.parametrize("alone", [True, False], ids=["self", "cross"])
@pytest.mark.parametrize("masked", [True, False], ids=["masked", "whole"])
@pytest.mark.parametrize("kept", [2**15, 0], ids=["weights kept", "computed again"])
@pytest.mark.parametrize("size", [1, 3 * HEADS * STEPS * KEYS, 2**21], ids=["by row", "blocks", "one block"])
def test_values_and_gradients_are_those_of_attention_written_out(
    alone: bool, masked: bool, kept: int, size: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(blocks, "_WEIGHTS", size)
    monkeypatch.setattr(blocks, "_KEPT", kept)
    tensors, hidden = inputs(alone=alone, masked=masked)
    found = block_attention(*tensors, heads=HEADS, hidden=hidden)  # type: ignore[arg-type]
    wanted = written_out(tensors, hidden)
    torch.testing.assert_close(found, wanted)
    leaves = [tensor for tensor in tensors if tensor is not None]
    cotangent = torch.randn_like(wanted)
    for mine, other in zip(*(torch.autograd.grad((y * cotangent).sum(), leaves) for y in (found, wanted))):
        torch.testing.assert_close(mine, other)


def test_blocks_cover_all_rows_once_and_are_of_like_size(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(blocks, "_WEIGHTS", 100)
    for rows, weights in ((64, 13), (7, 1000), (1, 5), (100, 1)):
        found = blocks._blocks(rows, weights)
        assert [n for block in found for n in range(rows)[block]] == list(range(rows))
        sizes = [block.stop - block.start for block in found]
        assert max(sizes) <= max(1, 100 // weights) and max(sizes) - min(sizes) <= len(found)


@pytest.mark.parametrize("source", [None, torch.randn(32, 20, 16)], ids=["self", "cross"])
def test_attention_gives_the_same_in_blocks_and_by_the_kernel(source: Tensor | None, monkeypatch: pytest.MonkeyPatch):
    torch.manual_seed(0)
    attention = Attention(16, heads=4, head_width=8)
    torch.nn.init.normal_(attention.shift)
    values, mask = torch.randn(32, 30, 16), torch.rand(32, 30 if source is None else 20) < 0.7
    mask[:, 0] = True
    in_blocks = attention(values, source, mask=mask)
    monkeypatch.setattr("moodal.layers.attention.fits_blocks", lambda *_: False)
    torch.testing.assert_close(attention(values, source, mask=mask), in_blocks, atol=1e-5, rtol=1e-5)


def test_nothing_is_kept_without_gradients(monkeypatch: pytest.MonkeyPatch):
    kept: list[Tensor] = []
    monkeypatch.setattr(blocks, "_Saved", lambda *parts: kept.extend(parts) or parts)
    tensors, _ = inputs(alone=True, masked=False)
    with torch.no_grad():
        block_attention(*tensors, heads=HEADS)  # type: ignore[arg-type]
    assert not kept
    block_attention(*tensors, heads=HEADS)  # type: ignore[arg-type]
    assert kept


def test_autocast_computes_in_float32():
    tensors, _ = inputs(alone=True, masked=False)
    single = [None if tensor is None else tensor.detach().float() for tensor in tensors]
    plain = block_attention(*single, heads=HEADS)  # type: ignore[arg-type]
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(block_attention(*single, heads=HEADS), plain, atol=0, rtol=0)  # type: ignore[arg-type]
