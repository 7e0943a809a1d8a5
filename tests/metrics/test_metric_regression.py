"""Regression metrics: hand-worked values, scipy and plain loops, degenerate inputs, error sentences."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import accuracy_score, f1_score, mean_absolute_error, root_mean_squared_error

from moodal.metrics import MetricError
from moodal.metrics import regression as r

LABELS = np.array([-3, -1, 0, 1, 3], dtype=np.float32)
PREDICTIONS = np.array([-2.5, 0.4, 0, 0.5, 3.7], dtype=np.float32)
RULES = ("has0", "zero_negative", "non0")


def signed(seed: int, rows: int = 300) -> tuple[np.ndarray, np.ndarray]:
    """Predictions and labels on a scale of [-3, 3] in steps of 0.2, zeros, ties and values beyond the scale included."""
    random = np.random.default_rng(seed)
    target = np.round(random.uniform(-3, 3, rows) * 5) / 5
    prediction = np.round(target + random.normal(0, 1.5, rows), 1)
    return prediction.astype(np.float32), target.astype(np.float32)


def test_hand_worked_table():
    assert r.acc7(PREDICTIONS, LABELS) == pytest.approx(2 / 5)
    assert r.binary_accuracy(PREDICTIONS, LABELS, rule="has0") == pytest.approx(4 / 5)
    assert r.binary_accuracy(PREDICTIONS, LABELS, rule="non0") == pytest.approx(3 / 4)
    assert r.mae(PREDICTIONS, LABELS) == pytest.approx((0.5 + 1.4 + 0 + 0.5 + 0.7) / 5)
    # within [-2, 2]: (-2, 0, 0, 0, 2) against (-2, -1, 0, 1, 2); within [-1, 1]: (-1, 0, 0, 0, 1) against (-1, -1, 0, 1, 1)
    assert r.acc5(PREDICTIONS, LABELS) == pytest.approx(3 / 5)
    assert r.acc3(PREDICTIONS, LABELS) == pytest.approx(3 / 5)
    # has0: truth 2 negative, 3 others; TP 3, FP 1, FN 0 -> 6/7; negative TP 1, FP 0, FN 1 -> 2/3
    assert r.binary_f1(PREDICTIONS, LABELS, rule="has0") == pytest.approx(0.6 * 6 / 7 + 0.4 * 2 / 3)
    # zero_negative: truth 3 negative; predictions 0.4 wrong: positive 4/5, negative 4/5
    assert r.binary_accuracy(PREDICTIONS, LABELS, rule="zero_negative") == pytest.approx(4 / 5)
    assert r.binary_f1(PREDICTIONS, LABELS, rule="zero_negative") == pytest.approx(0.8)


def test_perfect_and_mirrored_predictions():
    _, target = signed(1)
    assert r.mae(target, target) == 0 and r.correlation(target, target) == pytest.approx(1)
    for accuracy in (r.acc3, r.acc5, r.acc7, r.sdk_seven_class_accuracy):
        assert accuracy(target, target) == 1
    for rule in RULES:
        assert r.binary_accuracy(target, target, rule=rule) == 1 and r.binary_f1(target, target, rule=rule) == 1
    assert r.correlation(-target, target) == pytest.approx(-1)
    assert r.binary_accuracy(-target, target, rule="non0") == 0


def test_constant_offset_on_the_mosi_scale():
    _, target = signed(2)
    shifted = target.astype(np.float64) + 10
    assert r.mae(shifted, target) == pytest.approx(10) and r.correlation(shifted, target) == pytest.approx(1)
    assert r.binary_accuracy(shifted, target, rule="has0") == pytest.approx(np.mean(target >= 0))


@pytest.mark.parametrize("seed", range(5))
def test_errors_and_correlation_agree_with_the_libraries(seed):
    prediction, target = signed(seed)
    wide = prediction.astype(np.float64), target.astype(np.float64)
    assert r.mae(prediction, target) == pytest.approx(mean_absolute_error(*wide), abs=1e-12)
    assert r.rmse(prediction, target) == pytest.approx(root_mean_squared_error(*wide), abs=1e-12)
    assert r.correlation(prediction, target) == pytest.approx(stats.pearsonr(*wide).statistic, abs=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_binary_metrics_agree_with_scikit_learn(seed):
    prediction, target = signed(seed)
    keep = target != 0
    assert 0 < keep.sum() < len(keep) and (prediction == 0).any()
    sides = {
        "has0": (target >= 0, prediction >= 0),
        "zero_negative": (target > 0, prediction > 0),
        "non0": (target[keep] > 0, prediction[keep] > 0),
    }
    for rule, (truth, chosen) in sides.items():
        assert r.binary_accuracy(prediction, target, rule=rule) == pytest.approx(
            accuracy_score(truth, chosen), abs=1e-12
        )
        assert r.binary_f1(prediction, target, rule=rule) == pytest.approx(
            f1_score(truth, chosen, average="weighted"), abs=1e-12
        )


@pytest.mark.parametrize("limit", [1, 2, 3])
def test_rounded_accuracy_agrees_with_a_plain_loop(limit):
    prediction, target = signed(7)
    hits = sum(
        round(min(max(float(p), -limit), limit))
        == round(min(max(float(y), -limit), limit))  # Python rounds half to even
        for p, y in zip(prediction, target)
    )
    assert r.rounded_accuracy(prediction, target, limit=limit) == pytest.approx(hits / len(target), abs=1e-12)


def test_rounding_is_half_to_even_and_labels_are_rounded_too():
    assert r.acc7([0.5, 1.5, 2.5, -0.5, -1.5], [0, 2, 2, 0, -2]) == 1
    assert r.acc7([0.0, 1.0], [1 / 3, 2 / 3]) == 1


def test_clipping_joins_everything_beyond_the_scale():
    assert r.acc7([30, -30], [3, -3]) == 1 and r.acc3([2.0], [3.0]) == 1 and r.acc7([2.0], [3.0]) == 0


def test_the_kits_seven_classes_round_away_from_zero():
    assert r.sdk_seven_classes([0.1, -0.1, 0, 1, 1.01, -2.2, 7, -7]).tolist() == [1, -1, 0, 1, 2, -3, 3, -3]
    assert r.sdk_seven_class_accuracy([0.1], [0.9]) == 1 and r.acc7([0.1], [0.9]) == 0


@pytest.mark.parametrize("constant", [0.0, 0.1, 1e-30, 12345.678])
def test_correlation_with_a_constant_is_nan(constant):
    target = np.linspace(-1, 1, 7)
    assert math.isnan(r.correlation(np.full(7, constant), target)) and math.isnan(
        r.correlation(target, np.full(7, constant))
    )


def test_correlation_of_tiny_and_shifted_values():
    values = np.array([1.0, 4.0, 2.0, 8.0])
    assert r.correlation(values * 1e-200, values) == pytest.approx(1)
    assert r.correlation([2.0], [1.0]) != r.correlation([2.0], [1.0])  # one row: NaN


def test_non0_without_other_labels_is_nan():
    assert math.isnan(r.binary_accuracy([1.0, 2.0], [0.0, 0.0], rule="non0"))
    assert math.isnan(r.binary_f1([1.0, 2.0], [0.0, 0.0], rule="non0"))


def test_prediction_of_zero_is_positive_only_under_has0():
    assert [r.binary_accuracy([0.0], [1.0], rule=rule) for rule in RULES] == [1, 0, 0]


@pytest.mark.parametrize(
    ("classes", "expected"),
    [
        (2, [0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1]),
        (3, [0, 0, 0, 0, 0, 1, 2, 2, 2, 2, 2]),
        (5, [0, 0, 1, 1, 1, 2, 3, 3, 3, 4, 4]),
    ],
)
def test_sims_classes_on_the_label_grid(classes, expected):
    grid = np.array([-1, -0.8, -0.6, -0.4, -0.2, 0, 0.2, 0.4, 0.6, 0.8, 1], dtype=np.float32)
    assert r.binned_classes(grid, edges=r.SIMS_EDGES[classes]).tolist() == expected


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_sims_edges_belong_to_the_class_below_in_single_precision(dtype):
    edges = np.array([-0.7, -0.1, 0.1, 0.7], dtype=dtype)
    assert r.binned_classes(edges, edges=r.SIMS_EDGES[5]).tolist() == [0, 1, 2, 3]
    above = np.nextafter(edges.astype(np.float32), np.float32(2))
    assert r.binned_classes(above, edges=r.SIMS_EDGES[5]).tolist() == [1, 2, 3, 4]


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_binned_accuracy_agrees_with_a_plain_loop(classes):
    random = np.random.default_rng(3)
    target = (np.round(random.uniform(-1, 1, 200) * 5) / 5).astype(np.float32)
    prediction = np.clip(np.round(target + random.normal(0, 0.4, 200), 1), -1, 1).astype(np.float32)
    inner = [np.float32(edge) for edge in r.SIMS_EDGES[classes]]
    of = lambda value: sum(bool(value > edge) for edge in inner)
    hits = [of(p) == of(y) for p, y in zip(prediction, target)]
    assert r.binned_accuracy(prediction, target, edges=r.SIMS_EDGES[classes]) == pytest.approx(np.mean(hits), abs=1e-12)
    assert 0 < np.mean(hits) < 1


def test_ccc_in_closed_form():
    centred = np.array([-2.0, -1, 0, 1, 2])
    variance = centred.var()
    assert r.ccc(centred, centred) == pytest.approx(1) and r.ccc(centred, -centred) == pytest.approx(-1)
    assert r.ccc(centred, centred + 3) == pytest.approx(2 * variance / (2 * variance + 9))
    assert r.ccc(centred, 2 * centred) == pytest.approx(0.8)
    assert r.ccc(centred, np.full(5, 0.3)) == 0
    assert math.isnan(r.ccc([1.0, 1.0], [1.0, 1.0])) and r.ccc([1.0, 1.0], [2.0, 2.0]) == 0


@pytest.mark.parametrize("seed", range(4))
def test_ccc_is_symmetric_and_below_pearson(seed):
    prediction, target = signed(seed)
    value = r.ccc(prediction, target)
    assert value == pytest.approx(r.ccc(target, prediction), abs=1e-12)
    assert abs(value) <= abs(r.correlation(prediction, target)) + 1e-12
    p, y = prediction.astype(np.float64), target.astype(np.float64)
    covariance = np.cov(p, y, ddof=0)
    lin = 2 * covariance[0, 1] / (covariance[0, 0] + covariance[1, 1] + (p.mean() - y.mean()) ** 2)
    assert value == pytest.approx(lin, abs=1e-12)


def test_ccc_of_the_avec_script():
    values = np.array([1.0, 3.0, 2.0, 7.0, 5.0])
    assert r.ccc(values, values, ddof=1) == pytest.approx(4 / 5)
    assert math.isnan(r.ccc([1.0], [2.0], ddof=1))
    with pytest.raises(MetricError, match=r"ddof is 2, expected 0 .* or 1"):
        r.ccc(values, values, ddof=2)


def test_concatenated_ccc_is_not_the_mean_over_recordings():
    parts = [np.array([0.0, 1.0, 2.0]), np.array([10.0, 11.0])]
    predictions = [parts[0][::-1].copy(), parts[1]]
    joined = r.ccc(np.concatenate(predictions), np.concatenate(parts))
    assert r.concatenated_ccc(predictions, parts) == pytest.approx(joined, abs=1e-12)
    assert abs(joined - np.mean([r.ccc(p, y) for p, y in zip(predictions, parts)])) > 0.5
    with pytest.raises(MetricError, match=r"1 predicted recordings and 2 labelled ones"):
        r.concatenated_ccc(predictions[:1], parts)
    with pytest.raises(MetricError, match="0 recordings to score"):
        r.concatenated_ccc([], [])


def test_annotation_delay():
    series = np.arange(1.0, 6.0)
    assert r.advance(series, steps=2).tolist() == [3, 4, 5, 0, 0]
    assert r.delay(series, steps=2).tolist() == [0, 0, 1, 2, 3]
    assert r.delay(r.advance(series, steps=2), steps=2).tolist() == [0, 0, 3, 4, 5]
    assert r.advance(series, steps=0).tolist() == r.delay(series, steps=0).tolist() == series.tolist()
    assert r.advance(series).tolist() == r.delay(series).tolist() == [0] * 5  # 20 steps of 5
    assert r.advance(np.stack([series, -series], axis=1), steps=4).tolist() == [[5, -5]] + [[0, 0]] * 4
    with pytest.raises(MetricError, match="steps is -1, expected 0 or more"):
        r.delay(series, steps=-1)


def test_columns_are_accepted_and_never_broadcast():
    assert r.mae(np.ones((4, 1)), np.zeros(4)) == 1 and r.mae(np.ones(4), np.zeros((4, 1))) == 1


@pytest.mark.parametrize(
    ("prediction", "target", "sentence"),
    [
        ([1.0, 2.0], [1.0], r"prediction has 2 rows and target has 1; pass one row for each sample"),
        ([], [], "0 rows to score, at least 1 is needed"),
        (
            [1.0, 2.0],
            [1.0, np.nan],
            r"target holds 1 values that are NaN or infinite, the first in row 1\. Pass valid=",
        ),
        ([np.inf, 2.0], [1.0, 1.0], r"prediction holds 1 values .* row 0\. The model diverged"),
        (np.zeros((3, 2)), np.zeros(3), r"prediction has shape \(3, 2\), expected \(N,\) or \(N, 1\)"),
        (1.0, 1.0, r"prediction has shape \(\), expected"),
        ([[1.0], [1.0, 2.0]], [1.0, 2.0], "prediction is not an array of numbers"),
        (["high", "low"], [1.0, 2.0], "prediction is not an array of numbers .* pass a rectangular array"),
    ],
)
def test_faults_say_what_was_found(prediction, target, sentence):
    with pytest.raises(MetricError, match=sentence):
        r.mae(prediction, target)
    with pytest.raises(ValueError, match=sentence):
        r.binary_f1(prediction, target, rule="has0")


def test_unknown_zero_rule():
    with pytest.raises(MetricError, match="no rule for zero called 'Has0'; choose has0, zero_negative or non0"):
        r.binary_accuracy([1.0], [1.0], rule="Has0")
