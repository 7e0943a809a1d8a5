"""Robustness of stored runs: the area, the curves, both protocols, the files, and a sentence for every fault."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from lightning_fabric import Fabric

from moodal.bench.compare import as_groups
from moodal.bench.robustness import (
    RATES,
    Curve,
    Plan,
    area_under_curve,
    matched_groups,
    measure,
    names_of,
    trained_plan,
)
from moodal.build import open_run, score_table
from moodal.cli import main
from moodal.core.config import parse_override
from moodal.core.errors import MoodalError
from moodal.core.settings import MissingData
from moodal.jobs import train_seeds
from moodal.train.evaluate import evaluate

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def runs(tmp_path_factory, tiny_text_settings) -> Path:
    """synthetic/text at two seeds, whole, and trained with half of all steps dropped."""
    folder = tmp_path_factory.mktemp("robust")
    settings = dict(parse_override(text) for text in tiny_text_settings)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.stderr", (folder / "log").open("w"))
        train_seeds("synthetic/text", settings, seeds=[1, 2], runs=folder / "whole")
        train_seeds("synthetic/text", {**settings, "data.missing.rate": 0.5}, seeds=[1, 2], runs=folder / "half")
    return folder


@pytest.fixture
def cli(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def run(*argv: object) -> tuple[int, str, str]:
        code = main(["robustness", *map(str, argv)])
        done = capsys.readouterr()
        return code, done.out, done.err

    return run


# The area


def test_area_of_a_constant_is_its_share_of_the_rates():
    assert area_under_curve(RATES, [0.8] * 11) == pytest.approx(0.8)
    assert area_under_curve(RATES[:6], [80.0] * 6) == pytest.approx(40.0)


def test_area_of_the_published_curve():
    # EMT-DLFR's Acc-7 on MOSI, read off the figure; the table has 32.5.
    curve = [47.4, 44.0, 42.0, 38.0, 34.1, 31.7, 29.9, 26.8, 24.8, 20.8, 17.5]
    assert area_under_curve(RATES, curve) == pytest.approx(32.455)


def test_area_knows_the_steps_and_no_order():
    assert area_under_curve([0, 0.2, 1.0], [1.0, 0.0, 1.0]) == pytest.approx(0.1 + 0.4)
    assert area_under_curve([1.0, 0, 0.2], [1.0, 1.0, 0.0]) == pytest.approx(0.5)
    assert np.isnan(area_under_curve([0, 1], [1.0, float("nan")]))


def test_area_of_the_mean_curve_is_the_mean_of_the_areas():
    draw = np.random.default_rng(0).uniform(size=(3, 4))
    scores = {
        rate: {(seed, 111): {"mae": draw[seed, place]} for seed in range(3)}
        for place, rate in enumerate((0, 0.1, 0.5, 1.0))
    }
    curve = Curve("any", scores, ())
    means = [curve.at(rate, "mae").mean for rate in curve.rates]
    assert curve.area("mae").mean == pytest.approx(area_under_curve(curve.rates, means))


# Runs at given rates


def test_with_nothing_missing_the_scores_are_those_of_the_run(runs):
    groups = as_groups(runs / "whole")
    found = measure(groups, Plan(rates=(0.0, 1.0)))
    for run in groups[0]:
        scores = found.curves[0].scores[0.0][run.seed, 111]
        assert scores == pytest.approx(run.scores["test"], abs=1e-9)
    assert not any("differ from" in note for note in found.notes)


def test_scores_that_changed_since_are_told(runs):
    run = as_groups(runs / "whole")[0][0]
    told = {**run.scores, "test": {**run.scores["test"], "mae": 9.0}}
    found = measure([[replace(run, scores=told)]], Plan(rates=(0.0,)))
    assert any("with nothing missing mae differ from scores.json" in note for note in found.notes)


def test_a_run_at_a_rate_is_the_run_evaluated_with_that_setting(runs):
    run = as_groups(runs / "whole")[0][0]
    found = measure([[run]], Plan(kind="block", rates=(0.4,), seeds=(3,), modalities=("audio", "vision")))
    given = {"kind": "block", "rate": 0.4, "seed": 3, "modalities": ["audio", "vision"]}
    opened = open_run(run.path, overrides={f"data.missing.{key}": value for key, value in given.items()})
    table = evaluate(opened.method, opened.data.splits["test"], size=256, fabric=Fabric(accelerator="cpu"))
    assert found.curves[0].scores[0.4][1, 3] == score_table("mosi", table)


def test_every_pair_of_seeds_is_a_value_and_rate_0_is_scored_once(runs):
    seen = []
    found = measure(
        as_groups(runs / "whole"), Plan(rates=(0.0, 0.5), seeds=(111, 5)), progress=lambda *state: seen.append(state)
    )
    curve = found.curves[0]
    assert list(curve.scores[0.5]) == [(1, 5), (1, 111), (2, 5), (2, 111)] == list(curve.scores[0.0])
    assert curve.scores[0.0][1, 5] is curve.scores[0.0][1, 111]
    assert curve.scores[0.5][1, 5] != curve.scores[0.5][1, 111]
    assert seen[-1] == (6, 6, "evaluations") and len(seen) == 6
    assert len(curve.area("mae").values) == 4


def test_a_correlation_that_is_not_defined_is_told(runs):
    found = measure(as_groups(runs / "whole"), Plan(kind="modality", rates=(0.0, 1.0)))
    curve = found.curves[0]
    assert all(
        np.isnan(scores["corr"]) for scores in curve.scores[1.0].values()
    )  # nothing is left: one prediction for all
    assert np.isnan(found.areas().rows[0].cells["corr"].mean)
    assert any("Corr: not defined" in note for note in found.areas().notes)


# One model per rate


def test_matched_runs_make_one_curve_of_their_own_rates(runs):
    groups = as_groups([runs / "whole", runs / "half"])
    assert [len(group) for group in groups] == [2, 2]
    joined = matched_groups(groups)
    assert [len(group) for group in joined] == [4]
    found = measure(joined, None)
    assert found.plan.kind == "frames" and found.plan.rates == (0.0, 0.5) and found.plan.seeds == (111,)
    for run in joined[0]:
        rate = 0.5 if "half" in str(run.path) else 0.0
        assert found.curves[0].scores[rate][run.seed, 111] == pytest.approx(run.scores["test"], abs=1e-9)


def test_a_curve_with_a_hole_is_a_sentence(runs):
    joined = matched_groups(as_groups([runs / "whole", runs / "half"]))[0]
    lacking = [run for run in joined if not ("half" in str(run.path) and run.seed == 2)]
    with pytest.raises(MoodalError, match=r"no run of seed 2 trained at rate 0.5"):
        measure([lacking], None)


def test_runs_trained_with_different_things_missing_are_a_sentence():
    with pytest.raises(MoodalError, match="No run was trained with something missing"):
        trained_plan([MissingData(), MissingData(kind="noise")])
    with pytest.raises(MoodalError, match="several kinds, seeds or modalities"):
        trained_plan([MissingData(rate=0.1), MissingData(rate=0.1, seed=2)])


def test_configurations_of_one_method_are_told_apart(runs):
    assert names_of(as_groups([runs / "whole", runs / "half"]))[0] == "text"
    assert "missing" in names_of(as_groups([runs / "whole", runs / "half"]))[1]


# The command


@pytest.fixture
def undrawn(monkeypatch):
    """Plots are not looked at here, and drawing takes seconds."""
    monkeypatch.setattr("moodal.bench.robustness.rate_curves", lambda *_, **__: {"svg": b"", "png": b""})


def test_the_command_writes_tables_plots_and_numbers(runs, cli):
    code, out, err = cli(
        runs / "whole", runs / "half", "--rates", "0,0.5,1", "--out", "made", "--json", "device.accelerator=cpu"
    )
    assert code == 0, err
    assert "AUILC on test of synthetic under frames" in out and "evaluations: 12 to do" in err
    names = {
        "robustness.md",
        "robustness.tex",
        "robustness.svg",
        "robustness.png",
        "robustness.json",
        "auilc.csv",
        "scores.csv",
    }
    assert {path.name for path in Path("made").iterdir()} == names
    assert (
        Path("made/robustness.png").read_bytes()[:4] == b"\x89PNG"
        and b"<svg" in Path("made/robustness.svg").read_bytes()
    )
    with Path("made/scores.csv").open() as handle:
        rows = list(csv.DictReader(handle))
    assert [row["rate"] for row in rows] == ["0", "0.5", "1"] * 2
    assert {row["name"].partition(" ")[0] for row in rows} == {"TEXT"} and rows[0]["mae_seeds"] == "2"
    told = json.loads(out.splitlines()[-1])
    kept = json.loads(Path("made/robustness.json").read_text())
    assert told["files"] and {key: told[key] for key in kept} == kept
    scores = [told["scores"]["TEXT"][rate]["mae"]["mean"] for rate in ("0", "0.5", "1")]
    assert told["auilc"]["TEXT"]["mae"]["mean"] == pytest.approx(area_under_curve((0, 0.5, 1), scores))
    assert r"\toprule" in Path("made/robustness.tex").read_text()


def test_noise_is_asked_for_in_decibels(runs, cli, undrawn):
    code, out, err = cli(runs / "whole", "--kind", "noise", "--snr", "10,-5", "--json", "device.accelerator=cpu")
    assert code == 0, err
    assert list(json.loads(out.splitlines()[-1])["scores"]["TEXT"]) == ["0", "0.0909091", "0.759747"]
    assert "0.0909 (10 dB)" in Path("robustness/robustness.md").read_text()


def test_matched_takes_everything_from_the_runs(runs, cli, undrawn):
    code, out, err = cli(runs, "--matched", "--json", "device.accelerator=cpu")
    assert code == 0, err
    assert "Each rate is scored on runs trained at that rate." in out
    assert list(json.loads(out.splitlines()[-1])["scores"]["TEXT"]) == ["0", "0.5"]


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["nowhere"], "nowhere is not a folder"),
        (["RUNS", "--rates", "0,2"], "rate is 2.0; it is a share from 0 to 1"),
        (["RUNS", "--rates", "a,b"], "--rates is 'a,b'; expected numbers"),
        (["RUNS", "--seeds", "1.5"], "--seeds is '1.5'; expected whole numbers"),
        (["RUNS", "--rates", "0.1,0.1"], "give each once"),
        (["RUNS", "--modalities", "smell"], "modalities is ['smell']"),
        (["RUNS", "--snr", "3"], "--snr is for --kind noise"),
        (["RUNS", "--kind", "noise", "--rates", "0.2"], "--rates for the other kinds"),
        (["RUNS", "--kind", "freeze", "--seeds", "1,2"], "freeze draws nothing"),
        (["RUNS", "--matched", "--kind", "block"], "leave out --kind"),
        (["RUNS", "model.width=3"], "model.width: a run is scored with its own settings"),
    ],
)
def test_a_fault_is_one_sentence_and_nothing_is_written(argv, told, runs, cli):
    code, out, err = cli(*[runs / "whole" if word == "RUNS" else word for word in argv])
    assert code == 2 and out == ""
    assert told in err and err.startswith("error: ") and "Traceback" not in err
    assert not list(Path().iterdir())


def test_unfinished_runs_and_other_corpora_are_sentences(runs):
    run = as_groups(runs / "whole")[0][0]
    with pytest.raises(MoodalError, match=r"is not finished; go on with it first: moodal train --resume"):
        measure([[replace(run, scores={})]], Plan())
    other = replace(run, config={**run.config, "corpus": "mosi"})
    with pytest.raises(MoodalError, match="The runs are of mosi and synthetic"):
        measure([[run], [other]], Plan())
    with pytest.raises(MoodalError, match="scored by emotion and mosi"):
        measure([[run], [replace(run, scores={**run.scores, "protocol": "emotion"})]], Plan())
