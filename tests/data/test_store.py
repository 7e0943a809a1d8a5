"""A store gives back what was saved, is there whole or not at all, and says what is wrong with a damaged one."""

from __future__ import annotations

import errno
import json
from dataclasses import replace

import numpy as np
import pytest

from moodal.core.errors import DataError
from moodal.core.spec import Classification
from moodal.data import CORPORA, store
from moodal.data.corpus import Clip, FeatureRecipe
from moodal.data.ragged import Ragged
from moodal.data.store import open_store, read_manifest, save_store, verify_store
from moodal.data.synthetic import SyntheticConfig, make


@pytest.fixture(scope="module")
def raw():
    corpus = make(SyntheticConfig(train=8, valid=3, test=4, missing=0.3))
    extra = replace(
        corpus.clips[0],
        label=None,
        labels={"text": 0.2},
        explanations={"audio": "She laughs."},
        explained_by={"audio": "file"},
        notes={"reason": "因为"},
    )
    tokens = Ragged.from_rows([np.arange(i, dtype=np.int64) for i in range(15)])
    return replace(
        corpus,
        clips=(extra, *corpus.clips[1:]),
        tokens={"text": tokens},
        token_recipe=FeatureRecipe(name="bert-base-uncased", version="1", width=1, settings={"a": [1, 2]}),
        source={"file": "x.pkl", "sha256": "0"},
    )


@pytest.fixture
def saved(raw, tmp_path):
    save_store(raw, tmp_path / "corpus")
    return tmp_path / "corpus"


def left(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_comes_back_as_it_was(raw, saved):
    found = open_store(saved, corpus="synthetic")
    assert found.clips == raw.clips
    assert (found.facts, found.recipes, found.token_recipe) == (raw.facts, raw.recipes, raw.token_recipe)
    assert found.source == raw.source
    for name in raw.streams:
        assert np.array_equal(found.streams[name].values, raw.streams[name].values)
        assert np.array_equal(found.streams[name].offsets, raw.streams[name].offsets)
    assert np.array_equal(found.tokens["text"].values, raw.tokens["text"].values)
    assert left(saved.parent) == ["corpus"]


def test_arrays_are_mapped_and_read_only(saved):
    values = open_store(saved).streams["audio"].values
    assert isinstance(values, np.memmap) and not values.flags.writeable


def test_classes_and_streams_without_steps_come_back(tmp_path, raw):
    facts = replace(raw.facts, task=Classification(("sad", "glad")))
    empty = Ragged(np.zeros((0, 5), np.float32), np.zeros(16, np.int64))
    streams = {"audio": empty}
    recipes = {"audio": FeatureRecipe(name="none", version="1", width=5)}
    save_store(
        replace(raw, facts=facts, streams=streams, recipes=recipes, tokens={}, token_recipe=None), tmp_path / "s"
    )
    found = open_store(tmp_path / "s")
    assert found.facts.task == facts.task and found.tokens == {} and found.token_recipe is None
    assert found.streams["audio"].lengths.tolist() == [0] * 15 and found.streams["audio"].width == 5


def test_report_is_kept(raw, tmp_path):
    save_store(raw, tmp_path / "s", report={"nan": 3})
    assert read_manifest(tmp_path / "s")["report"] == {"nan": 3}


def test_another_corpus_is_refused_by_name(saved):
    with pytest.raises(DataError, match="holds synthetic, not mosi"):
        open_store(saved, corpus="mosi")


def test_existing_store_is_replaced_only_when_asked(raw, saved):
    smaller = make(SyntheticConfig(train=2, valid=1, test=1))
    with pytest.raises(DataError, match="already holds a store"):
        save_store(smaller, saved)
    assert len(open_store(saved).clips) == 15
    save_store(smaller, saved, overwrite=True)
    assert len(open_store(saved).clips) == 4 and left(saved.parent) == ["corpus"]


def test_other_folders_and_files_are_never_replaced(raw, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("words")
    (tmp_path / "file").write_text("words")
    for name in ("mine", "file"):
        with pytest.raises(DataError, match="not a store, so it is left alone"):
            save_store(raw, tmp_path / name, overwrite=True)
    assert left(tmp_path / "mine") == ["thesis.txt"]
    (tmp_path / "empty").mkdir()
    save_store(raw, tmp_path / "empty")
    assert len(open_store(tmp_path / "empty").clips) == 15


class FullDisk:
    """Stands for a file on a disk that is full after ``room`` bytes."""

    room = 3000

    def __init__(self, file):
        self.file = file

    def __getattr__(self, name):
        return getattr(self.file, name)

    def write(self, data):
        FullDisk.room -= len(data)
        if FullDisk.room < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return self.file.write(data)


@pytest.mark.parametrize("room", [0, 3000, 9000])
def test_full_disk_leaves_nothing_and_keeps_the_old_store(raw, saved, monkeypatch, room):
    class Hashing(store._Hashing):
        def __init__(self, file):
            super().__init__(FullDisk(file))

    monkeypatch.setattr(FullDisk, "room", room)
    monkeypatch.setattr(store, "_Hashing", Hashing)
    with pytest.raises(DataError, match="disk is full") as caught:
        save_store(raw, saved.parent / "new")
    assert "\n" not in str(caught.value)
    with pytest.raises(DataError, match="disk is full"):
        save_store(raw, saved, overwrite=True)
    assert left(saved.parent) == ["corpus"]
    verify_store(saved)


def test_failed_rename_puts_the_old_store_back(raw, saved, monkeypatch):
    rename = store.Path.rename

    def failing(self, target):
        if self.name.startswith(".") and not self.name.endswith(".old"):
            raise OSError(errno.EIO, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(store.Path, "rename", failing)
    with pytest.raises(DataError, match="could not be written"):
        save_store(raw, saved, overwrite=True)
    assert left(saved.parent) == ["corpus"]
    verify_store(saved)


def test_interruption_leaves_nothing(raw, tmp_path, monkeypatch):
    def stop(path, array):
        raise KeyboardInterrupt

    monkeypatch.setattr(store, "_write_array", stop)
    with pytest.raises(KeyboardInterrupt):
        save_store(raw, tmp_path / "corpus")
    assert left(tmp_path) == []


def test_rows_must_match_the_clips(raw, tmp_path):
    with pytest.raises(DataError, match="text has 15 rows and there are 14 clips"):
        save_store(replace(raw, clips=raw.clips[1:]), tmp_path / "s")
    with pytest.raises(DataError, match=r"audio has no recipe|text has no recipe"):
        save_store(replace(raw, recipes={}), tmp_path / "s")


def test_missing_and_truncated_files_are_named(saved):
    audio = saved / "audio.values.npy"
    whole = audio.read_bytes()
    audio.write_bytes(whole[:-10])
    with pytest.raises(
        DataError, match=r"audio.values.npy has \d+ bytes and the manifest says \d+; the copy is incomplete"
    ):
        open_store(saved)
    audio.unlink()
    with pytest.raises(DataError, match=r"audio.values.npy is missing"):
        open_store(saved)
    audio.write_bytes(b"x" * len(whole))
    with pytest.raises(DataError, match=r"audio.values.npy is damaged"):
        open_store(saved)


def test_damaged_table_names_the_line(saved):
    table = saved / "table.jsonl"
    lines = table.read_bytes().splitlines(keepends=True)
    lines[2] = b"x" * (len(lines[2]) - 1) + b"\n"
    table.write_bytes(b"".join(lines))
    with pytest.raises(DataError, match=r"table.jsonl line 3 is not a clip"):
        open_store(saved)


def test_changed_values_are_found_by_verify_alone(saved):
    assert "audio.values.npy" in verify_store(saved)
    values = np.load(saved / "audio.values.npy", mmap_mode="r+")
    values[0, 0] += 1
    values.flush()
    open_store(saved)
    with pytest.raises(DataError, match=r"audio.values.npy was changed"):
        verify_store(saved)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda m: m | {"format": 99}, "store format 99 and this version reads 1"),
        (lambda m: {k: v for k, v in m.items() if k != "streams"}, "lacks streams"),
        (lambda m: m | {"clips": 14}, "15 rows and there are 14 clips"),
        (lambda m: m | {"sizes": {"train": 15}}, "table.jsonl has"),
        (lambda m: m | {"facts": {}}, "manifest.json is damaged"),
        (
            lambda m: m | {"files": {k: v for k, v in m["files"].items() if "audio.off" not in k}},
            "does not list audio.offsets",
        ),
        (lambda m: [], "manifest.json is damaged"),
    ],
)
def test_manifest_faults_give_a_sentence(saved, change, sentence):
    path = saved / "manifest.json"
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    with pytest.raises(DataError, match=sentence):
        open_store(saved)


def test_no_json_in_the_manifest(saved):
    (saved / "manifest.json").write_text("{")
    with pytest.raises(DataError, match=r"manifest.json is damaged"):
        open_store(saved)


@pytest.mark.parametrize("name", ["mosi", "mosei", "sims", "sims_v2"])
def test_stored_readers_open_root_or_the_folder_of_their_name(name, tmp_path):
    reader = CORPORA[name]
    save_store(tiny(reader.facts), tmp_path / "all" / name)
    for root in (tmp_path / "all", tmp_path / "all" / name):
        found = reader.read(root, reader.Config(verify=True), tmp_path)
        assert found.facts is reader.facts and found.clips[0].id == "a"
    other = "sims" if name == "mosi" else "mosi"
    with pytest.raises(DataError, match=f"holds {name}, not {other}"):
        CORPORA[other].read(tmp_path / "all" / name, CORPORA[other].Config(), tmp_path)


def tiny(facts):
    raw = make(SyntheticConfig(train=1, valid=1, test=1, modalities=("text",), word_vectors=False))
    clips = tuple(Clip(id=i, split=s, text="", label=0.0) for i, s in zip("abc", ("train", "valid", "test")))
    return replace(raw, facts=facts, clips=clips)


def test_stored_readers_say_how_to_import(tmp_path):
    reader = CORPORA["mosi"]
    (tmp_path / "file.pkl").write_bytes(b"")
    for root, found in (
        (None, "data.root is not set"),
        (tmp_path / "no", "does not exist"),
        (tmp_path, "holds no store"),
    ):
        with pytest.raises(DataError, match=f"{found}.*moodal import FILE.pkl --corpus mosi"):
            reader.read(root, reader.Config(), tmp_path)
    with pytest.raises(DataError, match="is a file, not a store"):
        reader.read(tmp_path / "file.pkl", reader.Config(), tmp_path)
