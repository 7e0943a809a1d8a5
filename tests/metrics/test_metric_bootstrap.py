"""Bootstrap: coverage, agreement of the quick and the general path, groups, paired tests, seeds."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
from scipy import stats

from moodal.metrics import MetricError, score
from moodal.metrics import bootstrap as b
from moodal.metrics.regression import correlation, mae


def pair(seed: int, rows: int = 120, noise: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    target = np.round(random.uniform(-3, 3, rows) * 5) / 5
    return target + random.normal(0, noise, rows), target


def test_interval_of_a_mean_is_near_theory():
    values = np.random.default_rng(0).normal(2.0, 3.0, 900)
    interval = b.bootstrap_mean(values, resamples=4000)
    standard_error = values.std(ddof=1) / 30
    assert interval.value == pytest.approx(values.mean()) and interval.low < interval.value < interval.high
    assert interval.high - interval.low == pytest.approx(2 * 1.96 * standard_error, rel=0.06)


def test_agrees_with_scipy():
    values = np.random.default_rng(1).exponential(size=200)
    theirs = stats.bootstrap((values,), np.mean, n_resamples=4000, method="percentile", rng=0).confidence_interval
    ours = b.bootstrap_mean(values, resamples=4000)
    width = theirs.high - theirs.low
    assert abs(ours.low - theirs.low) < 0.1 * width and abs(ours.high - theirs.high) < 0.1 * width


def test_coverage_of_the_interval():
    random = np.random.default_rng(2)
    inside = [
        interval.low <= 0 <= interval.high
        for interval in (b.bootstrap_mean(random.normal(size=60), resamples=400, level=0.9, seed=s) for s in range(300))
    ]
    assert 0.83 < np.mean(inside) < 0.95


@pytest.mark.parametrize("grouped", [False, True])
def test_quick_path_equals_the_general_one(grouped):
    prediction, target = pair(3)
    groups = np.repeat(np.arange(30), 4)[np.random.default_rng(0).permutation(120)] if grouped else None
    quick = b.bootstrap_mean(np.abs(prediction - target), resamples=200, seed=5, groups=groups)
    general = b.bootstrap_interval(mae, prediction, target=target, resamples=200, seed=5, groups=groups)
    assert (quick.value, quick.low, quick.high) == pytest.approx((general.value, general.low, general.high), abs=1e-12)


def test_blocks_change_nothing(monkeypatch):
    values = np.random.default_rng(0).normal(size=50)
    whole = b.bootstrap_mean(values, resamples=100)
    monkeypatch.setattr(b, "_BLOCK", 7 * 50)
    assert b.bootstrap_mean(values, resamples=100) == whole


def test_same_seed_same_interval_and_another_seed_another():
    prediction, target = pair(4)
    first, again, other = (
        b.bootstrap_interval(correlation, prediction, target=target, resamples=100, seed=s) for s in (1, 1, 2)
    )
    assert first == again and first.low != other.low


def test_groups_widen_the_interval_of_repeated_rows():
    values = np.repeat(np.random.default_rng(5).normal(size=40), 25)
    single = b.bootstrap_mean(values, resamples=500)
    grouped = b.bootstrap_mean(values, resamples=500, groups=np.repeat(np.arange(40), 25))
    assert grouped.high - grouped.low > 3 * (single.high - single.low)


def test_unequal_groups_stay_whole():
    groups = np.array(["a", "b", "b", "c", "c", "c"])
    seen = list(b._row_draws(6, resamples=50, seed=0, groups=groups))
    sizes = {"a": 1, "b": 2, "c": 3}
    for rows in seen:
        names, counts = np.unique(groups[rows], return_counts=True)
        assert sum(count // sizes[name] for name, count in zip(names, counts)) == 3
        assert all(count % sizes[name] == 0 for name, count in zip(names, counts))
    assert len({len(rows) for rows in seen}) > 1


def test_scores_of_a_protocol_share_their_resamples():
    prediction, target = pair(6)
    intervals = b.bootstrap_scores("mosi", prediction, target=target, resamples=80, seed=3)
    assert {key: interval.value for key, interval in intervals.items()} == score("mosi", prediction, target)
    alone = b.bootstrap_interval(mae, prediction, target=target, resamples=80, seed=3)
    assert intervals["mae"] == alone
    masked = b.bootstrap_scores(
        "mosi",
        np.append(prediction, 9),
        target=np.append(target, np.nan),
        valid=np.arange(121) < 120,
        resamples=80,
        seed=3,
    )
    assert masked == intervals


def test_undefined_values_and_resamples():
    constant = b.bootstrap_interval(correlation, np.ones(5), target=np.arange(5.0), resamples=20)
    assert math.isnan(constant.value) and math.isnan(constant.low) and constant.undefined == 20
    rare = b.bootstrap_interval(correlation, [0.0, 0, 0, 1], target=[0.0, 1, 2, 3], resamples=200)
    assert 0 < rare.undefined < 200 and math.isfinite(rare.low) and rare.low <= rare.high <= 1


def test_paired_test_sees_a_small_but_steady_difference():
    prediction, target = pair(7, rows=300)
    worse = prediction + 0.1 * np.sign(prediction - target)
    steady = b.paired_bootstrap(mae, prediction, second=worse, target=target, resamples=400)
    assert steady.difference == pytest.approx(-0.1) and steady.high < 0 and steady.p_value == pytest.approx(1 / 401)
    apart = b.bootstrap_interval(mae, prediction, target=target), b.bootstrap_interval(mae, worse, target=target)
    assert apart[0].high > apart[1].low  # the intervals overlap all the same


def test_paired_test_of_equal_predictions():
    prediction, target = pair(8)
    same = b.paired_bootstrap(mae, prediction, second=prediction, target=target, resamples=50)
    assert (same.difference, same.low, same.high, same.p_value) == (0, 0, 0, 1)


def test_paired_p_values_are_even_under_the_null():
    p_values = []
    for seed in range(150):
        random = np.random.default_rng(seed)
        target, noise = random.normal(size=50), random.normal(size=(2, 50))
        p_values.append(
            b.paired_bootstrap(
                lambda p, y: float(np.mean(np.abs(p - y))),
                target + noise[0],
                second=target + noise[1],
                target=target,
                resamples=100,
                seed=seed,
            ).p_value
        )
    assert 0.4 < np.mean(p_values) < 0.6 and np.mean(np.array(p_values) < 0.1) < 0.2


def test_paired_test_is_antisymmetric():
    (first, target), (second, _) = pair(9), pair(9, noise=1.2)
    forth = b.paired_bootstrap(mae, first, second=second, target=target, resamples=60)
    back = b.paired_bootstrap(mae, second, second=first, target=target, resamples=60)
    assert (forth.difference, forth.low, forth.high) == pytest.approx((-back.difference, -back.high, -back.low))
    assert forth.p_value == back.p_value < 1


def test_undefined_comparison_has_no_p_value():
    nothing = b.paired_bootstrap(correlation, np.ones(4), second=np.arange(4.0), target=np.arange(4.0), resamples=10)
    assert math.isnan(nothing.difference) and math.isnan(nothing.p_value)


def test_summary_over_seeds():
    scores = {2: {"mae": 0.7, "corr": 0.8}, 1: {"mae": 0.9, "corr": 0.6}, 3: {"mae": 0.8, "corr": 0.7}}
    summary = b.summarise(scores)
    assert summary["seeds"] == [1, 2, 3] and summary["mean"] == pytest.approx({"mae": 0.8, "corr": 0.7})
    assert summary["std"] == pytest.approx({"mae": 0.1, "corr": 0.1})


def test_summary_of_one_seed_and_of_undefined_scores():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        one = b.summarise({1: {"mae": 0.5}})
        hidden = b.summarise({1: {"corr": math.nan}, 2: {"corr": 0.9}})
    assert one["mean"]["mae"] == 0.5 and math.isnan(one["std"]["mae"])
    assert math.isnan(hidden["mean"]["corr"]) and math.isnan(hidden["std"]["corr"])


def test_paired_over_seeds_agrees_with_scipy():
    first, second = {1: 0.70, 2: 0.72, 3: 0.69, 4: 0.75, 9: 0.1}, {1: 0.74, 2: 0.73, 3: 0.75, 4: 0.76, 8: 0.9}
    found = b.paired_over_seeds(first, second)
    expected = stats.ttest_rel([0.70, 0.72, 0.69, 0.75], [0.74, 0.73, 0.75, 0.76])
    assert found["p_value"] == pytest.approx(expected.pvalue) and found["seeds"] == 4
    assert found["difference"] == pytest.approx(-0.03) and found["std"] == pytest.approx(
        np.std([-0.04, -0.01, -0.06, -0.01], ddof=1)
    )
    single = b.paired_over_seeds({1: 0.5}, {1: 0.4})
    assert single["difference"] == pytest.approx(0.1) and math.isnan(single["std"]) and math.isnan(single["p_value"])


def test_faults():
    prediction, target = pair(0)
    for broken, sentence in (
        ({"resamples": 0}, "resamples is 0, expected 1 or more"),
        ({"level": 95}, "level is 95, expected a share between 0 and 1"),
        ({"groups": [1, 2]}, r"groups has shape \(2,\), expected \(120,\)"),
    ):
        with pytest.raises(MetricError, match=sentence):
            b.bootstrap_interval(mae, prediction, target=target, **broken)
    with pytest.raises(MetricError, match="prediction has 119 rows and target has 120"):
        b.paired_bootstrap(mae, prediction, second=prediction[:-1], target=target)
    with pytest.raises(MetricError, match="0 rows to score"):
        b.bootstrap_mean([])
    with pytest.raises(MetricError, match="0 seeds to summarise"):
        b.summarise({})
    with pytest.raises(MetricError, match=r"seed 2 has keys \['corr'\] and the first one \['mae'\]"):
        b.summarise({1: {"mae": 1.0}, 2: {"corr": 1.0}})
    with pytest.raises(MetricError, match=r"share no seed \(\[1\] and \[2\]\)"):
        b.paired_over_seeds({1: 0.5}, {2: 0.4})
