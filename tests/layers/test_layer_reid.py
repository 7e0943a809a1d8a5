"""Blocks of re-identification: pictures, grey, channel attention, neck, and the order of balanced batches."""

from __future__ import annotations

import pytest
import torch

from moodal.core.batch import Stream
from moodal.core.errors import MoodalError
from moodal.core.random import generator
from moodal.layers.reid import ChannelAttention, Compression, Neck, Observer, Pictures, balanced_order, grey


def test_pictures_are_standardised_by_imagenets_numbers():
    pixels = torch.tensor([0, 255], dtype=torch.uint8).repeat(3, 1)[None, None, :, :, None]  # (1, 1, 3, 2, 1)
    found = Pictures().eval()(Stream(pixels, torch.ones(1, 1, dtype=torch.bool)))
    assert found.shape == (1, 3, 2, 1)
    torch.testing.assert_close(found[0, 0, :, 0], torch.tensor([-0.485, 1 - 0.485]) / 0.229)
    torch.testing.assert_close(found[0, 2, :, 0], torch.tensor([-0.406, 1 - 0.406]) / 0.225)


def test_grey_is_brightness():
    pixels = torch.tensor([1.0, 2.0, 3.0])[None, :, None, None].expand(2, 3, 4, 5)
    torch.testing.assert_close(grey(pixels), torch.full((2, 1, 4, 5), 0.2989 + 2 * 0.5870 + 3 * 0.1140))


def test_channel_attention_starts_as_nothing_and_then_mixes_unlike_channels():
    block, maps = ChannelAttention(), torch.zeros(1, 2, 1, 2)
    maps[0, 0, 0, 0] = maps[0, 1, 0, 1] = 3.0  # orthogonal channels, E = 9 I
    torch.testing.assert_close(block(maps), maps)
    with torch.no_grad():
        block.gamma.fill_(1.0)
    away = torch.tensor([0.0, 9.0]).softmax(dim=0)  # softmax(9 - E): the unlike channel is preferred
    torch.testing.assert_close(block(maps)[0, 0, 0], maps[0, 0, 0] + away[0] * maps[0, 0, 0] + away[1] * maps[0, 1, 0])


@pytest.mark.parametrize("height", [2, 9])  # fewer pixels than channels, and more
def test_channel_attention_has_the_released_values_and_gradients(height):
    given, maps = torch.randn(3, 8, height, 3), torch.randn(3, 8, height, 3, requires_grad=True)
    fast, released = ChannelAttention(), ChannelAttention(reference=True)
    with torch.no_grad():
        fast.gamma.fill_(0.7), released.gamma.fill_(0.7)
    wanted, found = released(maps), fast(maps)
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
    slopes = [torch.autograd.grad(y, (maps, block.gamma), given) for y, block in ((found, fast), (wanted, released))]
    torch.testing.assert_close(*slopes, atol=1e-4, rtol=1e-4)


def test_the_neck_is_batch_norm_without_a_shift():
    neck, norm = Neck(6), torch.nn.BatchNorm1d(6)
    with torch.no_grad():
        neck.scale.copy_(torch.rand(6))
        norm.weight.copy_(neck.scale)
    x = torch.randn(9, 6)
    torch.testing.assert_close(neck(x), norm(x))
    torch.testing.assert_close(neck.eval()(x), norm.eval()(x))
    assert [name for name, _ in neck.named_parameters()] == ["scale"]


def test_observation_and_representation_have_the_sizes_asked_for():
    observer = Observer(11, blocks=(1, 1, 1), width=4)
    assert len(observer.attention) == 2 and observer.width == 64
    logits, observation = observer(torch.randn(3, 3, 32, 16))
    assert logits.shape == (3, 11) and observation.shape == (3, 64)
    compression = Compression(64, 11, hidden=(10, 9), code=6, dropout=0.5)
    logits, code = compression(observation)
    assert logits.shape == (3, 11) and code.shape == (3, 6)
    with pytest.raises(MoodalError, match="2 or more are needed"):
        Compression(64, 11, hidden=(), code=1, dropout=0.0)


def test_an_order_takes_each_person_once_and_repeats_pictures_evenly():
    identity = torch.tensor([3] * 5 + [1] * 3 + [0] * 4 + [7] * 2)
    modality = torch.tensor([0, 0, 0, 1, 1, 0, 1, 1, 0, 0, 0, 0, 1, 0])  # person 0 is never infrared
    order = balanced_order(identity, modality, each=4, generator=generator(1, "order"))
    blocks = order.view(-1, 8)
    assert sorted(identity[blocks[:, 0]].tolist()) == [1, 3, 7]
    for block in blocks:
        assert len(set(identity[block].tolist())) == 1 and modality[block].tolist() == [0, 1] * 4
        for kind in (0, 1):
            rows = block[kind::2].tolist()
            available = int(((identity == identity[block[0]]) & (modality == kind)).sum())
            counts = [rows.count(row) for row in set(rows)]
            assert len(counts) == min(4, available) and max(counts) - min(counts) <= 1
    again = balanced_order(identity, modality, each=4, generator=generator(1, "order"))
    assert torch.equal(order, again)
    with pytest.raises(MoodalError, match="No identity of the training split"):
        balanced_order(identity, torch.zeros(14, dtype=torch.int64), each=4, generator=generator(1))


def test_pictures_of_a_person_change_from_epoch_to_epoch():
    identity, modality = torch.zeros(40, dtype=torch.int64), torch.arange(40) % 2
    seen = [
        frozenset(balanced_order(identity, modality, each=4, generator=generator(epoch)).tolist()) for epoch in range(5)
    ]
    assert len(set(seen)) == 5 and all(len(rows) == 8 for rows in seen)
