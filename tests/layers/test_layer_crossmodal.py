"""The crossmodal encoder: positions, masks, and what its blocks do when parts of them are switched off."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moodal.core.errors import MoodalError
from moodal.layers.crossmodal import CrossmodalDropout, CrossmodalEncoder, enter, sight
from moodal.layers.masks import lengths_to_mask, masked_last, whole_windows
from moodal.layers.positions import places, places_by_channel, sinusoids
from moodal.layers.transformer import Sequence

WIDTH = 12


def build(layers: int = 2, **settings: Any) -> CrossmodalEncoder:
    torch.manual_seed(0)
    encoder = CrossmodalEncoder(WIDTH, heads=3, layers=layers, **settings).eval()
    for parameter in encoder.parameters():
        if parameter.dim() == 1:
            nn.init.normal_(parameter, mean=float(parameter.detach().mean()), std=0.2)  # nothing hides behind 0 and 1
    return encoder


def sequence(lengths: list[int], steps: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    torch.manual_seed(seed)
    return torch.randn(len(lengths), steps, WIDTH), lengths_to_mask(torch.tensor(lengths), steps)


def moved(given: tuple[Tensor, Tensor], before: int, after: int) -> Sequence:
    """The same sequence among more padding, which holds rubbish."""
    values, mask = given
    values = F.pad(values, (0, 0, before, after), value=9.0)
    return values, F.pad(mask, (before, after))


def same(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


# ---- positions -----------------------------------------------------------------------------------------------------


def test_position_table():
    table = sinusoids(2, 4, like=torch.zeros(1))
    wanted = [[0.0, 0.0, 0.0, 0.0], [0.8415, 0.0001, 0.5403, 1.0], [0.9093, 0.0002, -0.4161, 1.0]]
    torch.testing.assert_close(table, torch.tensor(wanted), rtol=0, atol=5e-5)
    odd = sinusoids(2, 5, like=table)
    assert odd[:, :4].equal(table) and not odd[:, 4].any()


def test_rows_of_the_table():
    values = torch.tensor([1.0, 0.0, 2.0])[None, :, None]
    assert places_by_channel(values).tolist() == [[1, 0, 3]]
    mask = torch.tensor([[1, 1, 0], [0, 1, 1], [1, 0, 1], [0, 0, 0]]).bool()
    assert places(mask).tolist() == [[1, 2, 0], [0, 1, 2], [1, 0, 3], [0, 0, 0]]


def test_a_sequence_enters_scaled_and_with_positions():
    values, mask = sequence([3, 1], 3)
    table = sinusoids(3, WIDTH, like=values)
    entered = enter((values, mask))
    torch.testing.assert_close(entered[0], WIDTH**0.5 * values[0] + table[1:])
    torch.testing.assert_close(entered[1, 1:], WIDTH**0.5 * values[1, 1:])
    torch.testing.assert_close(enter((values, mask), positions=False), WIDTH**0.5 * values)


# ---- masks ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "source", "visible"), [(3, 5, [3, 4, 5]), (5, 3, [3] * 5), (4, 4, [1, 2, 3, 4]), (4, 3, [2, 3, 3, 3])]
)
def test_causal_mask_of_unequal_lengths(target: int, source: int, visible: list[int]):
    """As published for whole rows; and for a row of that length among padding."""
    whole = sight(*((torch.zeros(1, n, 2), None) for n in (target, source)), causal=True)
    assert (whole.mask == 0).sum(dim=-1).flatten().tolist() == visible
    padded = sight(moved(sequence([target], target), 2, 1), moved(sequence([source], source), 1, 3), causal=True)
    seen = (padded.mask[0, 0, 2 : 2 + target] == 0).sum(dim=-1)
    assert seen.tolist() == visible


def test_every_query_sees_a_key():
    target, source = sequence([4, 0, 2, 3], 5), sequence([0, 3, 6, 1], 6)
    for causal in (True, False):
        seen = sight(target, source, causal=causal)
        assert bool((seen.mask == 0).any(dim=-1).all())
        assert seen.present.flatten().tolist() == [False, True, True, True]


def test_windows_of_a_convolution():
    mask = torch.tensor([[1, 1, 1, 1, 0], [1, 1, 0, 0, 0], [0, 1, 0, 0, 0], [1, 1, 0, 1, 1], [0, 0, 0, 0, 0]]).bool()
    wanted = torch.tensor([[1, 1, 0], [1, 0, 0], [0, 1, 0], [1, 0, 0], [0, 0, 0]]).bool()
    assert whole_windows(mask, 3).equal(wanted)
    assert whole_windows(mask, 1).equal(mask)


# ---- the encoder ---------------------------------------------------------------------------------------------------


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_parameter_counts():
    """n (12 w^2 + 13 w) + 2 w; the numbers of the official code for widths 30 and 60."""
    assert parameters(CrossmodalEncoder(30, heads=5, layers=5)) == 56_010
    assert parameters(CrossmodalEncoder(60, heads=5, layers=5)) == 220_020


@pytest.mark.parametrize("crossed", [True, False])
def test_padding_on_either_side_changes_nothing(crossed: bool):
    encoder = build()
    target, source = sequence([5, 2, 1], 5), sequence([3, 7, 1], 7, seed=1)
    plain = encoder(target, source if crossed else None)
    far = encoder(moved(target, 3, 4), moved(source, 2, 1) if crossed else None)[:, 3:8]
    real = target[1]
    same(far[real], plain[real])
    same(encoder(moved(target, 3, 4), moved(source, 0, 6) if crossed else None, last=True), masked_last(plain, real))


def test_a_row_of_full_length_is_as_published():
    target, source = sequence([5, 5], 5), sequence([8, 8], 8, seed=1)
    ours, published = build()(target, source), build(reference=True)(target, source)
    same(ours, published)
    same(build()((target[0], None), (source[0], None)), published)


def test_as_published_padding_takes_part():
    target, source = sequence([5, 2], 5), sequence([3, 7], 7, seed=1)
    published = build(reference=True)
    plain = published(target, source)
    assert not torch.allclose(published(target, moved(source, 0, 4))[:, :5], plain, atol=1e-3)
    assert not torch.allclose(plain[1, :2], build()(target, source)[1, :2], atol=1e-3)


def test_a_target_without_a_source_keeps_to_itself():
    """No source in a row: the attention adds nothing there, whatever lies on the padding; the other row still reads."""
    encoder, target = build(), sequence([4, 4], 4)
    values, mask = sequence([0, 3], 3, seed=1)
    found = encoder(target, (values, mask))
    same(encoder(target, (values + torch.tensor([5.0, 0.0])[:, None, None], mask)), found)
    assert not torch.allclose(encoder(target, (values * 2, mask))[1], found[1])
    for layer in encoder.layers:
        nn.init.zeros_(layer.attention.out.weight), nn.init.zeros_(layer.attention.out.bias)
    same(encoder(target, (values, mask))[0], found[0])


@pytest.mark.parametrize("reference", [False, True])
@pytest.mark.parametrize("crossed", [False, True])
def test_the_last_step_alone_is_the_last_step_of_all(crossed: bool, reference: bool):
    encoder = build(layers=3, reference=reference)
    target, source = sequence([5, 2, 0], 5), sequence([3, 0, 7], 7, seed=1) if crossed else None
    whole = encoder(target, source)
    wanted = whole[:, -1] if reference else masked_last(whole, target[1])
    same(encoder(target, source, last=True), wanted)


def test_a_block_without_its_two_last_maps_is_the_identity():
    encoder = build()
    for layer in encoder.layers:
        for linear in (layer.attention.out, layer.feed_forward.second):
            nn.init.zeros_(linear.weight), nn.init.zeros_(linear.bias)
    target = sequence([5, 3], 5)
    assert encoder(target, sequence([4, 4], 4)).equal(encoder.norm(enter(target)))


def test_one_key_is_taken_whatever_the_query():
    layer = build(layers=1, causal=False).layers[0]
    seen = sight((torch.zeros(2, 5, WIDTH), None), (torch.zeros(2, 1, WIDTH), None), causal=False)
    key = torch.randn(2, 1, WIDTH)
    found = layer.attention(torch.randn(2, 5, WIDTH), key, key, seen)
    value = F.linear(key, layer.attention.weight[2 * WIDTH :], layer.attention.bias[2 * WIDTH :])
    same(found, layer.attention.out(value).expand(-1, 5, -1))


def test_without_mask_and_positions_order_means_nothing():
    encoder = build(causal=False, positions=False)
    target, source = torch.randn(2, 5, WIDTH), torch.randn(2, 7, WIDTH)
    plain = encoder((target, None), (source, None))
    of_target, of_source = torch.randperm(5), torch.randperm(7)
    same(encoder((target, None), (source[:, of_source], None)), plain)
    same(encoder((target[:, of_target], None), (source, None)), plain[:, of_target])


def test_what_comes_later_is_not_seen():
    encoder = build()
    target, source = torch.randn(1, 5, WIDTH), torch.randn(1, 7, WIDTH)
    later = torch.cat([source[:, :5], source[:, 5:] + 1], dim=1)
    change = (encoder((target, None), (later, None)) - encoder((target, None), (source, None))).abs().amax(dim=2)[0]
    assert (change > 0).tolist() == [False] * 3 + [True] * 2  # step i sees up to i + 2


def test_every_block_reads_the_same_source():
    encoder = build(layers=3, dropout=CrossmodalDropout(embedding=0.2)).train()
    given: list[tuple[Tensor, Tensor]] = []
    for layer in encoder.layers:
        layer.register_forward_pre_hook(lambda _, inputs: given.append(inputs[1]))
    encoder(sequence([5, 5], 5), sequence([4, 4], 4))
    assert all(pair[0] is given[0][0] and pair[1] is given[0][1] for pair in given)
    assert not given[0][0].equal(given[0][1])  # key and value were dropped apart


def test_steps_leave_normed():
    encoder = CrossmodalEncoder(WIDTH, heads=3, layers=1)
    found = encoder(sequence([5, 3], 5), sequence([4, 4], 4))
    same(found.mean(dim=-1), torch.zeros(2, 5))
    torch.testing.assert_close(found.var(dim=-1, unbiased=False), torch.ones(2, 5), rtol=1e-3, atol=0)


def test_the_stacked_maps_start_as_one_matrix():
    weight = CrossmodalEncoder(64, heads=4, layers=1).layers[0].attention.weight.detach()
    bound = (6 / (64 + 3 * 64)) ** 0.5
    assert 0.97 * bound < float(weight.abs().max()) <= bound


def test_heads_must_divide_the_width():
    with pytest.raises(MoodalError, match="multiple"):
        CrossmodalEncoder(10, heads=3, layers=1)
