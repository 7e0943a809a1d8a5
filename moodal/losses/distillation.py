"""Distillation by predictions: what an observation v of a view knows of the target, and its bottleneck z should know.

With P_v and P_z the predictive distributions of the classifiers on v and on z, of n views of the same row:

    sufficiency   Σ_i KL(P_vi ‖ P_zi)                         n = 1: VSD, keeps in z what v tells of the target
    consistency   1/(n-1) Σ_(i≠j) KL(P_vj ‖ P_zi)             n = 2: VCD, drops from z_i what view j does not support
    agreement     H(mean_i P_zi) - mean_i H(P_zi)             n = 2: VML, drops what is specific to a view

Teachers (P_v) are detached. Regression [inferred]: a prediction is the location of a density of fixed scale, Gaussian
or Laplace; agreement is then the mean divergence from the density at the mean location.

Shapes  n views, N rows, C classes; predictions (n, N, C) logits or (n, N) numbers; rows' results (N,), in nats.
Source  Tian et al., CVPR 2021 (VSD, VCD, VML; restated theorems); Tian et al., TPAMI 2024 (n views, of which only the
        aim is known: the sums above are inferred).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from moodal.core.batch import Target
from moodal.core.errors import check
from moodal.core.spec import Classification, Task
from moodal.losses.task import task_loss

Direction = Literal["teacher_first", "student_first"]
Form = Literal["kl", "published"]
Density = Literal["gaussian", "laplace"]
Reduction = Literal["rows", "elements", "none"]


@dataclass(frozen=True, kw_only=True)
class Measure:
    """How a student's prediction is held against a teacher's.

    ``direction``: KL(teacher ‖ student), which the theory asks for, or KL(student ‖ teacher), which both released codes
    have. ``form``: "published" reads the probabilities of the second distribution where their logarithm belongs, as the
    released re-identification code does: no divergence (not 0 for equal predictions), for parity with it alone.
    ``temperature`` divides logits, and the divergence is multiplied by its square (not in the published form).
    ``density`` and ``scale`` are for regression. Raises ``MoodalError`` for a temperature or scale that is not positive.
    """

    direction: Direction = "teacher_first"
    form: Form = "kl"
    temperature: float = 1.0
    density: Density = "gaussian"
    scale: float = 1.0
    detach_teacher: bool = True

    def __post_init__(self) -> None:
        for name in ("temperature", "scale"):
            check(self.__dict__[name] > 0, f"{name} is {self.__dict__[name]}; it must be positive.")


PLAIN = Measure()


def divergence(
    teacher: Tensor,
    student: Tensor,
    *,
    task: Task,
    measure: Measure = PLAIN,
    reduction: Reduction = "rows",
    valid: Tensor | None = None,
) -> Tensor:
    """How far ``student`` is from ``teacher``: logits (..., C) for classification, numbers (...) for regression.

    ``reduction``: "none" gives (...), "rows" the mean over them, "elements" a C-th of that mean. ``valid`` (...): rows
    that count; without any of them the mean is 0. Raises ``MoodalError`` for the published form of regression.
    """
    teacher = teacher.detach() if measure.detach_teacher else teacher
    if not isinstance(task, Classification):
        check(measure.form == "kl", "The published form reads class probabilities, and this task is a regression.")
        return _reduce(_between_locations(teacher, student, measure), valid, reduction, 1)
    first, second = (teacher, student) if measure.direction == "teacher_first" else (student, teacher)
    p, q = _log_softmax(first, measure), _log_softmax(second, measure)
    other = q.exp() if measure.form == "published" else q
    values = (p.exp() * (p - other)).sum(dim=-1)
    if measure.form == "kl":
        values = values * measure.temperature**2
    return _reduce(values, valid, reduction, teacher.shape[-1])


def sufficiency(
    observations: Tensor,
    codes: Tensor,
    *,
    task: Task,
    measure: Measure = PLAIN,
    present: Tensor | None = None,
    weights: Tensor | None = None,
) -> Tensor:
    """(N,) Σ_i w_i KL(P_vi ‖ P_zi) of the views that are ``present`` (n, N); ``weights`` (n,), 1 unless given."""
    own = divergence(observations, codes, task=task, measure=measure, reduction="none")
    return (own * _shares(own, present, weights)).sum(dim=0)


def consistency(
    observations: Tensor,
    codes: Tensor,
    *,
    task: Task,
    measure: Measure = PLAIN,
    present: Tensor | None = None,
    weights: Tensor | None = None,
) -> Tensor:
    """(N,) Σ_i mean_(j≠i) w_ji KL(P_vj ‖ P_zi): for each view the mean over those that teach it; 0 where none does.

    ``weights`` (n, n), [teacher, student], 1 unless given; a pair with weight 0 is left out of the mean too.
    """
    table = divergence(observations.unsqueeze(1), codes.unsqueeze(0), task=task, measure=measure, reduction="none")
    shares = table.new_ones(table.shape[:2]) if weights is None else weights.to(table.dtype)
    shares = shares.masked_fill(torch.eye(len(table), dtype=torch.bool, device=table.device), 0.0).unsqueeze(-1)
    if present is not None:
        shares = shares * (present.unsqueeze(1) & present.unsqueeze(0))
    teachers = (shares > 0).sum(dim=0).clamp(min=1)
    return ((table * shares).sum(dim=0) / teachers).sum(dim=0)


def agreement(
    codes: Tensor,
    *,
    task: Task,
    measure: Measure = PLAIN,
    present: Tensor | None = None,
    weights: Tensor | None = None,
) -> Tensor:
    """(N,) generalised Jensen-Shannon divergence of the views' P_z; 0 iff all are equal, at most ln n for classes.

    With shares π proportional to ``weights`` (n,) of the views present: Σ_i π_i KL(P_zi ‖ Σ_j π_j P_zj).
    """
    numbers = not isinstance(task, Classification)
    shares = _shares(codes if numbers else codes[..., 0], present, weights)
    centre = barycentre(codes / (1.0 if numbers else measure.temperature), shares, task=task)
    if numbers:
        each = _between_locations(codes, centre, measure)
    else:
        p = _log_softmax(codes, measure)
        each = (p.exp() * (p - centre)).sum(dim=-1) * measure.temperature**2
    return (each * shares).sum(dim=0) / shares.sum(dim=0).clamp(min=torch.finfo(shares.dtype).tiny)


def pairs_taught_by(teachers: Collection[str], views: Sequence[str]) -> Tensor:
    """(n, n) weights [teacher, student] for ``consistency``: 1 where the teacher is one of ``teachers``, else 0."""
    return torch.tensor([float(view in teachers) for view in views]).unsqueeze(1).repeat(1, len(views))


def barycentre(predictions: Tensor, shares: Tensor, *, task: Task) -> Tensor:
    """The mean prediction of the views, ``shares`` (n, N) being their weights: (N, C) log-probabilities, or (N,).

    A row whose shares are all 0 gets the plain mean.
    """
    shares = shares.where((shares > 0).any(dim=0), 1.0)
    shares = shares / shares.sum(dim=0)
    if not isinstance(task, Classification):
        return (predictions * shares).sum(dim=0)
    return torch.logsumexp(predictions.log_softmax(dim=-1) + shares.log().unsqueeze(-1), dim=0)


class ViewLosses(NamedTuple):
    """The parts of an objective over views, each a mean over the labelled rows."""

    task: Tensor  # Σ_i ½ (task loss of the prediction from v_i + that of the prediction from z_i)
    sufficiency: Tensor
    consistency: Tensor
    agreement: Tensor


def view_losses(
    observations: Tensor,
    codes: Tensor,
    target: Target,
    *,
    task: Task,
    present: Tensor,
    measure: Measure = PLAIN,
    priority: Tensor | None = None,
    pairs: Tensor | None = None,
    **settings: Any,
) -> ViewLosses:
    """Every part for the views' predictions (n, N[, C]) from v and from z. Views not ``present`` (n, N) count nowhere.

    ``priority`` (n,) weighs views in sufficiency and agreement, ``pairs`` (n, n) [teacher, student] in consistency;
    ``settings`` are those of ``task_loss``.
    """
    rows = target.valid.sum().clamp(min=1)
    both = torch.cat([observations, codes]).flatten(0, 1)
    valid = (present & target.valid).repeat(2, 1).flatten()
    each = Target(target.value.repeat(2 * len(codes)), valid)
    mean, count = task_loss(both, each, task=task, **settings)
    shared: dict[str, Any] = {"task": task, "measure": measure, "present": present}
    parts = (
        sufficiency(observations, codes, weights=priority, **shared),
        consistency(observations, codes, weights=pairs, **shared),
        agreement(codes, weights=priority, **shared),
    )
    return ViewLosses(0.5 * mean * count / rows, *(_reduce(part, target.valid, "rows", 1) for part in parts))


def _shares(like: Tensor, present: Tensor | None, weights: Tensor | None) -> Tensor:
    """(n, N) weights of the views that are present."""
    shares = torch.ones_like(like) if present is None else present.to(like.dtype)
    return shares if weights is None else shares * weights.to(like.dtype).unsqueeze(-1)


def _log_softmax(logits: Tensor, measure: Measure) -> Tensor:
    return (logits / measure.temperature).log_softmax(dim=-1)


def _between_locations(first: Tensor, second: Tensor, measure: Measure) -> Tensor:
    """KL of two densities of one scale at two locations; symmetric."""
    apart = (first - second).abs() / measure.scale
    return 0.5 * apart.square() if measure.density == "gaussian" else apart + torch.expm1(-apart)


def _reduce(values: Tensor, valid: Tensor | None, reduction: Reduction, classes: int) -> Tensor:
    if reduction == "none":
        return values
    if valid is None:
        mean = values.mean()
    else:
        mean = values.where(valid, 0.0).sum() / valid.sum().clamp(min=1)
    return mean / classes if reduction == "elements" else mean
