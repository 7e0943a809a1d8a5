"""The task's loss, over labelled rows only."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from moodal.core.batch import Target
from moodal.core.errors import MoodalError
from moodal.core.spec import Classification, Task

RegressionLoss = Literal["mse", "l1", "huber"]

_REGRESSION: dict[str, Callable[..., Tensor]] = {"mse": F.mse_loss, "l1": F.l1_loss, "huber": F.huber_loss}


def task_loss(
    prediction: Tensor, target: Target, *, task: Task, kind: RegressionLoss = "mse", label_smoothing: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Mean loss over the rows with a label, and how many those are; a finite 0 with zero gradients if there are none.

    ``prediction``: (N,) for regression (``kind`` chooses the loss), (N, C) logits for classification (cross-entropy).
    Raises ``MoodalError`` if the shapes of prediction and target do not fit the task.
    """
    losses = row_losses(prediction, target, task=task, kind=kind, label_smoothing=label_smoothing)
    return labelled_mean(losses, target), target.valid.sum()


def row_losses(
    prediction: Tensor, target: Target, *, task: Task, kind: RegressionLoss = "mse", label_smoothing: float = 0.0
) -> Tensor:
    """(N,) the loss of each row, as in ``task_loss``; finite, and without meaning, where a row has no label."""
    if isinstance(task, Classification):
        return _cross_entropy(prediction, target, label_smoothing)
    _check(prediction.dim() == 1, prediction, target, "(N,)")
    value = target.value.where(target.valid, prediction.detach())  # an unlabelled row may hold anything, NaN included
    return _REGRESSION[kind](prediction, value.to(prediction.dtype), reduction="none")


def labelled_mean(values: Tensor, target: Target) -> Tensor:
    """Mean of (N,) values over the rows with a label; 0 if there are none."""
    return (values * target.valid).sum() / target.valid.sum().clamp(min=1)


def _cross_entropy(logits: Tensor, target: Target, label_smoothing: float) -> Tensor:
    _check(logits.dim() == 2, logits, target, "(N, C)")
    value = target.value.where(target.valid, 0).long()
    return F.cross_entropy(logits, value, reduction="none", label_smoothing=label_smoothing)


def _check(fits: bool, prediction: Tensor, target: Target, wanted: str) -> None:
    if not fits or len(prediction) != len(target.value):
        raise MoodalError(
            f"The prediction has shape {tuple(prediction.shape)} and the labels {tuple(target.value.shape)}; "
            f"{wanted} and (N,) were expected."
        )
