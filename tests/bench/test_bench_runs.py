"""Reading run folders: whole, partial and damaged ones."""

from __future__ import annotations

import json

import numpy as np
import pytest

from moodal.bench.runs import StoredRun, differences, find_runs, group_seeds
from moodal.core.errors import DataError
from moodal.core.spec import Classification, Regression

PIECES = (
    "data.json",
    "environment.json",
    "history.csv",
    "predictions.csv",
    "scores.json",
    "inspection.safetensors",
    "texts.jsonl",
)


def test_open_reads_everything(make_run):
    run = StoredRun.open(make_run(seed=3))
    assert (run.corpus, run.method, run.seed, run.protocol, run.finished) == ("mosi", "text", 3, "mosi", True)
    assert run.task == Regression(-3.0, 3.0)
    assert run.missing == {}
    test = run.predictions["test"]
    assert len(test) == 60 and test.labelled.sum() == 57
    assert run.inspected("test", "routing").shape == (60, 2, 5)
    assert run.texts["test", "test_1"].explained_by == {"audio": "measured-1"}
    assert run.history["epoch"] == (1.0, 2.0, 3.0, 4.0, 5.0, 6.0)


def test_classes_become_numbers(make_run):
    run = StoredRun.open(make_run(task="classification"))
    table = run.predictions["test"]
    assert isinstance(run.task, Classification)
    assert table.probabilities.shape == (60, 3)
    assert np.isnan(table.target[-3:]).all()
    assert (table.probabilities.argmax(axis=1) == table.prediction).all()


@pytest.mark.parametrize("name", PIECES)
def test_missing_piece_is_a_sentence(make_run, name):
    folder = make_run()
    (folder / name).unlink()
    run = StoredRun.open(folder)
    assert "is missing" in run.missing[name]
    with pytest.raises(DataError, match="is missing"):
        run.require(name)


@pytest.mark.parametrize("name", PIECES)
def test_damaged_piece_is_a_sentence_and_spares_the_others(make_run, name):
    folder = make_run()
    (folder / name).write_bytes(b"\xff\xfe{garbage" * 3)
    run = StoredRun.open(folder)
    assert name in run.missing and str(folder) in run.missing[name]
    assert run.corpus == "mosi"
    assert set(run.missing) <= ({name, "predictions.csv"} if name == "data.json" else {name})


def test_unknown_class_is_named(make_run):
    folder = make_run(task="classification")
    lines = (folder / "predictions.csv").read_text().splitlines()
    lines[1] = ",".join(["valid", "x", "rage", *lines[1].split(",")[3:]])
    (folder / "predictions.csv").write_text("\n".join(lines))
    assert "'rage'" in StoredRun.open(folder).missing["predictions.csv"]


def test_no_run_folder_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"no config\.yaml"):
        StoredRun.open(tmp_path)
    with pytest.raises(DataError, match="no run"):
        find_runs(tmp_path)
    with pytest.raises(DataError, match="not a folder"):
        find_runs(tmp_path / "nowhere")


def test_damaged_config_is_refused(make_run):
    folder = make_run()
    (folder / "config.yaml").write_text("a: [1")
    with pytest.raises(DataError, match="damaged"):
        StoredRun.open(folder)


def test_seeds_of_a_configuration_are_grouped(make_run):
    make_run(seed=2)
    make_run(seed=1, config={"device": {"accelerator": "cuda", "devices": 8, "precision": "32-true"}})
    make_run(seed=1, name="other", config={"model": {"width": 64}})
    groups = group_seeds(find_runs(make_run.root))
    assert [[run.seed for run in group] for group in groups] == [[1, 2], [1]]


def test_other_precision_is_another_configuration(make_run):
    make_run(seed=1)
    make_run(seed=2, config={"device": {"precision": "bf16-mixed"}})
    assert len(group_seeds(find_runs(make_run.root))) == 2


def test_the_same_seed_twice_is_refused(make_run):
    make_run(seed=1)
    make_run(seed=1, name="copy")
    with pytest.raises(DataError, match=r"Seed 1 .* 2 times"):
        group_seeds(find_runs(make_run.root))


def test_differences_name_what_varies():
    one, two = {"a": {"b": 1, "c": 2}, "d": [1]}, {"a": {"b": 1, "c": 3}, "d": [1]}
    assert differences([one, two]) == [["a.c=2"], ["a.c=3"]]


@pytest.mark.parametrize(
    ("width", "model", "names"),
    [
        (3, {}, ("text", "audio", "vision")),
        (2, {"modalities": ["text", "audio"]}, ("text", "audio")),
        (3, {"modalities": ["text"], "explanations": True}, ("text", "audio", "vision")),
        (4, {}, ("part 1", "part 2", "part 3", "part 4")),
    ],
)
def test_gates_are_named_by_modality(make_run, width, model, names):
    run = StoredRun.open(make_run(config={"model": model}))
    run.inspection["test.gates"] = np.ones((60, width), np.float32)
    assert run.gates("test")[1] == names


def test_inspection_of_another_length_is_left_out(make_run):
    run = StoredRun.open(make_run())
    run.inspection["test.gates"] = np.ones((59, 3), np.float32)
    assert run.gates("test") is None


def test_groups_come_from_texts(make_run):
    assert StoredRun.open(make_run()).groups("test") is None
    assert StoredRun.open(make_run(seed=2, groups=True)).groups("test")[:4] == ("video0", "video0", "video0", "video1")


def test_nan_scores_are_null(make_run):
    folder = make_run(constant=True)
    assert json.loads((folder / "scores.json").read_text())["test"]["corr"] is None
    assert StoredRun.open(folder).scores["test"]["corr"] is None
