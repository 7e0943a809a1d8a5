"""What a method must beat: the mean (or the commonest class) of the training labels, scored like everything else.

Where pictures are ranked there is no constant guess, and a random ranking takes its place.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from moodal.core.method import Split
from moodal.core.spec import Classification, Identification, Task
from moodal.metrics import score


def baseline_scores(task: Task, splits: Mapping[str, Split], protocol: str) -> dict[str, Any]:
    """Scores of the constant prediction fitted on the training labels, for valid and test.

    Regression: the mean label. Classification: the commonest class. Identification: a random ranking.
    """
    if isinstance(task, Identification):
        return {"name": "random ranking", "prediction": None, **_random_ranking(splits, protocol)}
    labels = _labels(splits["train"])
    if isinstance(task, Classification):
        constant: float = float(np.bincount(labels.astype(np.int64)).argmax())
        name = f"always '{task.classes[int(constant)]}'"
    else:
        constant = float(labels.mean())
        name = f"mean of the training labels ({constant:.3f})"
    tables = {}
    for split in ("valid", "test"):
        truth = _labels(splits[split])
        guess = np.full(len(truth), constant)
        tables[split] = score(protocol, guess.astype(np.int64) if isinstance(task, Classification) else guess, truth)
    shown = task.classes[int(constant)] if isinstance(task, Classification) else constant
    return {"name": name, "prediction": shown, **tables}


def _random_ranking(splits: Mapping[str, Split], protocol: str) -> dict[str, Any]:
    """Scores of embeddings that know nothing, drawn from a fixed seed."""
    tables = {}
    for name in ("valid", "test"):
        split, draw = splits[name], np.random.default_rng(0)
        columns = {key: column.numpy() for key, column in split.columns.items()}
        tables[name] = score(protocol, draw.standard_normal((len(split), 64)), _labels(split), columns=columns)
    return tables


def _labels(split: Split) -> np.ndarray:
    assert split.target is not None
    return split.target.value.numpy()[split.target.valid.numpy()].astype(np.float64)
