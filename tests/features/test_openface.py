"""OpenFace's tables: what they hold, and a sentence for every way in which they can be wrong."""

from __future__ import annotations

import json
import logging

import numpy as np
import pytest

from moodal.core.errors import DataError, MoodalError
from moodal.core.files import plain
from moodal.data.extractors import EXTRACTORS
from moodal.explain import face as told
from moodal.features import openface
from moodal.features.container import MediaError
from moodal.features.openface import OpenFace, OpenFaceSettings, read_openface

NAMES = ["frame", "face_id", "timestamp", "confidence", "success", "gaze_0_x", "gaze_angle_x", "gaze_angle_y",
         "pose_Tx", "pose_Rx", "x_0", "AU01_r", "AU12_r", "AU12_c", "AU45_c"]  # fmt: skip


def row(frame: int, **values) -> dict[str, object]:
    plain = {name: 0.0 for name in NAMES}
    counted = {"frame": frame, "timestamp": (frame - 1) / 25, "confidence": 0.98, "success": 1, "AU12_r": frame / 10}
    return {**plain, **counted, **values}


def write(path, rows, *, names=NAMES, separator=", "):
    lines = [separator.join(names), *(separator.join(str(each[name]) for name in names) for each in rows)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def file(tmp_path):
    return tmp_path / "clip.csv"


@pytest.mark.parametrize("separator", [", ", ","])
def test_units_pose_and_gaze_have_their_names_values_and_times(file, separator):
    values, times, recipe = read_openface(write(file, [row(n) for n in range(1, 6)], separator=separator))
    assert recipe.channels == (
        "gaze_angle_x",
        "gaze_angle_y",
        "pose_Tx",
        "pose_Rx",
        "AU01_r",
        "AU12_r",
        "AU12_c",
        "AU45_c",
    )
    assert values.shape == (5, recipe.width) and values.dtype == np.float32
    np.testing.assert_allclose(values[:, recipe.channels.index("AU12_r")], [0.1, 0.2, 0.3, 0.4, 0.5], rtol=1e-6)
    np.testing.assert_allclose(times, np.arange(5) / 25)
    assert told.words_of("AU12_r") == "lip corners pulled up"


def test_groups_choose_columns_and_two_clips_have_one_recipe(file, tmp_path):
    write(file, [row(n) for n in range(1, 4)])
    other = write(tmp_path / "other.csv", [row(n, timestamp=n / 30) for n in range(1, 9)])
    recipes = [read_openface(path, groups=("units",))[2] for path in (file, other)]
    assert recipes[0] == recipes[1] and recipes[0].channels == ("AU01_r", "AU12_r", "AU12_c", "AU45_c")


def test_frames_that_failed_are_left_out_and_counted(file, caplog):
    rows = [row(1), row(2, success=0), row(3, confidence=0.2), row(4, AU01_r="nan"), row(5, AU12_c="inf"), row(6)]
    with caplog.at_level(logging.WARNING):
        values, times, _ = read_openface(write(file, rows))
    assert len(values) == 2 and times.tolist() == [0.0, 0.2] and np.isfinite(values).all()
    assert "4 of 6 frames" in caplog.text


def test_a_clip_without_a_face_has_no_steps(file):
    values, times, recipe = read_openface(write(file, [row(n, success=0, confidence=0) for n in range(1, 4)]))
    assert values.shape == (0, recipe.width) and len(times) == 0


def test_the_surest_of_several_faces_is_taken(file, caplog):
    rows = []
    for n in range(1, 6):
        rows += [row(n, face_id=0, confidence=0.6, AU12_r=9), row(n, face_id=3, confidence=0.9, AU12_r=1)]
    with caplog.at_level(logging.WARNING):
        values, _, recipe = read_openface(write(file, rows))
    assert values[:, recipe.channels.index("AU12_r")].tolist() == [1.0] * 5
    assert "2 faces; the surest, number 3" in caplog.text


def test_older_tables_without_face_numbers_and_success_are_read(file):
    names = [name for name in NAMES if name not in ("face_id", "success")]
    assert len(read_openface(write(file, [row(1), row(2)], names=names))[0]) == 2


def test_frames_are_counted_where_there_are_no_times(file):
    write(file, [row(n, timestamp=0) for n in range(1, 5)])
    with pytest.raises(DataError, match="the times do not rise"):
        read_openface(file)
    np.testing.assert_allclose(read_openface(file, rate=50)[1], np.arange(4) / 50)


def test_byte_order_mark_and_empty_lines_do_no_harm(file):
    write(file, [row(1), row(2)])
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes().replace(b"\n", b"\n\n"))
    assert len(read_openface(file)[0]) == 2


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "has no column timestamp"),
        (b"\x89PNG\r\n\x1a\n\x00\x00\xff\xfe", "is no table|has no column"),
        (b"a,b\n1,2\n", "has no column timestamp"),
        (b"frame, confidence, AU01_r\n1,1,1\n", "give rate, frames a second"),
        (b"timestamp, AU01_r\n1,1\n", "has no column confidence"),
        (b"timestamp, confidence, x_0\n0,1,1\n", "has no columns of units, pose, gaze"),
        (b"timestamp, confidence, AU01_r, AU01_r\n0,1,1,1\n", "column 'AU01_r' more than once"),
        (b"timestamp, confidence, AU01_r\n", "has no rows"),
        (b"timestamp, confidence, AU01_r\n0,1\n", "row 2 has 2 cells, and there are 3 names"),
        (b"timestamp, confidence, AU01_r\n0,1,1\n0.1,1,smile\n", "row 3 holds what is no number"),
        (b"timestamp, confidence, AU01_r\n0,1,1\nnan,1,1\n", "row 3 has no time"),
        (b"timestamp, confidence, AU01_r\n0.2,1,1\n0.1,1,1\n", "the times do not rise"),
        (b"timestamp, confidence, AU01_r\n0,1," + b"9" * 200_000 + b"\n", "is no table|no number"),
        (b"timestamp, confidence, AU01_r\n0,1,\xff\n", "is no table"),
    ],
)
def test_what_is_wrong_is_one_sentence(file, content, sentence):
    file.write_bytes(content)
    with pytest.raises(DataError, match=sentence) as raised:
        read_openface(file)
    assert "\n" not in str(raised.value) and "clip.csv" in str(raised.value)


def test_too_many_rows_are_refused(file, monkeypatch):
    monkeypatch.setattr(openface, "MOST_ROWS", 3)
    with pytest.raises(DataError, match="more than 3 rows"):
        read_openface(write(file, [row(n) for n in range(1, 6)]))


def test_absent_files_and_wrong_settings_are_sentences(file, tmp_path):
    with pytest.raises(DataError, match="cannot be read"):
        read_openface(file)
    with pytest.raises(DataError, match="cannot be read"):
        read_openface(tmp_path)
    write(file, [row(1)])
    for settings, sentence in (
        ({"groups": ("unit",)}, "did you mean 'units'"),
        ({"least": 2}, "least is 2"),
        ({"rate": 0}, "rate is 0"),
    ):
        with pytest.raises(MoodalError, match=sentence):
            read_openface(file, **settings)


def test_cut_and_flipped_files_never_raise_anything_else(file):
    write(file, [row(n) for n in range(1, 40)])
    whole, generator = bytearray(file.read_bytes()), np.random.default_rng(0)
    read = 0
    for number in range(200):
        damaged = whole[: generator.integers(1, len(whole)) if number % 2 else len(whole)]
        damaged[generator.integers(0, len(damaged))] = generator.integers(0, 256)
        file.write_bytes(damaged)
        try:
            values, times, recipe = read_openface(file)
        except MoodalError:
            continue
        read += 1
        assert values.shape == (len(times), recipe.width) and np.isfinite(values).all()
    assert 0 < read < 200


# The extractor that reads the table beside a clip ---------------------------------------------------------------------


WHOLE = [*NAMES[:5], *(name for group in openface.CHANNELS.values() for name in group)]


def table(path, count, *, every=0.04, names=WHOLE, **changes):
    rows = [
        {
            **dict.fromkeys(names, 0.0),
            **row(n + 1),
            "timestamp": n * every,
            "AU12_r": n * every,
            **changes.get(f"r{n}", {}),
        }
        for n in range(count)
    ]
    return write(path, rows, names=names)


def test_the_table_beside_a_clip_gives_a_step_every_hop(tmp_path):
    table(tmp_path / "clip.csv", 100)
    track = OpenFace(OpenFaceSettings(hop=0.1)).beside(tmp_path / "clip.mp4", 1.0, 3.0)
    values, times = track.stream()
    place = OpenFace().recipe().channels.index("AU12_r")
    assert values.shape == (20, 43) and track.note == ""
    np.testing.assert_allclose(times, 0.1 * np.arange(20), atol=1e-9)
    np.testing.assert_allclose(values[:, place], 1.0 + times, atol=0.02 + 1e-6)


def test_steps_without_a_sure_row_have_no_face_and_are_told(tmp_path):
    lost = {f"r{n}": {"success": 0} for n in range(10, 20)}
    table(tmp_path / "clip.csv", 50, **lost)
    track = OpenFace(OpenFaceSettings(hop=0.04)).beside(tmp_path / "clip.mp4", 0.0, 3.0)
    assert len(track.times) == 75 and len(track.stream()[0]) == 40  # ten lost, and the table ends after 2 s
    assert track.note == "OpenFace is sure of no face in 35 of 75 steps"
    assert (track.confidence[10:20] == 0).all() and (track.faces[10:20] == 0).all()


@pytest.mark.parametrize(
    ("content", "said"),
    [(None, "clip.csv, OpenFace's table of clip.mp4, is not there"), ("frame,x\n1,2\n", "has no column timestamp")],
)
def test_a_table_that_cannot_be_used_is_a_fault_of_the_clip(tmp_path, content, said):
    if content:
        (tmp_path / "clip.csv").write_text(content)
    with pytest.raises(MediaError, match=said):
        OpenFace().beside(tmp_path / "clip.mp4", 0.0, 1.0)


def test_a_table_without_a_channel_names_it(tmp_path):
    table(tmp_path / "clip.csv", 5, names=[name for name in WHOLE if name != "AU28_c"])
    with pytest.raises(MediaError, match=r"clip\.csv has no column AU28_c"):
        OpenFace().beside(tmp_path / "clip.mp4", 0.0, 0.2)


def test_the_manifest_makes_the_extractor_again():
    recipe = OpenFace(OpenFaceSettings(groups=("units",), hop=0.2)).recipe()
    again = EXTRACTORS["openface"]
    assert again(again.Config(**json.loads(json.dumps(plain(recipe.settings))))).recipe().channels == recipe.channels
    assert recipe.width == 35
