"""The figures of a report: which plot a run folder can fill, and a sentence where it cannot."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from moodal.bench import page as html
from moodal.bench import plots
from moodal.bench.names import ordered
from moodal.bench.runs import StoredRun, part
from moodal.bench.tables import Number
from moodal.core.errors import MoodalError
from moodal.core.spec import Classification, Regression

#: Split whose clips are shown; the first one that the run has predictions for.
_SHOWN = ("test", "valid")


def shown_split(run: StoredRun) -> str:
    """The split whose clips are plotted. Raises ``MoodalError`` if no clip with a label was predicted."""
    run.require("predictions.csv")
    for split in _SHOWN:
        if split in run.predictions and bool(run.predictions[split].scorable.any()):
            return split
    raise MoodalError(
        f"{run.path / 'predictions.csv'} holds no clip of {' or '.join(_SHOWN)} with a label and a prediction."
    )


def run_plots(group: Sequence[StoredRun]) -> list[str]:
    """Training curves of all seeds, and predictions of the first seed."""
    return [
        *_guarded("training curves", lambda: _curves(group)),
        *_guarded("predictions", lambda: _predictions(group[0])),
    ]


def routing_and_gates(run: StoredRun) -> list[str]:
    """Which expert took which clip, and the weights of the modalities."""
    if "inspection.safetensors" in run.missing:
        return [html.absent(f"Routing and gates are left out: {run.missing['inspection.safetensors']}")]
    return [*_guarded("routing", lambda: _routing(run)), *_guarded("gates", lambda: _gates(run))]


def score_intervals(rows: Sequence[tuple[str, Mapping[str, Number]]]) -> list[str]:
    """Bars of all metrics that a row has with an interval."""
    keys = ordered({key for _, cells in rows for key, cell in cells.items() if cell.low is not None})
    if not keys:
        return []
    caption = (
        "Scores on test: mean over seeds (dot), each seed (tick), 95 % bootstrap interval over clips (bar). "
        "Arrows: which way is better."
    )
    return _guarded("score intervals", lambda: [html.figure(plots.interval_bars(rows, keys=keys), caption=caption)])


def _guarded(name: str, make: Callable[[], list[str]]) -> list[str]:
    try:
        return make()
    except MoodalError as fault:
        return [html.absent(f"The plot of {name} is left out: {fault}")]


def _curves(group: Sequence[StoredRun]) -> list[str]:
    histories = [(f"seed {run.seed}", run.history) for run in group if run.history.get("epoch")]
    if not histories:
        group[0].require("history.csv")
        raise MoodalError("history.csv holds no epoch; the run was imported or never trained.")
    selection = part(group[0].scores, "selection")
    drawn = plots.training_curves(
        histories, metric=_curve_metric(group[0]), chosen=[_chosen(run) for run in group if run.history.get("epoch")]
    )
    rule = (
        f" Dots: the epoch kept, by {selection['metric']} on valid."
        if selection.get("metric")
        else " Dots: the epoch kept."
    )
    which = " of each seed" if len(group) > 1 else ""
    return [html.figure(drawn, caption=f"Left: training loss{which}, parts before they are weighted.{rule}")]


def _curve_metric(run: StoredRun) -> str | None:
    """The metric that chose the epoch, or the first one recorded."""
    metric = part(run.scores, "selection").get("metric")
    recorded = [key.removeprefix("valid_") for key in run.history if key.startswith("valid_")]
    return str(metric) if metric in recorded else next(iter(recorded), None)


def _chosen(run: StoredRun) -> tuple[str, float] | None:
    selection = part(run.scores, "selection")
    epoch = selection.get("epoch")
    return (str(selection.get("stage")), float(epoch)) if isinstance(epoch, (int, float)) else None


def _predictions(run: StoredRun) -> list[str]:
    split, task = shown_split(run), run.task
    table = run.predictions[split]
    caption = f"Seed {run.seed}, {split}."
    if isinstance(task, Classification):
        drawn = plots.confusion_matrix(table.target, table.prediction, classes=task.classes)
        return [
            html.figure(
                drawn, caption=f"{caption} Share of the true class (colour, first line) and clips (second line)."
            )
        ]
    low, high = (
        (task.low, task.high)
        if isinstance(task, Regression)
        else (float(np.nanmin(table.target)), float(np.nanmax(table.target)))
    )
    drawn = plots.prediction_scatter(table.target, table.prediction, low=low, high=high)
    return [html.figure(drawn, caption=f"{caption} Brighter: more clips nearby. Dashed: perfect predictions.")]


def _routing(run: StoredRun) -> list[str]:
    split, task = shown_split(run), run.task
    weights = run.inspected(split, "routing")
    if weights is None or task is None:
        raise MoodalError("the run recorded no routing; this method or setting has no experts.")
    drawn = plots.routing_map(weights, run.predictions[split].target, task=task)
    caption = (
        f"Seed {run.seed}, {split}. Which expert took which clip: above, each clip is a column, in order of label, "
        "darker is more weight; below, the mean weight in per cent of each expert by label."
    )
    return [html.figure(drawn, caption=caption)]


def _gates(run: StoredRun) -> list[str]:
    split, task = shown_split(run), run.task
    found = run.gates(split)
    if found is None or task is None:
        raise MoodalError("the run recorded no gate weights; this method or setting has no gates.")
    drawn = plots.gate_boxes(found[0], run.predictions[split].target, task=task, names=found[1])
    caption = (
        f"Seed {run.seed}, {split}. Share of each modality in the fused summary: quartiles, whiskers from 5 to 95 %, "
        "dots are clips."
    )
    return [html.figure(drawn, caption=caption)]
