"""From a vector to the task's outputs."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from moodal.core.spec import Classification, Task
from moodal.layers.dropout import Dropout


class Head(nn.Module):
    """Linear D -> D/2, GELU, dropout, linear to the task's outputs."""

    def __init__(self, width: int, task: Task, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.single = not isinstance(task, Classification)
        self.first = nn.Linear(width, width // 2)
        self.dropout = Dropout(dropout)
        self.second = nn.Linear(width // 2, task.outputs)

    def forward(self, vector: Tensor) -> Tensor:
        """(N, D) -> (N,) for regression, (N, C) logits for classification."""
        outputs = self.second(self.dropout(F.gelu(self.first(vector))))
        return outputs[:, 0] if self.single else outputs


class Perceptron(nn.Module):
    """Linear D -> H, ReLU, dropout, linear to the task's outputs."""

    def __init__(self, width: int, hidden: int, task: Task, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.single = not isinstance(task, Classification)
        self.first = nn.Linear(width, hidden)
        self.dropout = Dropout(dropout)
        self.second = nn.Linear(hidden, task.outputs)

    def forward(self, vector: Tensor) -> Tensor:
        """(N, D) -> (N,) for regression, (N, C) logits for classification."""
        outputs = self.second(self.dropout(F.relu(self.first(vector))))
        return outputs[:, 0] if self.single else outputs


class LinearHead(nn.Module):
    """One linear map to the task's outputs."""

    def __init__(self, width: int, task: Task) -> None:
        super().__init__()
        self.single = not isinstance(task, Classification)
        self.map = nn.Linear(width, task.outputs)

    def forward(self, vector: Tensor) -> Tensor:
        """(N, D) -> (N,) for regression, (N, C) logits for classification."""
        outputs = self.map(vector)
        return outputs[:, 0] if self.single else outputs
