"""Two branches and a bottleneck predicting the class of every point: the released LiDAR-camera objective.

Shapes: N points, C classes. Source: Tian et al., TPAMI 2024, released code (LiDAR-camera segmentation).
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from moodal.core.batch import Target
from moodal.core.spec import Classification
from moodal.losses.distillation import Measure, divergence
from moodal.losses.task import task_loss

#: The released code has KL(student ‖ teacher); the theory asks for the other direction.
RELEASED = Measure(direction="student_first")


class SegmentationLosses(NamedTuple):
    """Means over the points that are not ignored."""

    points: Tensor  # cross-entropy of the point branch
    pixels: Tensor  # of the image branch
    code: Tensor  # of the bottleneck's head
    sufficiency: Tensor  # the bottleneck's head taught by the point branch
    consistency: Tensor  # the image branch taught by the point branch; in neither total, as released

    @property
    def total(self) -> Tensor:
        """(points + pixels + code + sufficiency) / 4."""
        return (self.points + self.pixels + self.code + self.sufficiency) / 4

    @property
    def baseline(self) -> Tensor:
        """(points + pixels) / 2: without a bottleneck."""
        return (self.points + self.pixels) / 2


def segmentation_losses(
    points: Tensor, pixels: Tensor, code: Tensor, label: Tensor, *, ignored: int = 0, measure: Measure = RELEASED
) -> SegmentationLosses:
    """The parts for logits (N, C) of the point branch, the image branch and the bottleneck, and classes ``label`` (N,).

    Points labelled ``ignored`` count nowhere.
    """
    task = Classification(tuple(map(str, range(points.shape[1]))))
    target = Target(label, label != ignored)
    entropies = (task_loss(logits, target, task=task)[0] for logits in (points, pixels, code))
    taught = (divergence(points, s, task=task, measure=measure, valid=target.valid) for s in (code, pixels))
    return SegmentationLosses(*entropies, *taught)
