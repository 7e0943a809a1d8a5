"""Ranking, triplet and transport losses: closed forms, loops as the slow truth, and what they do not depend on."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from moodal.losses.triplet import hard_triplet_loss, ranking_loss, transport_distance, transport_plan

WHO = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1])
HOW = torch.tensor([0, 1, 0, 1, 0, 1, 0, 1])


def test_ranking_of_two_antipodal_people_and_of_a_collapsed_batch():
    """At distance 2 only negatives of the own modality (limit 2.2) are too near; collapsed, 2.2 + 2.0 are missing."""
    apart = torch.where(WHO[:, None] == 0, 1.0, -1.0) * torch.ones(8, 3)
    assert float(ranking_loss(apart, WHO, HOW)) == pytest.approx(0.2, abs=1e-4)
    assert float(ranking_loss(torch.ones(8, 3), WHO, HOW)) == pytest.approx(4.2, abs=1e-4)


def test_ranking_is_that_of_a_loop_over_anchors():
    x = torch.randn(8, 5, generator=torch.Generator().manual_seed(0))
    unit = F.normalize(x, dim=1)
    total = 0.0
    for i in range(8):
        for margin, limit, own in ((0.9, 2.2, True), (1.0, 2.0, False)):
            rest = [j for j in range(8) if j != i and (HOW[j] == HOW[i]).item() == own]
            pulls = [max(0.0, float((unit[i] - unit[j]).norm()) + margin - limit) for j in rest if WHO[j] == WHO[i]]
            gaps = [limit - float((unit[i] - unit[j]).norm()) for j in rest if WHO[j] != WHO[i]]
            gaps = [gap for gap in gaps if gap > 0]
            weight = [math.exp(gap) for gap in gaps]
            total += sum(pulls) / (len(pulls) + 1e-5)
            total += sum(g * w for g, w in zip(gaps, weight)) / (sum(weight) + 1e-5)
    assert float(ranking_loss(x, WHO, HOW)) == pytest.approx(total / 8, rel=1e-5)
    assert float(ranking_loss(7 * x, WHO, HOW)) == pytest.approx(total / 8, rel=1e-5)  # lengths do not matter


def test_gradients_are_finite_where_embeddings_are_equal_or_alone():
    for rows in (slice(0, 8), slice(0, 4), slice(0, 1)):  # two people, one person, one picture
        x = torch.ones(8, 3)[rows].requires_grad_()
        (ranking_loss(x, WHO[rows], HOW[rows]) + hard_triplet_loss(x, WHO[rows])).backward()
        assert bool(torch.isfinite(x.grad).all())


def test_hard_triplets_take_the_furthest_positive_and_the_nearest_negative():
    angle = torch.tensor([0.0, 0.4, 0.1, 1.5]) * math.pi / 2
    x, who = torch.stack([angle.cos(), angle.sin()], dim=1), torch.tensor([0, 0, 1, 2])

    def chord(i: int, j: int) -> float:
        return 2 * math.sin(float((angle[i] - angle[j]).abs()) / 2)

    by_hand = [0.3 + chord(0, 1) - chord(0, 2), 0.3 + chord(0, 1) - chord(1, 2)]  # persons 1 and 2 have no positive
    assert float(hard_triplet_loss(x, who)) == pytest.approx(sum(by_hand) / 2, rel=1e-5)
    assert float(hard_triplet_loss(x, torch.arange(4))) == 0.0


def test_transport_between_one_hot_rows_moves_what_must_move():
    one, other = torch.eye(3)[[0, 0, 0, 0]], torch.eye(3)[[1, 1, 1, 1]]
    assert float(transport_distance(one, one)) == pytest.approx(0, abs=1e-6)
    assert float(transport_distance(one, other)) == pytest.approx(2, abs=1e-4)
    half = torch.eye(3)[[0, 0, 1, 1]]
    assert float(transport_distance(one, half)) == pytest.approx(1, abs=1e-3)


def test_transport_of_soft_rows_onto_themselves_is_small_but_not_zero():
    rows = torch.randn(12, 6, generator=torch.Generator().manual_seed(0)).softmax(dim=1)
    assert 0 < float(transport_distance(rows, rows)) < 0.01
    assert float(transport_distance(rows, rows, regulariser=0.001)) < float(transport_distance(rows, rows))


def test_the_plan_has_the_whole_mass_and_even_columns():
    draw = torch.Generator().manual_seed(1)
    cost = torch.rand(10, 7, generator=draw)
    plan = transport_plan(cost)
    assert float(plan.sum()) == pytest.approx(1, abs=1e-4)
    torch.testing.assert_close(plan.sum(dim=0), torch.full((7,), 1 / 7), atol=1e-5, rtol=0)
    exact = transport_plan(cost, tolerance=0.0, iterations=500)
    torch.testing.assert_close(exact.sum(dim=1), torch.full((10,), 1 / 10), atol=1e-4, rtol=0)


def test_transport_has_a_gradient_towards_the_other_rows():
    first = torch.tensor([[0.9, 0.1]], requires_grad=True)
    transport_distance(first, torch.tensor([[0.2, 0.8]])).backward()
    torch.testing.assert_close(first.grad, torch.tensor([[1.4, -1.4]]), atol=1e-4, rtol=0)
