"""COLD Fusion: weights and losses in closed form, and that the modality which is wrong learns to be unsure."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from toys import ragged_batch

from moodal.core.batch import Batch, Stream, Target
from moodal.core.errors import MoodalError
from moodal.core.spec import DataSpec, Regression, StreamSpec
from moodal.losses.gaussian import standard_kl
from moodal.methods.cold_fusion import COLDFusion, ColdFusionConfig, fusion_weights, matching, uncertainty

WIDTHS = {"text": 6, "audio": 3, "vision": 4}


def method(widths: dict[str, int] = WIDTHS, **settings) -> COLDFusion:
    torch.manual_seed(0)
    spec = DataSpec(streams={m: StreamSpec("features", w) for m, w in widths.items()}, task=Regression(-3.0, 3.0))
    return COLDFusion(ColdFusionConfig(**({"width": 8, "hidden": 4} | settings)), spec).eval()


def batch() -> Batch:
    return ragged_batch(WIDTHS)


def all_of(values: Tensor) -> Tensor:
    return torch.ones(values.shape, dtype=torch.bool)


def test_weights_are_inverse_norms_of_the_variances():
    variances = torch.tensor([[[3.0, 4.0], [5.0, 12.0]]])
    score = uncertainty(variances.sqrt())
    torch.testing.assert_close(score, torch.tensor([[5.0, 13.0]]))
    weights = fusion_weights(score, all_of(score))
    torch.testing.assert_close(weights, torch.tensor([[13 / 18, 5 / 18]]))
    torch.testing.assert_close(fusion_weights(100 * score, all_of(score)), weights)
    absent = fusion_weights(score, torch.tensor([[False, True]]))
    assert absent.tolist() == [[0.0, 1.0]]
    assert fusion_weights(torch.tensor([[1e-9, 1.0]]), torch.tensor([[True, True]]))[0, 0] > 0.999


def test_matching_is_zero_when_scores_are_errors_plus_a_constant_and_symmetric():
    errors, scores = torch.rand(6), torch.rand(6)
    torch.testing.assert_close(matching(errors, errors + 5, all_of(errors)), torch.tensor(0.0), atol=1e-6, rtol=0)
    one, other = matching(errors, scores, all_of(errors)), matching(scores, errors, all_of(errors))
    assert float(one) > 0
    torch.testing.assert_close(one, other)
    order = torch.randperm(6)
    torch.testing.assert_close(matching(errors[order], scores[order], all_of(errors)), one)


def test_matching_of_two_items_that_are_exchanged():
    found = matching(torch.tensor([0.0, 1.0]), torch.tensor([1.0, 0.0]), torch.tensor([True, True]))
    assert math.isclose(float(found), 2 * math.tanh(0.5), rel_tol=1e-6)


def test_what_is_not_there_is_not_compared():
    errors, scores = torch.tensor([0.3, 2.0, 9.0]), torch.tensor([1.0, 0.5, 70.0])
    found = matching(errors, scores, torch.tensor([True, True, False]))
    torch.testing.assert_close(found, matching(errors[:2], scores[:2], torch.tensor([True, True])))
    for there in ([True, False, False], [False, False, False]):
        alone = matching(errors.requires_grad_(), scores, torch.tensor(there))
        (gradient,) = torch.autograd.grad(alone, errors)
        assert float(alone.detach()) == 0 and not gradient.any()


def test_only_all_modalities_together_show_that_one_is_too_sure():
    errors = torch.rand(4, 2)
    scores = errors + torch.tensor([5.0, 0.0])
    within = matching(errors, scores, all_of(errors))
    torch.testing.assert_close(within, torch.zeros(2), atol=1e-5, rtol=0)
    assert float(matching(errors.flatten(), scores.flatten(), all_of(errors.flatten()))) > 1


def test_the_prior_in_closed_form():
    found = standard_kl(torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 2.0]]))
    assert math.isclose(float(found), 0.5 * (1 + 4 - 1 - math.log(4)), rel_tol=1e-6)


def test_equal_variances_average_the_modalities():
    model = method()
    for encoder in model.encoders.values():
        torch.nn.init.zeros_(encoder.logarithm.weight)
    output = model(batch())
    torch.testing.assert_close(output.inspection["gates"], torch.full((4, 3), 1 / 3))
    torch.testing.assert_close(output.features["fused"], output.features["means"].mean(dim=1))


def test_the_total_is_the_weighted_sum_of_its_parts():
    losses = method(calibration=0.2, ordinality=0.3, prior=0.4, unimodal=0.5).loss(batch())
    weights = {"task": 1.0, "unimodal": 0.5, "calibration": 0.2, "ordinality": 0.3, "prior": 0.4}
    torch.testing.assert_close(losses.total, sum(weights[name] * part for name, part in losses.parts.items()))


def test_errors_that_are_detached_move_only_the_scores():
    for detached in (False, True):
        model = method(detach_errors=detached, calibration=1.0, ordinality=1.0, prior=0.0, unimodal=0.0)
        losses = model.loss(batch())
        losses.total.backward()
        touched = any(bool(p.grad.any()) for p in model.alone.parameters() if p.grad is not None)
        assert touched != detached


def trained_scores(weight: float) -> Tensor:
    """(2,) mean uncertainty of the voice where it tells the label, and where a flag says that it is noise."""
    model = method({"text": 1, "audio": 2}, calibration=weight, ordinality=weight, prior=1e-3, dropout=0.0)
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
    noise = torch.Generator().manual_seed(0)
    there = torch.ones(64, 1, dtype=torch.bool)
    for _ in range(150):
        label = 2 * torch.randn(64, generator=noise)
        noisy = torch.arange(64) % 2 == 0
        voice = torch.stack([(2 * torch.randn(64, generator=noise)).where(noisy, label), noisy.float()], dim=-1)
        clips = Batch(
            ids=tuple(map(str, range(64))),
            index=torch.arange(64),
            streams={
                "text": Stream(torch.randn(64, 1, 1, generator=noise), there),
                "audio": Stream(voice[:, None], there),
            },
            target=Target(label, there[:, 0]),
        )
        losses = model.loss(clips)
        optimiser.zero_grad()
        losses.total.backward()
        optimiser.step()
    score = model(clips).inspection["uncertainty"][:, 1]
    return torch.stack([score[~noisy].mean(), score[noisy].mean()])


def test_a_voice_that_is_noise_learns_to_be_unsure_more_so_when_it_is_asked_to():
    sure, unsure = trained_scores(1.0)
    assert unsure > 1.2 * sure
    less_sure, less_unsure = trained_scores(0.0)  # the fused prediction alone teaches some of it
    assert unsure / sure > 1.2 * less_unsure / less_sure


@pytest.mark.parametrize(
    ("settings", "message"), [({"prior": -1.0}, "prior is -1.0"), ({"temperature": 0.0}, "must be positive")]
)
def test_settings_that_make_no_sense_are_refused_in_a_sentence(settings, message):
    with pytest.raises(MoodalError, match=message):
        ColdFusionConfig(**settings)
