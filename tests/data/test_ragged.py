"""Sequences end to end: selection, cutting and padding against plain loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from moodal.core.errors import DataError
from moodal.data.ragged import Ragged, as_rows

LENGTHS = (3, 0, 5, 1, 0, 4)


def rows(width: int | None = 2) -> list[np.ndarray]:
    draw = np.random.default_rng(0)
    shape = () if width is None else (width,)
    return [draw.standard_normal((n, *shape)).astype(np.float32) for n in LENGTHS]


@pytest.mark.parametrize("width", [2, None])
@pytest.mark.parametrize("chosen", [[0, 1, 2], [2, 3, 4, 5], [5, 0, 2, 2], [1], [4, 1], []])
def test_selection_is_that_of_a_list(width, chosen):
    lists = rows(width)
    found = Ragged.from_rows(lists).select(np.array(chosen, dtype=np.int64))
    assert len(found) == len(chosen)
    for place, row in enumerate(chosen):
        np.testing.assert_array_equal(found[place], lists[row])
    assert found.width == (width or 1)


@pytest.mark.parametrize("limit", [None, 1, 3, 99])
def test_cutting_keeps_the_first_steps(limit):
    lists = rows()
    found = Ragged.from_rows(lists).truncated(limit)
    for place, row in enumerate(lists):
        np.testing.assert_array_equal(found[place], row[:limit])


@pytest.mark.parametrize("width", [2, None])
@pytest.mark.parametrize("chosen", [[0, 1, 2], [1, 4], [3], [5, 2, 5]])
def test_padding_is_zero_and_the_mask_marks_real_steps(width, chosen):
    lists = rows(width)
    stream = Ragged.from_rows(lists).pad(np.array(chosen))
    longest = max(1, *(len(lists[row]) for row in chosen)) if len(chosen) > 1 else max(1, len(lists[chosen[0]]))
    assert stream.mask.shape == (len(chosen), longest) and stream.mask.dtype == torch.bool
    for place, row in enumerate(chosen):
        count = len(lists[row])
        assert stream.mask[place].tolist() == [True] * count + [False] * (longest - count)
        np.testing.assert_array_equal(stream.data[place, :count].numpy(), lists[row])
        assert not stream.data[place, count:].any()


def test_ids_stay_whole_numbers():
    stream = Ragged.from_rows([np.array([5, 6]), np.array([7])]).pad(np.array([1, 0]))
    assert stream.data.dtype == torch.int64
    assert stream.data.tolist() == [[7, 0], [5, 6]]


def test_lengths_and_nothing_at_all():
    assert Ragged.from_rows(rows()).lengths.tolist() == list(LENGTHS)
    assert len(Ragged.from_rows([])) == 0


@pytest.mark.parametrize("offsets", [[0, 3, 9], [1, 5, 10], [0, 7, 5, 10], []])
def test_offsets_that_do_not_fit_are_a_sentence(offsets):
    with pytest.raises(DataError, match="the file is damaged, import it again"):
        Ragged(np.zeros((10, 2)), np.array(offsets, dtype=np.int64))


def test_positions_come_in_any_form():
    for index in (torch.tensor([2, 0]), [2, 0], np.array([2, 0], dtype=np.int32)):
        found = as_rows(index)
        assert found.dtype == np.int64 and found.tolist() == [2, 0]
