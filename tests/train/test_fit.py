"""The loop: stages, selection, patience, averaging, and going on after a stop anywhere with the same bits."""

from __future__ import annotations

import csv
import math
import os
import signal
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from toys import KINDS, Bank, Killed, Toy, ToyConfig, TwoStages, job, predictions, prepared, toy_config

from moodal.core.errors import Interrupted, MoodalError
from moodal.core.settings import AugmentConfig, GroupConfig, RunConfig, StageConfig
from moodal.train.fit import Selection
from moodal.train.runs import RunFolder

pytestmark = pytest.mark.usefixtures("one_thread")


class Stopper:
    """Runs ``deed`` at the n-th step, or at the end of the n-th epoch."""

    def __init__(self, deed: Callable[[], None], *, step: int | None = None, epoch: int | None = None):
        self.deed, self.at_step, self.at_epoch = deed, step, epoch
        self.steps = self.epochs = 0

    def begin(self, stage: str, epochs: int, steps: int, done: int) -> None: ...

    def step(self, epoch: int, losses: Mapping[str, float], best: float | None) -> None:
        self.steps += 1
        if self.steps == self.at_step:
            self.deed()

    def epoch(self, row: Mapping[str, Any], best: float | None) -> None:
        self.epochs += 1
        if self.epochs == self.at_epoch:
            self.deed()


def kill() -> None:
    raise Killed


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def settings(kind: str, **train: Any) -> RunConfig:
    """Settings of a kind with everything random switched on."""
    own = {**KINDS[kind][1], **train}
    if kind == "augment":
        own["augment"] = AugmentConfig(noise=0.1, time_mask=0.2, drop_modality=0.3)
    return toy_config(model=ToyConfig(dropout=0.3), **own)


def outcome(fit, data) -> dict[str, Any]:
    """Everything that must be the same bits: weights and buffers, history without seconds, predictions."""
    history = [{key: value for key, value in row.items() if key != "seconds"} for row in fit.state.history]
    weights = {name: value.clone() for name, value in fit.method.state_dict().items()}
    return {"weights": weights, "history": history, "prediction": predictions(fit, data).prediction}


def assert_same(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert one["history"] == other["history"]
    assert one["weights"].keys() == other["weights"].keys()
    for name, value in one["weights"].items():
        assert torch.equal(value, other["weights"][name]), name
    assert (one["prediction"] == other["prediction"]).all()


@pytest.fixture(scope="module")
def uninterrupted(toy_data, tmp_path_factory):
    """What each kind ends with, trained in one go; made once for all tests of this file."""
    found: dict[str, Any] = {}

    def of(kind: str, **train: Any) -> dict[str, Any]:
        key = f"{kind} {train}"
        if key not in found:
            fit = job(KINDS[kind][0], settings(kind, **train), toy_data, tmp_path_factory.mktemp("whole"))
            fit.run()
            found[key] = outcome(fit, toy_data)
        return found[key]

    return of


def in_pieces(
    kind: str, data, folder, stopper: Callable[[], Stopper], fault: type[BaseException], **train: Any
) -> tuple[dict[str, Any], int]:
    """Train ``kind``, going on after every stop until it is done; what it ends with and how often it was stopped."""
    cls, cfg = KINDS[kind][0], settings(kind, **train)
    for stops in range(60):
        fit = job(cls, cfg, data, folder, watcher=stopper())
        try:
            fit.run()
        except fault:
            continue
        return outcome(fit, data), stops
    raise AssertionError("it does not get on")


@pytest.mark.parametrize("kind", KINDS)
def test_stopped_after_every_epoch_it_ends_with_the_same_bits(kind, toy_data, tmp_path, uninterrupted):
    found, stops = in_pieces(kind, toy_data, tmp_path, lambda: Stopper(kill, epoch=1), Killed)
    assert_same(found, uninterrupted(kind))
    assert stops == len(found["history"])


@pytest.mark.parametrize("kind", KINDS)
def test_interrupted_within_epochs_it_saves_and_ends_with_the_same_bits(kind, toy_data, tmp_path, uninterrupted):
    found, stops = in_pieces(kind, toy_data, tmp_path, lambda: Stopper(interrupt, step=7), Interrupted)
    assert_same(found, uninterrupted(kind))
    assert stops >= 1


@pytest.mark.parametrize("kind", KINDS)
def test_killed_within_epochs_it_goes_on_from_the_last_save(kind, toy_data, tmp_path, uninterrupted):
    found, stops = in_pieces(kind, toy_data, tmp_path, lambda: Stopper(kill, step=5), Killed, save_every=2)
    assert_same(found, uninterrupted(kind))
    assert stops >= 1


@pytest.mark.parametrize(
    "name, occasion", [("best-inputs.pt", 1), ("last.pt", 1), ("last.pt", 3), ("best-head.pt", 1), ("last.pt", 6)]
)
def test_killed_while_saving(name, occasion, toy_data, tmp_path, uninterrupted, monkeypatch):
    """Between the files of an epoch, or in the middle of one of them, nothing is lost that was saved before."""
    seen, save = [], RunFolder.save

    def dying(self, name_, state):
        seen.append(name_)
        if seen.count(name) == occasion and name_ == name:
            (self.path / f".{name}.abc").write_bytes(b"half")
            raise Killed
        save(self, name_, state)

    cls, cfg = KINDS["two stages"][0], settings("two stages")
    monkeypatch.setattr(RunFolder, "save", dying)
    with pytest.raises(Killed):
        job(cls, cfg, toy_data, tmp_path).run()
    monkeypatch.undo()
    fit = job(cls, cfg, toy_data, tmp_path)
    fit.run()
    assert_same(outcome(fit, toy_data), uninterrupted("two stages"))


def test_a_finished_fit_is_not_trained_again(toy_data, tmp_path, uninterrupted):
    fits = [job(KINDS["two stages"][0], settings("two stages"), toy_data, tmp_path) for _ in range(2)]
    for fit in fits:
        fit.run()
    assert_same(outcome(fits[1], toy_data), uninterrupted("two stages"))


def test_seeds_differ_and_repeat(toy_data, tmp_path):
    found = []
    for place, seed in enumerate((1, 1, 2)):
        cfg = replace(settings("plain"), seed=seed)
        fit = job(Toy, cfg, toy_data, tmp_path / str(place))
        fit.run()
        found.append(outcome(fit, toy_data))
    assert_same(found[0], found[1])
    assert not (found[0]["prediction"] == found[2]["prediction"]).any()


class Scripted:
    """Validation scores given by a list, in place of computed ones; NaN allowed."""

    def __init__(self, values: list[float], better: str = "lower"):
        self.values = iter(values)
        self.selection = Selection("mae", better, lambda table: {"mae": next(self.values)})

    def run(self, data, folder, cls: type[Toy] = Toy, **train: Any):
        fit = job(cls, toy_config(**train), data, folder)
        fit.selections = dict.fromkeys(fit.selections, self.selection)
        weights: list[dict[str, torch.Tensor]] = []

        class Keep(Stopper):
            def epoch(self, row, best):
                weights.append({name: value.clone() for name, value in fit.method.state_dict().items()})

        fit.watcher = Keep(kill)
        return fit, fit.run(), weights


@pytest.mark.parametrize(
    "better, values, best",
    [("lower", [3.0, 1.0, 2.0], 2), ("higher", [3.0, 5.0, 5.0], 2), ("higher", [1.0, 2.0, 3.0], 3)],
)
def test_the_best_epoch_is_kept_by_the_metrics_direction(better, values, best, toy_data, tmp_path):
    fit, state, weights = Scripted(values, better).run(toy_data, tmp_path)
    assert state.best_epoch == best
    assert state.best == values[best - 1]
    for name, value in fit.method.state_dict().items():
        assert torch.equal(value, weights[best - 1][name])
    assert [row["best"] for row in state.history][best - 1] == 1


def test_a_score_that_is_not_a_number_is_never_chosen(toy_data, tmp_path):
    nan = math.nan
    _, state, _ = Scripted([nan, 2.0, nan]).run(toy_data, tmp_path / "some")
    assert (state.best_epoch, state.best) == (2, 2.0)
    fit, state, weights = Scripted([nan, nan, nan], "higher").run(toy_data, tmp_path / "none")
    assert state.best_epoch is None
    assert not (tmp_path / "none" / "best-train.pt").exists()
    for name, value in fit.method.state_dict().items():  # the last weights, which last.pt holds too
        assert torch.equal(value, weights[-1][name])


def test_patience_stops_a_stage(toy_data, tmp_path):
    _, state, _ = Scripted([3.0, 2.0, 2.5, 2.0, 2.2, 1.0, 1.0]).run(toy_data, tmp_path, epochs=7, patience=3)
    assert len(state.history) == 5
    assert state.best_epoch == 2


def test_stages_have_epochs_patience_and_selection_of_their_own(toy_data, tmp_path):
    stages = {"inputs": StageConfig(epochs=2, select="corr"), "head": StageConfig(patience=1)}
    fit = job(TwoStages, toy_config(epochs=4, stages=stages, rate=0.3), toy_data, tmp_path)
    state = fit.run()
    assert [row["stage"] for row in state.history][:2] == ["inputs", "inputs"]
    head = [row for row in state.history if row["stage"] == "head"]
    assert len(state.history) == 2 + len(head)
    values = [row["valid_mae"] for row in head]
    assert len(head) == next((n + 2 for n in range(len(values) - 1) if values[n + 1] >= min(values[: n + 1])), 4)
    corr = [row["valid_corr"] for row in state.history[:2]]
    assert [row["best"] for row in state.history[:2]] == [1, int(corr[1] > corr[0])]


def test_parameters_of_another_stage_do_not_move(toy_data, tmp_path):
    fit = job(TwoStages, toy_config(epochs=1, decay=0.5, stages={"inputs": StageConfig(epochs=0)}), toy_data, tmp_path)
    before = {name: value.clone() for name, value in fit.method.named_parameters()}
    fit.run()
    moved = {name for name, value in fit.method.named_parameters() if not torch.equal(value, before[name])}
    assert moved == {"head.weight", "head.bias"}


def test_a_stage_starts_from_the_best_weights_of_the_one_before(toy_data, tmp_path):
    fit = job(TwoStages, toy_config(epochs=2, rate=0.3), toy_data, tmp_path)
    fit.run()
    best = RunFolder(tmp_path).load("best-inputs.pt")["method"]
    for name in ("inputs.text.weight", "inputs.audio.weight"):
        assert torch.equal(fit.method.state_dict()[name], best[name])


def test_no_epochs_leave_the_initial_weights(toy_data, tmp_path):
    fit = job(Toy, toy_config(epochs=0), toy_data, tmp_path)
    before = fit.method.head.weight.clone()
    fit.run()
    assert torch.equal(fit.method.head.weight, before)
    assert torch.equal(RunFolder(tmp_path).load("last.pt")["method"]["head.weight"], before)


def test_averaged_weights_are_evaluated_and_kept(toy_data, tmp_path):
    """With ``train.average`` the kept weights are d * average + (1 - d) * weights after each step; buffers are copied."""
    decay, seen = 0.8, []
    cfg = toy_config(epochs=2, average=decay)

    class Follow(Stopper):
        def step(self, epoch, losses, best):
            seen.append(fit.method.head.weight.detach().clone())

    fit = job(Bank, cfg, toy_data, tmp_path, watcher=Follow(kill))
    fit.run()
    # The watcher is called after the average has followed the step.
    average = seen[0]
    for weight in seen[1:]:
        average = decay * average + (1 - decay) * weight
    last = RunFolder(tmp_path).load("last.pt")
    torch.testing.assert_close(last["averaged"]["module.head.weight"], average)
    assert torch.equal(last["averaged"]["module.times"], last["method"]["times"])
    best = RunFolder(tmp_path).load("best-train.pt")["method"]
    assert torch.equal(fit.method.head.weight, best["head.weight"])
    if fit.state.best_epoch == 2:
        torch.testing.assert_close(best["head.weight"], average)


def test_the_schedule_of_a_growing_curriculum_reaches_its_end(toy_data, tmp_path):
    """The number of steps is counted over all epochs, not the first one times their number."""
    cls, train = KINDS["curriculum"]
    fit = job(cls, toy_config(schedule="linear", warmup=0.0, **train), toy_data, tmp_path)
    fit.run()
    sizes = [-(-int(min(1.0, 0.4 + 0.3 * epoch) * 41) // 8) for epoch in range(3)]
    assert fit.updaters[0].total == sum(sizes) == fit.updaters[0].steps["main"]
    assert fit.updaters[0].rate == pytest.approx(1e-2 / sum(sizes))


def test_the_order_of_batches_depends_on_seed_stage_epoch_and_pass_alone(toy_data, tmp_path):
    fit = job(Toy, toy_config(), toy_data, tmp_path)
    stage = fit.stages[0]
    orders = [torch.cat(fit._batches(stage, part, epoch)).tolist() for part, epoch in ((0, 0), (0, 1), (1, 0), (0, 0))]
    assert orders[0] == orders[3]
    assert len({tuple(order) for order in orders}) == 3
    assert all(sorted(order) == list(range(41)) for order in orders)


def test_unknown_groups_and_stages_are_refused(toy_data, tmp_path):
    with pytest.raises(
        MoodalError, match=r"train.groups.mian: toy has no such group .* it has main; did you mean 'main'\?"
    ):
        job(Toy, toy_config(groups={"mian": GroupConfig(rate=1.0)}), toy_data, tmp_path)
    with pytest.raises(MoodalError, match=r"train.stages.heads: .* it has inputs, head; did you mean 'head'\?"):
        job(TwoStages, toy_config(stages={"heads": StageConfig()}), toy_data, tmp_path)


def test_history_is_written_as_csv(toy_data, tmp_path):
    fit = job(KINDS["critic"][0], toy_config(), toy_data, tmp_path)
    fit.run()
    with (tmp_path / "history.csv").open() as handle:
        rows = list(csv.DictReader(handle))
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    assert {"stage", "seconds", "loss", "task", "bonus", "valid_mae", "valid_corr", "rate", "best"} <= set(rows[0])
    assert float(rows[2]["loss"]) == fit.state.history[2]["loss"]


def test_unlabelled_rows_are_left_out_of_training(toy_data, tmp_path):
    """A row without a label, whatever its value, changes nothing about the weights."""

    def trained(value: float, folder) -> torch.Tensor:
        train = toy_data.splits["train"]
        target = replace(train.target, value=train.target.value.clone(), valid=train.target.valid.clone())
        target.valid[::3] = False
        target.value[::3] = value
        data = replace(toy_data, splits={**toy_data.splits, "train": replace(train, target=target)})
        fit = job(Toy, toy_config(), data, folder)
        fit.run()
        return fit.method.head.weight.detach()

    assert torch.equal(trained(0.0, tmp_path / "a"), trained(math.nan, tmp_path / "b"))


def test_a_compiled_method_trains(toy_data, tmp_path):
    data = prepared(toy_config())
    fit = job(Toy, toy_config(epochs=1), data, tmp_path)
    fit.method.compile(backend="eager")
    fit.run()
    plain = job(Toy, toy_config(epochs=1), data, tmp_path / "plain")
    plain.run()
    torch.testing.assert_close(fit.method.head.weight, plain.method.head.weight)
