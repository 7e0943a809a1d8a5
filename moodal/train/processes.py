"""What several processes must agree on besides gradients: the buffers a step wrote, and the sums for the log."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn


def copies(method: nn.Module, fabric: Fabric) -> list[Tensor]:
    """The buffers of ``method`` as they are before a step; nothing on a single process."""
    return [buffer.clone() for buffer in method.buffers()] if fabric.world_size > 1 else []


@torch.no_grad()
def merge_buffers(method: nn.Module, before: Sequence[Tensor], fabric: Fabric, *, took_part: bool) -> None:
    """Give every process the buffer elements that any of them wrote since ``before``: their mean over the writers.

    So a memory bank holds the rows of all processes, a counter keeps its value, and running statistics are averaged.
    A process without rows of its own (``took_part`` False) writes nothing.
    """
    buffers = list(method.buffers())
    if not before:
        return
    written = [(now != old) & took_part for now, old in zip(buffers, before, strict=True)]
    touched = torch.stack([mask.any() for mask in written]).float()
    for place in torch.nonzero(_sum(fabric, touched)).flatten().tolist():
        buffer, mask = buffers[place], written[place]
        writers = _sum(fabric, mask.double())
        total = _sum(fabric, torch.where(mask, buffer.double(), 0.0))
        mean = (total / writers.clamp(min=1)).to(buffer.dtype)
        buffer.copy_(torch.where(writers > 0, mean, before[place]))


def pooled_sums(sums: dict[str, float], rows: float, fabric: Fabric) -> tuple[dict[str, float], float]:
    """Sums over all processes, given to the first; the others begin again at nothing, so no row counts twice."""
    if fabric.world_size == 1:
        return sums, rows
    shares: list[Any] = [None] * fabric.world_size
    torch.distributed.all_gather_object(shares, (sums, rows))
    if not fabric.is_global_zero:
        return {}, 0.0
    names = dict.fromkeys(name for part, _ in shares for name in part)
    return {name: sum(part.get(name, 0.0) for part, _ in shares) for name in names}, sum(count for _, count in shares)


def _sum(fabric: Fabric, tensor: Tensor) -> Tensor:
    return fabric.all_reduce(tensor, reduce_op="sum")  # type: ignore[return-value]
