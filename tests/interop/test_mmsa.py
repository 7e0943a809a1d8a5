"""Import of MMSA-like pickles made here: what comes out, what is reported, and one sentence for every fault."""

from __future__ import annotations

import csv
import hashlib
import json
import pickle
from pathlib import Path

import numpy as np
import pytest

from moodal.core.errors import DataError
from moodal.data import CORPORA
from moodal.data.store import open_store, read_manifest, verify_store
from moodal.interop.mmsa import import_file

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
SIZES = {"train": 6, "valid": 3, "test": 4}


def triple(lengths, steps: int, *, first: int = 101) -> np.ndarray:
    """(n, 3, steps) float32 ids, mask, segments; ids count up from ``first`` in every row."""
    mask = np.arange(steps) < np.asarray(lengths)[:, None]
    ids = np.where(mask, first + np.arange(steps), 0)
    return np.stack([ids, mask, np.zeros_like(ids)], axis=1).astype(np.float32)


def frames(spans, steps: int, width: int, random) -> np.ndarray:
    """(n, steps, width) float32: numbers from start to end of each span, zeros elsewhere."""
    values = random.normal(size=(len(spans), steps, width)).astype(np.float32)
    step = np.arange(steps)
    inside = np.array([(step >= start) & (step < end) for start, end in spans])
    return values * inside[..., None]


def make_file(
    *, aligned: bool = False, extras: bool = False, text=("raw_text", "text", "text_bert"), seed: int = 0
) -> dict:
    """A small file of the field. Clip i of a split speaks i + 3 tokens; audio starts at step i % 3 (zeros before),
    both it and vision end before their arrays do."""
    random = np.random.default_rng(seed)
    content = {}
    for split, n in SIZES.items():
        row = np.arange(n)
        tokens = row + 3
        audio = [(i % 3, 8 + i % 4) for i in row]
        vision = [(0, 5 + i) for i in row]
        columns = {
            "id": [f"{split}_video{i // 2}$_${i}" for i in row],
            "raw_text": np.array([f"{split} says {i}" for i in row], dtype=object),
            "text": frames([(0, t) for t in tokens], 12, 7, random),
            "text_bert": triple(tokens, 12),
            "audio": frames(audio, 12, 5, random),
            "vision": frames(vision, 12 if aligned else 20, 4, random),
            "annotations": ["Neutral"] * n,
            "regression_labels": np.linspace(-1, 1, n, dtype=np.float32),
            "classification_labels": np.zeros(n),
        }
        for name in {"raw_text", "text", "text_bert"} - set(text):
            del columns[name]
        if not aligned:
            columns["audio_lengths"] = [end for _, end in audio]
            columns["vision_lengths"] = np.array([end for _, end in vision])
        if extras:
            columns |= {
                f"regression_labels_{m}": np.full(n, value) for m, value in (("T", 0.2), ("A", np.nan), ("V", -0.4))
            }
            columns["raw_text_en"] = [f"english {i}" for i in row]
            columns["text_en_bert"] = triple(tokens + 1, 12, first=200)
            for name in ("reason", "visual_clue", "audio_clue", "text_clue", "clue_summary"):
                columns[name] = [f"{name} {i}" if i else "" for i in row]
                columns[f"{name}_bert"] = triple(tokens + 2, 12, first=300)
        content[split] = columns
    return content


def write(tmp_path, content, protocol: int = 4):
    path = tmp_path / "file.pkl"
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    return path


def run(tmp_path, content, *, corpus: str = "mosi", **options):
    report = import_file(write(tmp_path, content), corpus=corpus, out=tmp_path / corpus, **options)
    return report, open_store(tmp_path / corpus, corpus=corpus)


def test_unaligned_file_comes_through(tmp_path):
    content = make_file()
    report, raw = run(tmp_path, content)
    assert [c.id for c in raw.clips] == [i for split in SIZES for i in content[split]["id"]]
    assert [len(raw.positions(s)) for s in SIZES] == [6, 3, 4]
    clip = raw.clips[1]
    assert (clip.text, clip.group, clip.split) == ("train says 1", "train_video0", "train")
    assert clip.label == float(np.float32(-0.6))
    assert raw.streams["audio"].lengths[:6].tolist() == [8, 8, 8, 11, 7, 7]
    assert raw.streams["vision"].lengths[6:9].tolist() == [5, 6, 7]
    assert raw.streams["text"].lengths[:6].tolist() == [3, 4, 5, 6, 7, 8]
    assert np.array_equal(raw.streams["audio"][2], content["train"]["audio"][2, 2:10])
    assert np.array_equal(raw.streams["vision"][8], content["valid"]["vision"][2, :7])
    assert raw.tokens["text"][1].tolist() == [101, 102, 103, 104] and raw.tokens["text"].values.dtype == np.int64
    assert raw.token_recipe.name == "bert-base-uncased"
    assert {m: s.lengths for m, s in report.streams.items()} == {"text": "mask", "audio": "given", "vision": "given"}
    assert not report.aligned
    checksum = hashlib.sha256((tmp_path / "file.pkl").read_bytes()).hexdigest()
    assert report.sha256 == checksum == raw.source["sha256"] == raw.recipes["audio"].settings["sha256"]
    verify_store(tmp_path / "mosi")


def test_reader_of_the_corpus_reads_it(tmp_path):
    run(tmp_path, make_file())
    reader = CORPORA["mosi"]
    assert len(reader.read(tmp_path, reader.Config(verify=True), tmp_path).clips) == 13


@pytest.mark.parametrize("protocol", [2, 5])
def test_pickle_protocols_give_the_same_corpus(tmp_path, protocol):
    import_file(write(tmp_path, make_file(), protocol), corpus="mosi", out=tmp_path / "one")
    import_file(write(tmp_path, make_file(), 4), corpus="mosi", out=tmp_path / "two")
    one, two = open_store(tmp_path / "one"), open_store(tmp_path / "two")
    assert one.clips == two.clips and np.array_equal(one.streams["audio"].values, two.streams["audio"].values)


def test_aligned_file_keeps_one_window_for_audio_and_vision(tmp_path):
    content = make_file(aligned=True)
    content["train"]["vision"][3] = 0  # no face at all
    report, raw = run(tmp_path, content)
    assert report.aligned and report.streams["audio"].lengths == "recovered"
    audio, vision = raw.streams["audio"].lengths, raw.streams["vision"].lengths
    # row 0: audio 0 to 8, vision 0 to 5; row 4: audio 1 to 8, vision 0 to 9; row 3: audio alone, 0 to 11
    assert audio[[0, 4, 3]].tolist() == [8, 9, 11] and vision[[0, 4, 3]].tolist() == [8, 9, 0]
    assert np.array_equal(raw.streams["audio"][4], content["train"]["audio"][4, :9])
    assert any("vision is missing (all zero) in 1 of 13" in note for note in report.notes)


@pytest.mark.parametrize("corpus", ["sims", "sims_v2"])
def test_extra_texts_of_the_chinese_corpora(tmp_path, corpus):
    report, raw = run(tmp_path, make_file(extras=True), corpus=corpus)
    first, second = raw.clips[0], raw.clips[1]
    assert second.text == "english 1" and second.notes["raw_text"] == "train says 1"
    assert second.explanations == {"audio": "audio_clue 1", "vision": "visual_clue 1", "comment": "clue_summary 1"}
    assert second.explained_by == {"audio": "file", "vision": "file", "comment": "file"}
    assert (second.notes["reason"], second.notes["text_clue"]) == ("reason 1", "text_clue 1")
    assert first.explanations == {} and first.explained_by == {} and set(first.notes) == {"raw_text"}
    assert second.labels == {"text": 0.2, "vision": -0.4}  # NaN: not given
    assert set(raw.tokens) == {"text", "audio", "vision", "comment"}
    assert raw.tokens["text"][0].tolist() == [200, 201, 202, 203]
    assert raw.tokens["comment"][0].tolist() == [300, 301, 302, 303, 304]
    assert report.texts["explanation of audio"] == 10


def test_chinese_text_without_translation_stays(tmp_path):
    _, raw = run(tmp_path, make_file(), corpus="sims")
    assert raw.clips[0].text == "train says 0" and raw.clips[0].notes == {}
    assert raw.token_recipe.name == "bert-base-chinese"


def test_chinese_tokens_are_not_mixed_with_english_ones(tmp_path):
    content = make_file(extras=True)
    for columns in content.values():
        del columns["text_en_bert"]
    report, raw = run(tmp_path, content, corpus="sims")
    assert set(raw.tokens) == {"audio", "vision", "comment"} and raw.token_recipe.name == "bert-base-uncased"
    assert any("text_bert is not kept" in note for note in report.notes)


@pytest.mark.parametrize("text", [("raw_text",), ("text",), ("text_bert",), ()])
def test_any_form_of_text_may_be_missing(tmp_path, text):
    report, raw = run(tmp_path, make_file(text=text))
    assert ("text" in raw.streams, "text" in raw.tokens) == ("text" in text, "text_bert" in text)
    assert bool(raw.clips[0].text) == ("raw_text" in text)
    assert any("no transcripts" in note for note in report.notes) == ("raw_text" not in text)
    if text == ("text",):
        assert report.streams["text"].lengths == "recovered" and raw.streams["text"].lengths[0] == 3


def test_values_that_are_no_numbers_become_zero_and_are_counted(tmp_path):
    content = make_file()
    audio = content["train"]["audio"]
    audio[0, 3] = -np.inf
    audio[1, 1, 0], audio[1, 2, 1] = np.nan, np.inf
    audio[3, 10] = -np.inf  # the last frame
    del content["train"]["audio_lengths"], content["valid"]["audio_lengths"], content["test"]["audio_lengths"]
    content["valid"]["vision"] = content["valid"]["vision"].astype(np.float64)
    content["valid"]["vision"][0, 0, 0] = 1e300  # more than float32 holds
    report, raw = run(tmp_path, content)
    found = report.streams["audio"]
    assert (found.nan, found.plus_infinity, found.minus_infinity) == (1, 1, 10)
    assert report.streams["vision"].plus_infinity == 1
    assert np.isfinite(raw.streams["audio"].values).all() and np.isfinite(raw.streams["vision"].values).all()
    assert raw.streams["audio"][0][3].tolist() == [0] * 5  # within the clip: kept as zeros
    assert raw.streams["audio"].lengths[3] == 10  # at its end: no longer a frame
    assert any("1 NaN, 1 +inf and 10 -inf" in warning for warning in report.warnings)
    assert raw.streams["audio"].values.dtype == np.float32


def test_padding_in_front_and_given_lengths(tmp_path):
    content = make_file()
    train = content["train"]
    random = np.random.default_rng(1)
    train["audio"] = frames([(4, 12), (6, 12), (0, 5), (0, 9), (2, 11), (0, 0)], 12, 5, random)
    train["audio_lengths"] = [8, 8, 7, 4, 40, 3]
    report, raw = run(tmp_path, content)
    # in front exactly; two silent frames in front; two behind kept; too short: content kept; too long; missing
    assert raw.streams["audio"].lengths[:6].tolist() == [8, 6, 7, 9, 10, 0]
    assert np.array_equal(raw.streams["audio"][1], train["audio"][1, 6:12])
    assert (report.streams["audio"].disagreeing, report.streams["audio"].too_long) == (1, 1)
    assert any("1 given lengths would cut" in warning for warning in report.warnings)
    assert any("1 given lengths exceed" in warning for warning in report.warnings)


def test_sizes_widths_videos_and_unread_columns_are_remarked(tmp_path):
    content = make_file()
    content["test"]["id"][0] = "train_video0$_$9"
    report, _ = run(tmp_path, content)
    assert "train has 6 clips; published are 1284." in report.warnings
    assert "train and test share 1 videos (train_video0), so speakers are not unseen." in report.warnings
    assert "vision is 4 wide; usual for mosi is 20." in report.notes
    assert "Columns not read: annotations, classification_labels." in report.notes
    assert not any("audio is 5 wide" in note for note in report.notes)


def test_label_grid_is_found(tmp_path):
    report, _ = run(tmp_path, make_file())
    assert (report.labels.low, report.labels.high, report.labels.step) == (-1, 1, None)
    content = make_file()
    for columns in content.values():
        columns["regression_labels"] = np.tile([-0.8, 0.2, 0.4], 2)[: len(columns["id"])].astype(np.float32)[:, None]
    report, raw = run(tmp_path, content, overwrite=True)
    assert report.labels.step == 0.2 and raw.clips[1].label == pytest.approx(0.2)


def test_report_is_plain_json_a_page_and_in_the_store(tmp_path):
    report, _ = run(tmp_path, make_file(extras=True), corpus="sims")
    assert read_manifest(tmp_path / "sims")["report"] == json.loads(json.dumps(report.to_json()))
    page = report.to_markdown()
    assert str(report) == page
    for part in ("| train | 6 | 1368 |", "| audio | 5 |", report.sha256, "**warning** train has 6 clips"):
        assert part in page


def test_progress_tells_reading_checking_and_writing(tmp_path):
    seen = []
    run(tmp_path, make_file(), progress=lambda *step: seen.append(step))
    assert list(dict.fromkeys(what for what, _, _ in seen)) == ["read", "check", "write"]
    assert all(0 <= done <= total for _, done, total in seen)
    assert [s for s in seen if s[0] == "check"][-1][1:] == (39, 39)


def test_chosen_modalities_only(tmp_path):
    content = make_file()
    for columns in content.values():
        del columns["vision"], columns["vision_lengths"]
    _, raw = run(tmp_path, content, modalities=("text", "audio"))
    assert set(raw.streams) == {"text", "audio"}


def test_ids_in_other_forms(tmp_path):
    content = make_file()
    content["train"]["id"] = np.array([[f"v{i}", "0.5", "1.5"] for i in range(6)])
    content["valid"]["id"] = [f"clip/{i}".encode() for i in range(3)]
    _, raw = run(tmp_path, content)
    assert raw.clips[0].id == "v0_0.5_1.5" and raw.clips[0].group == ""
    assert (raw.clips[6].id, raw.clips[6].group) == ("clip/0", "clip")


def change(split: str, name: str, value):
    def apply(content):
        content[split][name] = value(content[split][name]) if callable(value) else value

    return apply


def drop(split: str, name: str):
    return lambda content: content[split].pop(name)


def rename_everywhere(old: str, new: str):
    def apply(content):
        for columns in content.values():
            columns[new] = columns.pop(old)

    return apply


def edited(row, value):
    def apply(column):
        column = np.array(column, dtype=object if isinstance(value, str) else None)
        column[row] = value
        return column

    return apply


FAULTS = [
    (lambda c: c.pop("valid"), r"no split 'valid' \(it has train, test\)"),
    (lambda c: c.update(valid=[1]), "valid is a list; a dict of columns"),
    (lambda c: c["test"].update({k: v[:0] for k, v in c["test"].items()}), "test is empty"),
    (drop("train", "regression_labels"), "train has no column 'regression_labels'"),
    (drop("valid", "raw_text"), "valid has no column 'raw_text'"),
    (drop("valid", "audio_lengths"), "valid has no column 'audio_lengths'"),
    (rename_everywhere("vision", "visions"), "no column 'vision'.*did you mean 'visions'"),
    (rename_everywhere("id", "ids"), "no column 'id'"),
    (change("test", "audio", lambda a: a[:3]), "test has 4 ids, but rows of audio 3"),
    (change("test", "raw_text", lambda a: [*a, "x"]), "test has 4 ids, but rows of raw_text 5"),
    (
        change("train", "id", edited(1, "train_video0$_$0")),
        r"1 ids appear more than once: train_video0\$_\$0 \(train\)",
    ),
    (
        change("test", "id", edited(1, "train_video0$_$0")),
        r"in more than one split: train_video0\$_\$0 \(train, test\)",
    ),
    (change("test", "id", edited(1, "")), "1 clips have an empty id"),
    (change("valid", "regression_labels", edited(2, np.nan)), r"1 labels that are no numbers: valid_video1\$_\$2"),
    (change("valid", "regression_labels", edited(0, 3.5)), r"outside \[-3, 3\] \(found 0 to 3.5\): valid_video0\$_\$0"),
    (change("valid", "regression_labels", ["a", "b", "c"]), "valid regression_labels is an array of <U1"),
    (change("valid", "regression_labels", np.zeros((3, 2))), r"shape \(3, 2\); one number for each of 3"),
    (change("train", "audio", lambda a: a[:, 0]), r"train audio has shape \(6, 5\)"),
    (change("train", "audio", lambda a: a.astype("U8")), "train audio is an array of <U8"),
    (
        change("train", "audio", lambda a: [x[: i + 1] for i, x in enumerate(a)]),
        "train audio holds rows of unequal shape",
    ),
    (change("train", "audio", lambda a: a[:, :0]), r"train audio has shape \(6, 0, 5\): no step"),
    (change("test", "vision", lambda a: a[:, :, :2]), "vision has columns of train 4, valid 4, test 2"),
    (change("train", "audio", 3), "train audio is a int; one row for each clip"),
    (change("train", "audio_lengths", [-1] * 6), "train audio_lengths holds numbers that are no lengths"),
    (change("train", "audio_lengths", [2.5] * 6), "train audio_lengths holds numbers that are no lengths"),
    (change("train", "audio_lengths", np.zeros((6, 2))), r"train audio_lengths has shape \(6, 2\)"),
    (change("train", "text_bert", lambda a: a.transpose(0, 2, 1)), r"train text_bert has shape \(6, 12, 3\)"),
    (change("train", "text_bert", lambda a: a[:, :, ::-1]), "text_bert has a mask that is not ones followed by zeros"),
    (change("train", "text_bert", lambda a: a - 0.5), "text_bert holds token ids that are no whole numbers"),
]


@pytest.mark.parametrize(("fault", "sentence"), FAULTS)
def test_faults_give_one_sentence_and_leave_nothing(tmp_path, fault, sentence):
    content = make_file()
    fault(content)
    path = write(tmp_path, content)
    with pytest.raises(DataError, match=sentence) as caught:
        import_file(path, corpus="mosi", out=tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file.pkl"]


def test_labels_of_mosi_do_not_pass_as_sims(tmp_path):
    content = make_file()
    content["train"]["regression_labels"][0] = -2.4
    with pytest.raises(DataError, match=r"outside \[-1, 1\].*is this the right corpus"):
        run(tmp_path, content, corpus="sims")


def test_nothing_to_import_is_said(tmp_path):
    content = make_file(text=())
    with pytest.raises(DataError, match="neither text nor audio nor vision"):
        run(tmp_path, content, modalities=("text",))


def test_ids_of_another_vocabulary_are_remarked(tmp_path):
    content = make_file()
    content["test"]["text_bert"] = triple([3, 4, 5, 6], 12, first=40000)
    report, _ = run(tmp_path, content)
    assert any("text_bert holds the id 40005, so it is not of bert-base-uncased" in w for w in report.warnings)


def test_files_that_are_no_dict_and_unknown_corpora(tmp_path):
    with pytest.raises(DataError, match=r"holds a list; a dict of train, valid and test"):
        run(tmp_path, [1, 2])
    with pytest.raises(DataError, match=r"no import for 'mosy'.*did you mean 'mosi'"):
        run(tmp_path, make_file(), corpus="mosy")
    (tmp_path / "file.pkl").write_bytes(pickle.dumps(make_file())[:-500])
    with pytest.raises(DataError, match="not a readable pickle"):
        import_file(tmp_path / "file.pkl", corpus="mosi", out=tmp_path / "out")


def test_existing_store_is_refused_before_reading(tmp_path):
    run(tmp_path, make_file())
    with pytest.raises(DataError, match="already holds a store"):
        import_file(tmp_path / "absent.pkl", corpus="mosi", out=tmp_path / "mosi")
    run(tmp_path, make_file(seed=1), overwrite=True)


@pytest.mark.parametrize(("corpus", "file"), [("sims", "ch_sims.csv"), ("sims_v2", "ch_sims_v2s.csv")])
def test_published_splits_labels_and_texts_pass_without_a_warning(tmp_path, corpus, file):
    if not (SHARED / "ch_sims" / file).is_file():
        pytest.skip(f"{file} is not beside the repository")
    with (SHARED / "ch_sims" / file).open(encoding="utf-8") as table:
        rows = list(csv.DictReader(table))
    content = {}
    for split in SIZES:
        mine = [row for row in rows if row["split"] == split]
        ones = np.ones((len(mine), 2, 1), np.float32)
        content[split] = {
            "id": [row["id"] for row in mine],
            "raw_text": [row["text_zh"] for row in mine],
            "raw_text_en": [row["text_en"] for row in mine],
            "audio": ones,
            "vision": ones,
            "regression_labels": np.array([row["label"] for row in mine], dtype=np.float32),
        }
    report, raw = run(tmp_path, content, corpus=corpus)
    assert report.warnings == [] and report.sizes == report.published
    assert (report.labels.low, report.labels.high, report.labels.step) == (-1, 1, 0.2)
    assert [clip.text for clip in raw.clips if clip.split == "test"] == [
        r["text_en"].strip() for r in rows if r["split"] == "test"
    ]
    assert ("1 of 4403 labels lie off the grid of steps of 0.2." in report.notes) == (corpus == "sims_v2")
    if corpus == "sims":
        labels = np.array([clip.label for clip in raw.clips if clip.split == "train"])
        assert [(labels < 0).sum(), (labels == 0).sum(), (labels > 0).sum()] == [742, 207, 419]
