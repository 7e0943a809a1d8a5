"""Numbers for labels that may hold together, as MOSEI's six emotions: each label is a binary task of its own.

Functions of one label take ``prediction`` and ``target`` (N,) of 0 and 1; tables are (N, C), one column per label,
with ``prediction`` as probabilities (after the sigmoid) and ``target`` as intensities, of which every one above 0
is present. Know columns by name: files order the emotions differently (the SDK: happy, sad, anger, surprise,
disgust, fear).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from moodal.metrics.checks import Flags, Floats, MetricError, class_vector, label_table, numbers, probabilities, vectors
from moodal.metrics.classification import accuracy, confusion, weighted_f1

#: The order of the CMU Multimodal SDK ("All Labels", after the sentiment).
MOSEI_EMOTIONS: tuple[str, ...] = ("happy", "sad", "anger", "surprise", "disgust", "fear")

#: Thresholds tried on a validation part: 0.05, 0.10, ... 0.95.
THRESHOLDS: tuple[float, ...] = tuple(step * 0.05 for step in range(1, 20))


def emotion_weighted_accuracy(prediction: npt.ArrayLike, target: npt.ArrayLike) -> float:
    """MOSEI's weighted accuracy of one emotion, ``(TP N / P + TN) / (2 N)`` (MulT, MME2E): balanced accuracy.

    P and N count present and absent rows of the truth; NaN where either is 0. Not the "WA" of speech papers, which
    is plain accuracy.
    """
    counts = _binary(prediction, target)
    absent, present = counts.sum(axis=1)
    if absent == 0 or present == 0:
        return float("nan")
    return float((counts[1, 1] * absent / present + counts[0, 0]) / (2 * absent))


def positive_f1(prediction: npt.ArrayLike, target: npt.ArrayLike) -> float:
    """F1 of the present class, ``2 TP / (2 TP + FP + FN)``; NaN where the truth has no present row."""
    counts = _binary(prediction, target)
    hits, present, chosen = counts[1, 1], counts[1].sum(), counts[:, 1].sum()
    return float(2 * hits / (present + chosen)) if present else float("nan")


def _binary(prediction: npt.ArrayLike, target: npt.ArrayLike) -> npt.NDArray[np.int64]:
    chosen = class_vector(prediction, name="prediction", classes=2)
    return confusion(chosen, class_vector(target, name="target", classes=2), classes=2)


def auc(prediction: npt.ArrayLike, target: npt.ArrayLike) -> float:
    """Area under the ROC curve of scores (N,) for one label; NaN where the truth has one class only.

    As the share of (present, absent) pairs of rows in the right order, ties counted half: many times quicker than the
    library's curve, which a bootstrap over six emotions feels.
    """
    scores, _ = vectors(prediction, target)
    truth = class_vector(target, name="target", classes=2) == 1
    present, absent = scores[truth], np.sort(scores[~truth])
    if len(present) == 0 or len(absent) == 0:
        return float("nan")
    below, not_above = (np.searchsorted(absent, present, side=side).sum() for side in ("left", "right"))
    return float((below + not_above) / (2 * len(present) * len(absent)))


def exact_match(prediction: npt.ArrayLike, target: npt.ArrayLike) -> float:
    """Share of rows with every label right ("strict"); decisions and truth (N, C) of 0 and 1."""
    chosen = numbers(prediction, name="prediction")
    truth = label_table(target, like=probabilities(chosen, simplex=False))
    return float(np.mean(((chosen > 0) == truth).all(axis=1)))


def decide(prediction: npt.ArrayLike, *, thresholds: float | Sequence[float] | Floats = 0.5) -> Flags:
    """Labels (N, C): probability strictly above the threshold, one for all columns or one for each."""
    table = probabilities(prediction, simplex=False)
    limits = numbers(thresholds, name="thresholds")
    if limits.shape not in ((), (table.shape[1],)):
        raise MetricError(
            f"thresholds has shape {limits.shape}, expected one number or one for each of the {table.shape[1]} columns."
        )
    return table > limits


def tune_thresholds(prediction: npt.ArrayLike, target: npt.ArrayLike, *, grid: Sequence[float] = THRESHOLDS) -> Floats:
    """The threshold of each label (C,) with the best ``positive_f1`` on a VALIDATION part; the lowest among equals.

    MME2E, evaluate.py. A loss with positive weights moves the operating point already: say so when doing both.
    """
    table = probabilities(prediction, simplex=False)
    truth = label_table(target, like=table)
    if not truth.any(axis=0).all():
        column = int(np.argmin(truth.any(axis=0)))
        raise MetricError(
            f"Label {column} is never present in the validation part, so it has no best threshold; use 0.5 for it."
        )
    scores = [[positive_f1(table[:, k] > limit, truth[:, k]) for limit in grid] for k in range(table.shape[1])]
    best: Floats = np.asarray(grid, dtype=np.float64)[np.argmax(scores, axis=1)]
    return best


def label_scores(
    prediction: npt.ArrayLike,
    target: npt.ArrayLike,
    *,
    names: Sequence[str],
    thresholds: float | Sequence[float] | Floats = 0.5,
) -> dict[str, dict[str, float]]:
    """Per label name: accuracy, weighted_accuracy, weighted_f1, positive_f1 and auc, from tables (N, C)."""
    table = probabilities(prediction, simplex=False)
    truth, chosen = label_table(target, like=table), decide(table, thresholds=thresholds)
    if len(names) != table.shape[1]:
        raise MetricError(f"There are {len(names)} names for {table.shape[1]} columns; pass one name per column.")
    return {
        name: {
            "accuracy": accuracy(chosen[:, k], truth[:, k]),
            "weighted_accuracy": emotion_weighted_accuracy(chosen[:, k], truth[:, k]),
            "weighted_f1": weighted_f1(chosen[:, k], truth[:, k]),
            "positive_f1": positive_f1(chosen[:, k], truth[:, k]),
            "auc": auc(table[:, k], truth[:, k]),
        }
        for k, name in enumerate(names)
    }


def average_scores(prediction: npt.ArrayLike, target: npt.ArrayLike) -> dict[str, float]:
    """Unweighted means over the labels at threshold 0.5, and ``exact_match``.

    A mean is NaN as soon as one label is undefined (never present, or always): an average over fewer labels is
    another number.
    """
    table = probabilities(prediction, simplex=False)
    per_label = label_scores(table, target, names=[str(k) for k in range(table.shape[1])])
    keys = ("weighted_accuracy", "weighted_f1", "positive_f1", "auc")
    means = {key: float(np.mean([scores[key] for scores in per_label.values()])) for key in keys}
    return means | {"exact_match": exact_match(decide(table), target)}
