"""Clips to predictions: as the run itself computes them, whatever company, with what is absent absent."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny_encoder
import torch
from media_files import write_clip

from moodal.core.errors import DataError, MoodalError
from moodal.core.files import write_json
from moodal.data.extractors import LibrosaSettings
from moodal.features.audio import Librosa33
from moodal.features.clip import ExtractedClip
from moodal.features.words import WordSettings
from moodal.predictor import Predictor

pytestmark = pytest.mark.usefixtures("one_thread")
RUNS = ("frozen", "finetuned", "classes")


def answers(predictions) -> np.ndarray:
    """(N,) values or (N, C) probabilities."""
    return np.array([p.value if p.probabilities is None else list(p.probabilities.values()) for p in predictions])


def same(one, other, *, within: float) -> None:
    """Two predictions agree in every number and word but the times."""
    left, right = one.as_json(), other.as_json()
    assert left.keys() == right.keys()
    for name in left.keys() - {"spent"}:
        assert agree(left[name], right[name], within), name


def agree(left, right, within: float) -> bool:
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(agree(left[key], right[key], within) for key in left)
    if isinstance(left, list):
        return len(left) == len(right) and all(agree(a, b, within) for a, b in zip(left, right))
    if isinstance(left, float):
        return abs(left - right) <= within
    return left == right


@pytest.mark.parametrize("name", RUNS)
def test_the_test_split_is_predicted_as_the_run_itself_does(name, request):
    trained = request.getfixturevalue(name)
    found = trained.predictor.predict(trained.clips)
    np.testing.assert_allclose(answers(found), trained.table.prediction, atol=1e-5)
    assert tuple(p.id for p in found) == trained.table.ids
    if name != "classes":
        gates = [[p.gates[m] for m in ("text", "audio", "vision")] for p in found]
        np.testing.assert_allclose(gates, trained.table.inspection["gates"], atol=1e-5)
        np.testing.assert_allclose([p.experts for p in found], trained.table.inspection["routing"], atol=1e-5)


@pytest.mark.parametrize("method", ["linear", "mib", "emt_dlfr"])
def test_any_method_can_be_opened(method, train_tiny):
    trained = train_tiny(method)
    found = trained.predictor.predict(trained.clips)
    np.testing.assert_allclose(answers(found), trained.table.prediction, atol=1e-5)
    assert all(set(p.without) == {"text", *(m for m in ("audio", "vision") if m not in p.absent)} for p in found)


@pytest.mark.parametrize("name", RUNS)
def test_batched_equals_single_in_any_order(name, request):
    trained = request.getfixturevalue(name)
    predictor, clips = trained.predictor, trained.clips[:5]
    together = predictor.predict(clips)
    turned = predictor.predict(clips[::-1])[::-1]
    for clip, one, other in zip(clips, together, turned, strict=True):
        same(predictor.predict([clip])[0], one, within=1e-5)
        same(other, one, within=1e-5)


@pytest.mark.parametrize(
    ("name", "gone"),
    # TEXT here also reads the pace of the voice, which is told from words and sound together, so it is not in this list.
    [("classes", "text"), *((name, gone) for name in RUNS for gone in ("audio", "vision"))],
)
def test_without_is_the_prediction_of_the_clip_that_lacks_it(name, gone, request):
    trained = request.getfixturevalue(name)
    # No word times: they would still tell of the pace of a voice that is absent.
    whole = [replace(clip, words=()) for clip in trained.clips if {"audio", "vision"} <= set(clip.streams)][:4]
    lacking = [replace(clip, streams={m: s for m, s in clip.streams.items() if m != gone}) for clip in whole]
    assert whole
    for complete, other in zip(trained.predictor.predict(whole), trained.predictor.predict(lacking), strict=True):
        assert gone in other.absent and gone not in other.without
        left, removed = other.value, complete.without[gone]
        change = None if complete.value is None or left is None else complete.value - left
        if complete.probabilities is not None:
            left, change = other.probabilities, complete.probabilities[complete.label] - removed[complete.label]
        assert removed == pytest.approx(left, abs=1e-5)
        assert complete.change[gone] == pytest.approx(change, abs=1e-5)


def test_removing_the_text_removes_the_comment_and_nothing_else(finetuned):
    predictor = finetuned.predictor
    clip = next(c for c in finetuned.clips if {"audio", "vision"} <= set(c.streams))
    complete = predictor.predict([clip])[0]
    told = complete.explanations
    assert set(told) == {"audio", "vision", "comment"}
    given = [{"audio": told["audio"], "vision": told["vision"]}]
    silent = replace(clip, text="", words=())
    assert predictor.predict([silent], explanations=given)[0].value == pytest.approx(complete.without["text"], abs=1e-5)


def test_a_class_is_the_likeliest_and_probabilities_sum_to_one(classes):
    found = classes.predictor.predict(classes.clips)
    for prediction in found:
        assert prediction.value is None and prediction.low is None
        assert list(prediction.probabilities) == ["negative", "neutral", "positive"]
        assert sum(prediction.probabilities.values()) == pytest.approx(1, abs=1e-5)
        assert prediction.probabilities[prediction.label] == max(prediction.probabilities.values())
        assert prediction.gates is None and prediction.experts is None


def test_evidence_can_be_left_out(frozen):
    predictor, clips = frozen.predictor, frozen.clips
    for short, full in zip(predictor.predict(clips, evidence=False), predictor.predict(clips), strict=True):
        assert short.value == pytest.approx(full.value, abs=1e-5)
        assert short.without == {} and short.change == {} and full.change
        assert short.gates is not None


def test_what_is_told_of_a_clip(frozen):
    found = frozen.predictor.predict(frozen.clips)
    for clip, prediction in zip(frozen.clips, found, strict=True):
        assert prediction.absent == clip.absent
        assert set(prediction.change) == {"text", *clip.streams}
        assert sum(prediction.gates.values()) == pytest.approx(1, abs=1e-4)
        assert (prediction.low, prediction.high) == (-3.0, 3.0)
        assert prediction.text == clip.text and prediction.words == clip.words and prediction.text_source == "given"
        assert "A note of the extractor." in prediction.notes
        assert set(prediction.spent) == {"decode", "explain", "encode", "model"} and prediction.spent["decode"] == 0.25
        assert ("vision" in prediction.explanations) == ("vision" in clip.streams)
    assert any(clip.absent for clip in frozen.clips)


def test_explanations_are_those_of_the_run(frozen):
    """A clip is compared with the run's training clips, so the texts are those that were written beside the scores."""
    rows = [json.loads(line) for line in (frozen.folder / "texts.jsonl").read_text().splitlines()]
    stored = {row["id"]: row["explanations"] for row in rows if row["split"] == "test"}
    found = frozen.predictor.predict(frozen.clips)
    assert {p.id: dict(p.explanations) for p in found} == stored


def test_given_explanations_are_read_in_place_of_measured_ones(frozen):
    predictor, clip = frozen.predictor, frozen.clips[0]
    measured = predictor.predict([clip])[0]
    told = predictor.predict([clip], explanations=[{"audio": "very loud and very good"}])[0]
    assert told.explanations == {**measured.explanations, "audio": "very loud and very good"}
    assert told.value != measured.value


def test_a_run_of_stored_explanations_is_not_given_measured_ones(frozen, tmp_path):
    folder = Path(shutil.copytree(frozen.folder, tmp_path / "run"))
    config = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text(config.replace("explainer: measured", "explainer: stored"))
    stored, clip = Predictor.open(folder), frozen.clips[0]
    alone, measured = stored.predict([clip])[0], frozen.predictor.predict([clip])[0]
    assert "was trained with explanations by measured-1, and this clip has none" in " ".join(alone.notes)
    assert alone.value != measured.value and alone.explanations == measured.explanations  # to read, for people
    told = stored.predict([clip], explanations=[measured.explanations])[0]
    assert told.value == pytest.approx(measured.value, abs=1e-5) and not any("explanations" in n for n in told.notes)


def test_a_clip_with_nothing_to_read_has_no_prediction(frozen, classes):
    for trained in (frozen, classes):
        predictor, clip = trained.predictor, trained.clips[0]
        nothing = ExtractedClip(id="nothing", path="", seconds=1.0, absent={"audio": "The sound is silent."})
        empty, full = predictor.predict([nothing, clip])
        assert empty.value is None and empty.label is None and empty.probabilities is None and not empty.without
        assert empty.absent["audio"] == "The sound is silent." and set(empty.absent) == {"text", "audio", "vision"}
        same(full, predictor.predict([clip])[0], within=1e-5)


def test_text_alone(frozen, classes):
    predictor = frozen.predictor
    found = predictor.text("the film was very good .")
    assert found.value is not None and set(found.absent) == {"audio", "vision"} and found.text_source == "given"
    assert found.value != predictor.text("the film was very bad .").value
    with pytest.raises(MoodalError, match="The text is empty"):
        predictor.text("  ")
    unread = classes.predictor.text("the film was good .")
    assert unread.label is None and "synthetic-words" in unread.absent["text"]


def test_nothing_is_written(frozen, tmp_path, monkeypatch):
    for name in ("MOODAL_CACHE", "TMPDIR"):
        monkeypatch.setenv(name, str(tmp_path))
    before = {path: path.stat().st_mtime_ns for path in frozen.folder.rglob("*")}
    assert Predictor.open(frozen.folder).predict(frozen.clips[:3])[0].value is not None
    assert not list(tmp_path.iterdir())
    assert {path: path.stat().st_mtime_ns for path in frozen.folder.rglob("*")} == before


def test_long_clips_are_cut_and_say_so(train_tiny):
    predictor = Predictor.open(train_tiny(model__max_steps=26, data__audio__statistics=False).folder)
    draw = np.random.default_rng(0)
    stream = draw.standard_normal((80, 6)).astype(np.float32)
    long, short = (
        ExtractedClip(id=str(n), path="", seconds=n / 10, streams={"audio": stream[:n]}, text="very good " * words)
        for n, words in ((80, 40), (26, 1))
    )
    found = predictor.predict([replace(long, text=""), replace(short, text="")])
    assert "no more than 2.6 s of the audio, and here are 8.0" in " ".join(found[0].notes) and not found[1].notes
    assert "fills all 24 tokens" in " ".join(predictor.predict([long])[0].notes)


@pytest.mark.parametrize(
    ("stream", "said"),
    [
        (np.zeros((4, 5), np.float32), r"clip: audio has the shape \(4, 5\) and the run reads steps of 6 numbers"),
        (np.zeros(6, np.float32), r"clip: audio has the shape \(6,\)"),
        (np.full((4, 6), np.nan, np.float32), "clip: audio holds numbers that are not finite"),
    ],
)
def test_streams_of_another_shape_are_refused(frozen, stream, said):
    clip = ExtractedClip(id="clip", path="", seconds=1.0, streams={"audio": stream})
    with pytest.raises(DataError, match=said):
        frozen.predictor.predict([clip])


def test_no_clips_and_wrong_numbers_of_explanations(frozen):
    predictor = frozen.predictor
    assert predictor.predict([]) == []
    with pytest.raises(MoodalError, match="2 rows of explanations were given for 1 clips"):
        predictor.predict(frozen.clips[:1], explanations=[{}, {}])
    with pytest.raises(MoodalError, match="voice is no explanation; they are audio, vision, comment"):
        predictor.predict(frozen.clips[:1], explanations=[{"voice": "loud"}])


def test_numbers_that_are_not_finite_are_no_prediction(train_tiny):
    trained = train_tiny("linear")
    with torch.no_grad():
        for parameter in trained.predictor.run.method.parameters():
            parameter.fill_(float("nan"))
    (found,) = trained.predictor.predict(trained.clips[:1])
    assert found.value is None and not found.change and "no finite number" in found.notes[-1]


def test_facts(frozen, classes):
    facts = frozen.predictor.facts
    assert (facts["method"], facts["corpus"], facts["source"]) == ("text", "synthetic", str(frozen.folder))
    assert facts["scores"] == json.loads((frozen.folder / "scores.json").read_text())["test"]
    assert facts["task"] == {"kind": "regression", "low": -3.0, "high": 3.0}
    assert facts["modalities"] == ["text", "audio", "vision"] and set(facts["features"]) == {"audio", "vision"}
    assert json.loads(json.dumps(facts)) == facts
    assert set(classes.predictor.facts["features"]) == {"text", "audio", "vision"}


def test_an_encoder_of_other_weights_is_refused(frozen, tmp_path):
    other = tiny_encoder.write(tmp_path / "other", seed=1)
    with pytest.raises(MoodalError, match=r"was trained with the text encoder .* and .*other here is another"):
        Predictor.open(frozen.folder, encoder=str(other))
    moved = tiny_encoder.write(tmp_path / "moved")
    found = Predictor.open(frozen.folder, encoder=str(moved)).predict(frozen.clips)
    assert (answers(found) == answers(frozen.predictor.predict(frozen.clips))).all()


@pytest.fixture(scope="module")
def hearing(train_tiny, tmp_path_factory) -> Path:
    """A run whose voice is as wide as librosa_33, and is said to be it."""
    source = train_tiny(reader__audio_width=33, data__audio__statistics=False).folder
    folder = tmp_path_factory.mktemp("hearing")
    for file in source.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    data, recipe = json.loads((folder / "data.json").read_text()), Librosa33(LibrosaSettings()).recipe()
    data["features"]["audio"] |= vars(recipe)
    write_json(folder / "data.json", data)
    return folder


def test_a_file_is_scored(hearing, tmp_path):
    write_clip(tmp_path / "clip.wav", 1.5)
    predictor = Predictor.open(hearing, words=WordSettings(recogniser="none"))
    found = predictor.clip(tmp_path / "clip.wav", text="the film was good .", start=0.25)
    assert found.id == "clip" and found.seconds == pytest.approx(1.25, abs=0.1)
    assert found.value is not None and set(found.change) == {"text", "audio"}
    assert found.absent["vision"] and found.text == "the film was good ."
    assert {"decode", "audio", "explain", "encode", "model"} <= set(found.spent)
    (pitch, loudness) = found.signals
    assert pitch.name == "pitch" and pitch.unit == "Hz" and loudness.name == "loudness"
    assert float(np.nanmedian(pitch.values)) == pytest.approx(140, rel=0.03)


def test_what_the_run_does_not_read_can_be_watched(train_tiny, monkeypatch):
    """A stream that is there for the eye alone is drawn and changes nothing."""
    from moodal import predictor as module

    monkeypatch.setattr(module, "_WATCHED", {"vision": "librosa_33"})  # any extractor will do
    trained = train_tiny(model__modalities=["text", "audio"], model__explanations=False)
    watched = {"vision": np.ones((3, Librosa33().recipe().width), np.float32)}
    seen = [replace(clip, streams={**clip.streams, **watched}) for clip in trained.clips]
    watching = Predictor.open(trained.folder, watch=True)
    assert watching.modalities == ("text", "audio") and set(watching.recipes) == {"audio"}
    np.testing.assert_allclose(answers(watching.predict(seen)), trained.table.prediction, atol=1e-5)
