"""CMU-MOSI and RAVDESS as one corpus of sentiment: words that were judged, and voices that were acted.

Source   The two corpora as cmu_mosi.py and ravdess.py read them, in the subfolders ``cmu_mosi`` and ``ravdess``.
Labels   sentiment in [-3, 3]. Of CMU-MOSI its own. RAVDESS has emotions, no sentiment; a choice of ours maps them:
         happy is positive, sad, angry, fearful and disgust are negative, 1.5 at normal and 2.5 at strong intensity;
         neutral and calm are 0; surprised, which may be either, has no label. Four emotions are negative and one is
         positive: of each of the four only the clips of one sentence and repetition have a label, or else to have a
         voice at all would be to be negative.
Streams  text, and audio as librosa_33, which any clip can be measured by. CMU-MOSI comes without sound, so its clips
         have no audio; the face is left out, for neither corpus has one that is measured here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from moodal.core.errors import DataError
from moodal.core.spec import Regression
from moodal.data.cmu_mosi import CmuMosi, CmuMosiConfig
from moodal.data.corpus import Clip, CorpusFacts, RawCorpus, ReaderConfig
from moodal.data.extractors import LibrosaSettings
from moodal.data.ragged import Ragged
from moodal.data.ravdess import EMOTIONS, Ravdess, RavdessConfig
from moodal.data.tables import need_folder

NAME = "mosi_ravdess"
#: Emotion -> sign of the sentiment; emotions that are not here have no label.
SIGNS = {"neutral": 0, "calm": 0, "happy": 1, "sad": -1, "angry": -1, "fearful": -1, "disgust": -1}
#: Their order says which of the four takes (sentence, repetition) each keeps.
NEGATIVE = tuple(name for name, sign in SIGNS.items() if sign < 0)
#: RAVDESS's two intensities -> how far from 0.
STRENGTHS = {"1": 1.5, "2": 2.5}

FACTS = CorpusFacts(
    name=NAME,
    title="CMU-MOSI and RAVDESS speech",
    language="en",
    task=Regression(low=-3.0, high=3.0),
    protocol="mosi",
    source="Zadeh et al. 2016, arXiv 1606.06259; Livingstone and Russo 2018, PLoS ONE 13(5)",
    licence="CMU-MOSI: academic research use; RAVDESS: CC BY-NC-SA 4.0",
    widths={"audio": 33},
)


@dataclass(frozen=True, kw_only=True)
class MosiRavdessConfig(ReaderConfig):
    """``audio``: settings of the extractor librosa_33. ``workers``: processes that extract (0: one per core)."""

    audio: LibrosaSettings = field(default_factory=LibrosaSettings)
    workers: int = 0


class MosiRavdess:
    """The reader of both corpora in the form described at the top of this file."""

    Config: ClassVar[type[ReaderConfig]] = MosiRavdessConfig
    facts: ClassVar[CorpusFacts] = FACTS

    @staticmethod
    def read(root: Path | None, cfg: Any, cache: Path) -> RawCorpus:
        """Read both folders below ``root``. Raises DataError with a sentence for whatever is missing or wrong."""
        folder = need_folder(root, NAME, ())
        spoken = CmuMosi.read(folder / "cmu_mosi", CmuMosiConfig(features=()), cache)
        acted = Ravdess.read(folder / "ravdess", RavdessConfig(audio=cfg.audio, workers=cfg.workers), cache)
        if "audio" not in acted.streams:
            raise DataError(
                f"{NAME}: {folder / 'ravdess'} holds no sound files (FLAC or WAV, loose or in *.tar); add them."
            )
        return RawCorpus(
            facts=FACTS,
            clips=(*_named(spoken.clips, "cmu_mosi"), *_named(judged(acted.clips), "ravdess")),
            streams={"audio": _after(len(spoken.clips), acted.streams["audio"])},
            recipes={"audio": acted.recipes["audio"]},
            source={"cmu_mosi": dict(spoken.source), "ravdess": dict(acted.source)},
        )


def _named(clips: Sequence[Clip], corpus: str) -> list[Clip]:
    return [replace(clip, id=f"{corpus}/{clip.id}", group=f"{corpus}/{clip.group}") for clip in clips]


def judged(clips: Sequence[Clip]) -> list[Clip]:
    """Clips of RAVDESS with a sentiment in place of the emotion, as many negative as positive ones."""
    sentences = sorted({clip.text for clip in clips})
    return [replace(clip, label=_sentiment(clip, sentences.index(clip.text))) for clip in clips]


def _sentiment(clip: Clip, sentence: int) -> float | None:
    if clip.label is None:
        return None
    emotion = EMOTIONS[int(clip.label)]
    take = (2 * sentence + int(clip.notes.get("repetition", "1")) - 1) % len(NEGATIVE)
    if emotion not in SIGNS or (emotion in NEGATIVE and take != NEGATIVE.index(emotion)):
        return None
    return SIGNS[emotion] * STRENGTHS[clip.notes.get("intensity", "1")]


def _after(empty: int, stream: Ragged) -> Ragged:
    """``stream`` behind ``empty`` rows without steps."""
    return Ragged(stream.values, np.concatenate([np.zeros(empty, np.int64), stream.offsets]))
