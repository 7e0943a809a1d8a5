"""The updater: what it guarantees about gradients, steps and rates."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from toys import cpu_fabric

from moodal.core.errors import MoodalError
from moodal.core.method import Group, Losses
from moodal.core.settings import GroupConfig, TrainConfig
from moodal.train.batches import share
from moodal.train.optim import rate_factor
from moodal.train.update import Updater

PLAIN = {"schedule": "constant", "warmup": 0.0, "clip": None, "decay": 0.0}


def model(seed: int = 0, dtype: torch.dtype = torch.float64) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 1)).to(dtype)


def updater(named, /, *, fabric=None, total: int = 10, **train) -> Updater:
    named = named if isinstance(named, dict) else {"main": named}
    return Updater(fabric or cpu_fabric(), named, TrainConfig(**{**PLAIN, **train}), total)


def rows(count: int, *, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(count, 5, generator=draw, dtype=torch.float64), torch.randn(
        count, generator=draw, dtype=torch.float64
    )


def mean_square(net: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return (net(x)[:, 0] - y).square().mean()


def weights(net: nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten().clone() for p in net.parameters()])


@pytest.mark.parametrize("optimiser", ["adamw", "adam", "sgd"])
@pytest.mark.parametrize("count", [32, 29, 3, 1])
def test_parts_of_a_batch_equal_the_whole_batch(optimiser, count):
    """Four parts of eight, a short tail in unequal parts and fewer rows than parts all give the step of one batch."""
    x, y = rows(count)
    whole, parts = model(), model()
    train = {"optimiser": optimiser, "clip": 0.5, "rate": 0.1}
    one, many = updater([Group("main", whole)], **train), updater([Group("main", parts)], **train)
    for _ in range(3):
        one.rows, one.due = count, True
        one(Losses(mean_square(whole, x, y)))
        chunks = share(torch.arange(count), 0, 1, 4)
        assert sum(size for _, size in chunks) == count
        for turn, (chosen, size) in enumerate(chunks):
            many.rows, many.due = size, turn == len(chunks) - 1
            many(Losses(mean_square(parts, x[chosen], y[chosen])))
    # the loss is cast to float32 on its way, so equal to its precision
    torch.testing.assert_close(weights(parts), weights(whole), atol=1e-6, rtol=1e-6)
    assert not torch.equal(weights(whole), weights(model()))


def test_rows_without_a_label_weigh_nothing():
    """Parts whose losses are means over their labelled rows add up to the mean over all labelled rows."""
    x, y = rows(12)
    labelled = torch.tensor([1, 0, 0, 0, 1, 1, 1, 1, 0, 0, 0, 0], dtype=torch.bool)
    whole, parts = model(), model()
    one, many = updater([Group("main", whole)], rate=0.1), updater([Group("main", parts)], rate=0.1)
    one.rows = int(labelled.sum())
    one(Losses(mean_square(whole, x[labelled], y[labelled])))
    for turn, chosen in enumerate(torch.arange(12).split(4)):
        known = labelled[chosen]
        errors = (parts(x[chosen])[:, 0] - y[chosen]).square() * known
        many.rows, many.due = 4, turn == 2
        many(Losses(errors.sum() / known.sum().clamp(min=1), rows=known.sum()))
    torch.testing.assert_close(weights(parts), weights(whole), atol=1e-6, rtol=1e-6)


def test_a_batch_without_labels_moves_nothing():
    net = model()
    update = updater([Group("main", net)], rate=0.1, decay=0.1)
    before = weights(net)
    update.rows = 4
    update(Losses(net(rows(4)[0]).sum() * 0.0, rows=torch.tensor(0)))
    assert torch.equal(weights(net), before)
    assert all(p.grad is None for p in net.parameters())


def test_two_optimisers_in_one_step_do_not_leak():
    """A loss that reaches everything moves the named optimiser's parameters only and leaves no gradient elsewhere."""
    critic, main = model(1), model(2)
    update = updater({"critic": [Group("critic", critic)], "main": [Group("main", main)]}, rate=0.1)
    update.rows = 6
    x, y = rows(6)
    before = weights(critic), weights(main)
    both = mean_square(critic, x, y) + mean_square(main, x, y)
    update(Losses(both), "critic")
    assert not torch.equal(weights(critic), before[0])
    assert torch.equal(weights(main), before[1])
    assert all(p.grad is None for net in (critic, main) for p in net.parameters())
    alone = model(2)
    other = updater([Group("main", alone)], rate=0.1)
    other.rows = 6
    other(Losses(mean_square(alone, x, y)))
    update(Losses(mean_square(critic, x, y) + mean_square(main, x, y)), "main")
    torch.testing.assert_close(weights(main), weights(alone))


def test_the_norm_is_clipped_over_all_groups_of_an_optimiser():
    net = model()
    groups = [Group("first", net[0]), Group("second", net[2])]
    update = updater(groups, optimiser="sgd", rate=1.0, clip=0.01)
    update.rows = 6
    before = weights(net)
    update(Losses(1000 * mean_square(net, *rows(6))))
    assert float((weights(net) - before).norm()) == pytest.approx(0.01, rel=1e-4)


def test_two_optimisers_are_clipped_apart():
    first, second = model(1), model(2)
    update = updater({"a": [Group("a", first)], "b": [Group("b", second)]}, optimiser="sgd", rate=1.0, clip=0.01)
    update.rows = 6
    for name, net in (("a", first), ("b", second)):
        before = weights(net)
        update(Losses(100 * mean_square(net, *rows(6))), name)
        assert float((weights(net) - before).norm()) == pytest.approx(0.01, rel=1e-4)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_before_the_step(value):
    net = model()
    update = updater([Group("main", net)], decay=0.1)
    update.rows, before = 6, weights(net)
    task = mean_square(net, *rows(6))
    with pytest.raises(
        MoodalError, match=r"stage , epoch 1, step 1: the loss is (nan|inf) \(task .*, odd .*\)\. No step was taken"
    ):
        update(Losses(task + value, task=task, odd=torch.tensor(value)))
    assert torch.equal(weights(net), before)


def test_a_gradient_that_is_not_finite_stops_before_the_step():
    """The square root of zero is finite and its slope is not."""
    net = model()
    update = updater([Group("main", net)], clip=1.0)
    update.rows, before = 6, weights(net)
    with pytest.raises(MoodalError, match=r"gradient's norm is (nan|inf)"):
        update(Losses((net(rows(6)[0]).sum() * 0.0).sqrt()))
    assert torch.equal(weights(net), before)


def test_an_optimiser_that_the_loss_does_not_reach_stays():
    net, other = model(1), model(2)
    update = updater({"main": [Group("main", net)], "other": [Group("other", other)]})
    update.rows, before = 6, weights(other)
    update(Losses(mean_square(net, *rows(6))), "other")
    assert torch.equal(weights(other), before)


def test_groups_have_rates_and_decays_of_their_own():
    net = model()
    groups = {"first": GroupConfig(rate=0.5, decay=0.2), "second": GroupConfig(rate=0.01)}
    update = updater(
        [Group("first", net[0]), Group("second", net[2])], optimiser="sgd", rate=9.0, decay=0.3, groups=groups
    )
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    x, y = rows(6)
    gradient = dict(zip(before, torch.autograd.grad(mean_square(net, x, y), list(net.parameters()))))
    update.rows = 6
    update(Losses(mean_square(net, x, y)))
    for name, parameter in net.named_parameters():
        rate, decay = (0.5, 0.2) if name.startswith("0") else (0.01, 0.3)
        expected = before[name] - rate * (gradient[name] + decay * before[name])
        torch.testing.assert_close(parameter.detach(), expected, atol=1e-6, rtol=1e-5)


def test_gradients_can_be_adjusted_before_clipping():
    net = model()
    update = updater([Group("main", net)], optimiser="sgd", rate=1.0, clip=0.01)
    update.rows, before = 6, weights(net)

    def only_the_last(parameters):
        for parameter in parameters[:-1]:
            parameter.grad.zero_()

    update(Losses(mean_square(net, *rows(6))), adjust=only_the_last)
    moved = (weights(net) - before).abs()
    assert float(moved[:-1].max()) == 0
    assert float(moved[-1]) == pytest.approx(0.01, rel=1e-4)


@pytest.mark.parametrize("schedule", ["constant", "cosine", "linear"])
@pytest.mark.parametrize("warmup", [0.0, 0.2])
def test_the_rate_follows_the_schedule(schedule, warmup):
    total, cfg = 20, TrainConfig(schedule=schedule, warmup=warmup)
    warm = 4 if warmup else 0
    for step in range(total):
        done = (step - warm) / (total - warm)
        after = {"constant": 1.0, "cosine": (1 + math.cos(math.pi * done)) / 2, "linear": 1 - done}[schedule]
        assert rate_factor(step, total, cfg) == pytest.approx((step + 1) / warm if step < warm else after)


def test_the_rate_falls_to_a_tenth_at_each_drop():
    cfg = TrainConfig(schedule="step", drops=(0.4, 0.75), warmup=0.1)
    found = [round(rate_factor(step, 20, cfg), 6) for step in range(20)]
    assert found == [0.5, 1.0, *[1.0] * 6, *[0.1] * 7, *[0.01] * 5]
    with pytest.raises(MoodalError, match=r"drops is for train\.schedule=step"):
        TrainConfig(drops=(0.5,))
    with pytest.raises(MoodalError, match="each is a share of all steps"):
        TrainConfig(schedule="step", drops=(1.5,))


def test_the_rate_of_a_step_is_the_schedule_times_the_groups_rate():
    net = model()
    groups = {"second": GroupConfig(rate=0.5)}
    update = updater(
        [Group("first", net[0]), Group("second", net[2])], schedule="linear", rate=0.1, groups=groups, total=4
    )
    update.rows = 6
    seen = []
    for _ in range(4):
        update(Losses(mean_square(net, *rows(6))))
        seen.append([group["lr"] for group in update.optimisers["main"].param_groups])
    assert seen == [pytest.approx([f * 0.1, f * 0.5]) for f in (1.0, 0.75, 0.5, 0.25)]


def test_state_goes_on_exactly():
    """Saved and loaded in the middle, the updater ends with the same bits, whatever total it was built with."""
    x, y = rows(6)

    def steps(update: Updater, net: nn.Module, count: int) -> None:
        for _ in range(count):
            update.rows = 6
            update(Losses(mean_square(net, x, y)))

    whole, net = model(), model()
    one = updater([Group("main", whole)], schedule="cosine", total=6)
    steps(one, whole, 6)
    first = updater([Group("main", net)], schedule="cosine", total=6)
    steps(first, net, 3)
    again = model(5)
    again.load_state_dict(net.state_dict())
    second = updater([Group("main", again)], schedule="cosine", total=99)
    second.load_state_dict(first.state_dict())
    steps(second, again, 3)
    assert torch.equal(weights(again), weights(whole))


def test_bf16_uses_new_weights_in_the_middle_of_a_step():
    """Under autocast the second use of a module in a step sees the weights of after the first update."""
    fabric = cpu_fabric(precision="bf16-mixed")
    critic = model(1, torch.float32)
    update = updater({"critic": [Group("critic", critic)]}, fabric=fabric, optimiser="sgd", rate=0.5)
    update.rows = 6
    x, y = (part.float() for part in rows(6))
    with fabric.autocast():
        first = critic(x)
        update(Losses((first[:, 0].float() - y).square().mean()), "critic")
        second = critic(x)
    assert first.dtype == torch.bfloat16
    with fabric.autocast():
        fresh = critic(x)
    assert torch.equal(second, fresh)
    assert not torch.equal(second, first)
