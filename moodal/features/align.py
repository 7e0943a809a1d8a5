"""Times of the words of a text that is known: by alignment with the sound (English), else spread over the speech."""

from __future__ import annotations

import re
import threading
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from moodal.core.errors import MissingExtra
from moodal.features.sound import Sound, resampled
from moodal.features.speech import RATE, Span

#: A word, its start and its end, in seconds of the clip.
Word = tuple[str, float, float]

#: Frames a second of pocketsphinx.
STEPS = 100
#: More words a second than anybody speaks: the text belongs to something else.
FASTEST = 9.0
#: Seconds that a word of unknown pronunciation takes from its neighbours where nothing lies between them.
SHORTEST = 0.1
_APART = re.compile(
    r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]|[^\s\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]+"
)


def split_words(text: str) -> list[str]:
    """The words of a text: what blanks part, and single characters of scripts written without blanks.

    Marks that stand alone belong to the word before.
    """
    words: list[str] = []
    for part in _APART.findall(text):
        if words and not any(letter.isalnum() for letter in part):
            words[-1] += part
        elif any(letter.isalnum() for letter in part):
            words.append(part)
    return words


def spread(words: Sequence[str], spans: Sequence[Span]) -> tuple[Word, ...]:
    """Words over ``spans`` of speech, each as long as it has letters; a word lies in the span that holds its middle."""
    lengths = np.array([end - start for start, end in spans])
    if not len(words) or not len(lengths) or lengths.sum() <= 0:
        return ()
    letters = np.array([1 + sum(letter.isalnum() for letter in word) for word in words], np.float64)
    edges = np.concatenate([[0.0], np.cumsum(letters)]) / letters.sum() * lengths.sum()
    before = np.concatenate([[0.0], np.cumsum(lengths)])
    placed: list[Word] = []
    for word, first, last in zip(words, edges[:-1], edges[1:], strict=True):
        k = min(int(np.searchsorted(before, (first + last) / 2, side="right")) - 1, len(spans) - 1)
        start, end = (float(spans[k][0] + np.clip(edge - before[k], 0.0, lengths[k])) for edge in (first, last))
        placed.append((word, start, end))
    return tuple(placed)


@dataclass(frozen=True)
class Aligned:
    """Words with times, and how many of them no dictionary knew, so that they only lie between their neighbours."""

    words: tuple[Word, ...]
    unknown: int


def align(words: Sequence[str], sound: Sound, span: Span) -> Aligned | None:
    """Times of ``words``, which are spoken in this order within ``span`` of ``sound``, by pocketsphinx.

    None where they cannot be found: fewer than half are in the English dictionary, more than anybody speaks, or the
    sound does not fit.
    """
    if len(words) > FASTEST * (span[1] - span[0]):
        return None
    aligner = _aligner()
    parts = [aligner.known(word) for word in words]
    flat = [part for group in parts for part in group]
    if not flat or sum(map(bool, parts)) * 2 < len(words):
        return None
    wave = resampled(sound, RATE).wave[round(span[0] * RATE) : round(span[1] * RATE)]
    times = aligner.times(flat, wave)
    if times is None:
        return None
    found: list[Span | None] = []
    for group in parts:
        own, times = times[: len(group)], times[len(group) :]
        found.append((span[0] + own[0][0], min(span[0] + own[-1][1], span[1])) if own else None)
    placed = _filled(words, found, span)
    return Aligned(placed, sum(not group for group in parts))


def _filled(words: Sequence[str], found: list[Span | None], span: Span) -> tuple[Word, ...]:
    """Times for the words that have none: between the neighbours, or from them where nothing lies between."""
    placed: list[Word] = []
    place = 0
    while place < len(words):
        here = found[place]
        if here is not None:
            placed.append((words[place], *here))
            place += 1
            continue
        after = next((k for k in range(place, len(words)) if found[k] is not None), len(words))
        follower = found[after] if after < len(words) else None
        since, until = placed[-1][2] if placed else span[0], follower[0] if follower is not None else span[1]
        lacking = max(SHORTEST * (after - place) - (until - since), 0.0)
        if placed:
            word, start, end = placed[-1]
            since -= min(lacking / 2, (end - start) / 2)
            placed[-1] = word, start, since
        if follower is not None:
            until += min(lacking / 2, (follower[1] - follower[0]) / 2)
            found[after] = until, follower[1]
        placed += spread(words[place:after], [(since, until)])
        place = after
    return tuple(placed)


class _Aligner:
    """The loaded model; one caller at a time."""

    def __init__(self, decoder: Any) -> None:
        self.decoder = decoder
        self.lock = threading.Lock()

    def known(self, word: str) -> tuple[str, ...]:
        """The entries of the dictionary that make up a word; none where one of them is missing."""
        plain = unicodedata.normalize("NFKD", word.lower().replace("\u2019", "'"))
        plain = "".join(letter for letter in plain if not unicodedata.combining(letter))
        parts = [re.sub(r"[^\w']|_", "", part) for part in re.split(r"[-\u2010-\u2015/]", plain)]
        entries: list[str] = []
        for part in filter(None, parts):
            entry = next((form for form in (part, part.strip("'")) if form and self.decoder.lookup_word(form)), None)
            if entry is None:
                return ()
            entries.append(entry)
        return tuple(entries)

    def times(self, words: Sequence[str], wave: np.ndarray) -> list[Span] | None:
        """(start, end) of each word in seconds of ``wave``; None where the sound does not lead to the text's end."""
        samples = (wave * 32767).astype(np.int16).tobytes()
        with self.lock:
            try:
                self.decoder.set_align_text(" ".join(words))
                heard = hear(self.decoder, samples)
            except RuntimeError:  # of the search, where the sound is too short for the text
                return None
        return [(start, end) for _, start, end in heard] if [word for word, _, _ in heard] == list(words) else None


def hear(decoder: Any, samples: bytes) -> list[Word]:
    """Run a pocketsphinx decoder over 16-bit sound; the words found, without silences, noises and numbers of variants."""
    decoder.reinit_feat()  # the front end remembers the clip before, and results would hang on their order
    decoder.start_utt()
    decoder.process_raw(samples, full_utt=True)
    decoder.end_utt()
    if decoder.hyp() is None:
        return []
    return [
        (re.sub(r"\(\d+\)$", "", part.word), part.start_frame / STEPS, (part.end_frame + 1) / STEPS)
        for part in decoder.seg()
        if not part.word.startswith(("<", "[", "++"))
    ]


def pocketsphinx() -> Any:
    """The package. Raises MissingExtra."""
    try:
        import pocketsphinx as package
    except ImportError as error:
        raise MissingExtra("pocketsphinx", "media") from error
    return package


@lru_cache(maxsize=1)
def _aligner() -> _Aligner:
    # Wider beams than for recognition: the text is certain, so that few paths compete.
    return _Aligner(
        pocketsphinx().Decoder(lm=None, loglevel="FATAL", cmn="batch", beam=1e-100, wbeam=1e-80, pbeam=1e-100)
    )
