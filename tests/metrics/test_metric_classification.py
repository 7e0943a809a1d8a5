"""Class metrics against scikit-learn, the three-class mode, and the slices by change of emotion."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn import metrics as library

from moodal.metrics import MetricError
from moodal.metrics import classification as c


def drawn(seed: int, classes: int = 6, rows: int = 150) -> tuple[np.ndarray, np.ndarray]:
    """Predicted and true classes, unbalanced, right about half of the time."""
    random = np.random.default_rng(seed)
    shares = np.arange(1, classes + 1) / np.arange(1, classes + 1).sum()
    target = random.choice(classes, rows, p=shares)
    prediction = np.where(random.random(rows) < 0.5, target, random.integers(classes, size=rows))
    return prediction, target


@pytest.mark.parametrize("seed", range(6))
def test_agrees_with_scikit_learn(seed):
    prediction, target = drawn(seed)
    assert (c.confusion(prediction, target) == library.confusion_matrix(target, prediction)).all()
    assert c.accuracy(prediction, target) == pytest.approx(library.accuracy_score(target, prediction), abs=1e-12)
    assert c.uar(prediction, target) == pytest.approx(library.balanced_accuracy_score(target, prediction), abs=1e-12)
    assert c.f1_scores(prediction, target) == pytest.approx(
        library.f1_score(target, prediction, average=None), abs=1e-12
    )
    for ours, average in ((c.weighted_f1, "weighted"), (c.macro_f1, "macro")):
        assert ours(prediction, target) == pytest.approx(
            library.f1_score(target, prediction, average=average), abs=1e-12
        )


def test_weights_of_f1_come_from_the_labels():
    target = np.repeat([0, 1], [80, 20])
    prediction = np.repeat([0, 1], [95, 5])
    assert c.weighted_f1(prediction, target) == pytest.approx(0.811, abs=5e-4)
    assert c.weighted_f1(target, prediction) == pytest.approx(0.889, abs=5e-4)  # arguments swapped


def test_classes_absent_from_truth_or_everywhere():
    target, prediction = np.array([0, 0, 1, 1]), np.array([0, 3, 1, 0])
    recalls = c.recalls(prediction, target, classes=5)
    assert recalls[:2].tolist() == [0.5, 0.5] and np.isnan(recalls[2:]).all()
    assert c.uar(prediction, target) == 0.5  # class 3 has no rows, so it is left out
    reference = library.f1_score(target, prediction, average="macro", zero_division=0)
    assert c.macro_f1(prediction, target) == pytest.approx(reference, abs=1e-12)
    everything = library.f1_score(target, prediction, average="macro", labels=range(5), zero_division=0)
    assert c.macro_f1(prediction, target, classes=5) == pytest.approx(everything, abs=1e-12) and everything < reference
    weighted = library.f1_score(target, prediction, average="weighted", zero_division=0)
    assert c.weighted_f1(prediction, target) == pytest.approx(weighted, abs=1e-12)


def test_majority_class_of_meld():
    target = np.repeat(np.arange(7), [1256, 281, 50, 208, 402, 68, 345])
    prediction = np.zeros_like(target)
    assert c.accuracy(prediction, target) == pytest.approx(0.481, abs=5e-4)
    assert c.weighted_f1(prediction, target) == pytest.approx(0.313, abs=5e-4)
    assert c.uar(prediction, target) == pytest.approx(1 / 7)


def test_majority_class_of_ravdess():
    target = np.repeat(np.arange(8), [96] + [192] * 7)
    assert c.accuracy(np.ones_like(target), target) == pytest.approx(0.1333, abs=5e-5)
    assert c.uar(np.ones_like(target), target) == pytest.approx(0.125)


def test_scores_are_read_by_their_largest_column():
    prediction, target = drawn(3)
    scores = np.random.default_rng(0).normal(size=(len(target), 6))
    scores[np.arange(len(target)), prediction] += 100
    assert c.weighted_f1(scores, target) == c.weighted_f1(prediction, target)
    assert c.accuracy([[1.0, 1.0]], [0]) == 1  # the first among equals


def test_recalls_by_name():
    scores = c.recall_scores([0, 1, 1, 0], [0, 1, 0, 0], names=("calm", "angry", "sad"))
    assert (
        scores["recall/calm"] == pytest.approx(2 / 3)
        and scores["recall/angry"] == 1
        and math.isnan(scores["recall/sad"])
    )


def test_one_class_only():
    assert c.accuracy([0, 0], [0, 0]) == c.uar([0, 0], [0, 0]) == c.weighted_f1([0, 0], [0, 0]) == 1


@pytest.mark.parametrize(
    ("prediction", "target", "sentence"),
    [
        ([0, 1], [0, 1, 1], "prediction has 2 rows and target has 3"),
        ([], [], "0 rows to score"),
        (np.eye(3), [0, 1, 3], r"target holds class 3 in row 2, expected 0 to 2; check the label map"),
        (np.eye(3), [0, -1, 2], r"target holds class -1 in row 1, expected 0 to 2; .* valid="),
        ([0, -1], [0, 1], r"prediction holds class -1 in row 1, expected 0 and up"),
        ([0, 1], [0.4, 1], "target holds 0.4, expected whole class numbers"),
        ([0, 1], [np.nan, 1], "target holds 1 values that are NaN"),
        ([[0.1, np.nan]], [0], "prediction holds 1 values that are NaN"),
        (np.zeros((2, 3, 2)), [0, 1], r"prediction has shape \(2, 3, 2\)"),
    ],
)
def test_faults_say_what_was_found(prediction, target, sentence):
    for metric in (c.accuracy, c.weighted_f1, c.uar):
        with pytest.raises(MetricError, match=sentence):
            metric(prediction, target)


def test_number_of_columns_is_checked():
    with pytest.raises(MetricError, match="prediction has 3 columns, expected 4: one score per class"):
        c.recalls(np.eye(3), [0, 1, 2], classes=4)


def three_class(seed: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    return random.normal(size=(90, 3)).astype(np.float32), random.integers(3, size=90)


@pytest.mark.parametrize("seed", range(3))
def test_three_class_mode_agrees_with_scikit_learn(seed):
    logits, target = three_class(seed)
    scores = c.three_class_scores(logits, target)
    sides, polar = logits[:, [0, 2]].argmax(axis=1), target != 1
    expected = {
        "acc2_zero_negative": library.accuracy_score(target == 2, sides),
        "f1_zero_negative": library.f1_score((target == 2).astype(int), sides, average="weighted"),
        "acc2_non0": library.accuracy_score(target[polar] // 2, sides[polar]),
        "f1_non0": library.f1_score(target[polar] // 2, sides[polar], average="weighted"),
        "acc3": library.accuracy_score(target, logits.argmax(axis=1)),
        "f1_3": library.f1_score(target, logits.argmax(axis=1), average="weighted"),
    }
    assert scores == pytest.approx(expected, abs=1e-12)


def test_three_class_mode_can_be_perfect():
    target = np.array([0, 1, 2, 2])
    scores = c.three_class_scores(np.eye(3)[target], target)
    assert scores["acc2_non0"] == scores["f1_non0"] == scores["acc3"] == scores["acc2_zero_negative"] == 1
    neutral = c.three_class_scores(np.eye(3)[[1, 1]], [1, 1])
    assert math.isnan(neutral["acc2_non0"]) and math.isnan(neutral["f1_non0"]) and neutral["acc2_zero_negative"] == 1


def test_three_class_mode_needs_three_logits():
    with pytest.raises(
        MetricError, match=r"prediction has shape \(2, 2\), expected \(N, 3\): negative, neutral, positive"
    ):
        c.three_class_scores(np.eye(2), [0, 1])


EMOTION = np.array([0, 0, 2, 2, 1, 1, 3])
DIALOGUE = np.array(["a", "a", "a", "a", "b", "b", "b"])
SPEAKER = np.array(["x", "y", "x", "y", "x", "x", "y"])


def test_both_definitions_of_shift():
    before = c.emotion_shift(EMOTION, dialogue=DIALOGUE, rule="previous_utterance")
    assert before.tolist() == [-1, 0, 1, 0, -1, 0, 1]
    own = c.emotion_shift(EMOTION, dialogue=DIALOGUE, speaker=SPEAKER, rule="same_speaker")
    assert own.tolist() == [-1, -1, 1, 1, -1, 0, -1]


def test_shift_agrees_with_a_plain_loop_in_any_order_of_rows():
    random = np.random.default_rng(5)
    rows = 200
    emotion, dialogue, speaker = (
        random.integers(4, size=rows),
        random.integers(12, size=rows),
        random.integers(3, size=rows),
    )
    turn = random.permutation(rows)
    for rule, key in (("previous_utterance", dialogue), ("same_speaker", dialogue * 10 + speaker)):
        last: dict[int, int] = {}
        expected = np.full(rows, -1)
        for row in np.argsort(turn):
            if key[row] in last:
                expected[row] = int(emotion[row] != last[key[row]])
            last[key[row]] = emotion[row]
        found = c.emotion_shift(emotion, dialogue=dialogue, speaker=speaker, turn=turn, rule=rule)
        assert (found == expected).all() and {-1, 0, 1} == set(found.tolist())


def test_shift_between_groups_of_iemocap():
    happy, sad, neutral, angry, excited, frustrated = range(6)
    emotion = [happy, excited, neutral, sad, angry, frustrated, happy]
    shift = c.emotion_shift(emotion, dialogue=[0] * 7, rule="previous_utterance", groups=c.IEMOCAP_SHIFT_GROUPS)
    assert shift.tolist() == [-1, 0, 0, 1, 0, 0, 1]


def test_scores_on_slices():
    shift = np.array([-1, 0, 0, 1, 1, 1])
    parts = c.by_shift(c.accuracy, [0, 1, 1, 0, 0, 1], target=np.array([9, 1, 0, 0, 0, 0]), shift=shift)
    assert parts == {"shift": pytest.approx(2 / 3), "no_shift": 0.5}
    assert math.isnan(c.by_shift(c.accuracy, [0], target=[0], shift=[-1])["shift"])


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"rule": "same_speaker"}, "rule is 'same_speaker' and there are no speakers; pass speaker="),
        ({"rule": "speaker"}, "no shift rule 'speaker'; choose previous_utterance or same_speaker"),
        ({"rule": "previous_utterance", "turn": [0]}, "prediction has 7 rows and turn has 1"),
        ({"rule": "previous_utterance", "groups": (0, 1)}, "emotion holds class 2 in row 2, expected 0 to 1"),
    ],
)
def test_shift_faults(settings, sentence):
    with pytest.raises(MetricError, match=sentence):
        c.emotion_shift(EMOTION, dialogue=DIALOGUE, **settings)
