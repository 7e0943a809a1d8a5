"""Masks: padded steps never count, rows without any real step give zeros."""

from __future__ import annotations

import pytest
import torch

from moodal.core.errors import MoodalError
from moodal.layers.masks import (
    check_steps,
    joined,
    lengths_to_mask,
    masked_last,
    masked_mean,
    masked_softmax,
    pad_steps,
)

MASK = torch.tensor([[True, True, False], [False, False, False], [True, True, True]])


def test_lengths_become_a_mask():
    assert lengths_to_mask(torch.tensor([2, 0, 3]), 3).equal(MASK)


def test_mean_is_over_real_steps_and_zero_without_any():
    values = torch.randn(3, 3, 4)
    values[0, 2] = 1e6
    mean = masked_mean(values, MASK)
    torch.testing.assert_close(mean[0], values[0, :2].mean(dim=0))
    assert mean[1].eq(0).all()
    torch.testing.assert_close(mean[2], masked_mean(values, None)[2])


def test_softmax_gives_nothing_to_padding_and_zeros_without_real_steps():
    scores = torch.randn(3, 3, requires_grad=True)
    weights = masked_softmax(scores, MASK)
    torch.testing.assert_close(weights.sum(dim=-1), torch.tensor([1.0, 0.0, 1.0]))
    assert weights[0, 2] == 0
    weights.square().sum().backward()
    assert scores.grad.isfinite().all() and scores.grad[1].eq(0).all()


def test_last_real_step():
    values = torch.randn(3, 3, 4)
    last = masked_last(values, MASK)
    assert last[0].equal(values[0, 1]) and last[1].eq(0).all() and last[2].equal(values[2, 2])


def test_padding_appends_steps_that_are_not_real():
    values, mask = pad_steps(torch.ones(2, 3, 4), None, 5)
    assert values.shape == (2, 5, 4) and values[:, 3:].eq(0).all()
    assert mask.equal(torch.tensor([[True] * 3 + [False] * 2] * 2))
    ids, mask = pad_steps(torch.ones(2, 3, dtype=torch.long), torch.ones(2, 3, dtype=torch.bool), 4)
    assert ids.shape == mask.shape == (2, 4) and not mask[:, 3].any()


def test_joining_fills_in_missing_masks():
    parts = [torch.zeros(3, 2, 1), torch.zeros(3, 3, 1)]
    assert joined([None, None], parts) is None
    assert joined([None, MASK], parts).equal(torch.cat([torch.ones(3, 2, dtype=torch.bool), MASK], dim=1))


def test_too_long_a_sequence_names_the_setting():
    check_steps("audio", 5, 5, "model.max_steps")
    with pytest.raises(MoodalError, match=r"audio has 6 steps and model\.max_steps allows 5"):
        check_steps("audio", 6, 5, "model.max_steps")
