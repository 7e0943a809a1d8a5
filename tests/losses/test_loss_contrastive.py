"""Contrast of pairs: closed forms of the loss, its bounds, and rows that take no part."""

from __future__ import annotations

import math

import pytest
import torch

from moodal.losses.contrastive import contrastive_loss, cosine_scores

ROWS = 32


def vectors(rows: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_by_hand():
    anchors, others = torch.tensor([[3.0, 0.0], [0.0, 2.0]]), torch.tensor([[1.0, 1.0], [0.0, 5.0]])
    a, b = 0.5**0.5, 1.0  # cosines of the pairs; the others are 0 and a
    wanted = (math.log(math.exp(a) + 1) - a + math.log(math.exp(a) + math.e) - b) / 2
    assert contrastive_loss(anchors, others).item() == pytest.approx(wanted, rel=1e-6)


def test_between_the_best_and_the_worst_of_all_vectors():
    """Equal pairs that oppose all others cannot be beaten, nor can opposed pairs among equals."""
    line = vectors(1, 8).expand(ROWS, 8)
    assert contrastive_loss(line, line).item() == pytest.approx(math.log(ROWS), abs=1e-6)
    best, worst = math.log(1 + (ROWS - 1) * math.exp(-2)), math.log(1 + (ROWS - 1) * math.exp(2))
    assert (best, worst) == (pytest.approx(1.6478, abs=1e-4), pytest.approx(5.438, abs=1e-3))
    for seed in range(5):
        assert best < contrastive_loss(vectors(ROWS, 3, seed), vectors(ROWS, 3, seed + 50)).item() < worst
    two = torch.tensor([[1.0], [-1.0]])  # two rows reach both ends
    assert contrastive_loss(two, two).item() == pytest.approx(math.log(1 + math.exp(-2)), rel=1e-6)
    assert contrastive_loss(two, -two).item() == pytest.approx(math.log(1 + math.exp(2)), rel=1e-6)


def test_unrelated_vectors_cost_about_the_logarithm_of_their_number():
    found = [float(contrastive_loss(vectors(256, 64, seed), vectors(256, 64, seed + 99))) for seed in range(5)]
    assert sum(found) / 5 == pytest.approx(math.log(256), abs=0.05)


@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_orthogonal_pairs(temperature: float):
    units = torch.eye(ROWS)
    wanted = math.log(1 + (ROWS - 1) * math.exp(-1 / temperature))
    assert contrastive_loss(units, units, temperature=temperature).item() == pytest.approx(wanted, abs=1e-6)


def test_lengths_do_not_count_and_sides_do():
    one, other = vectors(6, 4), vectors(6, 4, 1)
    loss = contrastive_loss(one, other)
    lengths = torch.arange(1, 7, dtype=torch.float64)[:, None]
    torch.testing.assert_close(contrastive_loss(one * lengths, other / lengths), loss)
    assert not torch.isclose(contrastive_loss(other, one), loss)


def test_rows_that_are_not_valid_are_as_if_they_were_not_there():
    one, other = vectors(7, 4), vectors(7, 4, 1)
    valid = torch.tensor([True, False, True, True, False, True, True])
    torch.testing.assert_close(contrastive_loss(one, other, valid=valid), contrastive_loss(one[valid], other[valid]))
    one = one.masked_fill(~valid[:, None], 0.0).requires_grad_()
    contrastive_loss(one, other, valid=valid).backward()
    assert (
        bool(one.grad.isfinite().all()) and bool((one.grad[~valid] == 0).all()) and bool((one.grad[valid] != 0).any())
    )


@pytest.mark.parametrize("count", [0, 1])
def test_with_nobody_to_tell_it_from_the_loss_is_0(count: int):
    one = vectors(4, 3).requires_grad_()
    loss = contrastive_loss(one, vectors(4, 3, 1), valid=torch.arange(4) < count)
    loss.backward()
    assert loss == 0 and bool((one.grad == 0).all())
    assert contrastive_loss(vectors(1, 3), vectors(1, 3, 1)) == 0


def test_zeros_have_the_cosine_0():
    assert cosine_scores(torch.zeros(2, 3), torch.ones(4, 3)).tolist() == [[0.0] * 4] * 2
