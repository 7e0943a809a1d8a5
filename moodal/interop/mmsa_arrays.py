"""Padded arrays of the field made ragged: values cleaned, true starts and ends found, given lengths checked.

The rules, for every array (n, T, D) of one split, row by row:

1. NaN, +inf and -inf become 0 and are counted. (The field's audio holds -inf for the logarithm of nothing.)
2. The *content* runs from the first frame that is not all zero to the last one; a row of zeros is a missing modality.
3. Without a given length the row is its content: zero frames in front and behind are padding.
4. With a given length L (more than T counts as T): content that ends by frame L was padded behind, and the row ends at
   L, zero frames at the end kept; otherwise, if the content lies in the last L frames, it was padded in front and the
   row ends at T; otherwise length and content disagree, which is counted, and the content is kept whole. In every case
   zero frames in front are left out, as in the published loaders.
5. Text features have the length of the mask in ``text_bert`` where there is one, and start at frame 0.
6. In an aligned file (audio and vision of one T, no given lengths) the two keep a common window, the union of their
   contents, so that step i of one still belongs to step i of the other; a missing modality stays missing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from moodal.core.errors import DataError
from moodal.data.ragged import Ragged
from moodal.interop.mmsa_report import StreamReport

ROWS_AT_ONCE = 256  # large arrays are cleaned in parts, so that no copy of the whole is made

#: told how many rows were cleaned.
RowProgress = Callable[[int], None]


@dataclass(frozen=True)
class Window:
    """(n,) first frame and (n,) frame after the last of each row; equal for an empty row."""

    start: np.ndarray
    end: np.ndarray

    @property
    def lengths(self) -> np.ndarray:
        """(n,) frames kept."""
        return self.end - self.start


def as_numbers(value: object, where: str) -> np.ndarray:
    """``value`` as an array of numbers; raises ``DataError`` naming ``where`` if it is not one."""
    try:
        array = np.asarray(value)
    except ValueError as fault:  # lists of unequal length
        raise DataError(f"{where} holds rows of unequal shape; an array of numbers was expected.") from fault
    if array.dtype.kind not in "fiu":
        raise DataError(f"{where} is an array of {array.dtype}, shape {array.shape}; numbers were expected.")
    return array


def as_frames(value: object, where: str) -> np.ndarray:
    """``value`` as an array (n, T, D) of numbers; raises ``DataError`` naming ``where`` and what was found."""
    array = as_numbers(value, where)
    if array.ndim != 3:
        raise DataError(f"{where} has shape {array.shape}; (clips, steps, width) was expected.")
    if 0 in array.shape[1:]:
        raise DataError(f"{where} has shape {array.shape}: no step or no column; leave it out or get the file again.")
    return array


def find_content(array: np.ndarray, report: StreamReport, *, progress: RowProgress | None = None) -> Window:
    """Rule 2, and counts what rule 1 replaces into ``report``."""
    start, end = np.zeros(len(array), np.int64), np.zeros(len(array), np.int64)
    for where in _parts(len(array)):
        rows = array[where]
        with np.errstate(over="ignore"):  # a double beyond float32 counts as infinite
            rows = rows.astype(np.float32, copy=False)
        finite = np.isfinite(rows)
        if not finite.all():
            report.nan += int(np.isnan(rows).sum())
            report.plus_infinity += int(np.isposinf(rows).sum())
            report.minus_infinity += int(np.isneginf(rows).sum())
        real = ((rows != 0) & finite).any(axis=2)
        some = real.any(axis=1)
        start[where] = np.where(some, real.argmax(axis=1), 0)
        end[where] = np.where(some, real.shape[1] - real[:, ::-1].argmax(axis=1), 0)
        if progress is not None:
            progress(len(rows))
    return Window(start, end)


def apply_lengths(content: Window, given: np.ndarray, frames: int, report: StreamReport) -> Window:
    """Rule 4 for rows of ``frames`` frames."""
    report.lengths = "given"
    report.too_long += int((given > frames).sum())
    length = np.minimum(given, frames)
    some = content.lengths > 0
    behind = content.end <= length
    front = ~behind & (content.start >= frames - length)
    report.disagreeing += int((some & ~behind & ~front).sum())
    end = np.where(behind, length, np.where(front, frames, content.end))
    return Window(content.start, np.where(some, end, content.start))


def check_lengths(value: object, rows: int, where: str) -> np.ndarray:
    """Given lengths as (n,) int64; raises ``DataError`` for another shape, fractions or negative numbers."""
    given = as_numbers(value, where)
    if given.shape not in ((rows,), (rows, 1)):
        raise DataError(f"{where} has shape {given.shape}; one whole number for each of {rows} clips was expected.")
    given = given.reshape(rows)
    if not np.isfinite(given).all() or (given < 0).any() or (given != np.floor(given)).any():
        raise DataError(f"{where} holds numbers that are no lengths (negative, fractions or NaN); get the file again.")
    return given.astype(np.int64)


def common_window(one: Window, two: Window) -> tuple[Window, Window]:
    """Rule 6: both contents' union for rows where both have content; a row with one alone keeps its own."""
    both = (one.lengths > 0) & (two.lengths > 0)
    start, end = np.minimum(one.start, two.start), np.maximum(one.end, two.end)

    def widened(window: Window) -> Window:
        return Window(np.where(both, start, window.start), np.where(both, end, window.end))

    return widened(one), widened(two)


def to_ragged(arrays: Sequence[np.ndarray], windows: Sequence[Window], report: StreamReport) -> Ragged:
    """The windows of all splits' arrays, cleaned and end to end; counts steps and lengths into ``report``."""
    lengths = np.concatenate([window.lengths for window in windows])
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    values = np.empty((offsets[-1], arrays[0].shape[2]), dtype=np.float32)
    filled = 0
    for array, window in zip(arrays, windows):
        step = np.arange(array.shape[1])
        for where in _parts(len(array)):
            kept = (step >= window.start[where, None]) & (step < window.end[where, None])
            count = int(kept.sum())
            part = values[filled : filled + count]
            with np.errstate(over="ignore"):
                part[:] = array[where][kept]
            part[~np.isfinite(part)] = 0.0
            filled += count
    some = lengths[lengths > 0]
    report.rows, report.empty, report.steps = len(lengths), int((lengths == 0).sum()), int(offsets[-1])
    report.padding = sum(array.shape[0] * array.shape[1] for array in arrays) - report.steps
    report.shortest, report.longest = (int(some.min()), int(some.max())) if len(some) else (0, 0)
    return Ragged(values, offsets)


def read_triple(value: object, where: str) -> tuple[np.ndarray, np.ndarray]:
    """Ids (n, T) int64 and lengths (n,) of a BERT triple (n, 3, T): ids, mask, segments.

    Raises ``DataError`` for another shape, ids that are no whole numbers, or a mask that is not ones then zeros.
    """
    array = as_numbers(value, where)
    if array.ndim != 3 or array.shape[1] != 3:
        raise DataError(f"{where} has shape {array.shape}; (clips, 3, tokens) was expected: ids, mask, segments.")
    ids, mask = array[:, 0], array[:, 1]
    if not np.isfinite(ids).all() or (ids < 0).any() or (ids != np.floor(ids)).any():
        raise DataError(f"{where} holds token ids that are no whole numbers from 0 up; get the file again.")
    lengths = (mask == 1).sum(axis=1)
    if not np.array_equal(mask, np.arange(mask.shape[1]) < lengths[:, None]):
        raise DataError(f"{where} has a mask that is not ones followed by zeros; ids, mask, segments was expected.")
    return ids.astype(np.int64), lengths.astype(np.int64)


def tokens_to_ragged(triples: Sequence[tuple[np.ndarray, np.ndarray]]) -> Ragged:
    """Token ids (n_i, T_i) and lengths (n_i,) of all splits as one ragged stream of ids."""
    lengths = np.concatenate([length for _, length in triples])
    values = [ids[np.arange(ids.shape[1]) < length[:, None]] for ids, length in triples]
    return Ragged(np.concatenate(values), np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64))


def _parts(rows: int) -> Iterator[slice]:
    yield from (slice(first, first + ROWS_AT_ONCE) for first in range(0, rows, ROWS_AT_ONCE))
