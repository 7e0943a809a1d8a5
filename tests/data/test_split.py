"""A split gives batches: rows in the order asked for, everything about them together."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from moodal.core.batch import Dialogue


@pytest.fixture(scope="module")
def split(toy_data):
    return toy_data.splits["train"]


def test_a_batch_holds_its_rows_in_order(split, toy_data):
    where = torch.tensor([5, 0, 40])
    batch = split.rows(where)
    clips = [toy_data.clips["train"][i] for i in where]
    assert batch.ids == tuple(clip.id for clip in clips)
    assert batch.words == tuple(clip.text for clip in clips)
    assert torch.equal(batch.index, where)
    assert batch.target.value.tolist() == pytest.approx([clip.label for clip in clips])
    assert batch.target.valid.all()
    for name, stream in split.streams.items():
        assert batch.streams[name].mask.sum(dim=1).tolist() == stream.lengths[where.numpy()].tolist()


def test_a_row_is_the_same_in_every_batch(split):
    alone, together = split.rows(torch.tensor([7])), split.rows(torch.arange(20))
    for name, stream in alone.streams.items():
        steps = stream.data.shape[1]
        torch.testing.assert_close(together.streams[name].data[7, :steps], stream.data[0], rtol=0, atol=0)
        assert not together.streams[name].mask[7, steps:].any()


def test_batches_cover_the_split_in_file_order(split):
    found = list(split.batches(16))
    assert [len(batch) for batch in found] == [16, 16, 9]
    assert tuple(name for batch in found for name in batch.ids) == split.ids


def test_cost_is_the_number_of_steps_of_all_streams(split):
    assert split.cost.tolist() == sum(stream.lengths for stream in split.streams.values()).tolist()


def test_conversations_and_absent_parts(split):
    count = torch.arange(len(split))
    batch = replace(split, dialogue=Dialogue(count // 3, count % 3, count % 2), target=None, words=None).rows(
        np.array([4, 3])
    )
    assert batch.dialogue.turn.tolist() == [1, 0] and batch.dialogue.speaker.tolist() == [0, 1]
    assert batch.target is None and batch.words is None


def test_streams_are_standardised_by_the_training_split(split):
    batch = split.rows(torch.arange(len(split)))
    for name in ("audio", "vision"):
        values = batch.streams[name].data[batch.streams[name].mask]
        assert float(values.mean(dim=0).abs().max()) < 1e-4
        assert values.std(dim=0, unbiased=False).tolist() == pytest.approx([1.0] * values.shape[1], abs=1e-3)
