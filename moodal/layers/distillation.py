"""One vector per view, and what distillation by predictions compares: a classifier on it, a bottleneck, one on that.

Shapes: N rows, n views, D width of an observation v, H hidden width, K width of its code z, C outputs of the task.
Source: Tian et al., TPAMI 2024, released LiDAR-camera code (there with batch norm and 61 -> 48 -> 32 -> 17).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moodal.core.spec import Classification, Task

Norm = Literal["layer", "batch"]


class Views(NamedTuple):
    """Predictions from the observations and from the codes, (n, N) or (n, N, C), and the codes (n, N, K)."""

    observations: Tensor
    codes: Tensor
    vectors: Tensor


class Bottleneck(nn.Module):
    """z = norm(W2 ReLU(norm(W1 v + b1)) + b2): a deterministic squeeze, without noise and without a prior.

    ``norm`` "batch" is the published one: in training a row then depends on its batch mates, and on padding rows.
    """

    def __init__(self, width: int, *, hidden: int, code: int, norm: Norm = "layer") -> None:
        super().__init__()
        kind = nn.LayerNorm if norm == "layer" else nn.BatchNorm1d
        self.first, self.first_norm = nn.Linear(width, hidden), kind(hidden)
        self.second, self.second_norm = nn.Linear(hidden, code), kind(code)

    def forward(self, observation: Tensor) -> Tensor:
        """(N, D) -> (N, K)."""
        return self.second_norm(self.second(F.relu(self.first_norm(self.first(observation)))))


class CodeHead(nn.Module):
    """A bottleneck and a linear classifier on its code."""

    def __init__(self, width: int, task: Task, *, hidden: int, code: int, norm: Norm = "layer") -> None:
        super().__init__()
        self.bottleneck = Bottleneck(width, hidden=hidden, code=code, norm=norm)
        self.classifier = nn.Linear(code, task.outputs)

    def forward(self, observation: Tensor) -> tuple[Tensor, Tensor]:
        """(N, D) -> outputs (N, C), code (N, K)."""
        code = self.bottleneck(observation)
        return self.classifier(code), code


class ViewHeads(nn.Module):
    """For each named view of its width: a linear classifier on the observation, and a bottleneck with one of its own."""

    def __init__(
        self, widths: Mapping[str, int], task: Task, *, hidden: int = 48, code: int = 32, norm: Norm = "layer"
    ) -> None:
        super().__init__()
        self.single = not isinstance(task, Classification)
        self.observers = nn.ModuleDict({name: nn.Linear(width, task.outputs) for name, width in widths.items()})
        self.coders = nn.ModuleDict(
            {name: CodeHead(width, task, hidden=hidden, code=code, norm=norm) for name, width in widths.items()}
        )

    @property
    def names(self) -> tuple[str, ...]:
        """The views, in order."""
        return tuple(self.observers)

    def forward(self, observations: Mapping[str, Tensor]) -> Views:
        """(N, D) of each view -> predictions and codes, stacked in the order of the views."""
        seen = torch.stack([observer(observations[name]) for name, observer in self.observers.items()])
        coded = [coder(observations[name]) for name, coder in self.coders.items()]
        told, vectors = (torch.stack(parts) for parts in zip(*coded))
        return Views(seen[..., 0] if self.single else seen, told[..., 0] if self.single else told, vectors)
