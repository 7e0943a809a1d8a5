"""ScaleVLAD: closed forms of the aggregation and of the shifted clustering, and what sharing means."""

from __future__ import annotations

import pytest
import torch

from moodal.core.batch import Batch, Stream, Target
from moodal.core.errors import MoodalError
from moodal.core.method import Progress
from moodal.core.spec import DataSpec, Regression, StreamSpec
from moodal.layers.vlad import SharedVlad, windows
from moodal.losses.clustering import ShiftedClustering
from moodal.methods.scalevlad import ScaleVLAD, ScaleVladConfig

WIDTHS = {"text": 6, "audio": 4, "vision": 5}
TINY = {"width": 8, "heads": 2, "layers": 1, "head_layers": 1, "centres": 3, "prototypes": 3}


def sequence(rows: int = 3, steps: int = 7, width: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    mask = torch.arange(steps) < torch.randint(1, steps + 1, (rows, 1))
    return torch.randn(rows, steps, width), mask


def vlad(width: int = 4, centres: int = 3, **settings) -> SharedVlad:
    torch.manual_seed(1)
    return SharedVlad(width, centres, **settings)


def mean(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return (values * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)


def test_one_centre_is_the_mean_minus_it():
    block, (values, mask) = vlad(centres=1), sequence()
    torch.testing.assert_close(block(values, mask)[:, 0], mean(values, mask) - block.centres, atol=1e-5, rtol=0)
    whole = vlad(centres=1, aggregation="sum")
    expected = (values * mask[..., None]).sum(1) - mask.sum(1, keepdim=True) * whole.centres
    torch.testing.assert_close(whole(values, mask)[:, 0], expected)


def test_one_centre_gives_every_scale_that_divides_the_length_the_same_vector():
    block, (values, _) = vlad(centres=1), sequence(steps=12)
    mask = torch.ones(3, 12, dtype=torch.bool)
    first = block(values, mask)
    for size in (2, 3, 4, 6, None):
        torch.testing.assert_close(block(*windows(values, mask, size)), first, atol=1e-5, rtol=0)


def test_the_order_of_steps_and_what_stands_on_padding_change_nothing():
    block, (values, mask) = vlad(), sequence()
    order = torch.randperm(7)
    torch.testing.assert_close(block(values[:, order], mask[:, order]), block(values, mask))
    torch.testing.assert_close(block(values.masked_fill(~mask[..., None], 99.0), mask), block(values, mask))


def test_a_sharp_tied_assignment_is_the_classical_one():
    block, (values, mask) = vlad(assignment="tied", aggregation="sum", sharpness=1e5), sequence()
    nearest = torch.cdist(values, block.centres).argmin(dim=-1)
    weights = block.weights(values)
    torch.testing.assert_close(weights, torch.nn.functional.one_hot(nearest, 3).float())
    expected = ((values - block.centres[nearest]) * mask[..., None]).sum(dim=1)
    torch.testing.assert_close(block(values, mask).sum(dim=1), expected, atol=1e-5, rtol=1e-5)


def test_a_step_on_its_centre_adds_nothing():
    block = vlad(assignment="tied", aggregation="sum", sharpness=1e5)
    values, mask = block.centres.detach()[None], torch.ones(1, 3, dtype=torch.bool)
    torch.testing.assert_close(block(values, mask), torch.zeros(1, 3, 4), atol=1e-6, rtol=0)


@torch.no_grad()
def test_moving_steps_and_centres_together_changes_nothing_when_tied():
    block, (values, mask) = vlad(assignment="tied"), sequence()
    before, by = block(values, mask), torch.randn(4)
    block.centres += by
    torch.testing.assert_close(block(values + by, mask), before, atol=1e-4, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("aggregation", ["sum", "mean"])
def test_the_small_case_of_the_specification(aggregation):
    block = vlad(1, 2, aggregation=aggregation)
    block.assign.weight.zero_(), block.assign.bias.zero_()
    block.centres.copy_(torch.tensor([[0.0], [2.0]]))
    found = block(torch.tensor([[[1.0], [3.0]]]), torch.ones(1, 2, dtype=torch.bool))
    torch.testing.assert_close(found[0, :, 0], torch.tensor([2.0, 0.0]), atol=1e-5, rtol=0)


def test_windows_average_real_steps_only():
    values = torch.tensor([[1.0, 2.0, 5.0, 7.0, 9.0]])[..., None]
    mask = torch.tensor([[True, True, True, False, False]])
    pooled, real = windows(values, mask, 2)
    assert pooled[0, :, 0].tolist() == [1.5, 5.0, 0.0] and real[0].tolist() == [True, True, False]
    assert torch.equal(windows(values, mask, 1)[0][:, :3], values[:, :3])


def test_a_window_of_no_real_step_is_no_descriptor():
    block = vlad()
    assert not bool(block(torch.randn(2, 4, 4), torch.zeros(2, 4, dtype=torch.bool)).any())


def method(**settings) -> ScaleVLAD:
    torch.manual_seed(2)
    streams = {m: StreamSpec("features", width) for m, width in WIDTHS.items()}
    spec = DataSpec(streams=streams, task=Regression(-3.0, 3.0), size={"train": 12})
    return ScaleVLAD(ScaleVladConfig(**{**TINY, **settings}), spec).eval()


def batch(rows: int = 12) -> Batch:
    torch.manual_seed(3)
    streams = {}
    for name, width in WIDTHS.items():
        values, mask = sequence(rows, 6, width)
        streams[name] = Stream(values * mask[..., None], mask)
    target = Target(torch.randn(rows), torch.ones(rows, dtype=torch.bool))
    return Batch(ids=tuple(map(str, range(rows))), index=torch.arange(rows), streams=streams, target=target)


def test_the_centres_are_one_parameter_that_every_modality_moves():
    scale, given = method(utterance=False), batch()
    assert sum(p is scale.vlad.centres for p in scale.parameters()) == 1
    for kept in WIDTHS:
        streams = {m: s if m == kept else Stream(s.data * 0, s.mask & False) for m, s in given.streams.items()}
        alone = Batch(ids=given.ids, index=given.index, streams=streams, target=given.target)
        (gradient,) = torch.autograd.grad(scale.loss(alone).total, [scale.vlad.centres])
        assert float(gradient.abs().max()) > 0, kept


def clusters(**settings) -> ShiftedClustering:
    """Two tight blobs of 10 rows each."""
    torch.manual_seed(4)
    found = ShiftedClustering(20, 4, **{"prototypes": 2, **settings})
    blobs = torch.eye(4)[:2].repeat_interleave(10, dim=0) + 0.01 * torch.randn(20, 4)
    found.remember(blobs, torch.arange(20))
    return found


def test_two_blobs_become_two_labels_and_the_loss_goes_to_nothing():
    found = clusters(temperature=0.01)
    found.cluster(1)
    labels = found.labels
    assert len(set(labels[:10].tolist())) == 1 == len(set(labels[10:].tolist())) and labels[0] != labels[10]
    assert float(found(found.bank, torch.arange(20))) < 1e-6


def test_one_prototype_costs_nothing():
    found = clusters(prototypes=1)
    found.cluster(1)
    assert float(found(torch.randn(5, 4), torch.arange(5))) == 0.0


def test_prototypes_move_part_of_the_way_and_keep_their_names():
    frozen, free, half = (clusters(shift=shift) for shift in (0.0, 1.0, 0.5))
    for found in (frozen, free, half):
        found.cluster(1)
    start = frozen.prototypes.clone()
    turned = torch.eye(4)[2:].repeat_interleave(10, dim=0) * 0.3 + frozen.bank
    for found in (frozen, free, half):
        found.remember(turned, torch.arange(20))
        found.cluster(2)
    torch.testing.assert_close(frozen.prototypes, start)
    assert (free.prototypes - start).norm() > (half.prototypes - start).norm() > 0.05
    assert torch.equal(free.labels, frozen.labels)
    assert float((half.prototypes * start).sum(1).min()) > 0.9


def test_an_epoch_is_clustered_once():
    found = clusters()
    found.cluster(1)
    before = found.prototypes.clone()
    found.remember(torch.randn(20, 4), torch.arange(20))
    found.cluster(1)
    assert torch.equal(found.prototypes, before)


def test_no_gradient_reaches_the_prototypes_and_names_do_not_matter():
    found = clusters()
    found.cluster(1)
    features = torch.randn(20, 4, requires_grad=True)
    loss = found(features, torch.arange(20))
    assert float(torch.autograd.grad(loss, [features])[0].abs().max()) > 0 and not found.prototypes.requires_grad
    found.prototypes.copy_(found.prototypes.flip(0))
    found.labels.copy_(1 - found.labels)
    torch.testing.assert_close(found(features, torch.arange(20)), loss)


def test_more_prototypes_than_clips_is_refused():
    with pytest.raises(MoodalError, match="no more prototypes than clips"):
        ShiftedClustering(3, 4, prototypes=4)


class Recorder:
    """An update that moves nothing."""

    def __init__(self, epoch: int):
        self.progress = Progress("train", epoch, 0, 5)

    def __call__(self, losses, optimiser="main", *, adjust=None):
        self.total = losses.total


def test_the_clustering_loss_begins_after_its_epoch_and_predicting_knows_nothing_of_it():
    scale, given = method(), batch()
    alone = scale(given).prediction
    first = scale.step(given, Recorder(0))
    assert "clustering" not in first.parts and bool(scale.clusters.bank.norm(dim=1).gt(0.99).all())
    second = scale.step(given, Recorder(1))
    assert float(second.parts["clustering"]) > 0
    torch.testing.assert_close(second.total, second.parts["task"] + 0.1 * second.parts["clustering"])
    assert torch.equal(scale(given).prediction, alone)
