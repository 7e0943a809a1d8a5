"""Protocols: a hand-worked table for each, masks, names, directions, and the published forms beside ours."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest

from moodal.metrics import PROTOCOLS, MetricError, Protocol, protocol_named, score
from moodal.metrics.published import PUBLISHED, avec_ces, mmsa_signed, rounded, text_signed

#: those that need nothing but predictions and labels; the others are tested with their columns (retrieval).
PLAIN = [name for name in PROTOCOLS if not PROTOCOLS[name].columns]
SIGNED_KEYS = ("mae", "corr", "acc2_has0", "acc2_non0", "f1_has0", "f1_non0", "acc3", "acc5", "acc7")


def example(protocol: Protocol, rows: int = 60) -> tuple[np.ndarray, np.ndarray]:
    """Random rows that the protocol accepts."""
    random = np.random.default_rng(11)
    if protocol.task == "multilabel":
        return random.random((rows, 6)), np.maximum(random.normal(size=(rows, 6)), 0)
    if protocol.task == "classification":
        return random.normal(size=(rows, 3)), random.integers(3, size=rows)
    middle = {"pom": 4, "pom_traits": 3}.get(protocol.name, 0)
    target = middle + np.round(random.uniform(-3, 3, rows) * 5) / 5
    return target + random.normal(size=rows), target


def test_names_and_keys():
    ours = {"mosi", "mosei", "sims", "pom", "pom_traits", "three_class", "emotion", "avec", "mosei_emotions"}
    assert ours | {"sysu", "regdb"} | set(PUBLISHED) == set(PROTOCOLS)
    assert PROTOCOLS["mosi"].keys == PROTOCOLS["mosei"].keys == SIGNED_KEYS
    assert PROTOCOLS["sims"].keys == ("mae", "corr", "acc2_zero_negative", "f1_zero_negative", "acc3", "acc5")
    assert PROTOCOLS["emotion"].keys == ("accuracy", "uar", "weighted_f1")


@pytest.mark.parametrize("name", PLAIN)
def test_every_protocol_is_complete(name):
    protocol = protocol_named(name)
    scores = score(name, *example(protocol))
    assert protocol.name == name and tuple(scores) == protocol.keys and tuple(protocol.better) == protocol.keys
    assert all(type(value) is float and math.isfinite(value) for value in scores.values())
    assert protocol.selection in protocol.keys and len(protocol.description) > 40 and "\n" not in protocol.description
    assert {key for key, way in protocol.better.items() if way == "lower"} == {
        key for key in protocol.keys if key.lower() in ("mae", "rmse")
    }


@pytest.mark.parametrize("name", [name for name in PLAIN if not name.endswith(".classification")])
def test_better_predictions_score_better(name):  # but for MMSA's classes, whose Non0 punishes right answers
    protocol = protocol_named(name)
    prediction, target = example(protocol)
    best = {"regression": target, "multilabel": (target > 0).astype(float)}.get(protocol.task)
    best = np.eye(3)[target] if best is None else best
    poor, good = score(name, prediction, target), score(name, best, target)
    for key, way in protocol.better.items():
        assert (good[key] < poor[key]) if way == "lower" else (good[key] > poor[key]), key


def test_mosi_by_hand():
    scores = score("mosi", [-2.5, 0.4, 0, 0.5, 3.7], [-3, -1, 0, 1, 3])
    assert scores["acc7"] == pytest.approx(2 / 5) and scores["acc2_has0"] == pytest.approx(4 / 5)
    assert scores["acc2_non0"] == pytest.approx(3 / 4) and scores["mae"] == pytest.approx(0.62)
    # truth 2 negative and 2 positive, one negative called positive: F1 2/3 and 4/5
    assert scores["f1_non0"] == pytest.approx((2 / 3 + 4 / 5) / 2)
    assert score("mosei", [-2.5, 0.4, 0, 0.5, 3.7], [-3, -1, 0, 1, 3]) == scores


def test_sims_by_hand():
    # ten rows; predictions beyond 1 are clipped before anything
    target = np.array([-1, -0.8, -0.4, -0.2, 0, 0, 0.2, 0.6, 0.8, 1])
    prediction = np.array([-3, -0.2, 0.05, -0.15, 0, 0.3, 0.1, 0.5, 0.7, 1.4])
    scores = score("sims", prediction, target)
    assert scores["mae"] == pytest.approx((0 + 0.6 + 0.45 + 0.05 + 0 + 0.3 + 0.1 + 0.1 + 0.1 + 0) / 10)
    assert scores["acc2_zero_negative"] == pytest.approx(8 / 10)  # wrong: -0.4 called positive, 0 called positive
    assert scores["f1_zero_negative"] == pytest.approx(0.6 * 8 / 10 + 0.4 * 8 / 10)
    assert scores["acc3"] == pytest.approx(7 / 10)  # wrong: 0.05, 0.3 and 0.1, which lies on the edge
    assert scores["acc5"] == pytest.approx(5 / 10)  # wrong besides: -0.2 for -0.8, 0.7 for 0.8


def test_constant_zero_on_sims():
    target = np.array([-1, -0.2, 0, 0, 0.4])
    scores = score("sims", np.zeros(5), target)
    assert scores["acc2_zero_negative"] == pytest.approx(4 / 5) and scores["acc3"] == pytest.approx(2 / 5)
    assert math.isnan(scores["corr"])


def test_offset_saturates_sims_but_not_mosi():
    target = np.linspace(-1, 1, 11)
    assert math.isnan(score("sims", target + 10, target)["corr"])
    mosi = score("mosi", target + 10, target)
    assert mosi["corr"] == pytest.approx(1) and mosi["mae"] == pytest.approx(10)
    assert mosi["acc2_has0"] == pytest.approx(np.mean(target >= 0))


def test_emotion_by_hand():
    target = np.array([0, 0, 0, 0, 0, 1, 1, 1, 2, 2])
    prediction = np.array([0, 0, 0, 0, 1, 1, 1, 0, 2, 0])
    scores = score("emotion", prediction, target)
    assert scores["accuracy"] == pytest.approx(0.7) and scores["uar"] == pytest.approx((4 / 5 + 2 / 3 + 1 / 2) / 3)
    assert scores["weighted_f1"] == pytest.approx(0.5 * 8 / 11 + 0.3 * 4 / 6 + 0.2 * 2 / 3)


def test_avec_by_hand():
    scores = score("avec", [-2.0, 0, 2], [-1.0, 0, 1])
    assert scores == pytest.approx({"ccc": 0.8, "corr": 1.0, "rmse": math.sqrt(2 / 3)})


def test_mosei_emotions_by_hand():
    truth = np.array([[1, 0], [2 / 3, 0.1], [0, 0], [0, 3]])
    probability = np.array([[0.9, 0.2], [0.4, 0.7], [0.1, 0.6], [0.2, 0.8]])
    scores = score("mosei_emotions", probability, truth)
    # first: recall 1/2 and 1; second: recall 1 and 1/2
    assert scores["weighted_accuracy"] == pytest.approx(0.75) and scores["exact_match"] == pytest.approx(0.5)
    assert scores["positive_f1"] == pytest.approx((2 / 3 + 4 / 5) / 2) and scores["auc"] == 1
    assert scores["weighted_f1"] == pytest.approx((2 / 3 + 4 / 5) / 2)


def test_three_class_mode_repairs_the_published_non0():
    target = np.array([0, 2, 2, 1])
    logits = np.eye(3)[target]
    assert score("three_class", logits, target)["acc2_non0"] == 1
    assert score("mmsa.mosi.classification", logits, target)["Non0_acc_2"] == pytest.approx(0.3333)


@pytest.mark.parametrize("name", PLAIN)
def test_rows_outside_the_mask_change_nothing(name):
    prediction, target = example(protocol_named(name))
    more = np.concatenate([prediction, prediction[:5] * 0 + 0.25]), np.concatenate([target, target[:5]]).astype(float)
    more[1][-5:] = np.nan
    valid = np.arange(len(more[0])) < len(prediction)
    assert score(name, *more, valid=valid) == score(name, prediction, target)


def test_faults_of_masks_and_names():
    with pytest.raises(MetricError, match="0 rows to score"):
        score("mosi", [1.0], [1.0], valid=[False])
    with pytest.raises(MetricError, match=r"valid has shape \(2,\) and type bool, expected \(1,\) of booleans"):
        score("mosi", [1.0], [1.0], valid=[True, True])
    with pytest.raises(MetricError, match=r"valid has shape \(1,\) and type int64"):
        score("mosi", [1.0], [1.0], valid=np.array([1]))
    with pytest.raises(MetricError, match=r"no protocol 'moosi'; known: mosi, .*; did you mean 'mosi'"):
        score("moosi", [1.0], [1.0])
    with pytest.raises(MetricError, match="is a single number, expected arrays"):
        score("mosi", 1.0, 1.0)


@pytest.mark.parametrize("name", PLAIN)
def test_faults_of_rows_are_sentences_in_every_protocol(name):
    prediction, target = example(protocol_named(name))
    broken = target.astype(float)
    broken[3] = np.nan
    failed = prediction.copy()
    failed[2] = np.inf
    for arrays, sentence in (
        ((prediction[:-1], target), "prediction has 59 rows and target has 60"),
        ((prediction[:0], target[:0]), "0 rows to score"),
        ((prediction, broken), r"target holds \d values that are NaN or infinite, the first in row 3"),
        ((failed, target), r"prediction holds \d values that are NaN or infinite, the first in row 2"),
    ):
        with pytest.raises(MetricError, match=sentence):
            score(name, *arrays)


def test_no_warning_where_values_are_undefined():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name, key in (
            ("mosi", "corr"),
            ("sims", "corr"),
            ("mmsa.mosi", "Corr"),
            ("text.sims", "Corr"),
            ("avec", "corr"),
        ):
            assert math.isnan(score(name, np.full(4, 0.1), [-1.0, 0.0, 0.5, 1.0])[key])
        assert math.isnan(score("mosi", [0.5, 1.0], [0.0, 0.0])["acc2_non0"])


def test_published_scores_beside_ours():
    random = np.random.default_rng(2)
    target = (np.round(random.uniform(-3, 3, 333) * 5) / 5).astype(np.float32)
    prediction = (target + random.normal(1.0, 1.5, 333)).astype(np.float32)
    ours, mmsa, text = (
        score("mosi", prediction, target),
        mmsa_signed(prediction, target),
        text_signed(prediction, target),
    )
    pairs = {
        "Has0_acc_2": "acc2_has0",
        "Has0_F1_score": "f1_has0",
        "Non0_acc_2": "acc2_non0",
        "Non0_F1_score": "f1_non0",
    }
    for official, key in ({"Mult_acc_5": "acc5", "Mult_acc_7": "acc7", "MAE": "mae", "Corr": "corr"} | pairs).items():
        assert mmsa[official] == pytest.approx(ours[key], abs=1e-6)
    assert text["Has0_F1_score"] == pytest.approx(mmsa_signed(target, prediction)["Has0_F1_score"], abs=1e-12)
    assert abs(text["Has0_F1_score"] - mmsa["Has0_F1_score"]) > 1e-4
    assert text["Mult_acc_3"] == pytest.approx(ours["acc3"], abs=1e-12) and "Mult_acc_3" not in mmsa
    assert score("mmsa.mosi", prediction, target) == rounded(mmsa)
    assert rounded(mmsa)["MAE"] == round(float(mmsa["MAE"]), 4) != float(mmsa["MAE"])


def test_published_avec_script():
    values = np.array([1.0, 3.0, 2.0, 7.0, 5.0])
    assert avec_ces(values, values) == pytest.approx({"CCC": 0.8, "PCC": 0.8, "RMSE": 0.0})
    random = np.random.default_rng(4)
    x, y = random.normal(size=40), random.normal(size=40)
    covariance = np.mean((x - x.mean()) * (y - y.mean()))
    assert avec_ces(x, y)["PCC"] == pytest.approx(covariance / (x.std(ddof=1) * y.std(ddof=1)), abs=1e-12)
    spread = x.var(ddof=1) + y.var(ddof=1) + (x.mean() - y.mean()) ** 2
    assert avec_ces(x, y)["CCC"] == pytest.approx(2 * covariance / spread, abs=1e-12)


@pytest.mark.parametrize("name", ["mmsa.mosi", "text.mosei", "mult.without_zero"])
def test_published_code_has_no_answer_for_zero_labels_only(name):
    with pytest.raises(MetricError, match="Every label is zero, and the published code needs one that is not"):
        score(name, [0.5, 1.0], [0.0, 0.0])


def test_published_classes_need_three_logits():
    with pytest.raises(MetricError, match=r"prediction has shape \(2, 2\), expected \(N, 3\)"):
        score("mmsa.sims.classification", np.eye(2), [0, 1])


def test_protocols_cannot_be_changed():
    with pytest.raises(AttributeError):
        PROTOCOLS["mosi"].selection = "acc7"  # type: ignore[misc]
