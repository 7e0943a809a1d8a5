"""The RAVDESS reader on a made folder of its form (short tones for voices), and on the real one where it is there."""

from __future__ import annotations

import csv
import io
import logging
import shutil
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from moodal.core.errors import ConfigError, DataError
from moodal.core.spec import Classification
from moodal.data import CORPORA
from moodal.data.extractors import LibrosaSettings
from moodal.data.ravdess import EMOTIONS, Ravdess, RavdessConfig

soundfile = pytest.importorskip("soundfile")
pytest.importorskip("librosa")
REAL = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "ravdess"
RATE = 16000
QUICK = LibrosaSettings(pitch_resolution=0.9, hop=512)
SPLITS = {1: "train", 2: "train", 23: "valid", 24: "test"}
CLIPS = [(f"03-01-0{emotion + 1}-01-01-01-{actor:02d}", emotion, actor) for actor in SPLITS for emotion in (0, 4)]
COLUMNS = ["id", "emotion", "emotion_id", "intensity", "statement", "text", "repetition", "actor", "sex", "split"]


def write_table(folder: Path, change=None, columns=COLUMNS) -> None:
    with (folder / "ravdess.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore")
        writer.writeheader()
        for name, emotion, actor in CLIPS:
            row = {
                "id": name,
                "emotion": EMOTIONS[emotion],
                "emotion_id": str(emotion),
                "intensity": "1",
                "statement": "1",
            }
            row |= {"text": "Kids are talking by the door.", "repetition": "1", "actor": str(actor), "sex": "male"}
            row |= {"split": SPLITS[actor]}
            if change is not None:
                change(row)
            writer.writerow(row)


def sound(number: int, form: str) -> bytes:
    file = io.BytesIO()
    time = np.arange(int(0.25 * RATE)) / RATE
    soundfile.write(file, 0.3 * np.sin(2 * np.pi * (120 + 20 * number) * time), RATE, format=form)
    return file.getvalue()


def write_vectors(folder: Path, **change) -> None:
    vectors = np.repeat(np.arange(len(CLIPS))[:, None], 35, axis=1).astype(np.float32)
    arrays = {
        "id": np.array([c[0] for c in CLIPS]),
        "vision_au35": vectors,
        "au_names": np.array([f"AU{n:02d}_r" for n in range(35)]),
    }
    np.savez(folder / "ravdess_utterance_features.npz", **{**arrays, **change})


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Four clips in an archive, four as loose files, and the cache of their features."""
    folder = tmp_path_factory.mktemp("ravdess")
    write_table(folder)
    write_vectors(folder)
    with tarfile.open(folder / "flac16k_actors01-02.tar", "w") as archive:
        for number, (name, *_) in enumerate(CLIPS[:4]):
            content = sound(number, "FLAC")
            member = tarfile.TarInfo(f"some/{name}.flac")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    (folder / "Actor_23").mkdir()
    for number, (name, *_) in enumerate(CLIPS[4:], start=4):
        (folder / "Actor_23" / f"{name}.wav").write_bytes(sound(number, "WAV"))
    read(folder)
    return folder


@pytest.fixture
def folder(prepared, tmp_path):
    """A copy to be changed; the features of its sounds are in the cache already."""
    return Path(shutil.copytree(prepared, tmp_path / "ravdess"))


def read(folder, **settings):
    return Ravdess.read(folder, RavdessConfig(audio=QUICK, workers=1, **settings), folder / "cache")


def change_row(number, **values):
    return lambda row: row.update(values) if row["id"] == CLIPS[number][0] else None


def test_clips_labels_and_split_of_the_table(prepared):
    raw = read(prepared)
    assert raw.facts.task == Classification(EMOTIONS) and raw.facts.protocol == "emotion"
    assert [clip.label for clip in raw.clips] == [c[1] for c in CLIPS]
    assert [clip.split for clip in raw.clips] == [SPLITS[c[2]] for c in CLIPS]
    assert raw.clips[-1].group == "actor-24" and raw.clips[0].text == "Kids are talking by the door."


def test_voice_is_frames_and_face_is_one_step(prepared):
    raw = read(prepared)
    assert raw.streams["audio"].width == 33 and raw.streams["audio"].lengths.min() >= 5
    assert raw.recipes["audio"].settings["hop"] == 512
    assert raw.streams["vision"].lengths.tolist() == [1] * len(CLIPS)
    assert raw.recipes["vision"].channels[4] == "AU04_r"
    pitch = [np.median(row[row[:, 0] > 0, 0]) for row in map(raw.streams["audio"].__getitem__, range(len(CLIPS)))]
    assert pitch == sorted(pitch)  # each clip has its own sound, from archive and files alike


def test_second_read_extracts_nothing(prepared, monkeypatch):
    from moodal.features.audio import Librosa33

    first = read(prepared).streams["audio"].values
    monkeypatch.setattr(Librosa33, "__call__", lambda *_: pytest.fail("a file was extracted again"))
    np.testing.assert_array_equal(read(prepared).streams["audio"].values, first)


def test_actor_lists_replace_the_split(prepared):
    raw = read(prepared, valid_actors=(1,), test_actors=(2, 24))
    assert {clip.group: clip.split for clip in raw.clips} == {
        "actor-01": "valid",
        "actor-02": "test",
        "actor-23": "train",
        "actor-24": "test",
    }
    assert raw.source["split"] == {"valid": [1], "test": [2, 24]}


def test_actor_lists_need_no_split_column(folder):
    write_table(folder, columns=COLUMNS[:-1])
    assert len(read(folder, valid_actors=(1,), test_actors=(2,)).clips) == len(CLIPS)
    with pytest.raises(DataError, match="has no column split"):
        read(folder)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"valid_actors": (1, 2), "test_actors": (2,)}, r"actors \[2\] are in valid_actors and in test_actors"),
        ({"test_actors": (2,)}, "belong together"),
        ({"workers": -1}, "workers is -1"),
    ],
)
def test_impossible_settings_are_sentences(settings, sentence):
    with pytest.raises(ConfigError, match=sentence):
        RavdessConfig(**settings)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (change_row(1, split="test"), r"clips of actors \[1\] into several splits"),
        (change_row(1, emotion="happy"), "has the emotion 'happy' and the emotion_id 4"),
        (change_row(1, emotion_id="8"), "expected a number from 0 to 7"),
        (change_row(1, emotion_id="nan"), "has the emotion_id 'nan'"),
        (change_row(1, id=CLIPS[0][0]), "twice"),
        (lambda row: row.update(split="train"), "the split valid and test is empty"),
    ],
)
def test_faults_of_the_table_are_sentences(folder, change, sentence):
    write_table(folder, change)
    with pytest.raises(DataError, match=sentence):
        read(folder)


def test_unknown_actor_is_a_sentence(prepared):
    with pytest.raises(DataError, match=r"name \[9\]; ravdess.csv has the actors \[1, 2, 23, 24\]"):
        read(prepared, valid_actors=(1,), test_actors=(9,))


def test_absent_sounds_and_faces_are_missing_and_counted(folder, caplog):
    (folder / "Actor_23" / f"{CLIPS[5][0]}.wav").unlink()
    vectors = np.ones((len(CLIPS), 35), np.float32)
    vectors[2, 3] = np.inf
    write_vectors(folder, vision_au35=vectors, id=np.array([*(c[0] for c in CLIPS[:-1]), "somebody else"]))
    with caplog.at_level(logging.WARNING):
        raw = read(folder)
    assert np.flatnonzero(raw.streams["audio"].lengths == 0).tolist() == [5]
    assert np.flatnonzero(raw.streams["vision"].lengths == 0).tolist() == [2, 7]
    assert "1 of 8 clips have no sound file" in caplog.text
    assert "1 of 8 clips have no vision_au35" in caplog.text


def test_one_modality_is_enough_and_none_is_a_sentence(folder):
    (folder / "ravdess_utterance_features.npz").unlink()
    assert set(read(folder).streams) == {"audio"}
    (folder / "flac16k_actors01-02.tar").unlink()
    shutil.rmtree(folder / "Actor_23")
    with pytest.raises(DataError, match="holds neither sound files"):
        read(folder)
    write_vectors(folder)
    assert set(read(folder).streams) == {"vision"}


def test_truncated_archive_is_a_sentence(folder):
    archive = folder / "flac16k_actors01-02.tar"
    archive.write_bytes(archive.read_bytes()[:700])
    with pytest.raises(DataError, match=r"flac16k_actors01-02.tar is no whole tar archive"):
        read(folder)


def test_missing_folder_says_what_to_set(tmp_path):
    for root in (None, tmp_path):
        with pytest.raises(DataError, match=r"(?=.*ravdess\.csv).*set data\.root"):
            Ravdess.read(root, RavdessConfig(), tmp_path)


def test_the_table_of_corpora_has_it():
    assert CORPORA["ravdess"] is Ravdess and Ravdess.Config is RavdessConfig


@pytest.mark.real
@pytest.mark.skipif(not REAL.is_dir(), reason="the shared RAVDESS folder is not beside the repository")
def test_real_folder_has_the_published_sizes(tmp_path, monkeypatch):
    from moodal.features.audio import Librosa33

    # Every sound is read; the slow pitch tracking is left out.
    monkeypatch.setattr(Librosa33, "__call__", lambda _, wave: np.full((len(wave) // 256, 33), wave.std(), np.float32))
    raw = Ravdess.read(REAL, RavdessConfig(workers=1), tmp_path)
    assert Counter(clip.split for clip in raw.clips) == {"train": 840, "valid": 180, "test": 180}
    assert Counter(clip.label for clip in raw.clips) == {0.0: 80, **{float(n): 160 for n in range(1, 8)}}
    assert raw.facts.size == {"train": 840, "valid": 180, "test": 180}
    assert raw.streams["vision"].lengths.tolist() == [1] * 1200
    seconds = raw.streams["audio"].lengths * 256 / RATE
    assert seconds.min() > 2.9 and seconds.max() < 5.3


@pytest.mark.real
@pytest.mark.skipif(not REAL.is_dir(), reason="the shared RAVDESS folder is not beside the repository")
def test_real_voices_tell_men_from_women(tmp_path):
    raw_table = (REAL / "ravdess.csv").read_text().splitlines()
    kept = [line for line in raw_table if line.startswith(("id,", "03-01-01-01-01-01-"))]
    (tmp_path / "ravdess.csv").write_text("\n".join(kept) + "\n")
    for path in REAL.glob("*.tar"):
        (tmp_path / path.name).symlink_to(path)
    raw = Ravdess.read(tmp_path, RavdessConfig(), tmp_path / "cache")
    rows = [raw.streams["audio"][row] for row in range(len(raw.clips))]
    pitch = np.array([np.median(row[row[:, 0] > 0, 0]) for row in rows])
    male = np.array([clip.notes["sex"] == "male" for clip in raw.clips])
    assert np.median(pitch[~male]) - np.median(pitch[male]) > 0.5  # octaves
