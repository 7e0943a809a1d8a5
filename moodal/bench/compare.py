"""Tables made from stored runs: scores of one configuration, several side by side, ours beside published numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from moodal.bench.names import metric_column, ordered
from moodal.bench.published import PROTOCOL, Published, published
from moodal.bench.runs import StoredRun, differences, find_runs, group_seeds, part
from moodal.bench.scoring import Baseline, SplitScorer, SplitScores, baseline, compare, score_split
from moodal.bench.tables import Column, Number, Row, Table
from moodal.core.errors import MoodalError, check
from moodal.metrics.protocol import protocol_named

Group = Sequence[StoredRun]
#: Settings named in the label of a configuration before "and n more".
_NAMED = 3


def as_groups(runs: str | Path | StoredRun | Sequence[str | Path | StoredRun]) -> list[tuple[StoredRun, ...]]:
    """Runs given as folders (of one run or of many) or opened, grouped into configurations in the order given."""
    items = [runs] if isinstance(runs, (str, Path, StoredRun)) else list(runs)
    check(bool(items), "No run was given; name at least one run folder.")
    opened = [run for item in items for run in ([item] if isinstance(item, StoredRun) else find_runs(item))]
    unique = {run.path.resolve(): run for run in opened}
    return group_seeds(unique.values())


def labels(groups: Sequence[Group], names: Sequence[str] | None = None) -> list[str]:
    """What to call each configuration: the given names, or the method and the settings that set it apart."""
    if names is not None:
        check(
            len(names) == len(groups),
            f"There are {len(names)} names for {len(groups)} configurations; give one for each.",
        )
        return list(names)
    found = []
    for group in groups:
        words = differences([group[0].configuration(), groups[0][0].configuration()])[0]
        settings = [word for word in words if not word.startswith(("method=", "corpus="))]
        settings.sort(key=lambda word: not word.startswith("model."))  # what the method is, before how it was trained
        more = f", and {len(settings) - _NAMED} more" if len(settings) > _NAMED else ""
        found.append(group[0].method + (f" ({', '.join(settings[:_NAMED])}{more})" if settings else ""))
    return found


def compare_runs(
    runs: str | Path | Sequence[str | Path | StoredRun],
    *,
    names: Sequence[str] | None = None,
    split: str = "test",
    metric: str | None = None,
    planned: int | None = None,
    resamples: int = 1000,
) -> Table:
    """Configurations side by side, and the constant predictor, on one split.

    Every row but the first also has its difference from the first in ``metric`` (None: the protocol's own), with a
    95 % interval and p value of the paired bootstrap over clips. ``names``: one per configuration, in the order given.
    """
    groups = as_groups(runs)
    scored = [score_split(group, split, planned=planned, resamples=0) for group in groups]
    constant = baseline(groups[0], scored[0], split, resamples=0)
    return comparison_table(
        groups[0], scored, labels(groups, names), constant=constant, split=split, metric=metric, resamples=resamples
    )


def comparison_table(
    first: Group,
    scored: Sequence[SplitScores],
    names: Sequence[str],
    *,
    constant: Baseline | None,
    split: str,
    metric: str | None = None,
    resamples: int = 1000,
) -> Table:
    """The table of :func:`compare_runs` from scores at hand, those of ``first`` in front."""
    metric = metric or _main_metric(first[0])
    scorers = [scores.scorer for scores in scored]
    rows: list[dict[str, Number | str]] = [
        {"name": name, **_plain_cells(scores.cells)} for name, scores in zip(names, scored)
    ]
    notes = [note for scores in scored for note in scores.notes]
    if constant is None:
        notes.append("The constant predictor is left out: scores.json has no 'baseline'.")
    else:
        rows.append({"name": constant.name, **_plain_cells(constant.cells)})
        scorers.append(constant.scorer)
    for place in range(1, len(rows)):
        rows[place] |= _difference(scorers[0], scorers[place], metric, resamples, notes, str(rows[place]["name"]))
    keys = ordered(key for row in rows for key in row if key not in ("name", "p", "difference"))
    columns = [Column("name", "Configuration")]
    if any("difference" in row for row in rows):
        form = metric_column(metric)
        columns.append(Column("difference", f"Δ {form.title} [95 %]", None, form.decimals, form.scale, signed=True))
        columns.append(Column("p", "p"))
        notes.append(_difference_note(scorers[0], split, resamples))
    columns += [metric_column(key) for key in keys]
    unique = tuple(dict.fromkeys(notes))
    return Table(tuple(columns), tuple(Row(row) for row in rows), caption=f"Scores on {split}", notes=unique)


def _difference_note(scorer: SplitScorer | None, split: str, resamples: int) -> str:
    unit = "whole videos or speakers" if scorer is not None and scorer.groups is not None else "clips"
    return (
        f"Δ: the row minus the first row; paired bootstrap, {resamples} resamples of the {unit} of {split}; "
        "with several seeds, of the mean over seeds."
    )


def difference_table(
    first: SplitScores, second: SplitScores, *, names: tuple[str, str], split: str = "test", resamples: int = 1000
) -> Table:
    """Every metric of two configurations, with the paired difference, its 95 % interval and p value.

    Raises ``MoodalError`` where predictions are missing or do not speak of the same clips.
    """
    if first.scorer is None or second.scorer is None:
        raise MoodalError("The predictions of one side cannot be read; evaluate that run again.")
    keys = first.scorer.protocol.keys
    found = compare(second.scorer, first.scorer, keys=keys, resamples=resamples)
    rows = []
    for key in ordered(keys):
        form, result = metric_column(key), found[key]
        gap = Number((result.difference,), low=result.low, high=result.high, form=replace(form, signed=True))
        sides = {f"side{place}": _formed(side.cells[key], form) for place, side in enumerate((first, second))}
        rows.append(Row({"metric": form.title, **sides, "difference": gap, "p": _p_value(result.p_value, resamples)}))
    titles = {"metric": "Metric", "side0": names[0], "side1": names[1], "difference": "Difference [95 %]", "p": "p"}
    columns = tuple(Column(key, title) for key, title in titles.items())
    return Table(columns, tuple(rows), caption=f"{names[1]} minus {names[0]} on {split}")


def scores_table(scored: Mapping[str, SplitScores]) -> Table:
    """One row per metric, one column per split: mean ± deviation over seeds [95 % interval over clips]."""
    keys = ordered(key for scores in scored.values() for key in scores.cells)
    rows = []
    for key in keys:
        column = metric_column(key)
        cells = {split: _formed(scores.cells[key], column) for split, scores in scored.items() if key in scores.cells}
        arrow = {"high": " ↑", "low": " ↓", None: ""}[column.better]
        rows.append(Row({"metric": column.title + arrow, **cells}))
    columns = (Column("metric", "Metric"), *(Column(split, split) for split in scored))
    notes = tuple(note for scores in scored.values() for note in scores.notes)
    return Table(columns, tuple(rows), notes=notes)


def published_table(group: Group, scores: SplitScores, *, name: str) -> Table | None:
    """Ours beside the published numbers on this corpus, protocols as columns; None if nothing is published."""
    others = published(group[0].corpus)
    if not others:
        return None
    keys = ordered(key for row in others for key in row.scores)
    ours = {key: cell for key, cell in _plain_cells(scores.cells).items() if key in keys}
    rows = [Row({"name": f"{name} (ours)", **ours, **protocol_of(group), "source": "this run"})]
    rows += [published_row(row) for row in others]
    shown = [Column("name", "Method"), *(metric_column(key, marked=False) for key in keys)]
    shown += [Column(key, title) for key, title in PROTOCOL.items()]
    return Table(
        (*shown, Column("source", "Source")), tuple(rows), notes=tuple(dict.fromkeys(row.citation for row in others))
    )


def published_row(row: Published) -> Row:
    """A published row; it does not compete for the best value, its protocol being another."""
    scores = {key: Number((value,)) for key, value in row.scores.items()}
    return Row({"name": row.name, **scores, **row.protocol, "source": row.source}, competes=False)


def protocol_of(group: Group) -> dict[str, str]:
    """Our side of the protocol columns, read from data.json and scores.json."""
    run = group[0]
    text, explainer = part(run.data, "text"), part(run.data, "explainer")
    words = ", ".join(str(text[key]) for key in ("encoder", "mode") if text.get(key))
    limit = f", {text['max_tokens']} tokens" if text.get("max_tokens") else ""
    streams = [
        f"{name} {part(part(run.data, 'features'), name).get('width', '?')}"
        for name in ("audio", "vision")
        if name in part(run.data, "features")
    ]
    selection = part(run.scores, "selection")
    chosen = (
        f"best validation {metric_column(str(selection['metric'])).title.removesuffix(' %')}"
        if selection.get("metric")
        else "not recorded"
    )
    return {
        "text": f"{words}{limit}" or "none",
        "features": ", ".join(streams) or "none",
        "explanations": ", ".join(sorted({str(name) for name in explainer.values()})) or "none",
        "selection": chosen,
        "seeds": f"{len(group)} {'run' if len(group) == 1 else 'runs'}",
    }


def _difference(
    first: SplitScorer | None, other: SplitScorer | None, metric: str, resamples: int, notes: list[str], name: str
) -> dict[str, Number | str]:
    """The cells "difference" and "p" of a row; a sentence in ``notes`` where they cannot be had."""
    if first is None or other is None:
        notes.append(f"No difference is tested for {name}: its predictions, or those of the first row, are not stored.")
        return {}
    try:
        found = compare(other, first, keys=[metric], resamples=resamples)[metric]
    except (MoodalError, KeyError) as fault:
        notes.append(f"No difference is tested for {name}: {fault}")
        return {}
    gap = Number((found.difference,), low=found.low, high=found.high)
    return {"difference": gap, "p": _p_value(found.p_value, resamples)}


def _p_value(value: float, resamples: int) -> str:
    """As far as that many resamples can tell."""
    if value != value:
        return "not defined"
    return f"≤\N{NO-BREAK SPACE}{1 / (1 + resamples):.2g}" if value <= 1.5 / (1 + resamples) else f"{value:.3f}"


def _main_metric(run: StoredRun) -> str:
    """The metric that chose the epoch if the protocol has it, else the protocol's own."""
    chosen = part(run.scores, "selection").get("metric")
    if run.protocol is None:
        return str(chosen or "mae")
    protocol = protocol_named(run.protocol)
    return str(chosen) if chosen in protocol.keys else protocol.selection


def _plain_cells(cells: Mapping[str, Number]) -> dict[str, Number]:
    """Without intervals, which a table of many metrics has no room for."""
    return {key: Number(cell.values, cell.planned, note=cell.note) for key, cell in cells.items()}


def _formed(cell: Number, form: Column) -> Number:
    return replace(cell, form=form)
