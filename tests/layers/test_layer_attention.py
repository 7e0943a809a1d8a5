"""Attention against a plain restatement: three separate LayerNorms, explicit softmax, loops over heads."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from moodal.layers.attention import Attention
from moodal.layers.transformer import CrossAlignment, LinearAlignment, SequenceEncoder

SIZES = {"heads": 2, "head_width": 5}


def attention(width: int = 8, *, head_width: int = 5) -> Attention:
    torch.manual_seed(0)
    block = Attention(width, heads=2, head_width=head_width)
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return block


def plain(block: Attention, target: Tensor, source: Tensor, mask: Tensor | None) -> Tensor:
    """One LayerNorm per map, one head at a time."""
    query, key, value = (
        F.layer_norm(x, x.shape[-1:], block.scale[i], block.shift[i]) @ block.weight[i].T
        for i, x in enumerate((target, source, source))
    )
    heads = []
    for q, k, v in zip(*(x.split(block.head_width, dim=-1) for x in (query, key, value))):
        scores = q @ k.transpose(1, 2) / block.head_width**0.5
        if mask is not None:
            scores = scores.masked_fill(~mask[:, None, :], -torch.inf)
        heads.append(scores.softmax(dim=-1) @ v)
    return torch.cat(heads, dim=-1) @ block.out.weight.T + block.out.bias


def case(*, masked: bool, cross: bool, rows: int = 3, steps: int = 7) -> tuple[Tensor, Tensor, Tensor | None]:
    target = torch.randn(rows, steps, 8)
    source = torch.randn(rows, steps - 1, 8) if cross else target
    mask = torch.rand(source.shape[:2]) < 0.6
    mask[:, 0] = True
    return target, source, mask if masked else None


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("cross", [False, True])
@pytest.mark.parametrize(
    ("head_width", "rows", "steps"), [(5, 3, 7), (20, 3, 7), (50, 1, 80)], ids=["steps", "few steps", "one long clip"]
)
def test_equals_separate_norms_in_value_and_gradient(masked: bool, cross: bool, head_width: int, rows: int, steps: int):
    block = attention(head_width=head_width)
    target, source, mask = case(masked=masked, cross=cross, rows=rows, steps=steps)
    results = []
    for function in (lambda t, s: block(t, s if cross else None, mask=mask), lambda t, s: plain(block, t, s, mask)):
        t = target.clone().requires_grad_()
        s = source.clone().requires_grad_() if cross else t
        y = function(t, s)
        gradients = torch.autograd.grad(y.sin().sum(), [t, s, *block.parameters()], allow_unused=True)
        results.append((y, *gradients))
    for ours, theirs in zip(*results):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("masked", [False, True])
def test_few_queries_equal_those_rows_of_the_whole(masked: bool):
    block = attention()
    x, _, mask = case(masked=masked, cross=False)
    results = []
    for function in (lambda x: block.at(x, [0, 4], mask=mask), lambda x: block(x, mask=mask)[:, [0, 4]]):
        x = x.clone().requires_grad_()
        y = function(x)
        results.append((y, *torch.autograd.grad(y.sin().sum(), [x, *block.parameters()])))
    for ours, theirs in zip(*results):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_masked_steps_are_not_read():
    block = attention()
    x, _, mask = case(masked=True, cross=False)
    changed = torch.where(mask[..., None], x, torch.randn_like(x) * 100)
    torch.testing.assert_close(block(x, mask=mask)[mask], block(changed, mask=mask)[mask])
    torch.testing.assert_close(block.at(x, [0], mask=mask), block.at(changed, [0], mask=mask))


def test_sequence_encoder_puts_a_summary_in_front_and_ignores_padding():
    block = SequenceEncoder(8, steps=9, feed_forward=6, **SIZES)
    x = torch.randn(2, 5, 8)
    mask = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    y, seen = block(x, mask)
    assert y.shape == (2, 6, 8) and seen[:, 0].all() and seen[:, 1:].equal(mask)
    alone, _ = block(x[1:, :3], mask[1:, :3])
    torch.testing.assert_close(y[1, :4], alone[0], rtol=1e-5, atol=1e-5)


def test_sequence_without_real_steps_is_its_summary():
    block = SequenceEncoder(8, steps=9, feed_forward=6, **SIZES)
    nothing = torch.zeros(2, 4, dtype=torch.bool)
    y, _ = block(torch.randn(2, 4, 8), nothing)
    torch.testing.assert_close(y[0, 0], y[1, 0])
    assert y.isfinite().all()


def test_alignments_keep_the_explanation_in_the_lead():
    target, source = (torch.randn(2, 4, 8), torch.ones(2, 4).bool()), (torch.randn(2, 6, 8), torch.ones(2, 6).bool())
    cross = CrossAlignment(8, source_steps=6, target_steps=6, feed_forward=6, **SIZES)
    values, mask = cross(target, source)
    assert values.shape == (2, 4, 8) and mask.equal(target[1])
    values, mask = LinearAlignment(8)(target, source)
    assert values.shape == (2, 6, 8) and mask.all()
