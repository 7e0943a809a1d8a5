"""What every metric asks of its arrays, checked where they enter; the error sentences of the metrics live here."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from moodal.core.errors import MoodalError

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]


class MetricError(MoodalError):
    """Predictions or labels that cannot be scored."""


def vectors(prediction: npt.ArrayLike, target: npt.ArrayLike) -> tuple[Floats, Floats]:
    """Two columns of numbers, (N,) or (N, 1) each, as float64 vectors (N,); faults raise ``MetricError``."""
    values, truth = vector(prediction, name="prediction"), vector(target, name="target")
    same_rows(values, truth)
    return values, truth


def vector(values: npt.ArrayLike, *, name: str) -> Floats:
    """One column of finite numbers, (N,) or (N, 1), as a float64 vector (N,)."""
    column = numbers(values, name=name)
    if column.ndim == 2 and column.shape[1] == 1:  # flattened here, so that (N, 1) - (N,) can never become (N, N)
        column = column[:, 0]
    if column.ndim != 1:
        raise MetricError(
            f"{name} has shape {column.shape}, expected (N,) or (N, 1): one number per row. "
            "Pick one output, or use a protocol for classes."
        )
    finite(column, name=name)
    return column


def numbers(values: npt.ArrayLike, *, name: str) -> Floats:
    """``values`` as a float64 array of any shape."""
    try:
        return np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as fault:
        message = f"{name} is not an array of numbers ({fault}); pass a rectangular array of numbers."
        raise MetricError(message) from fault


def finite(values: Floats, *, name: str) -> None:
    """Raise unless every entry is a number: a NaN label is unlabelled, a NaN prediction is a failed model."""
    wrong = ~np.isfinite(values)
    if not wrong.any():
        return
    row = int(np.argwhere(wrong)[0][0])
    cure = {
        "prediction": "The model diverged, or a mask is missing; such rows have no score.",
        "target": "Pass valid= to leave unlabelled rows out, or repair the labels.",
    }.get(name, "Every row needs a number.")
    count = int(wrong.sum())
    raise MetricError(f"{name} holds {count} values that are NaN or infinite, the first in row {row}. {cure}")


def same_rows(prediction: npt.NDArray[Any], target: npt.NDArray[Any], *, name: str = "target") -> None:
    """Raise unless both have the same number of rows, and at least one."""
    if len(prediction) != len(target):
        raise MetricError(
            f"prediction has {len(prediction)} rows and {name} has {len(target)}; "
            "pass one row for each sample, in the same order."
        )
    if len(prediction) == 0:
        raise MetricError("There are 0 rows to score, at least 1 is needed; check the split and the valid rows.")


def class_vector(values: npt.ArrayLike, *, name: str, classes: int | None = None) -> Integers:
    """Class numbers (N,) as int64, each in [0, classes) where ``classes`` is given."""
    column = vector(values, name=name)
    whole = column.astype(np.int64)
    if (fractions := column != whole).any():
        raise MetricError(f"{name} holds {column[fractions][0]:g}, expected whole class numbers; check the label map.")
    outside = whole < 0 if classes is None else (whole < 0) | (whole >= classes)
    if outside.any():
        known = "0 and up" if classes is None else f"0 to {classes - 1}"
        raise MetricError(
            f"{name} holds class {whole[outside][0]} in row {int(np.argmax(outside))}, expected {known}; "
            "check the label map, and pass valid= to leave unlabelled rows out."
        )
    return whole


def class_pairs(
    prediction: npt.ArrayLike, target: npt.ArrayLike, *, classes: int | None = None
) -> tuple[Integers, Integers, int]:
    """Predicted classes (N,), true classes (N,) and the number of classes.

    ``prediction`` holds classes (N,) or scores (N, C), of which the largest counts (the first among equals).
    """
    scores = numbers(prediction, name="prediction")
    if scores.ndim == 2 and scores.shape[1] > 1:
        finite(scores, name="prediction")
        classes = _width(scores, classes)
        scores = scores.argmax(axis=1).astype(np.float64)
    chosen = class_vector(scores, name="prediction", classes=classes)
    truth = class_vector(target, name="target", classes=classes)
    same_rows(chosen, truth)
    return chosen, truth, classes or int(max(chosen.max(), truth.max())) + 1


def _width(scores: Floats, classes: int | None) -> int:
    """The number of columns, which must be ``classes`` where that is given."""
    width = int(scores.shape[1])
    if classes is not None and width != classes:
        raise MetricError(f"prediction has {width} columns, expected {classes}: one score per class.")
    return width


def probabilities(values: npt.ArrayLike, *, simplex: bool) -> Floats:
    """Probabilities (N, C) in [0, 1]; with ``simplex`` every row sums to 1 (within 0.001, for half precision)."""
    table = numbers(values, name="prediction")
    if table.ndim != 2 or table.shape[1] == 0:
        raise MetricError(f"prediction has shape {table.shape}, expected (N, C): one probability per class.")
    finite(table, name="prediction")
    if table.size and (table.min() < 0 or table.max() > 1):
        raise MetricError(
            f"prediction ranges from {table.min():g} to {table.max():g}, expected probabilities from 0 to 1; "
            f"apply the {'softmax' if simplex else 'sigmoid'} to logits first."
        )
    if simplex and (np.abs(table.sum(axis=1) - 1) > 1e-3).any():
        worst = table.sum(axis=1)[np.abs(table.sum(axis=1) - 1).argmax()]
        raise MetricError(f"A row of prediction sums to {worst:g}, expected 1; apply the softmax over classes first.")
    return table


def label_table(values: npt.ArrayLike, *, like: Floats) -> Flags:
    """Multi-label truth (N, C) as booleans: intensity above 0 is present."""
    table = numbers(values, name="target")
    if table.shape != like.shape:
        raise MetricError(f"prediction has shape {like.shape} and target {table.shape}; both must be (N, C).")
    same_rows(like, table)
    finite(table, name="target")
    if table.min() < 0:
        raise MetricError(f"target holds {table.min():g}, expected intensities of 0 and up; check the label columns.")
    return table > 0
