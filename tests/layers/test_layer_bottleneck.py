"""Gaussian codes: their divergence, their draws, products of experts."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.distributions import Normal, kl_divergence

from moodal.layers.bottleneck import Gaussian, GaussianBottleneck, product_of_experts
from moodal.losses.gaussian import standard_kl


def gaussian(rows: int = 5, width: int = 4, seed: int = 0) -> Gaussian:
    draw = torch.Generator().manual_seed(seed)
    return Gaussian(torch.randn(rows, width, generator=draw), 0.1 + torch.rand(rows, width, generator=draw))


def test_the_divergence_is_that_of_the_library():
    mean, deviation = gaussian()
    each = kl_divergence(Normal(mean, deviation), Normal(0.0, 1.0))
    torch.testing.assert_close(standard_kl(mean, deviation), each.sum(dim=1))
    torch.testing.assert_close(standard_kl(mean, deviation, reduction="mean"), each.mean(dim=1))


def test_the_divergence_of_the_prior_is_zero_and_of_unit_deviation_half_the_squared_mean():
    mean, one = torch.randn(3, 4), torch.ones(3, 4)
    assert not standard_kl(torch.zeros(3, 4), one).any()
    torch.testing.assert_close(standard_kl(mean, one), 0.5 * mean.square().sum(dim=1))


def test_a_deviation_that_underflowed_has_a_finite_divergence():
    assert bool(torch.isfinite(standard_kl(torch.zeros(1, 2), torch.zeros(1, 2))).all())


def test_a_new_bottleneck_starts_with_narrow_codes():
    block = GaussianBottleneck(6, 8)
    for parameter in block.parameters():
        nn.init.zeros_(parameter)
    mean, deviation = block(torch.randn(3, 6))
    torch.testing.assert_close(deviation, torch.full((3, 6), 0.0067153), rtol=1e-4, atol=0)
    torch.testing.assert_close(
        standard_kl(mean, deviation, reduction="mean"), torch.full((3,), 4.50338), rtol=1e-5, atol=0
    )


def test_draws_have_the_mean_and_the_deviation():
    torch.manual_seed(1)
    count, code = 100_000, gaussian(1, 6)
    draws = Gaussian(code.mean.expand(count, -1), code.deviation.expand(count, -1)).sample()
    error = code.deviation[0] / count**0.5
    assert bool(((draws.mean(dim=0) - code.mean[0]).abs() < 3 * error).all())
    assert bool(((draws.std(dim=0) - code.deviation[0]).abs() < 3 * error / 2**0.5).all())


def test_given_noise_is_scaled_and_shifted():
    code = gaussian()
    torch.testing.assert_close(code.sample(torch.ones(5, 4)), code.mean + code.deviation)


def test_experts_that_know_nothing_leave_the_prior():
    vague = [Gaussian(torch.randn(5, 4), torch.full((5, 4), 1e6)) for _ in range(3)]
    mean, deviation = product_of_experts(vague)
    torch.testing.assert_close(mean, torch.zeros(5, 4), rtol=0, atol=1e-5)
    torch.testing.assert_close(deviation, torch.ones(5, 4))


@pytest.mark.parametrize("deviation", [1e-3, 0.0])
def test_a_sure_expert_decides(deviation):
    sure = Gaussian(torch.randn(5, 4), torch.full((5, 4), deviation))
    mean, width = product_of_experts([gaussian(seed=1), sure, gaussian(seed=2)])
    torch.testing.assert_close(mean, sure.mean, rtol=0, atol=1e-3)
    assert bool((width <= max(deviation, 1e-5)).all())


def test_the_product_is_proportional_to_the_densities():
    experts, points = [gaussian(1, 1, seed) for seed in range(3)], torch.linspace(-2, 2, 7)
    logs = sum(Normal(e.mean[0], e.deviation[0]).log_prob(points) for e in experts) + Normal(0.0, 1.0).log_prob(points)
    product = product_of_experts(experts)
    rest = logs - Normal(product.mean[0], product.deviation[0]).log_prob(points)
    torch.testing.assert_close(rest, rest[:1].expand(7), rtol=1e-4, atol=1e-4)


def test_an_absent_expert_is_left_out():
    experts, present = [gaussian(seed=seed) for seed in range(3)], torch.tensor([[True, False, True]]).expand(5, 3)
    for ours, theirs in zip(product_of_experts(experts, present), product_of_experts([experts[0], experts[2]])):
        torch.testing.assert_close(ours, theirs)
