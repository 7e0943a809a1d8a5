"""Bounds of mutual information: by hand, and on correlated Gaussians whose mutual information is known."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from moodal.losses.bounds import (
    GaussianConditional,
    barber_agakov,
    club,
    critic_bound,
    donsker_varadhan,
    gaussian_log_density,
    infonce,
    jensen_shannon,
    leave_one_out,
    nwj,
)
from moodal.losses.gaussian import standard_kl

pytestmark = pytest.mark.usefixtures("one_thread")

RHOS = (0.1, 0.5, 0.8, 0.9)
ROWS = 500
CRITICS = ("infonce", "jensen_shannon", "donsker_varadhan", "nwj")


def information(rho: float) -> float:
    return -0.5 * math.log(1 - rho**2)


def pairs(rho: float, rows: int = ROWS, seed: int = 0) -> tuple[Tensor, Tensor]:
    """x and y (N, 1) whose means, variances and correlation in this very sample are 0, 1 and ``rho``."""
    draw = torch.randn(rows, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    draw = draw - draw.mean(0)
    draw = draw @ torch.linalg.inv(torch.linalg.cholesky(draw.T @ draw / rows)).T
    return draw[:, :1], rho * draw[:, :1] + (1 - rho**2) ** 0.5 * draw[:, 1:]


def densities(rho: float, x: Tensor, y: Tensor) -> Tensor:
    """(N, N) ln p(y_j | x_i)."""
    left = torch.tensor([1 - rho**2], dtype=x.dtype)
    return gaussian_log_density(y, rho * x.unsqueeze(1), left.log())


def ratios(rho: float, x: Tensor, y: Tensor) -> Tensor:
    """(N, N) ln p(y_j | x_i) / p(y_j): the best critic."""
    zero = torch.zeros(1, dtype=x.dtype)
    return densities(rho, x, y) - gaussian_log_density(y, zero, zero)


def off_diagonal(scores: Tensor) -> Tensor:
    return scores[~torch.eye(len(scores), dtype=torch.bool)]


def averaged(bound, rho: float, rows: int, times: int = 40) -> tuple[float, float]:
    """Mean over independent samples, and its standard error."""
    values = torch.stack([bound(ratios(rho, *plain_pairs(rho, rows, seed))) for seed in range(times)])
    return values.mean().item(), values.std().item() / times**0.5


def plain_pairs(rho: float, rows: int, seed: int) -> tuple[Tensor, Tensor]:
    x, noise = torch.randn(2, rows, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return x, rho * x + (1 - rho**2) ** 0.5 * noise


def test_critics_bounds_by_hand():
    together, apart = torch.tensor([1.0, 2.0]), torch.tensor([0.0, math.log(3), 0.0, math.log(3)])
    assert donsker_varadhan(together, apart).item() == pytest.approx(1.5 - math.log(2))
    assert nwj(together, apart).item() == pytest.approx(1.5 - 2 / math.e)
    assert club(together, apart).item() == pytest.approx(1.5 - math.log(3) / 2)
    expected = 2 * math.log(2) - (math.log1p(math.exp(-1)) + math.log1p(math.exp(-2)) + math.log(2) + math.log(4)) / 2
    assert jensen_shannon(together, apart).item() == pytest.approx(expected)


def test_a_critic_that_sees_nothing_gives_nothing():
    together, apart = torch.full((5,), 1.0), torch.full((20,), 1.0)
    assert donsker_varadhan(together, apart).item() == pytest.approx(0, abs=1e-6)
    assert nwj(together, apart).item() == pytest.approx(0, abs=1e-6)
    assert jensen_shannon(0 * together, 0 * apart).item() == pytest.approx(0, abs=1e-6)
    assert infonce(torch.full((5, 5), 3.0)).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("rho", RHOS)
def test_barber_agakov_reaches_the_information_with_the_true_conditional_only(rho):
    x, y = pairs(rho)
    entropy = 0.5 * math.log(2 * math.pi * math.e)
    assert barber_agakov(densities(rho, x, y).diagonal(), entropy).item() == pytest.approx(information(rho), abs=1e-9)
    for other in (rho - 0.1, rho + 0.05):
        assert barber_agakov(densities(other, x, y).diagonal(), entropy).item() < information(rho) - 1e-4


@pytest.mark.parametrize("rho", RHOS)
def test_club_with_the_true_conditional_is_above_by_the_known_amount(rho):
    x, y = pairs(rho)
    table = densities(rho, x, y)
    found = club(table.diagonal(), table.flatten()).item()
    assert found == pytest.approx(rho**2 / (1 - rho**2), abs=1e-9) and found > information(rho)


def test_numbers_of_the_literature():
    """rho 0.8: 0.5108 nats; CLUB says 1.7778."""
    x, y = pairs(0.8)
    table = densities(0.8, x, y)
    assert information(0.8) == pytest.approx(0.5108, abs=5e-5)
    assert club(table.diagonal(), table.flatten()).item() == pytest.approx(1.7778, abs=5e-5)


@pytest.mark.parametrize("rho", RHOS)
@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_the_prior_bound_is_above_by_the_divergence_of_the_true_marginal_from_the_prior(rho, scale):
    x, _ = pairs(rho)
    deviation = torch.full_like(x, scale * (1 - rho**2) ** 0.5)
    excess = 0.5 * (scale**2 - 1) - math.log(scale)
    found = standard_kl(scale * rho * x, deviation).mean().item()
    assert found == pytest.approx(information(rho) + excess, abs=1e-9) and excess >= 0


@pytest.mark.parametrize("rho", RHOS)
def test_the_best_critic_attains_the_information_within_its_error(rho):
    for bound in (
        lambda t: donsker_varadhan(t.diagonal(), off_diagonal(t)),
        lambda t: nwj(1 + t.diagonal(), 1 + off_diagonal(t)),
    ):
        value, error = averaged(bound, rho, 200)
        assert abs(value - information(rho)) < 4 * error + 0.01


@pytest.mark.parametrize("bound", [donsker_varadhan, nwj])
@pytest.mark.parametrize("factor", [0.3, 0.7, 1.3])
def test_any_other_critic_says_less(bound, factor):
    best = ratios(0.5, *pairs(0.5, 800))
    shift = 1.0 if bound is nwj else 0.0
    found = [bound(shift + c * best.diagonal(), shift + c * off_diagonal(best)).item() for c in (1.0, factor)]
    assert found[1] < found[0] - 1e-3


@pytest.mark.parametrize("rho", RHOS)
def test_infonce_is_below_and_leave_one_out_above_and_both_close_in(rho):
    below, above = {}, {}
    for rows in (8, 64):
        below[rows], error = averaged(infonce, rho, rows)
        assert below[rows] <= information(rho) + 4 * error
        above[rows], error = averaged(leave_one_out, rho, rows)  # p(y) cancels, so ratios do for densities
        assert above[rows] >= information(rho) - 4 * error
    assert above[64] - below[64] < above[8] - below[8]


def test_infonce_never_exceeds_the_logarithm_of_its_rows():
    rows, width, rho = 16, 200, 0.9
    x, noise = torch.randn(2, rows, width, generator=torch.Generator().manual_seed(0))
    y = rho * x + (1 - rho**2) ** 0.5 * noise
    scores = (rho * x @ y.T - 0.5 * rho**2 * (x.square().sum(1)[:, None] + y.square().sum(1))) / (1 - rho**2)
    assert width * information(rho) > 100
    assert math.log(rows) - 1e-3 < infonce(scores).item() <= math.log(rows) + 1e-6


@pytest.mark.parametrize("rows", [2, 32])
def test_infonce_at_its_extremes(rows):
    """ln N less the usual loss: ln N when all is collapsed, ln(1 + (N - 1) e^-10) for orthogonal vectors at 0.1."""
    assert infonce(torch.full((rows, rows), 10.0)).item() == pytest.approx(0, abs=1e-5)
    loss = math.log(rows) - infonce(10.0 * torch.eye(rows)).item()
    assert loss == pytest.approx(math.log1p((rows - 1) * math.exp(-10)), abs=1e-5)


def test_rows_that_are_not_apart_are_left_out():
    scores = torch.randn(6, 6, generator=torch.Generator().manual_seed(0))
    apart = torch.zeros(6, 6, dtype=torch.bool)
    apart[:4, :4] = True
    assert infonce(scores, apart=apart).item() == pytest.approx(infonce(scores[:4, :4]).item() * 4 / 6, abs=1e-6)
    apart[4:, 4:] = True
    expected = leave_one_out(scores[:4, :4]) * 4 / 6 + leave_one_out(scores[4:, 4:]) * 2 / 6
    apart = apart & ~torch.eye(6, dtype=torch.bool)
    assert leave_one_out(scores, apart=apart).item() == pytest.approx(expected.item(), abs=1e-6)


def test_leave_one_out_by_hand():
    table = torch.tensor([[1.0, -2.0], [-1.0, 0.5]])
    assert leave_one_out(table).item() == pytest.approx(((1.0 + 1.0) + (0.5 + 2.0)) / 2)


@pytest.mark.parametrize("kind", CRITICS)
def test_a_critics_bound_of_a_batch_is_symmetric_and_larger_for_pairs_that_belong_together(kind):
    scores = torch.randn(8, 8, generator=torch.Generator().manual_seed(0))
    assert critic_bound(kind, scores).item() == pytest.approx(critic_bound(kind, scores.T).item(), abs=1e-6)
    assert critic_bound(kind, scores + 3 * torch.eye(8)) > critic_bound(kind, scores)


@pytest.mark.parametrize("kind", CRITICS)
@pytest.mark.parametrize("rows", [0, 1, 3])
def test_without_anything_apart_a_batch_says_nothing(kind, rows):
    scores = torch.randn(rows, rows, requires_grad=True)
    found = critic_bound(kind, scores, apart=torch.zeros(rows, rows, dtype=torch.bool))
    assert found.item() == 0
    found.backward()
    assert scores.grad.eq(0).all()


def test_the_conditionals_density_is_that_of_independent_normals_for_pairs_and_for_tables():
    torch.manual_seed(0)
    conditional = GaussianConditional(3, 2, hidden=4)
    x, y = torch.randn(5, 3), torch.randn(5, 2)
    deviation = conditional.log_variance(x).exp().sqrt()
    normal = (-0.5 * ((y - conditional.mean(x)) / deviation) ** 2).exp() / (deviation * math.sqrt(2 * math.pi))
    torch.testing.assert_close(conditional(x, y), normal.prod(1).log())
    table = conditional(x.unsqueeze(1), y)
    assert table.shape == (5, 5)
    torch.testing.assert_close(table.diagonal(), conditional(x, y))
    torch.testing.assert_close(table[1, 3], conditional(x[1:2], y[3:4])[0])


def test_the_likelihood_has_its_maximum_at_the_true_variance():
    """Without the logarithm of the variance in it, more variance would always be better."""
    error = torch.tensor([[0.5]])
    found = [gaussian_log_density(error, torch.zeros(1), torch.tensor([math.log(v)])).item() for v in (0.2, 0.25, 0.3)]
    assert max(found) == found[1]
