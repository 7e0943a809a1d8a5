"""LMR-CBT: exact sizes, nothing leaks across the batch, and what the channel blocks can and cannot do."""

from __future__ import annotations

import math

import pytest
import torch

from moodal.core.batch import Batch, Stream
from moodal.core.spec import DataSpec, Regression, StreamSpec
from moodal.layers.normalisation import StepBatchNorm
from moodal.methods.lmr_cbt import LMRCBT, ChannelBlock, LmrCbtConfig

WIDTHS = {"text": 6, "audio": 4, "vision": 5}
#: parameters that the official blocks hold and never use: 41 in each of two.
UNUSED = 82


def method(widths=WIDTHS, **settings) -> LMRCBT:
    torch.manual_seed(0)
    streams = {m: StreamSpec("features", width) for m, width in widths.items()}
    return LMRCBT(LmrCbtConfig(**settings), DataSpec(streams=streams, task=Regression(-3.0, 3.0))).eval()


def small(**settings) -> LMRCBT:
    found = method(**{"width": 8, "heads": 2, "layers": 2, **settings})
    for name, value in found.named_parameters():
        if "blocks" in name:
            torch.nn.init.normal_(value)
    return found


def batch(rows: int = 4, seed: int = 1, **changed: torch.Tensor) -> Batch:
    torch.manual_seed(seed)
    streams = {}
    for name, steps in (("text", 6), ("audio", 9), ("vision", 7)):
        values = changed.get(name, torch.randn(rows, steps, WIDTHS[name]))
        streams[name] = Stream(values, torch.ones(values.shape[:2], dtype=torch.bool))
    return Batch(ids=tuple(map(str, range(rows))), index=torch.arange(rows), streams=streams)


@pytest.mark.parametrize(
    ("layers", "audio", "vision", "published"),
    [(5, 74, 35, 406_523), (4, 74, 35, 347_363), (3, 74, 35, 288_203), (5, 5, 20, 396_443), (4, 5, 20, 337_283)],
)
def test_parameters_are_those_published_without_the_unused_ones(layers, audio, vision, published):
    found = method({"text": 300, "audio": audio, "vision": vision}, layers=layers)
    assert sum(p.numel() for p in found.parameters()) == published - UNUSED


def test_a_clip_alone_scores_as_in_company_but_not_as_released():
    given = batch()
    for reference in (False, True):
        found = small(reference=reference)
        alone = found(given.rows(torch.tensor([0]))).prediction[0]
        same = torch.allclose(alone, found(given).prediction[0], atol=1e-6)
        assert same is not reference


def test_the_text_is_read_in_order():
    given = batch()
    found, words = small(), given.streams["text"].data
    turned = batch(text=words.flip(1))
    assert not torch.allclose(found(turned).features["text_local"].flip(1), found(given).features["text_local"])


def test_each_step_of_a_block_is_a_distribution_within_its_bounds():
    width = 40
    shift = ChannelBlock(width)(5 * torch.randn(3, 6, width), 5 * torch.randn(3, width)).detach()
    torch.testing.assert_close(shift.sum(dim=-1), torch.ones(3, 6))
    low = math.exp(-1) / (math.exp(-1) + (width - 1) * math.e)
    assert low - 1e-6 <= float(shift.min()) and float(shift.max()) <= math.e / (math.e + (width - 1) / math.e) + 1e-6


@torch.no_grad()
def test_blocks_of_zeros_add_the_same_to_every_channel():
    found, given = small(), batch()
    for parameter in found.blocks.parameters():
        parameter.zero_()
    features = found(given).features
    torch.testing.assert_close(features["fused_sequence"], features["text_local"] + 1 / 8)


@torch.no_grad()
def test_vision_reaches_the_words_only_through_the_second_block():
    found, given = small(), batch()
    other = batch(vision=torch.randn(4, 7, 5))
    assert not torch.allclose(found(given).features["fused_sequence"], found(other).features["fused_sequence"])
    found.blocks["audio"].steps.weight.zero_()
    torch.testing.assert_close(found(given).features["fused_sequence"], found(other).features["fused_sequence"])


@torch.no_grad()
def test_without_vectors_the_words_know_nothing_of_voice_and_face_and_the_head_still_does():
    found, given = small(), batch()
    for block in found.blocks.values():
        block.vector.weight.zero_()
    other = batch(audio=torch.randn(4, 9, 4), vision=torch.randn(4, 7, 5))
    one, two = found(given), found(other)
    torch.testing.assert_close(one.features["fused"][:, :8], two.features["fused"][:, :8])
    assert not torch.allclose(one.prediction, two.prediction)


@torch.no_grad()
def test_a_block_works_word_by_word():
    found = small()
    words, vector = torch.randn(2, 6, 8), torch.randn(2, 8)
    changed = words.clone()
    changed[:, 3] += 1
    moved = (found.blocks["vision"](words, vector) != found.blocks["vision"](changed, vector)).any(dim=-1)
    assert moved.nonzero()[:, 1].unique().tolist() == [3]


def test_a_bias_changes_a_block_though_its_softmax_forgets_shifts():
    block = ChannelBlock(4)
    words, vector = 2 * torch.randn(2, 3, 4), torch.randn(2, 4)
    before = block(words, vector)
    with torch.no_grad():
        block.steps.bias += 1.0
    assert not torch.allclose(block(words, vector), before, atol=1e-3)


def test_a_clip_shorter_than_the_kernel_is_heard():
    found, given = small(), batch(audio=torch.randn(4, 1, 4))
    louder = batch(audio=3 * given.streams["audio"].data)
    assert not torch.allclose(found(given).prediction, found(louder).prediction)


def test_normalisation_over_real_steps_is_that_of_the_steps_alone():
    torch.manual_seed(5)
    ours, theirs = StepBatchNorm(3), torch.nn.BatchNorm1d(3)
    values, mask = torch.randn(4, 6, 3), torch.rand(4, 6) > 0.4
    torch.testing.assert_close(ours(values, mask)[mask], theirs(values[mask]))
    torch.testing.assert_close(ours.running_mean, theirs.running_mean)
    torch.testing.assert_close(ours.running_var, theirs.running_var)
    ours.eval(), theirs.eval()
    torch.testing.assert_close(ours(values, mask)[mask], theirs(values[mask]))


def test_normalisation_of_a_single_step_is_finite_and_learns_nothing():
    norm = StepBatchNorm(3)
    mask = torch.zeros(2, 4, dtype=torch.bool)
    mask[0, 0] = True
    assert bool(torch.isfinite(norm(torch.randn(2, 4, 3), mask)).all())
    assert torch.equal(norm.running_mean, torch.zeros(3)) and torch.equal(norm.running_var, torch.ones(3))
