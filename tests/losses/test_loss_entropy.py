"""Entropies of Gaussians fitted to groups: closed forms, invariances, and groups that are too small."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from moodal.losses.entropy import log_determinants, mixture_entropy


def with_covariance(covariance: Tensor, *, mean: float = 0.0) -> Tensor:
    """2 K vectors whose biased covariance is exactly ``covariance``."""
    width = len(covariance)
    axes = torch.linalg.cholesky(covariance) * width**0.5
    return torch.cat([axes.T, -axes.T]) + mean


QUARTER = with_covariance(0.25 * torch.eye(4, dtype=torch.float64))
BOTH = torch.cat([QUARTER, QUARTER + 3])
GROUPS = torch.arange(2).repeat_interleave(8)


def test_two_groups_of_variance_a_quarter():
    assert mixture_entropy(BOTH, GROUPS, count=2).item() == pytest.approx(-2.7725887, abs=1e-6)


def test_it_is_the_entropy_of_a_gaussian_without_its_constant():
    covariance = torch.tensor([[2.0, 0.6, 0.1], [0.6, 1.0, -0.2], [0.1, -0.2, 0.5]], dtype=torch.float64)
    wanted = torch.distributions.MultivariateNormal(torch.zeros(3, dtype=torch.float64), covariance).entropy()
    found = mixture_entropy(with_covariance(covariance, mean=5.0), torch.zeros(6, dtype=torch.int64), count=1)
    assert float(found) + 1.5 * math.log(2 * math.pi * math.e) == pytest.approx(float(wanted), abs=1e-9)


def test_scaling_adds_a_logarithm_and_turning_nothing():
    draw = torch.Generator().manual_seed(0)
    vectors, groups = torch.randn(30, 4, generator=draw, dtype=torch.float64), torch.arange(30) % 2
    plain = float(mixture_entropy(vectors, groups, count=2))
    turn = torch.linalg.qr(torch.randn(4, 4, generator=draw, dtype=torch.float64))[0]
    assert float(mixture_entropy(vectors @ turn, groups, count=2)) == pytest.approx(plain, abs=1e-9)
    # ½ ln det of c² times a covariance of width 4, in the mean over the groups
    assert float(mixture_entropy(3 * vectors, groups, count=2)) - plain == pytest.approx(4 * math.log(3), abs=1e-9)


def test_the_same_vectors_twice_have_the_covariance_of_once():
    once = log_determinants(BOTH, GROUPS, count=2)[0]
    twice = log_determinants(torch.cat([BOTH, BOTH]), torch.cat([GROUPS, GROUPS]), count=2)[0]
    torch.testing.assert_close(twice, once, atol=1e-12, rtol=0)


def test_small_groups_and_rows_of_none_are_left_out():
    vectors = torch.cat([QUARTER, torch.eye(4, dtype=torch.float64), 100 * QUARTER])
    groups = torch.tensor([0] * 8 + [1] * 4 + [-1] * 8)  # four vectors of width 4 span no covariance
    values, enough = log_determinants(vectors, groups, count=3)
    assert enough.tolist() == [True, False, False] and values[1:].tolist() == [0.0, 0.0]
    assert mixture_entropy(vectors, groups, count=3).item() == pytest.approx(2 * math.log(0.25), abs=1e-9)
    nobody = mixture_entropy(vectors.requires_grad_(), torch.full((20,), -1), count=3)
    nobody.backward()
    assert nobody == 0 and bool((vectors.grad == 0).all())


def test_jitter_keeps_what_does_not_spread_finite():
    vectors = torch.ones(12, 3, requires_grad=True)
    found = mixture_entropy(vectors, torch.zeros(12, dtype=torch.int64), count=1, jitter=1e-4)
    found.backward()
    assert found.item() == pytest.approx(1.5 * math.log(1e-4), rel=1e-5) and bool(vectors.grad.isfinite().all())


def test_autocast_does_not_touch_determinants():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = mixture_entropy(BOTH.float(), GROUPS, count=2)
    assert found.dtype == torch.float32 and found.item() == pytest.approx(-2.7725887, abs=1e-5)
