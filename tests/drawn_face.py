"""A face drawn with ellipses, which a face mesh finds: tests of the whole way need no picture of a person."""

from __future__ import annotations

import numpy as np

SKIN, HAIR, LIPS = (225, 178, 150), (60, 40, 30), (190, 90, 90)
#: Parts of a circle's sixteenth of a pixel that OpenCV draws to.
_FINE = 4


def blank(width: int = 480, height: int = 360) -> np.ndarray:
    """(H, W, 3) uint8 RGB: an empty wall."""
    return np.full((height, width, 3), (90, 120, 160), np.uint8)


def draw_face(
    wall: np.ndarray,
    place: tuple[float, float],
    unit: float,
    *,
    smile: float = 0.0,
    brow: float = 0.0,
    gap: float = 0.0,
) -> np.ndarray:
    """A copy of ``wall`` with a face whose eyes are ``unit`` pixels apart, half way between them at ``place``.

    ``smile``, ``brow``, ``gap``: lip corners up, brows up, lips apart, in eye distances.
    """
    import cv2

    picture = wall.copy()

    def spots(*points: tuple[float, float]) -> np.ndarray:
        at = np.array(place) + unit * np.array(points) * (1, -1)
        return np.round(at * 2**_FINE).astype(np.int32)

    def ellipse(x: float, y: float, width: float, height: float, colour: tuple[int, int, int]) -> None:
        centre, axes = spots((x, y))[0], np.round(unit * np.array([width, height]) * 2**_FINE).astype(int)
        cv2.ellipse(picture, centre.tolist(), axes.tolist(), 0, 0, 360, colour, -1, cv2.LINE_AA, _FINE)

    def line(width: float, colour: tuple[int, int, int], *points: tuple[float, float]) -> None:
        cv2.polylines(picture, [spots(*points)], False, colour, max(1, int(width * unit)), cv2.LINE_AA, _FINE)

    for x, y, width, height, colour in (
        (0, -0.35, 1.25, 1.75, HAIR), (0, -2.2, 0.55, 0.9, (200, 150, 120)), (0, -0.55, 1.08, 1.5, SKIN),
        (0, 0.85, 1.0, 0.35, HAIR), (0, -0.5, 0.09, 0.3, (235, 192, 165)), (0, -0.65, 0.2, 0.12, (232, 186, 158)),
    ):  # fmt: skip
        ellipse(x, y, width, height, colour)
    for side in (-1, 1):
        ellipse(side * 0.5, 0, 0.24, 0.11, (250, 250, 250))
        ellipse(side * 0.5, 0, 0.10, 0.10, (70, 50, 30))
        ellipse(side * 0.5, 0, 0.05, 0.05, (10, 10, 10))
        ellipse(side * 0.13, -0.72, 0.06, 0.04, (150, 95, 80))
        line(0.05, (80, 50, 40), *((side * x, y) for x, y in ((0.26, 0.02), (0.4, 0.11), (0.6, 0.11), (0.76, 0.01))))
        line(0.1, (70, 45, 30), *((side * x, y + brow) for x, y in ((0.2, 0.3), (0.5, 0.42), (0.85, 0.33))))
    corner = -1.15 + smile
    upper = [(-0.42, corner), (-0.15, -1.08), (0, -1.11), (0.15, -1.08), (0.42, corner)]
    cv2.fillPoly(
        picture, [spots(*upper, (0.2, -1.3 - gap), (0, -1.34 - gap), (-0.2, -1.3 - gap))], LIPS, cv2.LINE_AA, _FINE
    )
    cv2.fillPoly(
        picture, [spots((-0.4, corner), (0, -1.19), (0.4, corner), (0, -1.21 - gap))], (90, 25, 30), cv2.LINE_AA, _FINE
    )
    return cv2.GaussianBlur(picture, (0, 0), 1.2)
