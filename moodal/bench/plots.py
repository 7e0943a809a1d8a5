"""The plots of a report, each a function from arrays to SVG bytes. Nothing here reads files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from moodal.bench.names import metric_column
from moodal.bench.style import COLOURS, FAINT, GRID, INK, MAP, MODALITY_COLOURS, new_figure, styled, svg
from moodal.bench.tables import Number
from moodal.core.errors import MoodalError, check
from moodal.core.spec import Classification, Identification, Task

Floats = npt.NDArray[np.float64]
History = Mapping[str, tuple[Any, ...]]

#: A legend that fits beside a title.
_TIGHT = {"handlelength": 1.0, "columnspacing": 1.0, "handletextpad": 0.5}
#: Columns of history.csv that are no part of the loss.
_NOT_PARTS = ("stage", "epoch", "seconds", "loss", "rate", "best")


@dataclass(frozen=True)
class Bins:
    """Clips by label: ``place`` (N,) the bin of each clip, -1 where unlabelled; ``names`` of the bins in order."""

    place: npt.NDArray[np.int64]
    names: tuple[str, ...]

    @property
    def filled(self) -> list[int]:
        """The bins that hold a clip."""
        return [number for number in range(len(self.names)) if (self.place == number).any()]


def label_bins(target: Floats, task: Task) -> Bins:
    """The classes; for a wide scale the nearest whole number; for a narrow one five equal parts."""
    labelled = ~np.isnan(target)
    place = np.full(len(target), -1, dtype=np.int64)
    if isinstance(task, Classification):
        place[labelled] = target[labelled].astype(np.int64)
        return Bins(place, task.classes)
    if isinstance(task, Identification):
        raise MoodalError("Pictures that are ranked have no label to sort them by.")
    if task.high - task.low >= 4:
        centres = np.arange(np.ceil(task.low), np.floor(task.high) + 1)
        nearest = np.clip(np.rint(target[labelled]), centres[0], centres[-1]) - centres[0]
        place[labelled] = nearest.astype(np.int64)
        return Bins(place, tuple(f"{centre:+.0f}" if centre else "0" for centre in centres))
    edges = np.linspace(task.low, task.high, 6)
    place[labelled] = np.clip(np.searchsorted(edges, target[labelled], side="right") - 1, 0, 4)
    return Bins(place, tuple(f"{low:.2g} to {high:.2g}" for low, high in pairwise(edges)))


@styled
def training_curves(
    histories: Sequence[tuple[str, History]], *, metric: str | None, chosen: Sequence[tuple[str, float] | None] = ()
) -> bytes:
    """Losses and the selection metric by epoch, one line per seed; a dot marks the epoch that was kept.

    ``histories``: (name, columns of history.csv); ``metric``: validation metric without its prefix, or None;
    ``chosen``: (stage, epoch) for each history, None where that is unknown. Loss parts are those of the first history.
    """
    check(bool(histories), "There is no history to plot; give at least one.")
    figure = new_figure(8.6, 3.1)
    losses, scores = figure.subplots(1, 2)
    _loss_lines(losses, histories)
    column = f"valid_{metric}"
    drawn = metric is not None and any(column in history for _, history in histories)
    for place, (name, history) in enumerate(histories if drawn else ()):
        if column in history:
            colour, x = COLOURS[place % len(COLOURS)], _epochs(history)
            scores.plot(x, history[column], color=colour, label=name, marker="." if len(x) < 40 else None)
            _mark_best(
                scores, history, history[column], colour=colour, chosen=chosen[place] if place < len(chosen) else None
            )
    title = metric_column(metric or "").title.removesuffix(" %")
    scores.set(title=f"Validation {title}" if drawn else "No validation metric was recorded", xlabel="epoch")
    if drawn:
        scores.legend(loc="best")
    for axes in (losses, scores):
        axes.xaxis.get_major_locator().set_params(integer=True)
        _mark_stages(axes, histories[0][1])
    return svg(figure)


def _loss_lines(axes: Any, histories: Sequence[tuple[str, History]]) -> None:
    for place, (name, history) in enumerate(histories):
        if "loss" in history:
            label = "total" if len(histories) == 1 else f"total, {name}"
            axes.plot(_epochs(history), history["loss"], color=COLOURS[place % len(COLOURS)], label=label)
    first = histories[0][1]
    parts = [key for key in first if key not in _NOT_PARTS and not key.startswith(("valid_", "rate"))]
    for place, part in enumerate(parts):
        axes.plot(
            _epochs(first),
            first[part],
            linestyle=(0, (4, 1.5 + place % 3)),
            linewidth=1.2,
            color=COLOURS[-1 - place % 4],
            label=part,
        )
    axes.set(title="Training loss and its parts", xlabel="epoch")
    if axes.lines:
        axes.legend(loc="best")


def _epochs(history: History) -> list[float]:
    """Epoch numbers as recorded; counted through where there are several stages."""
    single = len(set(history["stage"])) <= 1
    return list(history["epoch"]) if single else [float(place + 1) for place in range(len(history["epoch"]))]


def _mark_best(
    axes: Any, history: History, values: Sequence[float], *, colour: str, chosen: tuple[str, float] | None
) -> None:
    rows = list(zip(history["stage"], history["epoch"]))
    flagged = [place for place, flag in enumerate(history.get("best", ())) if flag == 1]
    place = rows.index(chosen) if chosen in rows else (flagged[-1] if flagged else None)
    if place is not None and np.isfinite(values[place]):
        axes.plot(
            _epochs(history)[place], values[place], "o", color=colour, markersize=8, markeredgecolor="white", zorder=5
        )
        axes.annotate(f"epoch {history['epoch'][place]:.0f}", (_epochs(history)[place], values[place]), xytext=(0, 8),
                      textcoords="offset points", ha="center", fontsize=8, color=colour)  # fmt: skip


def _mark_stages(axes: Any, history: History) -> None:
    """A line and a name where a stage begins, on axes that show something."""
    stages = history["stage"]
    starts = [place for place in range(1, len(stages)) if stages[place] != stages[place - 1]]
    for place in starts if axes.lines else []:
        axes.axvline(place + 0.5, color=FAINT, linewidth=0.8, linestyle=":")
    for place in [0, *starts] if starts and axes.lines else []:
        corner = axes.get_xaxis_transform()
        axes.text(place + 0.7, 0.02, stages[place], transform=corner, fontsize=7, color=FAINT, in_layout=False)


@styled
def prediction_scatter(target: Floats, prediction: Floats, *, low: float, high: float) -> bytes:
    """Prediction against target, (N,) each, coloured by how many clips lie near; the line of perfect predictions."""
    figure = new_figure(4.6, 4.2)
    scatter_into(figure.subplots(), target, prediction=prediction, low=low, high=high)
    return svg(figure)


def scatter_into(axes: Any, target: Floats, *, prediction: Floats, low: float, high: float) -> None:
    """Draw :func:`prediction_scatter` into given axes."""
    keep = np.isfinite(target) & np.isfinite(prediction)
    x, y = target[keep], prediction[keep]
    bottom, top = (min(low, y.min(initial=low)), max(high, y.max(initial=high)))
    margin = 0.04 * (high - low)
    density = _density(x, y)
    order = np.argsort(density, kind="stable")
    axes.plot([low, high], [low, high], color=INK, linewidth=1, linestyle="--", label="perfect")
    axes.scatter(x[order], y[order], c=density[order], cmap="viridis", s=14, alpha=0.85, linewidths=0, rasterized=True)
    if len(x) > 2 and np.ptp(x) > 0:
        slope, start = np.polyfit(x, y, 1)
        axes.plot(
            [low, high],
            [start + slope * low, start + slope * high],
            color=COLOURS[1],
            linewidth=1.4,
            label=f"fit, slope {slope:.2f}",
        )
    if low < 0 < high:
        axes.axhline(0, color="#c0c4cc", linewidth=0.9)
        axes.axvline(0, color="#c0c4cc", linewidth=0.9)
    axes.set(xlim=(low - margin, high + margin), ylim=(bottom - margin, top + margin))
    axes.set(xlabel="target", ylabel="prediction", title=f"Prediction against target ({len(x)} clips)")
    axes.legend(loc="upper left")


def _density(x: Floats, y: Floats) -> Floats:
    """(N,) how many points lie near each, from a smoothed 40 x 40 histogram: linear in N."""
    from scipy.ndimage import gaussian_filter

    if len(x) == 0 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return np.ones_like(x)
    counts, right, up = np.histogram2d(x, y, bins=40)
    smooth = gaussian_filter(counts, 1.5)
    row = np.clip(np.searchsorted(right, x, side="right") - 1, 0, 39)
    column = np.clip(np.searchsorted(up, y, side="right") - 1, 0, 39)
    return smooth[row, column]


@styled
def confusion_matrix(target: Floats, prediction: Floats, *, classes: Sequence[str]) -> bytes:
    """Counts of predicted classes for each true class, (N,) class numbers; colour is the share of the row."""
    size = max(4.2, 0.62 * len(classes) + 1.8)
    figure = new_figure(size + 0.7, size)
    confusion_into(figure.subplots(), target, prediction=prediction, classes=classes)
    return svg(figure)


def confusion_into(axes: Any, target: Floats, *, prediction: Floats, classes: Sequence[str]) -> None:
    """Draw :func:`confusion_matrix` into given axes."""
    keep = np.isfinite(target) & np.isfinite(prediction)
    counts = np.zeros((len(classes), len(classes)), dtype=np.int64)
    np.add.at(counts, (target[keep].astype(np.int64), prediction[keep].astype(np.int64)), 1)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    _heat(
        axes, shares, [[f"{share:.0%}\n{count}" for share, count in zip(*row)] for row in zip(shares, counts)], top=1.0
    )
    axes.set(xlabel="predicted", ylabel="true", title=f"True and predicted classes ({int(keep.sum())} clips)")
    _ticks(
        axes, [f"{name}" for name in classes], [f"{name} ({total})" for name, total in zip(classes, counts.sum(axis=1))]
    )


def _heat(axes: Any, values: Floats, texts: Sequence[Sequence[str]] | None, *, top: float) -> None:
    """An image of ``values`` (rows, columns) from 0 to ``top`` with texts readable on any shade."""
    axes.imshow(values, cmap=MAP, vmin=0, vmax=top, aspect="auto", interpolation="nearest")
    axes.grid(visible=False)
    for row, cells in enumerate(texts or ()):
        for column, cell in enumerate(cells):
            colour = "white" if values[row, column] > 0.55 * top else INK
            axes.text(column, row, cell, ha="center", va="center", color=colour, fontsize=7.5)


def _ticks(axes: Any, bottom: Sequence[str], left: Sequence[str]) -> None:
    widest = max((len(line) for name in bottom for line in name.split("\n")), default=0)
    crowded = widest * len(bottom) > 48
    axes.set_xticks(range(len(bottom)), bottom, rotation=35 if crowded else 0, ha="right" if crowded else "center")
    axes.set_yticks(range(len(left)), left)


@styled
def routing_map(weights: Floats, target: Floats, *, task: Task) -> bytes:
    """Which expert took which clip, for router weights (N, layers, experts): per layer, above, every clip in the order
    of its label, and below, the mean weight of each expert by label (a column sums to 100 %)."""
    check(weights.ndim == 3, f"Routing has shape {weights.shape}; (clips, layers, experts) was expected.")
    bins = label_bins(target, task)
    order = np.lexsort((np.arange(len(target)), np.where(np.isnan(target), np.inf, target)))
    order = order[~np.isnan(target[order])]
    layers, experts = weights.shape[1:]
    filled = bins.filled
    names = [f"{bins.names[number]}\n({(bins.place == number).sum()})" for number in filled]
    figure = new_figure(max(5.0, min(13.0, 0.5 + layers * max(2.9, 0.52 * len(filled) + 0.6))), 1.7 + 0.42 * experts)
    grid = figure.subplots(2, layers, squeeze=False, height_ratios=(1, 2))
    for layer in range(layers):
        shares = (
            np.array([weights[bins.place == number, layer].mean(axis=0) for number in filled]).reshape(-1, experts).T
        )
        above, below = grid[0][layer], grid[1][layer]
        above.imshow(
            weights[order, layer].T, cmap=MAP, vmin=0, vmax=1, aspect="auto", interpolation="nearest", rasterized=True
        )
        above.grid(visible=False)
        above.set(
            title=f"Layer {layer + 1}", xticks=[], yticks=range(experts), xlabel="clips, by label" if layer == 0 else ""
        )
        _heat(
            below,
            shares,
            [[f"{100 * share:.0f}" for share in row] for row in shares],
            top=max(0.5, float(shares.max(initial=0))),
        )
        _ticks(below, names, [f"{number + 1}" for number in range(experts)])
        above.set_yticklabels([f"{number + 1}" for number in range(experts)])
        below.set_xlabel("class (clips)" if isinstance(task, Classification) else "label (clips)")
    for row in (0, 1):
        grid[row][0].set_ylabel("expert")
    return svg(figure)


@styled
def gate_boxes(gates: Floats, target: Floats, *, task: Task, names: Sequence[str]) -> bytes:
    """Gate weights (N, M) of M named modalities by label: a box per modality and bin, every clip a dot.

    Boxes are quartiles, whiskers go from 5 to 95 %.
    """
    bins = label_bins(target, task)
    figure = new_figure(max(6.2, min(12.0, 1.5 + 0.95 * len(bins.filled))), 3.2)
    gates_into(figure.subplots(), gates, bins=bins, names=names)
    return svg(figure)


def gates_into(axes: Any, gates: Floats, *, bins: Bins, names: Sequence[str]) -> None:
    """Draw :func:`gate_boxes` into given axes."""
    from matplotlib.patches import Patch

    filled = bins.filled
    width = 0.8 / len(names)
    for part, name in enumerate(names):
        colour = MODALITY_COLOURS.get(name, COLOURS[part % len(COLOURS)])
        places = [column + (part - (len(names) - 1) / 2) * width for column in range(len(filled))]
        groups = [gates[bins.place == number, part] for number in filled]
        groups = [group[np.isfinite(group)] for group in groups]
        for place, group in zip(places, groups):
            spread = np.random.default_rng(0).uniform(-0.3, 0.3, len(group)) * width
            axes.plot(place + spread, group, ".", color=colour, alpha=0.25, markersize=2.5, rasterized=True, zorder=1)
        if groups:
            axes.boxplot(groups, positions=places, widths=width * 0.78, **_box_look(colour))
    handles = [
        Patch(facecolor=MODALITY_COLOURS.get(name, COLOURS[part % len(COLOURS)]), alpha=0.6, label=name)
        for part, name in enumerate(names)
    ]
    axes.legend(
        handles=handles, loc="lower right", bbox_to_anchor=(1.0, 0.98), borderaxespad=0.2, ncols=len(names), **_TIGHT
    )
    labels = [f"{bins.names[number]}\n({(bins.place == number).sum()})" for number in filled]
    axes.set_xticks(range(len(filled)), labels)
    axes.set(title="Gates by label", ylabel="weight", ylim=(-0.02, 1.02), xlim=(-0.6, len(filled) - 0.4))
    axes.grid(visible=False, axis="x")


def _box_look(colour: str) -> dict[str, Any]:
    return {
        "whis": (5, 95),
        "showfliers": False,
        "patch_artist": True,
        "manage_ticks": False,
        "boxprops": {"facecolor": colour, "alpha": 0.45, "edgecolor": colour},
        "medianprops": {"color": INK, "linewidth": 1.4},
        "whiskerprops": {"color": colour},
        "capprops": {"color": colour},
    }


@styled
def interval_bars(rows: Sequence[tuple[str, Mapping[str, Number]]], *, keys: Sequence[str]) -> bytes:
    """One panel per metric, one bar per row: mean over seeds, 95 % interval over clips, a tick for each seed."""
    keys = [key for key in keys if any(key in cells and np.isfinite(cells[key].mean) for _, cells in rows)]
    check(bool(keys), "There is no score to plot; the runs have none in common.")
    across = min(3, len(keys))
    down = -(-len(keys) // across)
    figure = new_figure(8.6, down * (0.75 + 0.26 * len(rows)))
    grid = figure.subplots(down, across, squeeze=False, sharey=True)
    for place, axes in enumerate(grid.flat):
        if place < len(keys):
            _interval_panel(axes, rows, key=keys[place])
        else:
            axes.set_axis_off()
    return svg(figure)


def _interval_panel(axes: Any, rows: Sequence[tuple[str, Mapping[str, Number]]], *, key: str) -> None:
    column = metric_column(key)
    for place, (_, cells) in enumerate(rows):
        cell, colour = cells.get(key), COLOURS[place % len(COLOURS)]
        if cell is None or not np.isfinite(cell.mean):
            continue
        if cell.low is not None and cell.high is not None:
            axes.plot(
                [cell.low * column.scale, cell.high * column.scale],
                [place, place],
                color=colour,
                linewidth=4,
                alpha=0.35,
                solid_capstyle="butt",
            )
        axes.plot(cell.mean * column.scale, place, "o", color=colour, markersize=6)
        axes.plot(
            [value * column.scale for value in cell.known],
            [place] * len(cell.known),
            "|",
            color=INK,
            markersize=7,
            alpha=0.6,
        )
    arrow = {"high": " ↑", "low": " ↓", None: ""}[column.better]
    axes.set(title=column.title + arrow, ylim=(len(rows) - 0.4, -0.6))
    axes.set_yticks(range(len(rows)), [name if len(name) <= 34 else f"{name[:33]}…" for name, _ in rows])
    axes.grid(visible=False, axis="y")
    axes.spines["left"].set_color(GRID)
