"""Speech to words: faster-whisper with a model by name or folder, and pocketsphinx as the floor that needs no download."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from moodal.core.errors import MissingExtra, MoodalError
from moodal.features.align import Word, hear, pocketsphinx
from moodal.features.sound import Sound, resampled
from moodal.features.speech import RATE, Span, joined


def by_pocketsphinx(sound: Sound, spans: Sequence[Span]) -> tuple[Word, ...]:
    """English words in ``spans`` of speech, with times in seconds of ``sound``. Many are wrong: a floor."""
    wave, listener = resampled(sound, RATE).wave, _listener()
    words: list[Word] = []
    for start, end in joined(list(spans), seconds=sound.seconds):
        part = wave[round(start * RATE) : round(end * RATE)]
        words += [(word, start + since, min(start + until, end)) for word, since, until in listener(part)]
    return tuple(words)


class _Listener:
    """The loaded model; one caller at a time."""

    def __init__(self, decoder: Any) -> None:
        self.decoder = decoder
        self.lock = threading.Lock()

    def __call__(self, wave: np.ndarray) -> list[Word]:
        with self.lock:
            return hear(self.decoder, (wave * 32767).astype(np.int16).tobytes())


@lru_cache(maxsize=1)
def _listener() -> _Listener:
    return _Listener(pocketsphinx().Decoder(loglevel="FATAL", cmn="batch"))


def by_whisper(sound: Sound, model: str, language: str) -> tuple[Word, ...]:
    """Words with times in seconds of ``sound``, by the Whisper ``model`` (a name or a folder in CTranslate2's form).

    ``language``: its code; empty: found by the model. Without sampling, so that a clip always gives the same words.
    Raises MoodalError where the model is neither here nor to be had, or does not know the language.
    """
    loaded, wave = _whisper(model), resampled(sound, RATE).wave
    try:
        segments, _ = loaded.transcribe(
            wave, language=language or None, word_timestamps=True, temperature=0.0, condition_on_previous_text=False
        )
        found = [word for segment in segments for word in segment.words or ()]
    except (RuntimeError, ValueError) as fault:
        raise MoodalError(f"whisper:{model} failed ({_short(fault)}); choose another model or language.") from fault
    last = sound.seconds
    return tuple(
        (word.word.strip(), min(float(word.start), last), min(float(word.end), last))
        for word in found
        if word.word.strip()
    )


@lru_cache(maxsize=2)
def _whisper(model: str) -> Any:
    try:
        from faster_whisper import WhisperModel
    except ImportError as error:
        raise MissingExtra("faster-whisper", "whisper") from error
    fault: Exception | None = None
    # First what is on this machine, so that nothing is asked of the hub where it is not needed.
    for here in (True, False):
        try:
            return WhisperModel(model, compute_type="int8", local_files_only=here)
        except Exception as error:  # of the hub, of the network, of CTranslate2: all have their own
            fault = error
        if Path(model).exists():
            break
    raise MoodalError(
        f"the Whisper model {model!r} is neither on this machine nor could it be fetched ({_short(fault)}); give the "
        "folder of a CTranslate2 Whisper, fetch the model where there is a network, or use recogniser pocketsphinx."
    ) from fault


def _short(fault: Exception | None) -> str:
    """The first sentence of a fault."""
    said = str(fault).strip().splitlines()
    return said[0].split(". ")[0][:160].rstrip(".") if said else type(fault).__name__
