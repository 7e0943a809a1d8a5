"""Scores, intervals and comparisons from stored predictions."""

from __future__ import annotations

import csv
import json
import math

import numpy as np
import pytest

from moodal.bench.compare import compare_runs, labels, published_table
from moodal.bench.names import known_metric, metric_column
from moodal.bench.runs import StoredRun, group_seeds
from moodal.bench.scoring import SplitScorer, baseline, compare, score_split
from moodal.core.errors import MoodalError
from moodal.metrics.bootstrap import bootstrap_scores, paired_bootstrap
from moodal.metrics.protocol import PROTOCOLS, score
from moodal.metrics.regression import mae


def opened(*folders):
    return tuple(StoredRun.open(folder) for folder in folders)


def columns(folder, split="test"):
    """Labelled rows of predictions.csv, read in another way than the package does."""
    with (folder / "predictions.csv").open() as stream:
        rows = [row for row in csv.DictReader(stream) if row["split"] == split and row["target"]]
    return np.array([float(row["prediction"]) for row in rows]), np.array([float(row["target"]) for row in rows])


def test_titles_and_directions_agree_with_the_protocols():
    for protocol in PROTOCOLS.values():
        for key in protocol.keys if "." not in protocol.name else ():
            if known_metric(key):
                assert metric_column(key).better == {"lower": "low", "higher": "high"}[protocol.better[key]], key
    assert known_metric("acc2_zero_negative")


def test_scores_are_those_of_the_predictions(make_run):
    folders = [make_run(seed=1), make_run(seed=2)]
    cells = score_split(opened(*folders), "test", planned=3, resamples=0).cells
    for place, folder in enumerate(folders):
        expected = score("mosi", *columns(folder))
        assert {key: cell.values[place] for key, cell in cells.items()} == pytest.approx(expected)
    assert cells["mae"].planned == 3


def test_interval_of_one_seed_is_the_bootstrap_of_metrics(make_run):
    folder = make_run()
    cells = score_split(opened(folder), "test", resamples=100).cells
    prediction, target = columns(folder)
    expected = bootstrap_scores("mosi", prediction, target=target, resamples=100)
    for key, interval in expected.items():
        assert (cells[key].low, cells[key].high) == pytest.approx((interval.low, interval.high)), key


def test_interval_over_groups_is_wider_for_alike_clips(make_run):
    plain, grouped = make_run(seed=1), make_run(seed=2, groups=True)
    for folder in (plain, grouped):
        lines = (folder / "predictions.csv").read_text().splitlines()
        alike = [line if not line.startswith("test") else _moved(line) for line in lines]
        (folder / "predictions.csv").write_text("\n".join(alike))
    assert _width(grouped) > 1.2 * _width(plain)


def _moved(line):
    split, clip, target, _ = line.split(",")
    error = (int(clip.split("_")[1]) // 3) % 5
    return f"{split},{clip},{target},{float(target) + error if target else 0.0}"


def _width(folder):
    cell = score_split(opened(folder), "test", resamples=200).cells["mae"]
    return cell.high - cell.low


def test_missing_predictions_fall_back_on_stored_scores(make_run):
    folder = make_run()
    (folder / "predictions.csv").unlink()
    found = score_split(opened(folder), "test")
    stored = json.loads((folder / "scores.json").read_text())["test"]
    assert found.cells["mae"].values == (stored["mae"],) and found.cells["mae"].low is None
    assert "without intervals" in found.notes[0]


def test_changed_predictions_are_noticed(make_run):
    folder = make_run()
    found = json.loads((folder / "scores.json").read_text())
    found["test"]["mae"] = 0.001
    (folder / "scores.json").write_text(json.dumps(found))
    assert any("mae 0.0010" in note for note in score_split(opened(folder), "test", resamples=0).notes)


def test_nan_prediction_gives_no_score_but_a_sentence(make_run):
    folder = make_run()
    lines = (folder / "predictions.csv").read_text().splitlines()
    lines[45] = ",".join([*lines[45].split(",")[:3], "nan"])
    (folder / "predictions.csv").write_text("\n".join(lines))
    assert "NaN" in score_split(opened(folder), "test", resamples=0).notes[0]


def test_seeds_in_another_order_of_clips_are_aligned(make_run):
    folders = [make_run(seed=1), make_run(seed=2)]
    before = score_split(opened(*folders), "test", resamples=20).cells["mae"]
    lines = (folders[1] / "predictions.csv").read_text().splitlines()
    (folders[1] / "predictions.csv").write_text("\n".join([lines[0], *reversed(lines[1:])]))
    after = score_split(opened(*folders), "test", resamples=20).cells["mae"]
    assert after.values == pytest.approx(before.values) and after.high == pytest.approx(before.high)


def test_seeds_with_other_clips_are_refused(make_run):
    folders = [make_run(seed=1), make_run(seed=2, sizes={"valid": 40, "test": 50})]
    with pytest.raises(MoodalError, match="each clip of test once"):
        SplitScorer(opened(*folders), "test")


def test_paired_comparison_equals_the_metric_package(make_run):
    folders = [make_run(seed=1, noise=0.4), make_run(seed=1, noise=1.0, name="b", config={"model": {"width": 1}})]
    one, two = (SplitScorer(opened(folder), "test") for folder in folders)
    found = compare(one, two, keys=["mae"], resamples=100)["mae"]
    (first, target), (second, _) = columns(folders[0]), columns(folders[1])
    expected = paired_bootstrap(lambda p, t: mae(p, t), first, second=second, target=target, resamples=100)
    assert (found.difference, found.low, found.high, found.p_value) == pytest.approx(
        (expected.difference, expected.low, expected.high, expected.p_value)
    )


def test_compare_runs_has_every_configuration_and_the_constant(make_run):
    runs = [
        make_run(seed=1),
        make_run(seed=2),
        make_run(seed=1, noise=1.5, name="b", config={"model": {"modalities": ["text"]}}),
    ]
    made = compare_runs(runs, names=["TEXT", "TEXT on text alone"], resamples=50)
    assert [row.cells["name"] for row in made.rows] == ["TEXT", "TEXT on text alone", "mean of the training labels"]
    first, second, constant = (row.cells for row in made.rows)
    assert len(first["mae"].values) == 2 and "difference" not in first
    assert second["difference"].mean == pytest.approx(second["mae"].mean - first["mae"].mean)
    assert second["difference"].low > 0
    assert math.isnan(constant["corr"].mean)
    _, target = columns(runs[0])
    assert constant["mae"].mean == pytest.approx(np.abs(target - 0.1).mean())
    assert 0 in made.best(made.column("mae"))


def test_baseline_without_its_constant_uses_stored_scores(make_run):
    folder = make_run(baseline=False)
    found = json.loads((folder / "scores.json").read_text())
    found["baseline"] = {"name": "mean", "test": {"mae": 1.4, "corr": None}}
    (folder / "scores.json").write_text(json.dumps(found))
    group = opened(folder)
    made = baseline(group, score_split(group, "test", resamples=0), "test")
    assert made.cells["mae"].values == (1.4,) and made.scorer is None


def test_baseline_from_training_rows(make_run):
    group = opened(make_run(baseline=False, sizes={"train": 30, "valid": 20, "test": 20}))
    made = baseline(group, score_split(group, "test", resamples=0), "test", resamples=0)
    assert f"{group[0].predictions['train'].target.mean():.3f}" in made.name


def test_without_any_baseline_there_is_a_sentence(make_run):
    made = compare_runs(make_run(baseline=False), resamples=20)
    assert len(made.rows) == 1 and any("baseline" in note for note in made.notes)


def test_runs_on_other_data_are_not_compared_but_shown(make_run):
    runs = [make_run(), make_run(task="classification")]
    made = compare_runs(runs, resamples=20)
    assert any("No difference is tested" in note for note in made.notes)


def test_labels_name_what_sets_a_configuration_apart(make_run):
    runs = opened(
        make_run(),
        make_run(
            name="b", config={"model": {"width": 64, "modalities": ["text", "audio", "vision"], "explanations": True}}
        ),
    )
    assert labels(group_seeds(runs)) == ["text", "text (model.width=64)"]


def test_published_table_sets_ours_apart(make_run):
    group = opened(make_run())
    made = published_table(group, score_split(group, "test", resamples=0), name="TEXT")
    assert made.rows[0].cells["name"] == "TEXT (ours)"
    text = next(row for row in made.rows if row.cells["name"] == "TEXT")
    assert text.cells["mae"].values == (0.666,) and text.cells["acc2_non0"].values == (pytest.approx(0.8872),)
    assert "minilm" in made.rows[0].cells["text"] and "Qwen" in text.cells["explanations"]
    assert all(row.cells["source"] for row in made.rows)
    assert (
        published_table(opened(make_run(seed=2, corpus="nowhere")), score_split(group, "test", resamples=0), name="x")
        is None
    )
