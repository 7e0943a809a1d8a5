"""Pooling and standardisation against plain loops; statistics come from training data and travel with a run."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from moodal.core.batch import Stream
from moodal.core.errors import DataError
from moodal.core.settings import StreamData
from moodal.data.ragged import Ragged
from moodal.data.transforms import Standardise, fit, pooled, verify_width

LENGTHS = (7, 0, 4, 1, 12)


@pytest.fixture(scope="module")
def stream() -> Ragged:
    draw = np.random.default_rng(0)
    return Ragged.from_rows(
        [(draw.standard_normal((n, 3)) * [1, 10, 0] + [5, -2, 4]).astype(np.float32) for n in LENGTHS]
    )


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
    transform = fit(stream, StreamData(normalise="train"))
    out = transform(stream.pad(np.arange(len(stream))))
    values = out.data[out.mask].numpy()
    np.testing.assert_allclose(values.mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(values.std(axis=0), [1, 1, 0], atol=1e-5)  # a constant channel is only centred
    assert not out.data[~out.mask].any()
    assert transform.width == 3


def test_statistics_of_many_steps_are_those_of_numpy():
    """More steps than are read at a time, far from zero."""
    values = (np.random.default_rng(1).standard_normal((150_000, 2)) * 3 + 1000).astype(np.float32)
    found = fit(Ragged.from_rows([values]), StreamData())
    np.testing.assert_allclose(found.mean.numpy(), values.mean(axis=0, dtype=np.float64), rtol=1e-6)
    np.testing.assert_allclose(found.deviation.numpy(), values.std(axis=0, dtype=np.float64), rtol=1e-4)


def test_clips_lose_their_own_mean_and_keep_it_beside(stream):
    """Against the definition, row by row: steps around their clip's mean, then the clip's mean among all clips' means."""
    transform = fit(stream, StreamData(normalise="clip"))
    out = transform(stream.pad(np.arange(len(stream))))
    present = [place for place in range(len(stream)) if LENGTHS[place]]
    means = np.stack([stream[place].mean(axis=0, dtype=np.float64) for place in present])
    around = np.concatenate([stream[place] - means[n] for n, place in enumerate(present)])
    spread, between = around.std(axis=0), means.std(axis=0)
    spread[spread < 1e-6], between[between < 1e-6] = 1, 1
    for n, place in enumerate(present):
        row = out.data[place, : LENGTHS[place]].numpy()
        np.testing.assert_allclose(row[:, :3], (stream[place] - means[n]) / spread, atol=1e-4)
        np.testing.assert_allclose(
            row[:, 3:], np.tile((means[n] - means.mean(axis=0)) / between, (LENGTHS[place], 1)), atol=1e-4
        )
    assert not out.data[~out.mask].any()
    assert transform.width == 6 == out.data.shape[-1]


@pytest.mark.parametrize("kind", ["train", "clip"])
def test_padding_changes_nothing(stream, kind):
    transform = fit(stream, StreamData(normalise=kind))
    short = stream.pad(np.array([2]))
    long = Stream(
        torch.cat([short.data, torch.full((1, 5, 3), 99.0)], dim=1),
        torch.cat([short.mask, torch.zeros(1, 5, dtype=torch.bool)], dim=1),
    )
    torch.testing.assert_close(transform(long).data[:, :4], transform(short).data, atol=1e-6, rtol=0)


@pytest.mark.parametrize("kind", ["train", "clip"])
def test_statistics_survive_json(stream, kind):
    transform = fit(stream, StreamData(normalise=kind))
    again = Standardise.from_state(json.loads(json.dumps(transform.state())))
    padded = stream.pad(np.arange(len(stream)))
    assert torch.equal(again(padded).data, transform(padded).data)


def test_nothing_is_normalised_where_nothing_is_asked_or_there(stream):
    assert fit(stream, StreamData(normalise="none")) is None
    assert fit(Ragged(np.zeros((0, 3), np.float32), np.zeros(4, np.int64)), StreamData()) is None


def test_a_stream_of_another_width_is_a_sentence(stream):
    transform = fit(stream, StreamData())
    verify_width(transform, "audio", 3)
    verify_width(None, "audio", 9)
    with pytest.raises(DataError, match="audio: the run was trained on 3 channels and these features have 9"):
        verify_width(transform, "audio", 9)
