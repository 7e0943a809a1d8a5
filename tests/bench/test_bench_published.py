"""Published numbers are read as printed, and a faulty file is refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

import moodal.bench.published as module
from moodal.bench.published import load, published
from moodal.core.errors import DataError
from moodal.methods import METHODS

FILE = Path(module.__file__).with_name("published.yaml")


def test_results_of_the_paper():
    mosi = {row.name: row.scores for row in published("cmu_mosi")}
    assert mosi["TEXT"] == pytest.approx({"acc2_has0": 0.8644, "acc2_non0": 0.8872, "mae": 0.666, "corr": 0.829})
    assert set(mosi) == {"TEXT", "KuDA", "ALMT", "DEVA", "GPT-4o", "Qwen2.5-VL"}
    assert {row.name: row.scores["mae"] for row in published("sims")} == {"TEXT": 0.353, "KuDA": 0.408}
    assert published("ravdess") == []


def test_ablation_rows_are_those_of_the_method():
    rows = published("mosei", table="ablation")
    assert [row.ours for row in rows] == list(METHODS["text"].ablations)
    assert all(set(row.scores) == {"acc2_has0", "acc2_non0", "acc7", "mae", "corr"} for row in rows)


def edited(tmp_path, edit):
    content = yaml.safe_load(FILE.read_text())
    edit(content)
    file = tmp_path / "published.yaml"
    file.write_text(yaml.safe_dump(content))
    return file


def _row(content):
    return content["tables"][0]["rows"][0]


@pytest.mark.parametrize(
    ("edit", "sentence"),
    [
        (lambda c: _row(c)["scores"].update(maee=1.0), "no metric 'maee'"),
        (lambda c: _row(c)["scores"].update(mae="low"), "a number was expected"),
        (lambda c: _row(c)["scores"].update(acc2_has0=864.4), "expected 0 to 100"),
        (lambda c: c["tables"][0].update(percent=[]), "listed under 'percent'"),
        (lambda c: c["tables"][0].update(source="nobody"), "not among sources"),
        (lambda c: _row(c).update(protocol="nobody"), "not among protocols"),
        (lambda c: _row(c).update(colour="red"), "no key colour"),
        (lambda c: _row(c).update(scores={}), "no scores"),
        (lambda c: c.pop("sources"), "'sources'"),
    ],
)
def test_faults_are_named(tmp_path, edit, sentence):
    with pytest.raises(DataError, match=sentence):
        load(edited(tmp_path, edit))
