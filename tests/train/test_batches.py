"""Which rows make which batch, and the changes of training batches."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from moodal.core.settings import AugmentConfig
from moodal.train.batches import augmented, bucketed, share


@pytest.mark.parametrize("count", [1, 2, 5, 8, 31, 32])
@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("parts", [1, 2, 4])
def test_shares_hold_every_row_once_in_equal_numbers_of_parts(count, world, parts):
    everything = torch.arange(100, 100 + count)
    shares = [share(everything, rank, world, parts) for rank in range(world)]
    held = [int(row) for mine in shares for chosen, size in mine for row in chosen[:size]]
    assert sorted(held) == everything.tolist()
    assert len({len(mine) for mine in shares}) == 1
    assert all(len(chosen) >= 1 for mine in shares for chosen, _ in mine)
    assert all(size in (0, len(chosen)) for mine in shares for chosen, size in mine)


def test_one_process_never_gets_a_part_without_rows():
    for count in range(1, 40):
        assert all(size for _, size in share(torch.arange(count), 0, 1, 4))


@pytest.mark.parametrize("chunk", [1, 3, 50])
def test_buckets_are_a_rearrangement_of_similar_lengths(chunk):
    order = torch.randperm(103, generator=torch.Generator().manual_seed(0))
    cost = np.random.default_rng(0).integers(1, 50, 103)
    batches = bucketed(order, cost, 8, chunk)
    assert sorted(torch.cat(batches).tolist()) == list(range(103))
    assert len(batches) == 13
    spread = np.mean([np.ptp(cost[b.numpy()]) for b in batches])
    plain = np.mean([np.ptp(cost[b.numpy()]) for b in order.split(8)])
    assert spread == plain if chunk == 1 else spread < plain


def test_buckets_keep_repeats():
    order = torch.tensor([3, 3, 1, 0, 2, 3, 1])
    assert sorted(torch.cat(bucketed(order, np.arange(4), 2, 2)).tolist()) == sorted(order.tolist())


def test_no_augmentation_changes_nothing(toy_data):
    batch = toy_data.splits["train"].rows(torch.arange(6))
    same = augmented(batch, AugmentConfig())
    for name, stream in batch.streams.items():
        assert torch.equal(same.streams[name].data, stream.data)
        assert torch.equal(same.streams[name].mask, stream.mask)


def test_augmentation_leaves_padding_and_text_alone(toy_data):
    torch.manual_seed(0)
    batch = toy_data.splits["train"].rows(torch.arange(40))
    changed = augmented(batch, AugmentConfig(noise=0.5, time_mask=0.5, drop_modality=0.5))
    assert torch.equal(changed.streams["text"].data, batch.streams["text"].data)
    for name in ("audio", "vision"):
        mask = changed.streams[name].mask
        assert bool((mask <= batch.streams[name].mask).all())
        assert float(changed.streams[name].data[~mask].abs().max()) == 0
        assert not torch.equal(changed.streams[name].data[mask], batch.streams[name].data[mask])
    present = torch.stack([changed.streams[name].mask.any(dim=1) for name in ("audio", "vision")])
    assert bool(present.any(dim=0).all())
    assert 5 < int((~present.all(dim=0)).sum()) < 35


def test_a_time_mask_hides_less_than_its_share(toy_data):
    torch.manual_seed(0)
    batch = toy_data.splits["train"].rows(torch.arange(40))
    hidden = augmented(batch, AugmentConfig(time_mask=0.3)).streams["audio"].mask
    kept = hidden.sum(dim=1) / batch.streams["audio"].mask.sum(dim=1)
    assert float(kept.min()) >= 0.7
    assert float(kept.min()) < 1.0
