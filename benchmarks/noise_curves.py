"""Does the price of a code buy robustness? MIB beside the same network with beta 0, on worse and worse test clips.

    python benchmarks/noise_curves.py --root DATA/ravdess --out FOLDER
    python benchmarks/noise_curves.py --root DATA/ravdess --out FOLDER --betas 0.1 0.001 0 --set train.augment.noise=0
    python benchmarks/noise_curves.py --root DATA/ravdess --out FOLDER --line "C-MIB" RUNS/a --line "beta 0" RUNS/b

Trains a line per beta over the seeds (a run that is finished below ``--runs`` is taken as it is), or reads the runs at or
below given folders. Two kinds of damage: Gaussian noise on audio and vision, its deviation in units of the root mean square of
the clip's own stream; and modalities that are missing at random. Both lines see the same damage. Writes noise_curves.csv
(every evaluation) and noise_curves.png there, and prints the means.
"""

from __future__ import annotations

import argparse
import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from moodal.bench.names import metric_column
from moodal.bench.robustness import Plan, Robustness, measure
from moodal.bench.runs import StoredRun, find_runs
from moodal.bench.style import COLOURS, new_figure, png, styled
from moodal.build import configure, train
from moodal.core.config import parse_override
from moodal.core.files import aside, write_text
from moodal.core.settings import Kind
from moodal.metrics.protocol import protocol_named

DEVIATIONS = (0.0, 0.25, 0.5, 1.0, 2.0, 4.0)
SHARES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)


@dataclass(frozen=True)
class Damage:
    """One panel: the levels of a kind of damage as the reader sees them, and as rates of that kind."""

    kind: Kind
    label: str
    levels: tuple[float, ...]
    rates: tuple[float, ...]

    def plan(self, draws: int) -> Plan:
        """Every level, drawn so many times."""
        return Plan(kind=self.kind, rates=self.rates, seeds=tuple(range(1, draws + 1)))


DAMAGES = (
    # A deviation of d is a share of d² / (1 + d²) in the power of the sum.
    Damage("noise", "deviation of the noise", DEVIATIONS, tuple(d * d / (1 + d * d) for d in DEVIATIONS)),
    Damage("modality", "chance that a modality is missing", SHARES, SHARES),
)


def main() -> None:
    """Train or read, measure, write."""
    options = _options()
    given = {name: _stored(folders) for name, *folders in options.line}
    lines = given or _trained(options)
    overrides = {} if options.root is None else {"data.root": options.root}
    found: dict[str, Robustness] = {
        damage.kind: measure(list(lines.values()), damage.plan(options.draws), names=list(lines), overrides=overrides)
        for damage in DAMAGES
    }
    metric = options.metric or protocol_named(found["noise"].protocol).selection
    write_text(options.out / "noise_curves.csv", table(found))
    with aside(options.out / "noise_curves.png") as temporary:
        temporary.write_bytes(drawn(found, metric))
    for line in means(found, metric):
        print(line)


def _stored(folders: Sequence[str]) -> list[StoredRun]:
    """The runs at or below ``folders``."""
    return [run for folder in folders for run in find_runs(folder)]


def _trained(options: argparse.Namespace) -> dict[str, list[StoredRun]]:
    """The runs of each beta, trained where they are not there yet."""
    shared = dict(parse_override(text) for text in options.set)
    if options.root is not None:
        shared["data.root"] = options.root
    lines: dict[str, list[StoredRun]] = {}
    for beta in options.betas:
        name = f"beta {beta:g}"
        for seed in options.seeds:
            cfg = configure(options.recipe, {**shared, "model.beta": beta, "seed": seed}).config
            print(f"{name}, seed {seed}", flush=True)
            lines.setdefault(name, []).append(StoredRun.open(train(cfg, runs=options.runs).folder))
    return lines


def _evaluations(found: Mapping[str, Robustness]) -> Iterator[tuple[str, str, float, int, int, Mapping[str, float]]]:
    """(damage, line, level, seed of the training, seed of the damage, scores) of every evaluation."""
    for damage in DAMAGES:
        for curve in found[damage.kind].curves:
            for level, rate in zip(damage.levels, damage.rates):
                for (seed, draw), scores in curve.scores[rate].items():
                    yield damage.kind, curve.name, level, seed, draw, scores


def table(found: Mapping[str, Robustness]) -> str:
    """Every evaluation as CSV."""
    keys, text = found["noise"].keys, io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["damage", "line", "level", "seed", "draw", *keys])
    for *place, scores in _evaluations(found):
        writer.writerow([*place, *(f"{scores[key]:.6f}" for key in keys)])
    return text.getvalue()


def by_seed(found: Mapping[str, Robustness], metric: str) -> dict[tuple[str, str], np.ndarray]:
    """{(damage, line): (levels, seeds)}: the metric, a mean over the draws of the damage."""
    cells: dict[tuple[str, str], dict[float, dict[int, list[float]]]] = {}
    for damage, line, level, seed, _, scores in _evaluations(found):
        cells.setdefault((damage, line), {}).setdefault(level, {}).setdefault(seed, []).append(scores[metric])
    return {
        place: np.array([[np.mean(draws) for _, draws in sorted(seeds.items())] for seeds in levels.values()])
        for place, levels in cells.items()
    }


def means(found: Mapping[str, Robustness], metric: str) -> Iterator[str]:
    """A Markdown table: mean and deviation over seeds of each line, and of what the first is above the second."""
    values = by_seed(found, metric)
    names = [curve.name for curve in found["noise"].curves]
    column = metric_column(metric)
    yield f"| damage | level | {' | '.join(names)} |{' difference |' if len(names) == 2 else ''}"
    yield "|---" * (3 if len(names) == 2 else 2) + "|---" * len(names) + "|"
    for damage in DAMAGES:
        for place, level in enumerate(damage.levels):
            cells = [values[damage.kind, name][place] * column.scale for name in names]
            cells += [cells[0] - cells[1]] if len(names) == 2 else []
            told = " | ".join(_told(cell, column.decimals) for cell in cells)
            yield f"| {damage.label} | {level:g} | {told} |"


def _told(values: np.ndarray, decimals: int) -> str:
    """Mean and deviation over seeds; of one seed its value alone."""
    mean = f"{values.mean():.{decimals}f}"
    return mean if len(values) == 1 else f"{mean} ± {_spread(values):.{decimals}f}"


def _spread(values: np.ndarray) -> float:
    return float(values.std(ddof=1)) if len(values) > 1 else 0.0


@styled
def drawn(found: Mapping[str, Robustness], metric: str) -> bytes:
    """A panel per damage: a line per beta, a band of one deviation over seeds to either side."""
    column, values = metric_column(metric), by_seed(found, metric)
    figure = new_figure(7.2, 3.0)
    for axes, damage in zip(figure.subplots(1, len(DAMAGES), sharey=True), DAMAGES):
        for colour, curve in zip(COLOURS, found[damage.kind].curves):
            cells = column.scale * values[damage.kind, curve.name]
            mean, spread = cells.mean(axis=1), np.array([_spread(row) for row in cells])
            axes.plot(damage.levels, mean, color=colour, marker=".", label=curve.name)
            axes.fill_between(damage.levels, mean - spread, mean + spread, color=colour, alpha=0.15, linewidth=0)
        constant = column.scale * found[damage.kind].constant[metric]
        axes.axhline(constant, color="0.6", linewidth=1, linestyle=":", label="constant prediction")
        axes.set_xlabel(damage.label)
        axes.set_title(column.title)
    axes.legend()
    return png(figure)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--root", help="folder of the corpus; default: where the runs' settings say")
    parser.add_argument("--out", type=Path, required=True, help="folder for the table and the plot")
    parser.add_argument("--recipe", default="ravdess/mib", help="what is trained (default: %(default)s)")
    parser.add_argument("--betas", type=float, nargs="+", default=[1e-3, 0.0], help="default: 0.001 0")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--draws", type=int, default=3, help="of each damage (default: %(default)s)")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="where runs are kept (default: %(default)s)")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="settings of both lines")
    parser.add_argument("--metric", help="what is drawn (default: what the protocol selects by)")
    parser.add_argument(
        "--line", nargs="+", action="append", default=[], metavar=("NAME", "RUN"), help="runs instead of training"
    )
    return parser.parse_args()


if __name__ == "__main__":
    main()
