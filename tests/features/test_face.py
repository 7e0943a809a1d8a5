"""The face mesh on drawn faces: what it measures, whom it follows, what it says where there is nobody, and its silence."""

from __future__ import annotations

import os
import sys

import numpy as np
import pytest
from drawn_face import blank, draw_face

from moodal.core.errors import MissingExtra, MoodalError
from moodal.data.extractors import EXTRACTORS
from moodal.features import face
from moodal.features.face import FaceMesh, FaceSettings, FaceTrack
from moodal.features.face_points import POINTS
from moodal.features.face_signals import CHANNELS
from moodal.features.face_tracks import distinct, follow
from moodal.features.frames import Frame

HOP = 0.1


def film(pictures) -> list[Frame]:
    return [Frame(step * HOP, picture) for step, picture in enumerate(pictures)]


def column(track: FaceTrack, name: str) -> np.ndarray:
    return track.values[:, CHANNELS.index(name)]


# --- following, without a mesh


def made_face(x: float, y: float, unit: float, gap: float = 0.0, seed: int = 0) -> np.ndarray:
    """(478, 3): points around (x, y) with eyes ``unit`` apart and lips ``gap`` x unit apart."""
    points = np.random.default_rng(seed).uniform(-1, 1, (POINTS, 3)) * unit
    points[[33, 263]] = [(-unit / 2, 0, 0), (unit / 2, 0, 0)]
    points[[13, 14]] = [(0, unit, 0), (0, unit * (1 + gap), 0)]
    return (points + np.array([x, y, 0])).astype(np.float32)


def talk(step: int) -> float:
    return 0.1 + 0.1 * np.sin(2.1 * step)


def places_of(faces, order=None):
    return follow(faces, HOP * np.arange(len(faces)))


def test_the_larger_of_two_silent_faces_is_followed():
    faces = [np.stack([made_face(100, 100, 30), made_face(400, 100, 50)]) for _ in range(10)]
    followed = places_of(faces)
    assert followed.place.tolist() == [1] * 10 and followed.people == 2 and followed.jumps == 0


def test_the_moving_mouth_is_followed_though_it_is_smaller():
    faces = [np.stack([made_face(100, 100, 35, talk(t)), made_face(400, 100, 50)]) for t in range(10)]
    assert places_of(faces).place.tolist() == [0] * 10


def test_identity_is_kept_when_the_mesh_changes_its_order():
    order = np.random.default_rng(3).integers(0, 2, 20)
    faces = []
    for t, turned in enumerate(order):
        pair = [made_face(100 + 3 * t, 100, 40, talk(t)), made_face(400 - 3 * t, 150, 40)]
        faces.append(np.stack(pair[::-1] if turned else pair))
    assert places_of(faces).place.tolist() == order.tolist()


def test_a_gap_is_bridged_and_a_lost_face_is_continued_where_it_comes_back():
    near, far = made_face(100, 100, 40)[None], made_face(500, 300, 38)[None]
    nobody = np.zeros((0, POINTS, 3), np.float32)
    followed = places_of([near] * 5 + [nobody] * 2 + [near] * 5 + [far] * 6)
    assert followed.place.tolist() == [0] * 5 + [-1] * 2 + [0] * 11
    assert followed.people == 1 and followed.jumps == 1


def test_a_small_face_does_not_continue_a_large_one_and_a_flash_is_no_face():
    large, small = made_face(200, 200, 60)[None], made_face(500, 60, 15)[None]
    followed = places_of([large] * 8 + [small] * 5)
    assert followed.place.tolist() == [0] * 8 + [-1] * 5 and followed.people == 2
    flash = places_of([large] * 4 + [np.concatenate([large, small])] + [large] * 4)
    assert flash.people == 1


def test_a_face_found_twice_is_one():
    one = made_face(100, 100, 40)
    assert len(distinct(np.stack([one, one + 2, made_face(400, 100, 40)]))) == 2
    assert distinct(np.zeros((0, POINTS, 3), np.float32)).shape == (0, POINTS, 3)


# --- the mesh itself


@pytest.fixture(scope="module")
def mesh():
    pytest.importorskip("mediapipe")
    return FaceMesh()


def test_known_motion_of_a_drawn_face_is_followed(mesh):
    import cv2

    at = np.arange(40)
    smile, brow, gap = (np.sin(f * at + 1) for f in (0.9, 0.37, 0.6))
    roll = 12 * np.sin(0.21 * at)
    pictures = []
    for s, b, g, r in zip(smile, brow, gap, roll, strict=True):
        drawn = draw_face(blank(), (240, 150), 60, smile=0.1 * s, brow=0.1 * b, gap=0.1 * (1 + g))
        turn = cv2.getRotationMatrix2D((240, 180), -r, 1.0)
        pictures.append(cv2.warpAffine(drawn, turn, (480, 360), borderMode=cv2.BORDER_REPLICATE))
    track = mesh(film(pictures))
    assert track.note == "" and track.confidence.min() > 0.9
    for name, moved, least in (("head_roll", roll, 0.9), ("AU12_r", smile, 0.9), ("AU01_r", brow, 0.8)):
        assert np.corrcoef(column(track, name), moved)[0, 1] > least, name
    assert np.corrcoef(column(track, "AU25_r"), gap)[0, 1] > 0.7


def test_the_speaker_of_two_is_followed(mesh):
    def picture(step: int) -> np.ndarray:
        left = draw_face(blank(640, 360), (160, 150), 60)
        return draw_face(left, (470, 150), 52, gap=0.12 * (1 + np.sin(2 * step)))

    track = mesh(film(picture(step) for step in range(12)))
    assert track.faces.max() == 2 and "up to 2 faces at once; the main speaker was followed" in track.note
    found = column(track, "AU25_r")[track.confidence > 0]
    assert len(found) >= 11 and np.ptp(found) > 5


def test_frames_without_a_face_are_left_out_of_the_stream(mesh):
    drawn = draw_face(blank(), (240, 150), 60)
    track = mesh(film([drawn] * 4 + [blank()] * 3 + [drawn] * 3))
    values, times = track.stream()
    assert len(values) == 7 and track.note == "no face in 3 of 10 frames"
    np.testing.assert_allclose(times, np.array([0, 1, 2, 3, 7, 8, 9]) * HOP)
    assert track.confidence[4:7].tolist() == [0] * 3 and not track.values[4:7].any()


@pytest.mark.parametrize(("count", "note"), [(5, "no face in any of 5 frames"), (0, "no frame in the video")])
def test_nobody_is_told(mesh, count, note):
    track = mesh(film([np.zeros((90, 120, 3), np.uint8)] * count))
    assert track.note == note and track.values.shape == (count, 24) and track.stream()[0].shape == (0, 24)


def test_the_same_frames_give_the_same_numbers(mesh):
    frames = film(draw_face(blank(), (240 + 3 * t, 150), 55, smile=0.01 * t) for t in range(6))
    np.testing.assert_array_equal(mesh(frames).values, mesh(iter(frames)).values)


def test_nothing_is_written_to_standard_error_and_it_works_again_after(mesh, capfd):
    frames = film([blank(), draw_face(blank(), (240, 150), 60)])
    assert len(mesh(frames).stream()[0]) == 1  # a new graph, so that its models write their first words
    print("afterwards", file=sys.stderr)
    assert capfd.readouterr().err == "afterwards\n"


def test_what_others_write_meanwhile_is_passed_on(capfd):
    with face._silenced(already=False):
        os.write(2, b"INFO: Created TensorFlow Lite XNNPACK delegate for CPU.\nsomebody else's words\n")
        os.write(2, b"W0000 00:00:1795352761.833277    2665 inference_feedback_manager.cc:114] Feedback manager\n")
    assert capfd.readouterr().err == "somebody else's words\n"


def test_recipe_names_the_channels_and_makes_the_extractor_again():
    made = FaceMesh(FaceSettings(hop=0.2, faces=2))
    recipe = made.recipe()
    assert recipe.channels == CHANNELS and recipe.width == 24 and recipe.settings["hop"] == 0.2
    assert FaceMesh(FaceMesh.Config(**recipe.settings)).recipe() == recipe
    assert EXTRACTORS["face_mesh"] is FaceMesh


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [({"hop": 0}, "hop is 0"), ({"faces": 0}, "faces is 0"), ({"tracking": 2}, "tracking is 2")],
)
def test_impossible_settings_are_sentences(settings, sentence):
    with pytest.raises(MoodalError, match=sentence):
        FaceSettings(**settings)


def test_without_mediapipe_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "mediapipe", None)
    monkeypatch.setitem(sys.modules, "mediapipe.python.solutions", None)
    with pytest.raises(MissingExtra, match=r"moodal\[face\]"):
        FaceMesh()(film([blank()]))
