"""VSD: sizes, closed forms of its objective, balanced batches, and the promises of every method, on made-up people."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from toys import Killed, KilledAt, cpu_fabric, job, make_method

from moodal.build import open_run, train
from moodal.core.batch import Stream, Target
from moodal.core.errors import MoodalError
from moodal.core.settings import RunConfig, TrainConfig
from moodal.core.spec import Classification, DataSpec, Identification, StreamSpec
from moodal.data.synthetic_reid import SyntheticReidConfig
from moodal.methods.vsd import SHARES, VSD, Objective, View, VSDConfig, objective
from moodal.prepare import prepare, read_corpus
from moodal.train.batches import bucketed
from moodal.train.evaluate import evaluate

pytestmark = pytest.mark.usefixtures("one_thread")

TINY = {"blocks": (1, 1), "width": 4, "hidden": (8,), "code": 8, "instances": 2}
READER = SyntheticReidConfig(train=7, valid=4, test=4, each=2, height=16, width=8)


def config(reader: SyntheticReidConfig = READER, *, model: dict | None = None, **numbers) -> RunConfig:
    values = {"epochs": 3, "batch": 8, "rate": 1e-2, "optimiser": "adam", "decay": 0.0, "clip": None, **numbers}
    return RunConfig(
        corpus="synthetic_reid", method="vsd", model=VSDConfig(**{**TINY, **(model or {})}), reader=reader,
        train=TrainConfig(**values),
    )  # fmt: skip


@pytest.fixture(scope="module")
def data():
    cfg = config()
    return prepare(read_corpus(cfg), cfg, VSD.needs(cfg.model))


def made(data, **model) -> VSD:
    method = make_method(VSD, config(model=model), data)
    method.on_stage_start("train", data.splits["train"])
    return method


def persons(count: int) -> Classification:
    return Classification(tuple(map(str, range(count))))


def same_views(view: View) -> dict[str, View]:
    return dict.fromkeys(SHARES, view)


def random_view(rows: int = 8, classes: int = 5, *, seed: int = 0) -> View:
    draw = torch.Generator().manual_seed(seed)
    return View(*(torch.randn(rows, size, generator=draw) for size in (classes, 6, classes, 4)))


def parts_of(views, *, classes: int = 5, **settings):
    rows = len(views["visible"].observation)
    who = torch.arange(rows) // 4 % classes
    cfg = VSDConfig(**settings)
    target = Target(who, torch.ones(rows, dtype=torch.bool))
    return objective(views, target, torch.arange(rows) % 2, cfg=cfg, persons=persons(classes)), cfg


# ---- sizes -------------------------------------------------------------------------------------------------------


def test_the_published_network_has_as_many_parameters_as_its_layers():
    spec = DataSpec(streams={"vision": StreamSpec("pictures", 3)}, task=Identification(395))
    with torch.device("meta"):
        method = VSD(VSDConfig(), spec)
    network = 23_508_032  # ResNet-50 without its classifier
    observer = network + 3 + 2048 + (2048 + 1) * 395  # three gammas, the neck's scale, the classifier
    compress = (2048 + 1) * 1000 + 2 * 1000 + (1000 + 1) * 500 + 2 * 500 + (500 + 1) * 512
    head = (512 + 1) * 256 + 2 * 256 + (256 + 1) * 395
    assert sum(p.numel() for p in method.parameters()) == 3 * (observer + compress + head) == 82_085_415
    assert len(method.branches) == 3 and method.branches["shared"].observer.width == 2048


@pytest.mark.parametrize(
    ("embedding", "width"), [("observations", 4 * 32), ("representations", 4 * 8), ("both", 4 * 40), ("shared", 8)]
)
def test_embeddings_have_length_one_and_the_width_of_their_parts(data, embedding, width):
    found = made(data, embedding=embedding).eval()(data.splits["valid"].rows(torch.arange(5))).prediction
    assert found.shape == (5, width)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(5))


# ---- closed forms of the objective -----------------------------------------------------------------------------


def test_uniform_predictions_cost_three_times_the_logarithm_of_the_persons():
    flat = random_view()._replace(observation_logits=torch.zeros(8, 5), representation_logits=torch.zeros(8, 5))
    parts, _ = parts_of(same_views(flat))
    assert float(parts.classification) == pytest.approx(3 * math.log(5))  # shares 1/2 + 1/2 + 1/4 + 1/4 of v and of z
    assert float(parts.sufficiency) == float(parts.consistency) == 0.0
    assert float(parts.agreement) == pytest.approx(0, abs=1e-6)


def test_collapsed_embeddings_rank_at_four_point_two_by_share():
    same = random_view()._replace(observation=torch.ones(8, 6), representation=torch.ones(8, 4))
    parts, _ = parts_of(same_views(same))
    assert float(parts.ranking) == pytest.approx(3 * 4.2, abs=1e-3)


def test_consistency_of_equal_views_is_half_of_sufficiency_and_agreement_is_zero():
    """VCD with identical views is 2 VSD of one view: with the half before it, VSD of one view; VSD counts two."""
    parts, _ = parts_of(same_views(random_view()))
    assert float(parts.consistency) == pytest.approx(float(parts.sufficiency) / 2, rel=1e-6) and parts.sufficiency > 0
    assert float(parts.agreement) == pytest.approx(0, abs=1e-6)


def test_agreement_of_views_that_contradict_each_other_is_the_logarithm_of_two():
    sure = 50 * torch.eye(5)[torch.tensor([0, 1, 0, 1, 0, 1, 0, 1])]
    views = same_views(random_view())
    views["shared_infrared"] = views["shared_infrared"]._replace(representation_logits=sure)
    views["shared_visible"] = views["shared_visible"]._replace(representation_logits=sure.roll(1, dims=0))
    assert float(parts_of(views)[0].agreement) == pytest.approx(math.log(2), rel=1e-5)


def test_what_is_distilled_teaches_the_representations_only():
    views = {
        name: View(*(part.clone().requires_grad_() for part in random_view(seed=n))) for n, name in enumerate(SHARES)
    }
    parts, _ = parts_of(views)
    (parts.sufficiency + parts.consistency).backward()
    for name, view in views.items():
        assert view.observation_logits.grad is None and view.observation.grad is None, name
        assert float(view.representation_logits.grad.norm()) > 0, name
    teacher, student = (views["visible"][place].detach().softmax(dim=1) for place in (0, 2))
    torch.testing.assert_close(views["visible"].representation_logits.grad, (student - teacher) / 8)


def test_the_total_is_the_weighted_sum_and_zero_weights_leave_no_trace():
    views = {name: random_view(seed=n) for n, name in enumerate(SHARES)}
    parts, cfg = parts_of(views, agreement=0.5)
    weights = (1, 1, 8, 2, 2, 0.5)
    assert float(parts.total(cfg)) == pytest.approx(sum(w * float(p) for w, p in zip(weights, parts)), rel=1e-5)
    broken = parts._replace(transport=torch.tensor(float("nan")))
    assert math.isfinite(broken.total(replace(cfg, transport=0.0)))


def test_reference_is_no_divergence_and_the_default_is():
    """Equal, uniform predictions of C persons: the released term is -(ln C + 1/C) / C a view."""
    flat = random_view(classes=206)._replace(
        observation_logits=torch.zeros(8, 206), representation_logits=torch.zeros(8, 206)
    )
    released, _ = parts_of(same_views(flat), classes=206, reference=True)
    assert (
        float(released.sufficiency) / 2
        == pytest.approx(-(math.log(206) + 1 / 206) / 206)
        == pytest.approx(-0.0259, abs=1e-4)
    )
    assert float(parts_of(same_views(flat), classes=206)[0].sufficiency) == 0.0


# ---- batches ---------------------------------------------------------------------------------------------------


def test_batches_hold_whole_persons_with_modalities_taking_turns(data):
    method, train = made(data), data.splits["train"]
    for epoch in range(3):
        order = method.order(epoch)
        assert len(order) == 7 * 2 * 2
        for window in (1, 4):  # pictures are all alike in cost, so buckets keep batches whole
            seen = []
            for rows in bucketed(order, train.cost, 8, window):
                batch = train.rows(rows)
                assert batch.columns["infrared"].tolist() == [0, 1] * (len(rows) // 2)
                who = batch.target.value.view(-1, 4)
                assert bool((who == who[:, :1]).all())
                seen += who[:, 0].tolist()
            assert sorted(seen) == list(range(7))


def test_the_order_is_a_function_of_seed_and_epoch(data):
    method = made(data)
    assert torch.equal(method.order(4), method.order(4)) and not torch.equal(method.order(4), method.order(5))
    twin = made(data)
    twin.load_state_dict(method.state_dict())
    assert torch.equal(twin.order(4), method.order(4))


# ---- promises of every method ----------------------------------------------------------------------------------


def test_a_row_is_embedded_alike_alone_in_company_and_in_any_order(data):
    method, split = made(data).eval(), data.splits["train"]
    with torch.inference_mode():
        whole = method(split.rows(torch.arange(20))).prediction
        order = torch.randperm(20, generator=torch.Generator().manual_seed(0))
        torch.testing.assert_close(method(split.rows(order)).prediction, whole[order], atol=1e-5, rtol=0)
        for row in (0, 7, 19):
            alone = method(split.rows(torch.tensor([row]))).prediction[0]
            torch.testing.assert_close(alone, whole[row], atol=1e-5, rtol=0)


def test_evaluation_is_deterministic_and_only_training_mirrors(data):
    method, split = made(data, mirror=1.0), data.splits["valid"]
    one, two = (evaluate(method, split, size=size, fabric=cpu_fabric()) for size in (5, 64))
    assert abs(one.prediction - two.prediction).max() < 1e-5
    assert set(one.columns) == {"camera", "infrared", "place"} and one.columns["place"].shape == (len(split), 10)
    stream = split.rows(torch.arange(3)).streams["vision"]
    kept, turned = method.pictures.eval()(stream), method.pictures.train()(stream)
    torch.testing.assert_close(turned, kept.flip(-1))


def test_rows_without_a_picture_and_predictions_without_labels_are_finite(data):
    method, batch = made(data), data.splits["train"].rows(torch.arange(8))
    blank = Stream(torch.zeros_like(batch.streams["vision"].data), torch.zeros(8, 1, dtype=torch.bool))
    gone = replace(batch, streams={"vision": blank})
    losses = method.train().loss(gone)
    gradients = torch.autograd.grad(losses.total, list(method.parameters()), allow_unused=True)
    assert all(bool(torch.isfinite(g).all()) for g in gradients if g is not None)
    assert bool(torch.isfinite(method.eval()(replace(gone, target=None)).prediction).all())


def test_every_parameter_moves(data, tmp_path):
    fit = job(VSD, config(epochs=2), data, tmp_path)
    before = {name: value.detach().clone() for name, value in fit.method.named_parameters()}
    fit.run()
    after = fit.folder.load("last.pt")["method"]
    assert {name for name in before if torch.equal(after[name], before[name])} == set()


def test_resuming_gives_the_same_bits(data, tmp_path):
    """Killed in the first epoch, and again at the end of the second."""
    cfg = config(save_every=2)
    whole = job(VSD, cfg, data, tmp_path / "whole")
    whole.run()
    for steps in (3, 5):
        with pytest.raises(Killed):
            job(VSD, cfg, data, tmp_path / "parts", watcher=KilledAt(steps)).run()
    again = job(VSD, cfg, data, tmp_path / "parts")
    state = again.run()
    one, two = (fit.folder.load("last.pt")["method"] for fit in (whole, again))
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert [row["loss"] for row in state.history] == [row["loss"] for row in whole.state.history]


def test_training_beats_a_random_ranking_and_the_run_opens_again(tmp_path):
    easy = {"inverted": False, "shift": 0, "noise": 0.02, "grid": (4, 2), "height": 16, "width": 8}
    reader = SyntheticReidConfig(train=24, valid=4, test=12, each=2, **easy)
    model = {"width": 8, "hidden": (), "code": 32, "mirror": 0.0, "dropout": 0.0}
    cfg = config(reader, model=model, epochs=8, batch=16, eval_batch=64)
    found = train(cfg, folder=tmp_path / "run")
    test, chance = found.scores["test"], found.scores["baseline"]["test"]
    assert test["rank1"] > 3 * chance["rank1"] and test["map"] > 2 * chance["map"], (test, chance)
    assert test["rank1"] <= test["rank10"] <= test["rank20"] == 1.0
    opened = open_run(tmp_path / "run")
    table = evaluate(opened.method, opened.data.splits["test"], size=64, fabric=cpu_fabric())
    from safetensors.numpy import load_file

    stored = load_file(tmp_path / "run" / "inspection.safetensors")["test.embedding"]
    assert abs(stored - table.prediction).max() < 1e-6


# ---- faults ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"modalities": ("audio",)}, "give vision"),
        ({"blocks": (1,)}, "two stages or more"),
        ({"mirror": 1.5}, "a chance from 0 to 1"),
        ({"temperature": 0.0}, "must be positive"),
        ({"margins": (0.9,)}, "give two"),
        ({"consistency": -1.0}, "cannot be negative"),
        (dict.fromkeys(Objective._fields, 0.0), "nothing would be learnt"),
    ],
)
def test_wrong_settings_are_sentences(settings, sentence):
    with pytest.raises(MoodalError, match=sentence):
        VSDConfig(**settings)


def test_it_refuses_a_task_that_is_no_identification(toy_data):
    with pytest.raises(MoodalError, match="vsd does Identification, and this corpus asks for Regression"):
        VSD.needs(VSDConfig()).verify("vsd", toy_data.spec)
