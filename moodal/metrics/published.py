"""Scores as released evaluation code computes them, faults included: to reproduce printed tables, not to judge models.

Each function takes ``prediction`` and ``target`` and returns the official keys before rounding, in the number types
of the original: it works in float32, the precision of the models, because the last bit decides some roundings.
``rounded`` gives four decimals as the release prints them. ``PUBLISHED`` names them all.

mmsa.*    thuiar/MMSA @ a94e65d, src/MMSA/utils/metricsTop.py
text.*    fip-lab/TEXT @ 96be55c, core/metric.py: MMSA's file with prediction and truth swapped in every F1, so that F1
          is weighted by the share of the PREDICTIONS; MAE is rounded in float32; MOSI and MOSEI report Acc-3 too
mult.*    yaohungt/Multimodal-Transformer, src/eval_metrics.py, repeated in wenliangdai/Multimodal-End2end-Sparse,
          src/evaluate.py: F1 swapped as above, zero is negative, nothing is rounded
avec.ces  AudioVisualEmotionChallenge/AVEC2019, Baseline_systems/CES/calc_scores.py: covariance over N, variances over
          N - 1
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from moodal.metrics.checks import MetricError, numbers, same_rows, vectors
from moodal.metrics.regression import SIMS_EDGES, binned_classes, ccc

Scores = Mapping[str, float | np.floating[Any]]
Published = Callable[[npt.ArrayLike, npt.ArrayLike], Scores]
Singles = npt.NDArray[np.float32]


def rounded(scores: Scores, *, decimals: int = 4) -> dict[str, float]:
    """The scores as printed: Python and NumPy numbers round differently in the last bit, so each by its own type."""
    return {key: float(round(value, decimals)) for key, value in scores.items()}  # type: ignore[arg-type]


def exact(scores: Scores) -> dict[str, float]:
    """The scores as plain floats, not rounded."""
    return {key: float(value) for key, value in scores.items()}


def mmsa_signed(prediction: npt.ArrayLike, target: npt.ArrayLike) -> Scores:
    """MMSA on MOSI and MOSEI, prediction and target (N,) or (N, 1)."""
    values, truth = _flat(prediction, target)
    return {
        **_zero_rules(values, truth, swapped=False),
        "Mult_acc_5": _rounded_accuracy(values, truth, limit=2),
        "Mult_acc_7": _rounded_accuracy(values, truth, limit=3),
        "MAE": np.float64(_mae(values, truth)),
        "Corr": _correlation(values, truth),
    }


def text_signed(prediction: npt.ArrayLike, target: npt.ArrayLike) -> Scores:
    """TEXT on MOSI and MOSEI, prediction and target (N,) or (N, 1)."""
    values, truth = _flat(prediction, target)
    return {
        **_zero_rules(values, truth, swapped=True),
        "Mult_acc_3": _rounded_accuracy(values, truth, limit=1),
        "Mult_acc_5": _rounded_accuracy(values, truth, limit=2),
        "Mult_acc_7": _rounded_accuracy(values, truth, limit=3),
        "MAE": _mae(values, truth),
        "Corr": _correlation(values, truth),
    }


def mmsa_sims(prediction: npt.ArrayLike, target: npt.ArrayLike) -> Scores:
    """MMSA on CH-SIMS (both versions): everything on values clipped to [-1, 1]."""
    scores = _sims(prediction, target, swapped=False)
    return {**scores, "MAE": np.float64(scores["MAE"])}


def text_sims(prediction: npt.ArrayLike, target: npt.ArrayLike) -> Scores:
    """TEXT on CH-SIMS (both versions): as ``mmsa_sims`` with its own F1."""
    return _sims(prediction, target, swapped=True)


def mmsa_three_classes(prediction: npt.ArrayLike, target: npt.ArrayLike) -> Scores:
    """MMSA's classification mode: logits (N, 3), classes 0, 1, 2 of shape (N,), for every data set.

    Its Non0 is broken and kept so: positives stay class 2 while predictions are 0 and 1, so a positive is never
    right. ``classification.three_class_scores`` is the repaired form.
    """
    logits, truth = _logits(prediction, target)
    chosen, polar = logits.argmax(axis=1), truth != 1
    sides = logits[:, [0, 2]].argmax(axis=1)
    _some(polar)
    return {
        "Has0_acc_2": _accuracy(sides, truth > 1),
        "Has0_F1_score": _f1((truth > 1).astype(np.int64), sides, swapped=False),
        "Non0_acc_2": _accuracy(sides[polar], truth[polar]),
        "Non0_F1_score": _f1(truth[polar], sides[polar], swapped=False),
        "Acc_3": _accuracy(chosen, truth),
        "F1_score_3": _f1(truth, chosen, swapped=False),
    }


def mult_with_zero(prediction: npt.ArrayLike, target: npt.ArrayLike) -> Scores:
    """MulT and MME2E on MOSEI sentiment, (N,) or (N, 1), zero counted as negative."""
    values, truth = _flat(prediction, target)
    return _mult(values, truth, keep=np.ones(len(truth), dtype=bool))


def mult_without_zero(prediction: npt.ArrayLike, target: npt.ArrayLike) -> Scores:
    """MulT and MME2E on MOSEI sentiment, (N,) or (N, 1), rows labelled zero left out of acc2 and f1."""
    values, truth = _flat(prediction, target)
    _some(truth != 0)
    return _mult(values, truth, keep=truth != 0)


def _mult(values: Singles, truth: Singles, *, keep: npt.NDArray[np.bool_]) -> Scores:
    return {
        "mae": _mae(values, truth),
        "acc2": _accuracy(values[keep] > 0, truth[keep] > 0),
        "acc5": _rounded_accuracy(values, truth, limit=2),
        "acc7": _rounded_accuracy(values, truth, limit=3),
        "f1": _f1(truth[keep] > 0, values[keep] > 0, swapped=True),
        "corr": _correlation(values, truth),
    }


def avec_ces(prediction: npt.ArrayLike, target: npt.ArrayLike) -> Scores:
    """AVEC 2019 CES on the joined recordings of a partition, (N,): CCC, PCC and RMSE of the official script."""
    values, truth = vectors(prediction, target)
    count = len(values)
    return {
        "CCC": ccc(values, truth, ddof=1),
        "PCC": _correlation(values, truth) * ((count - 1) / count),
        "RMSE": float(np.sqrt(np.mean((values - truth) ** 2))),
    }


def _flat(prediction: npt.ArrayLike, target: npt.ArrayLike) -> tuple[Singles, Singles]:
    """Both sides as float32 vectors; NaN passes through to sums, as in the releases."""
    values = numbers(prediction, name="prediction").reshape(-1).astype(np.float32)
    truth = numbers(target, name="target").reshape(-1).astype(np.float32)
    same_rows(values, truth)
    return values, truth


def _logits(prediction: npt.ArrayLike, target: npt.ArrayLike) -> tuple[Singles, npt.NDArray[np.int64]]:
    logits = numbers(prediction, name="prediction").astype(np.float32)
    truth = numbers(target, name="target").reshape(-1).astype(np.int64)
    if logits.ndim != 2 or logits.shape[1] != 3:
        raise MetricError(f"prediction has shape {logits.shape}, expected (N, 3): negative, neutral, positive.")
    same_rows(logits, truth)
    return logits, truth


def _some(keep: npt.NDArray[np.bool_]) -> None:
    """The releases stop with an IndexError when every label is zero."""
    if not keep.any():
        raise MetricError(
            "Every label is zero, and the published code needs one that is not; use a protocol whose name has no dot."
        )


def _zero_rules(values: Singles, truth: Singles, *, swapped: bool) -> dict[str, float]:
    keep = truth != 0
    _some(keep)
    return {
        "Has0_acc_2": _accuracy(values >= 0, truth >= 0),
        "Has0_F1_score": _f1(truth >= 0, values >= 0, swapped=swapped),
        "Non0_acc_2": _accuracy(values[keep] > 0, truth[keep] > 0),
        "Non0_F1_score": _f1(truth[keep] > 0, values[keep] > 0, swapped=swapped),
    }


def _sims(prediction: npt.ArrayLike, target: npt.ArrayLike, *, swapped: bool) -> Scores:
    """Clipped values in right-closed bins; MAE still in float32."""
    values, truth = (np.clip(side, -1, 1) for side in _flat(prediction, target))
    binned = {k: (binned_classes(values, edges=e), binned_classes(truth, edges=e)) for k, e in SIMS_EDGES.items()}
    shares = {f"Mult_acc_{k}": np.float64(np.mean(chosen == bins)) for k, (chosen, bins) in binned.items()}
    return {
        **shares,
        "F1_score": _f1(binned[2][1], binned[2][0], swapped=swapped),
        "MAE": _mae(values, truth),
        "Corr": _correlation(values, truth),
    }


def _mae(values: Singles, truth: Singles) -> np.float32:
    return np.float32(np.mean(np.abs(values - truth)))


def _rounded_accuracy(values: Singles, truth: Singles, *, limit: int) -> np.float64:
    return np.float64(np.mean(np.round(np.clip(values, -limit, limit)) == np.round(np.clip(truth, -limit, limit))))


def _correlation(values: npt.NDArray[Any], truth: npt.NDArray[Any]) -> np.float64:
    with np.errstate(invalid="ignore", divide="ignore"):  # a constant side is NaN, which is the answer
        return np.float64(np.corrcoef(values, truth)[0, 1])


def _accuracy(chosen: npt.NDArray[Any], truth: npt.NDArray[Any]) -> float:
    from sklearn.metrics import accuracy_score  # at use: a second of start-up

    return accuracy_score(truth, chosen)  # type: ignore[no-any-return]


def _f1(truth: npt.NDArray[Any], chosen: npt.NDArray[Any], *, swapped: bool) -> float:
    """Weighted F1 by the library, with its two arguments exchanged where the release does so."""
    from sklearn.metrics import f1_score

    first, second = (chosen, truth) if swapped else (truth, chosen)
    return f1_score(first, second, average="weighted")  # type: ignore[no-any-return]


PUBLISHED: dict[str, Published] = {
    "mmsa.mosi": mmsa_signed,
    "mmsa.mosei": mmsa_signed,
    "mmsa.sims": mmsa_sims,
    "mmsa.simsv2": mmsa_sims,
    "mmsa.mosi.classification": mmsa_three_classes,
    "mmsa.mosei.classification": mmsa_three_classes,
    "mmsa.sims.classification": mmsa_three_classes,
    "mmsa.simsv2.classification": mmsa_three_classes,
    "text.mosi": text_signed,
    "text.mosei": text_signed,
    "text.sims": text_sims,
    "text.sims2": text_sims,
    "mult.with_zero": mult_with_zero,
    "mult.without_zero": mult_without_zero,
    "avec.ces": avec_ces,
}
