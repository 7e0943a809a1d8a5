"""The task's loss: a mean over labelled rows, whatever stands in the others."""

from __future__ import annotations

import math

import pytest
import torch

from moodal.core.batch import Target
from moodal.core.errors import MoodalError
from moodal.core.spec import Classification, Regression
from moodal.losses.task import task_loss

NUMBER, CLASSES = Regression(-3, 3), Classification(("a", "b", "c"))
VALID = torch.tensor([True, False, True])


@pytest.mark.parametrize(
    ("kind", "expected"), [("mse", (0.25 + 4) / 2), ("l1", (0.5 + 2) / 2), ("huber", (0.125 + 1.5) / 2)]
)
def test_regression_by_hand(kind: str, expected: float):
    prediction = torch.tensor([1.0, 9.0, -1.0], requires_grad=True)
    target = Target(torch.tensor([0.5, math.nan, 1.0]), VALID)
    loss, rows = task_loss(prediction, target, task=NUMBER, kind=kind)
    assert loss.item() == pytest.approx(expected) and rows == 2
    loss.backward()
    assert prediction.grad[1] == 0 and prediction.grad.isfinite().all()


def test_classification_by_hand():
    logits = torch.tensor([[0.0, 0.0, 0.0], [9.0, 0.0, 0.0], [2.0, 0.0, 0.0]], requires_grad=True)
    target = Target(torch.tensor([1, -100, 0]), VALID)
    loss, rows = task_loss(logits, target, task=CLASSES)
    assert loss.item() == pytest.approx((math.log(3) + math.log(1 + 2 * math.exp(-2))) / 2) and rows == 2
    loss.backward()
    assert logits.grad[1].eq(0).all()


def test_no_labelled_row_gives_a_finite_zero():
    prediction = torch.randn(3, requires_grad=True)
    loss, rows = task_loss(
        prediction, Target(torch.full((3,), math.nan), torch.zeros(3, dtype=torch.bool)), task=NUMBER
    )
    assert loss == 0 and rows == 0
    loss.backward()
    assert prediction.grad.eq(0).all()


def test_wrong_shapes_are_named():
    with pytest.raises(MoodalError, match=r"shape \(3, 2\).*\(N,\)"):
        task_loss(torch.randn(3, 2), Target(torch.randn(3), VALID), task=NUMBER)
    with pytest.raises(MoodalError, match=r"\(N, C\)"):
        task_loss(torch.randn(3), Target(torch.zeros(3).long(), VALID), task=CLASSES)
