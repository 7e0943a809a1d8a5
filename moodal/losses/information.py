"""Information terms of methods whose modalities have codes: what two codes share, what a code keeps of its input.

Shapes: N rows, T steps, d width of the codes, D width of an input. Rows that lack a modality take no part in its terms;
a term without rows is 0. What is made of densities is divided by d, which makes it a mean over dimensions: the logarithm
of a density grows with d, a critic's bound does not. The bounds themselves are in ``losses.bounds``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import combinations, permutations

import torch
from torch import Tensor, nn

from moodal.core.batch import Dialogue
from moodal.core.spec import Modality
from moodal.layers.masks import masked_mean
from moodal.losses.bounds import (
    Critic,
    GaussianConditional,
    barber_agakov,
    club,
    critic_bound,
    gaussian_log_density,
    leave_one_out,
)
from moodal.losses.contrastive import cosine_scores
from moodal.losses.gaussian import standard_kl


@dataclass(frozen=True)
class Code:
    """One modality's code: by step (N, T, d), pooled over the real steps (N, d), and what it was made from."""

    steps: Tensor
    pooled: Tensor
    mean: Tensor  # (N, T, d)
    deviation: Tensor | None  # (N, T, d); None where the code is not drawn
    mask: Tensor  # (N, T)
    source: Tensor  # (N, D) mean over time of the input, without gradient

    @property
    def present(self) -> Tensor:
        """(N,) whether the row has the modality."""
        return self.mask.any(dim=1)


Codes = Mapping[Modality, Code]


class CriticBound(nn.Module):
    """Σ over pairs of modalities of a critic's bound; the critic is the cosine of two projected codes / temperature."""

    def __init__(self, names: Iterable[Modality], *, width: int, kind: Critic, temperature: float) -> None:
        super().__init__()
        self.names, self.kind, self.temperature = tuple(names), kind, temperature
        self.projections = nn.ModuleList(nn.Linear(width, width) for _ in self.names)

    def forward(self, codes: Codes, dialogue: Dialogue | None = None) -> Tensor:
        """() in nats."""
        bounds = []
        for (m, to_one), (n, to_other) in combinations(zip(self.names, self.projections), 2):
            rows = rows_with(codes[m], codes[n])
            one, other = to_one(codes[m].pooled[rows]), to_other(codes[n].pooled[rows])
            scores = cosine_scores(one, other).float() / self.temperature
            bounds.append(critic_bound(self.kind, scores, apart=strangers(rows, dialogue)))
        return torch.stack(bounds).sum()


class DensityBound(nn.Module):
    """Σ over pairs of the Barber-Agakov bound, both directions averaged, up to the entropies of the codes.

    The code that is predicted is held fixed, which makes its entropy a constant. All parameters are estimators'.
    """

    def __init__(self, names: Iterable[Modality], *, width: int, hidden: int) -> None:
        super().__init__()
        self.pairs, self.width = tuple(permutations(names, 2)), width
        self.conditionals = nn.ModuleList(GaussianConditional(width, width, hidden=hidden) for _ in self.pairs)

    def forward(self, codes: Codes, dialogue: Dialogue | None = None) -> Tensor:  # noqa: ARG002
        """() in nats per dimension."""
        densities = []
        for (m, n), conditional in zip(self.pairs, self.conditionals):
            rows = rows_with(codes[m], codes[n])
            density = conditional(codes[m].pooled[rows], codes[n].pooled[rows].detach())
            densities.append(barber_agakov(density) if len(rows) else density.sum())
        return 0.5 * torch.stack(densities).sum() / self.width

    def likelihood(self, codes: Codes) -> Tensor:
        """() what the estimators are fitted by; no code gets a gradient."""
        return self({m: replace(code, pooled=code.pooled.detach()) for m, code in codes.items()})


class PriorBound(nn.Module):
    """Σ over modalities of KL(p(z|x) ‖ N(0, I)) of a step's code, a mean over the real steps of the rows that have it."""

    def forward(self, codes: Codes) -> Tensor:
        """() in nats per dimension."""
        return torch.stack([_prior_divergence(code) for code in codes.values()]).sum()


class ClubBound(nn.Module):
    """Σ over modalities of CLUB between the mean of the input and the pooled code. All parameters are estimators'."""

    def __init__(self, widths: Mapping[Modality, int], *, width: int, hidden: int) -> None:
        super().__init__()
        self.names, self.width = tuple(widths), width
        self.conditionals = nn.ModuleList(GaussianConditional(w, width, hidden=hidden) for w in widths.values())

    def forward(self, codes: Codes) -> Tensor:
        """() in nats per dimension; above the information as far as the estimators are right."""
        bounds = []
        for name, conditional in zip(self.names, self.conditionals):
            rows = rows_with(codes[name])
            densities = conditional(codes[name].source[rows].unsqueeze(1), codes[name].pooled[rows])
            alone = len(rows) < 2
            bounds.append(densities.sum() * 0.0 if alone else club(densities.diagonal(), densities[strangers(rows)]))
        return torch.stack(bounds).sum() / self.width

    def likelihood(self, codes: Codes) -> Tensor:
        """() what the estimators are fitted by; no code gets a gradient."""
        densities = []
        for name, conditional in zip(self.names, self.conditionals):
            rows = rows_with(codes[name])
            density = conditional(codes[name].source[rows], codes[name].pooled[rows].detach())
            densities.append(density.sum() / max(len(rows), 1))
        return torch.stack(densities).sum() / self.width


class LeaveOneOutBound(nn.Module):
    """Σ over modalities of the leave-one-out bound between input and pooled code; nothing has to be estimated.

    The pooled code is a mean of independent Gaussian steps, hence Gaussian, so ln p(z_j | x_i) is known.
    """

    def forward(self, codes: Codes) -> Tensor:
        """() in nats per dimension."""
        return torch.stack([_left_out(code) for code in codes.values()]).sum()


def rows_with(*codes: Code) -> Tensor:
    """(M,) the rows that have all of these modalities."""
    return torch.stack([code.present for code in codes]).all(dim=0).nonzero()[:, 0]


def strangers(rows: Tensor, dialogue: Dialogue | None = None) -> Tensor:
    """(M, M) which of the chosen ``rows`` (M,) count as drawn apart: all others, except those of the same conversation."""
    if dialogue is None:
        return ~torch.eye(len(rows), dtype=torch.bool, device=rows.device)
    conversation = dialogue.conversation[rows]
    return conversation[:, None] != conversation[None, :]


def _prior_divergence(code: Code) -> Tensor:
    assert code.deviation is not None
    steps = standard_kl(code.mean, code.deviation, reduction="mean").unsqueeze(-1)
    return masked_mean(steps, code.mask).sum() / code.present.sum().clamp(min=1)


def _left_out(code: Code) -> Tensor:
    assert code.deviation is not None
    rows = rows_with(code)
    if len(rows) < 2:
        return code.deviation.sum() * 0.0
    mask = code.mask[rows]
    variance = masked_mean(code.deviation[rows].square(), mask) / mask.sum(dim=1, keepdim=True)
    mean = masked_mean(code.mean[rows], mask)
    densities = gaussian_log_density(code.pooled[rows], mean.unsqueeze(1), variance.log().unsqueeze(1))
    return leave_one_out(densities) / code.pooled.shape[1]
