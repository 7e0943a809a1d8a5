"""Scores of stored runs: per seed from their predictions, intervals over clips, paired comparisons, the constant baseline.

Several seeds share each resample of the clips, so an interval is that of the mean over seeds.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from moodal.bench.runs import Predictions, StoredRun
from moodal.bench.tables import Number
from moodal.core.errors import MoodalError
from moodal.core.spec import Classification
from moodal.metrics.bootstrap import Comparison, bootstrap_interval, paired_bootstrap
from moodal.metrics.protocol import protocol_named

#: Groups (videos, actors) below which resampling whole groups says little; clips are then resampled.
FEWEST_GROUPS = 10
#: A stored score this far from the one computed again is worth a sentence.
TOLERANCE = 1e-4
#: Protocols that read class scores rather than the chosen class.
_READ_SCORES = ("three_class", "mmsa.classification")

Rows = npt.NDArray[Any]
Scores = Callable[[Rows], Mapping[str, float]]


@dataclass(frozen=True)
class SplitScores:
    """Cells by metric key, and sentences about what could not be done."""

    cells: Mapping[str, Number]
    notes: tuple[str, ...] = field(default_factory=tuple)


class SplitScorer:
    """Scores of one configuration on one split, from labelled rows common to its seeds.

    ``targets`` (N,), ``seeds`` one (N,) or (N, C) array of predictions each. Raises ``MoodalError`` if the seeds do not
    speak of the same clips.
    """

    def __init__(self, group: Sequence[StoredRun], split: str):
        for run in group:
            run.require("predictions.csv")
            if split not in run.predictions:
                raise MoodalError(f"{run.path / 'predictions.csv'} has no rows of {split}; evaluate the run on it.")
        first = group[0].predictions[split]
        self.keep = np.flatnonzero(first.labelled)
        self.ids = tuple(first.ids[row] for row in self.keep)
        if not self.ids:
            raise MoodalError(
                f"No clip of {split} has a label in {group[0].path / 'predictions.csv'}, so there is nothing to score."
            )
        self.protocol = protocol_named(_protocol_name(group[0]))
        self.targets = first.target[self.keep]
        self.seeds = [self._aligned(run, split) for run in group]
        names = group[0].groups(split)
        kept = None if names is None else [names[row] for row in self.keep]
        self.groups = kept if kept is not None and len(set(kept)) >= FEWEST_GROUPS else None

    def _aligned(self, run: StoredRun, split: str) -> npt.NDArray[Any]:
        """The predictions of one seed in the order of ``ids``."""
        table = run.predictions[split]
        place = {name: row for row, name in enumerate(table.ids)}
        if len(place) != len(table) or not all(name in place for name in self.ids):
            raise MoodalError(
                f"{run.path / 'predictions.csv'} does not hold each clip of {split} once; the seeds cannot be averaged."
            )
        rows = np.array([place[name] for name in self.ids], dtype=np.int64)
        if not np.allclose(table.target[rows], self.targets, atol=1e-6):
            raise MoodalError(
                f"{run.path / 'predictions.csv'} has other labels for {split} than the first seed; the data differ."
            )
        return _read_by(self.protocol.name, table)[rows]

    def values(self, rows: Rows) -> list[dict[str, float]]:
        """Scores of each seed on the given rows."""
        return [self.protocol.compute(prediction[rows], self.targets[rows]) for prediction in self.seeds]

    def mean(self, rows: Rows) -> dict[str, float]:
        """Mean over seeds of the scores on the given rows."""
        tables = self.values(rows)
        return {key: float(np.mean([table[key] for table in tables])) for key in self.protocol.keys}

    def constant(self, value: float) -> "SplitScorer":
        """The same rows predicted by one number or class."""
        twin = object.__new__(SplitScorer)
        twin.__dict__ |= self.__dict__ | {"seeds": [np.full(len(self.targets), value)]}
        return twin


def score_split(
    group: Sequence[StoredRun], split: str, *, planned: int | None = None, resamples: int = 1000
) -> SplitScores:
    """Scores of one configuration on one split, with 95 % intervals where predictions are there.

    Without readable predictions the stored scores are shown, without intervals and with a sentence saying so.
    """
    try:
        scorer = SplitScorer(group, split)
        by_seed = scorer.values(np.arange(len(scorer.ids)))
    except MoodalError as fault:
        return SplitScores(
            _stored(group, split, planned),
            (f"{split}: {fault} Scores are those stored at training time, without intervals.",),
        )
    return SplitScores(
        cells_of(scorer, by_seed, planned=planned, resamples=resamples), tuple(_disagreements(group, split, by_seed))
    )


def cells_of(
    scorer: SplitScorer, by_seed: Sequence[Mapping[str, float]], *, planned: int | None = None, resamples: int = 1000
) -> dict[str, Number]:
    """Per metric the values of all seeds and the 95 % interval of their mean; ``resamples`` 0: no interval."""
    cells = {key: Number(tuple(table[key] for table in by_seed), planned) for key in scorer.protocol.keys}
    if resamples == 0:
        return cells
    scores, rows = remembered(scorer.mean), np.arange(len(scorer.ids))
    for key, cell in cells.items():
        spread = bootstrap_interval(
            lambda drawn, _, key=key: scores(drawn)[key], rows, target=rows, resamples=resamples, groups=scorer.groups
        )
        cells[key] = Number(cell.values, planned, low=spread.low, high=spread.high)
    return cells


def compare(
    first: SplitScorer, second: SplitScorer, *, keys: Sequence[str], resamples: int = 1000
) -> dict[str, Comparison]:
    """First minus second on the clips both have, per metric; the clips must carry the same labels."""
    one, two = common(first, second)
    mean_one, mean_two = remembered(one.mean), remembered(two.mean)
    rows = np.arange(len(one.ids))

    def value(drawn: Rows, key: str) -> float:
        """Rows are numbered from 1 for the first and from -1 down for the second."""
        return mean_one(drawn - 1)[key] if drawn[0] > 0 else mean_two(-drawn - 1)[key]

    return {
        key: paired_bootstrap(
            lambda drawn, _, key=key: value(drawn, key),
            rows + 1,
            second=-rows - 1,
            target=rows,
            resamples=resamples,
            groups=one.groups,
        )
        for key in keys
    }


def common(first: SplitScorer, second: SplitScorer) -> tuple[SplitScorer, SplitScorer]:
    """Both on the clips they share, in the order of the first. Raises ``MoodalError`` where labels or protocols differ."""
    if first.protocol.name != second.protocol.name:
        raise MoodalError(
            f"The runs are scored by {first.protocol.name} and by {second.protocol.name}; compare runs of one protocol."
        )
    place = {name: row for row, name in enumerate(second.ids)}
    shared = [(row, place[name]) for row, name in enumerate(first.ids) if name in place]
    if not shared:
        raise MoodalError(
            "The runs share no clip, so they cannot be compared; were they trained on the same corpus and split?"
        )
    ours, theirs = (np.array(side, dtype=np.int64) for side in zip(*shared))
    if not np.allclose(first.targets[ours], second.targets[theirs], atol=1e-6):
        raise MoodalError("The runs have other labels for the same clips; compare runs on the same data.")
    return _rows(first, ours), _rows(second, theirs)


def _rows(scorer: SplitScorer, rows: Rows) -> SplitScorer:
    part = object.__new__(SplitScorer)
    part.__dict__ |= scorer.__dict__ | {
        "ids": tuple(scorer.ids[row] for row in rows),
        "targets": scorer.targets[rows],
        "seeds": [seed[rows] for seed in scorer.seeds],
        "groups": None if scorer.groups is None else [scorer.groups[row] for row in rows],
    }
    return part


def remembered(scores: Scores) -> Scores:
    """``scores`` computed once per set of rows: the bootstrap asks for the same resamples for every metric."""
    known: dict[bytes, Mapping[str, float]] = {}

    def look_up(rows: Rows) -> Mapping[str, float]:
        name = hashlib.blake2b(np.ascontiguousarray(rows).tobytes(), digest_size=16).digest()
        if name not in known:
            known[name] = scores(rows)
        return known[name]

    return look_up


def baseline_cells(
    group: Sequence[StoredRun], split: str, *, resamples: int = 1000
) -> tuple[str, dict[str, Number], SplitScorer | None] | None:
    """The constant predictor: its name, its cells, and a scorer for comparisons where the constant is known.

    The constant is ``baseline.prediction`` of scores.json, or comes from training rows of predictions.csv; without
    either, the scores stored under ``baseline`` are shown without intervals; without those, None.
    """
    run, stored = group[0], group[0].scores.get("baseline")
    stored = stored if isinstance(stored, Mapping) else {}
    constant, name = _constant(run, stored)
    if constant is not None:
        try:
            scorer = SplitScorer(group[:1], split).constant(constant)
            by_seed = scorer.values(np.arange(len(scorer.ids)))
            return str(stored.get("name", name)), cells_of(scorer, by_seed, resamples=resamples), scorer
        except MoodalError:
            pass
    if isinstance(stored.get(split), Mapping):
        return (
            str(stored.get("name", "constant predictor")),
            {key: _one(value) for key, value in stored[split].items()},
            None,
        )
    return None


def _constant(run: StoredRun, stored: Mapping[str, Any]) -> tuple[float | None, str]:
    task, value = run.task, stored.get("prediction")
    classes = task.classes if isinstance(task, Classification) else ()
    if value in classes:
        return float(classes.index(value)), f"always '{value}'"
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value), f"constant {value:.3f}"
    train = run.predictions.get("train")
    if train is None or not train.labelled.any():
        return None, ""
    labels = train.target[train.labelled]
    if classes:
        commonest = int(np.bincount(labels.astype(np.int64)).argmax())
        return float(commonest), f"always '{classes[commonest]}'"
    return float(labels.mean()), f"mean of the training labels ({labels.mean():.3f})"


def _protocol_name(run: StoredRun) -> str:
    if run.protocol is None:
        raise MoodalError(
            f"Neither scores.json nor data.json of {run.path} names the protocol, so its predictions cannot be scored."
        )
    return run.protocol


def _read_by(protocol: str, table: Predictions) -> npt.NDArray[Any]:
    return table.probabilities if protocol in _READ_SCORES and table.probabilities is not None else table.prediction


def _stored(group: Sequence[StoredRun], split: str, planned: int | None) -> dict[str, Number]:
    tables = [run.scores[split] for run in group if isinstance(run.scores.get(split), Mapping)]
    keys = dict.fromkeys(key for table in tables for key in table)
    return {key: Number(tuple(_value(table.get(key)) for table in tables), planned) for key in keys}


def _value(value: Any) -> float:
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else float("nan")


def _one(value: Any) -> Number:
    return Number((_value(value),))


def _disagreements(group: Sequence[StoredRun], split: str, by_seed: Sequence[Mapping[str, float]]) -> list[str]:
    """Sentences for stored scores that the predictions do not bear out."""
    sentences = []
    for run, again in zip(group, by_seed):
        stored = run.scores.get(split)
        for key, value in stored.items() if isinstance(stored, Mapping) else ():
            if key in again and value is not None and not abs(_value(value) - again[key]) <= TOLERANCE:
                sentences.append(
                    f"scores.json of seed {run.seed} says {split} {key} = {_value(value):.4f}, and its predictions give {again[key]:.4f}; "
                    "one of the two files was changed."
                )
    return sentences
