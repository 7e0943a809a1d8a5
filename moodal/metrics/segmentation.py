"""Intersection over union of predicted and true classes of points."""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt

from moodal.metrics.checks import Floats
from moodal.metrics.classification import confusion


def class_ious(prediction: npt.ArrayLike, target: npt.ArrayLike, *, classes: int, ignored: int | None = None) -> Floats:
    """Intersection over union of each class but ``ignored``, (C,) or (C - 1,); NaN where the truth has no such point.

    ``prediction`` holds classes (N,) or scores (N, C). Points whose true class is ``ignored`` are dropped before
    anything is counted. Raises ``MetricError`` for classes outside 0 to C - 1.
    """
    counts = confusion(prediction, target, classes=classes)
    kept = [c for c in range(classes) if c != ignored]
    counts = counts[kept]  # rows are true classes
    hits, true, given = counts[range(len(kept)), kept], counts.sum(axis=1), counts.sum(axis=0)[kept]
    return np.where(true > 0, hits / np.maximum(true + given - hits, 1), np.nan)


def mean_iou(ious: Floats, *, absent: Literal["skip", "one"] = "skip") -> float:
    """Mean over classes of ``class_ious``: those without a true point left out, or counted as 1.

    "one" is what released evaluations do (MV2D among them); on a part of a data set it inflates the mean.
    """
    return float(np.nanmean(ious if absent == "skip" else np.nan_to_num(ious, nan=1.0)))
