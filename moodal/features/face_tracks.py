"""Whose face is whose over a clip, and which of them is the main speaker's."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

#: Overlap of two boxes (area shared over area covered) from which they are the same face in the next frame, and from
#: which they are one face found twice in the same frame.
SAME, TWICE = 0.2, 0.5
#: Seconds after which a face that was lost is no longer waited for.
PATIENCE = 1.0
#: Mouth movement that counts for a still mouth, so that size decides between silent faces: eye distances a second.
STILL = 0.1
#: Frames below which one is no face but a mistake, where there are longer ones.
FEW = 3
#: Faces of this share of the main speaker's size, found where it was lost, continue it.
NEAR_SIZE = 0.5
_LIPS, _EYES = (13, 14), (33, 263)


@dataclass
class Person:
    """One face over time: ``frames`` it is in, ascending, and the ``place`` it has among the faces of each."""

    frames: list[int] = field(default_factory=list)
    places: list[int] = field(default_factory=list)
    box: np.ndarray = field(default_factory=lambda: np.zeros(4))


@dataclass(frozen=True)
class Followed:
    """``place``: (T,) which face of each frame is the main speaker's, -1 where there is none. ``people``: how many
    different faces there are. ``jumps``: how often the speaker was lost and found again elsewhere."""

    place: np.ndarray
    people: int
    jumps: int


def distinct(faces: np.ndarray) -> np.ndarray:
    """(F, 478, 3) faces of one frame without those found twice; of these the first stays."""
    boxes = _boxes(faces)
    kept: list[int] = []
    for face, box in enumerate(boxes):
        if not len(kept) or _overlap(box[None], boxes[kept]).max() < TWICE:
            kept.append(face)
    return faces[kept]


def follow(faces: Sequence[np.ndarray], times: np.ndarray) -> Followed:
    """Follow the main speaker through the frames of a clip.

    ``faces``: for each frame (F, 478, 3) points in pixels; ``times``: (T,) seconds. A face is the one whose box overlaps it
    most in the frames before. The main speaker is the largest and most moving mouth: the highest of frames x size x
    (mouth movement + ``STILL``). Where it is lost, a face of about its size that is nowhere seen beside it continues it.
    """
    people = _people(faces, times)
    steady = [person for person in people if len(person.frames) >= FEW] or people
    place = np.full(len(faces), -1)
    if not steady:
        return Followed(place, 0, 0)
    ranked = sorted(steady, key=lambda person: -_standing(person, faces, times))
    main, parts = ranked[0], 0
    for person in ranked:
        same_size = _size(person, faces) >= NEAR_SIZE * _size(main, faces)
        if person is main or (same_size and np.all(place[person.frames] < 0)):
            place[person.frames] = person.places
            parts += 1
    return Followed(place, len(ranked) - parts + 1, parts - 1)


def _people(faces: Sequence[np.ndarray], times: np.ndarray) -> list[Person]:
    people: list[Person] = []
    for frame, found in enumerate(faces):
        boxes = _boxes(found)
        open_ones = [person for person in people if times[frame] - times[person.frames[-1]] <= PATIENCE]
        partner = dict(_pairs(boxes, open_ones))
        for place, box in enumerate(boxes):
            person = partner.get(place)
            if person is None:
                person = Person()
                people.append(person)
            person.frames.append(frame)
            person.places.append(place)
            person.box = box
    return people


def _pairs(boxes: np.ndarray, people: Sequence[Person]) -> Iterator[tuple[int, Person]]:
    """Which of ``people`` each box continues: the pairs of the largest total overlap."""
    from scipy.optimize import linear_sum_assignment

    if not len(boxes) or not people:
        return
    shared = _overlap(boxes, np.stack([person.box for person in people]))
    for place, known in zip(*linear_sum_assignment(-shared), strict=True):
        if shared[place, known] >= SAME:
            yield int(place), people[known]


def _boxes(faces: np.ndarray) -> np.ndarray:
    """(F, 4): left, top, right, bottom."""
    if not len(faces):
        return np.zeros((0, 4))
    return np.concatenate([faces[..., :2].min(axis=1), faces[..., :2].max(axis=1)], axis=1)


def _overlap(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(A, 4), (B, 4) boxes -> (A, B): area shared over area covered."""
    sides = np.minimum(a[:, None, 2:], b[None, :, 2:]) - np.maximum(a[:, None, :2], b[None, :, :2])
    shared = np.prod(np.maximum(sides, 0), axis=-1)
    area_a, area_b = (np.prod(box[:, 2:] - box[:, :2], axis=-1) for box in (a, b))
    return shared / np.maximum(area_a[:, None] + area_b[None] - shared, 1e-9)


def _size(person: Person, faces: Sequence[np.ndarray]) -> float:
    """Pixels: the middle of its eye distances."""
    return float(np.median(_distance(_points(person, faces), _EYES)))


def _standing(person: Person, faces: Sequence[np.ndarray], times: np.ndarray) -> float:
    """How much speaks for its being the main speaker."""
    points = _points(person, faces)
    gap = _distance(points, _LIPS) / np.maximum(_distance(points, _EYES), 1e-9)
    seconds = np.maximum(np.diff(times[person.frames]), 1e-3)
    moving = float((np.abs(np.diff(gap)) / seconds).mean()) if len(gap) > 1 else 0.0
    return len(points) * _size(person, faces) * (moving + STILL)


def _points(person: Person, faces: Sequence[np.ndarray]) -> np.ndarray:
    return np.stack([faces[frame][place] for frame, place in zip(person.frames, person.places, strict=True)])


def _distance(points: np.ndarray, pair: tuple[int, int]) -> np.ndarray:
    return np.linalg.norm(points[:, pair[0]] - points[:, pair[1]], axis=-1)
