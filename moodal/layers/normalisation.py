"""Batch normalisation over the real steps of sequences.

Shapes: N rows, T steps, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class StepBatchNorm(nn.BatchNorm1d):
    """Batch normalisation of the channels of (N, T, D), its statistics taken over real steps.

    A batch with one real step has no deviation: it is normalised by the running statistics and leaves them alone.
    """

    def forward(self, values: Tensor, mask: Tensor | None = None) -> Tensor:  # type: ignore[override]
        """(N, T, D), (N, T) or None for "all real" -> (N, T, D). Padding is not zeroed."""
        if mask is None:
            return super().forward(values.transpose(1, 2)).transpose(1, 2)
        mean, variance = self.running_mean, self.running_var
        assert mean is not None and variance is not None
        count = mask.sum()
        if self.training and int(count) > 1:
            weights = (mask / count)[..., None]
            mean = (values * weights).sum(dim=(0, 1))
            variance = ((values - mean).square() * weights).sum(dim=(0, 1))
            self._note(mean.detach(), variance.detach() * count / (count - 1))
        return (values - mean) * torch.rsqrt(variance + self.eps) * self.weight + self.bias

    @torch.no_grad()
    def _note(self, mean: Tensor, variance: Tensor) -> None:
        """Move the running statistics towards those of a batch; the variance is the unbiased one."""
        assert self.running_mean is not None and self.running_var is not None and self.momentum is not None
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
        self.running_var.lerp_(variance.to(self.running_var.dtype), self.momentum)
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
