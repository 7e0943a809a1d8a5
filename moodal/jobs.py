"""What the commands do: several seeds, resuming, scoring again, the ablation table, the demo."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning_fabric import Fabric

from moodal.build import (
    Trained, build_method, configure, load_data, make_fabric, open_run, recipes, run_path, score_table, select, stored_config, train,
)  # fmt: skip
from moodal.console import TensorBoardLog, TrainingBar, WaitingBar
from moodal.core.errors import Interrupted, MoodalError
from moodal.core.settings import RunConfig
from moodal.metrics.bootstrap import summarise
from moodal.prepare import Prepared
from moodal.train.evaluate import evaluate
from moodal.train.fit import Watcher
from moodal.train.runs import RunFolder


@dataclass(frozen=True)
class SeedResults:
    """Scores of several seeds of one configuration."""

    recipe: str
    runs: Mapping[int, Trained]

    def summary(self) -> dict[str, Any]:
        """{"test": {"mean", "std", "seeds": {seed: scores}}, "valid": ..., "runs": {seed: folder}, ...}."""
        found: dict[str, Any] = {}
        for split in ("test", "valid"):
            by_seed = {seed: _numbers(run.scores[split]) for seed, run in self.runs.items()}
            found[split] = summarise(by_seed) | {"seeds": {str(seed): row for seed, row in by_seed.items()}}
        first = next(iter(self.runs.values()))
        found["selection"] = {str(seed): run.scores["selection"] for seed, run in self.runs.items()}
        found["baseline"] = first.scores["baseline"]
        found["runs"] = {str(seed): str(run.folder) for seed, run in self.runs.items()}
        return found

    def table(self) -> str:
        """Lines for people: the test scores of each seed, their mean and spread, the baseline, and the folders."""
        summary = self.summary()
        lines = []
        for seed, run in self.runs.items():
            chosen = run.scores["selection"]
            how = f"weights of epoch {chosen['epoch']}, chosen on valid {chosen['metric']}"
            lines.append(f"seed {seed:<4} test  {_line(summary['test']['seeds'][str(seed)])}  ({how})")
        if len(self.runs) > 1:
            lines.append(f"mean      test  {_line(summary['test']['mean'])}")
            lines.append(f"deviation test  {_line(summary['test']['std'])}")
        lines.append(f"baseline  test  {_line(_numbers(summary['baseline']['test']))}  ({summary['baseline']['name']})")
        lines += [f"run       {run.folder}" for run in self.runs.values()]
        return "\n".join(lines)


def _numbers(row: Mapping[str, Any]) -> dict[str, float]:
    """Scores as read from JSON, null back to NaN."""
    return {key: float("nan") if value is None else float(value) for key, value in row.items()}


def _line(row: Mapping[str, float]) -> str:
    return "  ".join(f"{key} {value:.4f}" for key, value in row.items())


def train_seeds(
    recipe: str, overrides: Mapping[str, Any], *, seeds: Sequence[int], runs: Path, file: Path | None = None
) -> SeedResults | None:
    """Train ``recipe`` over ``seeds``, reading the data once. None on processes other than the first."""
    configs = [configure(recipe, {**overrides, "seed": seed}, file=file).config for seed in seeds]
    folders = [run_path(cfg, runs) for cfg in configs]
    fabric = make_fabric(configs[0].device)
    fabric.launch()
    done: dict[int, Trained] = {}
    data: Prepared | None = None
    for cfg, folder in zip(configs, folders, strict=True):
        if data is None and not RunFolder(folder).finished:
            data = _data(cfg, fabric)
        done[cfg.seed] = _train_one(cfg, folder, fabric, data)
    return SeedResults(recipe, done) if fabric.is_global_zero else None


def resume_run(folder: Path, overrides: Mapping[str, Any]) -> SeedResults | None:
    """Go on with an unfinished run; only ``device.*`` and ``data.root`` may be given anew."""
    other = [key for key in overrides if not key.startswith("device.") and key != "data.root"]
    if other:
        raise MoodalError(f"{', '.join(other)}: a run goes on with its own settings; only device.* and data.root may change.")
    cfg = stored_config(folder, overrides)
    fabric = make_fabric(cfg.device)
    fabric.launch()
    home = RunFolder(folder)
    data = None if home.finished else _data(cfg, fabric)
    done = {cfg.seed: _train_one(cfg, folder, fabric, data)}
    return SeedResults(f"{cfg.corpus}/{cfg.method}", done) if fabric.is_global_zero else None


def _data(cfg: RunConfig, fabric: Fabric) -> Prepared:
    with fabric.rank_zero_first(), WaitingBar("text states") as waiting:
        data = load_data(cfg, progress=waiting)
    if fabric.is_global_zero:
        sizes = ", ".join(f"{size} {name}" for name, size in data.spec.size.items())
        streams = ", ".join(f"{name} {stream.kind} {stream.width}" for name, stream in data.spec.streams.items())
        print(f"data  {cfg.corpus}: {sizes}; {streams}; explanations: {', '.join(data.spec.explanations) or 'none'}", file=sys.stderr)
    return data


def _train_one(cfg: RunConfig, folder: Path, fabric: Fabric, data: Prepared | None) -> Trained:
    if data is None:
        return train(cfg, folder=folder, fabric=fabric)
    if fabric.is_global_zero:
        print(f"run   {folder}", file=sys.stderr)
    with TrainingBar(f"seed {cfg.seed}", select(cfg, data).metric) as bar:
        if not fabric.is_global_zero:
            bar.console.quiet = True
        watcher: Watcher = TensorBoardLog(bar, str(folder / "tensorboard")) if cfg.train.tensorboard and fabric.is_global_zero else bar
        try:
            return train(cfg, folder=folder, fabric=fabric, data=data, watcher=watcher)
        except Interrupted:
            raise Interrupted(f"moodal train --resume {shlex.quote(str(folder))}") from None


def evaluate_run(
    folder: Path, overrides: Mapping[str, Any], *, splits: Sequence[str], out: Path | None = None
) -> dict[str, dict[str, float]]:
    """Scores of a finished run by split, from its selected weights."""
    fabric = make_fabric(stored_config(folder, overrides).device)
    fabric.launch()
    run = open_run(folder, overrides=overrides, fabric=fabric)
    tables = {
        name: evaluate(run.method, run.data.splits[name], size=run.cfg.train.eval_batch, fabric=fabric) for name in splits
    }
    if out is not None:
        RunFolder(out.parent).write_predictions(tables, run.data.spec.task, name=out.name)
    return {name: score_table(run.data.facts.protocol, table) for name, table in tables.items()}


def check_recipes() -> dict[str, str | None]:
    """{recipe: fault or None}: settings parse, and the method names of groups and stages exist where they can be known."""
    found: dict[str, str | None] = {}
    for recipe in recipes():
        try:
            configure(recipe)
            found[recipe] = None
        except MoodalError as fault:
            found[recipe] = str(fault)
    return found
