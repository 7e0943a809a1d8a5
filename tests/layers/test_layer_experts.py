"""Experts against a plain restatement (one row, one expert at a time), and what a router must and must not do."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from moodal.layers.experts import Experts, Router, Routing, balance_loss, router_z_loss

WIDTH, HIDDEN = 6, 10


def build(experts: int = 5, top_k: int = 3) -> tuple[Router, Experts]:
    torch.manual_seed(0)
    router = Router(WIDTH, experts=experts, top_k=top_k).eval()
    torch.nn.init.normal_(router.logits.weight, std=2.0)
    return router, Experts(WIDTH, hidden=HIDDEN, experts=experts)


def one_expert(block: Experts, number: int, x: Tensor) -> Tensor:
    hidden = F.gelu(x @ block.first[number].T + block.first_bias[number])
    return hidden @ block.second[number] + block.second_bias[number]


def row_by_row(block: Experts, x: Tensor, logits: Tensor, top_k: int) -> Tensor:
    """Each row through its best experts, softmax over their logits: plain loops."""
    outputs = []
    for row, scores in zip(x, logits):
        best = sorted(range(len(scores)), key=lambda e: -scores[e].item())[:top_k]
        total = sum(scores[e].exp() for e in best)
        outputs.append(sum(scores[e].exp() / total * one_expert(block, e, row) for e in best))
    return torch.stack(outputs)


@pytest.mark.parametrize(("rows", "steps"), [(7, 4), (7, 12), (37, 12)], ids=["few steps", "steps", "many rows"])
@pytest.mark.parametrize("top_k", [1, 2, 3, 5])
def test_equals_plain_loops_in_value_and_gradient(top_k: int, rows: int, steps: int):
    router, experts = build(top_k=top_k)
    x, condition = torch.randn(rows, steps, WIDTH), torch.randn(rows, WIDTH)
    parameters = [*experts.parameters(), *router.logits.parameters()]
    ours = experts(x, router(condition))
    theirs = row_by_row(experts, x, router.logits(condition), top_k)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    for a, b in zip(
        torch.autograd.grad(ours.sin().sum(), parameters), torch.autograd.grad(theirs.sin().sum(), parameters)
    ):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_all_experts_chosen_is_the_dense_softmax_mixture():
    router, experts = build(top_k=5)
    x, condition = torch.randn(7, 4, WIDTH), torch.randn(7, WIDTH)
    weights = router.logits(condition).softmax(dim=-1)
    dense = sum(weights[:, e, None, None] * one_expert(experts, e, x) for e in range(5))
    torch.testing.assert_close(experts(x, router(condition)), dense, rtol=1e-5, atol=1e-5)


def test_one_expert_is_one_feed_forward():
    router, experts = build(experts=1, top_k=1)
    x = torch.randn(7, 4, WIDTH)
    torch.testing.assert_close(
        experts(x, router(torch.randn(7, WIDTH))), one_expert(experts, 0, x), rtol=1e-5, atol=1e-5
    )


def test_gradient_reaches_chosen_experts_only():
    router, experts = build(top_k=2)
    condition = torch.randn(1, WIDTH)
    routing = router(condition)
    experts(torch.randn(1, 4, WIDTH), routing).sin().sum().backward()
    chosen = torch.zeros(5, dtype=torch.bool).scatter(0, routing.experts[0], True)
    for parameter in experts.parameters():
        assert parameter.grad.flatten(1).ne(0).any(dim=1).equal(chosen)


def test_noise_is_drawn_in_training_only():
    router, _ = build()
    condition = torch.randn(64, WIDTH)
    still = router(condition).gates
    assert router(condition).gates.equal(still)
    router.train()
    assert not router(condition).gates.equal(router(condition).gates)
    silent = Router(WIDTH, experts=5, top_k=3, noise=False).train()
    assert silent(condition).gates.equal(silent(condition).gates)


def test_gates_are_a_distribution_over_the_chosen():
    router, _ = build()
    routing = router(torch.randn(9, WIDTH))
    torch.testing.assert_close(routing.gates.sum(dim=1), torch.ones(9))
    assert routing.gates.gt(0).sum(dim=1).eq(3).all() and routing.kept.equal(routing.gates > 0)
    assert routing.gates.gather(1, routing.experts).equal(routing.weights)


def test_capacity_keeps_the_first_rows_and_does_not_renormalise():
    router, experts = build(experts=4, top_k=1)
    condition = torch.randn(1, WIDTH).expand(8, WIDTH)  # all rows choose one expert, which takes 8 * 1 / 4 = 2
    routing = router(condition, capacity=1.0)
    assert routing.weights[:, 0].equal(torch.tensor([1.0] * 2 + [0.0] * 6))
    mixed = experts(torch.randn(8, 3, WIDTH), routing)
    assert mixed[:2].ne(0).any() and mixed[2:].eq(0).all()
    assert router(condition[:1], capacity=0.1).weights.item() == 1.0  # never less than one row


def test_balance_loss_closed_forms():
    logits = torch.zeros(4, 2)
    even = Routing(logits, logits, torch.tensor([[0], [1], [0], [1]]), logits.bool(), torch.ones(4, 1))
    assert balance_loss(even).item() == pytest.approx(1.0)
    sure = torch.tensor([[50.0, -50.0]] * 4)
    uneven = Routing(sure, sure, torch.zeros(4, 1, dtype=torch.long), sure.bool(), torch.ones(4, 1))
    assert balance_loss(uneven).item() == pytest.approx(2.0)  # everything on one of two experts
    assert router_z_loss(even).item() == pytest.approx(torch.tensor(2.0).log().square().item())
