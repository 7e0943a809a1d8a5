"""What the commands do: several seeds, resuming, scoring again, the ablation table, the demo."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lightning_fabric import Fabric

from moodal.bench import ablate as ablation
from moodal.bench.compare import compare_runs
from moodal.bench.report import report_run
from moodal.bench.tables import Table
from moodal.build import (
    Trained,
    build_method,
    configure,
    load_data,
    make_fabric,
    open_run,
    recipes,
    run_path,
    score_table,
    select,
    stored_config,
    train,
)  # fmt: skip
from moodal.console import TensorBoardLog, TrainingBar, WaitingBar
from moodal.core.config import to_yaml
from moodal.core.errors import Interrupted, MoodalError
from moodal.core.files import folder_aside, sha256
from moodal.core.settings import RunConfig
from moodal.core.spec import DataSpec, Modality, StreamSpec
from moodal.data import CORPORA
from moodal.interop import CONVERTERS
from moodal.interop.official import Converted, read_state
from moodal.methods import METHODS
from moodal.metrics.bootstrap import summarise
from moodal.prepare import Prepared, task_facts
from moodal.train.evaluate import evaluate
from moodal.train.fit import LAST, Watcher
from moodal.train.optim import verify_names
from moodal.train.runs import RunFolder

#: Sizes of the text encoder that recipes are checked with.
_TOY = {"vocab_size": 16, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}


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
            why = "the last" if chosen["better"] == LAST else f"chosen on valid {chosen['metric']}"
            how = f"weights of epoch {chosen['epoch']}, {why}"
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
    """Train ``recipe`` over ``seeds`` (none: the recipe's own), reading the data once. None on processes other than the first."""
    own = configure(recipe, overrides, file=file).config
    configs = [replace(own, seed=seed) for seed in seeds or [own.seed]]
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
        raise MoodalError(
            f"{', '.join(other)}: a run goes on with its own settings; only device.* and data.root may change."
        )
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
        print(
            f"data  {cfg.corpus}: {sizes}; {streams}; explanations: {', '.join(data.spec.explanations) or 'none'}",
            file=sys.stderr,
        )
    return data


def _train_one(cfg: RunConfig, folder: Path, fabric: Fabric, data: Prepared | None) -> Trained:
    if data is None:
        return train(cfg, folder=folder, fabric=fabric)
    if fabric.is_global_zero:
        print(f"run   {folder}", file=sys.stderr)
    with TrainingBar(f"seed {cfg.seed}", select(cfg, data).metric) as bar:
        if not fabric.is_global_zero:
            bar.console.quiet = True
        watcher: Watcher = (
            TensorBoardLog(bar, str(folder / "tensorboard")) if cfg.train.tensorboard and fabric.is_global_zero else bar
        )
        try:
            return train(cfg, folder=folder, fabric=fabric, data=data, watcher=watcher)
        except Interrupted:
            command = f"moodal train --resume {shlex.quote(str(folder))}"
            raise Interrupted(command if fabric.is_global_zero else "") from None


def evaluate_run(
    folder: Path, overrides: Mapping[str, Any], *, splits: Sequence[str], out: Path | None = None
) -> dict[str, dict[str, float]]:
    """Scores of a finished run by split, from its selected weights."""
    fabric = make_fabric(stored_config(folder, overrides).device)
    fabric.launch()
    run = open_run(folder, overrides=overrides, fabric=fabric)
    tables = {
        name: evaluate(run.method, run.data.splits[name], size=run.cfg.train.eval_batch, fabric=fabric)
        for name in splits
    }
    if out is not None:
        RunFolder(out.parent).write_predictions(tables, run.data.spec.task, name=out.name)
    return {name: score_table(run.data.facts.protocol, table) for name, table in tables.items()}


def check_recipes() -> dict[str, str | None]:
    """{recipe: fault or None}: its settings parse, its method builds, its groups and stages exist.

    Nothing is read or downloaded: the method is built for the corpus's usual widths, with a toy text encoder.
    """
    found: dict[str, str | None] = {}
    for recipe in recipes():
        try:
            cfg = configure(recipe).config
            method = build_method(cfg, _usual_spec(cfg))
            verify_names(cfg.method, method.stages(), cfg.train)
            found[recipe] = None
        except MoodalError as fault:
            found[recipe] = str(fault)
    return found


def _usual_spec(cfg: RunConfig) -> DataSpec:
    """A spec like that of the corpus of ``cfg``: its usual widths, text as ``cfg`` has it."""
    facts, needs = CORPORA[cfg.corpus].facts, METHODS[cfg.method].needs(cfg.model)
    tokens = cfg.data.text.mode in ("finetune", "tokens")
    words = (
        StreamSpec("tokens", _TOY["hidden_size"], "toy", {"model_type": "bert", **_TOY})
        if tokens
        else StreamSpec("features", 8)
    )
    streams: dict[Modality, StreamSpec] = {
        m: StreamSpec("features", facts.widths.get(m, 8)) for m in ("audio", "vision")
    }
    streams = {m: s for m, s in {"text": words, **streams}.items() if m in needs.modalities}
    return DataSpec(streams=streams, task=facts.task, explanations={role: words for role in needs.explanations})


def ablate(
    recipe: str, overrides: Mapping[str, Any], *, seeds: Sequence[int], runs: Path
) -> tuple[ablation.Ablation, Table] | None:
    """Train every row of the method's ablation table over ``seeds``. None on processes other than the first.

    Runs that are finished already are not made again, so an interrupted table goes on where it stopped.
    """
    cfg = configure(recipe, overrides).config

    def trained(recipe: str, overrides: Mapping[str, Any], seeds: Sequence[int]) -> dict[int, dict[str, Any]]:
        found = train_seeds(recipe, overrides, seeds=seeds, runs=runs)
        done = {} if found is None else found.runs
        return {
            seed: {"valid": run.scores["valid"], "test": run.scores["test"], "run": run.folder}
            for seed, run in done.items()
        }

    def announce(row: str, seed: int, done: int, total: int) -> None:
        print(f"row   {row}, seed {seed} ({done + 1} of {total})", file=sys.stderr)

    rows = ablation.plan(METHODS[cfg.method].ablations, overrides)
    finished = ablation.run(rows, trained, recipe=recipe, seeds=seeds or [cfg.seed], progress=announce)
    return finished, ablation.ablation_table(finished)


@dataclass(frozen=True)
class Comparison:
    """Several recipes of one corpus over the same seeds: the table, the page to open, and what failed by recipe."""

    table: Table
    page: Path
    runs: Mapping[str, SeedResults]
    failures: Mapping[str, str]

    def as_json(self) -> dict[str, Any]:
        """{"methods": {recipe: as of train}, "failures": {recipe: reason}, "page": path}."""
        methods = {recipe: found.summary() for recipe, found in self.runs.items()}
        return {"methods": methods, "failures": dict(self.failures), "page": str(self.page)}


def compare(
    corpus: str, methods: Sequence[str], overrides: Mapping[str, Any], *, seeds: Sequence[int], runs: Path
) -> Comparison | None:
    """Train ``methods`` (none: all with a recipe for ``corpus``) over ``seeds``; the first is what others are tested against.

    Finished runs are not made again, and a recipe that fails does not cost the others. None on processes other than
    the first. Raises ``MoodalError`` if nothing could be trained.
    """
    asked = [f"{corpus}/{method}" for method in methods] or [
        name for name in recipes() if name.startswith(f"{corpus}/")
    ]
    if not asked:
        known = ", ".join(sorted({name.partition("/")[0] for name in recipes()}))
        raise MoodalError(f"There is no recipe for '{corpus}'; there are recipes for {known}.")
    configs = {recipe: configure(recipe, overrides).config for recipe in asked}  # all settings before the first hour
    done: dict[str, SeedResults] = {}
    failures: dict[str, str] = {}
    for place, recipe in enumerate(configs, 1):
        print(f"recipe {recipe} ({place} of {len(configs)})", file=sys.stderr)
        try:
            found = train_seeds(recipe, overrides, seeds=seeds, runs=runs)
        except Interrupted:
            raise
        except MoodalError as fault:
            failures[recipe] = str(fault)
            continue
        if found is None:
            return None
        done[recipe] = found
    if not done:
        raise MoodalError("; ".join(f"{recipe}: {fault}" for recipe, fault in failures.items()))
    names = [METHODS[configs[recipe].method].title.partition(":")[0] for recipe in done]
    folders = [run.folder for found in done.values() for run in found.runs.values()]
    page = report_run(folders, runs / corpus / "compare.html", names=names)
    return Comparison(compare_runs(folders, names=names), page, done, failures)


def demo(runs: Path) -> str:
    """Train TEXT on the synthetic corpus, and again on its text alone; compare both with the constant predictor.

    Returns the table and the page to open. Runs that are finished already are not made again.
    """
    alone = {"model.modalities": ["text"], "model.explanations": False}
    names, folders = ["TEXT", "TEXT on text alone"], []
    for overrides in ({}, alone):
        found = train_seeds("synthetic/text", overrides, seeds=[1], runs=runs)
        if found is None:
            return ""
        folders += [run.folder for run in found.runs.values()]
    page = report_run(folders, folders[0] / "report.html", names=names)
    return f"{compare_runs(folders, names=names).markdown()}\n\nopen {page}"


def import_checkpoint(method: str, file: Path, out: Path, overrides: Mapping[str, Any]) -> Path:
    """Make a run folder from a checkpoint of ``method``'s official code; the run gives the official outputs.

    The corpus is the one whose usual feature widths the checkpoint has, unless ``corpus=NAME`` is given.
    """
    if out.exists():
        raise MoodalError(f"{out} exists already; choose another --out, a run is never overwritten.")
    found: Converted = CONVERTERS[method](read_state(file))
    if found.encoder is None:
        raise MoodalError(
            f"{file} holds no text encoder (bertmodel.*), which official checkpoints do; save the whole model."
        )
    given = dict(overrides)
    corpus = str(given.pop("corpus", None) or _corpus_of_widths(found.widths))
    steps = found.settings["max_steps"]
    whole = {f"data.{name}.limit": steps for name in ("audio", "vision")} | {
        f"data.{name}.normalise": "none" for name in ("audio", "vision")
    }
    text = {"data.text.mode": "tokens", "data.text.encoder": "bert-base-uncased", "data.text.max_tokens": steps}
    model = {f"model.{key}": value for key, value in found.settings.items()}
    cfg = configure(
        f"{corpus}/{method}", {**model, **whole, **text, "data.explainer": "stored", **given}, recipe_file=False
    ).config
    description = _checkpoint_description(corpus, file, found, cfg)
    with folder_aside(out) as folder:
        home = RunFolder(folder)
        home.begin(to_yaml(cfg), description, {"imported": file.name})
        built = build_method(cfg, _checkpoint_spec(description))
        built.load_state_dict(found.state)
        home.save(f"best-{built.stages()[-1].name}.pt", {"method": built.state_dict()})
    return out


def _checkpoint_description(corpus: str, file: Path, found: Converted, cfg: RunConfig) -> dict[str, Any]:
    """data.json of an imported checkpoint: of its features only the widths are known."""
    facts, encoder = CORPORA[corpus].facts, {"model_type": "bert", **(found.encoder or {})}
    text = {
        "mode": "tokens",
        "max_tokens": cfg.data.text.max_tokens,
        "comment": False,
        "encoder": cfg.data.text.encoder,
    }
    return {
        "corpus": corpus, "title": facts.title, "language": facts.language, "protocol": facts.protocol, "task": task_facts(facts.task),
        "text": {**text, "width": found.widths["text"], "config": encoder}, "transforms": {},
        "features": {name: {"width": found.widths[name]} for name in ("audio", "vision")},
        "source": {"checkpoint": file.name, "sha256": sha256(file)},
    }  # fmt: skip


def _checkpoint_spec(description: Mapping[str, Any]) -> DataSpec:
    text = description["text"]
    words = StreamSpec("tokens", text["width"], text["encoder"], text["config"])
    streams: dict[Modality, StreamSpec] = {"text": words}
    streams |= {name: StreamSpec("features", part["width"]) for name, part in description["features"].items()}
    return DataSpec(
        streams=streams, task=CORPORA[description["corpus"]].facts.task, explanations={"audio": words, "vision": words}
    )


def _corpus_of_widths(widths: Mapping[str, int]) -> str:
    """The corpus whose usual audio and vision widths these are."""
    for name in CORPORA:
        usual = CORPORA[name].facts.widths
        if usual and all(usual.get(m) == widths[m] for m in ("audio", "vision")):
            return name
    raise MoodalError(
        f"no corpus has audio {widths['audio']} and vision {widths['vision']} wide features; say which one it is, for example corpus=mosi."
    )
