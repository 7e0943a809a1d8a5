"""The voice's pitch and its single periods, found in the waveform."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

#: Candidates of pitch in a frame, and how much finer than the samples lags are looked at.
CANDIDATES, FINER = 6, 4
#: Frames taken at once, so that memory does not grow with the length.
BLOCK = 256
#: Autocorrelation at a whole period above which a frame is voiced; below this share of the loudest it is silent.
VOICED, SILENT = 0.45, 0.03
#: What an octave up is worth, what a jump by an octave costs, and a change between voiced and unvoiced, each 10 ms.
OCTAVE, JUMP, CHANGE = 0.02, 0.35, 0.14
#: A period may differ from what the pitch says by this share; two periods less alike than this do not follow each other.
PERIOD_RANGE, ALIKE = 0.2, 0.4


@dataclass(frozen=True)
class Pitch:
    """``hertz``: (T,) pitch, 0 where unvoiced; ``periodicity``: (T,) autocorrelation at the period, 0 to 1."""

    hertz: np.ndarray
    periodicity: np.ndarray


@dataclass(frozen=True)
class Periods:
    """Periods of the voice in the order of time: ``at`` (P,) samples of their middles, ``length`` (P,) in samples,
    ``height`` (P,) from the lowest to the highest sample, ``run`` (P,) the unbroken stretch each belongs to."""

    at: np.ndarray
    length: np.ndarray
    height: np.ndarray
    run: np.ndarray


def frames_of(wave: np.ndarray, window: int, hop: int) -> np.ndarray:
    """(S,) samples -> (T, window), a view: one frame each hop, its middle at that sample, T = 1 + S // hop."""
    padded = np.pad(wave, (window // 2, window - window // 2))
    return np.lib.stride_tricks.sliding_window_view(padded, window)[::hop][: 1 + len(wave) // hop]


def track_pitch(wave: np.ndarray, rate: int, *, window: int, hop: int, low: float, high: float) -> Pitch:
    """Pitch from ``low`` to ``high`` Hz of each frame of (S,) samples.

    Peaks of the autocorrelation divided by that of the window, and the cheapest path through them (after Boersma, IFA
    Proceedings 17, 1993; lags between the samples by a longer inverse transform of the power spectrum).
    """
    frames = frames_of(wave.astype(np.float32), window, hop)
    loudest = float(np.abs(wave).max())
    blocks = [
        _candidates(frames[start : start + BLOCK], rate, low, high, loudest) for start in range(0, len(frames), BLOCK)
    ]
    hertz, height, unvoiced = (np.concatenate(part) for part in zip(*blocks, strict=True))
    with np.errstate(divide="ignore"):
        # An octave higher is worth a little, for half the true pitch is as periodic.
        worth = np.where(hertz > 0, height + OCTAVE * np.log2(np.maximum(hertz, 1e-9) / high), -np.inf)
    path = _cheapest(hertz, np.concatenate([worth, unvoiced[:, None]], axis=1), hop / rate)
    row = np.arange(len(path))
    found = path < hertz.shape[1]
    chosen = np.minimum(path, hertz.shape[1] - 1)
    return Pitch(np.where(found, hertz[row, chosen], 0.0), np.where(found, height[row, chosen], 0.0))


def _candidates(
    frames: np.ndarray, rate: int, low: float, high: float, loudest: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(B, C) Hz and autocorrelation of the highest peaks, 0 where there are fewer; (B,) worth of being unvoiced."""
    from scipy import fft

    window = frames.shape[1]
    taper = np.hanning(window + 2)[1:-1].astype(np.float32)
    centred = frames - frames.mean(axis=1, keepdims=True)
    size = fft.next_fast_len(2 * window)
    longest, shortest = int(FINER * rate / low), int(FINER * rate / high)
    within = fft.irfft(np.abs(fft.rfft(np.stack([taper]), size)) ** 2, FINER * size)[:, : longest + 2]
    power = np.abs(fft.rfft(centred * taper, size)) ** 2
    correlation = fft.irfft(power, FINER * size)[:, : longest + 2]
    energy = np.maximum(correlation[:, :1], 1e-12)
    correlation = correlation / energy * (within[:, :1] / within)
    hertz, height = _peaks(correlation, shortest, FINER * rate)
    level = np.abs(centred).max(axis=1) / max(loudest, 1e-12)
    unvoiced = VOICED + np.maximum(0.0, 2.0 - level * (1 + VOICED) / SILENT)
    return hertz, height, unvoiced


def _peaks(correlation: np.ndarray, shortest: int, rate: float) -> tuple[np.ndarray, np.ndarray]:
    """The highest local maxima beyond ``shortest`` lags, placed and measured by a parabola through three points."""
    left, middle, right = correlation[:, shortest - 1 : -2], correlation[:, shortest:-1], correlation[:, shortest + 1 :]
    peak = np.where((middle > left) & (middle >= right) & (middle > 0), middle, -np.inf)
    order = np.argpartition(-peak, min(CANDIDATES, peak.shape[1] - 1), axis=1)[:, :CANDIDATES]
    a, b, c, found = (np.take_along_axis(part, order, axis=1) for part in (left, middle, right, peak))
    curve = a - 2 * b + c
    shift = np.where(curve < 0, 0.5 * (a - c) / np.where(curve < 0, curve, 1), 0.0)
    height = np.minimum(b - 0.25 * (a - c) * shift, 1.0)
    real = np.isfinite(found)
    return np.where(real, rate / (order + shortest + shift), 0.0), np.where(real, height, 0.0)


def _cheapest(hertz: np.ndarray, worth: np.ndarray, seconds: float) -> np.ndarray:
    """(T,) which candidate of (T, C), or C for unvoiced, is on the path of the highest worth less what changes cost."""
    scale = 0.01 / seconds
    octaves = np.log2(np.maximum(hertz, 1.0))
    steps, count = worth.shape
    back = np.zeros((steps, count), dtype=np.int64)
    total = worth[0]
    cost = np.full((count, count), CHANGE * scale)
    cost[-1, -1] = 0.0
    for step in range(1, steps):
        cost[:-1, :-1] = JUMP * scale * np.abs(octaves[step - 1][:, None] - octaves[step][None])
        reached = total[:, None] - cost
        back[step] = reached.argmax(axis=0)
        total = reached[back[step], np.arange(count)] + worth[step]
    path = np.empty(steps, dtype=np.int64)
    path[-1] = total.argmax()
    for step in range(steps - 1, 0, -1):
        path[step - 1] = back[step, path[step]]
    return path


def find_periods(wave: np.ndarray, hertz: np.ndarray, rate: int, hop: int) -> Periods:
    """The single periods of (S,) samples whose pitch each hop is ``hertz`` (T,).

    From the highest sample of each voiced stretch on, and back, the next period is where the waveform is most alike.
    """
    voiced = np.flatnonzero(np.diff(np.concatenate([[False], hertz > 0, [False]]).astype(np.int8)))
    rows: list[tuple[float, float, float, float]] = []
    for run, (first, last) in enumerate(voiced.reshape(-1, 2)):
        begin, end = max(0, (first - 1) * hop), min(len(wave), last * hop)
        if end - begin > 2 * rate / hertz[first:last].min():
            rows += _run(wave, begin, end, rate / hertz[first:last], first * hop, hop, run)
    table = np.array(rows).reshape(-1, 4)
    return Periods(table[:, 0], table[:, 1], table[:, 2], table[:, 3].astype(np.int64))


def _run(
    wave: np.ndarray, begin: int, end: int, expected: np.ndarray, origin: int, hop: int, run: int
) -> list[tuple[float, float, float, float]]:
    """(middle, length, height, run) of the periods of one voiced stretch, by time."""
    start = begin + int(np.abs(wave[begin:end]).argmax())
    found = []
    for direction in (-1, 1):
        at = float(start)
        while True:
            frame = min(max(round((at - origin) / hop), 0), len(expected) - 1)
            step = _next_period(wave, round(at), float(expected[frame]), direction)
            if step is None or not begin <= at + direction * step < end:
                break
            length = step
            inside = wave[max(0, int(at - length / 2)) : int(at + length / 2) + 1]
            found.append((at + direction * length / 2, length, float(np.ptp(inside)), float(run)))
            at += direction * length
    return sorted(found)


def _next_period(wave: np.ndarray, at: int, period: float, direction: int) -> float | None:
    """Samples to where the waveform around ``at`` comes again; None where nothing is alike, or the wave ends."""
    half = max(2, int(period / 2))
    shortest, longest = int((1 - PERIOD_RANGE) * period), int((1 + PERIOD_RANGE) * period) + 1
    near, far = at + direction * shortest, at + direction * longest
    first, last = min(near, far) - half, max(near, far) + half + 1
    if at - half < 0 or at + half + 1 > len(wave) or first < 0 or last > len(wave):
        return None
    template, stretch = wave[at - half : at + half + 1], wave[first:last]
    squares = np.concatenate([[0.0], np.cumsum(stretch**2)])
    width = len(template)
    energy = squares[width:] - squares[:-width]
    alike = np.correlate(stretch, template, "valid") / np.sqrt(np.maximum(energy * float(template @ template), 1e-20))
    if direction < 0:
        alike = alike[::-1]
    best = int(alike.argmax())
    if alike[best] < ALIKE:
        return None
    return shortest + best + _vertex(alike, best)


def _vertex(values: np.ndarray, best: int) -> float:
    """Where between the neighbours of ``best`` a parabola through the three is highest, -0.5 to 0.5."""
    if not 0 < best < len(values) - 1:
        return 0.0
    a, b, c = values[best - 1 : best + 2]
    curve: Any = a - 2 * b + c
    return float(0.5 * (a - c) / curve) if curve < 0 else 0.0


def unsteadiness(periods: Periods, hop: int, frames: int, window: int) -> tuple[np.ndarray, np.ndarray]:
    """(T,) jitter and (T,) shimmer of the periods around each frame, 0 where there are no two that follow each other.

    Jitter: mean |L[i+1] - L[i]| / mean L over neighbouring periods of length L. Shimmer: mean |20 log10(A[i+1] / A[i])| dB
    of their heights A.
    """
    together = np.diff(periods.run) == 0
    at = ((periods.at[1:] + periods.at[:-1]) / 2)[together]
    lengths, heights = periods.length, np.maximum(periods.height, 1e-9)
    summed = np.stack(
        [
            np.abs(np.diff(lengths))[together],
            ((lengths[1:] + lengths[:-1]) / 2)[together],
            np.abs(20 * np.diff(np.log10(heights)))[together],
            np.ones(len(at)),
        ]
    )
    order = np.argsort(at, kind="stable")
    running = np.concatenate([np.zeros((4, 1)), np.cumsum(summed[:, order], axis=1)], axis=1)
    middles = hop * np.arange(frames)
    first, last = (np.searchsorted(at[order], middles + side * window / 2) for side in (-1, 1))
    difference, length, decibels, pairs = running[:, last] - running[:, first]
    some = pairs > 0
    return (
        np.where(some, difference / np.where(some, length, 1), 0.0),
        np.where(some, decibels / np.where(some, pairs, 1), 0.0),
    )
