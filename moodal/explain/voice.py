"""What can be measured of a voice from named channels and word times, and the words for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from moodal.data.corpus import Clip, FeatureRecipe, RawCorpus
from moodal.data.ragged import Ragged
from moodal.explain.segments import Segments, long_runs

#: Quantiles of the training clips between which the five words of a measure change.
LIMITS = (0.1, 0.3, 0.7, 0.9)
#: Measure -> its five words, from the lowest to the highest tenth.
WORDS: Mapping[str, tuple[str, str, str, str, str]] = {
    "pitch": ("very low pitch", "low pitch", "medium pitch", "high pitch", "very high pitch"),
    "movement": (
        "flat intonation",
        "narrow intonation",
        "ordinary intonation",
        "wide intonation",
        "very wide intonation",
    ),
    "slope": ("pitch falling fast", "pitch falling", "pitch level", "pitch rising", "pitch rising fast"),
    "loudness": ("very quiet", "quiet", "moderately loud", "loud", "very loud"),
    "dynamics": ("monotone", "even", "varied", "dynamic", "very dynamic"),
    "brightness": ("dark tone", "soft tone", "neutral tone", "bright tone", "sharp tone"),
    "rate": ("very slow speech", "slow speech", "steady speech", "fast speech", "very fast speech"),
    "pauses": ("hardly any pauses", "few pauses", "some pauses", "many pauses", "very many pauses"),
}
#: Seconds of silence or of no voice between two words or voiced parts that count as a pause.
PAUSE = 0.25
#: Channels that carry loudness, the best first.
_LOUDNESS = ("loudness", "energy", "mfcc_0")
_LEAST_VOICED = 4
#: Languages written without spaces: their words cannot be counted here.
_UNSPACED = ("zh", "ja", "th")


def measure(raw: RawCorpus) -> dict[str, np.ndarray]:
    """Measure -> (N,) values for the N clips, NaN where a clip does not show it; only what the channels permit."""
    stream, recipe = raw.streams.get("audio"), raw.recipes.get("audio")
    found: dict[str, np.ndarray] = {}
    seconds = None
    if stream is not None and recipe is not None and recipe.channels:
        found |= _tone(stream, recipe)
        step = step_seconds(recipe)
        if step is not None and raw.facts.language not in _UNSPACED:
            seconds = stream.lengths * step
        if "log_f0" in recipe.channels:
            found["pauses"] = _unvoiced_pauses(stream, recipe.channels.index("log_f0"), step)
    return {**found, **_timing(raw.clips, seconds)}


def step_seconds(recipe: FeatureRecipe) -> float | None:
    """Seconds of one step: ``hop``, in samples where the recipe has a ``sample_rate`` and in seconds where not."""
    hop, rate = recipe.settings.get("hop"), recipe.settings.get("sample_rate")
    if hop is None:
        return None
    return float(hop) / float(rate) if rate is not None else float(hop)


def _tone(stream: Ragged, recipe: FeatureRecipe) -> dict[str, np.ndarray]:
    """Pitch, loudness and colour from the channels named log_f0, loudness (or mfcc_0) and mfcc_1."""
    row = np.repeat(np.arange(len(stream)), stream.lengths)

    def column(name: str) -> Segments:
        return Segments(stream.values[:, recipe.channels.index(name)], row, len(stream))

    found: dict[str, np.ndarray] = {}
    if "log_f0" in recipe.channels:
        pitch = column("log_f0")
        voiced = pitch.where(pitch.values != 0)
        enough = voiced.count >= _LEAST_VOICED
        shown = {
            "pitch": voiced.quantile(0.5),
            "movement": voiced.quantile(0.95) - voiced.quantile(0.05),
            "slope": voiced.slope(),
        }
        found |= {name: np.where(enough, values, np.nan) for name, values in shown.items()}
    loud = next((name for name in _LOUDNESS if name in recipe.channels), None)
    if loud is not None:
        found |= {"loudness": column(loud).quantile(0.9), "dynamics": column(loud).deviation()}
    if "mfcc_1" in recipe.channels and "mfcc_0" in recipe.channels:
        found["brightness"] = -column("mfcc_1").mean()  # it falls where the higher frequencies carry more
    return found


def _unvoiced_pauses(stream: Ragged, channel: int, step: float | None) -> np.ndarray:
    """(N,) share of a clip in unvoiced runs between voiced parts, of at least ``PAUSE`` where the step is known."""
    row = np.repeat(np.arange(len(stream)), stream.lengths)
    unvoiced = stream.values[:, channel] == 0
    inside = long_runs(unvoiced, row, len(stream), 1 if step is None else PAUSE / step)
    return np.where(stream.lengths > 0, inside / np.maximum(stream.lengths, 1), np.nan)


def _timing(clips: Sequence[Clip], seconds: np.ndarray | None) -> dict[str, np.ndarray]:
    """Words a second, and share of time in pauses: from word times, else the rate from transcript and ``seconds``."""
    rate: np.ndarray = np.full(len(clips), np.nan)
    timed = np.array([len(clip.words) for clip in clips], dtype=np.int64)
    if seconds is not None:
        spoken = np.array([len(clip.text.split()) for clip in clips])
        known = (seconds > 0) & (spoken > 0)
        rate[known] = spoken[known] / seconds[known]
    if not timed.any():
        return {"rate": rate}
    row = np.repeat(np.arange(len(clips)), timed)
    start = np.array([word[1] for clip in clips for word in clip.words])
    end = np.array([word[2] for clip in clips for word in clip.words])
    last = np.cumsum(timed) - 1
    some = timed > 0
    length = np.full(len(clips), np.nan)
    length[some] = end[last[some]] - start[last[some] - timed[some] + 1]
    length[length <= 0] = np.nan
    same = row[1:] == row[:-1]
    gap = np.where(same, start[1:] - end[:-1], 0.0)
    silent = np.bincount(row[1:], np.where(gap >= PAUSE, gap, 0.0), len(clips))
    rate = np.where(np.isfinite(length), timed / length, rate)
    if not np.isfinite(length).any():
        return {"rate": rate}
    return {"rate": rate, "pauses": np.where(timed > 1, silent / length, np.nan)}
