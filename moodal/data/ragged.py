"""Sequences of unequal length kept end to end: one array of steps and the place where each row starts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from moodal.core.batch import Stream
from moodal.core.errors import DataError


@dataclass(frozen=True)
class Ragged:
    """N sequences. ``values``: (steps of all rows, D) floats, (steps of all rows,) ids or (steps of all rows, 3, H, W)
    bytes of pictures, possibly memory-mapped; ``offsets``: (N + 1,) int64, row i is
    ``values[offsets[i]:offsets[i + 1]]``; an empty row is a missing stream."""

    values: np.ndarray
    offsets: np.ndarray

    def __post_init__(self) -> None:
        ends = self.offsets[-1] if len(self.offsets) else -1
        if ends != len(self.values) or self.offsets[0] != 0 or bool(np.any(np.diff(self.offsets) < 0)):
            raise DataError(
                f"offsets end at {ends} and the array has {len(self.values)} steps; "
                "the file is damaged, import it again."
            )

    @classmethod
    def from_rows(cls, rows: Sequence[np.ndarray]) -> "Ragged":
        """From a list of (T_i, D) or (T_i,) arrays of one width."""
        offsets = np.zeros(len(rows) + 1, dtype=np.int64)
        np.cumsum([len(row) for row in rows], out=offsets[1:])
        return cls(np.concatenate(rows) if len(rows) else np.zeros((0, 0), np.float32), offsets)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, row: int) -> np.ndarray:
        return self.values[self.offsets[row] : self.offsets[row + 1]]

    @property
    def width(self) -> int:
        """D, the colours of pictures, or 1 for ids."""
        return self.values.shape[1] if self.values.ndim > 1 else 1

    @property
    def pictures(self) -> bool:
        """Whether the steps are pictures."""
        return self.values.ndim == 4

    @property
    def lengths(self) -> np.ndarray:
        """(N,) int64 steps of each row."""
        return np.diff(self.offsets)

    def select(self, rows: np.ndarray) -> "Ragged":
        """The given rows, in that order, as a view where they are consecutive and a copy otherwise."""
        if len(rows) and np.array_equal(rows, np.arange(rows[0], rows[0] + len(rows))):
            start, end = self.offsets[rows[0]], self.offsets[rows[-1] + 1]
            return Ragged(self.values[start:end], self.offsets[rows[0] : rows[-1] + 2] - start)
        lengths = self.lengths[rows]
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        within = np.arange(offsets[-1]) - np.repeat(offsets[:-1], lengths)
        return Ragged(self.values[np.repeat(self.offsets[rows], lengths) + within], offsets)

    def truncated(self, limit: int | None) -> "Ragged":
        """The first ``limit`` steps of each row (all of them for None)."""
        if limit is None or not len(self) or int(self.lengths.max()) <= limit:
            return self
        lengths = np.minimum(self.lengths, limit)
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        within = np.arange(offsets[-1]) - np.repeat(offsets[:-1], lengths)
        return Ragged(self.values[np.repeat(self.offsets[:-1], lengths) + within], offsets)

    def pad(self, rows: np.ndarray, *, least: int = 1) -> Stream:
        """Rows as a padded stream (n, T, D), (n, T) or (n, T, 3, H, W) with its mask, T the longest of them (at least ``least``)."""
        lengths = self.lengths[rows]
        steps = np.arange(max(least, int(lengths.max(initial=0))))
        real = steps[None, :] < lengths[:, None]
        data = np.zeros((*real.shape, *self.values.shape[1:]), dtype=self.values.dtype)
        data[real] = self.values[(self.offsets[rows][:, None] + steps)[real]]
        return Stream(torch.from_numpy(data), torch.from_numpy(real))


def as_rows(index: Tensor | Sequence[int] | np.ndarray) -> np.ndarray:
    """(n,) positions as an int64 NumPy array."""
    return index.numpy().astype(np.int64) if isinstance(index, Tensor) else np.asarray(index, dtype=np.int64)
