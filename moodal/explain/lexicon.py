"""What the words say by a lexicon: a count, not a judgement.

English only; the lexicon is VADER's (Hutto and Gilbert, ICWSM 2014).
"""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence
from typing import Any

from moodal.core.errors import MissingExtra
from moodal.data.corpus import Clip

#: VADER's own limit: sentences within it of 0 are neutral.
NEUTRAL = 0.05


def comments(clips: Sequence[Clip], language: str) -> list[str]:
    """A text for each clip, empty without English: the transcript, or ``notes["raw_text_en"]`` of another language."""
    texts = [clip.text if language == "en" else clip.notes.get("raw_text_en", "") for clip in clips]
    if not any(text.strip() for text in texts):
        return [""] * len(texts)
    analyser = _analyser()
    known = {text: _comment(text, analyser) for text in dict.fromkeys(texts)}
    return [known[text] for text in texts]


def _comment(text: str, analyser: Any) -> str:
    if not text.strip():
        return ""
    positive, negative = _count(text, analyser.lexicon)
    balance = analyser.polarity_scores(text)["compound"]
    lean = "lean neither way" if abs(balance) < NEUTRAL else f"lean {'positive' if balance > 0 else 'negative'}"
    return f"{_words(positive, 'positive')}, {_words(negative, 'negative')}; the words {lean}."


def _count(text: str, lexicon: Mapping[str, float]) -> tuple[int, int]:
    values = [lexicon.get(word.strip(string.punctuation), 0.0) for word in text.lower().split()]
    return sum(value > 0 for value in values), sum(value < 0 for value in values)


def _words(count: int, kind: str) -> str:
    return f"{count or 'no'} {kind} word{'' if count == 1 else 's'}"


def _analyser() -> Any:
    try:
        from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer
    except ImportError as error:
        raise MissingExtra("vaderSentiment", "text") from error
    return SentimentIntensityAnalyzer()
