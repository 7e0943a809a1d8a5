"""Distillation by predictions: closed forms of VSD, VCD and VML, their sums over n views, who gets a gradient."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moodal.core.batch import Target
from moodal.core.errors import MoodalError
from moodal.core.spec import Classification, Regression, Task
from moodal.layers.distillation import ViewHeads
from moodal.losses.distillation import Measure, agreement, barycentre, consistency, divergence, sufficiency, view_losses

NUMBER = Regression(-3.0, 3.0)
STUDENT_FIRST = Measure(direction="student_first")
PUBLISHED = Measure(direction="student_first", form="published")
ATTACHED = Measure(detach_teacher=False)


def classes(count: int) -> Classification:
    return Classification(tuple(map(str, range(count))))


def logits(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def kl(p: Tensor, q: Tensor) -> Tensor:
    """KL of probabilities, straight from the definition."""
    return (p * (p / q).log()).sum(dim=-1)


P, Q = (torch.tensor([values], dtype=torch.float64).log() for values in ((0.8, 0.2), (0.5, 0.5)))


# ---- two distributions ---------------------------------------------------------------------------------------------


def test_two_coins_by_hand():
    task = classes(2)
    assert divergence(P, Q, task=task).item() == pytest.approx(0.192745, abs=1e-6)
    assert divergence(P, Q, task=task, measure=STUDENT_FIRST).item() == pytest.approx(0.223144, abs=1e-6)
    both = torch.stack([P, Q])
    assert agreement(both, task=task).item() == pytest.approx(0.0506719, abs=1e-6)
    torch.testing.assert_close(agreement(both.flip(0), task=task), agreement(both, task=task))


def test_equal_predictions_have_no_divergence_and_no_gradient_and_the_published_form_has():
    x = logits(8, 10)
    for measure, floor in ((Measure(), 0.0), (STUDENT_FIRST, 0.0), (PUBLISHED, 0.1)):
        student = x.clone().requires_grad_()
        value = divergence(x, student, task=classes(10), measure=measure, reduction="elements")
        slope = torch.autograd.grad(value, student)[0]
        assert (value.abs() < 1e-12) == (floor == 0.0)
        assert (slope.abs().max() < 1e-12) == (floor == 0.0)


@pytest.mark.parametrize(("sharpness", "expected"), [(0.0, -0.0259), (60.0, -0.0049)])
def test_the_published_form_of_206_classes_is_lowest_for_uniform_ones(sharpness: float, expected: float):
    x = torch.zeros(4, 206, dtype=torch.float64)
    x[:, 0] = sharpness
    value = divergence(x, x, task=classes(206), measure=PUBLISHED, reduction="elements")
    assert value.item() == pytest.approx(expected, abs=5e-5)


def test_it_is_the_librarys_divergence_in_either_direction():
    teacher, student = logits(6, 5), logits(6, 5, seed=1)
    first = F.kl_div(student.log_softmax(1), teacher.softmax(1), reduction="batchmean")
    second = F.kl_div(teacher.log_softmax(1), student.softmax(1), reduction="batchmean")
    torch.testing.assert_close(divergence(teacher, student, task=classes(5)), first)
    torch.testing.assert_close(divergence(teacher, student, task=classes(5), measure=STUDENT_FIRST), second)
    wrong = F.kl_div(teacher.softmax(1), student.softmax(1), reduction="none").mean()
    ours = divergence(teacher, student, task=classes(5), measure=PUBLISHED, reduction="elements")
    torch.testing.assert_close(ours, wrong)


def test_the_students_gradient_is_the_difference_and_the_teacher_has_none():
    teacher, student = (x.requires_grad_() for x in (logits(6, 5), logits(6, 5, seed=1)))
    slopes = torch.autograd.grad(divergence(teacher, student, task=classes(5)), (teacher, student), allow_unused=True)
    assert slopes[0] is None
    torch.testing.assert_close(slopes[1], (student.softmax(1) - teacher.softmax(1)).detach() / 6)
    attached = torch.autograd.grad(divergence(teacher, student, task=classes(5), measure=ATTACHED), teacher)[0]
    assert attached.abs().max() > 0


def test_shifted_logits_change_nothing():
    teacher, student = logits(6, 5), logits(6, 5, seed=1)
    moved = divergence(teacher + 7, student - torch.arange(6.0)[:, None], task=classes(5))
    torch.testing.assert_close(moved, divergence(teacher, student, task=classes(5)))


def test_hot_predictions_tend_to_half_the_variance_of_the_logits_difference():
    teacher, student = logits(6, 5), logits(6, 5, seed=1)
    hot = divergence(teacher, student, task=classes(5), measure=Measure(temperature=1e4))
    limit = 0.5 * (teacher - student).var(dim=1, unbiased=False).mean()
    assert hot.item() == pytest.approx(limit.item(), rel=1e-3)


def test_what_stands_in_ignored_rows_changes_nothing():
    teacher, student = logits(6, 5), logits(6, 5, seed=1)
    valid = torch.tensor([True, False, True, True, False, True])
    value = divergence(teacher, student, task=classes(5), valid=valid)
    torch.testing.assert_close(value, divergence(teacher[valid], student[valid], task=classes(5)))
    student[~valid] = 50 * logits(2, 5, seed=2)
    torch.testing.assert_close(divergence(teacher, student, task=classes(5), valid=valid), value)
    assert divergence(teacher, student, task=classes(5), valid=torch.zeros(6, dtype=torch.bool)) == 0


def test_densities_of_a_number_against_integrals():
    """KL of two Gaussians and of two Laplace densities of one scale, against a sum over a fine grid."""
    a, b, scale = 0.3, -1.1, 0.7
    grid = torch.linspace(-30, 30, 600_001, dtype=torch.float64)
    for density, family in (("gaussian", torch.distributions.Normal), ("laplace", torch.distributions.Laplace)):
        first, second = (family(torch.tensor(x, dtype=torch.float64), scale).log_prob(grid) for x in (a, b))
        expected = (first.exp() * (first - second)).sum() * (grid[1] - grid[0])
        measure = Measure(density=density, scale=scale)
        ours = divergence(torch.tensor([a]), torch.tensor([b]), task=NUMBER, measure=measure)
        assert ours.item() == pytest.approx(expected.item(), rel=1e-5)


def test_refused():
    with pytest.raises(MoodalError, match="temperature is 0"):
        Measure(temperature=0.0)
    with pytest.raises(MoodalError, match="published form"):
        divergence(torch.zeros(2), torch.zeros(2), task=NUMBER, measure=PUBLISHED)


# ---- n views -------------------------------------------------------------------------------------------------------


def test_two_views_are_vsd_vcd_and_vml_term_by_term():
    task, v, z = classes(5), logits(2, 6, 5), logits(2, 6, 5, seed=1)
    pv, pz = v.softmax(-1), z.softmax(-1)
    torch.testing.assert_close(sufficiency(v, z, task=task), kl(pv[0], pz[0]) + kl(pv[1], pz[1]))
    torch.testing.assert_close(consistency(v, z, task=task), kl(pv[1], pz[0]) + kl(pv[0], pz[1]))
    middle = pz.mean(0)
    torch.testing.assert_close(agreement(z, task=task), 0.5 * (kl(pz[0], middle) + kl(pz[1], middle)))


def test_one_view_has_sufficiency_alone():
    v, z = logits(1, 6, 5), logits(1, 6, 5, seed=1)
    assert sufficiency(v, z, task=classes(5)).min() > 0
    assert consistency(v, z, task=classes(5)).eq(0).all()
    torch.testing.assert_close(agreement(z, task=classes(5)), torch.zeros(6, dtype=torch.float64))


@pytest.mark.parametrize("task", [classes(5), NUMBER])
def test_n_views_by_the_definition(task: Task):
    n, shape = 4, (4, 6, 5) if isinstance(task, Classification) else (4, 6)
    v, z = logits(*shape), logits(*shape, seed=1)

    def apart(a: Tensor, b: Tensor) -> Tensor:
        return divergence(a, b, task=task, reduction="none")

    others = sum(apart(v[j], z[i]) for i in range(n) for j in range(n) if i != j)
    torch.testing.assert_close(consistency(v, z, task=task), others / (n - 1))
    order = torch.tensor([2, 0, 3, 1])
    for own, mixed in (
        (sufficiency(v, z, task=task), sufficiency(v[order], z[order], task=task)),
        (consistency(v, z, task=task), consistency(v[order], z[order], task=task)),
        (agreement(z, task=task), agreement(z[order], task=task)),
    ):
        torch.testing.assert_close(own, mixed)
    same = consistency(v[:1].repeat_interleave(n, 0), z[:1].repeat_interleave(n, 0), task=task)
    torch.testing.assert_close(same, n * sufficiency(v[:1], z[:1], task=task))


@pytest.mark.parametrize("n", [2, 3, 5])
def test_agreement_is_zero_for_equal_views_and_at_most_the_logarithm_of_their_number(n: int):
    same = logits(1, 6, 5).repeat(n, 1, 1)
    torch.testing.assert_close(agreement(same, task=classes(5)), torch.zeros(6, dtype=torch.float64))
    disjoint = 100 * F.one_hot(torch.arange(n), 5)[:, None].double()
    assert agreement(disjoint, task=classes(5)).item() == pytest.approx(math.log(n))
    some = agreement(3 * logits(n, 50, 5), task=classes(5))
    assert ((some > 0) & (some < math.log(n))).all()


def test_agreement_of_numbers_is_their_spread():
    z = logits(3, 6)
    expected = z.var(dim=0, unbiased=False) / (2 * 0.5**2)
    torch.testing.assert_close(agreement(z, task=NUMBER, measure=Measure(scale=0.5)), expected)
    laplace = Measure(density="laplace")
    assert agreement(z, task=NUMBER, measure=laplace).min() > 0
    assert agreement(z[:1].repeat(3, 1), task=NUMBER, measure=laplace).abs().max() < 1e-12


@pytest.mark.parametrize("task", [classes(5), NUMBER])
def test_a_view_that_a_row_lacks_counts_nowhere(task: Task):
    shape = (3, 6, 5) if isinstance(task, Classification) else (3, 6)
    v, z = logits(*shape), logits(*shape, seed=1)
    present = torch.ones(3, 6, dtype=torch.bool)
    present[1, :4] = False  # rows 0 to 3 have two views, of which rows 0 and 1 lose another
    present[2, :2] = False
    settings = {"task": task, "present": present}
    found = sufficiency(v, z, **settings), consistency(v, z, **settings), agreement(z, **settings)
    torch.testing.assert_close(found[0][:2], sufficiency(v[:1], z[:1], task=task)[:2])
    assert found[1][:2].eq(0).all() and found[2][:2].abs().max() < 1e-12
    pair = torch.tensor([0, 2])
    torch.testing.assert_close(found[1][2:4], consistency(v[pair], z[pair], task=task)[2:4])
    torch.testing.assert_close(found[2][2:4], agreement(z[pair], task=task)[2:4])
    torch.testing.assert_close(found[1][4:], consistency(v, z, task=task)[4:])
    nothing = {"task": task, "present": torch.zeros(3, 6, dtype=torch.bool)}
    assert (sufficiency(v, z, **nothing) + consistency(v, z, **nothing) + agreement(z, **nothing)).eq(0).all()


def test_weights_choose_teachers_and_put_views_before_others():
    task, v, z = classes(5), logits(3, 6, 5), logits(3, 6, 5, seed=1)
    towards_first = torch.zeros(3, 3)
    towards_first[0] = 1.0
    expected = kl(v[0].softmax(-1), z[1].softmax(-1)) + kl(v[0].softmax(-1), z[2].softmax(-1))
    torch.testing.assert_close(consistency(v, z, task=task, weights=towards_first), expected)
    double = consistency(v, z, task=task, weights=2 * torch.ones(3, 3))
    torch.testing.assert_close(double, 2 * consistency(v, z, task=task))
    first_two = torch.tensor([1.0, 1.0, 0.0])
    torch.testing.assert_close(agreement(z, task=task, weights=first_two), agreement(z[:2], task=task))
    torch.testing.assert_close(sufficiency(v, z, task=task, weights=first_two), sufficiency(v[:2], z[:2], task=task))


def test_teachers_of_all_sums_get_no_gradient():
    task, v, z = classes(5), logits(3, 6, 5).requires_grad_(), logits(3, 6, 5, seed=1).requires_grad_()
    total = (sufficiency(v, z, task=task) + consistency(v, z, task=task) + agreement(z, task=task)).sum()
    slopes = torch.autograd.grad(total, (v, z), allow_unused=True)
    assert slopes[0] is None and slopes[1].abs().max() > 0


def test_view_losses_are_means_over_labelled_rows():
    task, v, z = classes(5), logits(2, 6, 5), logits(2, 6, 5, seed=1)
    valid = torch.tensor([True, True, False, True, True, False])
    present = torch.tensor([[True] * 6, [True, False, True, True, True, False]])
    target = Target(torch.tensor([0, 1, -100, 3, 4, -100]), valid)
    found = view_losses(v, z, target, task=task, present=present)
    entropy = sum(
        0.5 * F.cross_entropy(x[i], target.value, ignore_index=-100, reduction="none") * present[i] * valid
        for x in (v, z)
        for i in (0, 1)
    )
    torch.testing.assert_close(found.task, entropy.sum() / 4)
    rows = sufficiency(v, z, task=task, present=present)
    torch.testing.assert_close(found.sufficiency, rows[valid].mean())
    rows = consistency(v, z, task=task, present=present)
    torch.testing.assert_close(found.consistency, rows[valid].mean())
    rows = agreement(z, task=task, present=present)
    torch.testing.assert_close(found.agreement, rows[valid].mean())


def test_barycentre_is_the_mean_distribution_of_the_views_present():
    z, shares = logits(3, 6, 5), torch.ones(3, 6, dtype=torch.float64)
    shares[1, 0], shares[:, 1] = 0.0, 0.0
    found = barycentre(z, shares, task=classes(5)).exp()
    torch.testing.assert_close(found[0], z[[0, 2], 0].softmax(-1).mean(0))
    torch.testing.assert_close(found[1:], z[:, 1:].softmax(-1).mean(0))
    torch.testing.assert_close(barycentre(z[..., 0], shares, task=NUMBER)[0], z[[0, 2], 0, 0].mean())


# ---- what they do --------------------------------------------------------------------------------------------------


def test_sufficiency_makes_a_code_tell_as_much_of_the_label_as_the_observation():
    """Discrete x with known P(y|x): after minimising VSD over a table of z's, H(y|z) = H(y|v)."""
    observed = logits(6, 4)
    table = torch.zeros(6, 4, dtype=torch.float64, requires_grad=True)
    for _ in range(400):
        slope = torch.autograd.grad(divergence(observed, table, task=classes(4)), table)[0]
        table = (table - 20 * slope).detach().requires_grad_()
    truth = observed.softmax(1)
    told = -(truth * table.log_softmax(1)).sum(1).mean()
    assert told.item() == pytest.approx(-(truth * observed.log_softmax(1)).sum(1).mean().item(), abs=1e-6)


def test_consistency_drops_what_the_other_view_does_not_support():
    """View 1 sees (s, p), view 2 sees s. The optimum is P_z1 = (a P_v1 + b P_v2) / (a + b): p counts a / (a + b)."""
    a, b, task = 1.0, 3.0, classes(3)
    first = logits(4, 2, 3)  # P_v1 by s and p
    second = first.softmax(-1).mean(dim=1, keepdim=True).log().expand(4, 2, 3)  # p averaged out
    table = torch.zeros(4, 2, 3, dtype=torch.float64, requires_grad=True)
    for _ in range(400):
        loss = a * divergence(first, table, task=task) + b * divergence(second, table, task=task)
        table = (table - 4 * torch.autograd.grad(loss, table)[0]).detach().requires_grad_()
    found, seen = table.softmax(-1), first.softmax(-1)
    torch.testing.assert_close(found, (a * seen + b * second.exp()) / (a + b), atol=1e-6, rtol=0)
    torch.testing.assert_close(found[:, 0] - found[:, 1], a / (a + b) * (seen[:, 0] - seen[:, 1]), atol=1e-6, rtol=0)


def _three_views(rows: int, draw: torch.Generator) -> tuple[list[Tensor], Tensor]:
    """x_i = (shared s, private p_i, noise); the label hangs on s and a little on every p_i."""
    shared, *private = (torch.randn(rows, 1, generator=draw) for _ in range(4))
    views = [torch.cat([shared, p, 0.3 * torch.randn(rows, 1, generator=draw)], dim=1) for p in private]
    return views, ((shared + 0.5 * sum(private))[:, 0] > 0).long()


def _private_share(weight: float) -> tuple[float, float]:
    """Train three views. How much P_z hangs on the private part, relative to P_v; and the accuracy from z."""
    draw = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    views, label = _three_views(256, draw)
    new, truth = _three_views(1000, draw)
    encoders, heads = (
        nn.ModuleList(nn.Linear(3, 8) for _ in views),
        ViewHeads(dict.fromkeys("abc", 8), classes(2), hidden=8, code=4),
    )
    optimiser = torch.optim.Adam([*encoders.parameters(), *heads.parameters()], lr=3e-2)
    target, present = Target(label, torch.ones(256, dtype=torch.bool)), torch.ones(3, 256, dtype=torch.bool)

    def run(inputs: list[Tensor]):
        return heads({name: encoder(x) for name, encoder, x in zip("abc", encoders, inputs)})

    for _ in range(60):
        told = run(views)
        parts = view_losses(told.observations, told.codes, target, task=classes(2), present=present)
        optimiser.zero_grad()
        (parts.task + parts.sufficiency + weight * parts.consistency).backward()
        optimiser.step()
    order = torch.randperm(1000, generator=draw)
    with torch.inference_mode():
        plain, swapped = run(new), run([torch.cat([x[:, :1], x[order, 1:2], x[:, 2:]], dim=1) for x in new])
        code, observation = (
            divergence(one, other, task=classes(2)).item()
            for one, other in ((plain.codes, swapped.codes), (plain.observations, swapped.observations))
        )
    return code / observation, (plain.codes.argmax(-1) == truth).float().mean().item()


def test_trained_views_with_consistency_tell_less_of_what_is_private():
    (free, before), (held, after) = _private_share(0.0), _private_share(1.0)
    assert 0.8 < free < 1.3 and held < 0.5 * free
    assert after > before - 0.02
