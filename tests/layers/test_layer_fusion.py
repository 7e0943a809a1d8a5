"""Fusion and heads."""

from __future__ import annotations

import torch

from moodal.core.spec import Classification, Regression
from moodal.layers.fusion import GatedFusion, MeanFusion
from moodal.layers.heads import Head


def test_gates_weigh_the_vectors():
    block = GatedFusion(4, 3)
    vectors = torch.randn(5, 3, 4)
    fused, gates = block(vectors)
    torch.testing.assert_close(gates.sum(dim=1), torch.ones(5))
    torch.testing.assert_close(fused, sum(gates[:, i, None] * vectors[:, i] for i in range(3)))


def test_equal_gates_are_the_mean():
    block = GatedFusion(4, 3)
    torch.nn.init.zeros_(block.gate.weight)
    torch.nn.init.zeros_(block.gate.bias)
    vectors = torch.randn(5, 3, 4)
    for ours, theirs in zip(block(vectors), MeanFusion()(vectors)):
        torch.testing.assert_close(ours, theirs)


def test_head_follows_the_task():
    assert Head(8, Regression(-1, 1))(torch.randn(5, 8)).shape == (5,)
    assert Head(8, Classification(("a", "b", "c")))(torch.randn(5, 8)).shape == (5, 3)
