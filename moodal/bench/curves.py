"""Curves of scores against a rate, with bands over seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from moodal.bench.names import metric_column
from moodal.bench.style import COLOURS, FAINT, new_figure, png, styled, svg
from moodal.bench.tables import Number
from moodal.core.errors import check

#: Beyond the colours there are, lines differ by their dashes.
_DASHES = ("-", (0, (5, 1.5)), (0, (1.5, 1.5)), (0, (6, 1.5, 1.5, 1.5)))
#: Figures side by side, and names side by side in the legend.
_ACROSS, _NAMES = 3, 4


@dataclass(frozen=True)
class Line:
    """One configuration: ``cells`` by metric, a number for each of ``rates``."""

    name: str
    rates: Sequence[float]
    cells: Mapping[str, Sequence[Number]] = field(default_factory=dict)


@styled
def rate_curves(
    lines: Sequence[Line], *, keys: Sequence[str], label: str, constant: Mapping[str, float]
) -> dict[str, bytes]:
    """{"svg", "png"}: a panel per metric, a line per configuration, a band of one deviation over seeds to either side.

    ``label``: what the rate is; ``constant``: scores of the constant prediction, drawn dashed. Raises ``MoodalError``
    if there is no line.
    """
    check(bool(lines) and bool(keys), "There is no score to draw; give at least one run.")
    across = min(_ACROSS, len(keys))
    down = -(-len(keys) // across)
    names = -(-(len(lines) + bool(constant)) // _NAMES)
    figure = new_figure(2.9 * across + 0.4, 2.35 * down + 0.22 * names + 0.2)
    grid = figure.subplots(down, across, squeeze=False)
    for place, axes in enumerate(grid.flat):
        if place < len(keys):
            _panel(axes, lines, key=keys[place], constant=constant.get(keys[place]))
            axes.set_xlabel(label if place >= len(keys) - across else "")
        else:
            axes.set_axis_off()
    handles, titles = grid[0][0].get_legend_handles_labels()
    figure.legend(handles, titles, loc="outside lower center", ncols=min(_NAMES, len(titles)))
    return {"svg": svg(figure), "png": png(figure)}


def _panel(axes: Any, lines: Sequence[Line], *, key: str, constant: float | None) -> None:
    column = metric_column(key)
    for place, line in enumerate(lines):
        means = column.scale * np.array([cell.mean for cell in line.cells[key]])
        spread = column.scale * np.array([cell.deviation or 0.0 for cell in line.cells[key]])
        colour, dash = COLOURS[place % len(COLOURS)], _DASHES[place // len(COLOURS) % len(_DASHES)]
        axes.plot(line.rates, means, color=colour, linestyle=dash, marker=".", markersize=4, label=line.name)
        axes.fill_between(line.rates, means - spread, means + spread, color=colour, alpha=0.15, linewidth=0)
    if constant is not None and np.isfinite(constant):
        axes.axhline(column.scale * constant, color=FAINT, linewidth=1, linestyle=":", label="constant prediction")
    axes.set(title=column.title + {"high": " ↑", "low": " ↓", None: ""}[column.better])
