"""POM: film reviews of single speakers, rated for persuasion, traits and sentiment; voice and face as short sequences.

Source   Park et al., "Computational Analysis of Persuasiveness in Social Multimedia", ICMI 2014. The features are those
         released with MFN (Zadeh et al., AAAI 2018): word-aligned, 20 steps. File expected in the folder: pom.npz with
         {train,valid,test}_{audio,vision,y}, shapes (clips, 20, 43), (clips, 20, 41), (clips, 17). No transcripts.
Labels   17 ratings, means over raters: the six traits from reserved to nervous on a scale of 1 to 5, the others of 1 to
         7. The file does not name its columns; their order is inferred from the ranges and the order of MFN's table.
Steps    Clips are padded in front, and a step without a measurement is a vector of zeros. The voice is measured from a
         clip's first word on (32 % of the steps are zeros, nearly all in front); the face only where a tracker found it:
         79 % of its steps are zeros, half of the clips have no face at all, and the others mostly from some word on.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

import numpy as np

from moodal.core.errors import DataError
from moodal.core.files import sha256
from moodal.core.spec import Modality, Regression
from moodal.data.corpus import SPLITS, Clip, CorpusFacts, FeatureRecipe, RawCorpus, ReaderConfig
from moodal.data.ragged import Ragged
from moodal.data.tables import need_folder, need_splits, read_vectors

log = logging.getLogger(__name__)
NAME, FILE = "pom", "pom.npz"
#: The columns of y, in order.
Rating = Literal[
    "confident", "passionate", "pleasant", "dominant", "credible", "vivid", "expertise", "entertaining", "reserved",
    "trusting", "relaxed", "outgoing", "thorough", "nervous", "sentiment", "persuasive", "humorous",
]  # fmt: skip
RATINGS: tuple[str, ...] = get_args(Rating)
#: Rated from 1 to 5; all others from 1 to 7.
TRAITS = ("reserved", "trusting", "relaxed", "outgoing", "thorough", "nervous")
WIDTHS: dict[Modality, int] = {"audio": 43, "vision": 41}

FACTS = CorpusFacts(
    name=NAME,
    title="POM",
    language="en",
    task=Regression(low=1.0, high=7.0),
    protocol="pom",
    source="Park et al. 2014, ICMI; features: Zadeh et al. 2018, AAAI (MFN)",
    licence="academic research use",
    size={"train": 600, "valid": 100, "test": 203},
    widths=WIDTHS,
)


@dataclass(frozen=True, kw_only=True)
class PomConfig(ReaderConfig):
    """``rating``: what is predicted. ``steps``: "measured" keeps of each stream the steps that hold a measurement, so that
    a mask says what is there; "aligned" keeps the span of a clip in both streams, with zeros where a face was not found,
    so that step i of both is the same word. A stream without any measurement is missing either way."""

    rating: Rating = "sentiment"
    steps: Literal["measured", "aligned"] = "measured"


class Pom:
    """The reader of POM in the form described at the top of this file."""

    Config: ClassVar[type[ReaderConfig]] = PomConfig
    facts: ClassVar[CorpusFacts] = FACTS

    @staticmethod
    def read(root: Path | None, cfg: Any, cache: Path) -> RawCorpus:  # noqa: ARG004 (nothing here is worth caching)
        """Read the folder ``root``. Raises DataError with a sentence for whatever is missing or wrong in it."""
        file = need_folder(root, NAME, (FILE,)) / FILE
        names = [f"{split}_{part}" for split in SPLITS for part in ("audio", "vision", "y")]
        arrays = read_vectors(file, NAME, names)
        for split in SPLITS:
            _check(arrays, split)
        need_splits([split for split in SPLITS if len(arrays[f"{split}_y"])], NAME)
        values = {m: np.concatenate([arrays[f"{split}_{m}"] for split in SPLITS]) for m in WIDTHS}
        there = {m: np.any(steps != 0, axis=2) for m, steps in values.items()}
        kept = there if cfg.steps == "measured" else _spans(there)
        traits = cfg.rating in TRAITS
        facts = replace(FACTS, task=Regression(1.0, 5.0), protocol="pom_traits") if traits else FACTS
        return RawCorpus(
            facts=_sized(facts, arrays),
            clips=_clips(arrays, cfg.rating, facts),
            streams={m: _ragged(values[m], kept[m]) for m in WIDTHS},
            recipes={
                m: FeatureRecipe(name=f"mfn_{m}_{width}", version="1", width=width, settings={"steps": cfg.steps})
                for m, width in WIDTHS.items()
            },
            source={"rating": cfg.rating, "files": {FILE: sha256(file)}},
        )


def _check(arrays: dict[str, np.ndarray], split: str) -> None:
    """Shapes that fit together, and finite numbers."""
    clips, steps = len(arrays[f"{split}_y"]), arrays[f"{split}_audio"].shape[1:2]
    shapes = {
        "y": (clips, len(RATINGS)),
        "audio": (clips, *steps, WIDTHS["audio"]),
        "vision": (clips, *steps, WIDTHS["vision"]),
    }
    for part, shape in shapes.items():
        found = arrays[f"{split}_{part}"]
        if found.shape != shape:
            raise DataError(
                f"{NAME}: {split}_{part} of {FILE} has the shape {found.shape}; expected {shape}. Get it again."
            )
        if not np.isfinite(found).all():
            raise DataError(f"{NAME}: {split}_{part} of {FILE} holds NaN or inf; get it again.")


def _spans(there: dict[Modality, np.ndarray]) -> dict[Modality, np.ndarray]:
    """(N, T) bool: from the first to the last step of a clip that holds anything; none where a stream holds nothing."""
    some = np.any(list(there.values()), axis=0)
    begun = np.maximum.accumulate(some, axis=1)
    span = begun & np.maximum.accumulate(some[:, ::-1], axis=1)[:, ::-1]
    return {m: span & steps.any(axis=1, keepdims=True) for m, steps in there.items()}


def _ragged(values: np.ndarray, kept: np.ndarray) -> Ragged:
    """(N, T, D) values at the steps where ``kept`` (N, T) holds."""
    offsets = np.concatenate([[0], np.cumsum(kept.sum(axis=1))]).astype(np.int64)
    return Ragged(values[kept].astype(np.float32), offsets)


def _clips(arrays: dict[str, np.ndarray], rating: str, facts: CorpusFacts) -> tuple[Clip, ...]:
    """The clips of all splits, named by split and place, with one rating as their label."""
    clips = tuple(
        Clip(id=f"{split}_{row:03d}", split=split, text="", label=float(ratings[RATINGS.index(rating)]))
        for split in SPLITS
        for row, ratings in enumerate(arrays[f"{split}_y"])
    )
    assert isinstance(facts.task, Regression)
    outside = sum(not facts.task.low <= float(clip.label or 0.0) <= facts.task.high for clip in clips)
    if outside:
        log.warning(
            "%s: %d of %d clips are rated %s outside %g to %g; they are kept as they are",
            NAME, outside, len(clips), rating, facts.task.low, facts.task.high,
        )  # fmt: skip
    return clips


def _sized(facts: CorpusFacts, arrays: dict[str, np.ndarray]) -> CorpusFacts:
    """``facts``; without sizes, and with a warning, for a file of other sizes."""
    found = {split: len(arrays[f"{split}_y"]) for split in SPLITS}
    if found == facts.size:
        return facts
    log.warning("%s: sizes of the splits are %s; published are %s", NAME, found, dict(facts.size))
    return replace(facts, size={})
