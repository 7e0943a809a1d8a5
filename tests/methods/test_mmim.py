"""MMIM: sizes, what its bounds say of Gaussians, which parameters move in which pass, and the memory."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import pytest
import torch
from together import train
from torch import nn
from toys import READER, cpu_fabric, job, make_method, predictions, prepared, toy_config

from moodal.core.errors import MoodalError
from moodal.core.method import Group, Losses, Method, Output, Progress
from moodal.core.settings import GroupConfig, TrainConfig
from moodal.core.spec import DataSpec, Regression, StreamSpec
from moodal.layers.memory import Remembered
from moodal.losses.task import task_loss
from moodal.methods.mmim import MMIM, MmimConfig, PairBound
from moodal.train.optim import verify_names
from moodal.train.update import Updater

pytestmark = pytest.mark.usefixtures("one_thread")

WIDTHS = {"text": 768, "audio": 5, "vision": 20}
MOSI = DataSpec(streams={m: StreamSpec("features", w) for m, w in WIDTHS.items()}, task=Regression(-3, 3))


def config(task: str = "regression", train: int = 41, **model):
    settings = MmimConfig(**{"fusion": 16, "dropout": 0.0, **model})
    return toy_config(method="mmim", model=settings, reader=replace(READER, task=task, train=train))


def made(cfg, data=None) -> MMIM:
    return make_method(MMIM, cfg, data or prepared(cfg))


# ---- sizes -------------------------------------------------------------------------------------------------------


def count(*modules: nn.Module) -> int:
    return sum(p.numel() for module in modules for p in module.parameters())


def test_parameters_at_the_official_sizes():
    """The whole official model after its text encoder; by default the projections are fixed, so no parameters."""
    official, own = MMIM(MmimConfig(reference=True), MOSI), MMIM(MmimConfig(), MOSI)
    assert [count(bound) for bound in official.bounds.values()] == [25_220, 25_220]
    assert count(official.contrast) == 103_200
    assert count(official.fusion, official.score) == 119_169
    assert count(official) == 277_257
    assert count(official) - count(own) == 2 * (16 * 4 + 4)
    assert {name for name, _ in official.named_parameters()} - {name for name, _ in own.named_parameters()} == {
        f"bounds.{pair}.projection.{kind}" for pair in own.pairs for kind in ("weight", "bias")
    }


@pytest.mark.parametrize(
    ("modalities", "option", "pairs"),
    [
        (("text", "audio", "vision"), False, ["text_to_vision", "text_to_audio"]),
        (("text", "audio", "vision"), True, ["text_to_vision", "text_to_audio", "vision_to_audio"]),
        (("text", "audio"), True, ["text_to_audio"]),
        (("audio", "vision"), False, ["vision_to_audio"]),
        (("vision",), True, []),
    ],
)
def test_pairs(modalities, option, pairs):
    method = MMIM(MmimConfig(modalities=modalities, pair_vision_audio=option), MOSI)
    assert list(method.pairs) == list(method.bounds) == pairs
    assert len(method.stages()[0].passes) == (2 if pairs else 1)


def test_wrong_settings_get_a_sentence():
    for wrong in ({"beta": -1}, {"first_pass": 0}, {"log_variance_limit": 0}, {"dropout": 1}, {"cpc_layers": 0}):
        with pytest.raises(MoodalError, match=next(iter(wrong))):
            MmimConfig(**wrong)


# ---- the bound ---------------------------------------------------------------------------------------------------


def gaussians(correlation: float, rows: int = 40_000, width: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    x, noise = (torch.randn(rows, width, generator=draw) for _ in range(2))
    return x, correlation * x + math.sqrt(1 - correlation**2) * noise


def exact(correlation: float, width: int = 4, **settings) -> PairBound:
    """q(y|x) = p(y|x): the mean through ReLUs that are never 0, the log-variance constant."""
    bound = PairBound(width, width, MmimConfig(log_variance_limit=None, **settings), rows=0)
    first, second = bound.conditional.mean[0], bound.conditional.mean[2]
    with torch.no_grad():
        for linear, scale in ((first, 1.0), (second, correlation)):
            linear.weight.copy_(scale * torch.eye(width))
        first.bias.fill_(10.0)
        second.bias.fill_(-10.0 * correlation)
        bound.conditional.log_variance[2].weight.zero_()
        bound.conditional.log_variance[2].bias.fill_(math.log(1 - correlation**2))
    return bound


def value(bound: PairBound, x: torch.Tensor, y: torch.Tensor) -> float:
    """Barber-Agakov per dimension: E ln q(y|x) + H(Y), the entropy that of a standard normal."""
    return bound.log_likelihood(x, y).mean().item() / x.shape[1] + 0.5 * math.log(2 * math.pi * math.e)


@pytest.mark.parametrize("correlation", [0.1, 0.5, 0.8, 0.9])
def test_the_bound_reaches_the_mutual_information_and_never_exceeds_it(correlation):
    truth, (x, y) = -0.5 * math.log(1 - correlation**2), gaussians(correlation)
    bound = exact(correlation)
    assert value(bound, x, y) == pytest.approx(truth, abs=0.01)
    for seed in range(3):  # any other q gives less
        torch.manual_seed(seed)
        other = copy.deepcopy(bound)
        for parameter in other.parameters():
            nn.init.normal_(parameter.data, mean=0.0, std=0.02).add_(
                dict(bound.named_parameters())[_name(other, parameter)]
            )
        assert value(other, x, y) < value(bound, x, y)


def _name(module: nn.Module, wanted: nn.Parameter) -> str:
    return next(name for name, parameter in module.named_parameters() if parameter is wanted)


@pytest.mark.parametrize("limit", [None, 1.0])
def test_fitted_by_likelihood_it_comes_near_from_below(limit):
    """The default limit loosens the bound where variances would have to leave it; it stays a bound."""
    correlation = 0.9  # a conditional variance of 0.19, below e^-1
    truth, (x, y) = -0.5 * math.log(1 - correlation**2), gaussians(correlation)
    torch.manual_seed(0)
    bound = PairBound(4, 4, MmimConfig(log_variance_limit=limit), rows=0)
    optimiser = torch.optim.Adam(bound.parameters(), lr=2e-2)
    for step in range(500):
        part = slice(40 * step, 40 * step + 400)
        (-bound.log_likelihood(x[part], y[part]).mean()).backward()
        optimiser.step()
        optimiser.zero_grad()
    reach = truth if limit is None else 0.5 * (1 + limit - (1 - correlation**2) * math.e**limit)
    assert 0.9 * reach < value(bound, x[20_000:], y[20_000:]) < reach + 0.01


def test_the_published_likelihood_bounds_nothing():
    """Without its log-variance term it says most where it knows least, and exceeds the mutual information."""
    x, y = gaussians(0.8)
    published = exact(0.8, likelihood="published")
    found = []
    for log_variance in (0.0, 2.0, 8.0):
        published.conditional.log_variance[2].bias.data.fill_(log_variance)
        found.append(value(published, x, y))
    assert found == sorted(found) and found[0] > -0.5 * math.log(1 - 0.8**2)


def test_likelihoods_by_hand():
    x, y = torch.randn(5, 6), torch.randn(5, 4)
    bound = PairBound(6, 4, MmimConfig(log_variance_limit=None), rows=0)
    published = PairBound(6, 4, MmimConfig(reference=True), rows=0)
    published.conditional.load_state_dict(bound.conditional.state_dict())
    mean, log_variance = bound.conditional.mean(x), bound.conditional.log_variance(x)
    wanted = torch.distributions.Normal(mean, (0.5 * log_variance).exp()).log_prob(y).sum(1)
    torch.testing.assert_close(bound.log_likelihood(x, y), wanted)
    short = published.log_likelihood(x, y)
    torch.testing.assert_close(short, wanted + 0.5 * (log_variance + math.log(2 * math.pi)).sum(1))
    assert bool((short < 0).all()) and bool((published.log_likelihood(x, mean) == 0).all())


def test_the_limit_keeps_log_variances_in_it():
    bound = PairBound(3, 2, MmimConfig(log_variance_limit=1.0), rows=0)
    x, y = torch.full((1, 3), 1e4), torch.zeros(1, 2)
    nn.init.zeros_(bound.conditional.mean[2].weight)
    nn.init.zeros_(bound.conditional.mean[2].bias)
    found = bound.log_likelihood(x, y).item() + math.log(2 * math.pi)
    assert -1.0 - 1e-5 <= found <= 1.0 + 1e-5  # two dimensions, y equal to the mean


# ---- the passes --------------------------------------------------------------------------------------------------


def run(method: MMIM, data, order: list[tuple[int, int]], *, rows=range(9), **train) -> list[Losses]:
    """Steps (pass, step number) of one batch through the method's own passes, without decay."""
    stage = method.stages()[0]
    plain = {"optimiser": "sgd", "rate": 1e-2, "decay": 0.0, "schedule": "constant", "warmup": 0.0, "clip": None}
    cfg = TrainConfig(**{**plain, **train})
    updaters = [Updater(cpu_fabric(), part.groups, cfg, total=1) for part in stage.passes]
    batch, found = data.splits["train"].rows(torch.tensor(list(rows))), []
    for number, step in order:
        updaters[number].progress, updaters[number].rows = Progress("train", 0, step, 1), len(batch)
        found.append(stage.passes[number].step(batch, updaters[number]))
    return found


def moved(method: MMIM, before: dict[str, torch.Tensor]) -> set[str]:
    return {name for name, value in method.named_parameters() if not torch.equal(value, before[name])}


def weights(method: MMIM) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in method.named_parameters()}


@pytest.mark.parametrize("reference", [False, True])
def test_each_pass_moves_its_own_parameters(reference):
    cfg = config(reference=reference)
    data = prepared(cfg)
    method = made(cfg, data)
    bounds = {name for name, _ in method.named_parameters() if ".conditional." in name}
    fixed = {name for name, _ in method.named_parameters() if ".projection." in name}
    assert bounds and bool(fixed) == reference
    before = weights(method)
    run(method, data, [(0, 0)])
    assert moved(method, before) == bounds
    before = weights(method)
    run(method, data, [(1, 2)])
    assert moved(method, before) == set(before) - bounds - fixed


def test_reference_clips_by_the_norm_of_all_parameters():
    """Half of the norm of the bounds' own gradients would clip them to a half; with the others' counted, to less."""
    sizes = {}
    for reference in (False, True):
        cfg = config(reference=reference, likelihood="published", log_variance_limit=None)
        data = prepared(cfg)
        method = made(cfg, data)
        before = weights(method)
        run(method, data, [(0, 0)], clip=0.01)
        step = torch.cat([(value - before[name]).flatten() for name, value in method.named_parameters()])
        sizes[reference] = step.norm().item()
    assert sizes[False] == pytest.approx(1e-4, rel=1e-3)  # rate times clip
    assert sizes[True] < 0.999 * sizes[False]


def test_a_still_group_counts_in_the_norm_and_stays():
    one, other = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))
    for optimiser in ("adamw", "adam", "sgd"):
        cfg = TrainConfig(optimiser=optimiser, rate=1.0, decay=0.5, schedule="constant", warmup=0.0, clip=1.0)
        updater = Updater(cpu_fabric(), {"main": [Group("main", one), Group("still", other, still=True)]}, cfg, total=1)
        updater.rows = 1
        with torch.no_grad():
            one.zero_()
            other.fill_(2.0)
        updater(Losses((3 * one + 4 * other).sum()))
        assert other.item() == 2.0
    assert one.item() == pytest.approx(-3 / 5)  # sgd: the gradient, clipped by the norm of both
    numbers = TrainConfig(groups={"still": GroupConfig(rate=1.0)})
    with pytest.raises(MoodalError, match="still: mmim has no such group"):
        verify_names("mmim", made(config(reference=True)).stages(), numbers)


@pytest.mark.parametrize(("share", "taken"), [(1.0, 6), (0.5, 3), (0.34, 3), (0.01, 1)])
def test_the_first_pass_takes_its_share_of_the_batches(share, taken):
    cfg = config(first_pass=share)
    data = prepared(cfg)
    method = made(cfg, data)
    steps = 0
    for step in range(6):
        before = weights(method)
        losses = run(method, data, [(0, step)])[0]
        steps += bool(moved(method, before))
        assert losses.rows == 0
    assert steps == taken


def test_without_bounds_and_contrast_it_is_plain_late_concatenation(tmp_path):
    cfg = config(alpha=0.0, beta=0.0)
    data = prepared(cfg)
    method = made(cfg, data)
    assert not method.bounds and not method.contrast and len(method.stages()[0].passes) == 1

    class Plain(Method):
        def __init__(self, cfg, spec):
            super().__init__(cfg, spec)
            whole = MMIM(cfg, spec)
            self.inputs, self.encoders, self.fusion, self.score = (
                whole.inputs,
                whole.encoders,
                whole.fusion,
                whole.score,
            )

        def forward(self, batch):
            vectors = [self.encoders[m](stream).vector for m, stream in self.inputs(batch).items()]
            return Output(self.score(self.fusion(torch.cat(vectors, dim=1)))[:, 0])

        def loss(self, batch):
            output = self(batch)
            loss, rows = task_loss(output.prediction, batch.target, task=self.spec.task, kind="l1")
            return Losses(loss, output, rows=rows)

    found = []
    for cls in (MMIM, Plain):
        fit = job(cls, cfg, data, tmp_path / cls.__name__)
        fit.run()
        found.append(predictions(fit, data).prediction)
    assert (found[0] == found[1]).all()


def test_with_everything_on_it_learns_nine_rows():
    cfg = config()
    data = prepared(cfg)
    turns = [(number, step) for step in range(120) for number in (0, 1)]
    history = run(made(cfg, data), data, turns, optimiser="adam")[1::2]
    first, end = history[0].parts, history[-1].parts
    assert end["task"] < 0.1 * first["task"]
    assert end["contrast"] < first["contrast"] and end["likelihood"] > first["likelihood"]


# ---- the entropy and its memory ----------------------------------------------------------------------------------


def test_the_entropy_counts_from_the_third_batch_on():
    cfg = config()
    data = prepared(cfg)
    for step in range(4):
        losses = run(made(cfg, data), data, [(1, step)], rows=range(24))[0]
        plain = losses.parts["task"] + 0.1 * losses.parts["contrast"] - 0.1 * losses.parts["likelihood"]
        wanted = plain - (0.1 * losses.parts["entropy"] if step >= 2 else 0.0)
        torch.testing.assert_close(losses.total.detach(), wanted)
        assert losses.parts["entropy"] < 0  # of tanh: no variance exceeds 1


def test_a_step_remembers_the_step_before_it_alone():
    cfg = config()
    data = prepared(cfg)
    method = made(cfg, data)
    kept = []
    for step, rows in enumerate((range(8), range(8, 16), range(16, 24))):
        run(method, data, [(1, step)], rows=rows)
        kept.append({moment: len(method.bounds["text_to_audio"].memory.at(moment).vectors) for moment in (1, 2, 3)})
    assert kept == [{1: 8, 2: 0, 3: 0}, {1: 8, 2: 8, 3: 0}, {1: 8, 2: 8, 3: 8}]
    # The next epoch's first step looks for the moment before its own, at which nothing was ever written.
    first = 1 * (data.spec.size["train"] + 1) + 0 + 1
    assert len(method.bounds["text_to_audio"].memory.at(first - 1).vectors) == 0


def test_remembering_the_same_batch_changes_no_covariance_and_takes_no_gradient():
    cfg = config(jitter=0.0)
    data = prepared(cfg)
    method = made(cfg, data)
    batch = data.splits["train"].rows(torch.arange(32))
    now = method.projections(method.encode(batch), batch.target)
    earlier = {name: Remembered(part.vectors.detach(), part.groups) for name, part in now.items()}
    once, twice = method.entropies(now, {}), method.entropies(now, earlier)
    for name in method.pairs:
        torch.testing.assert_close(twice[name], once[name], atol=1e-4, rtol=0)
    encoder = list(method.encoders["audio"].parameters())
    single = torch.autograd.grad(once["text_to_audio"], encoder, retain_graph=True)
    half = torch.autograd.grad(twice["text_to_audio"], encoder)
    for one, other in zip(single, half, strict=True):  # the remembered half of the covariance does not move
        torch.testing.assert_close(other, one / 2, atol=1e-4, rtol=1e-3)


def test_sets_are_signs_or_classes_of_rows_that_have_label_and_modality():
    cfg = config()
    data = prepared(cfg)
    method, batch = made(cfg, data), data.splits["train"].rows(torch.arange(6))
    value = torch.tensor([1.0, -2.0, 0.0, 3.0, -1.0, 2.0])
    valid = torch.tensor([True, True, True, False, True, True])
    summaries = method.encode(batch)
    absent = summaries["audio"]._replace(present=torch.tensor([True] * 5 + [False]))
    target = replace(batch.target, value=value, valid=valid)
    now = method.projections({**summaries, "audio": absent}, target)
    assert now["text_to_vision"].groups.tolist() == [1, 0, -1, -1, 0, 1]
    assert now["text_to_audio"].groups.tolist() == [1, 0, -1, -1, 0, -1]
    cfg = config("classification")
    data = prepared(cfg)
    method, batch = made(cfg, data), data.splits["train"].rows(torch.arange(6))
    target = replace(batch.target, valid=valid)
    groups = method.projections(method.encode(batch), target)["text_to_audio"].groups
    assert torch.equal(groups, batch.target.value.where(valid, -1)) and set(groups.tolist()) <= {-1, 0, 1, 2}


def test_rows_without_a_modality_are_in_none_of_its_terms():
    cfg = config()
    data = prepared(cfg)
    method, batch = made(cfg, data), data.splits["train"].rows(torch.arange(9))
    summaries = method.encode(batch)
    present = torch.arange(9) < 6
    audio = summaries["audio"]._replace(present=present)
    some = {name: part._replace(vector=part.vector[:6], present=part.present[:6]) for name, part in summaries.items()}
    assert all(part.present.all() for part in some.values())
    found, wanted = method.likelihoods({**summaries, "audio": audio}), method.likelihoods(some)
    torch.testing.assert_close(9 * found["text_to_audio"], 6 * wanted["text_to_audio"])  # means over all rows
    assert not torch.isclose(9 * found["text_to_vision"], 6 * wanted["text_to_vision"])
    fused = torch.randn(9, 16)
    found, wanted = method.contrasts({**summaries, "audio": audio}, fused), method.contrasts(some, fused[:6])
    torch.testing.assert_close(found["audio"], wanted["audio"])
    assert not torch.isclose(found["vision"], wanted["vision"])


def test_anchors_of_the_contrast():
    cfg = config(cpc_anchor="summary")
    data = prepared(cfg)
    batch = data.splits["train"].rows(torch.arange(9))
    first, second = made(cfg, data), made(config(cpc_anchor="fused"), data)
    fused = torch.randn(9, 16)
    one, other = (method.contrasts(method.encode(batch), fused)["text"] for method in (first, second))
    vector, predicted = first.encode(batch)["text"].vector, first.contrast["text"](fused)
    scores = nn.functional.cosine_similarity(vector[:, None], predicted[None], dim=-1)
    for found, table in ((one, scores), (other, scores.T)):
        torch.testing.assert_close(found, nn.functional.cross_entropy(table, torch.arange(9)))


# ---- parts and processes -----------------------------------------------------------------------------------------

#: Two steps an epoch: the entropy is remembered and never counted. The contrast is off. What is left are means over rows.
SHARED = {"fusion": 16, "dropout": 0.0, "alpha": 0.0}


def last(folder) -> dict[str, torch.Tensor]:
    return torch.load(folder / "last.pt", weights_only=True)["method"]


def assert_same(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    assert wanted["bounds.text_to_audio.memory.moment"].min() > 0
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, atol=1e-5, rtol=0, msg=lambda text, name=name: f"{name}: {text}")


def test_parts_and_processes_end_with_the_weights_and_the_memory_of_whole_batches(commands, tmp_path):
    two = commands.start_call("together:two_processes", str(tmp_path / "two"), "mmim", SHARED, 16, {"epochs": 2})
    for name, settings in (("one", {}), ("parts", {"accumulate": 2})):
        train(cpu_fabric(), tmp_path / name, "mmim", SHARED, 16, epochs=2, **settings)
    assert_same(last(tmp_path / "parts"), last(tmp_path / "one"))
    done = two.wait()
    assert done.code == 0, done.err
    assert_same(last(tmp_path / "two"), last(tmp_path / "one"))
