"""What every method in the table promises. A method gets these tests by being in it.

A property that the published form of a method breaks stands in its ``exceptions``; the test then asserts that it is
indeed broken.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from tiny_methods import STILL, TINY
from torch.nn.functional import pad
from toys import (
    READER,
    Killed,
    KilledAt,
    cpu_fabric,
    job,
    make_method,
    predictions,
    prepared,
    toy_config,
    with_degraded,
    with_explanations,
)

from moodal.build import configure, recipes
from moodal.core.batch import Batch, Stream, Target
from moodal.core.method import Method
from moodal.core.settings import RunConfig
from moodal.core.spec import MODALITIES, Classification, DataSpec
from moodal.methods import METHODS
from moodal.prepare import Prepared
from moodal.train.evaluate import evaluate

pytestmark = pytest.mark.usefixtures("one_thread")

TASKS = ("regression", "classification")


@dataclass(frozen=True)
class Trial:
    """A method with fresh weights and data it can be trained on."""

    cls: type[Method]
    cfg: RunConfig
    data: Prepared

    @property
    def spec(self) -> DataSpec:
        return self.data.spec

    def made(self) -> Method:
        return make_method(self.cls, self.cfg, self.data)

    def batch(self, count: int = 9) -> Batch:
        return replace(self.data.splits["train"].rows(torch.arange(count)), target=None)

    def needs(self, name: str) -> bool:
        return name in self.cls.needs(self.cfg.model).required


def tiny(name: str) -> Any:
    return METHODS[name].Config(**TINY.get(name, {}))


@pytest.fixture(
    scope="module", params=[(name, task) for name in METHODS for task in TASKS], ids=lambda p: f"{p[0]}-{p[1]}"
)
def trial(request) -> Trial:
    name, task = request.param
    cfg = toy_config(method=name, model=tiny(name), reader=replace(READER, task=task))
    data = with_explanations(prepared(cfg))
    data = with_degraded(data) if METHODS[name].needs(cfg.model).degraded else data
    if not isinstance(data.spec.task, METHODS[name].needs(cfg.model).tasks):
        pytest.skip(f"{name} does not do {task}")
    return Trial(METHODS[name], cfg, data)


@contextmanager
def holds(cls: type[Method], promise: str) -> Iterator[None]:
    """The promise is kept, or declared as an exception and indeed broken."""
    if promise not in cls.exceptions:
        yield
        return
    with pytest.raises(AssertionError):
        yield


def predicted(method: Method, batch: Batch) -> torch.Tensor:
    method.eval()
    with torch.inference_mode():
        return method(batch).prediction


def changed(batch: Batch, function: Any) -> Batch:
    """Every stream and explanation of the batch through ``function``."""
    streams = {name: function(stream) for name, stream in batch.streams.items()}
    return replace(
        batch, streams=streams, explanations={role: function(stream) for role, stream in batch.explanations.items()}
    )


@pytest.mark.parametrize("name", METHODS)
def test_it_builds_from_defaults_and_from_every_recipe(name, trial):
    if not isinstance(trial.spec.task, METHODS[name].needs(METHODS[name].Config()).tasks):
        pytest.skip(f"{name} does not do {type(trial.spec.task).__name__}")
    settings = {"defaults": METHODS[name].Config()}
    settings |= {recipe: configure(recipe).config.model for recipe in recipes() if recipe.endswith(f"/{name}")}
    for place, model in settings.items():
        method = METHODS[name](model, trial.spec)
        assert sum(p.numel() for p in method.parameters()) > 0, place


def test_prediction_needs_no_target_and_has_the_tasks_shape(trial):
    found = predicted(trial.made(), trial.batch())
    wanted = (9, 3) if isinstance(trial.spec.task, Classification) else (9,)
    assert found.shape == wanted and bool(torch.isfinite(found).all())


def test_what_is_shown_is_by_row(trial):
    method = trial.made().eval()
    with torch.inference_mode():
        shown = method(trial.batch()).inspection
    assert all(len(value) == 9 for value in shown.values())


def test_longer_padding_changes_nothing(trial):
    method, batch = trial.made(), trial.batch()
    longer = changed(batch, lambda s: Stream(pad(s.data, (0, 0, 0, 4), value=7.0), pad(s.mask, (0, 4))))
    with holds(trial.cls, "padding"):
        torch.testing.assert_close(predicted(method, longer), predicted(method, batch), atol=1e-5, rtol=0)


def test_a_row_is_predicted_alike_alone_in_company_and_in_any_order(trial):
    method, split = trial.made(), trial.data.splits["train"]
    whole = predicted(method, split.rows(torch.arange(41)))
    order = torch.randperm(41, generator=torch.Generator().manual_seed(0))
    with holds(trial.cls, "rows"):
        torch.testing.assert_close(predicted(method, split.rows(order)), whole[order], atol=1e-5, rtol=0)
        for row in (0, 3, 40):
            torch.testing.assert_close(
                predicted(method, split.rows(torch.tensor([row])))[0], whole[row], atol=1e-5, rtol=0
            )


def test_two_evaluations_are_equal(trial):
    method, split, fabric = trial.made(), trial.data.splits["valid"], cpu_fabric()
    first, second = (evaluate(method, split, size=5, fabric=fabric) for _ in range(2))
    assert (first.prediction == second.prediction).all()


def test_the_same_seed_gives_the_same_weights(trial, tmp_path):
    cfg = replace(trial.cfg, train=replace(trial.cfg.train, epochs=1))
    found = []
    for place in ("a", "b"):
        fit = job(trial.cls, cfg, trial.data, tmp_path / place)
        fit.run()
        found.append(fit.method.state_dict())
    assert all(torch.equal(found[0][key], found[1][key]) for key in found[0])


@pytest.mark.parametrize("missing", [*MODALITIES, "explanations", "all"])
def test_missing_streams_give_finite_predictions_and_gradients(trial, missing):
    """Some rows lack the stream, then all of them do."""
    if trial.needs(missing):
        pytest.skip(f"the method needs {missing}")
    gone = torch.zeros(9, 1, dtype=torch.bool)
    gone[torch.randperm(9, generator=torch.Generator().manual_seed(1))[:4]] = True
    for rows in (gone, torch.ones_like(gone)):
        batch = trial.data.splits["train"].rows(torch.arange(9))

        def without(stream: Stream, rows: torch.Tensor = rows) -> Stream:
            return Stream(stream.data.masked_fill(rows[..., None], 0.0), stream.mask & ~rows)

        told = (
            batch.explanations
            if missing in MODALITIES
            else {role: without(s) for role, s in batch.explanations.items()}
        )
        streams = {name: without(s) if missing in (name, "all") else s for name, s in batch.streams.items()}
        batch = replace(batch, streams=streams, explanations=told)
        method = trial.made()
        with holds(trial.cls, "missing"):
            assert bool(torch.isfinite(predicted(method, batch)).all())
            losses = method.train().loss(batch)
            gradients = torch.autograd.grad(losses.total, list(method.parameters()), allow_unused=True)
            assert all(bool(torch.isfinite(g).all()) for g in gradients if g is not None)


@pytest.mark.parametrize("absent", MODALITIES)
def test_a_corpus_without_a_modality_can_be_trained_on(trial, absent):
    needs = trial.cls.needs(trial.cfg.model)
    if absent in needs.required:
        pytest.skip(f"the method needs {absent}")
    streams = {name: spec for name, spec in trial.spec.streams.items() if name != absent}
    told = {role: spec for role, spec in trial.spec.explanations.items() if role != absent}
    method = trial.cls(trial.cfg.model, replace(trial.spec, streams=streams, explanations=told))
    batch = trial.data.splits["train"].rows(torch.arange(9))
    batch = replace(
        batch,
        streams={name: s for name, s in batch.streams.items() if name != absent},
        explanations={role: s for role, s in batch.explanations.items() if role != absent},
    )
    assert bool(torch.isfinite(method.loss(batch).total))


def test_every_parameter_learns_in_some_stage_and_no_other_moves(trial, tmp_path):
    """Without weight decay a parameter moves exactly if it gets a gradient."""
    cfg = replace(trial.cfg, train=replace(trial.cfg.train, epochs=2, decay=0.0))
    fit = job(trial.cls, cfg, trial.data, tmp_path)
    before = {name: value.detach().clone() for name, value in fit.method.named_parameters()}
    trained = {
        id(p)
        for stage in fit.stages
        for part in stage.passes
        for group in part.all_groups()
        for p in group.parameters()
    }
    fit.run()
    last = fit.folder.load("last.pt")["method"]
    moved = {name for name in before if not torch.equal(last[name], before[name])}
    learning = {name for name, value in fit.method.named_parameters() if id(value) in trained}
    assert moved <= learning
    with holds(trial.cls, "gradients"):
        assert learning == set(before), f"in no group: {sorted(set(before) - learning)}"
        assert moved == learning, f"without a gradient: {sorted(learning - moved)}"


def repeated(data: Prepared, rows: int, times: int) -> Prepared:
    """``data`` whose training split is its first ``rows`` rows, ``times`` over."""
    split, where = data.splits["train"], np.tile(np.arange(rows), times)

    def again(columns: Any) -> dict[Any, Any]:
        return {name: column.select(where) for name, column in columns.items()}

    ids, words = tuple(split.ids[i] for i in where), tuple(split.words[i] for i in where)
    target = Target(split.target.value[where], split.target.valid[where])
    streams, told, second = again(split.streams), again(split.explanations), split.second
    if second is not None:
        second = replace(second, streams=again(second.streams), observed=again(second.observed))
    train = replace(split, ids=ids, words=words, streams=streams, explanations=told, target=target, second=second)
    spec = replace(data.spec, size={**data.spec.size, "train": len(where)})
    return replace(data, splits={**data.splits, "train": train}, spec=spec)


def test_it_overfits_eight_rows(trial, tmp_path):
    train = replace(trial.cfg.train, epochs=10, decay=0.0, rate=1e-2)
    model = replace(trial.cfg.model, **STILL.get(trial.cfg.method, {}))
    cfg = replace(trial.cfg, train=train, model=model)
    history = job(trial.cls, cfg, repeated(trial.data, 8, 16), tmp_path).run().history
    assert history[-1]["loss"] < 0.1 * history[0]["loss"]


def test_saved_and_loaded_it_predicts_the_same(trial, tmp_path):
    method = trial.made()
    torch.save(method.state_dict(), tmp_path / "weights.pt")
    other = make_method(trial.cls, replace(trial.cfg, seed=2), trial.data)
    assert not torch.equal(predicted(other, trial.batch()), predicted(method, trial.batch()))
    other.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True))
    assert torch.equal(predicted(other, trial.batch()), predicted(method, trial.batch()))


def test_two_epochs_and_two_more_are_four_bit_for_bit(trial, tmp_path):
    cfg = replace(trial.cfg, train=replace(trial.cfg.train, epochs=4, save_every=2))
    whole = job(trial.cls, cfg, trial.data, tmp_path / "whole")
    whole.run()
    with pytest.raises(Killed):
        job(trial.cls, cfg, trial.data, tmp_path / "parts", watcher=KilledAt(6 * 2 + 4)).run()
    parts = job(trial.cls, cfg, trial.data, tmp_path / "parts")
    parts.run()
    one, other = (predictions(fit, trial.data) for fit in (whole, parts))
    assert (one.prediction == other.prediction).all()
    assert all(torch.equal(value, parts.method.state_dict()[key]) for key, value in whole.method.state_dict().items())
