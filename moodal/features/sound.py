"""The sound of a clip: any channels and rate to one mono wave, every sample at its own time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from moodal.features.container import LIMITS, Clock, Limits, MediaError, decoded, opened, stream_of

#: Sample rates that are believed, in Hz.
RATES = (1000, 768_000)
#: Seconds by which a frame may come late before the gap counts as silence.
JITTER = 0.05
#: Seconds decoded before the part asked for: a codec needs some frames until it is in full swing.
WARM = 0.5
#: Full scale of the integer formats.
SCALES = {"u1": 128.0, "i2": 2.0**15, "i4": 2.0**31, "i8": 2.0**63}


@dataclass
class Sound:
    """``wave``: (S,) float32 mono in [-1, 1] at ``rate`` Hz; its first sample is ``start`` seconds into the file."""

    wave: np.ndarray
    rate: int
    start: float

    @property
    def seconds(self) -> float:
        """How long it lasts."""
        return len(self.wave) / self.rate


def read_sound(
    path: Path,
    *,
    rate: int = 16000,
    start: float = 0.0,
    end: float | None = None,
    limits: Limits = LIMITS,
) -> Sound:
    """The sound from ``start`` to ``end`` seconds as one channel at ``rate`` Hz.

    Channels are averaged (without the bass one of surround sound). What is damaged or missing in between is silence, so
    that times stay right; the wave is empty where the part asked for has no sound. At most ``limits.seconds`` are
    decoded. Raises MediaError when the file cannot be opened or has no stream of sound.
    """
    longest = start + limits.seconds
    stop = longest if end is None else min(end, longest)
    with opened(path, limits) as container:
        stream = stream_of(container, "audio")
        if stream is None:
            raise MediaError(f"{path} has no sound; give a clip with sound, or text and pictures alone.")
        pieces = list(_resampled(_pieces(container, stream, start, stop, limits), rate))
    wave = np.concatenate(pieces) if pieces else np.zeros(0, np.float32)
    return Sound(wave=wave[: round(max(stop - start, 0) * rate)], rate=rate, start=start)


def resampled(sound: Sound, rate: int) -> Sound:
    """The same sound at ``rate`` Hz."""
    if sound.rate == rate:
        return sound
    pieces = list(_resampled(iter([(sound.rate, sound.wave)]), rate))
    return Sound(wave=np.concatenate(pieces) if pieces else np.zeros(0, np.float32), rate=rate, start=sound.start)


def _pieces(container: Any, stream: Any, start: float, stop: float, limits: Limits) -> Iterator[tuple[int, np.ndarray]]:
    """(rate, mono samples) one after another without a gap, the first sample at ``start`` and the last before ``stop``."""
    clock = Clock(container, step=0.02, longest=stop)
    place: float | None = None  # seconds into the file of what comes next
    for frame in decoded(container, stream, limits, start=start - WARM):
        rate = frame.sample_rate
        mono = _mono(frame) if RATES[0] <= rate <= RATES[1] else None
        if mono is None:
            continue
        time = clock(frame, len(mono) / rate)
        if place is None:
            place = min(time, start)
        if time > place + JITTER:
            yield from _silence(min(time, stop) - max(place, start), rate)
            place = time
        first, last = max(round((start - place) * rate), 0), max(round((stop - place) * rate), 0)
        if len(mono[first:last]):
            yield rate, mono[first:last]
        place += len(mono) / rate
        if place >= stop:
            return


def _silence(seconds: float, rate: int) -> Iterator[tuple[int, np.ndarray]]:
    """Zeros, a second at a time."""
    left = round(seconds * rate)
    while left > 0:
        yield rate, np.zeros(min(left, rate), np.float32)
        left -= rate


def _mono(frame: Any) -> np.ndarray | None:
    """(S,) float32 in [-1, 1]; None where the samples have no form that is known."""
    try:
        samples = frame.to_ndarray()
    except Exception:  # of a damaged frame
        return None
    channels = frame.layout.channels
    if not frame.format.is_planar:
        samples = samples.reshape(-1, len(channels)).T
    if samples.dtype.str[1:] == "u1":
        samples = samples.astype(np.float32) - 128.0
    lasts = frame.duration or 0
    if frame.time_base == Fraction(1, frame.sample_rate) and 0 < lasts < samples.shape[1]:
        samples = samples[:, :lasts]  # the padding that codecs of fixed frames put behind the end
    scale = SCALES.get(samples.dtype.str[1:], 1.0)
    heard = [k for k, channel in enumerate(channels) if not channel.name.startswith("LFE")] or [0]
    mono = samples[heard].mean(axis=0, dtype=np.float64) / scale
    return np.clip(np.nan_to_num(mono, posinf=0.0, neginf=0.0), -1.0, 1.0).astype(np.float32)


def _resampled(pieces: Iterator[tuple[int, np.ndarray]], wanted: int) -> Iterator[np.ndarray]:
    """Pieces at ``wanted`` Hz. The filter's state runs on over pieces and starts anew where their rate changes."""
    import av

    resampler: Any = None
    found, place = 0, 0
    for rate, wave in pieces:
        if rate != found:
            yield from _drained(resampler)
            resampler, found, place = av.AudioResampler(format="fltp", layout="mono", rate=wanted), rate, 0
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(wave)[None], format="fltp", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = rate, place, Fraction(1, rate)
        place += len(wave)
        yield from (np.clip(ready.to_ndarray()[0], -1.0, 1.0) for ready in resampler.resample(frame))
    yield from _drained(resampler)


def _drained(resampler: Any | None) -> Iterator[np.ndarray]:
    """What the filter still holds."""
    if resampler is not None:
        yield from (np.clip(ready.to_ndarray()[0], -1.0, 1.0) for ready in resampler.resample(None))
