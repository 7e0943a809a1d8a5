"""A paper's ablation table with ours beside it. Training is a function that is passed in."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from moodal.bench.names import metric_column, ordered
from moodal.bench.published import Published, published
from moodal.bench.tables import Column, Number, Row, Table, seed_cells
from moodal.core.errors import Interrupted, MoodalError, check
from moodal.core.files import read_json, write_json

_LOG = logging.getLogger(__name__)

#: Columns of the paper's table by task; those of them that the scores have are shown.
SHOWN = (
    "acc2_has0",
    "acc2_non0",
    "acc2_zero_negative",
    "acc7",
    "acc5",
    "mae",
    "corr",
    "accuracy",
    "uar",
    "weighted_f1",
    "rank1",
    "rank10",
    "map",
)

#: What training gives for a seed: {"valid": scores, "test": scores, "run": path}.
SeedResult = Mapping[str, Any]


class Train(Protocol):
    """Trains a recipe under overrides, once per seed: {seed: {"valid": ..., "test": ..., "run": path}}."""

    def __call__(self, recipe: str, overrides: Mapping[str, Any], seeds: Sequence[int]) -> Mapping[int, SeedResult]: ...


@dataclass(frozen=True)
class PlannedRow:
    """A row to train: its name in the table, and all overrides (those of the base and its own)."""

    name: str
    overrides: Mapping[str, Any]


@dataclass(frozen=True)
class FinishedRow:
    """What became of a row: results by seed, and for seeds that failed the reason."""

    name: str
    overrides: Mapping[str, Any]
    by_seed: Mapping[int, SeedResult] = field(default_factory=dict)
    failures: Mapping[int, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Ablation:
    """All rows of one recipe over the same seeds."""

    recipe: str
    seeds: tuple[int, ...]
    rows: tuple[FinishedRow, ...]

    @property
    def failed(self) -> bool:
        """Whether a seed of a row has no result: the command should not exit with 0."""
        return any(len(row.by_seed) < len(self.seeds) for row in self.rows)

    def as_json(self) -> dict[str, Any]:
        """All numbers, for programs; "rows" is {name: {"valid", "test", "runs", "failures": each {seed: ...}}}."""
        rows = {
            row.name: {
                **{
                    split: {str(seed): dict(result[split]) for seed, result in row.by_seed.items()}
                    for split in ("valid", "test")
                },
                "runs": {str(seed): str(result["run"]) for seed, result in row.by_seed.items()},
                "failures": {str(seed): reason for seed, reason in row.failures.items()},
            }
            for row in self.rows
        }
        return {"recipe": self.recipe, "seeds": list(self.seeds), "failed": self.failed, "rows": rows}


#: Told before each seed: row name, seed, how many are done, how many there are.
Report = Callable[[str, int, int, int], None]


def plan(
    ablations: Mapping[str, Mapping[str, Any]],
    base: Mapping[str, Any] | None = None,
    *,
    only: Iterable[str] | None = None,
) -> list[PlannedRow]:
    """The rows of a method's ``ablations`` in their order; a row's own overrides win over ``base``.

    ``only`` picks rows by name. Raises ``MoodalError`` for a method without ablations or a name that is not there.
    """
    check(bool(ablations), "This method declares no ablations, so there is no table to make.")
    chosen = list(ablations) if only is None else list(only)
    for name in chosen:
        check(name in ablations, f"There is no ablation '{name}'; known: {', '.join(ablations)}.")
    return [PlannedRow(name, {**(base or {}), **ablations[name]}) for name in chosen]


def run(
    rows: Sequence[PlannedRow],
    train: Train,
    *,
    recipe: str,
    seeds: Sequence[int],
    state: Path | None = None,
    progress: Report | None = None,
) -> Ablation:
    """Train every row over ``seeds``, one seed at a time, and keep going when one fails.

    ``state`` (a JSON file) remembers finished seeds: those whose run still has its scores.json are not trained again.
    ``Interrupted`` and KeyboardInterrupt go through; what was finished is in ``state``.
    """
    check(bool(seeds), "No seed was given; give at least one.")
    known = _known(state)
    finished: list[FinishedRow] = []
    for place, row in enumerate(rows):
        results: dict[int, SeedResult] = {}
        failures: dict[int, str] = {}
        for turn, seed in enumerate(seeds):
            if progress is not None:
                progress(row.name, seed, place * len(seeds) + turn, len(rows) * len(seeds))
            name = _name(recipe, row.overrides, seed)
            if not _still_there(known.get(name)):
                known.pop(name, None)
                _train_one(train, recipe, row, seed=seed, name=name, known=known, failures=failures)
                _remember(state, known)
            if name in known:
                results[seed] = known[name]
        finished.append(FinishedRow(row.name, row.overrides, results, failures))
    return Ablation(recipe, tuple(seeds), tuple(finished))


def _train_one(
    train: Train, recipe: str, row: PlannedRow, *, seed: int, name: str, known: dict[str, Any], failures: dict[int, str]
) -> None:
    """Put the result into ``known``, or the reason of a failure into ``failures``."""
    try:
        result = train(recipe, row.overrides, [seed])[seed]
        known[name] = {"valid": dict(result["valid"]), "test": dict(result["test"]), "run": str(result["run"])}
    except Interrupted:
        raise
    except MoodalError as fault:
        failures[seed] = str(fault)
    except Exception as fault:  # one broken row must not cost the hours of the others
        _LOG.exception("row '%s', seed %d failed", row.name, seed)
        failures[seed] = f"{type(fault).__name__}: {fault}"


def _name(recipe: str, overrides: Mapping[str, Any], seed: int) -> str:
    text = json.dumps([recipe, overrides, seed], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _known(state: Path | None) -> dict[str, Any]:
    found = read_json(state) if state is not None and state.exists() else {}
    check(
        isinstance(found, dict),
        f"{state} holds no object of finished rows; delete it, and finished runs will be found again.",
    )
    return dict(found)


def _remember(state: Path | None, known: Mapping[str, Any]) -> None:
    if state is not None:
        write_json(state, known)


def _still_there(result: Any) -> bool:
    """Whether a remembered result is whole, and its run was not deleted."""
    if not isinstance(result, Mapping) or not {"valid", "test", "run"} <= set(result):
        return False
    return (Path(str(result["run"])) / "scores.json").is_file()


def ablation_table(done: Ablation, *, split: str = "test", metrics: Sequence[str] | None = None) -> Table:
    """The paper's table with ours: our numbers over the seeds and, where the paper has the row, the published ones.

    ``metrics`` None: the columns of the paper that the scores have. A row that failed says why.
    """
    corpus = done.recipe.split("/")[0]
    theirs = _by_name(
        published(corpus, table="ablation") or published("mosei", table="ablation"), method=done.recipe.split("/")[-1]
    )
    own_corpus = bool(published(corpus, table="ablation"))
    keys = list(metrics) if metrics is not None else _shown_keys(done, split)
    beside = [key for key in keys if any(key in row.scores for row in theirs.values())]
    rows = [_row(row, done, split=split, keys=keys, beside=beside, theirs=theirs.get(row.name)) for row in done.rows]
    columns = [Column("name", "Variant"), *(metric_column(key) for key in keys)]
    columns += [_published_column(key) for key in beside]
    columns += [Column("remark", "Remark")] if any("remark" in row.cells for row in rows) else []
    return Table(
        tuple(columns),
        tuple(rows),
        caption=f"Ablation of {done.recipe} on {split}",
        notes=_notes(theirs, beside, own_corpus),
    )


def _by_name(rows: Iterable[Published], *, method: str) -> dict[str, Published]:
    return {row.ours: row for row in rows if row.method == method}


def _shown_keys(done: Ablation, split: str) -> list[str]:
    """The metrics of the paper's table that the results have; all of the results' if it has none."""
    have = {key for row in done.rows for result in row.by_seed.values() for key in result[split]}
    return [key for key in SHOWN if key in have] or ordered(have)


def _row(
    row: FinishedRow,
    done: Ablation,
    *,
    split: str,
    keys: Sequence[str],
    beside: Sequence[str],
    theirs: Published | None,
) -> Row:
    cells: dict[str, Number | str | None] = {"name": row.name}
    cells |= seed_cells([result[split] for result in row.by_seed.values()], keys, planned=len(done.seeds))
    if theirs is not None:
        cells |= {f"published_{key}": Number((theirs.scores[key],)) for key in beside if key in theirs.scores}
    if row.failures:
        reasons: dict[str, list[int]] = {}
        for seed, reason in row.failures.items():
            reasons.setdefault(reason, []).append(seed)
        cells["remark"] = "; ".join(
            f"seed {', '.join(map(str, seeds))} failed: {reason}" for reason, seeds in reasons.items()
        )
    return Row(cells)


def _published_column(key: str) -> Column:
    column = metric_column(key, prefix="published_")
    return Column(column.key, f"{column.title} (published)", column.better, column.decimals, column.scale)


def _notes(theirs: Mapping[str, Published], beside: Sequence[str], own_corpus: bool) -> tuple[str, ...]:
    if not beside:
        return ()
    first = next(iter(theirs.values()))
    protocol = "; ".join(f"{key}: {value}" for key, value in first.protocol.items())
    words = f"Published: {first.citation}; on MOSEI; {protocol}."
    other = (
        ()
        if own_corpus
        else ("The published ablation is of MOSEI, another corpus: compare the order of rows, not the numbers.",)
    )
    return (words, *other)
