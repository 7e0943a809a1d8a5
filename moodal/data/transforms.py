"""What happens to a stream after it is read: pooling once, standardisation on each batch.

Fitted on training data only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
_ROWS = 256  # clips read at a time, likewise
#: The channel in which 0 stands for no pitch.
UNVOICED = "log_f0"


@dataclass(frozen=True)
class Standardise:
    """(x - mean) / deviation per column, from training data; constant columns are only centred. Shapes (D,)."""

    mean: Tensor
    deviation: Tensor

    def __call__(self, values: Tensor) -> Tensor:
        """(..., D) to (..., D)."""
        return (values - self.mean) / self.deviation

    def state(self) -> dict[str, Any]:
        """Plain lists: what a run stores."""
        return {"mean": self.mean.tolist(), "deviation": self.deviation.tolist()}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> "Standardise":
        return cls(torch.tensor(state["mean"]), torch.tensor(state["deviation"]))

    @classmethod
    def fit(cls, values: np.ndarray) -> "Standardise":
        """From (n, D) values, read in blocks, in float64; deviations near zero become 1."""
        return cls(*_moments(values))


@dataclass(frozen=True)
class Transform:
    """What a run does to one stream: standardise its steps, and append standardised statistics of the clip to each.

    Either part may be absent. ``width``: columns that come in.
    """

    width: int
    steps: Standardise | None = None
    clip: Standardise | None = None

    def __call__(self, stream: Stream, statistics: Tensor | None = None) -> Stream:
        """``stream`` (n, T, D) and, with ``clip``, its (n, K) statistics give (n, T, D + K); padding stays zero."""
        data = stream.data if self.steps is None else self.steps(stream.data)
        whole = 0
        if self.clip is not None and statistics is not None:
            data = torch.cat([data, self.clip(statistics)[:, None].expand(-1, data.shape[1], -1)], dim=-1)
            whole = len(self.clip.mean)
        return Stream(data.masked_fill(~stream.mask[..., None], 0.0), stream.mask, whole)

    @property
    def out(self) -> int:
        """Columns that go out."""
        return self.width + (0 if self.clip is None else len(self.clip.mean))

    def state(self) -> dict[str, Any]:
        """Plain values: what a run stores."""
        parts = {"steps": self.steps, "clip": self.clip}
        return {"width": self.width} | {name: None if part is None else part.state() for name, part in parts.items()}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> "Transform":
        steps, clip = (
            None if state[name] is None else Standardise.from_state(state[name]) for name in ("steps", "clip")
        )
        return cls(state["width"], steps, clip)


def fit(stream: Ragged, cfg: StreamData, statistics: np.ndarray | None) -> Transform:
    """The transform of a training stream (all its rows) and its clip statistics ((n, K), NaN rows where missing)."""
    steps = Standardise.fit(stream.values) if cfg.normalise == "train" and len(stream.values) else None
    clip = None
    if statistics is not None and bool((stream.lengths > 0).any()):
        clip = Standardise.fit(statistics[stream.lengths > 0])
    return Transform(stream.width, steps, clip)


def clip_statistics(stream: Ragged, coarse: Ragged, channels: Sequence[str]) -> np.ndarray:
    """(N, 6 D + 1) float32: what sums up each clip, a function of that clip alone; zeros for missing clips.

    Per channel the mean, deviation and mean absolute change of the ``coarse`` (pooled) steps, and the 5, 50 and 95 %
    quantiles of all steps; then the logarithm of the number of coarse steps. In a channel named ``log_f0`` zeros stand
    for steps without a pitch, which the quantiles leave out.
    """
    pitch = list(channels).index(UNVOICED) if UNVOICED in channels else None
    blocks = [np.arange(start, min(start + _ROWS, len(stream))) for start in range(0, len(stream), _ROWS)]
    found = [torch.cat([_moves(coarse.pad(rows)), _levels(stream.pad(rows), pitch)], dim=1) for rows in blocks]
    whole = torch.cat(found) if found else torch.zeros(0, 6 * stream.width + 1)
    return (whole * torch.from_numpy(stream.lengths > 0)[:, None]).float().numpy()


def _moves(stream: Stream) -> Tensor:
    """(n, 3 D + 1): mean, deviation, mean absolute change from step to step, and log length."""
    real, data = stream.mask[..., None], stream.data.double()
    count = real.sum(dim=1).clamp(min=1)
    mean = (data * real).sum(dim=1) / count
    deviation = (((data - mean[:, None]) ** 2 * real).sum(dim=1) / count).sqrt()
    change = ((data[:, 1:] - data[:, :-1]).abs() * real[:, 1:]).sum(dim=1) / (count - 1).clamp(min=1)
    return torch.cat([mean, deviation, change, count.log()], dim=1)


def _levels(stream: Stream, pitch: int | None) -> Tensor:
    """(n, 3 D): the 5, 50 and 95 % quantiles over real steps; of column ``pitch`` over those that are not 0."""
    absent = ~stream.mask[..., None].expand_as(stream.data)
    if pitch is not None:
        absent = absent.clone()
        absent[..., pitch] |= stream.data[..., pitch] == 0
    values = stream.data.double().masked_fill(absent, float("nan"))
    levels = torch.tensor([0.05, 0.5, 0.95], dtype=torch.float64)
    return torch.cat([*torch.nanquantile(values, levels, dim=1).nan_to_num()], dim=1)


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


def rooted(stream: Ragged) -> Ragged:
    """The signed square root of every value: makes skewed intensities more even."""
    values = np.asarray(stream.values, np.float32)
    return Ragged(np.sign(values) * np.sqrt(np.abs(values)), stream.offsets)


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


def verify_width(transform: Transform, modality: str, width: int) -> None:
    """A stored transform must fit the stream it is applied to."""
    if transform.width != width:
        raise DataError(
            f"{modality}: the run was trained on {transform.width} channels and these features have {width}; "
            "give the features of the run's own recipe."
        )
