"""The synthetic corpus: same settings, same corpus; and its label needs words, voice, face and their timing."""

from __future__ import annotations

import numpy as np
import pytest

from moodal.core.errors import MoodalError
from moodal.core.spec import Classification
from moodal.data import CORPORA
from moodal.data.synthetic import (
    AGREEMENT_DEVIATION,
    POLARITY_DEVIATION,
    VOCABULARY,
    SyntheticConfig,
    _Part,
    make,
    polarity,
)

SMALL = SyntheticConfig(train=40, valid=10, test=12)


@pytest.fixture(scope="module")
def corpus():
    return make(SyntheticConfig(train=1500, valid=10, test=500))


def explained(corpus, design: np.ndarray, *, ridge: float = 1.0) -> float:
    """R squared on test of a ridge regression fitted on train, over the rows of ``design`` (N, D)."""
    label = np.array([clip.label for clip in corpus.clips])
    train, test = corpus.positions("train"), corpus.positions("test")
    mean, middle = design[train].mean(axis=0), label[train].mean()
    x = design - mean
    weights = np.linalg.solve(x[train].T @ x[train] + ridge * np.eye(x.shape[1]), x[train].T @ (label[train] - middle))
    error = label[test] - middle - x[test] @ weights
    return 1 - float(np.mean(error**2) / np.var(label[test]))


def words(corpus) -> np.ndarray:
    """(N, vocabulary) word counts."""
    number = {word: i for i, word in enumerate(VOCABULARY)}
    rows = np.zeros((len(corpus.clips), len(VOCABULARY)))
    for row, clip in zip(rows, corpus.clips):
        for word in clip.text.strip(".").lower().split():
            row[number[word]] += 1
    return rows


def pooled(corpus, modality: str) -> np.ndarray:
    """(N, 4 D) mean, deviation, largest and smallest value of each channel."""
    stream = corpus.streams[modality]
    return np.stack([np.concatenate([f(x, axis=0) for f in (np.mean, np.std, np.max, np.min)]) for x in stream])


def grid(corpus, modality: str) -> np.ndarray:
    """(N, 16 D) each clip resampled to 16 steps: everything one modality says, with its timing."""
    rows = [x[np.linspace(0, len(x) - 1, 16).round().astype(int)].ravel() for x in corpus.streams[modality]]
    return np.stack(rows)


def agreement(corpus) -> np.ndarray:
    """(N, 1) sum over time of voice movement times face movement."""
    audio, vision = corpus.streams["audio"], corpus.streams["vision"]
    loud = corpus.recipes["audio"].channels.index("loudness")
    smile = corpus.recipes["vision"].channels.index("AU12_r")
    centred = lambda column: column - column.mean()
    return np.array([[centred(a[:, loud]) @ centred(v[:, smile])] for a, v in zip(audio, vision)])


def test_label_needs_words_and_the_timing_of_voice_and_face(corpus):
    text = words(corpus)
    assert 0.2 < explained(corpus, text) < 0.5
    for modality in ("audio", "vision"):
        assert explained(corpus, grid(corpus, modality), ridge=100.0) < 0.05
    both = np.column_stack([pooled(corpus, "audio"), pooled(corpus, "vision")])
    # also the products of what pooling keeps are silent
    products = (both[:, :6, None] * both[:, None, 24:30]).reshape(len(both), -1)
    assert explained(corpus, np.column_stack([both, products]), ridge=100.0) < 0.05
    judged = np.array([[polarity(clip.text)] for clip in corpus.clips])
    assert explained(corpus, np.column_stack([judged, agreement(corpus)])) > 0.75


def test_word_vectors_tell_what_words_tell(corpus):
    means = np.stack([x.mean(axis=0) for x in corpus.streams["text"]])
    assert explained(corpus, means) > 0.25


def test_constants_are_those_of_the_corpus():
    part = _Part(SyntheticConfig(train=20000), "train")
    agreement = part.order["audio"] * part.order["vision"] * part.size_of["audio"] * part.size_of["vision"]
    assert part.polarity.std() == pytest.approx(POLARITY_DEVIATION, rel=0.03)
    assert agreement.std() == pytest.approx(AGREEMENT_DEVIATION, rel=0.03)
    few = _Part(SMALL, "train")
    assert [polarity(clip.text) for clip in few.clips()] == pytest.approx(few.polarity)


def test_same_settings_same_corpus():
    one, two, other = make(SMALL), make(SMALL), make(SyntheticConfig(train=40, valid=10, test=12, seed=1))
    assert one.clips == two.clips
    assert all(np.array_equal(one.streams[m].values, two.streams[m].values) for m in one.streams)
    assert one.clips != other.clips


def test_sizes_of_one_split_change_no_other_split():
    larger = make(SyntheticConfig(train=80, valid=10, test=12))
    small = make(SMALL)
    assert [c for c in small.clips if c.split == "test"] == [c for c in larger.clips if c.split == "test"]


def test_rows_streams_and_recipes_belong_together():
    corpus = make(
        SyntheticConfig(train=20, valid=5, test=5, audio_width=1, vision_width=40, text_width=3, vision_every=2)
    )
    assert [len(corpus.positions(s)) for s in ("train", "valid", "test")] == [20, 5, 5]
    assert {m: s.width for m, s in corpus.streams.items()} == {"text": 3, "audio": 1, "vision": 40}
    for modality, stream in corpus.streams.items():
        assert len(stream) == 30
        assert corpus.recipes[modality].width == stream.width
    assert len(set(corpus.recipes["vision"].channels)) == 40
    assert np.array_equal(corpus.streams["vision"].lengths, -(-corpus.streams["audio"].lengths // 2))
    assert [len(c.words) for c in corpus.clips] == list(corpus.streams["text"].lengths)
    assert len({c.id for c in corpus.clips}) == 30
    groups = [{c.group for c in corpus.clips if c.split == s} for s in ("train", "valid", "test")]
    assert not (groups[0] & groups[1] or groups[0] & groups[2] or groups[1] & groups[2])


def test_words_are_timed_in_order_within_the_clip():
    corpus = make(SMALL)
    for clip, frames in zip(corpus.clips, corpus.streams["audio"].lengths):
        times = np.array([word[1:] for word in clip.words])
        assert (np.diff(times.ravel()) >= 0).all()
        assert times.min() >= 0 and times.max() <= frames * SMALL.hop


def test_missing_modalities_are_empty_rows_and_never_both():
    corpus = make(SyntheticConfig(train=400, valid=5, test=5, missing=0.3))
    audio, vision = (corpus.streams[m].lengths == 0 for m in ("audio", "vision"))
    assert 0.2 < audio.mean() < 0.4 and 0.2 < vision.mean() < 0.4
    assert not (audio & vision).any()


def test_classes_are_about_equally_frequent_and_the_reader_gives_them():
    reader = CORPORA["synthetic"]
    corpus = reader.read(None, reader.Config(task="classification", train=2000), None)
    assert corpus.facts.task == Classification(("negative", "neutral", "positive"))
    shares = np.bincount([int(c.label) for c in corpus.clips]) / len(corpus.clips)
    assert shares.min() > 0.25 and len(shares) == 3


def test_chosen_modalities_only():
    corpus = make(SyntheticConfig(train=5, valid=2, test=2, modalities=("audio",)))
    assert list(corpus.streams) == ["audio"] and corpus.clips[0].text == "" and corpus.clips[0].words == ()
    assert list(make(SyntheticConfig(train=5, valid=2, test=2, word_vectors=False)).streams) == ["audio", "vision"]


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"steps": (4, 8)}, "the shortest 10 or more"),
        ({"train": 0}, "1 or more"),
        ({"missing": 0.9}, "share from 0 to 0.5"),
        ({"modalities": ("smell",)}, "text, audio, vision"),
        ({"text_share": 2.0}, "share from 0 to 1"),
    ],
)
def test_settings_are_checked(settings, sentence):
    with pytest.raises(MoodalError, match=sentence):
        SyntheticConfig(**settings)
