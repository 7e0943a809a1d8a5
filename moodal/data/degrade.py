"""Degradations: what may be missing or wrong in a clip, as functions of (row, rate, seed).

Each acts on the steps that a corpus stores (frames of a voice or a face, tokens of a text), before anything is derived
from them. ``rate`` lies in [0, 1]; 0 changes nothing; what a smaller rate drops a larger one drops too. Frames are
drawn by the row's place in its split, as published; everything else by the clip's id, so a clip fares alike wherever
it stands.

Shapes: N rows, T steps, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.special import ndtri

from moodal.core.random import derived_seed
from moodal.core.spec import MODALITIES, Modality
from moodal.data.ragged import Ragged

#: Seeds of the published masks (EMT-DLFR, data/load_data.py; inherited from TFR-Net), and the setting that means them.
PUBLISHED_SEEDS: Mapping[Modality, int] = {"text": 111, "audio": 1111, "vision": 11111}
PUBLISHED = 111

_STEPS = 65536  # steps that are given noise at a time
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True, kw_only=True)
class Rows:
    """The rows of one stream: whose they are, and what stands for nothing in them.

    ``modality``: the stream, or the one an explanation is about; ``ids``: of the N clips; ``steps``: the longest row of
    all splits, the T of published masks; ``blank``: (D,) the vector, or the token id, of a step that is dropped;
    ``mean``, ``deviation``: (D,) of the training split's steps, None for tokens.
    """

    modality: Modality
    split: str
    ids: tuple[str, ...]
    steps: int
    blank: np.ndarray | int
    mean: np.ndarray | None = None
    deviation: np.ndarray | None = None


class Damaged(NamedTuple):
    """A stream as it is left, and (steps,) bool: True on its steps that are as they were."""

    stream: Ragged
    observed: np.ndarray


#: (stream, its rows, rate, seed) -> what is left of it.
Apply = Callable[[Ragged, Rows, float, int], Damaged]


@dataclass(frozen=True, kw_only=True)
class Degradation:
    """One kind of damage. ``rate_is``: what its rate measures; ``modalities``: the streams it is meant for; ``tokens``:
    whether it can act on token ids; ``drawn``: whether a seed matters; ``scaled``: whether it asks how values vary;
    ``needs_steps``: whether rows of one step are left as they are."""

    name: str
    rate_is: str
    apply: Apply
    modalities: tuple[Modality, ...] = MODALITIES
    tokens: bool = True
    drawn: bool = True
    scaled: bool = False
    needs_steps: bool = False

    def __call__(self, stream: Ragged, rows: Rows, *, rate: float, seed: int = PUBLISHED) -> Damaged:
        """``stream`` at ``rate``; at rate 0 the very same object."""
        if rate == 0:
            return Damaged(stream, np.ones(len(stream.values), dtype=bool))
        return self.apply(stream, rows, rate, seed)


def keep_masks(
    real: Mapping[Modality, np.ndarray], rate: float, *, seeds: Mapping[Modality, int] = PUBLISHED_SEEDS
) -> dict[Modality, np.ndarray]:
    """The published masks: {modality: (N, T) bool, True on real steps that stay} for ``real`` of the same shapes.

    One array U of uniform numbers is drawn per modality from its seed; a step stays where U > rate. The first and last
    token of a text ([CLS], [SEP]) always stay. Source: EMT-DLFR (Sun et al. 2023), data/load_data.py, after TFR-Net.
    """
    kept = {name: _uniform(mask.shape, seeds[name]) > rate for name, mask in real.items()}
    return {name: mask & (kept[name] | _ends(mask) if name == "text" else kept[name]) for name, mask in real.items()}


def _uniform(shape: tuple[int, ...], seed: int) -> np.ndarray:
    """What numpy's global generator gives after being seeded, without touching it."""
    return np.random.RandomState(seed).uniform(size=shape)


def _ends(mask: np.ndarray) -> np.ndarray:
    """(N, T) True on the first and the last real step of each row, whose real steps come first."""
    place, length = np.arange(mask.shape[1]), mask.sum(axis=1)[:, None]
    return mask & ((place == 0) | (place == length - 1))


def snr_to_rate(decibels: float) -> float:
    """The rate of ``noise`` at a signal-to-noise ratio: the share of the noise in the power of the sum."""
    return float(1.0 / (1.0 + 10.0 ** (decibels / 10.0)))


def rate_to_snr(rate: float) -> float:
    """The signal-to-noise ratio in decibels at a rate of ``noise``; infinite at rate 0."""
    return float("inf") if rate == 0 else float(10.0 * np.log10((1.0 - rate) / rate))


def _frames(stream: Ragged, rows: Rows, rate: float, seed: int) -> Damaged:
    """Single steps, by the published masks."""
    real = np.arange(rows.steps) < stream.lengths[:, None]
    drawn_by = PUBLISHED_SEEDS[rows.modality]
    if seed != PUBLISHED:  # the published seeds repeat their numbers from split to split; others do not
        drawn_by = derived_seed(seed, "frames", rows.modality, rows.split) % 2**32
    kept = (_uniform(real.shape, drawn_by) > rate)[real]
    return _blanked(stream, kept | _outer(stream), rows.blank)


def _block(stream: Ragged, rows: Rows, rate: float, seed: int) -> Damaged:
    """One block of neighbouring steps; of a text between its first and last token."""
    outer = int(_is_tokens(stream))
    inner = np.maximum(stream.lengths - 2 * outer, 0)
    width = _rounded(rate * inner)
    # A block one wider starts where the narrower one did or one step before: blocks of one seed lie in each other.
    start = outer + np.floor(uniforms(_keys(rows, seed, "block")) * (inner - width + 1)).astype(np.int64)
    row, place = _places(stream)
    lost = (place >= start[row]) & (place < (start + width)[row])
    return _blanked(stream, ~lost, rows.blank)


def _modality(stream: Ragged, rows: Rows, rate: float, seed: int) -> Damaged:
    """Whole rows: the modality is missing there."""
    stays = uniforms(_keys(rows, seed, "modality")) > rate
    lengths = np.where(stays, stream.lengths, 0)
    row, _ = _places(stream)
    left = Ragged(stream.values[stays[row]], np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64))
    return Damaged(left, np.ones(len(left.values), dtype=bool))


def _noise(stream: Ragged, rows: Rows, rate: float, seed: int) -> Damaged:
    """Gaussian noise of ``rate / (1 - rate)`` times the power of its row, in deviations of the training split."""
    assert rows.mean is not None and rows.deviation is not None
    keys, values = _keys(rows, seed, "noise"), np.empty_like(stream.values)
    for first, last in _parts(stream):
        steps = slice(stream.offsets[first], stream.offsets[last])
        part = Ragged(stream.values[steps], stream.offsets[first : last + 1] - stream.offsets[first])
        row, place = _places(part)
        counter = place[:, None] * part.width + np.arange(part.width)
        noise = ndtri(uniforms(keys[first:last][row, None], counter))
        scaled = (part.values - rows.mean) / rows.deviation
        gain = np.sqrt(_power(scaled, row, len(part)) / _power(noise, row, len(part)) * rate / (1.0 - rate))
        values[steps] = part.values + gain[row, None] * noise * rows.deviation
    return Damaged(Ragged(values, stream.offsets), np.zeros(len(values), dtype=bool))


def _blur(stream: Ragged, _rows: Rows, rate: float, _seed: int) -> Damaged:
    """Each step becomes the mean of those up to ``rate`` of the row away from it."""
    row, place = _places(stream)
    reach = _rounded(rate * np.maximum(stream.lengths - 1, 0))[row]
    here = np.arange(len(row))
    first = np.maximum(here - np.minimum(reach, place), 0)
    last = np.minimum(here + reach + 1, stream.offsets[1:][row])
    sums = np.concatenate([np.zeros((1, stream.width)), np.cumsum(stream.values, axis=0, dtype=np.float64)])
    means = (sums[last] - sums[first]) / (last - first)[:, None]
    values = np.where(reach[:, None] > 0, means, stream.values).astype(stream.values.dtype)
    return Damaged(Ragged(values, stream.offsets), reach == 0)


def _freeze(stream: Ragged, _rows: Rows, rate: float, _seed: int) -> Damaged:
    """The last ``rate`` of the row repeats the step before it; the first step always stays."""
    row, place = _places(stream)
    live = stream.lengths - _rounded(rate * np.maximum(stream.lengths - 1, 0))
    values = stream.values[stream.offsets[row] + np.minimum(place, live[row] - 1)]
    return Damaged(Ragged(values, stream.offsets), place < live[row])


_HEARD_AND_SEEN: tuple[Modality, ...] = ("audio", "vision")
_SEEN: tuple[Modality, ...] = ("vision",)

#: All kinds of damage, by name.
KINDS: Mapping[str, Degradation] = {
    kind.name: kind
    for kind in (
        Degradation(name="frames", rate_is="share of steps dropped", apply=_frames),
        Degradation(name="modality", rate_is="share of modalities missing", apply=_modality),
        Degradation(name="block", rate_is="length of the dropped block, as a share", apply=_block),
        Degradation(
            name="noise", rate_is="share of noise in the power", apply=_noise, modalities=_HEARD_AND_SEEN, tokens=False,
            scaled=True,
        ),
        Degradation(
            name="blur", rate_is="reach of the blur, as a share", apply=_blur, modalities=_SEEN, tokens=False, drawn=False,
            needs_steps=True,
        ),
        Degradation(
            name="freeze", rate_is="share of steps frozen", apply=_freeze, modalities=_SEEN, tokens=False, drawn=False,
            needs_steps=True,
        ),
    )
}  # fmt: skip


def uniforms(keys: np.ndarray, counters: np.ndarray | int = 0) -> np.ndarray:
    """Numbers in (0, 1), each a function of its uint64 key and counter alone (SplitMix64; Steele et al. 2014)."""
    state = np.asarray(keys, np.uint64) + (np.asarray(counters).astype(np.uint64) + np.uint64(1)) * _GOLDEN
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    state ^= state >> np.uint64(31)
    return ((state >> np.uint64(11)).astype(np.float64) + 0.5) / 2.0**53


def _keys(rows: Rows, seed: int, purpose: str) -> np.ndarray:
    """(N,) uint64, one for each clip by its id."""
    return np.array([derived_seed(seed, purpose, rows.modality, name) for name in rows.ids], dtype=np.uint64)


def _is_tokens(stream: Ragged) -> bool:
    return stream.values.ndim == 1


def _places(stream: Ragged) -> tuple[np.ndarray, np.ndarray]:
    """The row of each step, and its place in that row."""
    row = np.repeat(np.arange(len(stream)), stream.lengths)
    return row, np.arange(len(row)) - stream.offsets[row]


def _outer(stream: Ragged) -> np.ndarray:
    """(steps,) True on the first and last token of a row; False everywhere in a stream of vectors."""
    row, place = _places(stream)
    return _is_tokens(stream) & ((place == 0) | (place == stream.lengths[row] - 1))


def _blanked(stream: Ragged, kept: np.ndarray, blank: np.ndarray | int) -> Damaged:
    """``blank`` where ``kept`` ((steps,) bool) does not hold."""
    values = np.array(stream.values)
    values[~kept] = blank
    return Damaged(Ragged(values, stream.offsets), kept)


def _rounded(values: np.ndarray) -> np.ndarray:
    """To the nearest whole number, halves up, so that it never falls as the rate grows."""
    return np.floor(values + 0.5).astype(np.int64)


def _power(values: np.ndarray, row: np.ndarray, rows: int) -> np.ndarray:
    """(rows,) mean square of each row of (steps, D) ``values``; 1 for rows without steps."""
    steps = np.bincount(row, minlength=rows)
    total = np.bincount(row, np.square(values, dtype=np.float64).mean(axis=1), rows)
    return np.where(steps > 0, total / np.maximum(steps, 1), 1.0)


def _parts(stream: Ragged) -> Iterator[tuple[int, int]]:
    """(first row, row after the last) of runs of rows of about ``_STEPS`` steps."""
    first = 0
    while first < len(stream):
        last = int(np.searchsorted(stream.offsets, stream.offsets[first] + _STEPS, side="right")) - 1
        last = max(first + 1, last)
        yield first, last
        first = last
