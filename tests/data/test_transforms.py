"""Pooling, standardisation and clip statistics against plain loops; they come from training data and travel with a run."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from moodal.core.batch import Stream
from moodal.core.errors import DataError
from moodal.core.settings import StreamData
from moodal.data.ragged import Ragged
from moodal.data.transforms import Standardise, Transform, clip_statistics, fit, pooled, verify_width

LENGTHS = (7, 0, 4, 1, 12)
CHANNELS = ("log_f0", "loudness", "constant")


@pytest.fixture(scope="module")
def stream() -> Ragged:
    draw = np.random.default_rng(0)
    rows = [(draw.standard_normal((n, 3)) * [1, 10, 0] + [5, -2, 4]).astype(np.float32) for n in LENGTHS]
    rows[0][2:4, 0] = 0.0  # two steps without a pitch
    return Ragged.from_rows(rows)


@pytest.fixture(scope="module")
def statistics(stream) -> np.ndarray:
    return clip_statistics(stream, pooled(stream, 2), CHANNELS)


@pytest.mark.parametrize("size", [1, 2, 3, 50])
def test_pooling_is_the_mean_of_each_block(stream, size):
    found = pooled(stream, size)
    for place in range(len(stream)):
        row = stream[place]
        wanted = [row[start : start + size].mean(axis=0) for start in range(0, len(row), size)]
        assert len(found[place]) == len(wanted)
        if wanted:
            np.testing.assert_allclose(found[place], np.stack(wanted), rtol=1e-5)


def test_standardised_steps_have_mean_0_and_deviation_1(stream):
    transform = fit(stream, StreamData(normalise="train"), None)
    out = transform(stream.pad(np.arange(len(stream))))
    values = out.data[out.mask].numpy()
    np.testing.assert_allclose(values.mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(values.std(axis=0), [1, 1, 0], atol=1e-5)  # a constant channel is only centred
    assert not out.data[~out.mask].any()
    assert transform.out == transform.width == 3


def test_statistics_of_many_steps_are_those_of_numpy():
    """More steps than are read at a time, far from zero."""
    values = (np.random.default_rng(1).standard_normal((150_000, 2)) * 3 + 1000).astype(np.float32)
    found = Standardise.fit(values)
    np.testing.assert_allclose(found.mean.numpy(), values.mean(axis=0, dtype=np.float64), rtol=1e-6)
    np.testing.assert_allclose(found.deviation.numpy(), values.std(axis=0, dtype=np.float64), rtol=1e-4)


def test_clip_statistics_are_those_of_each_clip(stream, statistics):
    assert statistics.shape == (5, 6 * 3 + 1)
    for place, row in enumerate(stream[n].astype(np.float64) for n in range(len(stream))):
        if not len(row):
            assert not statistics[place].any()
            continue
        coarse = np.stack([row[start : start + 2].mean(axis=0) for start in range(0, len(row), 2)])
        change = np.abs(np.diff(coarse, axis=0)).mean(axis=0) if len(coarse) > 1 else np.zeros(3)
        voiced = np.where((np.arange(3) == 0) & (row == 0), np.nan, row)
        levels = np.nanquantile(voiced, [0.05, 0.5, 0.95], axis=0)
        wanted = np.concatenate([coarse.mean(axis=0), coarse.std(axis=0), change, [np.log(len(coarse))], *levels])
        np.testing.assert_allclose(statistics[place], wanted, rtol=1e-5, atol=1e-5)


def test_clip_statistics_do_not_depend_on_other_clips(stream, statistics):
    for place in range(len(stream)):
        alone = stream.select(np.array([place]))
        np.testing.assert_array_equal(clip_statistics(alone, pooled(alone, 2), CHANNELS)[0], statistics[place])


def test_clip_statistics_are_appended_to_each_step(stream, statistics):
    transform = fit(stream, StreamData(statistics=True), statistics)
    padded = stream.pad(np.arange(len(stream)))
    out = transform(padded, torch.from_numpy(statistics))
    present = statistics[np.array(LENGTHS) > 0]
    spread = present.std(axis=0)
    spread[spread < 1e-5] = 1.0
    assert out.data.shape[-1] == transform.out == 3 + 19
    for place, length in enumerate(LENGTHS):
        wanted = np.tile((statistics[place] - present.mean(axis=0)) / spread, (length, 1))
        np.testing.assert_allclose(out.data[place, :length, 3:].numpy(), wanted, atol=1e-4)
    assert not out.data[~out.mask].any()
    alone = fit(stream, StreamData(), None)(padded)
    assert torch.equal(out.data[..., :3], alone.data)


@pytest.mark.parametrize("summed_up", [False, True])
def test_padding_changes_nothing(stream, statistics, summed_up):
    given = statistics if summed_up else None
    transform = fit(stream, StreamData(statistics=summed_up), given)
    row = None if given is None else torch.from_numpy(given[2:3])
    short = stream.pad(np.array([2]))
    more = torch.full((1, 5, 3), 99.0)
    mask = torch.cat([short.mask, torch.zeros(1, 5, dtype=torch.bool)], dim=1)
    long = Stream(torch.cat([short.data, more], dim=1), mask)
    assert torch.equal(transform(long, row).data[:, :4], transform(short, row).data)


@pytest.mark.parametrize("summed_up", [False, True])
def test_a_transform_survives_json(stream, statistics, summed_up):
    given = statistics if summed_up else None
    transform = fit(stream, StreamData(statistics=summed_up), given)
    again = Transform.from_state(json.loads(json.dumps(transform.state())))
    rows = None if given is None else torch.from_numpy(given)
    padded = stream.pad(np.arange(len(stream)))
    assert torch.equal(again(padded, rows).data, transform(padded, rows).data)
    assert again.out == transform.out


def test_nothing_is_normalised_where_nothing_is_asked_or_there(stream):
    padded = stream.pad(np.arange(len(stream)))
    for transform in (
        fit(stream, StreamData(normalise="none"), None),
        fit(Ragged(np.zeros((0, 3), np.float32), np.zeros(4, np.int64)), StreamData(), None),
    ):
        assert torch.equal(transform(padded).data, padded.data)


def test_a_stream_of_another_width_is_a_sentence(stream):
    transform = fit(stream, StreamData(), None)
    verify_width(transform, "audio", 3)
    with pytest.raises(DataError, match="audio: the run was trained on 3 channels and these features have 9"):
        verify_width(transform, "audio", 9)
