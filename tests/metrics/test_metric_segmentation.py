"""Intersection over union: by hand, ignored points, classes that are not there."""

from __future__ import annotations

import numpy as np
import pytest

from moodal.metrics import MetricError
from moodal.metrics.segmentation import class_ious, mean_iou

TARGET = np.array([1, 1, 2, 2, 2, 0, 0])
GUESS = np.array([1, 2, 2, 2, 1, 1, 0])


def test_by_hand():
    # class 0: 1 of 2; class 1: 1 hit, 2 true, 3 given; class 2: 2 hits, 3 true, 3 given; class 3: not there
    np.testing.assert_allclose(class_ious(GUESS, TARGET, classes=4), [1 / 2, 1 / 4, 2 / 4, np.nan])
    ious = class_ious(GUESS, TARGET, classes=4, ignored=0)
    np.testing.assert_allclose(ious, [1 / 3, 2 / 4, np.nan])
    assert mean_iou(ious) == pytest.approx(5 / 12)
    assert mean_iou(ious, absent="one") == pytest.approx((5 / 6 + 1) / 3)


def test_scores_stand_for_their_largest():
    scores = np.eye(4)[GUESS]
    np.testing.assert_array_equal(class_ious(scores, TARGET, classes=4), class_ious(GUESS, TARGET, classes=4))


def test_guesses_of_an_absent_class_count_against_the_true_one_alone():
    np.testing.assert_allclose(class_ious([3, 1], [1, 1], classes=4), [np.nan, 1 / 2, np.nan, np.nan])


def test_a_class_beyond_the_last_is_refused():
    with pytest.raises(MetricError, match="class 4"):
        class_ious([4], [1], classes=4)
