"""The report as its reader sees it: complete, right, escaped, self-contained, and never a crash."""

from __future__ import annotations

import base64
import json
import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import pytest

from moodal.bench.report import report_run
from moodal.bench.runs import StoredRun
from moodal.bench.worst import largest_errors
from moodal.core.errors import DataError
from moodal.metrics.protocol import score


class Reader(HTMLParser):
    """Tags with their attributes, and the text outside style sheets."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.words, self._silent = [], [], False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._silent = tag == "style"

    def handle_endtag(self, tag):
        self._silent = False

    def handle_data(self, data):
        if not self._silent:
            self.words.append(data)

    @property
    def text(self):
        return " ".join(self.words)


def pictures(html):
    return [base64.b64decode(code) for code in re.findall(r"data:image/svg\+xml;base64,([A-Za-z0-9+/=]+)", html)]


def test_it_is_one_file_that_loads_nothing(reported):
    reader = Reader(reported["html"])
    assert reported["out"].name == "report.html"
    assert not {"script", "link", "iframe", "object", "embed", "form"} & {tag for tag, _ in reader.tags}
    for tag, attributes in reader.tags:
        for name, value in attributes.items():
            assert not name.startswith("on"), (tag, name)
            if name in ("src", "href", "srcset", "action", "data"):
                assert value.startswith(("data:image/svg+xml;base64,", "#")), value
    assert "url(" not in reported["html"] and "@import" not in reported["html"]
    for picture in pictures(reported["html"]):
        found = re.findall(rb'(?:xlink:)?href="([^"]*)"', picture)
        assert all(target.startswith((b"#", b"data:image/png;base64,")) for target in found)


def test_untrusted_text_is_shown_as_text(reported):
    reader = Reader(reported["html"])
    assert "<script>alert" not in reported["html"]
    assert "<script>alert('x')</script>" in reader.text
    assert "img src=http://evil.example" not in reported["html"].replace("&lt;img src=http://evil.example", "")


def test_every_section_and_picture_is_there(reported):
    text = Reader(reported["html"]).text
    for title in (
        "Scores",
        "Comparison",
        "Beside published numbers",
        "Training and predictions",
        "Experts and gates",
        "The ten largest errors",
        "How it was made",
        "Make it again",
    ):
        assert title in text
    drawn = pictures(reported["html"])
    assert len(drawn) == 5
    for picture in drawn:
        assert ElementTree.fromstring(picture).tag.endswith("svg")
    assert "Left out" not in text
    for fact in (
        "Seeds 1, 2",
        "2026-07-01",
        "lowest validation MAE",
        "2 of 3 planned",
        "minilm",
        "abc123",
        "not committed",
        "sha256:abc",
        "3 950 000",
    ):
        assert fact in text, fact
    assert "moodal train mosi/text --config" in text


def test_scores_are_those_of_the_predictions(reported):
    tables = [StoredRun.open(folder).predictions["test"] for folder in reported["folders"][:2]]
    found = [score("mosi", t.prediction[t.labelled], t.target[t.labelled]) for t in tables]
    for key, scale, places in (("mae", 1, 3), ("corr", 1, 3), ("acc2_non0", 100, 2), ("acc7", 100, 2)):
        values = np.array([scores[key] for scores in found]) * scale
        assert f"{values.mean():.{places}f} ± {values.std(ddof=1):.{places}f}" in reported["html"]
    assert "(2 of 3 seeds)" in reported["html"]


def test_comparison_has_all_three(reported):
    text = Reader(reported["html"]).text
    assert "text (model.explanations=false, model.modalities=[" in text
    assert "mean of the training labels" in text
    assert "paired bootstrap" in text


def test_the_ten_worst_are_in_order_with_their_texts(reported):
    run = StoredRun.open(reported["folders"][0])
    table = run.predictions["test"]
    errors = np.where(table.labelled, np.abs(table.prediction - table.target), -1)
    expected = [table.ids[row] for row in np.argsort(-errors, kind="stable")[:10]]
    assert re.findall(r"<code>(test_\d+)</code>", reported["html"]) == expected
    assert f"the voice of {expected[0]} rises" in reported["html"]
    assert "audio (measured-1)" in reported["html"]
    assert reported["html"].count("class='gate'") == 10


def test_classification(make_run):
    folder = make_run(task="classification", noise=0.3, stages=("first", "second"))
    html = report_run(folder, folder / "page.html", resamples=20).read_text()
    text = Reader(html).text
    assert "3 classes" in text and "UAR %" in text and "joy <b>" in text and "joy <b>" not in html
    assert "Left out" not in text and len(pictures(html)) == 5
    assert "No published number" in text
    run = StoredRun.open(folder)
    worst = largest_errors(run, "test")
    assert all(clip.target != clip.prediction for clip in worst)
    assert [clip.error for clip in worst] == sorted((clip.error for clip in worst), reverse=True)


def test_a_run_with_nothing_but_settings(make_run):
    folder = make_run()
    for file in folder.iterdir():
        if file.name != "config.yaml":
            file.unlink()
    text = Reader(report_run(folder, folder, resamples=20).read_text()).text
    assert "predictions.csv is missing" in text and "history.csv is missing" in text
    assert (
        "inspection.safetensors is missing" in text
        and "Seed 1 has no scores" in text
        and "scores.json is missing" in text
    )


@pytest.mark.parametrize(
    "names",
    [("data.json",), ("history.csv", "inspection.safetensors", "texts.jsonl"), ("predictions.csv", "scores.json")],
)
def test_damaged_pieces_cost_only_themselves(make_run, names):
    folder = make_run(sizes={"valid": 12, "test": 12})
    for name in names:
        (folder / name).write_bytes(b"\x00\xff{")
    text = Reader(report_run(folder, folder, resamples=5).read_text()).text
    assert all(str(folder / name) in text for name in names)
    assert "please report this" not in text


def test_no_gates_no_texts_no_finite_correlation(make_run):
    folder = make_run(inspection=False, texts=False, constant=True, sizes={"valid": 12, "test": 12})
    text = Reader(report_run(folder, folder, resamples=5).read_text()).text
    assert "not defined" in text and "Texts are left out" in text and "No transcript" in text
    assert "please report this" not in text


def test_odd_json_is_no_crash(make_run):
    folder = make_run(sizes={"valid": 12, "test": 12})
    found = json.loads((folder / "scores.json").read_text())
    found |= {"selection": None, "baseline": 3, "valid": [1]}
    (folder / "scores.json").write_text(json.dumps(found))
    data = json.loads((folder / "data.json").read_text())
    (folder / "data.json").write_text(
        json.dumps(data | {"features": [], "text": None, "sizes": "many", "explainer": None})
    )
    assert "please report this" not in report_run(folder, folder, resamples=5).read_text()


def test_no_run_is_refused(tmp_path):
    with pytest.raises(DataError, match="There is no run"):
        report_run(tmp_path, tmp_path / "out.html")
    assert not (tmp_path / "out.html").exists()
