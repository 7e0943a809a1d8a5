"""Signals of a face on made points: known movements are followed, others are not; place, size and turn do not matter."""

from __future__ import annotations

import numpy as np
import pytest

from moodal.core.errors import MoodalError
from moodal.explain import face as told
from moodal.features import face_points as at
from moodal.features.face_signals import CHANNELS, confidence, signals

pytest.importorskip("cv2")
WIDTH, HEIGHT, DISTANCE = 640, 480, 60.0
FRAMES = 200
#: Movement -> (points, outward, up) in eye distances at its full extent. Outward is away from the middle of the face.
MOVES = {
    "smile": [((61, 291), 0.06, 0.08)],
    "inner_brow": [((*at.INNER_BROW[0], *at.INNER_BROW[1]), 0.0, 0.08)],
    "outer_brow": [((*at.OUTER_BROW[0], *at.OUTER_BROW[1]), 0.0, 0.08)],
    "frown": [((*at.INNER_BROW[0], *at.INNER_BROW[1]), -0.06, -0.06)],
    "cheek": [((*at.CHEEK[0], *at.CHEEK[1]), 0.0, 0.06)],
    "nose": [((*at.NOSE_WING[0], *at.NOSE_WING[1]), 0.0, 0.05)],
    "upper_lip": [(at.UPPER_LIP_TOP, 0.0, 0.05)],
    "corner_down": [((61, 291), 0.0, -0.08)],
    "chin": [(at.LOWER_LIP_BOTTOM, 0.0, 0.06)],
    "stretch": [((61, 291), 0.08, -0.06)],
    "jaw": [((*at.CHIN, *at.LOWER_LIP_BOTTOM, *at.LOWER_LIP_EDGE), 0.0, -0.15)],
    "part": [(at.LOWER_LIP_EDGE, 0.0, -0.05), (at.UPPER_LIP_EDGE, 0.0, 0.05)],
    "blink": [((*at.UPPER_LID[0], *at.UPPER_LID[1]), 0.0, -0.1)],
    "wide": [((*at.UPPER_LID[0], *at.UPPER_LID[1]), 0.0, 0.05)],
    "lower_lid": [((*at.LOWER_LID[0], *at.LOWER_LID[1]), 0.0, 0.05)],
    "tight": [((*at.UPPER_LIP_TOP, ), 0.0, -0.05), (at.LOWER_LIP_BOTTOM, 0.0, 0.05)],
}  # fmt: skip
FOLLOWS = {
    "smile": "AU12_r", "inner_brow": "AU01_r", "outer_brow": "AU02_r", "frown": "AU04_r", "cheek": "AU06_r",
    "nose": "AU09_r", "upper_lip": "AU10_r", "corner_down": "AU15_r", "chin": "AU17_r", "stretch": "AU20_r",
    "jaw": "AU26_r", "part": "AU25_r", "blink": "AU45_r", "wide": "AU05_r", "lower_lid": "AU07_r", "tight": "AU23_r",
}  # fmt: skip


def face(**amounts: np.ndarray) -> np.ndarray:
    """(T, 478, 3) towards the person's left, up, towards the camera: the average face, moved."""
    frames = max((len(amount) for amount in amounts.values()), default=1)
    average = at.reference_face()
    unused = np.flatnonzero(np.isnan(average[:, 0]))
    average[unused] = average[np.resize(list(at.REFERENCE), len(unused))]
    points = np.repeat(average[None], frames, axis=0)
    for name, amount in amounts.items():
        for moved, outward, up in MOVES[name]:
            outwards = np.sign(points[:, moved, 0])
            points[:, moved, 0] += outward * outwards * amount[:, None]
            points[:, moved, 1] += up * amount[:, None]
    return points


def turn(pitch: np.ndarray, yaw: np.ndarray, roll: np.ndarray) -> np.ndarray:
    """(T, 3, 3): up, to the right of the picture and clockwise, in degrees, over right, down and away axes."""
    from scipy.spatial.transform import Rotation

    return Rotation.from_euler("zyx", np.stack([roll, -yaw, -pitch], axis=1), degrees=True).as_matrix()


def filmed(points, *, pitch=0.0, yaw=0.0, roll=0.0, size=DISTANCE, place=(320, 240), noise=0.0, seed=0):
    """As the mesh gives it: pixels, right, down and away, seen from so far that size does not change with depth."""
    frames = len(points)
    pitch, yaw, roll = (np.broadcast_to(np.asarray(angle, float), frames) for angle in (pitch, yaw, roll))
    turned = np.einsum("tij,tkj->tki", turn(pitch, yaw, roll), points * (1, -1, -1))
    seen = turned * np.broadcast_to(np.asarray(size, float), frames)[:, None, None]
    seen[..., :2] += np.asarray(place, float).reshape(-1, 1, 2)
    return seen + np.random.default_rng(seed).normal(0, noise, seen.shape)


def measured(seen) -> dict[str, np.ndarray]:
    values = signals(seen, np.tile([WIDTH, HEIGHT], (len(seen), 1)))
    return dict(zip(CHANNELS, values.astype(float).T, strict=True))


def curve(seed: int, frames: int = FRAMES) -> np.ndarray:
    """A smooth curve from 0 to 1."""
    generator = np.random.default_rng(seed)
    at_time = np.arange(frames) / frames
    waves = sum(np.sin(2 * np.pi * (f * at_time + generator.random())) for f in generator.uniform(2, 14, 5))
    return (waves - waves.min()) / np.ptp(waves)


def follows(a, b) -> float:
    return float(np.corrcoef(a, b)[0, 1])


def test_roll_smile_and_brow_are_followed_together_under_noise():
    roll, smile, brow = 20 * (2 * curve(1) - 1), curve(2), curve(3)
    place = np.stack([250 + 150 * curve(4), 200 + 100 * curve(5)], axis=1)
    found = measured(
        filmed(
            face(smile=smile, inner_brow=brow, outer_brow=brow, jaw=curve(6), blink=(curve(7) > 0.9) * 1.0),
            pitch=16 * curve(8) - 8, yaw=20 * curve(9) - 10, roll=roll, size=50 + 40 * curve(10), place=place, noise=0.7,
        )
    )  # fmt: skip
    assert follows(found["head_roll"], roll) > 0.99
    assert follows(found["AU12_r"], smile) > 0.9
    assert follows(found["AU01_r"], brow) > 0.8 and follows(found["AU02_r"], brow) > 0.8
    for other in ("AU12_r", "AU01_r", "AU26_r"):
        assert abs(follows(found[other], roll)) < abs(follows(roll, smile)) + 0.25


@pytest.mark.parametrize("move", MOVES)
def test_each_unit_follows_its_movement(move):
    amount = curve(11)
    found = measured(filmed(face(**{move: amount}), roll=30 * curve(12), yaw=6 * curve(13), noise=0.3))
    assert follows(found[FOLLOWS[move]], amount) > 0.9


@pytest.mark.parametrize("move", MOVES)
def test_eyes_and_mouth_do_not_move_each_other(move):
    """What moves in one half of the face leaves the units of the other as they were."""
    upper = {"AU01_r", "AU02_r", "AU04_r", "AU05_r", "AU07_r", "AU45_r", "eye_openness"}
    lower = {"AU10_r", "AU12_r", "AU15_r", "AU17_r", "AU20_r", "AU23_r", "AU25_r", "AU26_r"}
    found = measured(filmed(face(**{move: np.array([0.0, 1.0])})))
    others = lower if FOLLOWS[move] in upper else upper
    for name in others:
        assert found[name][1] == pytest.approx(found[name][0], abs=1e-3), name
    assert found[FOLLOWS[move]][1] > found[FOLLOWS[move]][0] + 2


def test_smile_and_stretch_are_square_to_each_other():
    smile = measured(filmed(face(smile=np.array([0.0, 1.0]))))
    assert np.diff(smile["AU12_r"])[0] == pytest.approx(10, abs=0.01)
    assert np.diff(smile["AU20_r"])[0] == pytest.approx(0, abs=0.01)


def test_the_average_face_is_zero_and_its_eyes_are_open():
    found = measured(filmed(face()))
    for name in CHANNELS:
        if name not in ("AU25_r", "eye_openness"):
            # The pose is seen in perspective, and this face from infinitely far.
            assert found[name][0] == pytest.approx(0, abs=2.5 if name.startswith("head") else 0.05), name
    assert 20 < found["eye_openness"][0] < 45 and 0 <= found["AU25_r"][0] < 15


def test_place_size_and_turn_in_the_picture_do_not_matter():
    points = face(smile=np.array([0.7]), frown=np.array([0.4]), jaw=np.array([0.5]))
    plain = measured(filmed(points))
    moved = measured(filmed(points, roll=70.0, size=25.0, place=(90, 400)))
    for name in CHANNELS:
        if not name.startswith("head"):
            assert moved[name][0] == pytest.approx(plain[name][0], abs=0.01), name
    assert moved["head_roll"][0] == pytest.approx(70, abs=3)  # a camera looks at a corner aslant


def test_turning_the_head_moves_the_units_little():
    points = face(smile=np.array([0.5]))
    plain = measured(filmed(points))
    for angles in ({"yaw": 25.0}, {"yaw": -25.0}, {"pitch": 20.0}, {"pitch": -20.0}):
        turned = measured(filmed(points, **angles))
        units = [name for name in CHANNELS if name.startswith("AU")]
        assert max(abs(turned[name][0] - plain[name][0]) for name in units) < 0.1  # of hundredths; a smile has 10


@pytest.mark.parametrize("channel", ["pitch", "yaw", "roll"])
@pytest.mark.parametrize("degrees", [-25.0, -8.0, 8.0, 25.0])
def test_head_pose_has_the_degrees_and_the_sign_it_was_given(channel, degrees):
    found = measured(filmed(face(), **{channel: degrees}, size=30.0))
    for name in ("pitch", "yaw", "roll"):
        assert found[f"head_{name}"][0] == pytest.approx(degrees if name == channel else 0.0, abs=2.5)


def test_signs_of_pose_are_what_is_seen():
    """Up: the tip of the nose rises in the picture; right: it goes right; clockwise: the chin goes left."""
    nose, chin, eyes = 4, 152, (33, 263)
    plain, up, right, clockwise = (
        filmed(face(), **turned)[0] for turned in ({}, {"pitch": 15.0}, {"yaw": 15.0}, {"roll": 15.0})
    )
    middle = lambda points: points[list(eyes)].mean(axis=0)
    assert (up - middle(up))[nose, 1] < (plain - middle(plain))[nose, 1]
    assert (right - middle(right))[nose, 0] > (plain - middle(plain))[nose, 0]
    assert (clockwise - middle(clockwise))[chin, 0] < (plain - middle(plain))[chin, 0]


def test_gaze_follows_the_irises_and_not_the_head():
    right, up = 2 * curve(20) - 1, 2 * curve(21) - 1
    points = face(jaw=curve(22))
    irises = [at.IRIS[0][0], at.IRIS[1][0]]
    points[:, irises, 0] += 0.1 * right[:, None]
    points[:, irises, 1] += 0.05 * up[:, None]
    found = measured(filmed(points, roll=20 * curve(23), yaw=10 * curve(24), noise=0.3))
    assert follows(found["gaze_x"], right) > 0.95 and follows(found["gaze_y"], up) > 0.9


def test_one_sided_movement_is_asymmetry():
    points = face()
    points[:, 291, 1] += 0.1
    points[:, at.INNER_BROW[1] + at.OUTER_BROW[1], 1] -= 0.05
    found = measured(filmed(points))
    assert found["mouth_asymmetry"][0] == pytest.approx(10, abs=0.1)
    assert found["brow_asymmetry"][0] == pytest.approx(-5, abs=0.1)


def test_confidence_falls_with_what_spoils_a_face():
    def trust(**how):
        seen = filmed(face(), **how)
        sizes = np.array([[WIDTH, HEIGHT]])
        return confidence(seen, sizes, signals(seen, sizes))[0]

    assert trust() == pytest.approx(1.0)
    assert trust(yaw=60.0) < 0.7 and trust(yaw=80.0) < trust(yaw=60.0)
    assert trust(size=10.0) == pytest.approx(1 / 3, abs=0.02)
    assert trust(place=(0, 240)) < 0.7
    assert trust(yaw=85.0, size=1.0) >= 0.05


def test_channels_are_those_that_the_explainer_tells():
    units = [name for name in CHANNELS if name.startswith("AU")]
    assert len(units) == 16 and all(told.words_of(name) for name in units)
    assert len(CHANNELS) == len(set(CHANNELS)) == 24


def test_no_face_is_no_step_and_wrong_points_are_a_sentence():
    assert signals(np.zeros((0, 478, 3)), np.zeros((0, 2))).shape == (0, 24)
    with pytest.raises(MoodalError, match="expected"):
        signals(np.zeros((2, 468, 3)), np.zeros((2, 2)))
