"""The CMU-MOSI reader on a made folder of its form, and on the real one where it is there."""

from __future__ import annotations

import csv
import gzip
import json
import logging
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from moodal.core.errors import DataError, MoodalError
from moodal.data import CORPORA
from moodal.data.cmu_mosi import CmuMosi, CmuMosiConfig

REAL = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "cmu_mosi"
ROWS = [  # id, split, split_utt: two videos a split, two clips a video
    (f"{video}_{clip}", video, split, old)
    for video, split, old in [
        ("a", "train", "train"),
        ("b", "train", "train"),
        ("c", "valid", "train"),
        ("d", "valid", "test"),
        ("e", "test", "train"),
        ("f", "test", "test"),
    ]
    for clip in (1, 2)
]
COLUMNS = ["id", "video_id", "clip_id", "text", "text_zh", "label", "split", "split_utt", "start", "end"]


def write_table(folder: Path, change=None, columns=COLUMNS) -> None:
    """mosi.csv; ``change(row)`` may alter the dictionary of a row before it is written."""
    with (folder / "mosi.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore")
        writer.writeheader()
        for number, (name, video, split, old) in enumerate(ROWS):
            row = {
                "id": name,
                "video_id": video,
                "clip_id": "1",
                "text": "IT WAS  GOOD",
                "text_zh": "好",
                "label": str(number / 4 - 1),
            }
            row |= {"split": split, "split_utt": old, "start": "0", "end": "1"}
            if change is not None:
                change(row)
            writer.writerow(row)


def write_vectors(folder: Path, **change) -> None:
    size = len(ROWS)
    arrays = {"id": np.array([row[0] for row in ROWS])[::-1]}  # another order than the table's
    for name, width in (("text_cnn100", 100), ("audio_opensmile73", 73), ("video_3dcnn100", 100)):
        arrays[name] = np.repeat(np.arange(size)[::-1, None], width, axis=1).astype(np.float32)
    np.savez(folder / "mosi_utterance_features.npz", **{**arrays, **change})


@pytest.fixture
def folder(tmp_path):
    write_table(tmp_path)
    write_vectors(tmp_path)
    with gzip.open(tmp_path / "mosi_word_sequences.jsonl.gz", "wt") as file:
        for name, *_ in ROWS[:-1]:
            file.write(json.dumps({"id": name, "words": ["it", "was"], "start": [0.1, 0.5], "end": [0.4, 0.9]}) + "\n")
    return tmp_path


def read(folder, **settings):
    return CmuMosi.read(folder, CmuMosiConfig(**settings), folder / "cache")


def change_row(name, **values):
    return lambda row: row.update(values) if row["id"] == name else None


def test_official_split_with_text_words_and_the_permitted_vector(folder):
    raw = read(folder)
    clip = raw.clips[0]
    assert (clip.id, clip.text, clip.label, clip.group, clip.split) == ("a_1", "it was  good", -1.0, "a", "train")
    assert clip.words == (("it", 0.1, 0.4), ("was", 0.5, 0.9))
    assert [c.split for c in raw.clips] == [row[2] for row in ROWS]
    assert set(raw.streams) == {"audio"} and raw.recipes["audio"].name == "opensmile_73"
    assert [float(raw.streams["audio"][row][0, 0]) for row in range(len(ROWS))] == list(range(len(ROWS)))
    assert set(raw.source["files"]) == {"mosi.csv", "mosi_word_sequences.jsonl.gz", "mosi_utterance_features.npz"}


@pytest.mark.parametrize("name", ["text_cnn100", "video_3dcnn100"])
def test_vectors_trained_on_labels_are_refused_with_the_official_split(name):
    with pytest.raises(MoodalError, match=f"{name} was trained with the labels of most official test clips"):
        CmuMosiConfig(features=("audio_opensmile73", name))


def test_utterance_split_takes_whole_training_videos_for_validation(folder):
    raw = read(folder, split="utterance", features=("text_cnn100", "audio_opensmile73", "video_3dcnn100"))
    assert {m: s.width for m, s in raw.streams.items()} == {"text": 100, "audio": 73, "vision": 100}
    parts = {split: {c.group for c in raw.clips if c.split == split} for split in ("train", "valid", "test")}
    assert parts["test"] == {"d", "f"}
    assert len(parts["valid"]) == 1 and not parts["valid"] & parts["train"]
    assert parts["valid"] | parts["train"] == {"a", "b", "c", "e"}
    assert raw.facts.size == {}


def test_without_vectors_their_file_is_not_needed(folder):
    (folder / "mosi_utterance_features.npz").unlink()
    assert read(folder, features=()).streams == {}
    with pytest.raises(DataError, match=r"mosi_utterance_features.npz not found"):
        read(folder)


def test_clip_without_word_times_or_vector_is_missing_there(folder, caplog):
    vectors = np.ones((len(ROWS), 73), np.float32)
    vectors[3, 5] = np.nan
    write_vectors(folder, audio_opensmile73=vectors)
    with caplog.at_level(logging.WARNING):
        raw = read(folder)
    assert raw.clips[-1].words == ()
    assert "1 of 12 clips have no word times" in caplog.text
    assert raw.streams["audio"].lengths.tolist().index(0) == len(ROWS) - 1 - 3
    assert "holds NaN or inf" in caplog.text


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (change_row("b_1", label="nan"), "clip b_1 has the label 'nan'"),
        (change_row("b_1", label=""), "clip b_1 has the label ''"),
        (change_row("b_1", label="3.5"), "expected a number from -3 to 3"),
        (change_row("b_1", id="a_1"), r"names 1 id\(s\) twice, such as a_1"),
        (change_row("b_1", split="dev"), "has the split 'dev'; expected train, valid, test"),
        (
            lambda row: row.update(split="train" if row["split"] == "valid" else row["split"]),
            "the split valid is empty",
        ),
    ],
)
def test_faults_of_the_table_are_sentences(folder, change, sentence):
    write_table(folder, change)
    with pytest.raises(DataError, match=sentence):
        read(folder)


def test_missing_column_names_what_is_there(folder):
    write_table(folder, columns=[c for c in COLUMNS if c != "label"])
    with pytest.raises(DataError, match="has no column label; its columns are id, video_id"):
        read(folder)


def test_truncated_table_is_a_sentence(folder):
    content = (folder / "mosi.csv").read_bytes()
    (folder / "mosi.csv").write_bytes(content[: len(content) - 20])
    with pytest.raises(DataError, match=r"line 13 of mosi\.csv has too few columns"):
        read(folder)


@pytest.mark.parametrize("file", ["mosi_word_sequences.jsonl.gz", "mosi_utterance_features.npz"])
def test_truncated_files_are_sentences(folder, file):
    content = (folder / file).read_bytes()
    (folder / file).write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=rf"{file}.*[Gg]et it again"):
        read(folder)


def test_arrays_of_python_objects_are_refused(folder):
    write_vectors(folder, audio_opensmile73=np.array([{"a": 1}] * len(ROWS), dtype=object))
    with pytest.raises(DataError, match="no readable NPZ file of plain arrays"):
        read(folder)


def test_absent_array_and_wrong_shape_are_sentences(folder):
    write_vectors(folder, audio_opensmile73=np.ones((3, 73)))
    with pytest.raises(DataError, match=r"audio_opensmile73 has the shape \(3, 73\)"):
        read(folder)
    np.savez(folder / "mosi_utterance_features.npz", id=np.array(["a_1"]))
    with pytest.raises(DataError, match="has no array audio_opensmile73"):
        read(folder)


def test_missing_folder_and_files_say_what_to_set(tmp_path):
    for root in (None, tmp_path / "nowhere", tmp_path):
        with pytest.raises(DataError, match=r"(?=.*mosi\.csv).*set data\.root"):
            CmuMosi.read(root, CmuMosiConfig(), tmp_path)


def test_the_table_of_corpora_has_it():
    assert CORPORA["cmu_mosi"] is CmuMosi and CmuMosi.Config is CmuMosiConfig


@pytest.mark.real
@pytest.mark.skipif(not REAL.is_dir(), reason="the shared CMU-MOSI folder is not beside the repository")
def test_real_folder_has_the_published_sizes(caplog):
    raw = CmuMosi.read(REAL, CmuMosiConfig(), REAL)
    assert Counter(clip.split for clip in raw.clips) == {"train": 1284, "valid": 229, "test": 686}
    videos = {split: {c.group for c in raw.clips if c.split == split} for split in ("train", "valid", "test")}
    assert {split: len(v) for split, v in videos.items()} == {"train": 52, "valid": 10, "test": 31}
    assert raw.streams["audio"].lengths.tolist() == [1] * 2199 and raw.streams["audio"].width == 73
    assert sum(bool(clip.words) for clip in raw.clips) == 2198
    assert "published" not in caplog.text
    old = CmuMosi.read(REAL, CmuMosiConfig(split="utterance", features=("text_cnn100",)), REAL)
    sizes = Counter(clip.split for clip in old.clips)
    assert sizes["test"] == 752 and sizes["train"] + sizes["valid"] == 1447
    assert 150 < sizes["valid"] < 300
