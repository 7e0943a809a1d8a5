"""Measured explanations say what was measured, in comparison with the training clips, and never look at a label."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from moodal.core.errors import MoodalError
from moodal.core.spec import Regression
from moodal.data.corpus import Clip, CorpusFacts, FeatureRecipe, RawCorpus
from moodal.data.ragged import Ragged
from moodal.explain.face import REST
from moodal.explain.measured import NAME, MeasuredExplainer, explain_corpus
from moodal.explain.segments import Segments, long_runs

pytest.importorskip("vaderSentiment")
FACTS = CorpusFacts(
    name="made", title="Made", language="en", task=Regression(-3, 3), protocol="mosi", source="here", licence="none"
)
STEPS = 100
AUDIO = FeatureRecipe(
    name="made",
    version="1",
    width=4,
    channels=("log_f0", "loudness", "mfcc_1", "mfcc_0"),
    settings={"hop": 160, "sample_rate": 16000},
)
VISION = FeatureRecipe(name="made", version="1", width=4, channels=("AU04_r", "AU12_r", "AU28_c", "face_0"))


def voice(
    *,
    pitch: float = 1.0,
    movement: float = 0.1,
    slope: float = 0.0,
    loud: float = 0.0,
    bright: float = 0.0,
    pause: int = 0,
):
    """(100, 4) steps of 10 ms: a wavering pitch, and a silent stretch of ``pause`` steps in the middle."""
    time = np.linspace(-0.5, 0.5, STEPS)
    log_f0 = pitch + slope * time + movement * np.sin(40 * time)
    middle = slice(STEPS // 2 - pause // 2, STEPS // 2 + pause - pause // 2)
    log_f0[middle] = 0.0
    loudness = loud + 0.1 * np.cos(30 * time)
    return np.stack([log_f0, loudness, np.full(STEPS, -bright), loudness], axis=1).astype(np.float32)


def corpus(voices=None, faces=None, texts=None, **clip) -> RawCorpus:
    """A corpus of training clips, except for the last two, which are valid and test."""
    size = len(voices or faces or texts)
    splits = ["train"] * (size - 2) + ["valid", "test"]
    texts = texts or ["it is a film"] * size
    clips = tuple(Clip(id=str(n), split=s, text=t, label=0.0, **clip) for n, (s, t) in enumerate(zip(splits, texts)))
    streams, recipes = {}, {}
    if voices:
        streams["audio"], recipes["audio"] = Ragged.from_rows(voices), AUDIO
    if faces:
        streams["vision"], recipes["vision"] = Ragged.from_rows([np.atleast_2d(np.float32(f)) for f in faces]), VISION
    return RawCorpus(facts=FACTS, clips=clips, streams=streams, recipes=recipes)


def told(raw: RawCorpus, role: str) -> list[str]:
    return [clip.explanations.get(role, "") for clip in explain_corpus(raw).clips]


@pytest.mark.parametrize(
    ("setting", "low", "high"),
    [
        ("pitch", "very low pitch", "very high pitch"),
        ("movement", "flat intonation", "very wide intonation"),
        ("slope", "pitch falling fast", "pitch rising fast"),
        ("loud", "very quiet", "very loud"),
        ("bright", "dark tone", "sharp tone"),
    ],
)
def test_voice_is_compared_with_the_training_clips(setting, low, high):
    levels = np.linspace(0.2, 1.0, 21)
    if setting == "slope":
        levels = levels - 0.6
    texts = told(corpus([voice(**{setting: float(level)}) for level in [*levels, levels[0], levels[-1]]]), "audio")
    assert low in texts[0] and low in texts[-2]
    assert high in texts[-1] and high not in texts[10]
    assert low not in texts[10]


def test_pauses_and_rate_without_word_times():
    raw = corpus([voice(pause=pause) for pause in [*range(20, 62, 2), 0, 60]])
    texts = told(raw, "audio")
    assert "hardly any pauses" in texts[-2]
    assert "very many pauses" in texts[-1]
    words = ["word " * n for n in [*range(1, 22), 1, 21]]
    rates = told(corpus([voice()] * 23, texts=words), "audio")
    assert "very slow speech" in rates[-2] and "very fast speech" in rates[-1]


def test_rate_and_pauses_come_from_word_times_without_any_audio():
    raw = corpus(texts=["one two three"] * 23)

    def spaced(gap: float):
        return (("one", 0.0, 0.3), ("two", 0.3 + gap, 0.6 + gap), ("three", 0.6 + gap, 0.9 + gap))

    gaps = [*np.linspace(0.3, 2.0, 21), 0.05, 2.0]
    raw = replace(raw, clips=tuple(replace(clip, words=spaced(float(gap))) for clip, gap in zip(raw.clips, gaps)))
    texts = told(raw, "audio")
    assert texts[-2] == "very fast speech, hardly any pauses"
    assert texts[-1] == "very slow speech, very many pauses"


def test_face_names_what_stands_out_strongest_first():
    grades = np.linspace(0, 5, 21)
    faces = [[g, 1.0 + 0.01 * n, 0.0, 9.0] for n, g in enumerate(grades)]
    texts = told(corpus(faces=[*faces, [5.0, 1.15, 0.0, 9.0], [0.0, 1.0, 0.0, 9.0]]), "vision")
    assert texts[-2] == "brows lowered strongly, lip corners pulled up"
    assert texts[-1] == REST


def test_presence_tells_a_unit_that_has_no_intensity():
    faces = [[1.0, 1.0, float(n % 4 == 0), 0.0] for n in range(22)]
    texts = told(corpus(faces=[*faces, [1.0, 1.0, 1.0, 0.0]]), "vision")
    assert "lips sucked in" in texts[-1]
    assert "lips sucked in" not in texts[1]


def test_comment_counts_the_words_of_the_lexicon():
    texts = told(
        corpus(texts=["a good and great film", "horrible, sad story", "the train leaves", "not good", ""]), "comment"
    )
    assert texts[0] == "2 positive words, no negative words; the words lean positive."
    assert texts[1] == "no positive words, 2 negative words; the words lean negative."
    assert texts[2] == "no positive words, no negative words; the words lean neither way."
    assert texts[3] == "1 positive word, no negative words; the words lean negative."
    assert texts[4] == ""


def test_other_languages_get_a_comment_only_from_an_english_text():
    raw = corpus(texts=["好"] * 3)
    raw = replace(raw, facts=replace(FACTS, language="zh"))
    assert told(raw, "comment") == [""] * 3
    raw = replace(raw, clips=tuple(replace(clip, notes={"raw_text_en": "good"}) for clip in raw.clips))
    assert told(raw, "comment")[0].startswith("1 positive word")


def test_labels_are_never_read():
    raw = corpus([voice(pitch=1 + n / 10) for n in range(9)], faces=[[n, 9 - n, 0, 0] for n in range(9)])
    other = replace(
        raw, clips=tuple(replace(clip, label=None if n % 2 else 3.0 - n) for n, clip in enumerate(raw.clips))
    )
    assert [c.explanations for c in explain_corpus(raw).clips] == [c.explanations for c in explain_corpus(other).clips]


def test_only_training_clips_set_the_scale():
    voices = [voice(loud=n / 10) for n in range(10)]
    texts = told(corpus([*voices, voice(loud=0.5), voice(loud=0.5)]), "audio")
    extreme = told(corpus([*voices, voice(loud=90), voice(loud=-90)]), "audio")
    assert texts[:10] == extreme[:10]
    assert "very loud" in extreme[10] and "very quiet" in extreme[11]


def test_a_missing_stream_is_not_explained():
    voices = [voice(pitch=1 + n / 10) for n in range(8)]
    raw = corpus(
        [*voices, np.zeros((0, 4), np.float32), voices[3]], faces=[[n, 1, 0, 0] for n in range(9)] + [np.zeros((0, 4))]
    )
    clips = explain_corpus(raw).clips
    assert "audio" not in clips[8].explanations and "vision" in clips[8].explanations
    assert "vision" not in clips[9].explanations and "audio" in clips[9].explanations


def test_an_unvoiced_clip_says_nothing_of_pitch():
    silent = voice(loud=1.0)
    silent[:, 0] = 0
    text = told(corpus([*[voice(pitch=1 + n / 10, loud=n / 10) for n in range(8)], silent, silent]), "audio")[-1]
    assert "pitch" not in text and "loud" in text


def test_unknown_channels_are_not_explained():
    raw = corpus([voice(pitch=1 + n / 10) for n in range(6)], faces=[[n, 1, 0, 0] for n in range(6)])
    names = {m: replace(r, channels=()) for m, r in raw.recipes.items()}
    clips = explain_corpus(replace(raw, recipes=names)).clips
    assert all(set(clip.explanations) == {"comment"} for clip in clips)


def test_given_explanations_stay_and_makers_are_kept():
    raw = corpus(
        [voice(pitch=1 + n / 10) for n in range(6)],
        explanations={"audio": "as given"},
        explained_by={"audio": "somebody"},
    )
    clip = explain_corpus(raw).clips[0]
    assert clip.explanations["audio"] == "as given"
    assert clip.explained_by == {"audio": "somebody", "comment": NAME}


def test_a_run_explains_new_clips_as_its_own():
    voices = [voice(pitch=1 + n / 10, loud=n / 10) for n in range(10)]
    raw = corpus(voices, faces=[[n, 9 - n, 0, 0] for n in range(10)])
    kept = json.loads(json.dumps(MeasuredExplainer.fit(raw).state()))
    explainer = MeasuredExplainer.from_state(kept)
    assert [c.explanations for c in explain_corpus(raw, explainer).clips] == [
        c.explanations for c in explain_corpus(raw).clips
    ]
    alone = corpus([voices[9]] * 3, faces=[[9, 0, 0, 0]] * 3)
    assert explainer.explain(alone)[0] == MeasuredExplainer.fit(raw).explain(raw)[9]
    with pytest.raises(MoodalError, match="explained by other-2"):
        MeasuredExplainer.from_state({**kept, "name": "other-2"})


def test_segments_equal_numpy_on_each_row():
    draw = np.random.default_rng(0)
    rows = [draw.normal(size=n) for n in (5, 0, 1, 9, 0)]
    row = np.repeat(np.arange(5), [len(r) for r in rows])
    segments = Segments(np.concatenate(rows), row, 5)
    for name, expected in (("mean", np.mean), ("deviation", np.std)):
        found = getattr(segments, name)()
        np.testing.assert_allclose(found[[0, 2, 3]], [expected(rows[n]) for n in (0, 2, 3)], atol=1e-12)
        assert np.isnan(found[[1, 4]]).all()
    for share in (0.0, 0.05, 0.5, 0.9, 1.0):
        np.testing.assert_allclose(
            segments.quantile(share)[[0, 2, 3]], [np.quantile(rows[n], share) for n in (0, 2, 3)]
        )
    lines = [np.polyfit(np.linspace(-0.5, 0.5, len(rows[n])), rows[n], 1)[0] for n in (0, 3)]
    np.testing.assert_allclose(segments.slope()[[0, 3]], lines)
    assert np.isnan(Segments(np.zeros(0), np.zeros(0, int), 3).quantile(0.5)).all()


def test_long_runs_count_inner_runs_only():
    flags = np.array([1, 1, 0, 1, 1, 1, 0, 1, 0, 1, 0, 1, 1, 0], dtype=bool)
    row = np.array([0] * 8 + [1] * 6)
    assert long_runs(flags, row, 3, 2).tolist() == [3, 2, 0]
    assert long_runs(flags, row, 3, 1).tolist() == [3, 3, 0]
