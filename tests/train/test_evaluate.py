"""Evaluation: a row's prediction is its own, whatever company, order and padding it comes in."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn.functional import pad
from toys import READER, Toy, cpu_fabric, make_method, prepared, scores, tiny_text, toy_config, with_explanations

from moodal.core.batch import Stream, Target
from moodal.methods.text import TEXT
from moodal.train.baseline import baseline_scores
from moodal.train.evaluate import evaluate

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def trial():
    """TEXT with random weights, routing noise and dropout (which evaluation must not use), and its data."""
    cfg = toy_config(method="text", model=tiny_text(dropout=0.3, head_dropout=0.3))
    data = with_explanations(prepared(cfg))
    return make_method(TEXT, cfg, data), data.splits["train"], cpu_fabric()


@pytest.mark.parametrize("size", [1, 7, 256])
def test_the_size_of_batches_changes_nothing(trial, size):
    method, split, fabric = trial
    whole = evaluate(method, split, size=41, fabric=fabric)
    other = evaluate(method, split, size=size, fabric=fabric)
    assert other.ids == whole.ids == split.ids
    np.testing.assert_allclose(other.prediction, whole.prediction, atol=1e-5)
    assert other.inspection.keys() == whole.inspection.keys() == {"gates", "routing"}
    for name, value in whole.inspection.items():
        np.testing.assert_allclose(other.inspection[name], value, atol=1e-5)


def test_order_and_company_change_nothing(trial):
    method, split, fabric = trial
    whole = evaluate(method, split, size=256, fabric=fabric)
    method.eval()
    order = torch.randperm(len(split), generator=torch.Generator().manual_seed(3))[:17]
    with torch.inference_mode():
        found = method(split.rows(order)).prediction.numpy()
    np.testing.assert_allclose(found, whole.prediction[order.numpy()], atol=1e-5)


def test_longer_padding_changes_nothing(trial):
    method, split, _ = trial
    method.eval()
    batch = split.rows(torch.arange(9))

    def longer(stream: Stream) -> Stream:
        return Stream(pad(stream.data, (0, 0, 0, 5), value=9.0), pad(stream.mask, (0, 5)))

    wide = replace(
        batch,
        streams={m: longer(s) for m, s in batch.streams.items()},
        explanations={r: longer(s) for r, s in batch.explanations.items()},
    )
    with torch.inference_mode():
        torch.testing.assert_close(method(wide).prediction, method(batch).prediction, atol=1e-5, rtol=0)


def test_two_evaluations_are_identical_and_leave_no_trace(trial):
    method, split, fabric = trial
    method.train()
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first = evaluate(method, split, size=8, fabric=fabric)
    assert torch.equal(torch.get_rng_state(), state)
    assert method.training
    second = evaluate(method, split, size=8, fabric=fabric)
    assert (first.prediction == second.prediction).all()


def test_classes_become_probabilities():
    cfg = toy_config(reader=replace(READER, task="classification"))
    data = prepared(cfg)
    table = evaluate(make_method(Toy, cfg, data), data.splits["test"], size=5, fabric=cpu_fabric())
    assert table.prediction.shape == (13, 3)
    np.testing.assert_allclose(table.prediction.sum(axis=1), 1.0, rtol=1e-6)
    assert set(scores(data, table)) == {"accuracy", "uar", "weighted_f1"}


def test_unlabelled_rows_are_predicted_and_not_scored(toy_data):
    split = toy_data.splits["test"]
    valid = split.target.valid.clone()
    valid[2:6] = False
    value = torch.where(valid, split.target.value, torch.nan)
    method = make_method(Toy, toy_config(), toy_data)
    fabric = cpu_fabric()
    some = evaluate(method, replace(split, target=Target(value, valid)), size=5, fabric=fabric)
    whole = evaluate(method, split, size=5, fabric=fabric)
    none = evaluate(method, replace(split, target=None), size=5, fabric=fabric)
    assert (some.prediction == whole.prediction).all()
    assert (none.prediction == whole.prediction).all()
    assert not none.valid.any()
    errors = np.abs(whole.prediction - whole.target)[valid.numpy()]
    assert scores(toy_data, some)["mae"] == pytest.approx(float(errors.mean()), rel=1e-6)


def test_the_baseline_is_the_mean_label_of_training(toy_data):
    found = baseline_scores(toy_data.spec.task, toy_data.splits, "mosi")
    mean = float(toy_data.splits["train"].target.value.mean())
    truth = toy_data.splits["test"].target.value.numpy()
    assert found["test"]["mae"] == pytest.approx(float(np.abs(truth - mean).mean()), rel=1e-5)
    data = prepared(toy_config(reader=replace(READER, task="classification")))
    classes = baseline_scores(data.spec.task, data.splits, "emotion")
    commonest = np.bincount(data.splits["train"].target.value.numpy()).argmax()
    assert classes["test"]["accuracy"] == pytest.approx(
        float((data.splits["test"].target.value.numpy() == commonest).mean())
    )


def test_bf16_evaluates(toy_data):
    cfg = toy_config()
    method = make_method(Toy, cfg, toy_data)
    exact = evaluate(method, toy_data.splits["test"], size=5, fabric=cpu_fabric())
    rough = evaluate(method, toy_data.splits["test"], size=5, fabric=cpu_fabric(precision="bf16-mixed"))
    assert rough.prediction.dtype == np.float32
    assert 0 < np.abs(rough.prediction - exact.prediction).max() < 0.05
