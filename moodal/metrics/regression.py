"""Numbers for continuous targets: errors, correlations, and the accuracies read off a sentiment scale.

Inputs are ``prediction`` and ``target`` of shape (N,) or (N, 1); sums run in float64; nothing is rounded. A value
that is not defined (a correlation with a constant, an accuracy over no rows) is NaN, never 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt

from moodal.metrics.checks import Flags, Floats, Integers, MetricError, numbers, same_rows, vector, vectors
from moodal.metrics.classification import weighted_f1

#: What happens to a sentiment of exactly 0 in two classes. ``has0``: it is positive (>= 0 against < 0), all rows;
#: ``zero_negative``: it is negative (> 0 against <= 0), all rows; ``non0``: rows whose LABEL is 0 are left out.
ZeroRule = Literal["has0", "zero_negative", "non0"]

#: Inner edges of CH-SIMS's right-closed classes by their number (MMSA, metricsTop.py).
SIMS_EDGES: Mapping[int, tuple[float, ...]] = {2: (0.0,), 3: (-0.1, 0.1), 5: (-0.7, -0.1, 0.1, 0.7)}


def mae(prediction: npt.ArrayLike, target: npt.ArrayLike) -> float:
    """Mean absolute error, ``mean |p - y|``."""
    values, truth = vectors(prediction, target)
    return float(np.abs(values - truth).mean())


def rmse(prediction: npt.ArrayLike, target: npt.ArrayLike) -> float:
    """Root mean squared error, ``sqrt(mean (p - y)^2)``."""
    values, truth = vectors(prediction, target)
    return float(np.sqrt(np.square(values - truth).mean()))


def correlation(prediction: npt.ArrayLike, target: npt.ArrayLike) -> float:
    """Pearson's correlation; NaN where either side is constant."""
    values, truth = vectors(prediction, target)
    if np.ptp(values) == 0 or np.ptp(truth) == 0:  # tested exactly: the variance of a constant may round to 1e-33
        return float("nan")
    return float(np.clip(_direction(values) @ _direction(truth), -1.0, 1.0))


def _direction(values: Floats) -> Floats:
    """The centred vector at length 1, scaled first so that tiny values do not vanish when squared."""
    centred = values - values.mean()
    scaled = centred / np.abs(centred).max()
    unit: Floats = scaled / np.linalg.norm(scaled)
    return unit


def ccc(prediction: npt.ArrayLike, target: npt.ArrayLike, *, ddof: int = 0) -> float:
    """Concordance correlation (Lin 1989), ``2 cov(p, y) / (var p + var y + (mean p - mean y)^2)``.

    ``ddof`` 0 divides covariance and variances by N. 1 is the published script of AVEC 2019 (CES, calc_scores.py):
    its variances divide by N - 1 and its covariance by N, so that a perfect prediction scores (N - 1) / N. A
    constant prediction of a varying target scores 0; two equal constants, or one row with ``ddof`` 1, give NaN.
    """
    if ddof not in (0, 1):
        raise MetricError(f"ddof is {ddof}, expected 0 (the definition) or 1 (the AVEC 2019 script).")
    values, truth = vectors(prediction, target)
    if len(values) <= ddof:
        return float("nan")
    if np.ptp(values) == 0 or np.ptp(truth) == 0:  # exact, where rounding would leave 1e-17
        return float("nan") if np.array_equal(values, truth) else 0.0
    covariance = np.mean((values - values.mean()) * (truth - truth.mean()))
    spread = values.var(ddof=ddof) + truth.var(ddof=ddof) + (values.mean() - truth.mean()) ** 2
    return float(2 * covariance / spread)


def rounded_accuracy(prediction: npt.ArrayLike, target: npt.ArrayLike, *, limit: int) -> float:
    """Share of rows equal after clipping both sides to [-limit, limit] and rounding half to even.

    ``limit`` 1, 2, 3 are Acc-3, Acc-5, Acc-7 of MOSI and MOSEI (MulT, eval_metrics.py; MMSA, metricsTop.py). The
    labels are rounded too.
    """
    values, truth = vectors(prediction, target)
    return float(np.mean(np.rint(np.clip(values, -limit, limit)) == np.rint(np.clip(truth, -limit, limit))))


def acc3(prediction: npt.ArrayLike, target: npt.ArrayLike) -> float:
    """Acc-3 of MOSI and MOSEI: ``rounded_accuracy`` within [-1, 1]."""
    return rounded_accuracy(prediction, target, limit=1)


def acc5(prediction: npt.ArrayLike, target: npt.ArrayLike) -> float:
    """Acc-5 of MOSI and MOSEI: ``rounded_accuracy`` within [-2, 2]."""
    return rounded_accuracy(prediction, target, limit=2)


def acc7(prediction: npt.ArrayLike, target: npt.ArrayLike) -> float:
    """Acc-7 of MOSI and MOSEI: ``rounded_accuracy`` within [-3, 3]."""
    return rounded_accuracy(prediction, target, limit=3)


def sdk_seven_classes(values: npt.ArrayLike) -> Integers:
    """The CMU Multimodal SDK's own seven classes, -3 to 3, shape (N,): away from zero to the next whole number.

    0.1 is 1, -0.1 is -1, only 0 is 0. Not the rule of ``acc7``: never mix the two.
    """
    column = vector(values, name="prediction")
    away: Floats = np.copysign(np.ceil(np.abs(column)), column)
    return np.clip(away, -3, 3).astype(np.int64)


def sdk_seven_class_accuracy(prediction: npt.ArrayLike, target: npt.ArrayLike) -> float:
    """Share of rows in the same one of ``sdk_seven_classes``."""
    values, truth = vectors(prediction, target)
    return float(np.mean(sdk_seven_classes(values) == sdk_seven_classes(truth)))


def two_classes(prediction: npt.ArrayLike, target: npt.ArrayLike, *, rule: ZeroRule) -> tuple[Flags, Flags]:
    """Positive or not, predicted and true, under a named rule for zero; ``non0`` drops rows labelled 0.

    A prediction of exactly 0 is positive under ``has0`` and negative under the two others.
    """
    values, truth = vectors(prediction, target)
    if rule == "has0":
        return values >= 0, truth >= 0
    if rule == "zero_negative":
        return values > 0, truth > 0
    if rule == "non0":
        keep = truth != 0
        return values[keep] > 0, truth[keep] > 0
    raise MetricError(f"There is no rule for zero called '{rule}'; choose has0, zero_negative or non0.")


def binary_accuracy(prediction: npt.ArrayLike, target: npt.ArrayLike, *, rule: ZeroRule) -> float:
    """Share of rows on the right side of zero, see ``two_classes``; NaN if the rule leaves no row."""
    chosen, truth = two_classes(prediction, target, rule=rule)
    return float(np.mean(chosen == truth)) if len(truth) else float("nan")


def binary_f1(prediction: npt.ArrayLike, target: npt.ArrayLike, *, rule: ZeroRule) -> float:
    """F1 of both sides of zero weighted by their share of the LABELS; NaN if the rule leaves no row.

    MulT and TEXT hand labels and predictions to the library in swapped places, so that theirs is weighted by the
    share of the predictions (``published.py`` has that form).
    """
    chosen, truth = two_classes(prediction, target, rule=rule)
    return weighted_f1(chosen, truth) if len(truth) else float("nan")


def binned_classes(values: npt.ArrayLike, *, edges: Sequence[float]) -> Integers:
    """Class 0 .. len(edges) of each value, shape (N,): class k holds (edges[k - 1], edges[k]], closed on the right.

    Compared in float32, the precision of stored labels and of models: a float32 label 0.1 lies ON the edge 0.1
    there, and above it in float64.
    """
    column = vector(values, name="prediction").astype(np.float32)
    return np.searchsorted(np.asarray(edges, dtype=np.float32), column, side="left").astype(np.int64)


def binned_accuracy(prediction: npt.ArrayLike, target: npt.ArrayLike, *, edges: Sequence[float]) -> float:
    """Share of rows in the same one of ``binned_classes``; with ``SIMS_EDGES``, Acc-2, Acc-3, Acc-5 of CH-SIMS."""
    values, truth = vectors(prediction, target)
    return float(np.mean(binned_classes(values, edges=edges) == binned_classes(truth, edges=edges)))


# AVEC 2019, cross-cultural emotion sub-challenge: one label per 0.1 s, scored over whole partitions.


def concatenated_ccc(predictions: Sequence[npt.ArrayLike], targets: Sequence[npt.ArrayLike], *, ddof: int = 0) -> float:
    """CCC over all recordings of a partition joined end to end; the i-th entries have equal length (T_i,).

    Crop padding before. The value is not the mean over recordings: differences between recordings count.
    """
    if len(predictions) != len(targets):
        raise MetricError(
            f"There are {len(predictions)} predicted recordings and {len(targets)} labelled ones; pass one for each."
        )
    if not predictions:
        raise MetricError("There are 0 recordings to score, at least 1 is needed; check the partition.")
    pairs = [vectors(prediction, target) for prediction, target in zip(predictions, targets)]
    return ccc(np.concatenate([pair[0] for pair in pairs]), np.concatenate([pair[1] for pair in pairs]), ddof=ddof)


def advance(labels: npt.ArrayLike, *, steps: int = 20) -> Floats:
    """Labels (T, ...) moved ``steps`` to the front, zeros at the end: annotators react about 2 s late (20 steps)."""
    return _shifted(labels, -_checked(steps))


def delay(prediction: npt.ArrayLike, *, steps: int = 20) -> Floats:
    """Predictions (T, ...) moved ``steps`` to the back, zeros in front: undoes ``advance`` before scoring."""
    return _shifted(prediction, _checked(steps))


def _checked(steps: int) -> int:
    if steps < 0:
        raise MetricError(f"steps is {steps}, expected 0 or more; use advance for labels and delay for predictions.")
    return steps


def _shifted(values: npt.ArrayLike, steps: int) -> Floats:
    """Axis 0 moved by ``steps`` with zeros filled in, same shape."""
    series = numbers(values, name="series")
    same_rows(series, series)
    moved = np.zeros_like(series)
    if steps >= 0:
        moved[steps:] = series[: max(len(series) - steps, 0)]
    else:
        moved[:steps] = series[-steps:]
    return moved
