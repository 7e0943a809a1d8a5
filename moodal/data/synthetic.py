"""A made-up corpus with a signal that needs words, voice and face and their timing; for tests, docs and benchmarks.

Every clip says an English sentence whose words carry a graded polarity p. The voice is lifted once and lowered once,
the face smiles once and frowns once, at the same two moments of the clip. Whether voice and face agree at those
moments (lifted with the smile) or disagree (lifted with the frown) decides a second term g:

    a(t) = +m_a, -m_a at two moments in either order       v(t) = +m_v, -m_v at the same moments in either order
    g    = m_a * m_v * (+1 if both have the same order, -1 otherwise)
    y    = scale * (sqrt(s) * p / dev(p) + sqrt(1 - s) * g / dev(g) + label_noise * n),   clipped to the label range

with s = ``text_share`` and n standard normal. So words explain the share s; voice alone and face alone explain
nothing (each order is a fair coin); and since both movements are in every clip, anything pooled over time loses g
altogether. The sum over time of a(t) v(t) recovers it. No published data set is imitated.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np

from moodal.core.errors import check
from moodal.core.random import derived_seed
from moodal.core.spec import MODALITIES, Classification, Modality, Regression
from moodal.data.corpus import SPLITS, Clip, CorpusFacts, FeatureRecipe, RawCorpus, ReaderConfig
from moodal.data.ragged import Ragged

#: polarity of the words that carry one, from -1 to 1; every other word is neutral.
POLARITY: Mapping[str, float] = {
    **{"terrible": -1.0, "awful": -0.95, "horrible": -0.95, "dreadful": -0.9, "bad": -0.7, "poor": -0.65},
    **{
        "disappointing": -0.65,
        "boring": -0.6,
        "weak": -0.5,
        "dull": -0.5,
        "confusing": -0.4,
        "slow": -0.3,
        "odd": -0.2,
    },
    **{"ordinary": 0.0, "average": 0.0, "usual": 0.0, "fine": 0.2, "decent": 0.3, "solid": 0.4, "pleasant": 0.45},
    **{"nice": 0.55, "good": 0.6, "enjoyable": 0.65, "charming": 0.7, "great": 0.85, "beautiful": 0.85},
    **{"excellent": 0.95, "superb": 0.95, "wonderful": 1.0, "amazing": 1.0},
}
INTENSITY: Mapping[str, float] = {"": 1.0, "slightly": 0.5, "rather": 0.8, "really": 1.2, "very": 1.2, "extremely": 1.4}
OPENERS = ("", "honestly", "well", "overall", "so")
NOUNS = (
    "story",
    "music",
    "acting",
    "ending",
    "plot",
    "cast",
    "dialogue",
    "humour",
    "pace",
    "script",
    "hero",
    "villain",
)
VERBS = ("was", "felt", "seemed", "looked")
VOCABULARY: tuple[str, ...] = tuple(dict.fromkeys(("", *OPENERS, "the", "and", *NOUNS, *VERBS, *INTENSITY, *POLARITY)))

CLASSES = ("negative", "neutral", "positive")
CLASS_LIMITS = (-0.6, 0.6)  # of the number in [-3, 3] that a class stands for: about a third of the clips each

#: deviations of p and of g over all clips; the tests recompute them.
POLARITY_DEVIATION = 0.61
AGREEMENT_DEVIATION = 1.053
SCALE = 1.2  # deviation of the label; about 1 % of the labels are clipped
EVENT_STEPS = 4  # length of a movement of voice or face, in audio steps

AUDIO_NAMES = ("log_f0", "loudness")
VISION_NAMES = tuple(f"AU{n:02d}_r" for n in (4, 12, 6, 15, 1, 2, 5, 7, 9, 10, 14, 17, 20, 23, 25, 26, 45))
#: (resting value, spread between speakers, size of a movement, noise) of the channels that move, by name.
MOVING: Mapping[str, tuple[float, float, float, float]] = {
    "log_f0": (1.5, 0.15, 0.3, 0.3),  # octaves above a low voice
    "loudness": (0.0, 0.3, 1.0, 1.0),
    "AU04_r": (1.5, 0.1, -0.8, 0.8),
    "AU12_r": (1.5, 0.1, 1.0, 1.0),
    "AU06_r": (1.5, 0.1, 0.6, 0.8),
}
RESTING = (0.0, 0.2, 0.0, 1.0)


@dataclass(frozen=True, kw_only=True)
class SyntheticConfig(ReaderConfig):
    """Sizes and difficulty. Nothing is read from disk; equal settings give equal corpora, bit for bit."""

    train: int = 400
    valid: int = 100
    test: int = 100
    task: Literal["regression", "classification"] = "regression"
    modalities: tuple[Modality, ...] = MODALITIES
    #: also a text stream of word vectors (needed for ``data.text.mode=features``), from one fixed table.
    word_vectors: bool = True
    text_width: int = 24
    audio_width: int = 6
    vision_width: int = 6
    steps: tuple[int, int] = (16, 32)  # shortest and longest clip in audio steps of ``hop`` seconds
    hop: float = 0.1
    vision_every: int = 1  # one vision step for so many audio steps
    missing: float = 0.0  # share of clips without audio, and likewise without vision (never both)
    text_share: float = 0.4  # share of the label's variance that the words decide
    noise: float = 0.3  # frame noise, where 1 is as large as a movement
    label_noise: float = 0.2  # deviation of what nothing explains, in deviations of the label
    seed: int = 0

    def __post_init__(self) -> None:
        low, high = self.steps
        check(min(self.train, self.valid, self.test) >= 1, "train, valid and test must each be 1 or more.")
        check(len(self.modalities) >= 1, "modalities is empty; name at least one of text, audio, vision.")
        check(set(self.modalities) <= set(MODALITIES), f"modalities is {self.modalities}; known: text, audio, vision.")
        widths = (self.text_width, self.audio_width, self.vision_width)
        check(min(widths) >= 1, f"the widths of text, audio and vision are {widths}; each must be 1 or more.")
        least = 2 * (EVENT_STEPS + 1)
        check(least <= low <= high, f"steps is {self.steps}; write (shortest, longest), the shortest {least} or more.")
        check(self.hop > 0, f"hop is {self.hop} seconds; it must be positive.")
        check(1 <= self.vision_every <= 4, f"vision_every is {self.vision_every}; it must lie between 1 and 4.")
        check(0 <= self.missing <= 0.5, f"missing is {self.missing}; it is a share from 0 to 0.5.")
        check(0 <= self.text_share <= 1, f"text_share is {self.text_share}; it is a share from 0 to 1.")
        check(min(self.noise, self.label_noise) >= 0, "noise and label_noise cannot be negative.")


class Synthetic:
    """Reader of the made-up corpus."""

    Config: ClassVar[type[ReaderConfig]] = SyntheticConfig
    facts: ClassVar[CorpusFacts] = CorpusFacts(
        name="synthetic",
        title="Synthetic clips",
        language="en",
        task=Regression(-3.0, 3.0),
        protocol="mosi",
        source="made by moodal.data.synthetic",
        licence="none needed",
    )

    @staticmethod
    def read(root: Path | None, cfg: SyntheticConfig, cache: Path) -> RawCorpus:  # noqa: ARG004
        """Make the corpus of ``cfg``; ``root`` and ``cache`` are not used."""
        return make(cfg)


def make(cfg: SyntheticConfig) -> RawCorpus:
    """The corpus of ``cfg``: clips of the splits one after the other, streams of ``cfg.modalities``."""
    parts = [_Part(cfg, split) for split in SPLITS]
    clips = tuple(clip for part in parts for clip in part.clips())
    streams: dict[Modality, Ragged] = {}
    if "text" in cfg.modalities and cfg.word_vectors:
        streams["text"] = _joined([part.word_vectors() for part in parts])
    for modality in ("audio", "vision"):
        if modality in cfg.modalities:
            streams[modality] = _joined([part.frames(modality) for part in parts])
    recipes = {modality: _recipe(cfg, modality) for modality in streams}
    facts = replace(Synthetic.facts, size={s: getattr(cfg, s) for s in SPLITS})
    if cfg.task == "classification":
        facts = replace(facts, task=Classification(CLASSES), protocol="emotion")
    return RawCorpus(facts=facts, clips=clips, streams=streams, recipes=recipes, source={"seed": cfg.seed})


def polarity(sentence: str) -> float:
    """p of a sentence of this corpus: mean over its judging words of polarity times the intensity just before."""
    words = [word.strip(".,").lower() for word in sentence.split()]
    found = [POLARITY[w] * INTENSITY.get(before, 1.0) for before, w in zip(["", *words], words) if w in POLARITY]
    return float(np.mean(found)) if found else 0.0


def channel_names(modality: Modality, width: int) -> tuple[str, ...]:
    """Names of the ``width`` columns of audio (log_f0, loudness, mfcc_0 ...) or vision (AU04_r, AU12_r, ...)."""
    known = AUDIO_NAMES if modality == "audio" else VISION_NAMES
    rest = "mfcc" if modality == "audio" else "face"
    return (*known, *(f"{rest}_{i}" for i in range(width)))[:width]


class _Part:
    """One split: every random choice drawn once, from generators of their own, as arrays over its N clips."""

    def __init__(self, cfg: SyntheticConfig, split: str) -> None:
        self.cfg, self.split = cfg, split
        self.size: int = getattr(cfg, split)
        draw = self._generator("events")
        n = self.size
        self.lengths = draw.integers(cfg.steps[0], cfg.steps[1] + 1, n)
        half = self.lengths // 2
        first = 1 + np.floor(draw.random(n) * (half - EVENT_STEPS)).astype(np.int64)
        second = half + np.floor(draw.random(n) * (self.lengths - half - EVENT_STEPS + 1)).astype(np.int64)
        self.moments = np.stack([first, second])  # (2, N) first step of each movement
        self.order = {m: draw.choice([-1.0, 1.0], n) for m in ("audio", "vision")}
        self.size_of = {m: draw.uniform(0.6, 1.4, n) for m in ("audio", "vision")}
        self.speaker = draw.integers(0, max(1, n // 10), n)
        uniform = draw.random(n)
        self.absent = {"audio": uniform < cfg.missing, "vision": uniform > 1 - cfg.missing}
        self.words, self.polarity = _sentences(self._generator("text"), n)

    def _generator(self, purpose: str) -> np.random.Generator:
        return np.random.default_rng(derived_seed(self.cfg.seed, "synthetic", self.split, purpose))

    def numbers(self) -> np.ndarray:
        """(N,) labels in [-3, 3], by the formula at the top of the file."""
        cfg = self.cfg
        agreement = self.order["audio"] * self.order["vision"] * self.size_of["audio"] * self.size_of["vision"]
        words = np.sqrt(cfg.text_share) * self.polarity / POLARITY_DEVIATION
        timing = np.sqrt(1 - cfg.text_share) * agreement / AGREEMENT_DEVIATION
        unexplained = cfg.label_noise * self._generator("label").standard_normal(self.size)
        return np.clip(SCALE * (words + timing + unexplained), -3.0, 3.0)

    def clips(self) -> list[Clip]:
        """The table of the split."""
        labels = self.numbers()
        if self.cfg.task == "classification":
            labels = np.digitize(labels, CLASS_LIMITS)
        said = [[VOCABULARY[w] for w in row if w] if "text" in self.cfg.modalities else [] for row in self.words]
        times = self._word_times()
        return [
            Clip(
                id=f"{self.split}-{i:05d}",
                split=self.split,
                text=" ".join(words).capitalize() + "." if words else "",
                label=float(labels[i]),
                words=tuple((word, *map(float, span)) for word, span in zip(words, times[i])),
                group=f"{self.split}-speaker-{self.speaker[i]}",
            )
            for i, words in enumerate(said)
        ]

    def _word_times(self) -> list[np.ndarray]:
        """One (words, 2) array of start and end in seconds per clip: words of their length's share, small pauses."""
        spoken = np.array([len(word) for word in VOCABULARY])[self.words] + 2.0 * (self.words > 0)
        spoken = spoken * self._generator("times").uniform(0.7, 1.3, spoken.shape)
        after = 0.15 * spoken
        ends = np.cumsum(spoken + after, axis=1)
        scale = 0.95 * self.lengths * self.cfg.hop / ends[:, -1]
        starts = np.column_stack([np.zeros(self.size), ends[:, :-1]])
        spans = np.round(np.stack([starts, ends - after], axis=-1) * scale[:, None, None], 3)
        return [row[keep] for row, keep in zip(spans, self.words > 0)]

    def word_vectors(self) -> Ragged:
        """(words, text_width): rows of one table; nearby polarities share a direction, as in real word vectors."""
        table = np.random.default_rng(derived_seed(0, "synthetic", "words", self.cfg.text_width))
        vectors = table.standard_normal((len(VOCABULARY), self.cfg.text_width))
        direction = table.standard_normal(self.cfg.text_width)
        value = np.array([POLARITY.get(word, 0.0) for word in VOCABULARY])
        vectors = (0.5 * vectors + value[:, None] * direction).astype(np.float32)
        return Ragged(vectors[self.words[self.words > 0]], _offsets((self.words > 0).sum(axis=1)))

    def frames(self, modality: Modality) -> Ragged:
        """(steps, width) of audio or vision; clips without the modality have no step."""
        cfg = self.cfg
        every = cfg.vision_every if modality == "vision" else 1
        names = channel_names(modality, cfg.vision_width if modality == "vision" else cfg.audio_width)
        lengths = np.where(self.absent[modality], 0, -(-self.lengths // every))
        offsets = _offsets(lengths)
        row = np.repeat(np.arange(self.size), lengths)
        step = (np.arange(offsets[-1]) - offsets[row]) * every
        base, spread, size, noise = np.array([MOVING.get(name, RESTING) for name in names]).T
        draw = self._generator(modality)
        voice = draw.standard_normal((int(self.speaker.max()) + 1, len(names)))[self.speaker[row]]
        values = base + spread * voice + size * self._movement(modality, row, step)[:, None]
        values += cfg.noise * noise * draw.standard_normal(values.shape)
        if modality == "vision":
            action = np.array([name.startswith("AU") for name in names])
            values[:, action] = np.clip(values[:, action], 0.0, 5.0)
        return Ragged(values.astype(np.float32), offsets)

    def _movement(self, modality: Modality, row: np.ndarray, step: np.ndarray) -> np.ndarray:
        """(steps,) a(t) or v(t)."""
        within = step - self.moments[:, row]
        active = (within >= 0) & (within < EVENT_STEPS)
        sign = self.order[modality][row] * (active[0].astype(float) - active[1])
        return sign * self.size_of[modality][row]


def _sentences(draw: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    """(N, places) indices into ``VOCABULARY``, 0 where nothing is said, and the (N,) polarity of each row."""
    number = {word: i for i, word in enumerate(VOCABULARY)}

    def pick(words: tuple[str, ...]) -> np.ndarray:
        return np.array([number[w] for w in words])[draw.integers(0, len(words), n)]

    def clause() -> tuple[np.ndarray, np.ndarray]:
        noun, verb, intensity, judgement = pick(NOUNS), pick(VERBS), pick(tuple(INTENSITY)), pick(tuple(POLARITY))
        grade = np.array([POLARITY.get(w, 0.0) for w in VOCABULARY])[judgement]
        strength = np.array([INTENSITY.get(w, 1.0) for w in VOCABULARY])[intensity]
        return np.stack([np.full(n, number["the"]), noun, verb, intensity, judgement], axis=1), grade * strength

    one, first = clause()
    two, second = clause()
    double = draw.random(n) < 0.5
    joined = np.column_stack([np.full(n, number["and"]), two]) * double[:, None]
    words = np.column_stack([pick(OPENERS), one, joined])
    return words, np.where(double, (first + second) / 2, first)


def _recipe(cfg: SyntheticConfig, modality: Modality) -> FeatureRecipe:
    if modality == "text":
        return FeatureRecipe(name="synthetic-words", version="1", width=cfg.text_width)
    width = cfg.audio_width if modality == "audio" else cfg.vision_width
    hop = cfg.hop * (cfg.vision_every if modality == "vision" else 1)
    names = channel_names(modality, width)
    return FeatureRecipe(name=f"synthetic-{modality}", version="1", width=width, channels=names, settings={"hop": hop})


def _offsets(lengths: np.ndarray) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


def _joined(parts: list[Ragged]) -> Ragged:
    values = np.concatenate([part.values for part in parts])
    return Ragged(values, _offsets(np.concatenate([part.lengths for part in parts])))
