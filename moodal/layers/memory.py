"""Memories between steps: buffers of fixed size, so that a run resumes exactly and several processes agree.

Shapes: N rows of a batch, R rows of the training split, M remembered rows, K width.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn


class Remembered(NamedTuple):
    """Vectors (M, K) and the group each of them belongs to (M,), -1 for none."""

    vectors: Tensor
    groups: Tensor


class StepMemory(nn.Module):
    """The vectors of the last step, found by the number of the step (``moment``, 1 or more) that wrote them.

    One place for each row of the training split: what several processes write in the same step is then known to all of
    them, and the parts of an accumulated batch see the batch before as a whole. Nothing is emptied: moments pass.
    """

    vectors: Tensor
    groups: Tensor
    moment: Tensor

    def __init__(self, rows: int, width: int) -> None:
        super().__init__()
        self.register_buffer("vectors", torch.zeros(rows, width))
        self.register_buffer("groups", torch.full((rows,), -1))
        self.register_buffer("moment", torch.zeros(rows, dtype=torch.int64))

    def at(self, moment: int) -> Remembered:
        """What was written at ``moment`` and not overwritten since; nothing if nothing was."""
        rows = (self.moment == moment).nonzero()[:, 0]
        return Remembered(self.vectors[rows], self.groups[rows])

    def write(self, index: Tensor, moment: int, now: Remembered) -> None:
        """Remember N rows at ``index`` (N,), their places in the training split; no gradient will reach them."""
        self.vectors[index] = now.vectors.detach().to(self.vectors.dtype)
        self.groups[index] = now.groups
        self.moment[index] = moment
