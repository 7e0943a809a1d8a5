"""The one place for conventions: which numbers a corpus reports, by which rules, and which direction is better.

``score("mosi", prediction, target)`` gives the numbers of a protocol. Names without a dot are ours: definitions as
in the papers, F1 weighted by the labels, nothing rounded, NaN where a value is not defined. Names with a dot are
computations of released code (``published.py``), for comparing with printed tables only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from moodal.core.errors import did_you_mean
from moodal.metrics import classification, multilabel, published, regression, retrieval
from moodal.metrics.checks import MetricError, finite, numbers, same_rows, vectors
from moodal.metrics.published import PUBLISHED, Published, Scores, exact, rounded
from moodal.metrics.regression import SIMS_EDGES

Direction = Literal["higher", "lower"]
TaskKind = Literal["regression", "classification", "multilabel", "identification"]
Compute = Callable[..., dict[str, float]]  # (prediction, target), and the protocol's columns by keyword
Returned = Callable[[Scores], dict[str, float]]

#: Errors: the keys of which less is better.
LOWER = frozenset({"mae", "rmse", "MAE", "RMSE"})


@dataclass(frozen=True)
class Protocol:
    """Conventions of one corpus or one release.

    ``task``: what predictions are: "regression" (N,) or (N, 1); "classification" classes (N,) or scores (N, C) with
    classes (N,) as target; "multilabel" probabilities (N, C) with intensities (N, C); "identification" embeddings
    (N, D) with identities (N,). ``keys``: what ``compute`` returns, in order. ``columns``: what else it needs to know of
    the rows. ``better``: direction of each key. ``selection``: the key that chooses an epoch unless a run
    says otherwise.
    """

    name: str
    task: TaskKind
    keys: tuple[str, ...]
    compute: Compute
    better: Mapping[str, Direction]
    selection: str
    description: str
    columns: tuple[str, ...] = ()


def score(
    protocol: str,
    prediction: npt.ArrayLike,
    target: npt.ArrayLike,
    valid: npt.ArrayLike | None = None,
    *,
    columns: Mapping[str, npt.ArrayLike] | None = None,
) -> dict[str, float]:
    """All numbers of a protocol over a whole split (never a batch): ``{key: value}`` in the protocol's order.

    ``valid`` (N,) of booleans keeps the labelled rows; labels elsewhere may be anything, NaN included. ``columns``
    holds (N, ...) arrays, among them those that the protocol names.
    """
    chosen, known = protocol_named(protocol), columns or {}
    values, truth = valid_rows(prediction, target, valid=valid)
    missing = [name for name in chosen.columns if name not in known]
    if missing:
        raise MetricError(f"The protocol {protocol} needs {', '.join(missing)} of each row; pass columns=.")
    keep = slice(None) if valid is None else _mask(valid, rows=len(np.asarray(target)))
    return chosen.compute(values, truth, **{name: np.asarray(known[name])[keep] for name in chosen.columns})


def protocol_named(name: str) -> Protocol:
    """The protocol of that name, or ``MetricError`` with the nearest one."""
    if name not in PROTOCOLS:
        hint = did_you_mean(name, PROTOCOLS)
        raise MetricError(f"There is no protocol '{name}'; known: {', '.join(PROTOCOLS)}{hint}")
    return PROTOCOLS[name]


def valid_rows(
    prediction: npt.ArrayLike, target: npt.ArrayLike, *, valid: npt.ArrayLike | None = None
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Predictions and targets of the valid rows, both finite; at least one row."""
    values, truth = numbers(prediction, name="prediction"), numbers(target, name="target")
    if values.ndim == 0 or truth.ndim == 0:
        raise MetricError("prediction or target is a single number, expected arrays with one row per sample.")
    same_rows(values, truth)
    if valid is not None:
        keep = _mask(valid, rows=len(values))
        values, truth = values[keep], truth[keep]
        same_rows(values, truth)
    finite(values, name="prediction")
    finite(truth, name="target")
    return values, truth


def _mask(valid: npt.ArrayLike, *, rows: int) -> npt.NDArray[np.bool_]:
    keep = np.asarray(valid)
    if keep.shape != (rows,) or keep.dtype != np.bool_:
        raise MetricError(f"valid has shape {keep.shape} and type {keep.dtype}, expected ({rows},) of booleans.")
    return keep


def _signed(prediction: npt.ArrayLike, target: npt.ArrayLike) -> dict[str, float]:
    """MOSI and MOSEI: errors on values as they are, accuracies on clipped and rounded ones."""
    return {
        "mae": regression.mae(prediction, target),
        "corr": regression.correlation(prediction, target),
        "acc2_has0": regression.binary_accuracy(prediction, target, rule="has0"),
        "acc2_non0": regression.binary_accuracy(prediction, target, rule="non0"),
        "f1_has0": regression.binary_f1(prediction, target, rule="has0"),
        "f1_non0": regression.binary_f1(prediction, target, rule="non0"),
        "acc3": regression.acc3(prediction, target),
        "acc5": regression.acc5(prediction, target),
        "acc7": regression.acc7(prediction, target),
    }


def _sims(prediction: npt.ArrayLike, target: npt.ArrayLike) -> dict[str, float]:
    """CH-SIMS: both sides are clipped to [-1, 1] first, for MAE and correlation too."""
    values, truth = (np.clip(side, -1.0, 1.0) for side in vectors(prediction, target))
    return {
        "mae": regression.mae(values, truth),
        "corr": regression.correlation(values, truth),
        "acc2_zero_negative": regression.binary_accuracy(values, truth, rule="zero_negative"),
        "f1_zero_negative": regression.binary_f1(values, truth, rule="zero_negative"),
        "acc3": regression.binned_accuracy(values, truth, edges=SIMS_EDGES[3]),
        "acc5": regression.binned_accuracy(values, truth, edges=SIMS_EDGES[5]),
    }


def _rated(prediction: npt.ArrayLike, target: npt.ArrayLike, *, high: int) -> dict[str, float]:
    """Ratings from 1 to ``high``: two classes about the middle of the scale, and as many classes as it has numbers."""
    middle = (1 + high) / 2
    values, truth = (side - middle for side in vectors(prediction, target))
    return {
        "mae": regression.mae(values, truth),
        "corr": regression.correlation(values, truth),
        "acc2": regression.binary_accuracy(values, truth, rule="non0"),
        "f1": regression.binary_f1(values, truth, rule="non0"),
        f"acc{high}": regression.rounded_accuracy(values, truth, limit=(high - 1) // 2),
    }


def _emotion(prediction: npt.ArrayLike, target: npt.ArrayLike) -> dict[str, float]:
    return {
        "accuracy": classification.accuracy(prediction, target),
        "uar": classification.uar(prediction, target),
        "weighted_f1": classification.weighted_f1(prediction, target),
    }


def _avec(prediction: npt.ArrayLike, target: npt.ArrayLike) -> dict[str, float]:
    return {
        "ccc": regression.ccc(prediction, target),
        "corr": regression.correlation(prediction, target),
        "rmse": regression.rmse(prediction, target),
    }


def _protocol(
    name: str,
    task: TaskKind,
    *,
    keys: str,
    compute: Compute,
    selection: str,
    description: str,
    columns: tuple[str, ...] = (),
) -> Protocol:
    """A protocol from its keys in one string, with their directions."""
    names = tuple(keys.split())
    better: dict[str, Direction] = {key: "lower" if key in LOWER else "higher" for key in names}
    return Protocol(name, task, names, compute, better, selection, " ".join(description.split()), columns)


def _returned(function: Published, returned: Returned, prediction: Any, target: Any) -> dict[str, float]:
    return returned(function(prediction, target))


_SIGNED = "mae corr acc2_has0 acc2_non0 f1_has0 f1_non0 acc3 acc5 acc7"
_SIGNED_RULES = """mae and corr without clipping; acc7, acc5, acc3: both sides clipped to 3, 2, 1 and rounded half
to even; has0: >= 0 against < 0, all rows; non0: > 0 against < 0, rows labelled 0 left out; F1 weighted by the
labels. Zadeh et al. 2016 and 2018; rules as in MMSA (Mao et al. 2022), metricsTop.py."""
_SIMS_RULES = """CH-SIMS and CH-SIMS v2, sentiment in [-1, 1]: both sides clipped to [-1, 1] before everything; two
classes with zero as NEGATIVE; acc3 with edges -0.1, 0.1 and acc5 with -0.7, -0.1, 0.1, 0.7, classes closed on the
right; F1 weighted by the labels. Yu et al. 2020; rules as in MMSA, metricsTop.py. has0, non0 and acc7 do not exist
here."""
_RATED_RULES = """mae and corr without clipping; acc2, f1: above against below the middle of the scale, rows rated exactly the
middle left out, F1 weighted by the labels; acc7 or acc5: both sides clipped to the scale and rounded to the nearest whole
rating, halves by the even distance from the middle. MAE, r and accuracy over 7 or 5 ratings as MFN (Zadeh et al. 2018)
reports them; acc2 and f1 are this project's."""
_THREE_CLASS_RULES = """Sentiment as negative 0, neutral 1, positive 2 from logits (N, 3): MMSA's classification
mode with its Non0 repaired; its "Has0" counts neutral as negative and is called zero_negative here."""
_EMOTION_RULES = """One emotion per row (IEMOCAP, MELD, RAVDESS): accuracy (WAR), mean recall over the classes
present in the truth, F1 weighted by the labels. Recalls by class: classification.recall_scores."""
_AVEC_RULES = """AVEC 2019 CES: one target (arousal, valence or liking) over all recordings of a partition joined
end to end, predictions delayed back, padding cropped (regression.delay); all moments over N. Ringeval et al.
2019."""
_LABEL_RULES = """CMU-MOSEI emotions: probabilities (N, 6), present where intensity > 0, predicted where probability
> 0.5; unweighted means over the emotions. weighted_accuracy is balanced accuracy; weighted_f1 covers absent and
present and is high for rare emotions by itself, hence positive_f1. MulT; MME2E (Dai et al. 2021). By emotion:
multilabel.label_scores."""
_RANKED = "rank1 rank10 rank20 map minp"
_SYSU_RULES = """RGB-infrared re-identification on SYSU-MM01: infrared queries, one picture of each identity and visible
camera in the gallery, pictures from the query's own place left out, an identity counted once in the ranks and all its
pictures in map; means over the trials. All-search, and indoor_ with the two indoor cameras. Wu et al. 2017."""
_REGDB_RULES = """RGB-thermal re-identification on RegDB: each visible picture against all thermal ones, and thermal_ the
other way round; one of the ten splits, over whose runs the published numbers are means. Ye et al. 2018."""


def _indexed(prefix: str) -> str:
    return " ".join(f"{prefix}_{key}" for key in _RANKED.split())


_OURS = (
    _protocol(
        "mosi",
        "regression",
        keys=_SIGNED,
        compute=_signed,
        selection="mae",
        description=f"CMU-MOSI, sentiment in [-3, 3]: {_SIGNED_RULES}",
    ),
    _protocol(
        "mosei",
        "regression",
        keys=_SIGNED,
        compute=_signed,
        selection="mae",
        description=f"CMU-MOSEI, sentiment in [-3, 3]: {_SIGNED_RULES}",
    ),
    _protocol(
        "sims",
        "regression",
        keys="mae corr acc2_zero_negative f1_zero_negative acc3 acc5",
        compute=_sims,
        selection="mae",
        description=_SIMS_RULES,
    ),
    _protocol(
        "pom",
        "regression",
        keys="mae corr acc2 f1 acc7",
        compute=partial(_rated, high=7),
        selection="mae",
        description=f"POM, ratings from 1 to 7: {_RATED_RULES}",
    ),
    _protocol(
        "pom_traits",
        "regression",
        keys="mae corr acc2 f1 acc5",
        compute=partial(_rated, high=5),
        selection="mae",
        description=f"POM, traits from 1 to 5: {_RATED_RULES}",
    ),
    _protocol(
        "three_class",
        "classification",
        keys="acc2_zero_negative f1_zero_negative acc2_non0 f1_non0 acc3 f1_3",
        compute=classification.three_class_scores,
        selection="f1_3",
        description=_THREE_CLASS_RULES,
    ),
    _protocol(
        "emotion",
        "classification",
        keys="accuracy uar weighted_f1",
        compute=_emotion,
        selection="weighted_f1",
        description=_EMOTION_RULES,
    ),
    _protocol("avec", "regression", keys="ccc corr rmse", compute=_avec, selection="ccc", description=_AVEC_RULES),
    _protocol(
        "mosei_emotions",
        "multilabel",
        keys="weighted_accuracy weighted_f1 positive_f1 auc exact_match",
        compute=multilabel.average_scores,
        selection="weighted_accuracy",
        description=_LABEL_RULES,
    ),
    _protocol(
        "sysu",
        "identification",
        keys=f"{_RANKED} {_indexed('indoor')}",
        compute=retrieval.sysu_scores,
        selection="map",
        description=_SYSU_RULES,
        columns=("camera", "place"),
    ),
    _protocol(
        "regdb",
        "identification",
        keys=f"{_RANKED} {_indexed('thermal')}",
        compute=retrieval.regdb_scores,
        selection="map",
        description=_REGDB_RULES,
        columns=("infrared",),
    ),
)

_HAS0 = "Has0_acc_2 Has0_F1_score Non0_acc_2 Non0_F1_score"
_MMSA_SIMS = "Mult_acc_2 Mult_acc_3 Mult_acc_5 F1_score MAE Corr"
_MULT = "mae acc2 acc5 acc7 f1 corr"

#: Keys, the key that selects, and how numbers are returned, of each released computation.
_RELEASED: dict[Published, tuple[str, str, Returned]] = {
    published.mmsa_signed: (f"{_HAS0} Mult_acc_5 Mult_acc_7 MAE Corr", "MAE", rounded),
    published.text_signed: (f"{_HAS0} Mult_acc_3 Mult_acc_5 Mult_acc_7 MAE Corr", "MAE", rounded),
    published.mmsa_sims: (_MMSA_SIMS, "MAE", rounded),
    published.text_sims: (_MMSA_SIMS, "MAE", rounded),
    published.mmsa_three_classes: (f"{_HAS0} Acc_3 F1_score_3", "F1_score_3", rounded),
    published.mult_with_zero: (_MULT, "mae", exact),
    published.mult_without_zero: (_MULT, "mae", exact),
    published.avec_ces: ("CCC PCC RMSE", "CCC", exact),
}


def _released(name: str, function: Published) -> Protocol:
    """The protocol of one entry of ``PUBLISHED``."""
    keys, selection, returned = _RELEASED[function]
    return _protocol(
        name,
        "classification" if function is published.mmsa_three_classes else "regression",
        keys=keys,
        compute=partial(_returned, function, returned),
        selection=selection,
        description=f"Released code as it is, to compare with printed tables only: see {name} in metrics/published.py.",
    )


PROTOCOLS: dict[str, Protocol] = {protocol.name: protocol for protocol in _OURS} | {
    name: _released(name, function) for name, function in PUBLISHED.items()
}
