"""Bounds of the mutual information I(X; Y) of paired samples, in nats: from below to maximise, from above to minimise.

A critic T(x, y) scores pairs. ``together``: its scores of pairs drawn together, ``apart``: of an x and a y drawn
independently; one-dimensional, of any lengths. Where a bound needs all pairs of N rows, ``scores`` (N, N) has T(x_i, y_j) in
row i and column j, and ``apart`` (N, N) says which of them count as drawn independently (default: all but the diagonal).

From below, for any critic; the best T is ln p(y|x)/p(y), plus what the bound does not see:

    Donsker-Varadhan   E[T] - ln E'[e^T]                          (MINE: Belghazi et al., ICML 2018)
    NWJ                E[T] - E'[e^(T - 1)]                       (Nguyen, Wainwright, Jordan, IEEE Trans. Inf. Theory 2010)
    InfoNCE            E[T_ii - ln mean_j e^(T_ij)] <= ln N       (van den Oord et al., 2018)
    Barber-Agakov      E[ln q(y|x)] + H(Y), any q                 (Barber and Agakov, NIPS 2003)

From above:

    leave one out      E[ln p(y_i|x_i) - ln mean_j≠i p(y_i|x_j)]  the true p(y|x) is needed (Poole et al., ICML 2019)
    CLUB               E[ln q(y|x)] - E'[ln q(y|x)]               q near p(y|x) is needed (Cheng et al., ICML 2020)
    prior              E KL(p(y|x) ‖ r(y)), any r                 ``standard_kl`` in ``losses.gaussian`` for r = N(0, I)

E is over pairs drawn together, E' over pairs drawn apart. With samples in place of the expectations NWJ, InfoNCE, CLUB and
the prior's stay bounds on average; Donsker-Varadhan is too high by about Var(e^T) / (2 n E'[e^T]²) for n pairs apart.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Critic = Literal["infonce", "jensen_shannon", "donsker_varadhan", "nwj"]


def donsker_varadhan(together: Tensor, apart: Tensor) -> Tensor:
    """() the Donsker-Varadhan bound: mean of ``together`` less the logarithm of the mean of e^``apart``."""
    return together.mean() - (torch.logsumexp(apart, dim=0) - math.log(len(apart)))


def nwj(together: Tensor, apart: Tensor) -> Tensor:
    """() the bound of Nguyen, Wainwright and Jordan. Its best critic is 1 + ln p(y|x)/p(y)."""
    return together.mean() - (apart - 1).exp().mean()


def jensen_shannon(together: Tensor, apart: Tensor) -> Tensor:
    """() 2 ln 2 less the cross-entropy of telling together from apart. Its best critic is ln p(y|x)/p(y).

    At best twice the Jensen-Shannon divergence of p(x, y) from p(x) p(y), which grows with the mutual information but is
    no bound of it: at most 2 ln 2. Source: Nowozin et al., NeurIPS 2016; Hjelm et al., ICLR 2019, without the constant.
    """
    return 2 * math.log(2) - F.softplus(-together).mean() - F.softplus(apart).mean()


def infonce(scores: Tensor, *, apart: Tensor | None = None) -> Tensor:
    """() mean over rows of ln(how many) + T_ii - ln Σ e^(T_ij), over the row's own y and those apart from it.

    A row with nothing apart from it adds 0. At most ln N; symmetric use: the mean with that of ``scores.T``.
    """
    apart = _others(scores) if apart is None else apart
    own = torch.eye(len(scores), dtype=torch.bool, device=scores.device)
    among = scores.masked_fill(~(apart | own), -math.inf).logsumexp(dim=1)
    count = 1 + (apart & ~own).sum(dim=1)
    return (count.log() + scores.diagonal() - among).mean()


def barber_agakov(densities: Tensor, entropy: Tensor | float = 0.0) -> Tensor:
    """() mean of ln q(y_i | x_i), (N,), plus the entropy H(Y). Without it: the bound up to a constant of y."""
    return densities.mean() + entropy


def leave_one_out(densities: Tensor, *, apart: Tensor | None = None) -> Tensor:
    """() the leave-one-out bound from ``densities`` (N, N), ln p(y_j | x_i) in row i and column j.

    Every y needs another row apart from it.
    """
    apart = _others(densities) if apart is None else apart
    marginal = densities.masked_fill(~apart, -math.inf).logsumexp(dim=0) - apart.sum(dim=0).log()
    return (densities.diagonal() - marginal).mean()


def club(together: Tensor, apart: Tensor) -> Tensor:
    """() mean of ln q(y|x) over pairs drawn together less that over pairs drawn apart; above I(X; Y) for q = p(y|x)."""
    return together.mean() - apart.mean()


_FROM_SCORES: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "jensen_shannon": jensen_shannon,
    "donsker_varadhan": donsker_varadhan,
    "nwj": nwj,
}


def critic_bound(kind: Critic, scores: Tensor, *, apart: Tensor | None = None) -> Tensor:
    """() what ``kind`` says of a batch's ``scores`` (N, N); InfoNCE in both directions, averaged. 0 if nothing is apart.

    Larger is more dependent, whatever the kind; all but "jensen_shannon" are lower bounds of the mutual information.
    """
    apart = _others(scores) if apart is None else apart
    if not bool(apart.any()):
        return scores.sum() * 0.0
    if kind == "infonce":
        return 0.5 * (infonce(scores, apart=apart) + infonce(scores.T, apart=apart.T))
    return _FROM_SCORES[kind](scores.diagonal(), scores[apart])


class GaussianConditional(nn.Module):
    """q(y|x) = N(m(x), diag e^s(x)): for each of m and s Linear D_x -> H, ReLU, Linear H -> D_y.

    Fit it by the mean of what it gives (maximum likelihood, which is also the Barber-Agakov bound without H(Y)).
    """

    def __init__(self, x_width: int, y_width: int, *, hidden: int) -> None:
        super().__init__()
        self.mean = nn.Sequential(nn.Linear(x_width, hidden), nn.ReLU(), nn.Linear(hidden, y_width))
        self.log_variance = nn.Sequential(nn.Linear(x_width, hidden), nn.ReLU(), nn.Linear(hidden, y_width))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """(..., D_x), (..., D_y), broadcast -> (...) ln q(y | x), with the logarithm of the variance and the constant.

        All pairs of N rows, x_i in row i and y_j in column j: ``conditional(x.unsqueeze(1), y)``.
        """
        # In the type of y: under autocast the maps give 16 bits, too few for squares over small variances.
        return gaussian_log_density(y, self.mean(x).to(y.dtype), self.log_variance(x).to(y.dtype))


def gaussian_log_density(value: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    """(..., D) each, broadcast -> (...) ln N(value; mean, diag e^log_variance), summed over the D dimensions."""
    each = (value - mean).square() * (-log_variance).exp() + log_variance + math.log(2 * math.pi)
    return -0.5 * each.sum(dim=-1)


def _others(scores: Tensor) -> Tensor:
    """(N, N) all pairs but the diagonal."""
    return ~torch.eye(len(scores), dtype=torch.bool, device=scores.device)
