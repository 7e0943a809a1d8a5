"""EffMulti: its parameter count, its limits in closed form, and what its two losses ask."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from toys import ragged_batch

from moodal.core.batch import Batch, Stream
from moodal.core.errors import MoodalError
from moodal.core.spec import DataSpec, Regression, StreamSpec
from moodal.methods.effmulti import VIEWS, EffMulti, EffMultiConfig, HierarchicalFusion, difference, similarity

WIDTHS = {"text": 6, "audio": 3, "vision": 4}
ALL = torch.ones(5, 3, dtype=torch.bool)


def spec(widths: dict[str, int] = WIDTHS) -> DataSpec:
    return DataSpec(streams={m: StreamSpec("features", w) for m, w in widths.items()}, task=Regression(-3.0, 3.0))


def method(widths: dict[str, int] = WIDTHS, **settings) -> EffMulti:
    torch.manual_seed(0)
    return EffMulti(EffMultiConfig(**({"width": 8} | settings)), spec(widths)).eval()


def fusion(views: tuple = VIEWS, *, product: bool = True) -> HierarchicalFusion:
    torch.manual_seed(0)
    block = HierarchicalFusion(8, 3, views, product=product)
    for parameter in (block.scale, block.shift, block.view_scores.shifts):
        nn.init.normal_(parameter)
    return block


def batch() -> Batch:
    return ragged_batch(WIDTHS)


def test_parameters_of_the_specification():
    model = method({"text": 768, "audio": 74, "vision": 35}, width=64)
    assert sum(p.numel() for p in model.parameters()) == 125_633


def test_a_modality_that_neither_scales_nor_shifts_is_its_own_vector():
    block, vectors = fusion(), torch.randn(5, 3, 8)
    nn.init.ones_(block.scale)
    nn.init.zeros_(block.shift)
    torch.testing.assert_close(block(vectors, ALL).own, vectors)


def test_equal_modalities_weigh_the_same():
    block, one = fusion(), torch.randn(5, 1, 8)
    nn.init.ones_(block.scale)
    nn.init.zeros_(block.shift)
    torch.testing.assert_close(block(one.expand(-1, 3, -1), ALL).modalities, torch.full((5, 3), 1 / 3))


def test_without_scores_the_views_are_averaged_and_multiplied():
    block, vectors = fusion(), torch.randn(5, 3, 8)
    for scores in (block.modality_scores, block.view_scores):
        nn.init.zeros_(scores.weight.weight)
    found = block(vectors, ALL)
    joined = torch.relu(block.joined(vectors.flatten(1)))
    shared, own = block.shared(vectors).mean(dim=1), (vectors * block.scale + block.shift).mean(dim=1)
    expected = block.norm((joined + shared + own) / 3 + joined * shared * own)
    torch.testing.assert_close(found.vector, expected)
    plain = fusion(product=False)
    plain.load_state_dict(block.state_dict())
    torch.testing.assert_close(plain(vectors, ALL).vector, block.norm((joined + shared + own) / 3))


def test_modalities_in_another_order_give_their_weights_in_that_order():
    order, vectors = [2, 0, 1], torch.randn(5, 3, 8)
    block, other = fusion(("shared", "individual")), fusion(("shared", "individual"))
    other.load_state_dict(block.state_dict())
    other.scale.data, other.shift.data = block.scale[order], block.shift[order]
    one, two = block(vectors, ALL), other(vectors[:, order], ALL)
    torch.testing.assert_close(two.modalities, one.modalities[:, order])
    torch.testing.assert_close(two.vector, one.vector)


def test_weights_sum_to_one_and_an_absent_modality_has_none():
    model, clips = method(), batch()
    mask = clips.streams["audio"].mask.clone()
    mask[1] = False
    audio = Stream(torch.full_like(clips.streams["audio"].data, 7.0), mask)
    inspection = model(Batch(ids=clips.ids, index=clips.index, streams={**clips.streams, "audio": audio})).inspection
    torch.testing.assert_close(inspection["gates"].sum(dim=1), torch.ones(4))
    torch.testing.assert_close(inspection["views"].sum(dim=1), torch.ones(4))
    assert inspection["gates"][1, 1] == 0 and bool((inspection["gates"][0] > 0).all())


def test_similarity_is_zero_for_equal_vectors_only_and_difference_lies_between_zero_and_one():
    shared, own = torch.randn(5, 3, 8), torch.randn(5, 3, 8)
    assert not similarity(shared[:, :1].expand(-1, 3, -1), ALL).any()
    by_hand = sum((shared[:, i] - shared[:, j]).square().sum(dim=1) / 8 for i, j in ((0, 1), (0, 2), (1, 2))) / 3
    torch.testing.assert_close(similarity(shared, ALL), by_hand)
    apart = difference(shared, own, ALL)
    assert bool((apart >= 0).all()) and bool((apart <= 1).all())
    torch.testing.assert_close(difference(shared, 2 * shared, ALL), torch.ones(5))
    across = torch.zeros(1, 1, 8)
    across[..., 0] = 1.0
    assert float(difference(across, across.roll(1, dims=-1), ALL[:1, :1])) == 0


def test_losses_of_a_row_read_only_what_it_has():
    shared, own, present = torch.randn(5, 3, 8), torch.randn(5, 3, 8), ALL.clone()
    present[0, 2] = False
    torch.testing.assert_close(similarity(shared, present)[0], (shared[0, 0] - shared[0, 1]).square().mean())
    torch.testing.assert_close(
        difference(shared, own, present)[:1], difference(shared[:1, :2], own[:1, :2], ALL[:1, :2])
    )


def test_the_total_is_the_weighted_sum_of_its_parts():
    losses = method(similarity=0.5, difference=2.0).loss(batch())
    parts = losses.parts
    torch.testing.assert_close(losses.total, parts["task"] + 0.5 * parts["similarity"] + 2.0 * parts["difference"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"views": ()}, "views is empty"),
        ({"views": ("shared", "shared")}, "one twice"),
        ({"similarity": -1.0}, "negative"),
    ],
)
def test_settings_that_make_no_sense_are_refused_in_a_sentence(settings, message):
    with pytest.raises(MoodalError, match=message):
        EffMultiConfig(**settings)
