"""Tiny corpora, settings and methods: one method for every kind of stage that the contract knows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import nn

from moodal.build import score_table, select
from moodal.core.batch import Batch, Stream, Target
from moodal.core.method import Group, Losses, Method, MethodConfig, Output, Pass, Stage
from moodal.core.random import seed_all
from moodal.core.settings import DataConfig, RunConfig, TextData, TrainConfig
from moodal.core.spec import Classification, DataSpec, Needs, StreamSpec
from moodal.data.ragged import Ragged
from moodal.data.synthetic import SyntheticConfig
from moodal.layers.masks import masked_mean
from moodal.losses.task import task_loss
from moodal.methods.text import TEXT, TextConfig
from moodal.prepare import Prepared, prepare, read_corpus
from moodal.train.evaluate import Predictions, evaluate
from moodal.train.fit import Fit, Silent, initial_seed
from moodal.train.runs import RunFolder

WIDTH = 6
#: 41 rows in batches of 8: the last batch of an epoch has one row.
READER = SyntheticConfig(train=41, valid=12, test=13, text_width=7, audio_width=3, vision_width=4, steps=(12, 16))
DATA = DataConfig(text=TextData(mode="features"), explainer="stored")
TINY_TEXT: Mapping[str, Any] = {
    "max_steps": 40, "width": 8, "heads": 2, "head_width": 4, "feed_forward": 8, "layers": 1, "temporal_inner": 8, "expert_hidden": 8,
    "experts": 3, "top_k": 2,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class ToyConfig(MethodConfig):
    """Settings of the toys."""

    dropout: float = 0.0


class Toy(Method):
    """Each stream averaged over its real steps, projected, side by side into a linear head."""

    Config = ToyConfig

    def __init__(self, cfg: ToyConfig, spec: DataSpec):
        super().__init__(cfg, spec)
        self.inputs = nn.ModuleDict({m: nn.Linear(spec.streams[m].width, WIDTH) for m in spec.modalities})
        self.drop = nn.Dropout(cfg.dropout)
        self.head = nn.Linear(WIDTH * len(spec.modalities), spec.task.outputs)

    def encode(self, batch):
        parts = {m: batch.streams[m] for m in self.inputs}
        means = {m: self.inputs[m](masked_mean(s.data, s.mask)) * s.mask.any(1, keepdim=True) for m, s in parts.items()}
        return torch.tanh(torch.cat(list(means.values()), dim=1))

    def predict(self, encoded):
        out = self.head(self.drop(encoded))
        return out if isinstance(self.spec.task, Classification) else out[:, 0]

    def forward(self, batch):
        encoded = self.encode(batch)
        return Output(self.predict(encoded), features={"fusion": encoded}, inspection={"fusion": encoded.detach()})

    def loss(self, batch):
        out = self(batch)
        task, rows = task_loss(out.prediction, batch.target, task=self.spec.task)
        return Losses(task, out, rows=rows, task=task)


class Backboned(Toy):
    """Groups "backbone" and "main"."""

    def backbone(self):
        return self.inputs["text"]


class Critic(Toy):
    """A critic that guesses the size of the encoding, stepped in each batch before the rest, which then uses it."""

    def __init__(self, cfg, spec):
        super().__init__(cfg, spec)
        self.critic = nn.Linear(self.head.in_features, 1)

    def stages(self):
        groups = {"critic": [Group("critic", self.critic)], "main": [Group("main", self, without=(self.critic,))]}
        return (Stage("train", passes=(Pass(self.step, groups),)),)

    def step(self, batch, update):
        encoded = self.encode(batch)
        guess = self.critic(encoded.detach())[:, 0]
        update(Losses((guess - encoded.detach().square().sum(1)).square().mean()), "critic")
        losses = self.loss(batch)
        bonus = self.critic(losses.output.features["fusion"]).mean()
        total = Losses(losses.total + 0.1 * bonus, losses.output, task=losses.total, bonus=bonus)
        update(total)
        return total


class TwoPasses(Toy):
    """Every epoch first fits an estimator of the encoding, then the rest."""

    def __init__(self, cfg, spec):
        super().__init__(cfg, spec)
        self.estimator = nn.Linear(1, self.head.in_features)

    def likelihood(self, batch, encoded):
        return (self.estimator(batch.target.value[:, None].float()) - encoded).square().mean()

    def estimator_step(self, batch, update):
        losses = Losses(self.likelihood(batch, self.encode(batch)))
        update(losses)
        return losses

    def main_step(self, batch, update):
        task = self.loss(batch)
        losses = Losses(task.total + 0.1 * self.likelihood(batch, task.output.features["fusion"]), task=task.total)
        update(losses)
        return losses

    def stages(self):
        rest = [Group("main", self, without=(self.estimator,))]
        passes = (Pass(self.estimator_step, [Group("estimator", self.estimator)]), Pass(self.main_step, rest))
        return (Stage("train", passes=passes),)


class TwoStages(Toy):
    """First the inputs alone, then the head around a centre measured between the two stages."""

    def __init__(self, cfg, spec):
        super().__init__(cfg, spec)
        self.guide = nn.Linear(self.head.in_features, 1)
        self.register_buffer("centre", torch.zeros(self.head.in_features))

    def encode(self, batch):
        return super().encode(batch) - self.centre

    def guided(self, batch, update):
        guess = self.guide(self.encode(batch))[:, 0]
        losses = Losses((guess - batch.target.value).square().mean())
        update(losses)
        return losses

    def stages(self):
        first = Pass(self.guided, [Group("inputs", self.inputs, self.guide)])
        return (Stage("inputs", passes=(first,)), Stage("head", passes=(Pass(self.step, [Group("head", self.head)]),)))

    @torch.no_grad()
    def on_stage_start(self, stage, train):
        if stage == "head":
            whole = torch.cat([self.encode(batch) for batch in train.batches(16)])
            self.centre += whole.mean(dim=0) + 0.01 * torch.randn_like(self.centre)


class Curriculum(Toy):
    """Small labels first; more rows each epoch."""

    def __init__(self, cfg, spec):
        super().__init__(cfg, spec)
        self.register_buffer("difficulty", torch.zeros(spec.size["train"]))

    def easy_first(self, epoch):
        share = min(1.0, 0.4 + 0.3 * epoch)
        return self.difficulty.argsort(stable=True)[: int(share * len(self.difficulty))]

    def stages(self):
        return (Stage("train", passes=(Pass(self.step, [Group("main", self)]),), order=self.easy_first),)

    def on_stage_start(self, stage, train):
        self.difficulty.copy_(train.target.value.float().abs())


class Companions(Toy):
    """Each row is pulled towards the encoding of another row."""

    def other(self, index, epoch):
        return (index + 1 + epoch) % self.spec.size["train"]

    def loss(self, batch):
        plain = super().loss(batch)
        pull = (plain.output.features["fusion"] - self.encode(batch.companions)).square().mean()
        return Losses(plain.total + 0.1 * pull, plain.output, task=plain.total, pull=pull)

    def stages(self):
        return (Stage("train", passes=(Pass(self.step, [Group("main", self)]),), companions=self.other),)


class Bank(Toy):
    """Remembers the encoding of every row by its place in the split, and how often it was written."""

    def __init__(self, cfg, spec):
        super().__init__(cfg, spec)
        size = spec.size["train"]
        self.register_buffer("bank", torch.zeros(size, self.head.in_features))
        self.register_buffer("times", torch.zeros(size, dtype=torch.int64))

    def step(self, batch, update):
        losses = self.loss(batch)
        new = losses.output.features["fusion"]
        drift = (new - self.bank[batch.index]).square().mean()
        spread = (new - self.bank.mean(dim=0)).square().mean()
        total = Losses(losses.total + 0.1 * drift - 0.01 * spread, losses.output, drift=drift)
        update(total)
        self.bank[batch.index] = new.detach()
        self.times[batch.index] += 1
        return total


#: kind of stage -> (method, its settings of training).
KINDS: Mapping[str, tuple[type[Toy], Mapping[str, Any]]] = {
    "plain": (Toy, {}),
    "groups": (Backboned, {}),
    "critic": (Critic, {}),
    "two passes": (TwoPasses, {}),
    "two stages": (TwoStages, {}),
    "curriculum": (Curriculum, {}),
    "companions": (Companions, {}),
    "bank": (Bank, {}),
    "average": (Bank, {"average": 0.8}),
    "patience": (TwoStages, {"patience": 1, "rate": 0.3}),
    "augment": (Toy, {}),
}


def ragged_batch(widths: Mapping[str, int], rows: int = 4, steps: int = 5) -> Batch:
    """Random streams of up to ``steps`` steps, the same of a row in all of them, and a number as its label."""
    mask = torch.arange(steps) < torch.randint(1, steps + 1, (rows, 1))
    return Batch(
        ids=tuple(map(str, range(rows))),
        index=torch.arange(rows),
        streams={m: Stream(torch.randn(rows, steps, w) * mask[..., None], mask) for m, w in widths.items()},  # type: ignore[misc]
        target=Target(torch.randn(rows), torch.ones(rows, dtype=torch.bool)),
    )


def toy_config(
    *, seed: int = 1, model: Any = None, method: str = "toy", reader: SyntheticConfig = READER, **train: Any
) -> RunConfig:
    """Settings of a toy run on the synthetic corpus; keywords are those of ``train``."""
    values = {"epochs": 3, "batch": 8, "rate": 1e-2, **train}
    return RunConfig(
        corpus="synthetic",
        method=method,
        seed=seed,
        model=model or ToyConfig(),
        reader=reader,
        data=DATA,
        train=TrainConfig(**values),
    )


def prepared(cfg: RunConfig) -> Prepared:
    """The synthetic corpus of ``cfg`` with stored features."""
    return prepare(read_corpus(cfg), cfg, Needs())


def with_explanations(data: Prepared, *, width: int = 7, seed: int = 0) -> Prepared:
    """``data`` with two made-up explanations of the text's width, one row of them missing."""
    draw = np.random.default_rng(seed)

    def rows(count: int) -> Ragged:
        lengths = draw.integers(3, 7, count)
        lengths[0] = 0
        return Ragged.from_rows([draw.standard_normal((n, width)).astype(np.float32) for n in lengths])

    splits = {
        name: replace(s, explanations={"audio": rows(len(s)), "vision": rows(len(s))})
        for name, s in data.splits.items()
    }
    told = {role: StreamSpec("features", width) for role in ("audio", "vision")}
    return replace(data, splits=splits, spec=replace(data.spec, explanations=told))


def with_degraded(data: Prepared, *, seed: int = 0) -> Prepared:
    """``data`` whose training split has a second view of itself: a third of all steps are zeros there."""
    draw, train = np.random.default_rng(seed), data.splits["train"]
    observed = {m: Ragged(draw.random(len(s.values)) > 1 / 3, s.offsets) for m, s in train.streams.items()}
    streams = {m: Ragged(s.values * observed[m].values[:, None], s.offsets) for m, s in train.streams.items()}
    second = replace(train, streams=streams, observed=observed)
    return replace(data, splits={**data.splits, "train": replace(train, second=second)})


def make_method(cls: type[Method], cfg: RunConfig, data: Prepared) -> Method:
    """``cls`` with weights drawn as a run of ``cfg`` draws them."""
    seed_all(initial_seed(cfg))
    return cls(cfg.model, data.spec)


def cpu_fabric(**settings: Any) -> Fabric:
    fabric = Fabric(accelerator="cpu", **{"devices": 1, **settings})
    fabric.launch()
    return fabric


def job(
    cls: type[Method],
    cfg: RunConfig,
    data: Prepared,
    folder: Path,
    *,
    fabric: Fabric | None = None,
    watcher: Any = None,
) -> Fit:
    """A run of ``cls`` ready to go; its folder may hold an earlier part of it."""
    method = make_method(cls, cfg, data)
    selections = {stage.name: select(cfg, data, stage.name) for stage in method.stages()}
    return Fit(
        method, data.splits["train"], data.splits["valid"], cfg=cfg, fabric=fabric or cpu_fabric(), folder=RunFolder(folder),
        selections=selections, watcher=watcher or Silent(),
    )  # fmt: skip


def predictions(fit: Fit, data: Prepared, split: str = "test") -> Predictions:
    return evaluate(fit.method, data.splits[split], size=fit.cfg.train.eval_batch, fabric=fit.fabric)


def scores(data: Prepared, table: Predictions) -> dict[str, float]:
    return score_table(data.facts.protocol, table)


def tiny_text(**settings: Any) -> TextConfig:
    return TextConfig(**{**TINY_TEXT, **settings})


def every_kind() -> dict[str, tuple[type[Method], RunConfig]]:
    """All kinds of stages and TEXT, without anything random, in three ways of cutting batches: for several processes."""
    found: dict[str, tuple[type[Method], RunConfig]] = {}
    for name, (cls, train) in KINDS.items():
        if name == "augment":
            continue
        found[name] = cls, toy_config(epochs=2, **train)
        if name in ("plain", "critic", "two passes", "companions"):
            found[f"{name}, accumulated"] = cls, toy_config(epochs=2, accumulate=2, **train)
    still = {"noise": False, "dropout": 0.0, "head_dropout": 0.0}
    for optimiser in ("sgd", "adamw"):
        found[f"text, {optimiser}"] = (
            TEXT,
            toy_config(epochs=2, method="text", model=tiny_text(**still), optimiser=optimiser),
        )
    return found


def train_every_kind(fabric: Fabric, folder: Path) -> None:
    """Train :func:`every_kind` and keep weights, loss history and predictions of each in ``folder``."""
    torch.set_num_threads(1)
    for name, (cls, cfg) in every_kind().items():
        data = prepared(cfg)
        if cfg.method == "text":
            data = with_explanations(data)
        fit = job(cls, cfg, data, folder / name, fabric=fabric)
        state = fit.run()
        table = predictions(fit, data)
        if fabric.is_global_zero:
            kept = {"weights": fit.method.state_dict(), "prediction": torch.from_numpy(table.prediction)}
            kept["loss"] = [row["loss"] for row in state.history]
            torch.save(kept, folder / f"{name}.pt")


class Killed(BaseException):
    """Stands for SIGKILL: nothing catches it, so nothing is saved or tidied after it."""


class KilledAt(Silent):
    """Ends a run at its n-th step."""

    def __init__(self, step: int):
        self.left = step

    def step(self, epoch: int, losses: Mapping[str, float], best: float | None) -> None:
        self.left -= 1
        if not self.left:
            raise Killed


def train_in_two_parts(fabric: Fabric, folder: Path) -> None:
    """Train "bank", killed in its second epoch and resumed; keep what it ends with as "bank, resumed"."""
    cls, cfg = every_kind()["bank"]
    cfg, data = replace(cfg, train=replace(cfg.train, save_every=1)), prepared(cfg)
    try:
        job(cls, cfg, data, folder / "parts", fabric=fabric, watcher=KilledAt(9)).run()
    except Killed:
        fit = job(cls, cfg, data, folder / "parts", fabric=fabric)
    state = fit.run()
    if fabric.is_global_zero:
        kept = {"weights": fit.method.state_dict(), "loss": [row["loss"] for row in state.history]}
        torch.save(kept, folder / "bank, resumed.pt")


def _both(fabric: Fabric, folder: Path) -> None:
    train_every_kind(fabric, folder)
    train_in_two_parts(fabric, folder)


def two_processes(folder: str) -> None:
    """Train :func:`every_kind`, and one kind in two parts, with two processes on this machine."""
    fabric = Fabric(accelerator="cpu", devices=2, strategy="ddp_fork")
    fabric.launch(_both, Path(folder))
