"""Whether stated confidence is deserved: for class probabilities, and for predicted standard deviations.

Bins never split equal values, so the order of rows changes nothing; empty bins are skipped.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from moodal.metrics.checks import (
    Flags,
    Floats,
    Integers,
    MetricError,
    class_vector,
    probabilities,
    same_rows,
    vector,
    vectors,
)

#: Bins of Guo et al. 2017 and of the code that goes with it (gpleiss/temperature_scaling).
BINS = 15


def ece(prediction: npt.ArrayLike, target: npt.ArrayLike, *, bins: int = BINS) -> float:
    """Expected calibration error over equal bins of confidence, ``sum_b (n_b / N) |accuracy_b - confidence_b|``.

    ``prediction``: probabilities (N, C) after any temperature; confidence is the largest. Bins are (b / B, (b + 1)
    / B].
    """
    confidence, correct = _confidence(prediction, target)
    return _weighted_gap(confidence, correct, equal_width(confidence, bins=bins))


def ece_equal_mass(prediction: npt.ArrayLike, target: npt.ArrayLike, *, bins: int = BINS) -> float:
    """``ece`` over bins of equally many rows, cut by rank of confidence."""
    confidence, correct = _confidence(prediction, target)
    return _weighted_gap(confidence, correct, equal_mass(confidence, bins=bins))


def ece_class_wise(prediction: npt.ArrayLike, target: npt.ArrayLike, *, bins: int = BINS) -> float:
    """Mean over classes of the calibration error of "is it class c?" (Kull et al. 2019), equal bins of p_c.

    A probability of exactly 0 belongs to the first bin.
    """
    table = probabilities(prediction, simplex=True)
    truth = class_vector(target, name="target", classes=table.shape[1])
    same_rows(table, truth)
    gaps = [
        _weighted_gap(column, truth == number, equal_width(column, bins=bins)) for number, column in enumerate(table.T)
    ]
    return float(np.mean(gaps))


def mce(prediction: npt.ArrayLike, target: npt.ArrayLike, *, bins: int = BINS) -> float:
    """Maximum calibration error: the largest gap of the bins of ``ece``."""
    confidence, correct = _confidence(prediction, target)
    gaps, _ = _gaps(confidence, correct, equal_width(confidence, bins=bins))
    return float(gaps.max())


def _confidence(prediction: npt.ArrayLike, target: npt.ArrayLike) -> tuple[Floats, Flags]:
    """The largest probability of each row (N,), and whether its class is the true one (N,)."""
    table = probabilities(prediction, simplex=True)
    truth = class_vector(target, name="target", classes=table.shape[1])
    same_rows(table, truth)
    return table.max(axis=1), table.argmax(axis=1) == truth


def equal_width(values: Floats, *, bins: int) -> Integers:
    """Bin (N,) of values in [0, 1] among ``bins`` equal ones, closed on the right; in float32, as models do."""
    edges = np.linspace(0, 1, _positive(bins) + 1).astype(np.float32)
    return np.minimum(np.searchsorted(edges[1:], values.astype(np.float32), side="left"), bins - 1).astype(np.int64)


def equal_mass(values: Floats, *, bins: int) -> Integers:
    """Bin (N,) by rank, floor(rank * bins / N); equal values share the bin of the first of them."""
    first_rank = np.searchsorted(np.sort(values), values, side="left")
    return (first_rank * _positive(bins) // len(values)).astype(np.int64)


def _positive(bins: int) -> int:
    if bins < 1:
        raise MetricError(f"bins is {bins}, expected 1 or more.")
    return bins


def _gaps(confidence: Floats, correct: Flags, index: Integers) -> tuple[Floats, Floats]:
    """Per bin that is not empty: |accuracy - confidence| and the share of rows."""
    rows = np.bincount(index)
    filled = rows > 0
    difference = np.bincount(index, weights=correct - confidence)[filled]
    return np.abs(difference) / rows[filled], rows[filled] / rows.sum()


def _weighted_gap(confidence: Floats, correct: Flags, index: Integers) -> float:
    gaps, shares = _gaps(confidence, correct, index)
    return float(gaps @ shares)


# Regression with a predicted standard deviation per row.


def ence(prediction: npt.ArrayLike, target: npt.ArrayLike, *, deviation: npt.ArrayLike, bins: int = BINS) -> float:
    """Expected normalised calibration error (Levi et al. 2022), ``mean_b |RMV_b - RMSE_b| / RMV_b``.

    Bins of equally many rows by predicted ``deviation`` (N,); RMV_b is the root of the mean variance, RMSE_b the
    root of the mean squared error. 0 where deviations are right in every bin.
    """
    error, spread = _error_and_spread(prediction, target, deviation)
    index = equal_mass(spread, bins=bins)
    rows = np.bincount(index)
    filled = rows > 0
    variance = np.bincount(index, weights=spread**2)[filled] / rows[filled]
    squared_error = np.bincount(index, weights=error**2)[filled] / rows[filled]
    return float(np.mean(np.abs(np.sqrt(variance) - np.sqrt(squared_error)) / np.sqrt(variance)))


def deviation_rank_correlation(prediction: npt.ArrayLike, target: npt.ArrayLike, *, deviation: npt.ArrayLike) -> float:
    """Spearman correlation of predicted deviation and absolute error; NaN where either is constant."""
    from scipy.stats import spearmanr  # at use: slow to import

    error, spread = _error_and_spread(prediction, target, deviation)
    if np.ptp(spread) == 0 or np.ptp(np.abs(error)) == 0:
        return float("nan")
    return float(spearmanr(spread, np.abs(error)).statistic)


def gaussian_nll(prediction: npt.ArrayLike, target: npt.ArrayLike, *, deviation: npt.ArrayLike) -> float:
    """Mean negative log-likelihood of the targets, ``log(2 pi s^2) / 2 + (y - p)^2 / (2 s^2)``, in nats."""
    error, spread = _error_and_spread(prediction, target, deviation)
    return float(np.mean(0.5 * np.log(2 * np.pi * spread**2) + 0.5 * np.square(error / spread)))


def regression_calibration(
    prediction: npt.ArrayLike, target: npt.ArrayLike, *, deviation: npt.ArrayLike, bins: int = BINS
) -> dict[str, float]:
    """``{"ence", "deviation_spearman", "nll"}`` of predictions (N,) with standard deviations (N,)."""
    return {
        "ence": ence(prediction, target, deviation=deviation, bins=bins),
        "deviation_spearman": deviation_rank_correlation(prediction, target, deviation=deviation),
        "nll": gaussian_nll(prediction, target, deviation=deviation),
    }


def _error_and_spread(
    prediction: npt.ArrayLike, target: npt.ArrayLike, deviation: npt.ArrayLike
) -> tuple[Floats, Floats]:
    values, truth = vectors(prediction, target)
    spread = vector(deviation, name="deviation")
    same_rows(values, spread, name="deviation")
    if spread.min() <= 0:
        raise MetricError(
            f"deviation holds {spread.min():g}, expected positive standard deviations; pass the root of the variances."
        )
    return values - truth, spread
