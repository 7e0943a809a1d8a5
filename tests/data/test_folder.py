"""The corpus "folder": its facts and its task are those of the store, and its recipes train on it."""

from __future__ import annotations

import numpy as np
import pytest
import tiny_encoder
from extract_fakes import RECIPES
from toys import TINY_TEXT

from moodal.build import configure, train
from moodal.core.errors import DataError
from moodal.core.spec import Classification, Regression
from moodal.data import CORPORA
from moodal.data.corpus import SPLITS
from moodal.data.folder import FACTS, Folder, folder_facts
from moodal.data.store import save_store
from moodal.features.clip import ExtractedClip, to_corpus
from moodal.metrics.protocol import PROTOCOLS
from moodal.prepare import read_corpus

pytestmark = pytest.mark.usefixtures("one_thread")
MOODS = Classification(("glad", "sad"))
SCALE = Regression(0.0, 10.0)


def write_store(path, task, *, count=24):
    """Clips whose voice and face follow the label; one has neither words nor face."""
    drawn = np.random.default_rng(0)
    labels = [float(n % 2) if task is MOODS else float(n % 11) for n in range(count)]
    clips = []
    for number, label in enumerate(labels):
        heard, seen = drawn.normal(label, 0.1, (8, 3)), drawn.normal(label, 0.1, (20, 2))
        streams = {"audio": heard.astype(np.float32), "vision": seen.astype(np.float32)}
        blind = {"vision": "No face."} if number == 0 else {}
        clips.append(
            ExtractedClip(
                id=f"c{number}", path=f"c{number}.mp4", seconds=2.0, text="" if blind else "the film was good",
                streams={m: s for m, s in streams.items() if m not in blind}, absent=blind,
            )
        )  # fmt: skip
    splits = [SPLITS[max(0, number % 4 - 1)] for number in range(count)]
    raw = to_corpus(clips, folder_facts(task, language="de", licence="CC0"), RECIPES, splits=splits, labels=labels)
    save_store(raw, path)
    return path


@pytest.fixture(scope="module", params=[SCALE, MOODS], ids=["numbers", "classes"])
def stored(request, tmp_path_factory):
    return request.param, write_store(tmp_path_factory.mktemp("folder") / "store", request.param)


def test_facts_and_task_are_those_of_the_store(stored):
    task, path = stored
    raw = read_corpus(configure("folder/text", {"data": {"root": str(path)}}).config)
    assert raw.facts.task == task and raw.facts.protocol == ("avec" if task is SCALE else "emotion")
    assert (raw.facts.name, raw.facts.language, raw.facts.licence) == ("folder", "de", "CC0")
    assert len(raw.clips) == 24 and raw.streams["vision"].lengths[0] == 0 and raw.recipes == RECIPES


@pytest.mark.parametrize("task", [Regression(-3, 3), Regression(-1, 1), Regression(1, 5), Regression(0, 1), MOODS])
def test_the_protocol_exists_and_is_for_such_a_task(task):
    protocol = PROTOCOLS[folder_facts(task).protocol]
    assert protocol.task == ("regression" if isinstance(task, Regression) else "classification")


def test_where_there_is_no_store_the_way_to_one_is_told(tmp_path):
    (tmp_path / "file").touch()
    for root, found in (
        (None, "data.root is not set"),
        (tmp_path, "holds no store"),
        (tmp_path / "file", "is a file, not a store"),
        (tmp_path / "none", "does not exist"),
    ):
        with pytest.raises(
            DataError, match=rf"folder: .*{found}.*moodal extract CLIPS --labels labels.csv --out STORE"
        ):
            Folder.read(root, Folder.Config(), tmp_path)


def test_a_store_of_another_corpus_is_refused(tmp_path):
    raw = CORPORA["synthetic"].read(None, CORPORA["synthetic"].Config(train=4, valid=2, test=2), tmp_path)
    save_store(raw, tmp_path / "store")
    with pytest.raises(DataError, match="synthetic"):
        Folder.read(tmp_path / "store", Folder.Config(), tmp_path)


def test_verify_finds_a_changed_store(tmp_path):
    path = write_store(tmp_path / "store", SCALE)
    values = path / "audio.values.npy"
    content = bytearray(values.read_bytes())
    content[-1] ^= 1
    values.write_bytes(bytes(content))
    assert len(Folder.read(path, Folder.Config(), tmp_path).clips) == 24
    with pytest.raises(DataError, match="was changed since it was written"):
        Folder.read(path, Folder.Config(verify=True), tmp_path)


@pytest.mark.parametrize("method", ["text", "linear"])
def test_the_recipes_train_on_it(method, stored, tmp_path, monkeypatch):
    monkeypatch.setenv("MOODAL_CACHE", str(tmp_path / "cache"))
    task, path = stored
    encoder = tiny_encoder.write(tmp_path / "encoder")
    data = {"root": str(path), "text": {"encoder": str(encoder), "max_tokens": 8}}
    settings = {"data": data, "train": {"epochs": 3, "batch": 8}, "device": {"accelerator": "cpu"}}
    cfg = configure(f"folder/{method}", settings | ({"model": TINY_TEXT} if method == "text" else {})).config
    scores = train(cfg, folder=tmp_path / "run").scores
    key = PROTOCOLS[folder_facts(task).protocol].selection
    assert np.isfinite(scores["test"][key])


def test_the_facts_of_the_table_are_placeholders():
    assert Folder.facts is FACTS and not FACTS.size and not FACTS.widths
