"""Run folders: what is written, that it is whole or absent, and that nothing in a file is ever run."""

from __future__ import annotations

import csv
import errno
import io
import json
import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from moodal.core.errors import DataError, MoodalError
from moodal.core.spec import Classification, Identification, Regression
from moodal.data.corpus import Clip
from moodal.prepare import verify_same_recipe
from moodal.train.evaluate import Predictions
from moodal.train.runs import RunFolder, load_checkpoint


class Hostile:
    """Unpickled naively it would make a file."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return os.system, (f"touch {self.mark}",)


@pytest.fixture
def home(tmp_path) -> RunFolder:
    return RunFolder(tmp_path / "run")


def test_a_checkpoint_that_asks_to_run_code_is_refused(tmp_path):
    mark, file = tmp_path / "ran", tmp_path / "last.pt"
    torch.save({"method": {}, "state": Hostile(mark)}, file)
    with pytest.raises(MoodalError, match=r"last\.pt was refused: .*system.*\. Nothing in it was run\."):
        load_checkpoint(file)
    assert not mark.exists()


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("protocol, said", [(2, r"was refused: .*system"), (4, r"is not a readable checkpoint")])
def test_a_plain_hostile_pickle_is_refused(tmp_path, protocol, said):
    mark, file = tmp_path / "ran", tmp_path / "last.pt"
    file.write_bytes(pickle.dumps(Hostile(mark), protocol=protocol))
    with pytest.raises(MoodalError, match=rf"last\.pt {said}"):
        load_checkpoint(file)
    assert not mark.exists()


@pytest.mark.parametrize("keep", [0, 1, 10, 0.5, 0.99])
def test_a_truncated_checkpoint_is_a_sentence(tmp_path, keep):
    file = tmp_path / "last.pt"
    torch.save({"method": {"weight": torch.randn(100, 100)}}, file)
    whole = file.read_bytes()
    file.write_bytes(whole[: keep if isinstance(keep, int) else int(keep * len(whole))])
    with pytest.raises(MoodalError, match=r"last\.pt is not a readable checkpoint") as found:
        load_checkpoint(file)
    assert "\n" not in str(found.value)


@pytest.mark.parametrize("content", ["not a checkpoint at all", "zip", "list"])
def test_other_files_are_a_sentence(tmp_path, content):
    file = tmp_path / "best.pt"
    if content == "zip":
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("a", "b")
    elif content == "list":
        torch.save([1, 2], file)
    else:
        file.write_text(content)
    with pytest.raises(MoodalError, match=r"best\.pt"):
        load_checkpoint(file)


def test_a_missing_checkpoint_is_a_sentence(tmp_path):
    with pytest.raises(MoodalError, match="does not exist"):
        load_checkpoint(tmp_path / "last.pt")


def test_weights_of_another_method_are_a_sentence(home):
    with pytest.raises(MoodalError, match=r"last\.pt does not fit the run's settings"):
        home.restore("last.pt", {"method": {"other": torch.zeros(2)}}, torch.nn.Linear(2, 2))
    with pytest.raises(MoodalError, match=r"last\.pt does not fit"):
        home.restore("last.pt", {}, torch.nn.Linear(2, 2))


def no_space(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def torch_no_space(*_: object, **__: object) -> None:
    raise RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos 64 vs 0\nmore lines")


@pytest.mark.parametrize(
    "place, deed",
    [("os.replace", no_space), ("os.fsync", no_space), ("torch.save", no_space), ("torch.save", torch_no_space)],
)
def test_a_full_disk_leaves_the_saved_state_intact(home, monkeypatch, place, deed):
    home.save("last.pt", {"epoch": 1})
    monkeypatch.setattr(place, deed)
    with pytest.raises(MoodalError, match=r"[Dd]isk|disk full") as found:
        home.save("last.pt", {"epoch": 2})
    monkeypatch.undo()
    assert "\n" not in str(found.value)
    assert home.load("last.pt") == {"epoch": 1}
    assert [path.name for path in home.path.iterdir()] == ["last.pt"]


def test_a_device_without_space_is_a_sentence(home, monkeypatch):
    """The same with a file that really cannot be written."""
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    real = torch.save
    home.save("last.pt", {"epoch": 1})
    monkeypatch.setattr("torch.save", lambda state, _: real(state, "/dev/full"))
    with pytest.raises(MoodalError, match=r"last\.pt could not be written|disk is full"):
        home.save("last.pt", {"weight": torch.zeros(100000)})
    monkeypatch.undo()
    assert home.load("last.pt") == {"epoch": 1}


def test_inspection_on_a_full_disk_is_a_sentence(home, monkeypatch):
    monkeypatch.setattr("moodal.train.runs.save_file", no_space)
    table = Predictions(("a",), np.zeros(1), np.zeros(1), np.ones(1, bool), {"gates": np.ones((1, 3))})
    with pytest.raises(MoodalError, match="disk is full"):
        home.write_inspection({"test": table}, Regression(-3, 3))
    assert not list(home.path.iterdir())


def test_checkpoints_come_back_as_saved(home):
    state = {
        "method": {"w": torch.randn(3)},
        "state": {"sums": {"loss": 0.1}, "best": None, "history": [{"a": float("inf"), "b": "x"}]},
    }
    home.save("last.pt", state)
    found = home.load("last.pt")
    assert torch.equal(found["method"]["w"], state["method"]["w"])
    assert found["state"] == state["state"]


def read_csv(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"))))


def test_predictions_of_a_regression(home):
    table = Predictions(("a", 'b,"c'), np.float32([0.1, -2.5]), np.array([1.0, np.nan]), np.array([True, False]))
    home.write_predictions({"valid": table, "test": table}, Regression(-3, 3))
    rows = read_csv(home.path / "predictions.csv")
    assert [row["split"] for row in rows] == ["valid", "valid", "test", "test"]
    assert [row["id"] for row in rows[:2]] == ["a", 'b,"c']
    assert [row["target"] for row in rows[:2]] == ["1.0", ""]
    assert np.float32(rows[0]["prediction"]) == np.float32(0.1)


def test_predictions_of_a_classification(home):
    table = Predictions(("a", "b"), np.float32([[0.2, 0.8], [0.6, 0.4]]), np.array([0.0, 1.0]), np.array([True, False]))
    home.write_predictions({"test": table}, Classification(("calm", "angry")))
    rows = read_csv(home.path / "predictions.csv")
    assert [(row["target"], row["prediction"]) for row in rows] == [("calm", "angry"), ("", "calm")]
    assert np.float32(rows[0]["p_angry"]) == np.float32(0.8)


def test_inspection_is_by_split_in_row_order(home):
    table = Predictions(("a", "b"), np.zeros(2), np.zeros(2), np.ones(2, bool), {"gates": np.arange(6.0).reshape(2, 3)})
    home.write_inspection({"test": table}, Regression(-3, 3))
    assert load_file(home.path / "inspection.safetensors")["test.gates"].tolist() == [[0, 1, 2], [3, 4, 5]]


def test_embeddings_are_kept_whole_and_their_table_says_whose_they_are(home):
    table = Predictions(("a", "b"), np.float32([[0.6, 0.8], [1, 0]]), np.array([4.0, 7.0]), np.ones(2, bool))
    home.write_predictions({"test": table}, Identification(3))
    home.write_inspection({"test": table}, Identification(3))
    assert [list(row.values()) for row in read_csv(home.path / "predictions.csv")] == [
        ["test", "a", "4"],
        ["test", "b", "7"],
    ]
    assert (load_file(home.path / "inspection.safetensors")["test.embedding"] == table.prediction).all()


def test_texts_hold_what_was_said_and_explained(home):
    clip = Clip(
        id="a",
        split="test",
        text="Schön.",
        label=1.0,
        explanations={"audio": "low"},
        explained_by={"audio": "measured"},
    )
    home.write_texts({"test": [clip]})
    row = json.loads((home.path / "texts.jsonl").read_text(encoding="utf-8"))
    wanted = {"split": "test", "id": "a", "text": "Schön.", "explanations": {"audio": "low"}}
    wanted |= {"explained_by": {"audio": "measured"}}
    assert {key: row[key] for key in wanted} == wanted


def test_scores_that_are_not_numbers_become_null(home):
    assert not home.finished
    home.finish({"test": {"corr": float("nan"), "mae": 1.0}})
    assert home.finished
    assert home.scores() == {"test": {"corr": None, "mae": 1.0}}


def test_history_keeps_columns_of_all_stages(home):
    home.write_history([{"stage": "a", "loss": 1.0}, {"stage": "b", "loss": 2.0, "bound": float("nan")}])
    rows = read_csv(home.path / "history.csv")
    assert rows == [{"stage": "a", "loss": "1.0", "bound": ""}, {"stage": "b", "loss": "2.0", "bound": ""}]


def test_data_of_another_recipe_are_refused_by_name(toy_data):
    ours = toy_data.description
    theirs = json.loads(json.dumps(ours))
    verify_same_recipe(ours, theirs)
    theirs["features"]["audio"]["version"] = "2"
    theirs["features"]["vision"]["width"] = 99
    with pytest.raises(
        DataError, match=r"features\.audio\.version was '1' and is '2'; features\.vision\.width was 4 and is 99"
    ) as found:
        verify_same_recipe(ours, theirs)
    assert "\n" not in str(found.value)


def test_one_process_at_a_time_trains_in_a_folder(home):
    with (
        home.held(),
        pytest.raises(MoodalError, match=r"run is being trained by another process; wait for it, or stop it\."),
        home.held(),
    ):
        pass
    with home.held():
        pass


def test_what_a_killed_process_left_half_written_goes_and_nothing_else(home):
    home.path.mkdir()
    kept = ["last.pt", "config.yaml", ".hidden", ".lock", ".notes.of.mine"]
    for name in (*kept, ".last.pt.x8k_2m1q", ".scores.json.abcdefgh"):
        (home.path / name).write_text("x")
    with home.held():
        assert sorted(path.name for path in home.path.iterdir()) == sorted(kept)
