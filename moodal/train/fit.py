"""The one loop: trains any method in its own stages and passes, keeps the best epoch, stops and goes on anywhere."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from lightning_fabric import Fabric
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from moodal.core.errors import Interrupted
from moodal.core.method import Losses, Method, Pass, Progress, Split, Stage
from moodal.core.random import derived_seed, generator, seed_all
from moodal.core.settings import RunConfig, StageConfig
from moodal.train.batches import augmented, bucketed, share
from moodal.train.evaluate import Predictions, evaluate
from moodal.train.optim import verify_names
from moodal.train.processes import copies, merge_buffers, pooled_sums
from moodal.train.runs import RunFolder
from moodal.train.update import Updater

#: Keep the last epoch: for a number of epochs that is fixed beforehand.
LAST = "last"


class Watcher(Protocol):
    """Whoever shows progress: a bar on a terminal, lines in a log, nothing in a test."""

    def begin(self, stage: str, epochs: int, steps: int, done: int) -> None: ...

    def step(self, epoch: int, losses: Mapping[str, float], best: float | None) -> None: ...

    def epoch(self, row: Mapping[str, Any], best: float | None) -> None: ...


class Silent:
    """A watcher that shows nothing."""

    def begin(self, stage: str, epochs: int, steps: int, done: int) -> None: ...

    def step(self, epoch: int, losses: Mapping[str, float], best: float | None) -> None: ...

    def epoch(self, row: Mapping[str, Any], best: float | None) -> None: ...


@dataclass(frozen=True)
class Selection:
    """The validation score that chooses the epoch: its name, its direction, and how to compute all scores."""

    metric: str
    better: str  # "lower", "higher", or "last": the last epoch, whatever its score
    score: Callable[[Predictions], Mapping[str, float]]

    def improves(self, value: float, best: float | None) -> bool:
        """NaN never improves; anything beats nothing."""
        if self.better == LAST:
            return True
        if math.isnan(value):
            return False
        return best is None or (value < best if self.better == "lower" else value > best)


@dataclass
class State:
    """Where training stands. Everything in it is saved, so nothing else may decide what happens next."""

    stage: int = 0
    epoch: int = 0
    part: int = 0  # pass within the epoch
    step: int = 0  # global batch within the pass
    best: float | None = None
    best_epoch: int | None = None
    waited: int = 0
    finished: bool = False  # the stage's last epoch is over
    sums: dict[str, float] = field(default_factory=dict)  # of losses in this epoch, weighted by rows
    rows: float = 0.0
    history: list[dict[str, Any]] = field(default_factory=list)

    def loss_means(self) -> dict[str, float]:
        return {name: total / max(self.rows, 1.0) for name, total in self.sums.items()}


class Fit:
    """Trains ``method`` on ``train``, choosing epochs on ``valid`` by the selection of each stage. Call :meth:`run`."""

    def __init__(
        self,
        method: Method,
        train: Split,
        valid: Split,
        *,
        cfg: RunConfig,
        fabric: Fabric,
        folder: RunFolder,
        selections: Mapping[str, Selection],
        watcher: Watcher,
    ) -> None:
        self.method, self.train, self.valid = method, train, valid
        self.cfg, self.fabric, self.folder, self.selections, self.watcher = cfg, fabric, folder, selections, watcher
        self.stages = method.stages()
        verify_names(cfg.method, self.stages, cfg.train)
        self.state = State()
        self.updaters: list[Updater] = []
        self.averaged: AveragedModel | None = None
        self._stop = False

    def run(self) -> State:
        """Train all stages from the saved place (or the start). Raises ``Interrupted`` after saving on SIGINT."""
        saved = self.folder.load("last.pt", self.fabric.device) if self.folder.has("last.pt") else None
        if saved is not None:
            self.state = State(**saved["state"])
            if not self.fabric.is_global_zero:  # the saved sums are those of all processes
                self.state.sums, self.state.rows = {}, 0.0
            self.folder.restore("last.pt", saved, self.method)
        with self._stopping_on_interrupt():
            for number in range(self.state.stage, len(self.stages)):
                if number > self.state.stage:
                    self.state = State(stage=number, history=self.state.history)
                    saved = None
                self._run_stage(self.stages[number], saved)
        if not self.folder.has("last.pt"):  # no epochs at all: the initial weights are the result
            self._save()
        return self.state

    def _run_stage(self, stage: Stage, saved: Mapping[str, Any] | None) -> None:
        numbers = self._numbers(stage)
        self._enter(stage, saved)
        steps = sum(updater.total for updater in self.updaters)
        done = sum(self._steps(stage, epoch) for epoch in range(self.state.epoch)) * len(stage.passes)
        done += self.state.part * self._steps(stage, self.state.epoch) + self.state.step
        self.watcher.begin(stage.name, numbers.epochs, steps, done)
        while not self.state.finished and self.state.epoch < numbers.epochs:
            self._run_epoch(stage, numbers)
        best = f"best-{stage.name}.pt"
        if self.folder.has(best):
            self.folder.restore(best, self.folder.load(best, self.fabric.device), self.method)

    def _numbers(self, stage: Stage) -> "StageNumbers":
        own, train = self.cfg.train.stages.get(stage.name, StageConfig()), self.cfg.train
        epochs = train.epochs if own.epochs is None else own.epochs
        return StageNumbers(epochs, train.patience if own.patience is None else own.patience)

    def _enter(self, stage: Stage, saved: Mapping[str, Any] | None) -> None:
        """Optimisers of the stage; only its parameters ask for gradients."""
        own = {id(p) for part in stage.passes for group in part.all_groups() for p in group.parameters()}
        for parameter in self.method.parameters():
            parameter.requires_grad_(id(parameter) in own)
        if saved is None:
            seed_all(self.cfg.seed, stage.name, "start")
            self.method.on_stage_start(stage.name, self.train)
        total = sum(self._steps(stage, epoch) for epoch in range(self._numbers(stage).epochs))
        self.updaters = [Updater(self.fabric, part.groups, self.cfg.train, total) for part in stage.passes]
        decay = self.cfg.train.average
        self.averaged = None if decay is None else AveragedModel(self.method, multi_avg_fn=get_ema_multi_avg_fn(decay))
        if saved is None:
            return
        for updater, state in zip(self.updaters, saved["updaters"], strict=True):
            updater.load_state_dict(state)
        if self.averaged is not None:
            self.averaged.load_state_dict(saved["averaged"])

    def _batches(self, stage: Stage, part: int, epoch: int) -> list[torch.Tensor]:
        """The global batches of a pass: a function of (seed, stage, epoch, pass) alone."""
        place = (self.cfg.seed, stage.name, epoch, part, "order")
        shuffled = torch.randperm(len(self.train), generator=generator(*place))
        order = shuffled if stage.order is None else stage.order(epoch).cpu()
        return bucketed(order, self.train.cost, self.cfg.train.batch, self.cfg.train.bucket)

    def _steps(self, stage: Stage, epoch: int) -> int:
        """How many global batches a pass of ``epoch`` has."""
        rows = len(self.train) if stage.order is None else len(stage.order(epoch))
        return -(-rows // self.cfg.train.batch)

    def _run_epoch(self, stage: Stage, numbers: "StageNumbers") -> None:
        started = time.perf_counter()
        self.method.train()
        for number in range(self.state.part, len(stage.passes)):
            self._run_pass(stage, stage.passes[number], number, numbers.epochs)
            self.state.part, self.state.step = number + 1, 0
        table = evaluate(self._candidate(), self.valid, size=self.cfg.train.eval_batch, fabric=self.fabric)
        scores = dict(self.selections[stage.name].score(table))
        self._close_epoch(stage, numbers, scores, time.perf_counter() - started)

    def _run_pass(self, stage: Stage, part: Pass, number: int, epochs: int) -> None:
        updater, state = self.updaters[number], self.state
        batches = self._batches(stage, number, state.epoch)
        for step in range(state.step, len(batches)):
            updater.progress = Progress(stage.name, state.epoch, step, epochs)
            self._global_step(stage, part, updater, batches[step], (state.epoch, number, step))
            if self.averaged is not None:
                self.averaged.update_parameters(self.method)
            state.step = step + 1
            self.watcher.step(state.epoch, state.loss_means(), state.best)
            if self._should_stop():
                self._save()
                raise Interrupted
            if self.cfg.train.save_every is not None and state.step % self.cfg.train.save_every == 0:
                self._save()

    def _global_step(
        self, stage: Stage, part: Pass, updater: Updater, rows: torch.Tensor, place: tuple[int, int, int]
    ) -> None:
        """One optimiser step over a global batch: this process's share, in parts."""
        parts = share(rows, self.fabric.global_rank, self.fabric.world_size, self.cfg.train.accumulate)
        before = copies(self.method, self.fabric)
        for turn, (chosen, counted) in enumerate(parts):
            seed_all(self.cfg.seed, stage.name, *place, turn, self.fabric.global_rank)
            batch = self.train.rows(chosen)
            if stage.companions is not None:
                companions = self.train.rows(stage.companions(chosen, place[0]).cpu())
                batch = replace(batch, companions=companions)
            batch = augmented(batch.to(self.fabric.device), self.cfg.train.augment)
            updater.rows, updater.due = counted, turn == len(parts) - 1
            with self.fabric.autocast():
                losses = part.step(batch, updater)
            self._note(losses, counted)
        took_part = any(counted for _, counted in parts)
        merge_buffers(self.method, before, self.fabric, took_part=took_part)

    def _note(self, losses: Losses, counted: int) -> None:
        """Add the losses of one part to the epoch's sums, weighted by the rows they are means over."""
        rows = counted if losses.rows is None or not counted else float(losses.rows)
        for name, value in {"loss": losses.total.detach(), **losses.parts}.items():
            self.state.sums[name] = self.state.sums.get(name, 0.0) + float(value) * rows
        self.state.rows += rows

    def _candidate(self) -> Method:
        """The weights that are evaluated and kept: averaged ones where asked for."""
        return self.method if self.averaged is None else self.averaged.module  # type: ignore[return-value]

    def _close_epoch(self, stage: Stage, numbers: "StageNumbers", scores: Mapping[str, float], seconds: float) -> None:
        state, selection = self.state, self.selections[stage.name]
        state.sums, state.rows = pooled_sums(state.sums, state.rows, self.fabric)
        value = float(scores[selection.metric])
        is_best = selection.improves(value, state.best)
        row = {"stage": stage.name, "epoch": state.epoch + 1, "seconds": round(seconds, 3), **state.loss_means()}
        row |= {f"valid_{name}": float(score) for name, score in scores.items()}
        row |= {"rate": self.updaters[-1].rate, "best": int(is_best)}
        state.history.append(row)
        if is_best:
            state.best, state.best_epoch, state.waited = value, state.epoch + 1, 0
        else:
            state.waited += 1
        state.epoch, state.part, state.step, state.rows, state.sums = state.epoch + 1, 0, 0, 0.0, {}
        state.finished = numbers.patience is not None and state.waited >= numbers.patience
        if is_best and self.fabric.is_global_zero:
            self.folder.save(f"best-{stage.name}.pt", {"method": self._candidate().state_dict()})
        self._save()
        if self.fabric.is_global_zero:
            self.folder.write_history(state.history)
        self.watcher.epoch(row, state.best)
        if self._should_stop():
            raise Interrupted

    def _save(self) -> None:
        """Write last.pt: the one file a run goes on from."""
        self.state.sums, self.state.rows = pooled_sums(self.state.sums, self.state.rows, self.fabric)
        if self.fabric.is_global_zero:
            state = {
                "method": self.method.state_dict(),
                "averaged": None if self.averaged is None else self.averaged.state_dict(),
                "updaters": [updater.state_dict() for updater in self.updaters],
                "state": dict(vars(self.state)),
            }
            self.folder.save("last.pt", state)
        self.fabric.barrier()

    def _should_stop(self) -> bool:
        """All processes stop at the same step, whichever of them was interrupted."""
        if self.fabric.world_size == 1:
            return self._stop
        flag = self.fabric.all_reduce(torch.tensor(float(self._stop), device=self.fabric.device), reduce_op="sum")
        return bool(torch.as_tensor(flag) > 0)

    @contextmanager
    def _stopping_on_interrupt(self) -> Iterator[None]:
        """The first SIGINT stops after the batch; a second one stops at once."""

        def stop(*_: Any) -> None:
            if self._stop:
                raise KeyboardInterrupt
            self._stop = True

        try:
            previous = signal.signal(signal.SIGINT, stop)
        except ValueError:  # not the main thread: whoever runs us handles interrupts
            yield
            return
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, previous)


@dataclass(frozen=True)
class StageNumbers:
    """Epochs and patience of a stage after inheritance."""

    epochs: int
    patience: int | None


def initial_seed(cfg: RunConfig) -> int:
    """The seed under which a method's parameters are drawn."""
    return derived_seed(cfg.seed, "initialisation")
