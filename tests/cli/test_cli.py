"""The command line, in this process: results, and one sentence for every fault."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import pytest
import torch

from moodal.build import recipes
from moodal.cli import main
from moodal.data import CORPORA
from moodal.methods import METHODS

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def cli(capsys, tmp_path, monkeypatch):
    """Run a command in an empty folder; its exit code, output and errors."""
    monkeypatch.chdir(tmp_path)

    def run(*argv: str) -> tuple[int, str, str]:
        code = main([str(part) for part in argv])
        done = capsys.readouterr()
        return code, done.out, done.err

    return run


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tiny_text_settings):
    """Three seeds of synthetic/text, trained by one command, and the JSON it printed."""
    runs = tmp_path_factory.mktemp("runs")
    out = runs / "out.txt"
    with pytest.MonkeyPatch.context() as patch, out.open("w") as handle:
        patch.setattr("sys.stdout", handle)
        code = main(["train", "synthetic/text", *tiny_text_settings, "seed=1,2,3", "--runs", str(runs), "--json"])
    assert code == 0
    return json.loads(out.read_text().splitlines()[-1])


def test_several_seeds_are_trained_and_summarised(trained):
    keys = {"mae", "corr", "acc2_has0", "acc2_non0", "f1_has0", "f1_non0", "acc3", "acc5", "acc7"}
    for split in ("test", "valid"):
        seeds = trained[split]["seeds"]
        assert list(seeds) == ["1", "2", "3"]
        assert keys <= set(seeds["1"])
        values = [seeds[seed]["mae"] for seed in seeds]
        assert len(set(values)) == 3
        mean = sum(values) / 3
        assert trained[split]["mean"]["mae"] == pytest.approx(mean)
        assert trained[split]["std"]["mae"] == pytest.approx(math.sqrt(sum((v - mean) ** 2 for v in values) / 2))
    assert trained["selection"]["1"]["value"] == pytest.approx(
        trained["valid"]["seeds"]["1"][trained["selection"]["1"]["metric"]]
    )
    assert set(trained["baseline"]) >= {"name", "valid", "test"}


def test_a_run_folder_is_complete(trained):
    folder = Path(trained["runs"]["2"])
    assert folder.name == "seed-2" and folder.parts[-4:-2] == ("synthetic", "text")
    names = {
        "config.yaml",
        "environment.json",
        "data.json",
        "history.csv",
        "best-train.pt",
        "last.pt",
        "predictions.csv",
        "texts.jsonl",
        "scores.json",
    }
    assert names <= {path.name for path in folder.iterdir()}
    assert not [path.name for path in folder.iterdir() if path.name.startswith(".")]
    with (folder / "predictions.csv").open() as handle:
        rows = list(csv.DictReader(handle))
    assert [sum(row["split"] == split for row in rows) for split in ("valid", "test")] == [12, 13]
    errors = [abs(float(row["prediction"]) - float(row["target"])) for row in rows if row["split"] == "test"]
    assert sum(errors) / 13 == pytest.approx(trained["test"]["seeds"]["2"]["mae"], rel=1e-5)
    scores = json.loads((folder / "scores.json").read_text())
    assert {"protocol", "selection", "valid", "test"} <= set(scores)
    assert scores["selection"]["better"] == "lower" or scores["selection"]["better"] == "higher"
    data = json.loads((folder / "data.json").read_text())
    assert data["sizes"] == {"train": 41, "valid": 12, "test": 13}
    environment = json.loads((folder / "environment.json").read_text())
    assert {"versions", "device", "started", "parameters"} <= set(environment)


def test_a_finished_run_is_never_written_again(trained, cli):
    folder = Path(trained["runs"]["1"])
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.iterdir() if path.is_file()}
    code, out, _ = cli("train", "--resume", folder, "--json")
    assert code == 0
    assert json.loads(out.splitlines()[-1])["test"]["seeds"]["1"] == trained["test"]["seeds"]["1"]
    assert {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.iterdir() if path.is_file()} == before


def test_two_evaluations_are_identical_and_equal_the_run(trained, cli):
    folder = Path(trained["runs"]["3"])
    found = []
    for name in ("a.csv", "b.csv"):
        code, out, _ = cli("evaluate", folder, "--out", name, "--json", "device.accelerator=cpu")
        assert code == 0
        found.append((json.loads(out.splitlines()[-1]), Path(name).read_bytes()))
    assert found[0] == found[1]
    assert found[0][0]["test"]["mae"] == pytest.approx(trained["test"]["seeds"]["3"]["mae"], abs=1e-6)
    assert found[0][1] == (folder / "predictions.csv").read_bytes()


def test_one_split_can_be_asked_for(trained, cli):
    code, out, _ = cli("evaluate", trained["runs"]["1"], "--split", "test", "--json", "device.accelerator=cpu")
    assert code == 0
    assert set(json.loads(out.splitlines()[-1])) == {"test"}


def test_data_of_another_recipe_are_refused(trained, cli):
    code, _, err = cli("evaluate", trained["runs"]["1"], "reader.audio_width=9", "device.accelerator=cpu")
    assert code == 2
    assert err.startswith("error: ") and "features.audio.width was 6 and is 9" in err and "Traceback" not in err


def test_a_run_without_epochs_can_be_evaluated(cli, tiny_text_settings):
    code, out, _ = cli("train", "synthetic/text", *tiny_text_settings, "train.epochs=0", "--json")
    assert code == 0
    done = json.loads(out.splitlines()[-1])
    code, out, _ = cli("evaluate", done["runs"]["1"], "--json", "device.accelerator=cpu")
    assert code == 0
    assert json.loads(out.splitlines()[-1])["test"]["mae"] == pytest.approx(done["test"]["mean"]["mae"], abs=1e-6)


@pytest.mark.parametrize(
    "argv, said",
    [
        (["train", "synthetic/text", "train.epoch=5"], ["train.epoch: no such setting; did you mean 'train.epochs'?"]),
        (
            ["train", "synthetic/text", "train.epochs=many", "model.widht=3", "train.batch=0"],
            ["train.epochs is 'many'; expected a whole number", "did you mean 'model.width'?", "batch is 0"],
        ),
        (["train", "synthetic/txt"], ["There is no method 'txt'; known: "]),
        (["train", "nowhere/text"], ["There is no corpus 'nowhere'"]),
        (["train", "text"], ["'text' is no recipe"]),
        (["train"], ["no recipe was given"]),
        (["train", "synthetic/text", "epochs"], ["'epochs' is not a setting; expected key=value"]),
        (["train", "synthetic/text", "seed=one"], ["seed is 'one'; expected one whole number or several"]),
        (["train", "cmu_mosi/text", "data.root=no/such/folder"], ["no/such/folder"]),
        (["train", "cmu_mosi/text"], ["data.root"]),
        (["train", "synthetic/text", "--config", "none.yaml"], ["none.yaml does not exist"]),
        (["train", "synthetic/text", "--config", "bad.yaml"], ["bad.yaml is not valid YAML"]),
        (["train", "synthetic/text", "--config", "list.yaml"], ["list.yaml holds list; expected a mapping"]),
        (["train", "--resume", "no/run"], ["no/run is no run folder"]),
        (["train", "synthetic/text", "device.accelerator=abacus", "data.text.mode=features"], ["device: "]),
        (["train", "synthetic/text", "device.strategy=magic", "data.text.mode=features"], ["device: "]),
        (["train", "synthetic/text", "device.devices=0", "device.accelerator=cpu"], ["device: "]),
        (
            ["train", "synthetic/text", "device.strategy=ddp_spawn", "device.devices=2", "device.accelerator=cpu"],
            ["ddp_spawn"],
        ),
        (["train", "synthetic/text", "TINY", "train.select=mea"], ["train.select is 'mea'"]),
        (["train", "synthetic/text", "TINY", "train.stages.train.select=mea"], ["train.stages.train.select is 'mea'"]),
        (
            ["train", "synthetic/text", "TINY", "train.groups.mian.rate=1"],
            ["train.groups.mian: text has no such group"],
        ),
        (
            ["train", "synthetic/text", "TINY", "train.stages.tran.epochs=1"],
            ["train.stages.tran: text has no such stage"],
        ),
        (
            [
                "train",
                "synthetic/text",
                "data.text.mode=features",
                "reader.word_vectors=false",
                "data.explainer=stored",
            ],
            ["stores no text features"],
        ),
        (["evaluate", "no/run"], ["no/run is no run folder"]),
        (["report", "no/run"], ["no/run"]),
        (["show", "synthetic/text", "model.widht=3"], ["did you mean 'model.width'?"]),
        (["bench", "nothing"], ["There is no benchmark 'nothing'"]),
        (["import", "none.pkl", "--corpus", "mosi"], ["none.pkl"]),
        (["import-checkpoint", "text", "none.pth", "--out", "run"], ["none.pth"]),
        (["parity", "none.safetensors"], ["none.json is not there"]),
    ],
)
def test_a_fault_is_one_sentence_and_exit_code_2(argv, said, cli, tiny_text_settings):
    Path("bad.yaml").write_text("train: [1")
    Path("list.yaml").write_text("- 1")
    before = set(Path().rglob("*"))
    argv = [part for word in argv for part in (tiny_text_settings if word == "TINY" else [word])]
    code, out, err = cli(*argv)
    assert code == 2, err
    assert out == ""
    faults = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(faults) == len(said), err
    for line, text in zip(faults, said):
        assert text in line
    assert "Traceback" not in err
    assert set(Path().rglob("*")) == before, "something was left behind"


def test_streams_that_are_too_long_are_a_sentence(cli, tiny_text_settings):
    code, _, err = cli("train", "synthetic/text", *tiny_text_settings, "model.max_steps=5")
    faults = [line for line in err.splitlines() if line.startswith("error: ")]
    assert code == 2 and len(faults) == 1 and "model.max_steps" in faults[0]


@pytest.mark.parametrize(
    "argv",
    [
        ["fly"],
        [],
        ["train", "--rusn", "x"],
        ["train", "synthetic/text", "--rusn=x"],
        ["list", "methods", "a=b"],
        ["evaluate"],
        ["list", "things"],
    ],
)
def test_a_command_that_does_not_exist_shows_usage_and_exits_with_2(argv, cli, capsys):
    with pytest.raises(SystemExit) as stop:
        cli(*argv)
    assert stop.value.code == 2
    assert "usage: moodal" in capsys.readouterr().err


def test_a_loss_that_is_not_finite_stops_with_a_sentence(cli, tiny_text_settings):
    code, _, err = cli(
        "train", "synthetic/text", *tiny_text_settings, "train.rate=1e30", "train.clip=null", "train.warmup=0"
    )
    assert code == 2
    fault = next(line for line in err.splitlines() if line.startswith("error: "))
    assert "No step was taken" in fault and "stage train, epoch" in fault
    assert "Traceback" not in err


def test_a_hostile_checkpoint_is_refused(trained, cli, tmp_path):
    import os
    import shutil

    class Hostile:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'ran'}",)

    run = shutil.copytree(trained["runs"]["1"], tmp_path / "run")
    torch.save({"method": Hostile()}, run / "best-train.pt")
    code, _, err = cli("evaluate", run, "device.accelerator=cpu")
    assert code == 2 and "was refused" in err
    assert not (tmp_path / "ran").exists()


def test_lists_name_everything(cli):
    assert [line.split()[0] for line in cli("list", "methods")[1].splitlines()] == list(METHODS)
    assert [line.split()[0] for line in cli("list", "corpora")[1].splitlines()] == list(CORPORA)
    assert cli("list", "recipes")[1].split() == recipes()


def test_show_names_every_setting_and_its_origin(cli):
    code, out, _ = cli("show", "synthetic/text", "train.epochs=9", "model.experts=4")
    assert code == 0
    rows = {line.split()[0]: line.split() for line in out.splitlines()}
    assert rows["train.epochs"] == ["train.epochs", "9", "command", "line"]
    assert rows["model.width"][-1].endswith("recipes/synthetic/text.yaml")
    assert rows["train.accumulate"] == ["train.accumulate", "1", "default"]
    assert "data.text.mode" in rows and "reader.train" in rows and "device.precision" in rows


def test_check_passes_on_the_recipes_of_the_package(cli):
    code, out, _ = cli("check")
    assert code == 0, out
    assert [line.split()[0] for line in out.splitlines()] == recipes()


def test_a_seed_in_the_file_of_settings_is_used(cli, tiny_text_settings):
    Path("mine.yaml").write_text("seed: 5\ntrain: {epochs: 1}\n")
    settings = [text for text in tiny_text_settings if not text.startswith("train.epochs")]
    code, out, _ = cli("train", "synthetic/text", "--config", "mine.yaml", *settings, "--json")
    assert code == 0
    assert list(json.loads(out.splitlines()[-1])["test"]["seeds"]) == ["5"]


def test_tensorboard_is_written_when_asked(cli, tiny_text_settings):
    pytest.importorskip("tensorboard")
    code, out, _ = cli(
        "train", "synthetic/text", *tiny_text_settings, "train.epochs=1", "train.tensorboard=true", "--json"
    )
    assert code == 0
    folder = Path(json.loads(out.splitlines()[-1])["runs"]["1"])
    assert list((folder / "tensorboard").glob("events.*"))


def test_classes_are_trained_and_scored(cli, tiny_text_settings):
    code, out, _ = cli(
        "train", "synthetic/text", *tiny_text_settings, "reader.task=classification", "train.epochs=1", "--json"
    )
    assert code == 0
    done = json.loads(out.splitlines()[-1])
    assert set(done["test"]["mean"]) == {"accuracy", "uar", "weighted_f1"}
    header = (Path(done["runs"]["1"]) / "predictions.csv").read_text().splitlines()[0]
    assert header == "split,id,target,prediction,p_negative,p_neutral,p_positive"


def test_compare_trains_what_is_missing_and_prints_one_table(cli, tmp_path):
    small = ["reader.train=24", "reader.valid=8", "reader.test=8", "data.text.mode=features", "data.explainer=stored"]
    ask = ["compare", "synthetic", "linear", "cmga", "seed=1,2", *small, "train.epochs=1", "device.threads=1"]
    code, out, err = cli(*ask, "--runs", str(tmp_path), "--json")
    assert code == 0, err
    rows = [line for line in out.splitlines() if line.startswith("| ")]
    assert [row.split("|")[1].strip() for row in rows[2:4]] == ["Linear baseline", "CMGA"] and "mean of the" in rows[4]
    found = json.loads(out.splitlines()[-1])
    assert set(found["methods"]["synthetic/cmga"]["test"]["seeds"]) == {"1", "2"} and not found["failures"]
    assert Path(found["page"]).is_file()
    again = cli(*ask, "--runs", str(tmp_path))[2]
    assert "epoch 1/1" in err and "epoch 1/1" not in again


def test_compare_refuses_a_corpus_without_recipes_and_a_method_that_does_not_exist(cli):
    code, _, err = cli("compare", "atlantis")
    assert code == 2 and "There is no recipe for 'atlantis'" in err
    code, _, err = cli("compare", "synthetic", "txet", "seed=1")
    assert code == 2 and "text" in err
