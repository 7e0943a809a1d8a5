"""Dropout whose random bits cost little on a CPU.

torch draws a number of its own for every value there, which was 37 % of a training step of a small transformer. 16 random
bits decide as well: 64 at once come from torch's generator, so seeds, saved states and forks work as ever. On other
devices, and where the graph is being compiled, it is torch's own.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

#: values of the 16-bit random numbers that decide what is dropped.
VALUES = 2**16


def threshold(share: float) -> int:
    """How many of the 16-bit numbers drop a value: ``share`` of them, to the nearest; one at least keeps it."""
    return min(round(share * VALUES), VALUES - 1)


def drop(values: Tensor, share: float) -> Tensor:
    """Zero for ``share`` (to the nearest 1 / 65536) of the values of any shape, the others divided by what is kept."""
    if values.device.type != "cpu" or torch.compiler.is_compiling():
        return F.dropout(values, share)
    dropped = threshold(share)
    if dropped == 0:
        return values
    count = values.numel()
    drawn = torch.empty(-(-count // 4), dtype=torch.int64).random_(-(2**63), None)
    numbers = drawn.view(torch.int16)[:count].view(values.shape)
    kept = torch.ge(numbers, dropped - VALUES // 2, out=torch.empty_like(values, requires_grad=False))
    return values * kept.mul_(VALUES / (VALUES - dropped))


class Dropout(nn.Dropout):
    """torch's module with ``drop``: in training only."""

    def forward(self, input: Tensor) -> Tensor:
        """The shape of ``input``."""
        return drop(input, self.p) if self.training and self.p > 0 else input
