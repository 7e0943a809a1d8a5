"""The ablation plan, its resuming, and its table, with training replaced by a function."""

from __future__ import annotations

import json

import pytest

from moodal.bench.ablate import ablation_table, plan, run
from moodal.core.errors import Interrupted, MoodalError

ABLATIONS = {
    "full": {},
    "without explanations": {"model.explanations": False},
    "temporal alignment: Mamba": {"model.temporal": "mamba"},
    "without gate fusion": {"model.fusion": "mean"},
}


class Trainer:
    """Gives scores by row, writes a run folder, and fails where told to."""

    def __init__(self, root, *, fail=()):
        self.root, self.fail, self.calls = root, fail, []

    def __call__(self, recipe, overrides, seeds):
        (seed,) = seeds
        self.calls.append((overrides.get("model.temporal", overrides.get("model.fusion", "")), seed))
        for word, fault in self.fail:
            if word in overrides.values():
                raise fault
        folder = self.root / f"{len(self.calls)}"
        folder.mkdir(parents=True)
        (folder / "scores.json").write_text("{}")
        scores = {"mae": 0.5 + 0.01 * seed, "corr": 0.8, "acc2_has0": 0.85, "acc2_non0": 0.86, "acc7": 0.5}
        return {seed: {"valid": scores, "test": scores, "run": folder}}


def ablate(trainer, tmp_path, **settings):
    rows = plan(ABLATIONS, {"train.epochs": 1})
    return run(rows, trainer, recipe="mosei/text", seeds=(1, 2), state=tmp_path / "state.json", **settings)


def test_plan_puts_the_row_above_the_base():
    rows = plan({"a": {"x": 1}, "b": {}}, {"x": 0, "y": 2})
    assert [(row.name, row.overrides) for row in rows] == [("a", {"x": 1, "y": 2}), ("b", {"x": 0, "y": 2})]
    assert [row.name for row in plan(ABLATIONS, only=["full"])] == ["full"]
    with pytest.raises(MoodalError, match="no ablation 'fulll'"):
        plan(ABLATIONS, only=["fulll"])
    with pytest.raises(MoodalError, match="no ablations"):
        plan({})


def test_table_has_ours_beside_the_published(tmp_path):
    done = ablate(Trainer(tmp_path / "runs"), tmp_path)
    made = ablation_table(done)
    assert not done.failed and "remark" not in [column.key for column in made.columns]
    mamba = next(row for row in made.rows if row.cells["name"] == "temporal alignment: Mamba")
    assert mamba.cells["mae"].mean == pytest.approx(0.515)
    assert mamba.cells["published_mae"].values == (0.562,)
    assert mamba.cells["published_acc7"].values == (pytest.approx(0.5065),)
    assert "52.29" in made.markdown() and "0.515 ± 0.007" in made.markdown()


def test_published_numbers_of_another_corpus_are_marked(tmp_path):
    done = run(plan(ABLATIONS), Trainer(tmp_path / "runs"), recipe="cmu_mosi/text", seeds=(1,))
    assert any("another corpus" in note for note in ablation_table(done).notes)


def test_classification_shows_its_own_metrics(tmp_path):
    def train(recipe, overrides, seeds):
        return {
            seed: {"valid": {"uar": 0.5}, "test": {"accuracy": 0.7, "uar": 0.6, "weighted_f1": 0.65}, "run": tmp_path}
            for seed in seeds
        }

    made = ablation_table(run(plan(ABLATIONS), train, recipe="ravdess/text", seeds=(1,)))
    assert [column.key for column in made.columns] == ["name", "accuracy", "uar", "weighted_f1"]


@pytest.mark.parametrize("fault", [MoodalError("Mamba needs audio."), RuntimeError("Mamba needs audio.")])
def test_a_failing_row_says_why_and_the_others_go_on(tmp_path, fault):
    trainer = Trainer(tmp_path / "runs", fail=[("mamba", fault)])
    done = ablate(trainer, tmp_path)
    made = ablation_table(done)
    assert done.failed
    assert len(trainer.calls) == 8
    failed = next(row for row in made.rows if row.cells["name"] == "temporal alignment: Mamba")
    assert "seed 1, 2 failed" in failed.cells["remark"] and "Mamba needs audio." in failed.cells["remark"]
    assert "mae" not in failed.cells
    assert json.dumps(done.as_json())


def test_finished_rows_are_not_trained_again(tmp_path):
    first, again = Trainer(tmp_path / "runs", fail=[("mamba", MoodalError("no"))]), Trainer(tmp_path / "more")
    before = ablate(first, tmp_path)
    after = ablate(again, tmp_path)
    assert [call for call in again.calls] == [("mamba", 1), ("mamba", 2)]
    assert not after.failed
    assert after.rows[0].by_seed[1]["test"] == before.rows[0].by_seed[1]["test"]


def test_a_deleted_run_is_trained_again(tmp_path):
    ablate(Trainer(tmp_path / "runs"), tmp_path)
    (tmp_path / "runs" / "1" / "scores.json").unlink()
    again = Trainer(tmp_path / "more")
    ablate(again, tmp_path)
    assert len(again.calls) == 1


def test_interruption_goes_through_and_keeps_what_was_done(tmp_path):
    with pytest.raises(Interrupted):
        ablate(Trainer(tmp_path / "runs", fail=[("mamba", Interrupted())]), tmp_path)
    assert len(json.loads((tmp_path / "state.json").read_text())) == 4


def test_progress_is_told(tmp_path):
    told = []
    ablate(Trainer(tmp_path / "runs"), tmp_path, progress=lambda *place: told.append(place))
    assert told[0] == ("full", 1, 0, 8) and told[-1] == ("without gate fusion", 2, 7, 8)
