"""What readers may know of extractors: the single table of them, their settings, and how they are called.

The extractors themselves are in ``features`` and are imported on use, so that ``data`` does not depend on them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

from moodal.core.errors import check
from moodal.core.registry import Table
from moodal.core.spec import Modality
from moodal.data.corpus import FeatureRecipe

EXTRACTORS = Table(
    "extractor",
    {
        "librosa_33": "moodal.features.audio:Librosa33",
        "prosody_25": "moodal.features.prosody:Prosody25",
        "opensmile_egemaps": "moodal.features.opensmile:OpenSmileEgemaps",
        "wav2vec2": "moodal.features.hub:Wav2Vec2",
        "hubert": "moodal.features.hub:Hubert",
        "wavlm": "moodal.features.hub:WavLM",
        "face_mesh": "moodal.features.face:FaceMesh",
        "hub_vision": "moodal.features.hub:HubVision",
        "openface": "moodal.features.openface:OpenFace",
    },
)

#: Called with (files done, files to do).
Report = Callable[[int, int], None]


@dataclass(frozen=True)
class MediaFile:
    """A sound file, or a part of an archive: ``size`` bytes from ``start`` of ``path`` (the whole file for None)."""

    path: Path
    start: int = 0
    size: int | None = None

    def bytes(self) -> bytes:
        """The content. Raises OSError."""
        with self.path.open("rb") as file:
            file.seek(self.start)
            return file.read() if self.size is None else file.read(self.size)


@dataclass(frozen=True, kw_only=True)
class LibrosaSettings:
    """Settings of ``librosa_33``; times follow from them: a step is ``hop / sample_rate`` seconds.

    ``trim_db``: leading and trailing parts so many decibels below the peak are cut (null: nothing is cut). ``level_db``: what
    is left is made so loud, root mean square in decibels of full scale, for clips from microphones of all kinds (null: as recorded).
    ``pitch_low``, ``pitch_high``: range of the voice in Hz. ``pitch_resolution``: in semitones. ``mel_low``,
    ``mel_high``: Hz. ``range_db``: what is quieter than the loudest frame by more is raised to that.
    """

    sample_rate: int = 16000
    hop: int = 256
    window: int = 1024
    trim_db: float | None = 30.0
    level_db: float | None = None
    pitch_low: float = 65.0
    pitch_high: float = 500.0
    pitch_resolution: float = 0.1
    mels: int = 64
    mel_low: float = 50.0
    mel_high: float = 8000.0
    range_db: float = 80.0

    def __post_init__(self) -> None:
        check(
            1 <= self.hop <= self.window, f"hop is {self.hop}; it must lie between 1 and the window of {self.window}."
        )
        check(
            self.level_db is None or -80 <= self.level_db < 0,
            f"level_db is {self.level_db}; give -80 to below 0 decibels of full scale, or null.",
        )
        check(
            0 < self.pitch_low < self.pitch_high,
            f"pitch_low is {self.pitch_low}; it must lie between 0 and pitch_high.",
        )
        check(0 <= self.mel_low < self.mel_high, f"mel_low is {self.mel_low}; it must lie between 0 and mel_high.")
        half = self.sample_rate / 2
        check(
            max(self.mel_high, self.pitch_high) <= half,
            f"mel_high is {self.mel_high} and pitch_high {self.pitch_high}; at most {half} is there.",
        )
        check(self.window * self.pitch_low >= 2 * self.sample_rate, _short_window(self))
        check(20 <= self.mels <= 256, f"mels is {self.mels}; 20 to 256 are sensible for 20 coefficients.")
        check(
            0.01 <= self.pitch_resolution < 1, f"pitch_resolution is {self.pitch_resolution}; give 0.01 to 1 semitones."
        )


def _short_window(cfg: LibrosaSettings) -> str:
    return (
        f"window is {cfg.window} samples, shorter than two periods of pitch_low {cfg.pitch_low} Hz; "
        f"give {int(2 * cfg.sample_rate / cfg.pitch_low) + 1} or more."
    )


class Extractor(Protocol):
    """An entry of ``EXTRACTORS``: built from its settings; its recipe says what it makes.

    ``Config(**recipe().settings)`` are settings that make the same extractor again. What an audio and what a vision
    extractor do besides is in ``features.audio_base`` and ``features.face``.
    """

    name: ClassVar[str]
    version: ClassVar[str]
    modality: ClassVar[Modality]
    Config: ClassVar[type[Any]]

    def __init__(self, cfg: Any = None) -> None: ...

    def recipe(self) -> FeatureRecipe: ...
