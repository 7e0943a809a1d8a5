"""Statistics of each row of a ragged column at once; a row without steps gives NaN."""

from __future__ import annotations

import numpy as np


class Segments:
    """``values``: (steps of all rows,) floats; ``row``: (steps,) the row of each, ascending, of ``rows`` rows."""

    def __init__(self, values: np.ndarray, row: np.ndarray, rows: int) -> None:
        self.values, self.row, self.rows = np.asarray(values, np.float64), row, rows
        self.count = np.bincount(row, minlength=rows)

    def where(self, kept: np.ndarray) -> "Segments":
        """Only the steps where ``kept`` ((steps,) bool) holds."""
        return Segments(self.values[kept], self.row[kept], self.rows)

    def mean(self) -> np.ndarray:
        """(rows,) means."""
        return _over(np.bincount(self.row, self.values, self.rows), self.count)

    def deviation(self) -> np.ndarray:
        """(rows,) deviations around the row's own mean."""
        apart = self.values - self.mean()[self.row]
        return np.sqrt(_over(np.bincount(self.row, apart**2, self.rows), self.count))

    def quantile(self, share: float) -> np.ndarray:
        """(rows,) quantiles, interpolated linearly between neighbours."""
        ordered = self.values[np.lexsort((self.values, self.row))]
        start = np.cumsum(self.count) - self.count
        place = start + share * np.maximum(self.count - 1, 0)
        low = np.minimum(np.floor(place).astype(np.int64), max(len(ordered) - 1, 0))
        high = np.minimum(low + 1, np.maximum(start + self.count - 1, low))
        if not len(ordered):
            return np.full(self.rows, np.nan)
        found = ordered[low] + (place - low) * (ordered[np.minimum(high, len(ordered) - 1)] - ordered[low])
        return np.where(self.count > 0, found, np.nan)

    def slope(self) -> np.ndarray:
        """(rows,) rise of the least squares line from the first to the last step of the row."""
        start = np.cumsum(self.count) - self.count
        within = np.arange(len(self.row)) - start[self.row]
        centre = (self.count - 1) / 2
        time = (within - centre[self.row]) / np.maximum(self.count - 1, 1)[self.row]
        product = np.bincount(self.row, time * (self.values - np.nan_to_num(self.mean())[self.row]), self.rows)
        return _over(product, np.bincount(self.row, time**2, self.rows))


def long_runs(flags: np.ndarray, row: np.ndarray, rows: int, least: float) -> np.ndarray:
    """(rows,) number of steps inside runs of True of at least ``least`` steps that do not touch the row's ends.

    ``flags``: (steps,) bool; ``row``: (steps,) the row of each step, ascending.
    """
    if not len(flags):
        return np.zeros(rows)
    new = np.concatenate([[True], (flags[1:] != flags[:-1]) | (row[1:] != row[:-1])])
    run = np.cumsum(new) - 1
    first = np.flatnonzero(new)
    last = np.concatenate([first[1:], [len(flags)]]) - 1
    starts_row = np.concatenate([[True], row[1:] != row[:-1]])
    ends_row = np.concatenate([row[1:] != row[:-1], [True]])
    inner = flags[first] & ~starts_row[first] & ~ends_row[last] & (last - first + 1 >= least)
    return np.bincount(row, inner[run].astype(float), rows)


def _over(total: np.ndarray, count: np.ndarray) -> np.ndarray:
    """total / count, NaN where count is 0."""
    return np.where(count > 0, total / np.where(count > 0, count, 1), np.nan)
