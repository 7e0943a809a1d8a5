"""From the points of a face mesh to numbers with names: action-unit-like signals, head pose, gaze, and how far to trust them.

Each face is first laid over an average face (turn, shift and size by least squares over points that hardly move with the
expression), so position, size and turn within the picture have no influence, and the turn of the head little. What is
then measured is in hundredths of the distance between the eyes, 0 for the average face, and grows with the
movement. Nothing is learned from labels, and each frame is measured for itself, so a clip cut elsewhere gives the same numbers.

With x outward from the middle of the face, y up, z towards the camera, the mean of both sides, and points as in ``face_points``:

=======  ========================  ===============================================================================
AU01_r   inner brow raised         y(inner brow)
AU02_r   outer brow raised         y(outer brow)
AU04_r   brows lowered             -(y(inner brow) + x(inner brow)) / 2: down and together
AU05_r   eyes wide                 y(upper lid) - y(corners of the eye)
AU06_r   cheeks raised             y(cheek)
AU07_r   lower lids tight          y(lower lid) - y(corners of the eye)
AU09_r   nose wrinkled             y(wing of the nose)
AU10_r   upper lip raised          y(top of the upper lip) - y(base of the nose)
AU12_r   lip corners pulled up     0.8 y(lip corner) + 0.6 x(lip corner)
AU15_r   lip corners pulled down   y(middle of the inner lips) - y(lip corner)
AU17_r   chin raised               y(bottom of the lower lip) - y(chin)
AU20_r   lips stretched            0.8 x(lip corner) - 0.6 y(lip corner): what is square to AU12_r
AU23_r   lips tight                -(height of the red of both lips)
AU25_r   lips parted               gap between the inner lips; 0 when closed
AU26_r   jaw dropped               -y(chin)
AU45_r   eyes closing              100 max(0, 1 - eye_openness / that of the average face): 0 when open
=======  ========================  ===============================================================================

Others: ``eye_openness`` (gap of the lids over width of the eye), ``brow_asymmetry`` and ``mouth_asymmetry`` (how much
higher the person's left side is), ``head_pitch`` (up), ``head_yaw`` (towards the right of the picture) and ``head_roll``
(clockwise in the picture) in degrees, ``gaze_x`` (towards the right of the picture) and ``gaze_y`` (up): where the iris lies
between the corners of the eye, in hundredths of the width of the eye.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from moodal.core.errors import MissingExtra, check
from moodal.features import face_points as at

CHANNELS = (
    *(f"AU{unit:02d}_r" for unit in (1, 2, 4, 5, 6, 7, 9, 10, 12, 15, 17, 20, 23, 25, 26, 45)),
    "eye_openness", "brow_asymmetry", "mouth_asymmetry", "head_pitch", "head_yaw", "head_roll", "gaze_x", "gaze_y",
)  # fmt: skip
#: Eye distance in pixels from which a face is large enough, and degrees of turn up to which, and from which, it is
#: seen well, and not at all.
LARGE, FRONTAL, PROFILE = 30.0, 30.0, 90.0
#: From right, down, away to right, up, near, and back.
_AXES = np.array([1.0, -1.0, -1.0])
#: What a face that was found is trusted at least: 0 means that there is none.
LEAST = 0.05


def signals(points: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Measure faces.

    ``points``: (T, 478, 3) in pixels: right, down, away from the camera, as the mesh gives them. ``sizes``: (T, 2) width and
    height of the pictures in pixels. Returns (T, 24) float32, the channels of ``CHANNELS``.
    """
    check(
        points.ndim == 3 and points.shape[1:] == (at.POINTS, 3) and sizes.shape == (len(points), 2),
        f"points of faces: expected (T, {at.POINTS}, 3) and (T, 2) sizes, got {points.shape} and {sizes.shape}.",
    )
    if not len(points):
        return np.zeros((0, len(CHANNELS)), np.float32)
    laid = _laid_over(points)
    measured = _expression(laid.face)
    measured |= dict(zip(("head_pitch", "head_yaw", "head_roll"), _pose(points, sizes, laid).T, strict=True))
    rest = _rest()
    return np.stack([measured[name] - rest.get(name, 0.0) for name in CHANNELS], axis=1).astype(np.float32)


def confidence(points: np.ndarray, sizes: np.ndarray, values: np.ndarray) -> np.ndarray:
    """How far the signals of a face can be trusted, from what spoils them: (T,) in [0.05, 1].

    The share of its points inside the picture x how frontal it is (1 up to 30 degrees, 0 at 90) x how large it is (1 from
    an eye distance of 30 pixels). ``points``, ``sizes``: as for :func:`signals`, which gave ``values``.
    """
    inside = np.all((points[..., :2] >= 0) & (points[..., :2] <= sizes[:, None]), axis=-1).mean(axis=-1)
    pitch, yaw = (np.radians(values[:, CHANNELS.index(name)]) for name in ("head_pitch", "head_yaw"))
    turn = np.degrees(np.arccos(np.clip(np.cos(pitch) * np.cos(yaw), -1, 1)))
    frontal = np.clip((PROFILE - turn) / (PROFILE - FRONTAL), 0, 1)
    large = np.clip(_laid_over(points).pixels / LARGE, 0, 1)
    return np.maximum(inside * frontal * large, LEAST)


@dataclass(frozen=True)
class _Laid:
    """Faces over the average face: ``face`` (T, 478, 3) in its coordinates, ``pixels`` (T,) of the eye distance, and how it
    is turned in the picture: ``turn`` (T, 3, 3) over right, down and away axes."""

    face: np.ndarray
    pixels: np.ndarray
    turn: np.ndarray


def _laid_over(points: np.ndarray) -> _Laid:
    """Lay faces over the average one: least squares over turn, shift and size (Umeyama, IEEE PAMI 13(4), 1991)."""
    face = points.astype(np.float64) * _AXES
    stable, target = face[:, at.STABLE], _reference()[list(at.STABLE)]
    middle, target_middle = stable.mean(axis=1, keepdims=True), target.mean(axis=0)
    spread = np.einsum("tki,kj->tij", stable - middle, target - target_middle)
    left, stretch, right = np.linalg.svd(spread)
    handed = np.ones_like(stretch)
    handed[:, 2] = np.sign(np.linalg.det(left @ right))
    size = np.sum(stretch * handed, axis=1) / np.sum((stable - middle) ** 2, axis=(1, 2))
    turn = (left * handed[:, None]) @ right
    laid = ((face - middle) @ turn) * size[:, None, None] + target_middle
    return _Laid(laid, 1 / size, turn * np.outer(_AXES, _AXES))


def _expression(face: np.ndarray) -> dict[str, np.ndarray]:
    """(T, 478, 3) laid over the average face -> channel -> (T,)."""
    inner, outer = _sides(face, at.INNER_BROW), _sides(face, at.OUTER_BROW)
    upper, lower = _sides(face, at.UPPER_LID), _sides(face, at.LOWER_LID)
    near, far = _sides(face, at.INNER_CORNER), _sides(face, at.OUTER_CORNER)
    corner = _sides(face, at.LIP_CORNER)
    base, top, bottom, chin = (
        _mean(face, p)[:, 1] for p in (at.NOSE_BASE, at.UPPER_LIP_TOP, at.LOWER_LIP_BOTTOM, at.CHIN)
    )
    above, below = _mean(face, at.UPPER_LIP_EDGE)[:, 1], _mean(face, at.LOWER_LIP_EDGE)[:, 1]
    eye = (near + far) / 2
    width = np.linalg.norm(far - near, axis=-1)
    openness = ((upper - lower)[..., 1] / width).mean(axis=1)
    # The sides' x is outward; in the picture the iris moves outward in one eye and inward in the other.
    gaze = ((_sides(face, at.IRIS) - eye)[..., :2] / width[..., None] * _OUTWARD_AND_UP).mean(axis=1)
    x, y = corner[..., 0].mean(axis=1), corner[..., 1].mean(axis=1)
    measured = {
        "AU01_r": inner[..., 1].mean(axis=1), "AU02_r": outer[..., 1].mean(axis=1),
        "AU04_r": -(inner[..., 1] + inner[..., 0]).mean(axis=1) / 2,
        "AU05_r": (upper - eye)[..., 1].mean(axis=1), "AU06_r": _sides(face, at.CHEEK)[..., 1].mean(axis=1),
        "AU07_r": (lower - eye)[..., 1].mean(axis=1), "AU09_r": _sides(face, at.NOSE_WING)[..., 1].mean(axis=1),
        "AU10_r": top - base, "AU12_r": 0.8 * y + 0.6 * x, "AU15_r": (above + below) / 2 - y, "AU17_r": bottom - chin,
        "AU20_r": 0.8 * x - 0.6 * y, "AU23_r": -(top - above) - (below - bottom), "AU25_r": above - below,
        "AU26_r": -chin, "AU45_r": np.maximum(0.0, 1 - openness / _open_eye()), "eye_openness": openness,
        "brow_asymmetry": (inner + outer)[:, 1, 1] / 2 - (inner + outer)[:, 0, 1] / 2,
        "mouth_asymmetry": corner[:, 1, 1] - corner[:, 0, 1], "gaze_x": gaze[:, 0], "gaze_y": gaze[:, 1],
    }  # fmt: skip
    return {name: 100 * values for name, values in measured.items()}


#: For the right and the left side: what turns x outward into x to the right of the picture.
_OUTWARD_AND_UP = np.array([[-1.0, 1.0], [1.0, 1.0]])
#: Channels whose zero is not that of the average face: what is 0 has a meaning of its own there.
_ABSOLUTE = ("AU25_r", "AU45_r", "eye_openness", "brow_asymmetry", "mouth_asymmetry")


def _mean(face: np.ndarray, points: tuple[int, ...]) -> np.ndarray:
    """(T, 3): the mean of some points."""
    return face[:, points].mean(axis=1)


def _sides(face: np.ndarray, points: tuple[tuple[int, ...], tuple[int, ...]]) -> np.ndarray:
    """(T, 2, 3): the means of points of the right and the left side, x outward."""
    right, left = points
    return np.stack([_mean(face, right) * (-1, 1, 1), _mean(face, left)], axis=1)


def _pose(points: np.ndarray, sizes: np.ndarray, laid: _Laid) -> np.ndarray:
    """(T, 3) degrees of pitch, yaw and roll: the turn under which a camera sees the average face's stable points there.

    Perspective-n-point over a pinhole camera as long as the picture's longer side, by cv2.solvePnP from where ``laid``
    has the face, so that it cannot end in the mirrored turn that the same points permit.
    """
    cv2 = _cv2()
    solid = _reference()[list(at.STABLE)] * _AXES
    seen = np.ascontiguousarray(points[:, at.STABLE, :2], dtype=np.float64)
    turns = np.zeros((len(points), 3, 3))
    for frame, (width, height) in enumerate(sizes):
        length = float(max(width, height))
        camera = np.array([[length, 0, width / 2], [0, length, height / 2], [0, 0, 1]])
        turn = cv2.Rodrigues(laid.turn[frame])[0]
        away = seen[frame].mean(axis=0) - (width / 2, height / 2)
        shift = np.array([*away, length]) / laid.pixels[frame]
        _, turn, _ = cv2.solvePnP(solid, seen[frame], camera, None, turn, shift, True, cv2.SOLVEPNP_ITERATIVE)
        turns[frame] = cv2.Rodrigues(turn)[0]
    # The camera's axes are right, down, away: turns about the first bow the head, about the second turn it to the left.
    pitch = np.arctan2(turns[:, 2, 1], turns[:, 2, 2])
    yaw = np.arctan2(-turns[:, 2, 0], np.hypot(turns[:, 2, 1], turns[:, 2, 2]))
    roll = np.arctan2(turns[:, 1, 0], turns[:, 0, 0])
    return np.degrees(np.stack([-pitch, -yaw, roll], axis=1))


@lru_cache(maxsize=1)
def _reference() -> np.ndarray:
    return at.reference_face()


@lru_cache(maxsize=1)
def _open_eye() -> float:
    """``eye_openness`` of the average face, as a share."""
    face = _reference()[None]
    near, far = _sides(face, at.INNER_CORNER), _sides(face, at.OUTER_CORNER)
    gap = (_sides(face, at.UPPER_LID) - _sides(face, at.LOWER_LID))[..., 1]
    return float((gap / np.linalg.norm(far - near, axis=-1)).mean())


@lru_cache(maxsize=1)
def _rest() -> dict[str, float]:
    """What the average face measures, for the channels whose zero it is."""
    return {name: float(v[0]) for name, v in _expression(_reference()[None]).items() if name not in _ABSOLUTE}


def _cv2() -> Any:
    try:
        import cv2
    except ImportError as error:
        raise MissingExtra("opencv", "face") from error
    return cv2
