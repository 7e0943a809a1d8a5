"""The pictures of a clip by time: upright, with square pixels, scaled down, whatever the rate they came in."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from moodal.core.errors import check
from moodal.features.container import LIMITS, Clock, Limits, MediaError, decoded, opened, stream_of

#: How much a pixel may be wider than high, or the reverse, to be believed.
WIDEST_PIXEL = 4.0


@dataclass
class Frame:
    """``picture``: (H, W, 3) uint8 RGB, upright, shown ``time`` seconds after the start of the part asked for."""

    time: float
    picture: np.ndarray


def read_frames(
    path: Path,
    *,
    rate: float | None = None,
    start: float = 0.0,
    end: float | None = None,
    longest: int | None = 640,
    limits: Limits = LIMITS,
) -> Iterator[Frame]:
    """The pictures from ``start`` to ``end`` seconds, by the time at which they are shown.

    ``rate``: the picture that a player shows at each multiple of 1/rate seconds (None: every picture once). ``longest``:
    the longer side is scaled down to so many pixels. No more than ``limits.seconds`` x ``limits.rate`` pictures are
    decoded, and what is damaged is left out. Raises MediaError when the file cannot be opened or has no pictures.
    """
    check(rate is None or rate > 0, f"rate is {rate}; give pictures a second, above 0.")
    stop = start + limits.seconds if end is None else min(end, start + limits.seconds)
    with opened(path, limits) as container:
        stream = stream_of(container, "video")
        if stream is None:
            raise MediaError(f"{path} has no pictures; give a video, or text and sound alone.")
        scaler = _Scaler(stream, longest)
        shown = _spans(container, stream, start, stop, limits)
        yield from _every(shown, scaler, start) if rate is None else _regular(shown, scaler, start, stop, rate)


def _spans(
    container: Any, stream: Any, start: float, stop: float, limits: Limits
) -> Iterator[tuple[float, float, Any]]:
    """(from, until, frame): each frame and the seconds in which it is shown, until ``stop``."""
    step = 1 / usual_rate(stream)
    clock = Clock(container, step=step, longest=stop)
    held: tuple[float, float, Any] | None = None
    for count, frame in enumerate(decoded(container, stream, limits, start=start)):
        lasts = float(frame.duration * frame.time_base) if frame.duration and frame.time_base else step
        time = clock(frame, lasts)
        if held is not None and time > held[0]:
            yield held[0], min(time, stop), held[2]
        held = (time, time + lasts, frame)
        if time >= stop or count >= stop * limits.rate:
            return
    if held is not None:
        yield held[0], min(held[1], stop), held[2]


def _every(shown: Iterator[tuple[float, float, Any]], scaler: _Scaler, start: float) -> Iterator[Frame]:
    for since, _, frame in shown:
        if since >= start and (picture := scaler(frame)) is not None:
            yield Frame(since - start, picture)


def _regular(
    shown: Iterator[tuple[float, float, Any]], scaler: _Scaler, start: float, stop: float, rate: float
) -> Iterator[Frame]:
    """What is shown at each multiple of 1/rate; the first picture also stands for up to one step before it."""
    place, hair = 0, 1e-6
    first = True
    for since, until, frame in shown:
        earliest = since - 1 / rate if first else since
        while start + place / rate < earliest - hair:
            place += 1  # nothing is shown yet
        picture = None
        while start + place / rate < min(until, stop) - hair:
            picture = scaler(frame) if picture is None else picture
            if picture is None:
                break
            yield Frame(place / rate, picture)
            place += 1
        first = False


def usual_rate(stream: Any) -> float:
    """Pictures a second as the stream states them, 25 where that is not to be believed."""
    for stated in (stream.average_rate, stream.guessed_rate):
        if stated and 0.1 <= float(stated) <= 1000:
            return float(stated)
    return 25.0


class _Scaler:
    """Frames of one stream to upright RGB pictures."""

    def __init__(self, stream: Any, longest: int | None) -> None:
        from av.video.reformatter import VideoReformatter

        self.reformatter = VideoReformatter()
        self.longest = longest
        self.pixel = pixel_shape(stream)

    def __call__(self, frame: Any) -> np.ndarray | None:
        """(H, W, 3) uint8; None for a damaged frame."""
        width, height = frame.width * max(self.pixel, 1.0), frame.height * max(1 / self.pixel, 1.0)
        scale = 1.0 if self.longest is None else min(1.0, self.longest / max(width, height))
        try:
            ready = self.reformatter.reformat(
                frame, max(round(width * scale), 1), max(round(height * scale), 1), "rgb24", threads=1
            )
            return upright(ready.to_ndarray(), turning(frame))
        except Exception:  # formats that the scaler does not take, sizes that it refuses
            return None


def pixel_shape(stream: Any) -> float:
    """Width of a pixel over its height, 1 where that is not to be believed."""
    stated = stream.sample_aspect_ratio
    shape = float(stated) if stated else 1.0
    return shape if 1 / WIDEST_PIXEL <= shape <= WIDEST_PIXEL else 1.0


def turning(frame: Any) -> tuple[int, int, int, int]:
    """(a, b, c, d) of the display matrix in signs: stored (x, y) is shown at (a x + c y, b x + d y)."""
    for place in range(len(frame.side_data)):
        data = frame.side_data[place]
        if data.type.name == "DISPLAYMATRIX":
            matrix = np.frombuffer(bytes(data), np.int32)
            a, b, c, d = (int(np.sign(value)) for value in matrix[[0, 1, 3, 4]])
            straight = abs(int(matrix[0])) >= abs(int(matrix[1]))
            return (a or 1, 0, 0, d or 1) if straight else (0, b or 1, c or 1, 0)
    return 1, 0, 0, 1


def upright(picture: np.ndarray, turned: tuple[int, int, int, int]) -> np.ndarray:
    """The picture as it is shown: quarter turns and mirrorings of ``turned`` (:func:`turning`) carried out."""
    a, b, c, d = turned
    if not a:
        picture, a, d = picture.swapaxes(0, 1), c, b
    return np.ascontiguousarray(picture[:: d or 1, :: a or 1])


def degrees(turned: tuple[int, int, int, int]) -> int:
    """Degrees clockwise by which the stored picture is turned to be shown."""
    a, b, _, _ = turned
    return round(math.degrees(math.atan2(b, a))) % 360
