"""The clips with the largest errors, with what was said and how it was explained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from moodal.bench import page as html
from moodal.bench.figures import shown_split
from moodal.bench.runs import ClipText, StoredRun
from moodal.bench.style import MODALITY_COLOURS
from moodal.core.spec import Classification

#: How many clips are shown.
COUNT = 10


@dataclass(frozen=True)
class WorstClip:
    """One clip: its row in the split, its error (as in :func:`largest_errors`), and its texts."""

    row: int
    id: str
    error: float
    target: str
    prediction: str
    text: ClipText | None


def largest_errors(run: StoredRun, split: str, *, count: int = COUNT) -> list[WorstClip]:
    """The ``count`` labelled clips of ``split`` with the largest errors, largest first; ties in file order.

    Numbers: |prediction - target|. Classes: 1 minus the probability given to the true class, wrong ones only (without
    probabilities every wrong clip has error 1).
    """
    table, task = run.predictions[split], run.task
    rows = np.flatnonzero(table.scorable)
    if isinstance(task, Classification):
        rows = rows[table.prediction[rows] != table.target[rows]]
        given = None if table.probabilities is None else table.probabilities[rows, table.target[rows].astype(np.int64)]
        errors = np.ones(len(rows)) if given is None else 1 - np.nan_to_num(given)
    else:
        errors = np.abs(table.prediction[rows] - table.target[rows])
    order = np.argsort(-errors, kind="stable")[:count]
    return [
        WorstClip(
            row=int(rows[place]),
            id=table.ids[rows[place]],
            error=float(errors[place]),
            target=_shown(table.target[rows[place]], run),
            prediction=_shown(table.prediction[rows[place]], run),
            text=run.texts.get((split, table.ids[rows[place]])),
        )
        for place in order
    ]


def worst_clips(run: StoredRun) -> list[str]:
    """The section of a report."""
    split = shown_split(run)
    clips = largest_errors(run, split)
    if not clips:
        return [html.paragraph(f"Every clip of {split} was classified correctly.")]
    parts = [html.note(f"Seed {run.seed}, {split}. {_measure(run)}")]
    if "texts.jsonl" in run.missing:
        parts.append(html.absent(f"Texts are left out: {run.missing['texts.jsonl']}"))
    return parts + [_card(run, split, clip) for clip in clips]


def _measure(run: StoredRun) -> str:
    if isinstance(run.task, Classification):
        return "Wrongly classified clips, those first whose true class was given the least probability."
    return "Labelled clips by distance between prediction and target."


def _shown(value: float, run: StoredRun) -> str:
    task = run.task
    return task.classes[int(value)] if isinstance(task, Classification) else f"{value:+.2f}"


def _card(run: StoredRun, split: str, clip: WorstClip) -> str:
    word = "1 − p(true)" if isinstance(run.task, Classification) else "error"  # noqa: RUF001
    head = (
        f"<strong>target {html.escape(clip.target)}</strong><strong>prediction {html.escape(clip.prediction)}</strong>"
        f"<span>{word} {clip.error:.2f}</span><code>{html.escape(clip.id)}</code>"
    )
    said = clip.text.text if clip.text is not None else ""
    quote = f"<q>{html.escape(said)}</q>" if said else "<p class='note'>No transcript is stored for this clip.</p>"
    explained = _explained(clip.text.explanations, clip.text.explained_by) if clip.text is not None else ""
    gates = run.gates(split)
    strip = (
        ""
        if gates is None
        else html.gate_strip(gates[1], [float(weight) for weight in gates[0][clip.row]], MODALITY_COLOURS)
    )
    return f"<article class='clip'><header>{head}</header>{quote}{explained}{strip}</article>"


def _explained(explanations: Mapping[str, str], explained_by: Mapping[str, str]) -> str:
    order = {"audio": 0, "vision": 1, "comment": 2}
    rows = "".join(
        f"<dt>{html.escape(role)}{html.escape(f' ({explained_by[role]})' if explained_by.get(role) else '')}</dt>"
        f"<dd>{html.escape(explanations[role])}</dd>"
        for role in sorted(explanations, key=lambda role: (order.get(role, 9), role))
    )
    return f"<dl>{rows}</dl>" if rows else ""
