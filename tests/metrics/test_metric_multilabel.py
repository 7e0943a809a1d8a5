"""Multi-label metrics: identities, scikit-learn, and the numbers recorded from MME2E's evaluation."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from sklearn import metrics as library

from moodal.metrics import MetricError, score
from moodal.metrics import multilabel as m

CASE = Path(__file__).parents[3] / "shared" / "parity" / "mesm" / "thresholds.json"


def drawn(seed: int, rows: int = 120) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities (N, 6) and intensities (N, 6) that go together."""
    random = np.random.default_rng(seed)
    intensity = np.maximum(random.normal(-0.4, 1, size=(rows, 6)), 0)
    return 1 / (1 + np.exp(-(intensity - 0.3 + random.normal(0, 0.8, size=(rows, 6))))), intensity


@pytest.mark.parametrize("seed", range(4))
def test_one_label_agrees_with_scikit_learn(seed):
    probability, intensity = drawn(seed)
    chosen, truth = probability[:, 0] > 0.5, intensity[:, 0] > 0
    assert m.emotion_weighted_accuracy(chosen, truth) == pytest.approx(
        library.balanced_accuracy_score(truth, chosen), abs=1e-12
    )
    assert m.positive_f1(chosen, truth) == pytest.approx(library.f1_score(truth, chosen), abs=1e-12)
    for scores in (probability[:, 0], np.round(probability[:, 0], 1)):  # the second with ties
        assert m.auc(scores, truth) == pytest.approx(library.roc_auc_score(truth, scores), abs=1e-12)


def test_weighted_accuracy_of_plain_predictors():
    truth = np.array([1, 0, 0, 0, 1, 0])
    assert m.emotion_weighted_accuracy(np.ones(6), truth) == m.emotion_weighted_accuracy(np.zeros(6), truth) == 0.5
    assert m.emotion_weighted_accuracy(truth, truth) == 1
    random = np.random.default_rng(0)
    for rate in (0.08, 0.5):
        truth, guess = random.random(20000) < rate, random.random(20000) < 0.3
        assert m.emotion_weighted_accuracy(guess, truth) == pytest.approx(0.5, abs=0.02)


def test_weighted_f1_flatters_a_rare_label():
    truth = np.repeat([0, 1], [917, 83])
    scores = m.label_scores(np.zeros((1000, 1)), truth[:, None], names=["fear"])["fear"]
    assert scores["weighted_f1"] == pytest.approx(0.917 * 2 * 0.917 / 1.917) and scores["positive_f1"] == 0
    assert scores["weighted_accuracy"] == 0.5


def test_undefined_labels_are_nan_and_so_is_the_mean():
    assert math.isnan(m.emotion_weighted_accuracy([0, 1], [0, 0])) and math.isnan(
        m.emotion_weighted_accuracy([0, 1], [1, 1])
    )
    assert math.isnan(m.auc([0.1, 0.9], [0, 0])) and math.isnan(m.positive_f1([0, 1], [0, 0]))
    probability, intensity = drawn(1)
    intensity[:, 2] = 0
    means = m.average_scores(probability, intensity)
    assert math.isnan(means["weighted_accuracy"]) and math.isnan(means["auc"]) and means["weighted_f1"] > 0


def test_means_over_labels_and_exact_match():
    probability, intensity = drawn(2)
    per_label = m.label_scores(probability, intensity, names=m.MOSEI_EMOTIONS)
    means = m.average_scores(probability, intensity)
    assert tuple(per_label) == m.MOSEI_EMOTIONS
    for key in ("weighted_accuracy", "weighted_f1", "positive_f1", "auc"):
        assert means[key] == pytest.approx(np.mean([scores[key] for scores in per_label.values()]), abs=1e-12)
    assert means["exact_match"] == pytest.approx(library.accuracy_score(intensity > 0, probability > 0.5), abs=1e-12)
    assert m.exact_match([[1, 0], [1, 1], [0, 0]], [[1, 0], [1, 0], [0, 0]]) == pytest.approx(2 / 3)


def test_decisions_are_strictly_above_the_threshold():
    assert m.decide([[0.5, 0.51]]).tolist() == [[False, True]]
    assert m.decide([[0.5, 0.51]], thresholds=[0.4, 0.6]).tolist() == [[True, False]]
    with pytest.raises(MetricError, match=r"thresholds has shape \(3,\), expected one number or one for each of the 2"):
        m.decide([[0.5, 0.51]], thresholds=[0.1, 0.2, 0.3])


def test_tuned_thresholds_are_the_best_of_the_grid():
    probability, intensity = drawn(3)
    tuned = m.tune_thresholds(probability, intensity)
    for k in range(6):
        grid = [
            library.f1_score(intensity[:, k] > 0, probability[:, k] > limit, zero_division=0) for limit in m.THRESHOLDS
        ]
        assert tuned[k] == m.THRESHOLDS[int(np.argmax(grid))]
    assert (
        len(m.THRESHOLDS) == 19 and m.THRESHOLDS[0] == pytest.approx(0.05) and m.THRESHOLDS[-1] == pytest.approx(0.95)
    )


def test_the_lowest_of_equal_thresholds_wins():
    assert m.tune_thresholds([[0.12], [0.88]], [[0], [1]]) == pytest.approx([0.15])


@pytest.mark.parametrize(
    ("prediction", "target", "sentence"),
    [
        (
            [[2.0, -1.0]],
            [[1, 0]],
            r"prediction ranges from -1 to 2, expected probabilities from 0 to 1; apply the sigmoid",
        ),
        ([[0.2, 0.1]], [[1, 0, 0]], r"prediction has shape \(1, 2\) and target \(1, 3\); both must be \(N, C\)"),
        ([[0.2, 0.1]], [[1, -1]], "target holds -1, expected intensities of 0 and up"),
        ([[0.2, 0.1]], [[1, np.nan]], "target holds 1 values that are NaN"),
        (np.zeros((0, 2)), np.zeros((0, 2)), "0 rows to score"),
        ([0.2, 0.1], [1, 0], r"prediction has shape \(2,\), expected \(N, C\)"),
    ],
)
def test_faults_say_what_was_found(prediction, target, sentence):
    with pytest.raises(MetricError, match=sentence):
        m.average_scores(prediction, target)


def test_faults_of_names_and_of_tuning():
    with pytest.raises(MetricError, match="There are 1 names for 2 columns"):
        m.label_scores([[0.2, 0.1]], [[1, 0]], names=["happy"])
    with pytest.raises(MetricError, match="Label 1 is never present in the validation part"):
        m.tune_thresholds([[0.2, 0.1]], [[1, 0]])
    with pytest.raises(MetricError, match="target holds class 2 in row 0, expected 0 to 1"):
        m.positive_f1([1], [2])


needs_case = pytest.mark.skipif(not CASE.is_file(), reason="the recorded numbers (shared/parity/mesm) are not here")


@pytest.fixture(scope="module")
def recorded():
    tensors = load_file(CASE.with_suffix(".safetensors"))
    parts = {
        part: (1 / (1 + np.exp(-tensors[f"input.{part}_logits"])), tensors[f"input.{part}_labels"])
        for part in ("valid", "test")
    }
    return json.loads(CASE.read_text())["values"], tensors, parts


@needs_case
def test_recorded_thresholds_and_what_they_give(recorded):
    values, tensors, parts = recorded
    thresholds = m.tune_thresholds(*parts["valid"])
    assert thresholds == pytest.approx(tensors["output.thresholds"], abs=1e-12)
    for part in ("valid", "test"):
        scores = list(m.label_scores(*parts[part], names=[str(k) for k in range(6)], thresholds=thresholds).values())
        for official, ours in (("accuracy", "accuracy"), ("f1", "positive_f1"), ("auc", "auc")):
            assert [row[ours] for row in scores] == pytest.approx(values[part][official][:6], abs=1e-6)
    at_tuned = [row["weighted_accuracy"] for row in scores]
    assert at_tuned == pytest.approx(values["test_weighted_accuracy_at_validation_thresholds"], abs=1e-6)


@needs_case
@pytest.mark.parametrize("threshold", [0.5, 0.3])
def test_recorded_scores_at_one_threshold(recorded, threshold):
    values, _, parts = recorded
    official = values[f"mosei_threshold_{threshold}"]
    probability, labels = parts["test"]
    scores = list(m.label_scores(probability, labels, names=[str(k) for k in range(6)], thresholds=threshold).values())
    for key in ("weighted_accuracy", "weighted_f1", "auc"):
        assert [row[key] for row in scores] == pytest.approx(official[key][:6], abs=1e-6)
        assert np.mean([row[key] for row in scores]) == pytest.approx(official[key][6], abs=1e-6)
    assert m.exact_match(m.decide(probability, thresholds=threshold), labels) == pytest.approx(
        official["strict"], abs=1e-6
    )


@needs_case
@pytest.mark.parametrize(("name", "official"), [("with_zero", "with_zero"), ("without_zero", "exclude_zero")])
def test_recorded_sentiment_scores_of_mult(recorded, name, official):
    values, tensors, _ = recorded
    found = score(f"mult.{name}", tensors["input.sentiment_prediction"], tensors["input.sentiment_label"])
    assert found == pytest.approx(values[f"sentiment_{official}"], abs=1e-6)
