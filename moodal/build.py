"""Names become objects: recipe to settings, settings to corpus, method and run.

The only place where methods and the loop meet.
"""

from __future__ import annotations

import importlib.metadata
import logging
import platform
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric

import moodal
from moodal.core.config import Layer, Resolved, digest, read_yaml, resolve, to_yaml
from moodal.core.errors import MoodalError, did_you_mean
from moodal.core.files import plain
from moodal.core.method import Method
from moodal.core.random import seed_all
from moodal.core.settings import DeviceConfig, RunConfig, StageConfig
from moodal.core.spec import DataSpec
from moodal.data import CORPORA
from moodal.data.corpus import RawCorpus
from moodal.methods import METHODS
from moodal.metrics import protocol_named, score
from moodal.missing import Degrader, with_missing
from moodal.prepare import Prepared, Progress, from_checkpoint, prepare, read_corpus, verify_same_recipe
from moodal.train.baseline import baseline_scores
from moodal.train.evaluate import Predictions, evaluate
from moodal.train.fit import LAST, Fit, Selection, Silent, Watcher, initial_seed
from moodal.train.runs import RunFolder

log = logging.getLogger(__name__)

RECIPES = Path(__file__).parent / "recipes"
#: Settings that do not change what is computed, left out of a run's name.
NOT_IN_NAME = (
    "seed",
    "device.accelerator",
    "device.devices",
    "device.num_nodes",
    "device.strategy",
    "device.threads",
    "train.tensorboard",
    "train.save_every",
    "train.eval_batch",
)


def recipes() -> list[str]:
    """All recipes, as corpus/method."""
    return sorted(str(path.relative_to(RECIPES).with_suffix("")) for path in RECIPES.glob("*/*.yaml"))


def configure(
    recipe: str, overrides: Mapping[str, Any] | None = None, *, file: Path | None = None, recipe_file: bool = True
) -> Resolved:
    """Settings of ``recipe`` ("corpus/method"): defaults, then the recipe's file if there is one, then ``overrides``.

    ``file`` replaces the recipe's own YAML file, ``recipe_file=False`` leaves it out. Raises ``MoodalError`` with every
    fault found.
    """
    corpus, sign, method = recipe.partition("/")
    if not sign:
        raise MoodalError(
            f"'{recipe}' is no recipe; expected <corpus>/<method>, for example cmu_mosi/text{did_you_mean(recipe, recipes())}"
        )
    path = file or RECIPES / f"{recipe}.yaml"
    layers: list[Layer] = [("recipe", {"corpus": corpus, "method": method})]
    if file is not None or (recipe_file and path.exists()):
        layers.append((f"recipes/{recipe}.yaml" if file is None else str(file), read_yaml(path)))
    layers.append(("command line", dict(overrides or {})))
    found = resolve(RunConfig, layers, _types(corpus, method))
    asked = f"{found.config.corpus}/{found.config.method}"
    if asked != recipe:
        raise MoodalError(
            f"the settings name {asked} and the recipe is {recipe}; give the recipe {asked}, or leave corpus and method out."
        )
    return found


def _types(corpus: str, method: str) -> dict[str, type]:
    return {"model": METHODS[method].Config, "reader": CORPORA[corpus].Config}


def stored_config(run: Path, overrides: Mapping[str, Any] | None = None) -> RunConfig:
    """The settings of a run folder, with ``overrides`` on top."""
    if not (run / "config.yaml").exists():
        raise MoodalError(
            f"{run} is no run folder (it has no config.yaml); expected a folder such as runs/<corpus>/<method>/<hash>/seed-1."
        )
    values = read_yaml(run / "config.yaml")
    types = _types(str(values.get("corpus")), str(values.get("method")))
    return resolve(RunConfig, [(str(run / "config.yaml"), values), ("command line", overrides or {})], types).config


def make_fabric(cfg: DeviceConfig) -> Fabric:
    """Lightning Fabric from the settings; a sentence where they do not fit the machine. Call ``launch`` yourself."""
    if cfg.threads is not None:
        torch.set_num_threads(cfg.threads)
    if cfg.strategy.endswith(("_spawn", "_fork", "_notebook")):
        raise MoodalError(
            f"device.strategy is {cfg.strategy}, which starts functions and not commands; use ddp, or auto."
        )
    try:
        return Fabric(
            accelerator=cfg.accelerator,
            devices=cfg.devices,
            num_nodes=cfg.num_nodes,
            strategy=cfg.strategy,
            precision=cfg.precision,
        )
    except (ValueError, RuntimeError, TypeError) as fault:
        reason = str(fault).splitlines()[0]
        raise MoodalError(
            f"device: {reason} Choose other device.accelerator, device.devices, device.strategy or device.precision."
        ) from fault


def build_method(cfg: RunConfig, spec: DataSpec) -> Method:
    """The method of ``cfg`` for data of ``spec``, its parameters drawn from the run's seed."""
    cls = METHODS[cfg.method]
    cls.needs(cfg.model).verify(cfg.method, spec)
    seed_all(initial_seed(cfg))
    return cls(cfg.model, spec)


@dataclass(frozen=True)
class Trained:
    """A finished run: its folder and its scores by split."""

    folder: Path
    scores: Mapping[str, Any]


def run_path(cfg: RunConfig, runs: Path) -> Path:
    """Where the run of ``cfg`` lives below ``runs``."""
    unused = ("data.missing",) if cfg.data.missing.rate == 0 else ()
    return runs / cfg.corpus / cfg.method / digest(cfg, (*NOT_IN_NAME, *unused)) / f"seed-{cfg.seed}"


def load_data(
    cfg: RunConfig,
    *,
    progress: Progress | None = None,
    stored: Mapping[str, Any] | None = None,
    raw: RawCorpus | None = None,
) -> Prepared:
    """Read the corpus of ``cfg`` (or take ``raw``) and prepare what its method reads, without ``cfg.data.missing``."""
    raw, needs = read_corpus(cfg) if raw is None else raw, METHODS[cfg.method].needs(cfg.model)
    return with_missing(raw, cfg, needs, prepare(raw, cfg, needs, stored=stored, progress=progress), progress)


def train(
    cfg: RunConfig,
    *,
    runs: Path | str = "runs",
    folder: Path | None = None,
    fabric: Fabric | None = None,
    data: Prepared | None = None,
    watcher: Watcher | None = None,
    progress: Progress | None = None,
) -> Trained:
    """Train one seed, or go on where its folder stands; a finished run is returned as it is.

    ``folder``: the run folder (default: named by the settings below ``runs``). Raises ``Interrupted`` after saving on
    SIGINT.
    """
    home = RunFolder(folder or run_path(cfg, Path(runs)))
    if home.finished:
        return Trained(home.path, home.scores())
    if fabric is None:
        fabric = make_fabric(cfg.device)
        fabric.launch()
    with fabric.rank_zero_first():
        data = data or load_data(cfg, progress=progress)
    method = _compiled(build_method(cfg, data.spec).to(fabric.device), cfg.train.compile)
    if home.started:
        verify_same_recipe(home.data(), data.description, also=("sizes", "source"))
    selections = {stage.name: select(cfg, data, stage.name) for stage in method.stages()}
    job = Fit(
        method, data.splits["train"], data.splits["valid"], cfg=cfg, fabric=fabric, folder=home, selections=selections,
        watcher=watcher or Silent(),
    )  # fmt: skip
    with home.held() if fabric.is_global_zero else nullcontext():
        if fabric.is_global_zero and not home.started:
            home.begin(to_yaml(cfg), data.description, environment(fabric, method))
        started = time.perf_counter()
        state = job.run()
        selection = selections[job.stages[-1].name]
        chosen = {"metric": selection.metric, "better": selection.better, "value": state.best}
        chosen |= {"epoch": state.best_epoch, "stage": job.stages[-1].name, "split": "valid"}
        size = cfg.train.eval_batch
        tables = {name: evaluate(method, data.splits[name], size=size, fabric=fabric) for name in ("valid", "test")}
        if fabric.is_global_zero:
            write_results(home, tables, data, chosen, time.perf_counter() - started)
        fabric.barrier()
    return Trained(home.path, home.scores())


def _compiled(method: Method, wanted: bool) -> Method:
    """``method``, with its forward pass and its loss compiled if that is ``wanted``."""
    if wanted:
        method.compile()
        method.loss = torch.compile(method.loss)  # type: ignore[method-assign]
    return method


def write_results(
    home: RunFolder, tables: Mapping[str, Predictions], data: Prepared, chosen: Mapping[str, Any], seconds: float
) -> None:
    """Write predictions, texts and last the scores, which mark the run as finished."""
    home.write_predictions(tables, data.spec.task)
    home.write_inspection(tables, data.spec.task)
    home.write_texts({name: data.clips[name] for name in tables})
    scores = {name: score_table(data.facts.protocol, table) for name, table in tables.items()}
    baseline = baseline_scores(data.spec.task, data.splits, data.facts.protocol)
    home.finish(
        {
            "protocol": data.facts.protocol,
            "selection": dict(chosen),
            **scores,
            "baseline": baseline,
            "seconds": round(seconds, 2),
        }
    )


def score_table(protocol: str, table: Predictions) -> dict[str, float]:
    """All metrics of a protocol over a table of predictions."""
    return score(protocol, table.prediction, table.target, table.valid, columns=table.columns)


def select(cfg: RunConfig, data: Prepared, stage: str = "") -> Selection:
    """How an epoch of ``stage`` is chosen: by the stage's own ``select``, ``train.select`` or the protocol's metric, on valid."""
    protocol = protocol_named(data.facts.protocol)
    own = cfg.train.stages.get(stage, StageConfig()).select
    metric = own or cfg.train.select or protocol.selection
    if metric == LAST:
        return Selection(protocol.selection, LAST, lambda table: score_table(protocol.name, table))
    if metric not in protocol.keys:
        place = f"train.stages.{stage}.select" if own else "train.select"
        raise MoodalError(
            f"{place} is '{metric}', which the protocol {protocol.name} does not have; "
            f"it has {', '.join(protocol.keys)}, or {LAST}{did_you_mean(metric, protocol.keys)}"
        )
    return Selection(metric, protocol.better[metric], lambda table: score_table(protocol.name, table))


@dataclass(frozen=True)
class OpenedRun:
    """A run made usable again: its settings, its method with the selected weights, its data, and those as read."""

    folder: RunFolder
    cfg: RunConfig
    method: Method
    data: Prepared
    raw: RawCorpus

    def degrader(self, progress: Progress | None = None) -> Degrader:
        """What makes splits of the run's data with something missing."""
        return Degrader(
            self.raw, self.cfg, METHODS[self.cfg.method].needs(self.cfg.model), self.data, progress=progress
        )


def open_run(
    path: Path,
    *,
    overrides: Mapping[str, Any] | None = None,
    fabric: Fabric | None = None,
    raw: RawCorpus | None = None,
) -> OpenedRun:
    """Rebuild a run from its folder. ``overrides`` may move the data; other features than the run's are refused.

    ``raw``: the corpus, where it was read before.
    """
    cfg, home = stored_config(path, overrides), RunFolder(path)
    description, raw = home.data(), read_corpus(cfg) if raw is None else raw
    data = load_data(cfg, stored=description, raw=raw)
    spec = from_checkpoint(data.spec, description)
    method = build_method(cfg, spec)
    last = method.stages()[-1].name
    name = f"best-{last}.pt" if home.has(f"best-{last}.pt") else "last.pt"
    home.restore(name, home.load(name), method)
    return OpenedRun(home, cfg, method.to((fabric or Fabric(accelerator="cpu")).device), replace(data, spec=spec), raw)


def environment(fabric: Fabric, method: Method) -> dict[str, Any]:
    """Versions, device and code state of a run."""
    names = ("torch", "lightning-fabric", "numpy", "scipy", "scikit-learn", "transformers", "librosa", "jsonargparse")
    return plain(
        {
            "versions": {"moodal": moodal.__version__, "python": platform.python_version(), **_versions(names)},
            "device": str(fabric.device), "processes": fabric.world_size, "precision": str(fabric.strategy.precision.precision),
            "threads": torch.get_num_threads(), **_commit(), "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "parameters": sum(p.numel() for p in method.parameters()),
        }
    )  # fmt: skip


def _versions(names: Sequence[str]) -> dict[str, str]:
    found = {}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _commit() -> dict[str, Any]:
    """The commit of the checkout this package lies in, and whether it was clean; empty outside a checkout."""
    here = Path(__file__).parent

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", str(here), *arguments], capture_output=True, text=True, timeout=10, check=False
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    commit = git("rev-parse", "HEAD")
    return {} if commit is None else {"commit": commit, "clean": git("status", "--porcelain", "--", str(here)) == ""}
