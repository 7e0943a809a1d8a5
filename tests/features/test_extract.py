"""A folder of clips becomes a store: faults of the table, faulty clips, time limits, kills, the same bytes again."""

from __future__ import annotations

import csv
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
from extract_fakes import RECIPES, Broken, FakeExtractor, fake_clip, given, quick, write_folder
from mutants import write_mutants, write_seeds

from moodal.core.errors import ConfigError, DataError, Interrupted, MoodalError
from moodal.core.spec import Classification, Regression
from moodal.data import CORPORA
from moodal.data.store import open_store, read_manifest, verify_store
from moodal.features.clip import ClipSettings
from moodal.features.extract import extract_folder
from moodal.features.words import WordSettings
from moodal.features.work_folder import KeptFault, Key, WorkFolder, described
from moodal.features.workers import Crew, Outcome
from moodal.features.worklist import Item, LabelSettings, read_worklist

TESTS = Path(__file__).resolve().parents[1]


def listed(folder: Path, table: str, **settings):
    """The work list of a table; the files it names are made."""
    folder.mkdir(exist_ok=True)
    for row in csv.DictReader(table.splitlines()):
        name = row.get("file") or ""
        if name and not name.startswith(("/", "..")):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).touch()
    (folder / "labels.csv").write_text(table)
    return read_worklist(folder, folder / "labels.csv", settings=LabelSettings(**settings))


def faults(folder: Path, table: str, **settings) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        listed(folder, table, **settings)
    return caught.value.faults


# ---- the table


def test_a_table_becomes_work(tmp_path):
    work = listed(
        tmp_path,
        "file,label,id,split,text,start,end,group,language\n"
        'a.mp4,-1.5,first,train,"well, yes",,,ann,en\n'
        "b/c.mp4,2,,valid,,1.5,4,ben,en\n"
        "b/c.mp4,,,test,,4,,cem,en\n",
        low=-3,
        high=3,
        licence="CC0",
    )
    first, second, third = work.items
    assert (first.line, first.id, first.text, first.start, first.end, first.group) == (
        2,
        "first",
        "well, yes",
        0,
        None,
        "ann",
    )
    assert (second.id, second.start, second.end, second.text, second.split) == ("b/c@1.5-4", 1.5, 4.0, None, "valid")
    assert (third.id, third.label, third.line) == ("b/c@4", None, 4)
    assert work.facts.task == Regression(-3, 3) and work.facts.protocol == "mosi"
    assert work.facts.licence == "CC0" and work.facts.language == "en"
    assert work.notes == ("labels.csv: 1 of 3 clips have no label; they are kept unlabelled.",)


def test_every_fault_of_the_table_is_told_at_once(tmp_path):
    told = faults(
        tmp_path,
        "file,label,split,start,end,id\n"
        "a.mp4,1,train,,,x\n"
        "b.mp4,2,tset,3,2,y\n"
        ",3,valid,-1,,z\n"
        "../d.mp4,happy,,soon,,x\n"
        "e.mp4,nan,test,,,v,more\n"
        "f.mp4,0\n",
    )
    expected = (
        "line 3, column split: 'tset' is no split; give train, valid, test, or leave the whole column out; did you mean 'test'?",
        "line 3, column end: The clip ends at 2 s and starts at 3 s",
        "line 4, column file: It is empty",
        "line 4, column start: '-1' is no time",
        "line 5, column id: 'x' is the id of line 2 too",
        "line 5, column label: 'happy' is not a finite number, and most labels are numbers",
        "line 5, column split: It is empty, and other rows have one",
        "line 5, column file: '../d.mp4' is not below the folder",
        "line 5, column start: 'soon' is no time",
        "line 6, column id: The row has more cells than the heading",
        "line 6, column label: 'nan' is not a finite number",
        "line 7, column id: The row has fewer cells",
        "line 7, column split: It is empty",
    )
    assert len(told) == len(expected)
    for sentence in expected:
        assert any(f"labels.csv {sentence}" in fault for fault in told), (sentence, told)
    assert [int(fault.split("line ")[1].split(",")[0]) for fault in told] == [3, 3, 4, 4, 5, 5, 5, 5, 5, 6, 6, 7, 7]


@pytest.mark.parametrize(
    ("table", "settings", "sentence"),
    [
        ("file,lable\na.mp4,1\n", {}, "there is no column label; its columns are file, lable"),
        ("file;label\na.mp4;1\n", {}, "Separate columns by commas"),
        ("file,label,Text\na.mp4,1,x\n", {}, "column Text: there is no such column; did you mean 'text'?"),
        ("file,label,label\na.mp4,1,2\n", {}, "column label: it is there 2 times"),
        ("file,label\na.mp4,1\nb.mp4,2\n", {}, "There are clips of 2 groups"),
        ("file,label\na.mp4,\nb.mp4,\nc.mp4,\n", {}, "No clip has a label"),
        ("file,label\na.mp4,2\nb.mp4,2\nc.mp4,2\n", {}, "All labels are 2; give the ends of their scale"),
        ("file,label\na.mp4,sad\nb.mp4,sad\nc.mp4,sad\n", {}, "All labels are 'sad'"),
        ("file,label\na.mp4,2\nb.mp4,4\nc.mp4,1\n", {"low": 1, "high": 3}, "4 lies outside the scale of 1 to 3"),
        ("file,label\na.mp4,sad\nb.mp4,4\nc.mp4,glad\n", {}, "'4' is a number, and most labels are words"),
        ("file,label\na.mp4,sad\nb.mp4,gald\nc.mp4,glad\n", {"classes": ("sad", "glad")}, "did you mean 'glad'?"),
        ("file,label\na.mp4,1\na.wav,2\nc.mp4,0\n", {}, "give a column id, for it was made of the file"),
    ],
)
def test_what_is_wrong_with_a_table(table, settings, sentence, tmp_path):
    assert sentence in "\n".join(faults(tmp_path, table, **settings))


def test_many_faults_are_counted(tmp_path):
    told = faults(tmp_path, "file,label\n" + "".join(f"c{n}.mp4,{n},extra\n" for n in range(100)))
    assert len(told) == 41 and told[-1] == "labels.csv: and 60 more faults like these; correct these first."


def test_faults_of_folder_and_file(tmp_path):
    with pytest.raises(DataError, match="is not a folder"):
        read_worklist(tmp_path / "none", tmp_path / "labels.csv")
    with pytest.raises(DataError, match="does not exist; give a CSV file with the columns file, label"):
        read_worklist(tmp_path, tmp_path / "labels.csv")
    (tmp_path / "labels.csv").write_bytes(b"file,label\n\xff\xfe,1\n")
    with pytest.raises(DataError, match="no readable CSV file in UTF-8"):
        read_worklist(tmp_path, tmp_path / "labels.csv")
    (tmp_path / "labels.csv").write_text("file,label\na.mp4,1\nb.mp4,2\nc.mp4,3\n")
    with pytest.raises(DataError, match=r"none of the 3 files of labels.csv is in .*, such as a.mp4"):
        read_worklist(tmp_path, tmp_path / "labels.csv")


@pytest.mark.parametrize("wrong", [{"low": 2, "high": 1}, {"low": 0, "classes": ("a", "b")}, {"classes": ("a",)}])
def test_settings_of_labels_that_make_no_sense(wrong):
    with pytest.raises(MoodalError, match=r"give|must lie"):
        LabelSettings(**wrong)


def test_words_are_classes_and_numbers_can_be(tmp_path):
    work = listed(tmp_path, "file,label\na.mp4,sad\nb.mp4,glad\nc.mp4,sad\nd.mp4,\n")
    assert work.facts.task == Classification(("glad", "sad")) and work.facts.protocol == "emotion"
    assert [item.label for item in work.items] == [1, 0, 1, None]
    work = listed(tmp_path, "file,label\na.mp4,2\nb.mp4,1\nc.mp4,2\n", classes=("2", "1"))
    assert work.facts.task == Classification(("2", "1")) and [item.label for item in work.items] == [0, 1, 0]


@pytest.mark.parametrize(
    ("ends", "protocol"), [((-3, 3), "mosi"), ((-1, 1), "sims"), ((1, 7), "pom"), ((0, 10), "avec")]
)
def test_the_scale_chooses_the_protocol(ends, protocol, tmp_path):
    low, high = ends
    table = f"file,label\na.mp4,{low}\nb.mp4,{high}\nc.mp4,{(low + high) / 2}\n"
    assert listed(tmp_path, table).facts.protocol == protocol


def test_languages_of_a_corpus(tmp_path):
    rows = "file,label,language\na.mp4,1,{}\nb.mp4,2,{}\nc.mp4,3,\n"
    assert listed(tmp_path, rows.format("de", "de"), language="de").facts.language == "de"
    assert listed(tmp_path, rows.format("de", "fr")).facts.language == "mul"


def test_a_drawn_split_keeps_groups_whole_and_does_not_depend_on_order(tmp_path):
    rows = [f"c{n}.mp4,{n},speaker-{n // 4}" for n in range(80)]
    work = listed(tmp_path, "file,label,group\n" + "\n".join(rows) + "\n")
    by_group: dict[str, set[str]] = {}
    for item in work.items:
        by_group.setdefault(item.group, set()).add(item.split)
    assert all(len(splits) == 1 for splits in by_group.values())
    sizes = {split: sum(item.split == split for item in work.items) for split in ("train", "valid", "test")}
    assert sizes == {"train": 56, "valid": 12, "test": 12}
    turned = listed(tmp_path, "file,label,group\n" + "\n".join(rows[::-1]) + "\n")
    assert {item.id: item.split for item in turned.items} == {item.id: item.split for item in work.items}


def test_cuts_of_one_file_stay_together_and_shared_groups_are_told(tmp_path):
    rows = "".join(f"{name}.mp4,{start},{start}\n" for name in "abc" for start in range(5))
    work = listed(tmp_path, "file,label,start\n" + rows)
    assert all(len({item.split for item in work.items if item.file == f"{name}.mp4"}) == 1 for name in "abc")
    work = listed(tmp_path, "file,label,split,group\na.mp4,1,train,ann\nb.mp4,2,test,ann\nc.mp4,3,valid,ben\n")
    assert "1 groups have clips in several splits, such as ann" in work.notes[0]


# ---- results on disk


def item(**given) -> Item:
    return Item(**{"line": 2, "id": "a", "file": "a.clip", "label": 1.0, "split": "train", **given})


def test_a_result_comes_back_as_it_was_and_a_damaged_one_is_removed(tmp_path):
    work, key, clip = WorkFolder(tmp_path), Key("k", "c"), fake_clip(3)
    work.save(key, clip)
    found = work.load(key, id="a", path="a.clip")
    assert found is not None and (found.id, found.path, found.text, found.words) == (
        "a",
        "a.clip",
        clip.text,
        clip.words,
    )
    for modality, values in clip.streams.items():
        np.testing.assert_array_equal(found.streams[modality], values)
        np.testing.assert_array_equal(found.times[modality], clip.times[modality])
    np.testing.assert_array_equal(found.confidence, clip.confidence)
    (file,) = tmp_path.glob("*.npz")
    file.write_bytes(file.read_bytes()[:200])
    assert work.load(key, id="a", path="a.clip") is None and not file.exists()


def test_the_key_changes_with_all_that_the_result_depends_on(tmp_path):
    work, path, made = WorkFolder(tmp_path / "work"), tmp_path / "a.clip", "extractors"
    path.write_text("ok 1")
    keys = [
        work.key(path, given, made)
        for given in (item(), item(text="said"), item(start=1.0), item(end=2.0), item(language="de"))
    ]
    keys += [work.key(path, item(), "other extractors")]
    path.with_suffix(".srt").write_text("words")
    keys.append(work.key(path, item(), made))
    path.write_text("ok 2")
    keys.append(work.key(path, item(), made))
    assert len({key.name for key in keys}) == len(keys)
    # not with what the table says of it otherwise
    assert work.key(path, item(id="b", label=2.0, split="test", line=9), made) == keys[-1]


def test_what_makes_a_result_is_described_in_full():
    texts = {
        described(settings, RECIPES if recipes else {})
        for settings in (ClipSettings(), ClipSettings(words=WordSettings(language="de")))
        for recipes in (True, False)
    }
    assert len(texts) == 4


def test_a_fault_is_remembered_unless_there_is_more_time_now(tmp_path):
    work, key = WorkFolder(tmp_path), Key("k", "c")
    work.save_fault(key, KeptFault("limit", "too slow", 10.0))
    assert work.fault(key, limit=20.0) is None
    assert work.fault(key, limit=10.0).sentence == "too slow"
    work.forget_faults()
    assert work.fault(key, limit=10.0) is None


def test_one_run_at_a_time_in_a_folder_and_halves_are_removed(tmp_path):
    work = WorkFolder(tmp_path)
    (tmp_path / ".k.npz.half").touch()
    (tmp_path / "scratch" / "x").mkdir(parents=True)
    with work.opened():
        assert not (tmp_path / ".k.npz.half").exists() and not work.scratch.exists()
        with pytest.raises(MoodalError, match="another extraction works in"), WorkFolder(tmp_path).opened():
            pass


# ---- extraction


def extract(folder: Path, out: Path, **settings):
    return extract_folder(folder, folder / "labels.csv", out, **{"workers": 1, "make": FakeExtractor, **settings})


def contents(store: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(store.iterdir())}


@pytest.fixture(scope="module")
def troubled(tmp_path_factory):
    """A folder in which much is wrong, extracted once: (folder, out, report, progress)."""
    home = tmp_path_factory.mktemp("troubled")
    orders = ["ok 3", "hang", "media", "ok 2", "bug", "blind 4", "ok 3", "die"]
    folder, told = write_folder(home / "clips", orders), []
    table = (folder / "labels.csv").read_text() + "absent.clip,1,train,\nc00.clip,2,test,given words\n"
    rows = [f"{row},{f'id-{number}' if number else 'id'}" for number, row in enumerate(table.splitlines())]
    (folder / "labels.csv").write_text("\n".join([*rows[:8], *rows[9:], rows[8]]))  # what dies comes last
    report = extract(folder, home / "store", limit=10.0, progress=lambda done, total: told.append((done, total)))
    return folder, home / "store", report, told


def test_faulty_clips_are_listed_and_the_others_stored(troubled):
    _, out, report, told = troubled
    assert {fault.id: fault.sentence for fault in report.faults} == {
        "id-2": "c01.clip took longer than the limit of 10 s and was given up.",
        "id-3": "c02.clip is no media file; give another.",
        "id-5": "c04.clip could not be read (KeyError: 'of a library').",
        "id-8": "c07.clip ended the process that read it (SIGSEGV); the file is damaged or too large.",
        "id-9": "absent.clip is not there; check the folder and the column file.",
    }
    assert told == [(done, 10) for done in range(1, 11)]
    raw = CORPORA["folder"].read(out, CORPORA["folder"].Config(verify=True), out)
    assert [clip.id for clip in raw.clips] == ["id-1", "id-4", "id-6", "id-7", "id-10"]
    assert [clip.label for clip in raw.clips] == [-2, 1, -2, -1, 2]
    assert raw.streams["vision"].lengths.tolist() == [30, 20, 0, 30, 30]
    np.testing.assert_array_equal(raw.streams["audio"][1], fake_clip(2).streams["audio"])
    assert raw.clips[2].notes["no_vision"] == "No face was found." and raw.clips[4].text == "given words"
    assert raw.clips[0].words == (("clip", 0.0, 0.5),) and raw.clips[0].notes["text_source"] == "heard"
    assert raw.recipes == RECIPES and raw.facts.task == Regression(-2, 2)


def test_the_report_names_every_reason(troubled):
    _, out, report, _ = troubled
    with report.report.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["status"], row["line"], row["id"]) for row in rows] == [
        ("left out", "3", "id-2"), ("left out", "4", "id-3"), ("left out", "6", "id-5"), ("left out", "9", "id-9"),
        ("left out", "11", "id-8"), ("masked", "7", "id-6"),
    ]  # fmt: skip
    assert rows[-1]["modality"] == "vision" and rows[-1]["sentence"] == "No face was found."
    told = "\n".join(report.lines())
    assert (
        f"5 of 10 clips are in {out} (train 3, valid 0, test 2)." in told and "vision is absent from 1 of them." in told
    )
    assert "5 were left out; the first, line 3: c01.clip took longer" in told
    assert "The split valid is empty" in told
    manifest = read_manifest(out)
    assert len(manifest["report"]["faulty"]) == 5 and manifest["report"]["masked"] == {"vision": 1}


def test_nothing_temporary_is_left(troubled):
    _, out, report, _ = troubled
    assert {path.name for path in out.parent.iterdir()} == {"clips", "store", "store.work"}
    left = {path.name.split(".", 1)[-1] for path in report.work.iterdir()}
    assert left == {"npz", "fault.json", "csv", "json"}


def test_a_second_run_reads_nothing_again_but_what_may_go_otherwise(troubled):
    folder, out, _, _ = troubled
    before, stored = len(given(folder)), contents(out)
    with pytest.raises(DataError, match="already holds a store; choose another folder, or overwrite it"):
        extract(folder, out)
    report = extract(folder, out, overwrite=True, limit=10.0)
    assert given(folder)[before:] == ["c07.clip"]  # its process had died, perhaps for lack of memory
    assert report.again == 8 and contents(out) == stored


def test_a_killed_run_and_ctrl_c_go_on_and_end_with_the_same_bytes(tmp_path):
    orders = [f"slow {number}" for number in range(1, 13)]
    folder, whole = write_folder(tmp_path / "clips", orders), write_folder(tmp_path / "again", orders)
    out, work = tmp_path / "store", tmp_path / "store.work"
    command = [sys.executable, str(TESTS / "extract_fakes.py"), str(folder), str(out), "2"]
    process, until = subprocess.Popen(command, stderr=subprocess.DEVNULL), time.monotonic() + 900
    while len(list(work.glob("*.npz"))) < 3 and time.monotonic() < until and process.poll() is None:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    done = len(list(work.glob("*.npz")))
    assert 3 <= done < 10 and not out.exists()

    def stop(done: int, total: int) -> None:
        if done == 11:
            raise KeyboardInterrupt

    with pytest.raises(Interrupted, match="the same command; 11 of 12 clips are done and kept"):
        extract(folder, out, progress=stop)
    assert not out.exists() and len(list(work.glob("*.npz"))) >= 11
    report = extract(folder, out)
    assert report.again >= 11 and not report.faults
    assert len(given(folder)) <= 12 + 2 + 1  # only what the processes were at is done twice
    extract(whole, tmp_path / "uninterrupted")
    assert len(given(whole)) == 12 and contents(out) == contents(tmp_path / "uninterrupted")
    verify_store(out)


def test_a_fault_of_the_machine_ends_the_run(tmp_path):
    folder = write_folder(tmp_path / "clips", ["stop", "ok 1", "ok 2"])
    with pytest.raises(MoodalError, match="the model is missing; get it"):
        extract(folder, tmp_path / "store")
    with pytest.raises(MoodalError, match=r"extraction cannot work here \(RuntimeError: no model\)"):
        extract(folder, tmp_path / "store", make=Broken)
    with pytest.raises(MoodalError, match="the limit is 0 s"):
        extract(folder, tmp_path / "store", limit=0)
    with pytest.raises(MoodalError, match="give the engine ray with it"):
        extract(folder, tmp_path / "store", cluster="auto")


def test_a_folder_without_any_clip_that_can_be_read(tmp_path, monkeypatch):
    folder = write_folder(tmp_path / "clips", ["media"] * 3)
    faulty = [Outcome(place, Key(f"k{place}", "c"), "c.clip is no media file.") for place in range(3)]
    monkeypatch.setattr(Crew, "run", lambda self, jobs: iter(faulty))
    with pytest.raises(DataError, match=r"none of 3 clips could be read; all reasons are in .*report.csv"):
        extract(folder, tmp_path / "store")
    assert (tmp_path / "store.work" / "report.csv").read_text().count("is no media file") == 3


def test_damaged_media_cost_only_themselves(tmp_path, monkeypatch):
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setattr(tempfile, "tempdir", None)
    done = write_mutants(tmp_path / "clips", write_seeds(tmp_path / "seeds"), 40)
    settings = ClipSettings(words=WordSettings(recogniser="none"))
    report = extract(tmp_path / "clips", tmp_path / "store", make=quick, settings=settings, limit=60.0)
    stored = {clip.notes["file"] for clip in open_store(tmp_path / "store").clips}
    left_out = {fault.file: fault.sentence for fault in report.faults}
    assert stored | set(left_out) == set(done) and len(stored) > 10 and len(left_out) > 5
    for sentence in [*left_out.values(), *(fault.sentence for fault in report.masked)]:
        assert 10 < len(sentence) < 400 and "\n" not in sentence and sentence.endswith(".")
        assert not any(word in sentence for word in ("could not be read (", "ended the process", "took longer"))
    assert not any((tmp_path / "tmp").iterdir()) and not multiprocessing.active_children()


@pytest.mark.real
def test_ray_writes_the_same_store(tmp_path, monkeypatch):
    pytest.importorskip("ray.data", exc_type=ImportError)
    monkeypatch.setenv("PYTHONPATH", str(TESTS), prepend=os.pathsep)  # where its processes find the fakes
    folder = write_folder(tmp_path / "clips", ["ok 1", "hang", "ok 2", "media", "blind 3", "die"])
    extract(folder, tmp_path / "one", limit=3.0)
    extract(folder, tmp_path / "two", limit=3.0, engine="ray", workers=2)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
