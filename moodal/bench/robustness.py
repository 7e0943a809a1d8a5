"""How stored runs fare as more and more goes missing: scores by rate, the area under each curve, tables and plots."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from lightning_fabric import Fabric

from moodal.bench.compare import labels
from moodal.bench.curves import Line, rate_curves
from moodal.bench.names import metric_column, ordered
from moodal.bench.runs import StoredRun, part
from moodal.bench.scoring import TOLERANCE
from moodal.bench.tables import Column, Number, Row, Table
from moodal.build import OpenedRun, open_run, score_table, stored_config
from moodal.core.errors import check
from moodal.core.files import aside, write_json, write_text
from moodal.core.settings import Kind, MissingData
from moodal.core.spec import Modality
from moodal.data.degrade import KINDS, PUBLISHED, rate_to_snr
from moodal.metrics.protocol import protocol_named
from moodal.train.evaluate import evaluate

#: The rates of the published protocol, and signal-to-noise ratios in decibels for ``noise``.
RATES = tuple(step / 10 for step in range(11))
DECIBELS = (20.0, 10.0, 5.0, 0.0, -5.0, -10.0)

_MATCHED = "Each rate is scored on runs trained at that rate."
_GIVEN = "Every run is scored at every rate, whatever it was trained with."

Scores = Mapping[str, float]
#: Called with (evaluations done, to do, what is evaluated).
Report = Callable[[int, int, str], None]
#: What sets two scores of one rate apart: the seed of the training and that of the masks.
Seeds = tuple[int, int]


def area_under_curve(rates: Sequence[float], values: Sequence[float]) -> float:
    """AUILC: the area under ``values`` over ``rates`` (any order, any steps) by the trapezoid rule.

    Not divided by the range of the rates, as published (EMT-DLFR, run_once.py): a constant c over 0 to 1 gives c, over 0
    to 0.5 half of it. NaN if a value is.
    """
    order = np.argsort(rates)
    x, y = np.asarray(rates, np.float64)[order], np.asarray(values, np.float64)[order]
    return float(np.sum(np.diff(x) * (y[1:] + y[:-1]) / 2))


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is done to the split. ``seeds``: of the draws; ``modalities``: empty for all that the kind is meant for.

    Raises ``MoodalError`` for settings that mean nothing.
    """

    kind: Kind = "frames"
    rates: tuple[float, ...] = RATES
    seeds: tuple[int, ...] = (PUBLISHED,)
    modalities: tuple[Modality, ...] = ()
    split: str = "test"

    def __post_init__(self) -> None:
        check(bool(self.rates) and bool(self.seeds), "No rate or no seed was given; give at least one of each.")
        check(len(set(self.rates)) == len(self.rates), f"rates are {list(self.rates)}; give each once.")
        drawn = KINDS[self.kind].drawn or len(self.seeds) == 1
        check(drawn, f"{self.kind} draws nothing, so it has no seeds; leave them out.")
        for rate in self.rates:
            self.at(rate, self.seeds[0])

    def at(self, rate: float, seed: int) -> MissingData:
        """The settings at one rate."""
        return MissingData(kind=self.kind, rate=rate, seed=seed, modalities=self.modalities)

    def steps(self) -> list[MissingData]:
        """Every rate with every seed; at rate 0, where nothing is drawn, with the first alone."""
        return [self.at(rate, seed) for rate in self.rates for seed in (self.seeds[:1] if rate == 0 else self.seeds)]


@dataclass(frozen=True)
class Curve:
    """One configuration: its scores by rate, and there by the seeds of training and masks, the same at each rate."""

    name: str
    scores: Mapping[float, Mapping[Seeds, Scores]]
    folders: tuple[Path, ...]

    @property
    def rates(self) -> list[float]:
        return sorted(self.scores)

    def at(self, rate: float, key: str) -> Number:
        """One metric at one rate, a value for each pair of seeds."""
        return Number(tuple(scores[key] for scores in self.scores[rate].values()))

    def area(self, key: str) -> Number:
        """AUILC of one metric, a value for each pair of seeds; their mean is that of the mean curve."""
        pairs = self.scores[self.rates[0]]
        return Number(
            tuple(area_under_curve(self.rates, [self.scores[rate][pair][key] for rate in self.rates]) for pair in pairs)
        )


@dataclass(frozen=True)
class Robustness:
    """Curves of several configurations under one plan."""

    plan: Plan
    corpus: str
    protocol: str
    curves: tuple[Curve, ...]
    constant: Mapping[str, float]
    notes: tuple[str, ...] = field(default_factory=tuple)

    @property
    def keys(self) -> list[str]:
        return ordered(protocol_named(self.protocol).keys)

    def areas(self) -> Table:
        """A row per configuration: AUILC of each metric."""
        rates = self.curves[0].rates
        caption = (
            f"AUILC on {self.plan.split} of {self.corpus} under {self.plan.kind}, rates {rates[0]:g} to {rates[-1]:g}"
        )
        rows = [Row({"name": curve.name, **{key: curve.area(key) for key in self.keys}}) for curve in self.curves]
        columns = (Column("name", "Configuration"), *(metric_column(key) for key in self.keys))
        undefined = [key for key in self.keys if any(np.isnan(curve.area(key).mean) for curve in self.curves)]
        notes = ["Area by the trapezoid rule over the rates, not divided by their range; ± is over seeds.", *self.notes]
        if undefined:
            named = ", ".join(metric_column(key).title for key in undefined)
            notes.append(f"{named}: not defined at some rate (predictions that are all the same have no correlation).")
        return Table(columns, tuple(rows), caption, tuple(notes))

    def by_rate(self) -> Table:
        """A row per configuration and rate: every metric."""
        rows = [
            Row({"name": curve.name, "rate": self.rate_name(rate), **{key: curve.at(rate, key) for key in self.keys}})
            for curve in self.curves
            for rate in curve.rates
        ]
        metrics = (metric_column(key, marked=False) for key in self.keys)
        columns = (Column("name", "Configuration"), Column("rate", "Rate"), *metrics)
        caption = f"Scores on {self.plan.split} of {self.corpus}; rate: {KINDS[self.plan.kind].rate_is}"
        return Table(columns, tuple(rows), caption)

    def rate_name(self, rate: float) -> str:
        """A rate as tables have it; of noise also in decibels."""
        return f"{rate:g}" if self.plan.kind != "noise" or rate == 0 else f"{rate:.3g} ({rate_to_snr(rate):.3g} dB)"

    def write(self, folder: Path) -> list[Path]:
        """Write the tables (Markdown, LaTeX, CSV), the plot (SVG, PNG) and the numbers (JSON); gives the files."""
        areas, by_rate = self.areas(), self.by_rate()
        lines = [
            Line(curve.name, curve.rates, {key: [curve.at(rate, key) for rate in curve.rates] for key in self.keys})
            for curve in self.curves
        ]
        drawn = rate_curves(lines, keys=self.keys, label=KINDS[self.plan.kind].rate_is, constant=self.constant)
        written = {
            "robustness.md": f"{areas.markdown()}\n{by_rate.markdown()}",
            "robustness.tex": f"{areas.latex()}\n{by_rate.latex()}",
            "auilc.csv": areas.csv(),
            "scores.csv": by_rate.csv(),
        }
        for name, text in written.items():
            write_text(folder / name, text)
        for kind, content in drawn.items():
            with aside(folder / f"robustness.{kind}") as temporary:
                temporary.write_bytes(content)
        write_json(folder / "robustness.json", self.as_json())
        return [folder / name for name in (*written, "robustness.svg", "robustness.png", "robustness.json")]

    def as_json(self) -> dict[str, Any]:
        """{"auilc": {name: {metric: {"mean", "std"}}}, "scores": {name: {rate: the same}}, ...}."""

        def told(number: Number) -> dict[str, Any]:
            return {"mean": number.mean, "std": number.deviation, "values": number.values}

        return {
            "corpus": self.corpus, "protocol": self.protocol, "split": self.plan.split, "kind": self.plan.kind,
            "modalities": self.plan.modalities, "mask_seeds": self.plan.seeds, "notes": self.notes,
            "runs": {curve.name: [str(path) for path in curve.folders] for curve in self.curves},
            "auilc": {c.name: {key: told(c.area(key)) for key in self.keys} for c in self.curves},
            "scores": {
                c.name: {f"{rate:g}": {key: told(c.at(rate, key)) for key in self.keys} for rate in c.rates}
                for c in self.curves
            },
        }  # fmt: skip


def measure(
    groups: Sequence[Sequence[StoredRun]],
    plan: Plan | None,
    *,
    names: Sequence[str] | None = None,
    overrides: Mapping[str, Any] | None = None,
    fabric: Fabric | None = None,
    progress: Report | None = None,
) -> Robustness:
    """Score runs while more and more is missing.

    ``groups``: configurations, each over its seeds; ``plan``: at which rates every run is scored, whatever it was
    trained with. None scores each run at the rate it was trained with, and a group then holds runs of
    all rates (:func:`matched_groups`): the published protocol, which trains a model per rate. ``overrides``: settings
    that may differ from the run's (where the data are). Raises ``MoodalError`` for runs that are not finished, not of
    one corpus, or that leave a curve with a hole.
    """
    runs = [run for group in groups for run in group]
    protocol, shared = _one_protocol(runs), fabric or Fabric(accelerator="cpu")
    own = {run.path: stored_config(run.path).data.missing for run in runs}
    asked = {path: [missing] if plan is None else plan.steps() for path, missing in own.items()}
    notes = [_MATCHED if plan is None else _GIVEN]
    plan = plan or trained_plan(list(own.values()))
    called = names or names_of(groups)
    for name, group in zip(called, groups, strict=True):
        _verify_whole(name, group, asked, plan)
    total, done = sum(map(len, asked.values())), 0
    scores: dict[Path, dict[float, dict[int, Scores]]] = {}
    for run, opened in _opened(runs, overrides or {}, shared):
        degrader, table = opened.degrader(), scores.setdefault(run.path, {})
        for missing in asked[run.path]:
            split = degrader(plan.split, missing)
            found = evaluate(opened.method, split, size=opened.cfg.train.eval_batch, fabric=shared)
            table.setdefault(missing.rate, {})[missing.seed] = score_table(protocol, found)
            done += 1
            if progress is not None:
                progress(done, total, "evaluations")
    curves = tuple(_curve(name, group, scores, plan) for name, group in zip(called, groups, strict=True))
    constant = part(part(runs[0].scores, "baseline"), plan.split)
    notes += [note for run in runs if own[run.path].rate == 0 for note in _disagreements(run, scores[run.path], plan)]
    return Robustness(plan, runs[0].corpus, protocol, curves, constant, tuple(notes))


def _opened(
    runs: Sequence[StoredRun], overrides: Mapping[str, Any], fabric: Fabric
) -> Iterator[tuple[StoredRun, OpenedRun]]:
    """Each run with nothing missing; a corpus that the run before it read too is not read again."""
    clean = {**overrides, "data.missing.rate": 0.0}
    last: OpenedRun | None = None
    for run in runs:
        cfg = stored_config(run.path, clean)
        same = last is not None and (last.cfg.reader, last.cfg.data.root) == (cfg.reader, cfg.data.root)
        last = open_run(run.path, overrides=clean, fabric=fabric, raw=last.raw if last is not None and same else None)
        yield run, last


def _curve(
    name: str, group: Sequence[StoredRun], scores: Mapping[Path, Mapping[float, Mapping[int, Scores]]], plan: Plan
) -> Curve:
    """The curve of one configuration, with the same seeds at every rate."""
    found: dict[float, dict[Seeds, Scores]] = {}
    for run in group:
        for rate, by_seed in scores[run.path].items():
            for seed in plan.seeds:  # where nothing is drawn there is one evaluation for all of them
                found.setdefault(rate, {})[run.seed or 0, seed] = by_seed.get(seed) or next(iter(by_seed.values()))
    by_rate = {rate: dict(sorted(found[rate].items())) for rate in plan.rates}
    return Curve(name, by_rate, tuple(run.path for run in group))


def _verify_whole(
    name: str, group: Sequence[StoredRun], asked: Mapping[Path, Sequence[MissingData]], plan: Plan
) -> None:
    """Every seed of a curve is scored at every rate, so that means over seeds are of the same seeds."""
    for rate in plan.rates:
        there = {run.seed for run in group if any(missing.rate == rate for missing in asked[run.path])}
        lacking = ", ".join(sorted(str(run.seed) for run in group if run.seed not in there))
        check(
            not lacking,
            f"{name}: there is no run of seed {lacking} trained at rate {rate:g}; train it, or leave those seeds out.",
        )


def trained_plan(trained: Sequence[MissingData]) -> Plan:
    """What runs were trained with. Raises ``MoodalError`` if that is nothing, or differs in more than the rate."""
    kinds = {(missing.kind, missing.seed, missing.modalities) for missing in trained if missing.rate > 0}
    check(bool(kinds), "No run was trained with something missing (data.missing.rate); score them at given rates.")
    check(
        len(kinds) == 1,
        "The runs were trained with several kinds, seeds or modalities of what is missing; give runs that differ in "
        "data.missing.rate alone.",
    )
    kind, seed, modalities = next(iter(kinds))
    rates = tuple(sorted({missing.rate for missing in trained}))
    return Plan(kind=kind, rates=rates, seeds=(seed,), modalities=modalities)


def matched_groups(groups: Sequence[Sequence[StoredRun]]) -> list[list[StoredRun]]:
    """Configurations that differ in what they were trained without, joined."""
    joined: dict[str, list[StoredRun]] = {}
    for group in groups:
        settings = group[0].configuration()
        data = {key: value for key, value in part(settings, "data").items() if key != "missing"}
        joined.setdefault(repr({**settings, "data": data}), []).extend(group)
    return list(joined.values())


def names_of(groups: Sequence[Sequence[StoredRun]]) -> list[str]:
    """What to call each configuration: its method, and the settings that set it apart from others of that method."""
    by_method: dict[str, list[int]] = {}
    for place, group in enumerate(groups):
        by_method.setdefault(group[0].method, []).append(place)
    found: dict[int, str] = {}
    for places in by_method.values():
        found.update(zip(places, labels([groups[place] for place in places])))
    return [found[place] for place in range(len(groups))]


def _one_protocol(runs: Sequence[StoredRun]) -> str:
    """The protocol that all runs are scored by."""
    check(bool(runs), "No run was given; name at least one run folder.")
    for run in runs:
        ended = run.finished or "imported" in run.environment
        check(ended, f"{run.path} is not finished; go on with it first: moodal train --resume {run.path}")
    corpora = sorted({run.corpus for run in runs})
    check(len(corpora) == 1, f"The runs are of {' and '.join(corpora)}; curves compare runs of one corpus.")
    protocols = sorted({str(run.protocol) for run in runs})
    check(
        len(protocols) == 1 and protocols[0] != "None",
        f"The runs are scored by {' and '.join(protocols)}; one protocol is needed to compare them.",
    )
    return protocols[0]


def _disagreements(run: StoredRun, scores: Mapping[float, Mapping[int, Scores]], plan: Plan) -> list[str]:
    """Sentences where nothing is missing and the scores are not those that the run stored."""
    stored = part(run.scores, plan.split)
    found = next(iter(scores.get(0.0, {}).values()), {})
    apart = [
        key
        for key, value in stored.items()
        if value is not None and not abs(found.get(key, value) - value) <= TOLERANCE
    ]
    if not apart:
        return []
    return [
        f"{run.path}: with nothing missing {', '.join(apart)} differ from scores.json; "
        "the data, the device or the versions changed since."
    ]
