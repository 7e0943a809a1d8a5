"""What can be measured of a face from action units (channels named AUxx_r or AUxx_c), and the words for them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np

from moodal.data.corpus import RawCorpus
from moodal.explain.segments import Segments

#: Action unit of the Facial Action Coding System -> what it looks like.
WORDS: Mapping[int, str] = {
    1: "inner brows raised",
    2: "outer brows raised",
    4: "brows lowered",
    5: "eyes wide",
    6: "cheeks raised",
    7: "eyes narrowed",
    9: "nose wrinkled",
    10: "upper lip raised",
    12: "lip corners pulled up",
    14: "dimples",
    15: "lip corners pulled down",
    17: "chin raised",
    20: "lips stretched",
    23: "lips tight",
    25: "lips parted",
    26: "jaw dropped",
    28: "lips sucked in",
    45: "blinking",
}
REST = "face at rest"
#: Share of the training clips that show a unit less, from which it is told, and from which it is called strong.
TOLD, STRONG = 0.6, 0.85
MOST = 5
_CHANNEL = re.compile(r"AU(\d\d)_([rc])")


def measure(raw: RawCorpus) -> dict[str, np.ndarray]:
    """Channel -> (N,) mean over the clip, NaN without steps: intensities, and presences of units that lack one."""
    stream, recipe = raw.streams.get("vision"), raw.recipes.get("vision")
    if stream is None or recipe is None:
        return {}
    known = {name: match for name in recipe.channels if (match := _CHANNEL.fullmatch(name)) is not None}
    graded = {match[1] for match in known.values() if match[2] == "r"}
    chosen = [n for n, m in known.items() if int(m[1]) in WORDS and (m[2] == "r" or m[1] not in graded)]
    row = np.repeat(np.arange(len(stream)), stream.lengths)
    return {n: Segments(stream.values[:, recipe.channels.index(n)], row, len(stream)).mean() for n in chosen}


def words_of(channel: str) -> str:
    """The words of a channel that :func:`measure` gave."""
    match = _CHANNEL.fullmatch(channel)
    return WORDS[int(match[1])] if match is not None else ""


def tell(channels: Sequence[str], ranks: np.ndarray, present: np.ndarray) -> list[str]:
    """A text for each clip: its ``MOST`` outstanding units, the most outstanding first.

    ``ranks``: (N, channels) share of training clips that show the unit less; ``present``: (N,) bool.
    """
    order = np.argsort(-ranks, axis=1, kind="stable")[:, :MOST]
    phrases = [words_of(name) for name in channels]
    texts = []
    for row, chosen in enumerate(order):
        told = [_phrase(phrases[unit], float(ranks[row, unit])) for unit in chosen if ranks[row, unit] > TOLD]
        texts.append((", ".join(told) or REST) if present[row] else "")
    return texts


def _phrase(words: str, rank: float) -> str:
    return f"{words} strongly" if rank > STRONG else words
