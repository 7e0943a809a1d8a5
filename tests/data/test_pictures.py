"""Readers of pictures: the published folders of SYSU-MM01 and RegDB written small, the store of bytes, made-up people."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from moodal.core.errors import DataError, MoodalError
from moodal.core.settings import DataConfig, RunConfig, StreamData
from moodal.core.spec import Identification
from moodal.data import pictures
from moodal.data.regdb import RegDB, RegDBConfig
from moodal.data.synthetic_reid import SyntheticReidConfig, make
from moodal.data.sysu_mm01 import SysuConfig, SysuMm01
from moodal.methods.vsd import VSD, VSDConfig
from moodal.prepare import prepare

Image = pytest.importorskip("PIL.Image")

#: persons by list, as published: numbers that are neither dense nor sorted by list.
PERSONS = {"train_id": (2, 5, 9), "val_id": (4, 11), "test_id": (1, 7)}
SMALL = {"height": 16, "width": 8, "workers": 2}


def paint(path: Path, colour: tuple[int, int, int], size: tuple[int, int] = (12, 30)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path, quality=95)


def sysu_folder(root: Path) -> Path:
    """Three pictures of each person by each camera; person 5 was never before camera 4."""
    for name, persons in PERSONS.items():
        (root / "exp").mkdir(parents=True, exist_ok=True)
        (root / "exp" / f"{name}.txt").write_text(",".join(map(str, persons)) + "\n")
        for person in persons:
            for camera in range(1, 7):
                for number in range(1, 4):
                    if (person, camera) != (5, 4):
                        paint(
                            root / f"cam{camera}" / f"{person:04d}" / f"{number:04d}.jpg",
                            (20 * person, 40 * camera, 80 * number),
                        )
    return root


def regdb_folder(root: Path, *, train: int = 5, test: int = 3) -> Path:
    (root / "idx").mkdir(parents=True)
    for kind, count in (("train", train), ("test", test)):
        for word, folder in (("visible", "Visible"), ("thermal", "Thermal")):
            lines = []
            for person in range(count):
                for number in range(2):
                    place = f"{folder}/{kind}{person}/picture {number}.bmp"
                    paint(root / place, (30 * person, 90, 10 if word == "thermal" else 200))
                    lines.append(f"{place} {person}")
            (root / "idx" / f"{kind}_{word}_3.txt").write_text("\n".join(lines) + "\n")
    return root


@pytest.fixture(scope="module")
def sysu_root(tmp_path_factory) -> Path:
    return sysu_folder(tmp_path_factory.mktemp("sysu"))


def read_sysu(root: Path, cache: Path, **settings):
    return SysuMm01.read(root, SysuConfig(**{**SMALL, **settings}), cache)


# ---- SYSU-MM01 -------------------------------------------------------------------------------------------------


def test_sysu_splits_people_as_published(sysu_root, tmp_path):
    raw = read_sysu(sysu_root, tmp_path, valid_per_camera=2)
    assert raw.facts.task == Identification(3) and raw.facts.protocol == "sysu"
    people = {split: {clip.group for clip in raw.clips if clip.split == split} for split in ("train", "valid", "test")}
    assert people["train"] == {"person-2", "person-5", "person-9"} and people["test"] == {"person-1", "person-7"}
    sizes = {split: len(raw.positions(split)) for split in people}
    assert sizes == {"train": 3 * 18 - 3, "valid": 2 * 6 * 2, "test": 2 * 18}
    labels = {clip.group: clip.label for clip in raw.clips}
    assert [labels[f"person-{n}"] for n in (2, 5, 9)] == [0, 1, 2]  # classes first, strangers after
    assert {labels["person-4"], labels["person-11"]} == {3, 4} and {labels["person-1"], labels["person-7"]} == {5, 6}
    first = raw.clips[0]
    assert first.id == "cam1/0002/0001" and first.text == ""


def test_sysu_columns_say_camera_light_and_place(sysu_root, tmp_path):
    raw = read_sysu(sysu_root, tmp_path)
    camera, infrared, place = (raw.columns[name] for name in ("camera", "infrared", "place"))
    assert [int(clip.id[3]) for clip in raw.clips] == camera.tolist()
    assert (infrared == np.isin(camera, (3, 6))).all() and place.shape == (len(raw.clips), 10)
    for rows in (raw.positions("test")[:3], raw.positions("test")[3:6]):  # one person, one camera
        assert (np.sort(place[rows], axis=0) == np.arange(3)[:, None]).all()
    assert raw.source["permutations"] == "drawn by moodal"
    assert (read_sysu(sysu_root, tmp_path).columns["place"] == place).all()  # fixed, not drawn anew


def test_sysu_pixels_are_those_of_the_files(sysu_root, tmp_path):
    raw = read_sysu(sysu_root, tmp_path)
    stream = raw.streams["vision"]
    assert stream.values.dtype == np.uint8 and stream.values.shape == (len(raw.clips), 3, 16, 8) and stream.pictures
    for row in (0, 20, len(raw.clips) - 1):
        camera, person, number = (int(part[-4:].lstrip("cam")) for part in raw.clips[row].id.split("/"))
        wanted = np.array([20 * person, 40 * camera, 80 * number])
        assert abs(stream[row][0].mean(axis=(1, 2)) - wanted).max() < 4  # JPEG


def test_sysu_trained_on_valid_keeps_both_splits(sysu_root, tmp_path):
    raw = read_sysu(sysu_root, tmp_path, train_on_valid=True, valid_per_camera=None)
    assert raw.facts.task == Identification(5)
    train, valid = ({raw.clips[i].group for i in raw.positions(split)} for split in ("train", "valid"))
    assert valid < train and len(raw.positions("train")) == 5 * 18 - 3
    place = raw.columns["place"][raw.positions("valid")[:3]]
    assert (np.sort(place, axis=0) == np.arange(3)[:, None]).all()  # a picture is in two splits, its block in one


def test_sysu_takes_the_published_permutations(tmp_path):
    from scipy.io import savemat

    root = sysu_folder(tmp_path / "data")
    cells = np.empty((6, 1), dtype=object)
    draw = np.random.default_rng(0)
    for camera in range(6):
        cells[camera, 0] = np.empty((11, 1), dtype=object)
        for person in range(11):
            cells[camera, 0][person, 0] = np.stack([draw.permutation(3) + 1 for _ in range(10)]).astype(np.uint8)
    savemat(root / "exp" / "rand_perm_cam.mat", {"rand_perm_cam": cells})
    raw = read_sysu(root, tmp_path)
    assert raw.source["permutations"].startswith("sha256:")
    for person, camera in ((1, 1), (7, 5)):
        rows = [i for i in raw.positions("test") if raw.clips[i].id.startswith(f"cam{camera}/{person:04d}")]
        order = cells[camera - 1, 0][person - 1, 0].astype(int) - 1  # (trials, pictures): who comes first
        for trial in range(10):
            assert raw.columns["place"][rows, trial][order[trial]].tolist() == [0, 1, 2]
    paint(root / "cam1" / "0007" / "0004.jpg", (0, 0, 0))
    with pytest.raises(DataError, match="no permutation of the 4 pictures of person 7 in cam1"):
        read_sysu(root, tmp_path)


def test_sysu_reads_lists_of_matlab(tmp_path):
    from scipy.io import savemat

    root = sysu_folder(tmp_path / "data")
    before = read_sysu(root, tmp_path)
    for name, persons in PERSONS.items():
        (root / "exp" / f"{name}.txt").unlink()
        savemat(root / "exp" / f"{name}.mat", {"id": np.array([persons])})
    assert [clip.id for clip in read_sysu(root, tmp_path).clips] == [clip.id for clip in before.clips]


def test_faults_of_a_sysu_folder_are_sentences(tmp_path):
    with pytest.raises(DataError, match=r"set data\.root"):
        read_sysu(None, tmp_path)
    with pytest.raises(DataError, match=r"train_id\.txt cannot be read"):
        read_sysu(tmp_path, tmp_path)
    root = sysu_folder(tmp_path / "data")
    (root / "exp" / "val_id.txt").write_text("2, 4")
    with pytest.raises(DataError, match=r"persons \[2\] are in train_id and val_id"):
        read_sysu(root, tmp_path)
    (root / "exp" / "val_id.txt").write_text("four")
    with pytest.raises(DataError, match="persons as numbers separated by commas"):
        read_sysu(root, tmp_path)
    (root / "exp" / "val_id.txt").write_text("300")
    with pytest.raises(DataError, match="no picture of the persons of val_id"):
        read_sysu(root, tmp_path)
    (root / "exp" / "val_id.txt").write_text("4")
    (root / "cam1" / "0004" / "0002.jpg").write_bytes(b"not a picture")
    with pytest.raises(DataError, match=r"0002\.jpg cannot be decoded as a picture"):
        read_sysu(root, tmp_path)
    with pytest.raises(MoodalError, match="valid_per_camera is 0"):
        SysuConfig(valid_per_camera=0)


# ---- RegDB -----------------------------------------------------------------------------------------------------


def test_regdb_holds_out_people_for_validation(tmp_path):
    root = regdb_folder(tmp_path / "data")
    raw = RegDB.read(root, RegDBConfig(trial=3, valid_persons=2, **SMALL), tmp_path)
    assert raw.facts.task == Identification(3) and raw.facts.protocol == "regdb"
    assert {split: len(raw.positions(split)) for split in ("train", "valid", "test")} == {
        "train": 12,
        "valid": 8,
        "test": 12,
    }
    assert {clip.label for clip in raw.clips} == set(range(8))  # test people are numbered after the others
    assert raw.columns["infrared"].sum() == 16 and (raw.columns["camera"] == 1 + raw.columns["infrared"]).all()
    both = RegDB.read(root, RegDBConfig(trial=3, valid_persons=2, train_on_valid=True, **SMALL), tmp_path)
    assert (
        both.facts.task == Identification(5) and len(both.positions("train")) == 20 == len(both.positions("valid")) + 12
    )


def test_faults_of_a_regdb_folder_are_sentences(tmp_path):
    root = regdb_folder(tmp_path / "data")

    def read(**settings):
        return RegDB.read(root, RegDBConfig(**{"trial": 3, "valid_persons": 2, **SMALL, **settings}), tmp_path)

    with pytest.raises(DataError, match=r"train_visible_4\.txt cannot be read"):
        read(trial=4)
    with pytest.raises(DataError, match=r"has 5 training persons and reader\.valid_persons is 5"):
        read(valid_persons=5)
    with pytest.raises(MoodalError, match="numbered from 1 to 10"):
        RegDBConfig(trial=11)
    listed = root / "idx" / "test_thermal_3.txt"
    for line in ("../outside.bmp 1", "Thermal/one.bmp", "/somewhere/one.bmp 1"):
        listed.write_text(line)
        with pytest.raises(DataError, match=r"line 1 of .*test_thermal_3\.txt is"):
            read()
    listed.write_text("Thermal/absent.bmp 1")
    with pytest.raises(DataError, match=r"absent\.bmp is named by the lists and is not there"):
        read()


# ---- the store of bytes, and the way into a run ----------------------------------------------------------------


def test_pictures_are_decoded_once_and_again_when_a_file_changes(tmp_path, monkeypatch):
    root = regdb_folder(tmp_path / "data")
    cfg, cache = RegDBConfig(trial=3, valid_persons=2, **SMALL), tmp_path / "cache"
    first = RegDB.read(root, cfg, cache)
    decoded = []
    decode = pictures._picture
    monkeypatch.setattr(pictures, "_picture", lambda *args: decoded.append(args[0]) or decode(*args))
    second = RegDB.read(root, cfg, cache)
    assert not decoded and second.source == first.source
    assert isinstance(second.streams["vision"].values, np.memmap)
    np.testing.assert_array_equal(first.streams["vision"].values, second.streams["vision"].values)
    paint(root / "Visible" / "train0" / "picture 0.bmp", (1, 2, 3), size=(13, 31))
    third = RegDB.read(root, cfg, cache)
    assert len(decoded) == len(third.clips) and third.source["pictures"] != first.source["pictures"]
    assert not [file for file in (cache / "pictures").iterdir() if file.name.startswith(".")]


def test_a_split_of_pictures_stays_on_disk_and_batches_are_bytes(sysu_root, tmp_path):
    model = VSDConfig(blocks=(1, 1), width=4)
    cfg = RunConfig(corpus="sysu_mm01", method="vsd", model=model, reader=SysuConfig(**SMALL))
    data = prepare(read_sysu(sysu_root, tmp_path), cfg, VSD.needs(model))
    spec = data.spec.streams["vision"]
    assert (spec.kind, spec.width) == ("pictures", 3) and data.description["transforms"] == {}
    train = data.splits["train"]
    assert isinstance(train.streams["vision"].values, np.memmap)  # a view: pictures of a split lie together
    batch = train.rows(np.array([3, 0]))
    assert batch.streams["vision"].data.shape == (2, 1, 3, 16, 8) and batch.streams["vision"].mask.all()
    assert str(batch.streams["vision"].data.dtype) == "torch.uint8" and batch.columns["camera"].tolist() == [2, 1]
    assert batch.rows(batch.index.argsort()).columns["camera"].tolist() == [1, 2]
    wrong = replace(cfg, data=DataConfig(vision=StreamData(pool=2)))
    with pytest.raises(DataError, match=r"vision is pictures here; leave data\.vision\.root, pool and statistics"):
        prepare(read_sysu(sysu_root, tmp_path), wrong, VSD.needs(model))


# ---- made-up people --------------------------------------------------------------------------------------------


def test_made_up_people_share_their_pattern_across_modalities_and_not_their_colour():
    cfg = SyntheticReidConfig(train=6, valid=2, test=2, each=1, shift=0, noise=0.0, inverted=True)
    raw = make(cfg)
    assert raw.facts.task == Identification(6) and len(raw.clips) == 10 * 6
    values = np.asarray(raw.streams["vision"].values, float).reshape(10, 6, 3, cfg.height, cfg.width)
    visible, infrared = values[:, 0], values[:, 2]
    assert (infrared == infrared[:, :1]).all() and not (visible == visible[:, :1]).all()
    for person in range(10):  # within one half, brightness and infrared are opposite
        for half in (slice(0, 16), slice(16, 32)):
            bright, warm = visible[person].sum(axis=0)[half].ravel(), infrared[person, 0, half].ravel()
            assert np.corrcoef(bright, warm)[0, 1] < -0.98
    assert (make(cfg).streams["vision"].values == raw.streams["vision"].values).all()
    other = make(replace(cfg, seed=1))
    assert not (other.streams["vision"].values == raw.streams["vision"].values).all()


def test_made_up_people_are_laid_out_like_sysu():
    raw = make(SyntheticReidConfig(train=3, valid=2, test=2, each=2))
    assert set(raw.columns) == {"camera", "infrared", "place"}
    assert (raw.columns["infrared"] == np.isin(raw.columns["camera"], (3, 6))).all()
    assert raw.clips[0].id == "cam1/0001/0001" and sorted(set(raw.columns["place"].ravel())) == [0, 1]
    with pytest.raises(MoodalError, match="must each be 2 persons or more"):
        SyntheticReidConfig(test=1)
