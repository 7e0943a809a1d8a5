"""The commands about clips, end to end: a folder of small clips becomes a corpus, a run, a saved model, predictions."""

from __future__ import annotations

import csv
import json

import pytest
from media_files import write_clip

from moodal.cli import main

pytest.importorskip("av", reason="clips need the extra 'media'")

#: Nothing that is slow: no words, no face.
FAST = ("vision=none", "words.recogniser=none", "words.align=false")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Nine clips of a second with labels and texts in their table, and one that is no clip at all."""
    folder = tmp_path_factory.mktemp("clips")
    rows = []
    for n in range(9):
        write_clip(folder / f"c{n}.mp4", seconds=1.0, size=(64, 48))
        split = ("train", "valid", "test")[n % 3]
        rows.append({"file": f"c{n}.mp4", "label": n / 4 - 1, "split": split, "text": f"it was number {n}"})
    (folder / "broken.mp4").write_bytes(b"no clip")
    rows.append({"file": "broken.mp4", "label": 0, "split": "train", "text": "nothing"})
    with (folder / "labels.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows(rows)
    return folder


@pytest.fixture(scope="module")
def store(home):
    out = home.parent / "store"
    options = ["--labels", str(home / "labels.csv"), "--out", str(out), "--workers", "1", "--json", *FAST]
    assert main(["extract", str(home), *options]) == 0
    return out


@pytest.fixture(scope="module")
def run(store, tmp_path_factory):
    runs = tmp_path_factory.mktemp("runs")
    settings = [f"data.root={store}", "seed=1", "train.epochs=1", "data.text.mode=frozen"]
    assert main(["train", "folder/linear", *settings, "--runs", str(runs)]) == 0
    return next(runs.glob("folder/linear/*/seed-1"))


def last_line(capsys):
    return json.loads(capsys.readouterr().out.strip().splitlines()[-1])


def test_a_folder_becomes_a_corpus_and_what_is_no_clip_is_reported(home, store, capsys):
    again = [
        "--labels",
        str(home / "labels.csv"),
        "--out",
        str(store),
        "--json",
        "--overwrite",
        "--workers",
        "1",
        *FAST,
    ]
    assert main(["extract", str(home), *again]) == 0
    report = last_line(capsys)
    assert report["clips"] == 10 and len(report["faults"]) == 1 and report["faults"][0]["file"] == "broken.mp4"
    assert report["sizes"] == {"train": 3, "valid": 3, "test": 3}


def test_clips_are_scored_and_a_broken_one_does_not_stop_the_others(home, run, capsys):
    options = ["--run", str(run), "--recogniser", "none", "--json"]
    assert main(["predict", str(home / "c0.mp4"), str(home / "broken.mp4"), str(home / "c1.mp4"), *options]) == 2
    told = last_line(capsys)
    assert [item["id"] for item in told["predictions"]] == ["c0", "c1"]
    assert all(-1 <= item["low"] < item["high"] <= 1 for item in told["predictions"])
    assert list(told["faults"]) == [str(home / "broken.mp4")]


def test_a_saved_run_scores_the_same(run, tmp_path, capsys):
    assert main(["save", str(run), "--out", str(tmp_path / "model")]) == 0
    values = []
    for source in (run, tmp_path / "model"):
        assert main(["predict", "--text", "it was number 3", "--run", str(source), "--json"]) == 0
        values.append(last_line(capsys)["predictions"][0]["value"])
    assert values[0] == values[1]


def test_the_run_that_ships_tells_good_from_bad(capsys):
    values = []
    for text in ("I loved this film, it was wonderful", "what a boring waste of time"):
        assert main(["predict", "--text", text, "--json"]) == 0
        values.append(last_line(capsys)["predictions"][0]["value"])
    assert values[0] > 1 and values[1] < -0.5


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["predict", "missing.mp4"], "missing.mp4"),
        (["predict", "--text", "", "--json"], "empty"),
        (["predict", "--text", "a", "--run", "nowhere"], "nowhere"),
        (["serve", "clip_second=3"], "did you mean 'clip_seconds'"),
        (["extract", ".", "--labels", "none.csv", "--out", "store"], "none.csv"),
        (["explain", "nowhere", "--out", "a.jsonl", "describe.model=m"], "nowhere"),
        (["judge", "nowhere", "--out", "a.jsonl", "judge.model=m"], "nowhere"),
    ],
)
def test_faults_are_sentences(arguments, sentence, capsys, monkeypatch, tmp_path, caplog):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    assert sentence in capsys.readouterr().err + caplog.text
