"""MMMIE: what is maximised and minimised, who takes part, identities and context, estimators apart from the rest."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from moodal.core.batch import Batch, Dialogue, Stream, Target
from moodal.core.errors import MoodalError
from moodal.core.method import Progress
from moodal.core.spec import DataSpec, Regression, StreamSpec
from moodal.losses.information import Code, CriticBound, LeaveOneOutBound, PriorBound, strangers
from moodal.methods.mmmie import MMMIE, MmmieConfig, neighbours

pytestmark = pytest.mark.usefixtures("one_thread")

WIDTHS = {"text": 6, "audio": 3, "vision": 4}
SMALL = {"width": 8, "heads": 2, "layers": 1, "fusion_layers": 1, "estimator_hidden": 8}
MAXIMISERS = ("infonce", "jensen_shannon", "donsker_varadhan", "nwj", "barber_agakov")
MINIMISERS = ("prior", "club", "leave_one_out")


def build(modalities: tuple[str, ...] = ("text", "audio", "vision"), **settings: Any) -> MMMIE:
    torch.manual_seed(0)
    spec = DataSpec(streams={m: StreamSpec("features", WIDTHS[m]) for m in modalities}, task=Regression(-3.0, 3.0))
    return MMMIE(MmmieConfig(**{**SMALL, **settings}), spec)


def batch(rows: int = 6, seed: int = 0) -> Batch:
    torch.manual_seed(seed)
    lengths = torch.randint(1, 5, (rows,))
    mask = torch.arange(4) < lengths[:, None]
    return Batch(
        ids=tuple(map(str, range(rows))),
        index=torch.arange(rows),
        streams={m: Stream(torch.randn(rows, 4, width), mask) for m, width in WIDTHS.items()},
        target=Target(torch.randn(rows), torch.ones(rows, dtype=torch.bool)),
    )


def talk(given: Batch, conversation: list[int], turn: list[int]) -> Batch:
    places = torch.tensor(conversation), torch.tensor(turn)
    return replace(given, dialogue=Dialogue(*places, torch.zeros_like(places[0])))


def code(mean: Tensor, deviation: Tensor, mask: Tensor) -> Code:
    pooled = (mean * mask[..., None]).sum(1) / mask.sum(1, keepdim=True).clamp(min=1)
    return Code(mean, pooled, mean, deviation, mask, pooled)


def test_without_weights_and_identity_it_is_the_plain_transformer_bit_for_bit():
    full, plain = build().eval(), build(maximise=0.0, minimise=0.0, identity=False)
    extra = {name for name in full.state_dict() if name.startswith(("deviations.", "shared.", "network.identity."))}
    assert set(plain.state_dict()) == set(full.state_dict()) - extra and extra
    plain.load_state_dict({name: value for name, value in full.state_dict().items() if name not in extra})
    with torch.no_grad():
        for identity in full.network.identity.values():
            identity.zero_()
    given = batch()
    assert torch.equal(full(given).prediction, plain.eval()(given).prediction)
    losses = plain.loss(given)
    assert torch.equal(losses.total, (plain(given).prediction - given.target.value).abs().mean())
    assert set(losses.parts) == {"task"}


def test_codes_are_drawn_in_training_only_and_only_if_something_is_minimised():
    given = batch()
    for minimise, drawn in ((1e-3, True), (0.0, False)):
        method = build(minimise=minimise, dropout=0.0).train()
        assert torch.equal(method(given).prediction, method(given).prediction) is not drawn
        method.eval()
        assert torch.equal(method(given).prediction, method(given).prediction)


def test_the_total_is_the_task_less_what_is_shared_plus_what_is_kept():
    method = build(maximise=0.3, minimise=0.02).eval()
    losses = method.loss(batch())
    parts = losses.parts
    torch.testing.assert_close(losses.total, parts["task"] - 0.3 * parts["shared"] + 0.02 * parts["kept"])


def test_the_prior_bound_in_closed_form():
    """0 at mean 0 and deviation 1; ½ per dimension at mean 1."""
    mask, one = torch.ones(3, 2, dtype=torch.bool), torch.ones(3, 2, 4)
    bound = PriorBound()
    assert bound({"text": code(0 * one, one, mask)}).item() == pytest.approx(0, abs=1e-6)
    assert bound({"text": code(one, one, mask), "audio": code(one, one, mask)}).item() == pytest.approx(2 * 0.5)
    start = math.log1p(math.exp(-5))
    expected = 0.5 * (start**2 - 1) - math.log(start)
    assert bound({"text": code(0 * one, start * one, mask)}).item() == pytest.approx(expected, rel=1e-5)


def test_the_leave_one_out_bound_knows_the_pooled_codes_density():
    """Steps drawn many times: the density of their mean that the bound uses is that of the draws."""
    torch.manual_seed(0)
    mask = torch.tensor([[True, True, False], [True, True, True]])
    mean, deviation = torch.randn(2, 3, 1), torch.rand(2, 3, 1) + 0.5
    drawn = mean + deviation * torch.randn(20_000, 2, 3, 1)
    pooled = (drawn * mask[..., None]).sum(2) / mask.sum(1, keepdim=True)
    centre, variance = pooled.mean(0)[:, 0], pooled.var(0)[:, 0]
    at = torch.tensor([[0.3], [-0.4]])
    table = -0.5 * ((at[:, 0] - centre[:, None]).square() / variance[:, None] + variance[:, None].log())
    expected = 0.5 * (table[0, 0] - table[1, 0] + table[1, 1] - table[0, 1])
    given = Code(mean, at, mean, deviation, mask, at)
    assert LeaveOneOutBound()({"text": given}).item() == pytest.approx(expected.item(), abs=0.05)


@pytest.mark.parametrize("maximiser", MAXIMISERS)
@pytest.mark.parametrize("minimiser", MINIMISERS)
def test_every_pair_of_bounds_trains(maximiser, minimiser):
    """The estimators' loss reaches the estimators alone; everything reached by either loss is in its own optimiser."""
    method = build(maximiser=maximiser, minimiser=minimiser).train()
    groups = method.stages()[0].passes[0].groups
    named = {name: [p for group in part for p in group.parameters()] for name, part in groups.items()}
    assert ("estimator" in named) == (maximiser == "barber_agakov" or minimiser == "club")
    owners = [id(p) for part in named.values() for p in part]
    assert len(owners) == len(set(owners)) and set(owners) == {id(p) for p in method.parameters()}

    class Noting:
        progress = Progress("train", 0, 0, 10)

        def __init__(self):
            self.reached: dict[str, set[int]] = {}

        def __call__(self, losses, optimiser="main", *, adjust=None):
            assert bool(torch.isfinite(losses.total))
            every = list(method.parameters())
            found = torch.autograd.grad(losses.total, every, retain_graph=True, allow_unused=True)
            assert all(bool(torch.isfinite(g).all()) for g in found if g is not None)
            self.reached[optimiser] = {id(p) for p, g in zip(every, found) if g is not None and bool(g.any())}

    update = Noting()
    method.step(batch(7), update)  # an odd number: the signs of the errors cannot cancel
    assert update.reached["main"] >= {id(p) for p in named["main"]}
    if "estimator" in named:
        assert update.reached["estimator"] == {id(p) for p in named["estimator"]}


def test_the_weight_of_what_is_minimised_grows_over_the_first_epochs():
    method = build(minimise=1.0, maximise=0.0, warm_epochs=4, dropout=0.0).eval()
    totals = []

    class At:
        def __init__(self, epoch: int):
            self.progress = Progress("train", epoch, 0, 10)

        def __call__(self, losses, optimiser="main", *, adjust=None):
            totals.append(losses)

    for epoch in (0, 1, 3, 9):
        method.step(batch(), At(epoch))
    kept = [(losses.total - losses.parts["task"]).item() for losses in totals]
    assert kept == pytest.approx([losses.parts["kept"].item() * w for losses, w in zip(totals, (0.25, 0.5, 1, 1))])


@pytest.mark.parametrize("maximiser", MAXIMISERS)
@pytest.mark.parametrize("minimiser", MINIMISERS)
def test_rows_that_lack_a_modality_take_no_part_in_its_bounds(maximiser, minimiser):
    method = build(maximiser=maximiser, minimiser=minimiser).eval()
    given = batch(8)
    audio = given.streams["audio"]
    gone = audio.mask & (torch.arange(8) >= 3)[:, None]
    found = []
    for rubbish in (0.0, 50.0):
        filled = Stream(audio.data.masked_fill(~gone[..., None], rubbish), gone)
        codes = method.encode(replace(given, streams={**given.streams, "audio": filled}))
        found.append((method.shared(codes), method.kept(codes)))
    torch.testing.assert_close(found[0], found[1])
    rest = method.encode(given.rows(torch.arange(3, 8)))
    alone = PriorBound()({"audio": rest["audio"]}), PriorBound()({"audio": codes["audio"]})
    torch.testing.assert_close(*alone)


def test_one_row_or_none_says_nothing_of_what_is_shared():
    for rows in (0, 1):
        method = build().eval()
        given = batch(4)
        mask = given.streams["audio"].mask & (torch.arange(4) < rows)[:, None]
        given = replace(given, streams={**given.streams, "audio": Stream(given.streams["audio"].data, mask)})
        codes = method.encode(given)
        bound = CriticBound(("audio", "vision"), width=8, kind="infonce", temperature=0.1)
        assert bound({m: codes[m] for m in ("audio", "vision")}).item() == 0


def test_turns_of_one_conversation_are_no_negatives_of_each_other():
    dialogue = Dialogue(torch.tensor([0, 0, 1, 2]), torch.tensor([0, 1, 0, 0]), torch.zeros(4, dtype=torch.int64))
    found = strangers(torch.tensor([0, 1, 3]), dialogue)
    assert found.tolist() == [[False, False, True], [False, False, True], [True, True, False]]


def test_neighbours_are_turns_of_the_same_conversation_in_order():
    dialogue = Dialogue(torch.tensor([5, 7, 5, 5]), torch.tensor([1, 1, 0, 3]), torch.zeros(4, dtype=torch.int64))
    place, there = neighbours(dialogue, 2)
    assert there.tolist() == [
        [False, True, False, True],  # turn 1 of 5: turns -1, 0, 2, 3
        [False, False, False, False],
        [False, False, True, False],  # turn 0: turns -2, -1, 1, 2
        [True, False, False, False],  # turn 3: turns 1, 2, 4, 5
    ]
    assert place[there].tolist() == [2, 3, 0, 0]


def test_alone_in_its_conversation_a_row_is_predicted_as_without_context():
    far, near = build(context=2).eval(), build().eval()
    roles = {name: value for name, value in far.state_dict().items() if not name.endswith(("past", "future"))}
    near.load_state_dict(roles)
    given = talk(batch(), list(range(6)), [0] * 6)
    torch.testing.assert_close(far(given).prediction, near(given).prediction, rtol=0, atol=1e-6)


def test_only_an_identity_tells_the_past_from_the_future():
    """Positions off: the order of the context is nothing to the target, unless its identities are on."""
    given = batch(5)
    for identity in (False, True):
        method = build(context=2, identity=identity, positions=False).eval()
        with torch.no_grad():
            for role in method.network.identity.values():
                role.mul_(20)
        first = method(talk(given, [0] * 5, [0, 1, 2, 3, 4])).prediction[2]
        swapped = method(talk(given, [0] * 5, [3, 4, 2, 0, 1])).prediction[2]
        same_side = method(talk(given, [0] * 5, [1, 0, 2, 3, 4])).prediction[2]
        torch.testing.assert_close(same_side, first, rtol=0, atol=1e-6)
        change = (swapped - first).abs().item()
        assert change > 1e-4 if identity else change < 1e-6


def test_positions_say_how_far_a_turn_is():
    method, given = build(context=2, identity=False).eval(), batch(5)
    first = method(talk(given, [0] * 5, [0, 1, 2, 3, 4])).prediction[2]
    assert (method(talk(given, [0] * 5, [1, 0, 2, 3, 4])).prediction[2] - first).abs().item() > 1e-5


def test_context_needs_conversations():
    with pytest.raises(MoodalError, match="no conversations"):
        build(context=1)(batch())


def test_more_of_the_first_weight_makes_the_modalities_agree_and_more_of_the_second_makes_codes_smaller():
    """Audio and vision see one hidden number each way, and noise of their own."""
    torch.manual_seed(0)
    hidden = torch.randn(256, 2)
    seen = {m: torch.cat([hidden, torch.randn(256, w - 2)], dim=1) for m, w in (("audio", 3), ("vision", 4))}
    mask = torch.ones(256, 1, dtype=torch.bool)
    given = replace(
        batch(256),
        streams={m: Stream(x[:, None], mask) for m, x in seen.items()},
        target=Target(hidden[:, 0], torch.ones(256, dtype=torch.bool)),
    )
    rows = given.rows(torch.arange(64))

    def trained(**settings: float) -> tuple[float, float]:
        method = build(("audio", "vision"), dropout=0.0, **settings).train()
        optimiser = torch.optim.Adam(method.parameters(), lr=3e-3)
        for step in range(40):
            losses = method.loss(given.rows(torch.arange(64) + 64 * (1 + step % 3)))
            optimiser.zero_grad()
            losses.total.backward()
            optimiser.step()
        codes = method.eval().encode(rows)
        return method.shared(codes).item(), method.kept(codes).item()

    little, much = trained(maximise=1e-4, minimise=1e-4), trained(maximise=1.0, minimise=1e-4)
    assert much[0] > little[0] + 0.4
    assert trained(maximise=1e-4, minimise=1.0)[1] < 0.7 * little[1]


@pytest.mark.parametrize(
    "wrong", [{"width": 9}, {"temperature": 0.0}, {"maximise": -1.0}, {"context": -1}, {"dropout": 1.0}, {"layers": 0}]
)
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(MoodalError, match=next(iter(wrong))):
        build(**wrong)
