"""Calibration: cases with a known answer, a plain loop, and invariance to the order of rows."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from moodal.metrics import MetricError
from moodal.metrics import calibration as k

VARIANTS = (k.ece, k.ece_equal_mass, k.ece_class_wise, k.mce)


def binary(confidence: float, rows: int) -> np.ndarray:
    """Probabilities (rows, 2) that give class 0 ``confidence``."""
    return np.tile([confidence, 1 - confidence], (rows, 1))


def drawn(seed: int, rows: int = 400) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    probability = random.dirichlet(np.ones(4) * 0.6, size=rows).astype(np.float32)
    target = np.where(random.random(rows) < 0.6, probability.argmax(axis=1), random.integers(4, size=rows))
    return probability, target


@pytest.mark.parametrize("metric", VARIANTS)
def test_known_answers(metric):
    assert metric(binary(1.0, 10), np.zeros(10, dtype=int)) == 0
    assert metric(binary(0.8, 10), np.zeros(10, dtype=int)) == pytest.approx(0.2)
    assert metric(binary(0.75, 8), [0, 0, 0, 0, 0, 0, 1, 1]) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("metric", VARIANTS)
def test_order_of_rows_does_not_matter(metric):
    probability, target = drawn(1)
    probability[:50] = probability[0]  # ties, within and across right and wrong rows
    order = np.random.default_rng(0).permutation(len(target))
    assert metric(probability[order], target[order]) == pytest.approx(metric(probability, target), abs=1e-9)
    assert metric(probability, target) > 0.01


@pytest.mark.parametrize("seed", range(3))
def test_equal_width_agrees_with_a_plain_loop(seed):
    probability, target = drawn(seed)
    confidence, right = probability.max(axis=1), probability.argmax(axis=1) == target
    gaps, shares = [], []
    for b in range(15):
        low, high = np.float32(b / 15), np.float32((b + 1) / 15)
        inside = (confidence > low) & (confidence <= high)
        if inside.any():
            gaps.append(abs(right[inside].mean() - confidence[inside].astype(np.float64).mean()))
            shares.append(inside.mean())
    assert k.ece(probability, target) == pytest.approx(np.dot(gaps, shares), abs=1e-9)
    assert k.mce(probability, target) == pytest.approx(max(gaps), abs=1e-9) and max(gaps) > np.dot(gaps, shares)


def test_class_wise_agrees_with_a_plain_loop():
    probability, target = drawn(4)
    total = 0.0
    for c in range(4):
        column = probability[:, c]
        for b in range(15):
            low = np.float32(b / 15) if b else -1
            inside = (column > low) & (column <= np.float32((b + 1) / 15))
            if inside.any():
                total += (
                    inside.mean() * abs((target[inside] == c).mean() - column[inside].astype(np.float64).mean()) / 4
                )
    assert k.ece_class_wise(probability, target) == pytest.approx(total, abs=1e-9)


def test_bins_are_closed_on_the_right():
    values = np.array([0.0, 0.2, np.nextafter(np.float32(0.2), np.float32(1)), 1.0])
    assert k.equal_width(values, bins=5).tolist() == [0, 0, 1, 4]
    assert k.equal_width(np.array([0.2], dtype=np.float32), bins=5).tolist() == [0]


def test_equal_mass_bins_hold_equally_many_and_keep_ties_together():
    assert np.bincount(k.equal_mass(np.random.default_rng(0).random(60), bins=15)).tolist() == [4] * 15
    assert np.unique(k.equal_mass(np.ones(60), bins=15)).tolist() == [0]
    assert k.equal_mass(np.array([3.0, 1, 2]), bins=15).max() == 10  # fewer rows than bins: one row each


def test_faults_of_probabilities():
    with pytest.raises(
        MetricError, match=r"ranges from -1 to 3, expected probabilities from 0 to 1; apply the softmax"
    ):
        k.ece([[3.0, -1.0]], [0])
    with pytest.raises(MetricError, match=r"A row of prediction sums to 0\.6, expected 1"):
        k.ece([[0.5, 0.5], [0.3, 0.3]], [0, 0])
    with pytest.raises(MetricError, match="target holds class 2 in row 0, expected 0 to 1"):
        k.mce(binary(0.8, 1), [2])
    with pytest.raises(MetricError, match="prediction has 1 rows and target has 2"):
        k.ece_class_wise(binary(0.8, 1), [0, 1])
    with pytest.raises(MetricError, match="bins is 0, expected 1 or more"):
        k.ece(binary(0.8, 1), [0], bins=0)


def test_right_deviations_are_calibrated_and_wrong_ones_are_not():
    random = np.random.default_rng(0)
    deviation = random.uniform(0.5, 3, 60000)
    target = random.normal(0, deviation)
    prediction = np.zeros_like(target)
    assert k.ence(prediction, target, deviation=deviation) < 0.03
    assert k.ence(prediction, target, deviation=2 * deviation) == pytest.approx(0.5, abs=0.02)
    assert k.ence(prediction, target, deviation=deviation / 2) == pytest.approx(1.0, abs=0.05)


def test_ence_by_hand():
    # two bins: deviations (1, 1) with errors (1, 1); deviations (2, 2) with errors (1, 1)
    value = k.ence([0, 0, 0, 0.0], [1, -1, 1, -1.0], deviation=[1, 1, 2, 2.0], bins=2)
    assert value == pytest.approx((0 + 0.5) / 2)
    # a constant deviation is one bin, whatever their number
    assert k.ence([0, 0, 0.0], [1, 2, 3.0], deviation=[2, 2, 2.0]) == pytest.approx(abs(2 - math.sqrt(14 / 3)) / 2)


def test_likelihood_and_rank_correlation_agree_with_scipy():
    random = np.random.default_rng(1)
    prediction, target, deviation = random.normal(size=50), random.normal(size=50), random.uniform(0.1, 2, 50)
    expected = -stats.norm.logpdf(target, prediction, deviation).mean()
    assert k.gaussian_nll(prediction, target, deviation=deviation) == pytest.approx(expected, abs=1e-12)
    rank = stats.spearmanr(deviation, np.abs(prediction - target)).statistic
    assert k.deviation_rank_correlation(prediction, target, deviation=deviation) == pytest.approx(rank, abs=1e-12)
    assert k.deviation_rank_correlation([0, 0.0], [1, 3.0], deviation=[0.1, 0.2]) == pytest.approx(1)
    assert math.isnan(k.deviation_rank_correlation([0, 0.0], [1, 3.0], deviation=[0.1, 0.1]))
    together = k.regression_calibration(prediction, target, deviation=deviation)
    assert together == {
        "ence": k.ence(prediction, target, deviation=deviation),
        "deviation_spearman": pytest.approx(rank, abs=1e-12),
        "nll": pytest.approx(expected, abs=1e-12),
    }


def test_faults_of_deviations():
    with pytest.raises(MetricError, match="deviation holds 0, expected positive standard deviations; pass the root"):
        k.gaussian_nll([0.0, 1], [0.0, 1], deviation=[1.0, 0])
    with pytest.raises(MetricError, match="prediction has 2 rows and deviation has 1"):
        k.ence([0.0, 1], [0.0, 1], deviation=[1.0])
    with pytest.raises(MetricError, match=r"deviation holds 1 values that are NaN .* Every row needs a number"):
        k.ence([0.0], [0.0], deviation=[np.nan])
