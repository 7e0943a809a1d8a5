"""The linear baseline: what a method must beat to show that order in time, or anything that is not linear, is worth it.

Paper   none: a baseline of this project
Code    none
Shapes  N rows, T steps, D_m width of modality m, C outputs

    x = [mean over real steps of text; of audio; of vision]      prediction = W (x - centre) / spread + b + offset

``centre`` and ``spread`` are the mean and deviation of each column over the training rows, ``offset`` is the mean label
(0 for classes); they are measured before training, so that one rate suits all columns and the map starts at the mean
predictor. A modality that a row lacks enters as the centre. The text must come as features: an encoder that learns would
not be linear.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from moodal.core.batch import Batch
from moodal.core.errors import check
from moodal.core.method import Losses, Method, MethodConfig, Output, Split
from moodal.core.spec import Classification, DataSpec, Needs, Regression
from moodal.layers.inputs import StreamInputs
from moodal.layers.masks import masked_mean
from moodal.losses.task import RegressionLoss, task_loss

#: a deviation below this is rounding.
SMALLEST = 1e-6


@dataclass(frozen=True, kw_only=True)
class LinearConfig(MethodConfig):
    """Settings of the linear baseline. Shrinkage of the weights is ``train.decay``."""

    loss: RegressionLoss = "mse"  # for regression; classification has cross-entropy
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check(0 <= self.label_smoothing < 1, f"label_smoothing is {self.label_smoothing}; it lies from 0 up to 1.")


class Linear(Method):
    """Means over time and one linear map."""

    Config = LinearConfig
    title = "Linear baseline: means over time and one linear map"
    paper = "no paper: a baseline of this project"
    status = "faithful"

    def __init__(self, cfg: LinearConfig, spec: DataSpec) -> None:
        super().__init__(cfg, spec)
        self.inputs = StreamInputs(spec, cfg.modalities)
        width = sum(self.inputs.widths.values())
        self.map = nn.Linear(width, spec.task.outputs)
        self.centre: Tensor
        self.spread: Tensor
        self.offset: Tensor
        self.register_buffer("centre", torch.zeros(width))
        self.register_buffer("spread", torch.ones(width))
        self.register_buffer("offset", torch.zeros(spec.task.outputs))

    @classmethod
    def needs(cls, cfg: LinearConfig) -> Needs:
        """The modalities in use, the text as features."""
        return Needs(modalities=tuple(cfg.modalities), text=("features",))

    @torch.no_grad()
    def on_stage_start(self, stage: str, train: Split) -> None:  # noqa: ARG002
        """Measure centre and spread over the rows that have the modality (spread 1 where nothing varies), and the offset."""
        parts = [self._columns(batch.to(self.centre.device)) for batch in train.batches(1024)]
        columns, there = torch.cat([part for part, _ in parts]), torch.cat([part for _, part in parts])
        rows = there.sum(dim=0).clamp(min=1)
        self.centre.copy_(columns.sum(dim=0) / rows)
        deviation = (((columns - self.centre) * there).square().sum(dim=0) / rows).sqrt()
        self.spread.copy_(deviation.where(deviation > SMALLEST, 1.0))
        if train.target is not None and bool(train.target.valid.any()) and isinstance(self.spec.task, Regression):
            self.offset.fill_(train.target.value[train.target.valid].mean())

    def forward(self, batch: Batch) -> Output:
        """Scores (N,) or logits (N, C)."""
        columns, there = self._columns(batch)
        outputs = self.map((columns - self.centre) / self.spread * there) + self.offset
        return Output(outputs if isinstance(self.spec.task, Classification) else outputs[:, 0])

    def loss(self, batch: Batch) -> Losses:
        """The task's loss."""
        cfg, output = self.cfg, self(batch)
        task, rows = task_loss(
            output.prediction, batch.labels, task=self.spec.task, kind=cfg.loss, label_smoothing=cfg.label_smoothing
        )
        return Losses(task, output, rows=rows, task=task)

    def _columns(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """(N, ΣD) means over time, and whether the row has the modality that the column belongs to."""
        streams = self.inputs(batch).values()
        columns = [masked_mean(stream.data, stream.mask) for stream in streams]
        there = [s.mask.any(dim=1, keepdim=True).expand_as(column) for s, column in zip(streams, columns)]
        return torch.cat(columns, dim=-1), torch.cat(there, dim=-1)
