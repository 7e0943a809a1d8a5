"""Where somebody speaks, by silero-vad with the model of its wheel."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from moodal.core.errors import MissingExtra
from moodal.features.sound import Sound, resampled

#: The rate of the models here, in Hz.
RATE = 16000

Span = tuple[float, float]


def speech_spans(sound: Sound) -> list[Span]:
    """(start, end) of each stretch of speech, in seconds from the beginning of ``sound``; none in silence or music."""
    wave = resampled(sound, RATE).wave
    if not np.any(wave):
        return []
    return [(start / RATE, min(end, len(wave)) / RATE) for start, end in _detector()(wave)]


def joined(spans: list[Span], *, seconds: float, pad: float = 0.2, gap: float = 0.5) -> list[Span]:
    """Spans widened by ``pad``, kept within ``seconds``, and made one where less than ``gap`` lies between them."""
    found: list[Span] = []
    for start, end in spans:
        start, end = max(start - pad, 0.0), min(end + pad, seconds)
        if found and start - found[-1][1] < gap:
            found[-1] = found[-1][0], end
        else:
            found.append((start, end))
    return found


class _Detector:
    """The loaded model; one caller at a time, since it keeps a state."""

    def __init__(self, model: Any, timestamps: Callable[..., list[dict[str, int]]]) -> None:
        self.model = model
        self.timestamps = timestamps
        self.lock = threading.Lock()

    def __call__(self, wave: np.ndarray) -> list[tuple[int, int]]:
        """Samples at which speech starts and ends."""
        with self.lock, torch.inference_mode(), _one_thread():
            found = self.timestamps(torch.from_numpy(wave), self.model, sampling_rate=RATE)
        return [(int(part["start"]), int(part["end"])) for part in found]


@contextmanager
def _one_thread() -> Iterator[None]:
    """The detector's steps are too small to share: on a busy machine its threads would wait a hundred times longer."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@lru_cache(maxsize=1)
def _detector() -> _Detector:
    with _one_thread():  # whatever its import sets for the whole process
        try:
            from silero_vad import get_speech_timestamps, load_silero_vad
        except ImportError as error:
            raise MissingExtra("silero-vad", "media") from error
        return _Detector(load_silero_vad(), get_speech_timestamps)
