"""How sure a number is: bootstrap intervals, paired comparisons, and the spread over seeds.

Resampling draws rows with replacement, or whole groups where ``groups`` names one per row: utterances of a video, a
dialogue or a recording resemble each other, and intervals over single rows are then too narrow. The same seed draws
the same resamples in every function here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from moodal.metrics.checks import Floats, MetricError, same_rows, vector
from moodal.metrics.protocol import protocol_named, valid_rows

Metric = Callable[[npt.NDArray[Any], npt.NDArray[Any]], float]
Rows = npt.NDArray[np.intp]

#: Draws held at a time, so that memory stays near 32 MB whatever the number of resamples.
_BLOCK = 2**22


@dataclass(frozen=True)
class Interval:
    """A value with a percentile interval; ``undefined`` resamples gave NaN and are left out of it."""

    value: float
    low: float
    high: float
    level: float
    resamples: int
    undefined: int


@dataclass(frozen=True)
class Comparison:
    """First minus second on the same rows, with interval and two-sided p value; ``undefined`` resamples gave NaN."""

    difference: float
    low: float
    high: float
    p_value: float
    level: float
    resamples: int
    undefined: int


def bootstrap_interval(
    metric: Metric,
    prediction: npt.ArrayLike,
    *,
    target: npt.ArrayLike,
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
    groups: npt.ArrayLike | None = None,
) -> Interval:
    """Percentile interval (Efron 1979) of any ``metric(prediction, target)``; arrays have N rows first."""
    values, truth = np.asarray(prediction), np.asarray(target)
    same_rows(values, truth)
    draws = _row_draws(len(values), resamples=resamples, seed=seed, groups=groups)
    return _interval(metric(values, truth), np.array([metric(values[rows], truth[rows]) for rows in draws]), level)


def bootstrap_scores(
    protocol: str,
    prediction: npt.ArrayLike,
    *,
    target: npt.ArrayLike,
    valid: npt.ArrayLike | None = None,
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
    groups: npt.ArrayLike | None = None,
) -> dict[str, Interval]:
    """Intervals of all numbers of a protocol, from the same resamples; ``groups`` has one entry per valid row."""
    values, truth = valid_rows(prediction, target, valid=valid)
    chosen = protocol_named(protocol)
    draws = _row_draws(len(values), resamples=resamples, seed=seed, groups=groups)
    table = [chosen.compute(values[rows], truth[rows]) for rows in draws]
    value = chosen.compute(values, truth)
    return {key: _interval(value[key], np.array([scores[key] for scores in table]), level) for key in chosen.keys}


def bootstrap_mean(
    values: npt.ArrayLike,
    *,
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
    groups: npt.ArrayLike | None = None,
) -> Interval:
    """The vectorised case: interval of the mean of one number per row (N,), as absolute errors or hits.

    Equals ``bootstrap_interval`` with the mean as metric and the same seed, in a fraction of the time.
    """
    column = vector(values, name="values")
    same_rows(column, column, name="values")
    unit = _units(len(column), groups)
    sums, sizes = np.bincount(unit, weights=column), np.bincount(unit)
    blocks = [sums[draw].sum(axis=1) / sizes[draw].sum(axis=1) for draw in _draws(len(sums), resamples, seed)]
    return _interval(float(column.mean()), np.concatenate(blocks), level)


def paired_bootstrap(
    metric: Metric,
    first: npt.ArrayLike,
    *,
    second: npt.ArrayLike,
    target: npt.ArrayLike,
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
    groups: npt.ArrayLike | None = None,
) -> Comparison:
    """Whether two sets of predictions of the SAME rows differ in ``metric`` by more than chance.

    Each resample scores both on the same rows. The p value is that of the null of no difference, by moving the
    resampled differences to 0 (Efron and Tibshirani 1993, 16.4): ``(1 + #{|d* - d| >= |d|}) / (1 + resamples)``.
    """
    one, two, truth = np.asarray(first), np.asarray(second), np.asarray(target)
    same_rows(one, truth)
    same_rows(two, truth)
    draws = _row_draws(len(truth), resamples=resamples, seed=seed, groups=groups)
    drawn = np.array([metric(one[rows], truth[rows]) - metric(two[rows], truth[rows]) for rows in draws])
    spread = _interval(metric(one, truth) - metric(two, truth), drawn, level)
    p_value = _p_value(spread.value, drawn[np.isfinite(drawn)])
    return Comparison(spread.value, spread.low, spread.high, p_value, level, resamples, spread.undefined)


def _p_value(difference: float, drawn: Floats) -> float:
    if not np.isfinite(difference) or len(drawn) == 0:
        return float("nan")
    as_far = np.abs(drawn - difference) >= abs(difference) - 1e-12  # equal differences may differ in the last bit
    return float((1 + as_far.sum()) / (1 + len(drawn)))


def _interval(value: float, drawn: Floats, level: float) -> Interval:
    if not 0 < level < 1:
        raise MetricError(f"level is {level}, expected a share between 0 and 1, such as 0.95.")
    defined = drawn[np.isfinite(drawn)]
    low = high = float("nan")
    if len(defined) and np.isfinite(value):
        low, high = (float(edge) for edge in np.quantile(defined, [(1 - level) / 2, (1 + level) / 2]))
    return Interval(float(value), low, high, level, len(drawn), len(drawn) - len(defined))


def _units(rows: int, groups: npt.ArrayLike | None) -> npt.NDArray[np.int64]:
    """The unit of resampling of each row (N,), numbered from 0."""
    if groups is None:
        return np.arange(rows)
    names = np.asarray(groups)
    if names.shape != (rows,):
        raise MetricError(f"groups has shape {names.shape}, expected ({rows},): the group of each row.")
    unit: npt.NDArray[np.int64] = np.unique(names, return_inverse=True)[1].astype(np.int64)
    return unit


def _draws(units: int, resamples: int, seed: int) -> Iterator[Rows]:
    """Blocks (resamples in the block, units) of units drawn with replacement."""
    if resamples < 1:
        raise MetricError(f"resamples is {resamples}, expected 1 or more; 1000 is usual.")
    random, block = np.random.default_rng(seed), max(1, _BLOCK // units)
    for start in range(0, resamples, block):
        yield random.integers(units, size=(min(block, resamples - start), units))


def _row_draws(rows: int, *, resamples: int, seed: int, groups: npt.ArrayLike | None) -> Iterator[Rows]:
    """The row numbers of each resample."""
    unit = _units(rows, groups)
    order = np.argsort(unit, kind="stable")
    members = np.split(order, np.cumsum(np.bincount(unit))[:-1])
    for block in _draws(len(members), resamples, seed):
        for draw in block:
            yield draw if groups is None else np.concatenate([members[number] for number in draw])


# Spread over seeds.


def summarise(scores: Mapping[int, Mapping[str, float]]) -> dict[str, Any]:
    """``{seed: {key: value}}`` to ``{"mean": {key: value}, "std": {key: value}, "seeds": [seed, ...]}``.

    ``std`` is the sample deviation (over n - 1); of a single seed it is NaN, which reports write as null: one run
    says nothing about spread. A key that is NaN for some seed is NaN in the mean too: leaving that seed out would
    flatter.
    """
    if not scores:
        raise MetricError("There are 0 seeds to summarise, at least 1 is needed; check the list of runs.")
    keys = list(next(iter(scores.values())))
    for seed, row in scores.items():
        if set(row) != set(keys):
            raise MetricError(
                f"seed {seed} has keys {sorted(row)} and the first one {sorted(keys)}; score all with one protocol."
            )
    table = {key: np.array([row[key] for row in scores.values()], dtype=np.float64) for key in keys}
    return {
        "mean": {key: float(column.mean()) for key, column in table.items()},
        "std": {key: float(column.std(ddof=1)) if len(column) > 1 else float("nan") for key, column in table.items()},
        "seeds": sorted(scores),
    }


def paired_over_seeds(first: Mapping[int, float], second: Mapping[int, float]) -> dict[str, float]:
    """Paired t test of two methods over the seeds they share: ``{"difference", "std", "p_value", "seeds"}``.

    Use at least 5 seeds. With fewer than 2, or equal differences throughout, the p value is NaN.
    """
    shared = sorted(set(first) & set(second))
    if not shared:
        raise MetricError(
            f"The two methods share no seed ({sorted(first)} and {sorted(second)}); run both with the same seeds."
        )
    gaps = np.array([first[seed] - second[seed] for seed in shared], dtype=np.float64)
    spread = float(gaps.std(ddof=1)) if len(gaps) > 1 else float("nan")
    return {"difference": float(gaps.mean()), "std": spread, "p_value": _t_test(gaps), "seeds": float(len(gaps))}


def _t_test(gaps: Floats) -> float:
    from scipy.stats import ttest_1samp  # at use: slow to import

    if len(gaps) < 2 or np.ptp(gaps) == 0:
        return float("nan")
    return float(ttest_1samp(gaps, 0.0).pvalue)
