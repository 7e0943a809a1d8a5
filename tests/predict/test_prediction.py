"""A prediction as JSON, as text and as curves."""

from __future__ import annotations

import json

import numpy as np
import pytest

from moodal.data.corpus import FeatureRecipe
from moodal.data.extractors import LibrosaSettings
from moodal.features.audio import Librosa33
from moodal.features.face_signals import CHANNELS
from moodal.prediction import MOST_POINTS, Prediction, format_prediction, signals_of

SCORE = Prediction(
    id="clip", value=1.25, low=-3.0, high=3.0, without={"text": 0.5, "audio": 1.5}, change={"text": 0.75, "audio": -0.25},
    gates={"text": 0.6, "audio": 0.3, "vision": 0.1}, experts=[[0.7, 0.3, 0.0]],
    explanations={"audio": "high pitch, loud", "comment": "one positive word"}, text="that was great",
    words=(("that", 0.0, 0.2), ("was", 0.2, 0.4), ("great", 0.5, 0.9)), text_source="clip.srt",
    absent={"vision": "No face in any of 50 frames."}, notes=("Be careful.",), seconds=4.2,
    spent={"decode": 0.25, "model": 0.05},
)  # fmt: skip
CLASS = Prediction(
    id="clip", label="happy", probabilities={"sad": 0.2, "happy": 0.8}, change={"audio": 0.4},
    without={"audio": {"sad": 0.6, "happy": 0.4}},
)  # fmt: skip


def test_json_holds_everything_but_the_curves():
    shown = SCORE.as_json()
    assert json.loads(json.dumps(shown, allow_nan=False)) == shown
    assert set(shown) == set(vars(SCORE)) - {"signals"}
    assert shown["words"][2] == ["great", 0.5, 0.9] and shown["without"] == {"text": 0.5, "audio": 1.5}
    assert CLASS.as_json()["probabilities"] == {"sad": 0.2, "happy": 0.8} and CLASS.as_json()["value"] is None


def test_the_text_of_a_score():
    lines = format_prediction(SCORE).splitlines()
    assert lines[0] == "clip  (4.2 s)" and lines[1] == "  score +1.25  on a scale from -3 to 3"
    text, audio, vision = (
        next(line for line in lines if line.startswith(f"    {m}")) for m in ("text", "audio", "vision")
    )
    assert "+0.750" in text and text.count("#") == 12 and "gate 0.60" in text  # a full bar is a quarter of the scale
    assert "-0.250" in audio and audio.split()[2] == "----" and "#" not in audio
    assert "gate 0.10" in vision
    for line in (
        "  voice: high pitch, loud", "  words: one positive word", "  said (clip.srt): that was great",
        "  no vision: No face in any of 50 frames.", "  note: Be careful.", "  time: 0.30 s: decode 0.25 s, model 0.05 s",
    ):  # fmt: skip
        assert line in lines
    assert format_prediction(SCORE).isascii()


def test_the_text_of_classes_and_of_nothing():
    lines = format_prediction(CLASS).splitlines()
    assert lines[1].split()[:2] == ["happy", "80.0%"] and lines[2].split()[:2] == ["sad", "20.0%"]
    assert lines[1].count("#") == 19 and "how far each modality moves the probability of happy" in lines[3]
    empty = Prediction(id="clip", absent={"text": "No words."})
    assert format_prediction(empty).splitlines() == [
        "clip", "  no prediction: the clip has nothing that the run reads", "  no text: No words.",
    ]  # fmt: skip


def test_pitch_is_in_hertz_and_has_gaps():
    recipe = Librosa33(LibrosaSettings(pitch_low=100.0)).recipe()
    stream = np.zeros((3, recipe.width), np.float32)
    stream[:, recipe.channels.index("log_f0")] = (0.0, 1.0, 0.5)
    stream[:, recipe.channels.index("mfcc_0")] = (-30, -20, -10)
    pitch, loudness = signals_of({"audio": stream}, {"audio": np.array([0.0, 0.5, 1.0])}, {"audio": recipe})
    assert pitch.as_json()["values"] == [None, 200.0, pytest.approx(141.4214, abs=1e-3)]
    assert (pitch.unit, loudness.name) == ("Hz", "loudness") and loudness.as_json()["values"] == [-30, -20, -10]
    assert Prediction(id="", signals=(pitch,), seconds=2.0, words=(("a", 0.0, 1.0),)).timeline() == {
        "seconds": 2.0, "words": [["a", 0.0, 1.0]], "signals": [pitch.as_json()],
    }  # fmt: skip


def test_times_follow_from_the_step_where_they_are_not_given():
    recipe = FeatureRecipe(name="n", version="1", width=1, channels=("loudness",), settings={"hop": 0.5})
    (signal,) = signals_of({"audio": np.ones((3, 1))}, {}, {"audio": recipe})
    assert signal.times.tolist() == [0.0, 0.5, 1.0]
    timeless = FeatureRecipe(name="n", version="1", width=1, channels=("loudness",))
    assert signals_of({"audio": np.ones((3, 1))}, {}, {"audio": timeless}) == ()
    assert signals_of({}, {}, {"audio": recipe}) == ()


def test_faces_are_drawn_by_named_channels_alone():
    recipe = FeatureRecipe(name="face_mesh", version="1", width=len(CHANNELS), channels=CHANNELS, settings={"hop": 0.1})
    found = signals_of({"vision": np.ones((2, len(CHANNELS)), np.float32)}, {}, {"vision": recipe})
    assert [signal.name for signal in found] == list(CHANNELS)
    assert {s.name: s.title for s in found}["AU12_r"] == "lip corners pulled up"
    assert {s.name: s.unit for s in found}["head_yaw"] == "degrees"
    points = FeatureRecipe(name="x", version="1", width=2, channels=("eye_lmk_x_0", "p_rx"), settings={"hop": 0.1})
    assert signals_of({"vision": np.ones((2, 2))}, {}, {"vision": points}) == ()


def test_long_curves_are_thinned():
    recipe = FeatureRecipe(
        name="n", version="1", width=1, channels=("log_f0",), settings={"hop": 0.01, "pitch_low": 50.0}
    )
    stream = np.zeros((4 * MOST_POINTS + 3, 1))
    stream[::5] = 1.0  # in each block of five one step has a pitch
    stream[:5] = 0.0
    shown = signals_of({"audio": stream}, {}, {"audio": recipe})[0].as_json()
    assert len(shown["values"]) == len(shown["times"]) <= MOST_POINTS
    assert shown["values"][0] is None and set(shown["values"][1:]) == {100.0}
    assert shown["times"][1] == pytest.approx(0.07)
