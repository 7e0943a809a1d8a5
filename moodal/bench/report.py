"""The report of a run: one HTML file made from run folders alone. Nothing is trained, no method or corpus is opened."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from moodal.bench import page as html
from moodal.bench.compare import (
    Group,
    as_groups,
    comparison_table,
    difference_table,
    labels,
    published_table,
    scores_table,
)
from moodal.bench.figures import routing_and_gates, run_plots, score_intervals
from moodal.bench.names import metric_column
from moodal.bench.page import Page
from moodal.bench.runs import StoredRun, part
from moodal.bench.scoring import SplitScores, baseline, score_split
from moodal.bench.worst import worst_clips
from moodal.core.errors import MoodalError
from moodal.core.files import write_text
from moodal.core.spec import Classification, Identification, Task

_LOG = logging.getLogger(__name__)

#: Splits of a report, in order.
REPORTED = ("valid", "test")


def report_run(
    runs: str | Path | Sequence[str | Path | StoredRun],
    out: str | Path,
    *,
    names: Sequence[str] | None = None,
    planned: int | None = None,
    resamples: int = 1000,
) -> Path:
    """Write the report of ``runs`` to ``out`` (an .html file, or a folder for report.html) and return its path.

    ``runs``: run folders or folders of them. Their first configuration is reported, the others are compared with it.
    ``names``: one per configuration; ``planned``: seeds that were to be run. A piece that is missing or damaged is
    left out with a sentence; only a path that holds no run raises ``DataError``.
    """
    groups = as_groups(runs)
    called = labels(groups, names)
    target = Path(out) if Path(out).suffix in (".html", ".htm") else Path(out) / "report.html"
    write_text(target, render(groups, called, planned=planned, resamples=resamples))
    _LOG.info("wrote %s", target)
    return target


def render(groups: Sequence[Group], names: Sequence[str], *, planned: int | None = None, resamples: int = 1000) -> str:
    """The HTML of a report on the first of ``groups``."""
    group, first = groups[0], groups[0][0]
    scored = {split: score_split(group, split, planned=planned, resamples=resamples) for split in REPORTED}
    page = Page(f"{first.method.upper()} on {first.corpus}", _lead(group))
    page.head += [html.facts(_headline(scored["test"]), big=True), html.facts(_facts(group, planned))]
    _add(page, "Scores", lambda: _scores(scored, group))
    _add(
        page,
        "Comparison",
        lambda: _comparison(groups, scored["test"], names=names, planned=planned, resamples=resamples),
    )
    _add(page, "Beside published numbers", lambda: _published(group, scored["test"], names[0]))
    _add(page, "Training and predictions", lambda: run_plots(group))
    _add(page, "Experts and gates", lambda: routing_and_gates(first))
    _add(page, "The ten largest errors", lambda: worst_clips(first))
    _add(page, "How it was made", lambda: _made(group))
    _add(page, "Make it again", lambda: _again(group))
    return page.render()


def _add(page: Page, title: str, make: Callable[[], list[str]]) -> None:
    """A section, or a sentence in its place: one damaged piece must not cost the reader all the others."""
    parts = page.section(title)
    try:
        parts += make()
    except MoodalError as fault:
        parts.append(html.absent(f"Left out: {fault}"))
    except Exception as fault:
        _LOG.exception("section %s of the report failed", title)
        parts.append(
            html.absent(f"Left out, because making it failed ({type(fault).__name__}: {fault}); please report this.")
        )


def _lead(group: Group) -> str:
    first = group[0]
    seeds = ", ".join(str(run.seed) for run in group)
    started = str(first.environment.get("started", ""))[:10]
    words = f"{'Seed' if len(group) == 1 else 'Seeds'} {seeds}"
    return f"{words} · trained {started}" if started else words


def _headline(scores: SplitScores) -> list[tuple[str, str]]:
    """The first numbers of the test split."""
    shown = []
    for key in [
        key
        for key in (
            "mae",
            "corr",
            "acc2_non0",
            "acc7",
            "accuracy",
            "uar",
            "weighted_f1",
            "ccc",
            "rank1",
            "rank10",
            "map",
        )
        if key in scores.cells
    ][:4]:
        column, cell = metric_column(key), scores.cells[key]
        value = f"{cell.mean * column.scale:.{column.decimals}f}" if cell.mean == cell.mean else "not defined"
        spread = f" ± {cell.deviation * column.scale:.{column.decimals}f}" if cell.deviation is not None else ""
        shown.append((f"test {column.title}", value + spread))
    return shown


def _facts(group: Group, planned: int | None) -> list[tuple[str, str]]:
    first = group[0]
    selection, sizes = part(first.scores, "selection"), part(first.data, "sizes")
    missing = f" of {planned} planned" if planned is not None and planned > len(group) else ""
    return [
        ("Method", first.method),
        ("Corpus", first.corpus),
        ("Task", _task(first.task)),
        ("Metric protocol", first.protocol or "not recorded"),
        ("Epoch chosen by", _selection(selection)),
        ("Seeds", f"{len(group)}{missing}"),
        ("Clips", ", ".join(f"{name} {size}" for name, size in sizes.items()) or "not recorded"),
        ("Parameters", _grouped(first.environment.get("parameters"))),
    ]


def _task(task: Task | None) -> str:
    if task is None:
        return "unknown"
    if isinstance(task, Classification):
        return f"{len(task.classes)} classes"
    if isinstance(task, Identification):
        return f"whose picture it is, trained on {task.identities} people"
    return f"{task.low:g} to {task.high:g}"


def _selection(selection: Mapping[str, object]) -> str:
    if not selection.get("metric"):
        return "not recorded"
    direction = {"higher": "highest", "high": "highest", "lower": "lowest", "low": "lowest"}.get(
        str(selection.get("better")), "best"
    )
    return f"{direction} validation {metric_column(str(selection['metric'])).title.removesuffix(' %')}"


def _grouped(value: object) -> str:
    return f"{value:,}".replace(",", " ") if isinstance(value, int) else "not recorded"


def _scores(scored: Mapping[str, SplitScores], group: Group) -> list[str]:
    shown = {split: scores for split, scores in scored.items() if scores.cells}
    table = scores_table({split: scores for split, scores in (shown or scored).items()})
    parts = [html.absent(f"Seed {run.seed} has no scores: {_unfinished(run)}") for run in group if not run.finished]
    parts += [table.html()] if shown else [*map(html.absent, table.notes)]
    spread = "mean ± standard deviation over seeds, " if len(group) > 1 else ""
    explanation = (
        f"{spread}[95 % bootstrap interval over clips]. All numbers come from the weights of the chosen epoch."
    )
    return parts + ([html.note(explanation[0].upper() + explanation[1:])] if shown else [])


def _unfinished(run: StoredRun) -> str:
    return run.missing.get("scores.json", "scores.json is empty.")


def _comparison(
    groups: Sequence[Group], first: SplitScores, *, names: Sequence[str], planned: int | None, resamples: int
) -> list[str]:
    scored = [first, *(score_split(group, "test", planned=planned, resamples=resamples) for group in groups[1:])]
    constant = baseline(groups[0], first, "test", resamples=resamples)
    table = comparison_table(groups[0], scored, names, constant=constant, split="test", resamples=resamples)
    copies = html.folded("This table as Markdown and LaTeX", html.code(table.markdown()), html.code(table.latex()))
    rows = [(name, scores.cells) for name, scores in zip(names, scored)]
    parts = [
        table.html(),
        copies,
        *score_intervals(rows if constant is None else [*rows, (constant.name, constant.cells)]),
    ]
    for name, scores in zip(names[1:], scored[1:]):
        parts += _differences(first, scores, (names[0], name), resamples)
    return parts


def _differences(first: SplitScores, second: SplitScores, names: tuple[str, str], resamples: int) -> list[str]:
    try:
        table = difference_table(first, second, names=names, resamples=resamples)
    except MoodalError as fault:
        return [html.absent(f"{names[1]} is not compared metric by metric: {fault}")]
    return [html.folded(f"Every metric: {names[1]} against {names[0]}", table.html())]


def _published(group: Group, scores: SplitScores, name: str) -> list[str]:
    table = published_table(group, scores, name=name)
    if table is None:
        return [html.note(f"No published number for {group[0].corpus} is stored (bench/published.yaml).")]
    words = "Protocols differ, so this is no ranking: read the columns on the right before the numbers."
    return [html.paragraph(words), f"<div class='wide'>{table.html()}</div>"]


def _made(group: Group) -> list[str]:
    first, parts = group[0], []
    for title, piece, file in (
        (
            "Features, text and explanations",
            {key: first.data[key] for key in ("language", "text", "features", "explainer") if key in first.data},
            "data.json",
        ),
        ("Source files and checksums", part(first.data, "source"), "data.json"),
        ("Environment", {key: value for key, value in first.environment.items()}, "environment.json"),
    ):
        if piece:
            parts += [f"<h3>{html.escape(title)}</h3>", html.settings(piece)]
        elif file in first.missing:
            parts.append(html.absent(first.missing[file]))
    parts.append(html.folded("All settings of this run", html.settings(first.config)))
    return parts


def _again(group: Group) -> list[str]:
    first = group[0]
    seeds = ",".join(str(run.seed) for run in group)
    commit = first.environment.get("commit")
    recipe, config = shlex.quote(f"{first.corpus}/{first.method}"), shlex.quote(str(first.path / "config.yaml"))
    lines = [
        f"moodal train {recipe} --config {config} seed={seeds}",
        f"moodal report {shlex.quote(str(first.path.parent))}",
    ]
    clean = "" if first.environment.get("clean", True) else " with changes that were not committed"
    words = f"The code was at commit {commit}{clean}. " if commit else ""
    words += "The settings are complete: they name every value, defaults included."
    return [html.paragraph(words), html.code("\n".join(lines))]
