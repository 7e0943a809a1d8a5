"""The joined corpus: labels of acted emotions, rows without sound, ids and groups that cannot collide."""

from __future__ import annotations

import csv
import gzip
import json

import numpy as np
import pytest

from moodal.core.errors import DataError
from moodal.data import CORPORA
from moodal.data.corpus import Clip
from moodal.data.mosi_ravdess import judged

soundfile = pytest.importorskip("soundfile", reason="reading sound needs the extra 'audio'")

EMOTIONS = ("neutral", "calm", "happy", "sad", "angry", "fearful", "disgust", "surprised")


@pytest.fixture
def root(tmp_path):
    """A clip of CMU-MOSI in each split; of RAVDESS every emotion in train, strong happiness in valid, sadness in test."""
    mosi, acted = tmp_path / "cmu_mosi", tmp_path / "ravdess"
    mosi.mkdir()
    acted.mkdir()
    with (mosi / "mosi.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["id", "video_id", "text", "label", "split", "split_utt"])
        for n, split in enumerate(("train", "valid", "test")):
            table.writerow([f"v{n}_1", f"v{n}", "a fine film", 1.2 - n, split, "train"])
    with gzip.open(mosi / "mosi_word_sequences.jsonl.gz", "wt") as file:
        for n in range(3):
            file.write(json.dumps({"id": f"v{n}_1", "words": [], "start": [], "end": []}) + "\n")
    wave = 0.3 * np.sin(2 * np.pi * 150 * np.arange(8000) / 16000)
    with (acted / "ravdess.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["id", "emotion", "emotion_id", "intensity", "text", "actor", "split"])
        for n, name in enumerate([*EMOTIONS, "happy", "sad"]):
            split, actor = ("train", 1) if n < 8 else (("valid", 2) if n == 8 else ("test", 3))
            table.writerow([f"c{n}", name, EMOTIONS.index(name), 2 if n == 8 else 1, "Dogs.", actor, split])
            soundfile.write(acted / f"c{n}.flac", wave, 16000)
    return tmp_path


def read(root, cache):
    reader = CORPORA["mosi_ravdess"]
    return reader.read(root, reader.Config(workers=1), cache)


def test_words_that_were_judged_and_voices_that_were_acted(root, tmp_path):
    raw = read(root, tmp_path / "cache")
    labels = {clip.id: clip.label for clip in raw.clips}
    assert [labels[f"cmu_mosi/v{n}_1"] for n in range(3)] == pytest.approx([1.2, 0.2, -0.8])
    # Of sadness this sentence and repetition are labelled, of the other negative emotions others.
    assert [labels[f"ravdess/c{n}"] for n in range(8)] == [0, 0, 1.5, -1.5, None, None, None, None]
    assert labels["ravdess/c8"] == 2.5  # strong intensity
    assert list(raw.streams) == ["audio"]
    assert (raw.streams["audio"].lengths > 0).tolist() == [False] * 3 + [True] * 10
    assert {clip.group.split("/")[0] for clip in raw.clips} == {"cmu_mosi", "ravdess"}


def test_as_many_voices_are_negative_as_positive():
    takes = [
        Clip(
            id=f"{emotion}{text}{repetition}", split="train", text=text, label=EMOTIONS.index(emotion),
            notes={"repetition": repetition, "intensity": "1"},
        )
        for emotion in EMOTIONS for text in ("Kids.", "Dogs.") for repetition in "12"
    ]  # fmt: skip
    labels = [clip.label for clip in judged(takes)]
    assert labels.count(1.5) == labels.count(-1.5) == 4
    negative = {EMOTIONS[int(clip.label)] for clip, label in zip(takes, labels, strict=True) if label == -1.5}
    assert negative == {"sad", "angry", "fearful", "disgust"}


def test_without_sound_it_says_so(root, tmp_path):
    for file in (root / "ravdess").glob("*.flac"):
        file.unlink()
    with pytest.raises(DataError, match="sound"):
        read(root, tmp_path / "cache")
