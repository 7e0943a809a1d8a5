"""What happens to a stream after it is read: pooling once, standardisation on each batch. Fitted on training data only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from moodal.core.batch import Stream
from moodal.core.errors import DataError
from moodal.core.settings import StreamData
from moodal.data.ragged import Ragged

_BLOCK = 65536  # steps read at a time while statistics are computed from a memory-mapped array


@dataclass(frozen=True)
class Standardise:
    """(x - mean) / deviation per channel; constant channels are only centred. ``kind`` as in ``StreamData.normalise``.

    With ``centre`` each clip's own mean over real steps is removed first, and the standardised clip mean is appended
    as D more channels, so that nothing is lost: the output is then 2 D wide.
    """

    mean: Tensor  # (D,) of steps (of clip means with ``centre``)
    deviation: Tensor  # (D,)
    centre: bool = False
    step_deviation: Tensor | None = None  # (D,) of steps around their clip's mean, with ``centre``

    def __call__(self, stream: Stream) -> Stream:
        real = stream.mask[..., None]
        if not self.centre or self.step_deviation is None:
            data = (stream.data - self.mean) / self.deviation
            return Stream(data.masked_fill(~real, 0.0), stream.mask)
        count = real.sum(dim=1, keepdim=True).clamp(min=1)
        own = (stream.data * real).sum(dim=1, keepdim=True) / count
        level = ((own - self.mean) / self.deviation).expand_as(stream.data)
        data = torch.cat([(stream.data - own) / self.step_deviation, level], dim=-1)
        return Stream(data.masked_fill(~real, 0.0), stream.mask)

    @property
    def width(self) -> int:
        return len(self.mean) * (2 if self.centre else 1)

    def state(self) -> dict[str, Any]:
        """Plain lists: what a run stores."""
        step = None if self.step_deviation is None else self.step_deviation.tolist()
        return {"mean": self.mean.tolist(), "deviation": self.deviation.tolist(), "centre": self.centre, "step_deviation": step}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> "Standardise":
        step = None if state["step_deviation"] is None else torch.tensor(state["step_deviation"])
        return cls(torch.tensor(state["mean"]), torch.tensor(state["deviation"]), state["centre"], step)


def fit(stream: Ragged, cfg: StreamData) -> Standardise | None:
    """Statistics of a training stream (all rows of it), or None where nothing is normalised."""
    if cfg.normalise == "none" or not len(stream.values):
        return None
    if cfg.normalise == "train":
        mean, deviation = _moments(stream.values)
        return Standardise(mean, deviation)
    present = np.flatnonzero(stream.lengths > 0)
    sums = np.add.reduceat(np.asarray(stream.values, np.float64), stream.offsets[:-1][present], axis=0)
    means = sums / stream.lengths[present][:, None]
    mean, deviation = _moments(means)
    spread = np.asarray(stream.values, np.float64) - np.repeat(means, stream.lengths[present], axis=0)
    _, step = _moments(spread)
    return Standardise(mean, deviation, True, step)


def _moments(values: np.ndarray) -> tuple[Tensor, Tensor]:
    """Mean and deviation per column in float64, read in blocks; deviations near zero become 1."""
    total, square = np.zeros(values.shape[1]), np.zeros(values.shape[1])
    for start in range(0, len(values), _BLOCK):
        block = np.asarray(values[start : start + _BLOCK], np.float64)
        total += block.sum(axis=0)
        square += (block**2).sum(axis=0)
    mean = total / len(values)
    deviation = np.sqrt(np.maximum(square / len(values) - mean**2, 0.0))
    deviation[deviation < 1e-6 * (1.0 + np.abs(mean))] = 1.0
    return torch.tensor(mean, dtype=torch.float32), torch.tensor(deviation, dtype=torch.float32)


def pooled(stream: Ragged, size: int) -> Ragged:
    """Means over blocks of ``size`` steps of each row; the last block of a row may be shorter."""
    if size == 1 or not len(stream.values):
        return stream
    lengths = stream.lengths
    blocks = -(-lengths // size)
    offsets = np.concatenate([[0], np.cumsum(blocks)]).astype(np.int64)
    within = np.arange(offsets[-1]) - np.repeat(offsets[:-1], blocks)
    starts = np.repeat(stream.offsets[:-1], blocks) + within * size
    ends = np.minimum(starts + size, np.repeat(stream.offsets[1:], blocks))
    sums = np.add.reduceat(np.asarray(stream.values, np.float64), starts, axis=0)
    return Ragged((sums / (ends - starts)[:, None]).astype(np.float32), offsets)


def verify_width(transform: Standardise | None, modality: str, width: int) -> None:
    """A stored transform must fit the stream it is applied to."""
    if transform is not None and len(transform.mean) != width:
        raise DataError(
            f"{modality}: the run was trained on {len(transform.mean)} channels and these features have {width}; "
            "give the features of the run's own recipe."
        )
