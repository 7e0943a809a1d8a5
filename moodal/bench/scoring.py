"""Scores of stored runs: per seed from their predictions, intervals over clips, paired comparisons, the baseline.

Several seeds share each resample of the clips, so an interval is that of the mean over seeds.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from moodal.bench.runs import Predictions, StoredRun, part
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


class SplitScorer:
    """Scores of one configuration on one split, from labelled rows common to its seeds.

    ``targets`` (N,), ``seeds`` one (N,) or (N, C) array of predictions each. Raises ``MoodalError`` if the seeds do not
    speak of the same clips.
    """

    def __init__(self, group: Sequence[StoredRun], split: str) -> None:
        self._known: dict[bytes, dict[str, float]] = {}
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
        """Mean over seeds of the scores on the given rows, computed once per set of rows.

        Every bootstrap draws the same resamples, and asks for one metric at a time.
        """
        name = hashlib.blake2b(np.ascontiguousarray(rows).tobytes(), digest_size=16).digest()
        if name not in self._known:
            tables = self.values(rows)
            self._known[name] = {key: float(np.mean([table[key] for table in tables])) for key in self.protocol.keys}
        return self._known[name]

    def metric(self, key: str) -> Callable[[Rows, Rows], float]:
        """One metric of :meth:`mean` in the form the bootstrap calls, which hands over row numbers as predictions."""
        return lambda rows, _: self.mean(rows)[key]

    def constant(self, value: float) -> "SplitScorer":
        """The same rows predicted by one number or class."""
        return self._changed(seeds=[np.full(len(self.targets), value)])

    def part(self, rows: Rows) -> "SplitScorer":
        """Some of the rows, in the given order."""
        if np.array_equal(rows, np.arange(len(self.ids))):
            return self  # and with it the scores known so far
        return self._changed(
            ids=tuple(self.ids[row] for row in rows),
            targets=self.targets[rows],
            seeds=[seed[rows] for seed in self.seeds],
            groups=None if self.groups is None else [self.groups[row] for row in rows],
        )

    def _changed(self, **changes: Any) -> "SplitScorer":
        twin = object.__new__(SplitScorer)
        twin.__dict__ |= self.__dict__ | {"_known": {}} | changes
        return twin


@dataclass(frozen=True)
class SplitScores:
    """Cells by metric key, sentences about what could not be done, and the scorer where predictions are there."""

    cells: Mapping[str, Number]
    notes: tuple[str, ...] = field(default_factory=tuple)
    scorer: SplitScorer | None = None


@dataclass(frozen=True)
class Baseline:
    """The constant predictor on one split; without its constant there is no scorer."""

    name: str
    cells: Mapping[str, Number]
    scorer: SplitScorer | None = None


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
    cells = cells_of(scorer, by_seed, planned=planned, resamples=resamples)
    return SplitScores(cells, tuple(_disagreements(group, split, by_seed)), scorer)


def cells_of(
    scorer: SplitScorer, by_seed: Sequence[Mapping[str, float]], *, planned: int | None = None, resamples: int = 1000
) -> dict[str, Number]:
    """Per metric the values of all seeds and the 95 % interval of their mean; ``resamples`` 0: no interval."""
    cells = {key: Number(tuple(table[key] for table in by_seed), planned) for key in scorer.protocol.keys}
    if resamples == 0:
        return cells
    rows = np.arange(len(scorer.ids))
    for key, cell in cells.items():
        spread = bootstrap_interval(scorer.metric(key), rows, target=rows, resamples=resamples, groups=scorer.groups)
        cells[key] = Number(cell.values, planned, low=spread.low, high=spread.high)
    return cells


def compare(
    first: SplitScorer, second: SplitScorer, *, keys: Sequence[str], resamples: int = 1000
) -> dict[str, Comparison]:
    """First minus second on the clips both have, per metric; the clips must carry the same labels."""
    one, two = common(first, second)
    rows = np.arange(len(one.ids))

    def metric(key: str) -> Callable[[Rows, Rows], float]:
        """Rows are numbered from 1 for the first and from -1 down for the second."""
        ours, theirs = one.metric(key), two.metric(key)
        return lambda drawn, _: ours(drawn - 1, _) if drawn[0] > 0 else theirs(-drawn - 1, _)

    return {
        key: paired_bootstrap(
            metric(key), rows + 1, second=-rows - 1, target=rows, resamples=resamples, groups=one.groups
        )
        for key in keys
    }


def common(first: SplitScorer, second: SplitScorer) -> tuple[SplitScorer, SplitScorer]:
    """Both on the clips they share, in the first one's order. Raises ``MoodalError`` if labels or protocols differ."""
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
    return first.part(ours), second.part(theirs)


def baseline(group: Sequence[StoredRun], scores: SplitScores, split: str, *, resamples: int = 1000) -> Baseline | None:
    """The constant predictor on the rows of ``scores``.

    The constant is ``baseline.prediction`` of scores.json, or comes from training rows of predictions.csv; without
    either, the scores stored under ``baseline`` are shown without intervals; without those, None.
    """
    stored = part(group[0].scores, "baseline")
    constant, name = _constant(group[0], stored)
    name = str(stored.get("name", name))
    if constant is not None and scores.scorer is not None:
        scorer = scores.scorer.constant(constant)
        return Baseline(name, cells_of(scorer, scorer.values(np.arange(len(scorer.ids))), resamples=resamples), scorer)
    if not part(stored, split):
        return None
    return Baseline(
        name or "constant predictor", {key: Number((_value(value),)) for key, value in stored[split].items()}
    )


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


def _disagreements(group: Sequence[StoredRun], split: str, by_seed: Sequence[Mapping[str, float]]) -> list[str]:
    """Sentences for stored scores that the predictions do not bear out."""
    sentences = []
    for run, again in zip(group, by_seed):
        stored = run.scores.get(split)
        for key, value in stored.items() if isinstance(stored, Mapping) else ():
            if key in again and value is not None and not abs(_value(value) - again[key]) <= TOLERANCE:
                told, found = f"{split} {key} {_value(value):.4f}", f"{again[key]:.4f}"
                sentences.append(
                    f"scores.json of seed {run.seed} says {told}, its predictions give {found}; one was changed."
                )
    return sentences
