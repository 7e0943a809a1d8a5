"""The picture of the README: how TEXT goes from a clip to a score, and what one run made of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from moodal.bench import plots, style
from moodal.bench.figures import shown_split
from moodal.bench.runs import StoredRun
from moodal.core.errors import MoodalError
from moodal.core.files import aside
from moodal.core.spec import Classification, Regression

_TEXT, _AUDIO, _VISION = (style.MODALITY_COLOURS[name] for name in ("text", "audio", "vision"))
_PLAIN = "#5b6472"
#: Heights of the three streams in the drawing.
_ROWS = {"text": 50.0, "audio": 30.0, "vision": 10.0}


def draw(run: str | Path | StoredRun, out: str | Path) -> Path:
    """Draw the picture of a finished run to ``out`` (.png or .svg) and return its path.

    Left the flow of data through TEXT, right prediction against target (or the confusion matrix) and the gate weights
    of the run. Raises ``MoodalError`` if the run has no predictions, or for another kind of file.
    """
    target = Path(out)
    if target.suffix not in (".png", ".svg"):
        raise MoodalError(f"{target} ends in '{target.suffix}'; the picture is written as .png or .svg.")
    stored = run if isinstance(run, StoredRun) else StoredRun.open(run)
    data = _drawn(stored, png=target.suffix == ".png")
    with aside(target) as temporary:
        temporary.write_bytes(data)
    return target


@style.styled
def _drawn(run: StoredRun, *, png: bool) -> bytes:
    figure = style.new_figure(13.2, 4.9)
    left, right = figure.subfigures(1, 2, width_ratios=(1.75, 1))
    _flow(left.subplots())
    _results(right, run)
    return style.png(figure) if png else style.svg(figure)


def _results(part: Any, run: StoredRun) -> None:
    """The run's predictions, and below them its gates where it has them."""
    split, task, gates = shown_split(run), run.task, run.gates(shown_split(run))
    table = run.predictions[split]
    rows = part.subplots(
        2 if gates is not None else 1, 1, squeeze=False, height_ratios=(1.5, 1) if gates is not None else (1,)
    )
    if isinstance(task, Classification):
        plots.confusion_into(rows[0][0], table.target, prediction=table.prediction, classes=task.classes)
    elif isinstance(task, Regression):
        plots.scatter_into(rows[0][0], table.target, prediction=table.prediction, low=task.low, high=task.high)
    if gates is not None and task is not None:
        bins = plots.label_bins(table.target, task)
        plots.gates_into(rows[1][0], gates[0], bins=bins, names=gates[1])
    kind = "unseen clips" if split == "test" else f"clips of {split}"
    rows[0][0].set_title(f"{run.corpus}: {int(np.sum(table.scorable))} {kind}")


def _flow(axes: Any) -> None:
    """Boxes and arrows in a field 100 wide and 61 high."""
    axes.set(xlim=(0, 100), ylim=(-3, 58))
    axes.set_axis_off()
    axes.set_title("TEXT: from a clip to a score, with reasons")
    _inputs(axes)
    _alignments(axes)
    _mixture(axes)
    _head(axes)


def _inputs(axes: Any) -> None:
    streams = (("text", "words,\ncomment", _TEXT), ("audio", "voice", _AUDIO), ("vision", "face", _VISION))
    for name, words, colour in streams:
        _box(axes, (1, _ROWS[name] - 3.5, 11, 7), words, colour=colour, strong=True)
        _arrow(axes, (12, _ROWS[name]), (17, _ROWS[name]), colour=colour)
        _box(axes, (17, _ROWS[name] - 3.5, 12, 7), "sequence\nencoder", colour=colour)
    for name, words, colour in (
        ("audio", "what is heard,\nin a sentence", _AUDIO),
        ("vision", "what is seen,\nin a sentence", _VISION),
    ):
        low = _ROWS[name] - 11.2
        _box(axes, (1, low, 15, 5.6), words, colour=colour, dashed=True, size=7.5)
        _arrow(axes, (16, low + 2.8), (35.5, _ROWS[name] - 3.6), colour=colour, bend=0.18)


def _alignments(axes: Any) -> None:
    for name, colour in (("audio", _AUDIO), ("vision", _VISION)):
        _arrow(axes, (29, _ROWS[name]), (33, _ROWS[name]), colour=colour)
        _box(axes, (33, _ROWS[name] - 3.5, 12.5, 7), "explanation\nalignment", colour=colour)
        _arrow(axes, (45.5, _ROWS[name]), (50, _ROWS[name]), colour=colour)
        _arrow(axes, (60, _ROWS[name]), (65.5, _ROWS[name]), colour=colour)
    _box(
        axes,
        (50, _ROWS["vision"] - 4, 10, 28),
        "temporal\nalignment\n\nvoice and\nface gate\neach other,\nin time",
        colour=_PLAIN,
    )
    _arrow(axes, (29, _ROWS["text"]), (65.5, _ROWS["text"]), colour=_TEXT)


def _mixture(axes: Any) -> None:
    axes.add_patch(_patch((65.5, 3, 17, 52.5), _PLAIN, fill="#f3f4f6"))
    axes.text(74, 52.3, "mixture of experts", ha="center", va="center", fontsize=8.5, weight="bold")
    _box(axes, (67.5, 43.2, 13, 5.6), "router: text only", colour=_TEXT, size=7.5)
    for place in range(5):
        used, height = place in (0, 2, 3), 33.2 - 6.6 * place
        _box(
            axes,
            (69.5, height, 9, 4.8),
            f"expert {place + 1}",
            colour=_TEXT if used else "#b6bcc6",
            size=7.5,
            faded=not used,
        )
        if used:
            _arrow(axes, (67.9, 43.2), (69.4, height + 2.4), colour=_TEXT, bend=0.12, width=0.9)
    axes.text(74, 4.6, "three of five take the clip", ha="center", fontsize=7, color=_PLAIN)


def _head(axes: Any) -> None:
    for name, colour in (("text", _TEXT), ("audio", _AUDIO), ("vision", _VISION)):
        _arrow(axes, (82.5, _ROWS[name]), (87.5, 30 + (_ROWS[name] - 30) * 0.25), colour=colour)
    _box(axes, (87.5, 23, 11.5, 14), "gates\nweigh the\nthree", colour=_PLAIN)
    _arrow(axes, (93.2, 23), (93.2, 15.5), colour=style.INK)
    _box(axes, (87.5, 9, 11.5, 6.5), "score", colour=style.INK, strong=True)


def _patch(place: tuple[float, float, float, float], colour: str, *, fill: str, dashed: bool = False) -> Any:
    from matplotlib.patches import FancyBboxPatch

    left, bottom, width, height = place
    line = (0, (3, 2)) if dashed else "-"
    return FancyBboxPatch(
        (left, bottom),
        width,
        height,
        boxstyle="round,pad=0,rounding_size=1.2",
        linewidth=1.1,
        edgecolor=colour,
        facecolor=fill,
        linestyle=line,
    )


def _box(
    axes: Any,
    place: tuple[float, float, float, float],
    words: str,
    *,
    colour: str,
    strong: bool = False,
    dashed: bool = False,
    faded: bool = False,
    size: float = 8.5,
) -> None:
    left, bottom, width, height = place
    axes.add_patch(_patch(place, colour, fill=colour if strong else "white", dashed=dashed))
    ink = "white" if strong else "#9aa1ad" if faded else style.INK
    weight = "bold" if strong else "normal"
    axes.text(
        left + width / 2,
        bottom + height / 2,
        words,
        ha="center",
        va="center",
        fontsize=size,
        color=ink,
        weight=weight,
        linespacing=1.15,
    )


def _arrow(
    axes: Any,
    start: tuple[float, float],
    end: tuple[float, float],
    *,
    colour: str,
    bend: float = 0.0,
    width: float = 1.4,
) -> None:
    axes.annotate(
        "", xy=end, xytext=start, arrowprops={
            "arrowstyle": "-|>", "color": colour, "linewidth": width, "shrinkA": 0, "shrinkB": 0, "mutation_scale": 9,
            "connectionstyle": f"arc3,rad={bend}",
        },
    )  # fmt: skip
