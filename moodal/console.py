"""What a person sees while waiting: progress bars with time left on a terminal, one line an epoch elsewhere."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

log = logging.getLogger(__name__)


def _columns() -> tuple[Any, ...]:
    text, bar = TextColumn("{task.description}"), BarColumn(bar_width=24)
    return text, bar, MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn()


class TrainingBar:
    """Progress of training: epoch, losses and the best score so far. Writes to stderr, so results can be piped."""

    def __init__(self, label: str, metric: str) -> None:
        self.label, self.metric = label, metric
        self.console = Console(stderr=True)
        self.progress = Progress(
            *_columns(), console=self.console, disable=not self.console.is_terminal, transient=True
        )
        self.task: TaskID | None = None
        self.stage, self.epochs = "", 0

    def __enter__(self) -> "TrainingBar":
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def begin(self, stage: str, epochs: int, steps: int, done: int) -> None:
        self.stage, self.epochs = stage, epochs
        if self.task is not None:
            self.progress.remove_task(self.task)
        self.task = self.progress.add_task(f"{self.label} {stage}", total=steps, completed=done)

    def step(self, epoch: int, losses: Mapping[str, float], best: float | None) -> None:
        if self.task is None:
            return
        shown = f"{self.label} {self.stage} epoch {epoch + 1}/{self.epochs}  {_losses(losses)}{self._best(best)}"
        self.progress.update(self.task, advance=1, description=shown)

    def epoch(self, row: Mapping[str, Any], best: float | None) -> None:
        losses = {key: value for key, value in row.items() if key in ("loss",)}
        mark = "  *best" if row["best"] else ""
        value = row[f"valid_{self.metric}"]
        self.console.print(
            f"{self.label} {row['stage']} epoch {row['epoch']}/{self.epochs}  {_losses(losses)}  "
            f"valid {self.metric} {value:.4f}{self._best(best)}  {row['seconds']:.1f} s{mark}",
            highlight=False,
            soft_wrap=True,
        )

    def _best(self, best: float | None) -> str:
        return "" if best is None else f"  best {self.metric} {best:.4f}"


def _losses(losses: Mapping[str, float]) -> str:
    total = losses.get("loss", float("nan"))
    parts = ", ".join(f"{name} {value:.3f}" for name, value in losses.items() if name != "loss")
    return f"loss {total:.4f}" + (f" ({parts})" if parts else "")


class WaitingBar:
    """Progress of anything counted: call it with (done, to do) and, where the work has phases, the phase's name."""

    def __init__(self, label: str) -> None:
        self.label = label
        self.console = Console(stderr=True)
        self.progress = Progress(
            *_columns(), console=self.console, disable=not self.console.is_terminal, transient=True
        )
        self.task: TaskID | None = None
        self.phase = ""

    def __enter__(self) -> "WaitingBar":
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def __call__(self, done: int, total: int, phase: str = "") -> None:
        if self.task is None or phase != self.phase:
            self.phase = phase
            if self.task is not None:
                self.progress.remove_task(self.task)
            label = f"{self.label} {phase}".strip()
            self.task = self.progress.add_task(label, total=total)
            if not self.console.is_terminal:
                self.console.print(f"{label}: {total} to do", highlight=False)
        self.progress.update(self.task, completed=done, total=total)


class TensorBoardLog:
    """Writes each epoch to TensorBoard beside another watcher."""

    def __init__(self, inner: TrainingBar, folder: str) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as fault:
            from moodal.core.errors import MissingExtra

            raise MissingExtra("tensorboard", "logging") from fault
        self.inner, self.writer = inner, SummaryWriter(folder)

    def begin(self, stage: str, epochs: int, steps: int, done: int) -> None:
        self.inner.begin(stage, epochs, steps, done)

    def step(self, epoch: int, losses: Mapping[str, float], best: float | None) -> None:
        self.inner.step(epoch, losses, best)

    def epoch(self, row: Mapping[str, Any], best: float | None) -> None:
        self.inner.epoch(row, best)
        for name, value in row.items():
            if isinstance(value, float):
                self.writer.add_scalar(f"{row['stage']}/{name}", value, int(row["epoch"]))
        self.writer.flush()


def quiet_libraries() -> None:
    """Keep warnings and notes of libraries out of the way of our own lines."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("moodal").setLevel(logging.INFO)
    for name in ("lightning_fabric", "lightning.fabric", "transformers", "matplotlib", "fontTools"):
        logging.getLogger(name).setLevel(logging.ERROR)
