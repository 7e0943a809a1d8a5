"""Numbers for classes: accuracy, recalls, F1s, the three-class sentiment mode, and slices by change of emotion.

``prediction`` holds classes (N,) or scores (N, C) whose largest counts; ``target`` holds classes (N,). Everything
is read off one confusion matrix in NumPy rather than by one library call each, because a bootstrap asks for it
thousands of times; the tests hold each value against scikit-learn.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from moodal.metrics.checks import Floats, Integers, MetricError, class_pairs, class_vector, numbers, same_rows

#: ``previous_utterance``: against the utterance just before in the dialogue; ``same_speaker``: against the speaker's
#: own previous one in the dialogue (the counts in MELD's README).
ShiftRule = Literal["previous_utterance", "same_speaker"]

#: IEMOCAP's six classes (happy, sad, neutral, angry, excited, frustrated) in two groups (Shapes of Emotion).
IEMOCAP_SHIFT_GROUPS: tuple[int, ...] = (0, 1, 0, 1, 0, 1)


def confusion(prediction: npt.ArrayLike, target: npt.ArrayLike, *, classes: int | None = None) -> Integers:
    """Counts (C, C): rows are true classes, columns predicted ones."""
    chosen, truth, count = class_pairs(prediction, target, classes=classes)
    return np.bincount(truth * count + chosen, minlength=count * count).reshape(count, count).astype(np.int64)


def accuracy(prediction: npt.ArrayLike, target: npt.ArrayLike) -> float:
    """Share of rows whose class is right (WAR; "weighted accuracy" in papers on speech)."""
    chosen, truth, _ = class_pairs(prediction, target)
    return float(np.mean(chosen == truth))


def recalls(prediction: npt.ArrayLike, target: npt.ArrayLike, *, classes: int | None = None) -> Floats:
    """Recall of each class, (C,); NaN for a class without rows in the truth."""
    counts = confusion(prediction, target, classes=classes)
    return _ratio(np.diagonal(counts), counts.sum(axis=1), empty=float("nan"))


def recall_scores(prediction: npt.ArrayLike, target: npt.ArrayLike, *, names: Sequence[str]) -> dict[str, float]:
    """``{"recall/<class>": recall}`` in the order of ``names``, one name per class."""
    values = recalls(prediction, target, classes=len(names))
    return {f"recall/{name}": float(value) for name, value in zip(names, values)}


def uar(prediction: npt.ArrayLike, target: npt.ArrayLike) -> float:
    """Unweighted average recall: mean recall of the classes present in the truth; classes without rows are left out."""
    return float(np.nanmean(recalls(prediction, target)))


def f1_scores(prediction: npt.ArrayLike, target: npt.ArrayLike, *, classes: int | None = None) -> Floats:
    """F1 of each class, (C,): ``2 TP / (2 TP + FP + FN)``, 0 where that divides by 0."""
    return _f1(confusion(prediction, target, classes=classes))


def weighted_f1(prediction: npt.ArrayLike, target: npt.ArrayLike) -> float:
    """``sum_c (n_c / N) F1_c`` with n_c the rows of class c in the truth."""
    counts = confusion(prediction, target)
    return float(counts.sum(axis=1) @ _f1(counts) / counts.sum())


def macro_f1(prediction: npt.ArrayLike, target: npt.ArrayLike, *, classes: int | None = None) -> float:
    """Plain mean of the F1 of the classes that occur in truth or prediction; of all ``classes`` where given.

    With ``classes`` a class that never occurs counts as 0, as in scikit-learn with ``labels``.
    """
    counts = confusion(prediction, target, classes=classes)
    counted = np.ones(len(counts), dtype=bool) if classes else (counts.sum(axis=0) + counts.sum(axis=1)) > 0
    return float(_f1(counts)[counted].mean())


def _f1(counts: Integers) -> Floats:
    hits = np.diagonal(counts)
    return _ratio(2 * hits, counts.sum(axis=0) + counts.sum(axis=1), empty=0.0)


def _ratio(above: npt.NDArray[Any], below: npt.NDArray[Any], *, empty: float) -> Floats:
    """Elementwise quotient, ``empty`` where ``below`` is 0."""
    quotient: Floats = np.full(below.shape, empty)
    np.divide(above, below, out=quotient, where=below > 0)
    return quotient


def three_class_scores(prediction: npt.ArrayLike, target: npt.ArrayLike) -> dict[str, float]:
    """Scores of a three-way sentiment classifier: logits (N, 3) and classes negative 0, neutral 1, positive 2.

    ``acc3``, ``f1_3``: by argmax, F1 weighted. The two-class values compare logits 0 and 2 only (a tie is
    negative), with neutral counted as negative (``zero_negative``; MMSA calls it "Has0") or left out (``non0``; NaN
    without other rows). MMSA's own Non0 leaves positives at 2, where no prediction can equal them; see
    ``published.py`` for that number.
    """
    logits = numbers(prediction, name="prediction")
    if logits.ndim != 2 or logits.shape[1] != 3:
        raise MetricError(f"prediction has shape {logits.shape}, expected (N, 3): negative, neutral, positive.")
    _, truth, _ = class_pairs(logits, target)
    chosen, positive, polar = (logits[:, 2] > logits[:, 0]), truth == 2, truth != 1
    return {
        "acc2_zero_negative": accuracy(chosen, positive),
        "f1_zero_negative": weighted_f1(chosen, positive),
        "acc2_non0": accuracy(chosen[polar], positive[polar]) if polar.any() else float("nan"),
        "f1_non0": weighted_f1(chosen[polar], positive[polar]) if polar.any() else float("nan"),
        "acc3": accuracy(logits, truth),
        "f1_3": weighted_f1(logits, truth),
    }


def emotion_shift(
    emotion: npt.ArrayLike,
    *,
    dialogue: npt.ArrayLike,
    rule: ShiftRule,
    speaker: npt.ArrayLike | None = None,
    turn: npt.ArrayLike | None = None,
    groups: Sequence[int] | None = None,
) -> Integers:
    """Whether the TRUE emotion changed at each utterance, (N,): 1 changed, 0 stayed, -1 nothing before to compare with.

    ``emotion``: classes (N,); ``dialogue``, ``speaker``: ids (N,), numbers or text; ``turn``: place in the dialogue
    (N,), by default the order of rows; ``groups``: group of each class, so that only changes of group count
    (``IEMOCAP_SHIFT_GROUPS``). The two rules give different counts on the same corpus: say which one a table uses.
    """
    state = _grouped(class_vector(emotion, name="emotion"), groups)
    key = _codes(dialogue, rows=state)
    if rule == "same_speaker":
        if speaker is None:
            raise MetricError("rule is 'same_speaker' and there are no speakers; pass speaker=, one id per utterance.")
        key = _codes(np.stack([key, _codes(speaker, rows=state)], axis=1), rows=state)
    elif rule != "previous_utterance":
        raise MetricError(f"There is no shift rule '{rule}'; choose previous_utterance or same_speaker.")
    place = np.arange(len(state)) if turn is None else np.asarray(turn)
    same_rows(state, place, name="turn")
    return _changes(state, key, np.lexsort((place, key)))


def _changes(state: Integers, key: Integers, order: Integers) -> Integers:
    """1, 0 or -1 per row (N,), comparing neighbours of equal ``key`` in ``order``."""
    shift = np.full(len(state), -1, dtype=np.int64)
    before, after = order[:-1], order[1:]
    shift[after] = np.where(key[after] == key[before], state[after] != state[before], -1)
    return shift


def _grouped(emotion: Integers, groups: Sequence[int] | None) -> Integers:
    if groups is None:
        return emotion
    group: Integers = np.asarray(groups, dtype=np.int64)[class_vector(emotion, name="emotion", classes=len(groups))]
    return group


def _codes(values: npt.ArrayLike, *, rows: Integers) -> Integers:
    """Ids as whole numbers (N,); rows of a table count as one id."""
    ids = np.asarray(values)
    same_rows(rows, ids, name="dialogue or speaker")
    codes: Integers = np.unique(ids, axis=0, return_inverse=True)[1].reshape(-1).astype(np.int64)
    return codes


def by_shift(
    metric: Callable[[npt.NDArray[Any], npt.NDArray[Any]], float],
    prediction: npt.ArrayLike,
    *,
    target: npt.ArrayLike,
    shift: npt.ArrayLike,
) -> dict[str, float]:
    """``metric`` on the utterances of ``emotion_shift`` 1 and 0: ``{"shift", "no_shift"}``; NaN for an empty slice."""
    values, truth, marks = np.asarray(prediction), np.asarray(target), np.asarray(shift)
    same_rows(values, truth)
    same_rows(values, marks, name="shift")
    parts = {"shift": marks == 1, "no_shift": marks == 0}
    return {name: metric(values[part], truth[part]) if part.any() else float("nan") for name, part in parts.items()}
