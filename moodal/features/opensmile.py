"""The eGeMAPS descriptors as openSMILE makes them, for comparison with published numbers: 25 a step.

openSMILE's licence permits research and personal use only, so this is an extra and never the default; ``prosody_25``
measures the same things in code that may be used for anything.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from moodal.core.errors import MissingExtra, MoodalError, check
from moodal.features.audio_base import AudioExtractor

#: Samples below which openSMILE makes no step: its longest window is 60 ms.
_LEAST_SECONDS = 0.06


@dataclass(frozen=True, kw_only=True)
class OpenSmileSettings:
    """Settings of ``opensmile_egemaps``. Its step is always 10 ms, so ``hop`` must be a hundredth of ``sample_rate``."""

    sample_rate: int = 16000
    hop: int = 160

    def __post_init__(self) -> None:
        check(
            self.sample_rate >= 8000 and self.hop * 100 == self.sample_rate,
            f"hop is {self.hop} at a sample_rate of {self.sample_rate}; openSMILE steps by 10 ms, so give "
            f"{self.sample_rate // 100}, and a rate of 8000 or more.",
        )


class OpenSmileEgemaps(AudioExtractor):
    """Mono sound -> (T, 25): the low-level descriptors of eGeMAPSv02, with openSMILE's names for them."""

    name: ClassVar[str] = "opensmile_egemaps"
    version: ClassVar[str] = "1"
    Config: ClassVar[type[Any]] = OpenSmileSettings
    channels: ClassVar[tuple[str, ...]] = (
        "Loudness_sma3", "alphaRatio_sma3", "hammarbergIndex_sma3", "slope0-500_sma3", "slope500-1500_sma3",
        "spectralFlux_sma3", "mfcc1_sma3", "mfcc2_sma3", "mfcc3_sma3", "mfcc4_sma3", "F0semitoneFrom27.5Hz_sma3nz",
        "jitterLocal_sma3nz", "shimmerLocaldB_sma3nz", "HNRdBACF_sma3nz", "logRelF0-H1-H2_sma3nz",
        "logRelF0-H1-A3_sma3nz", "F1frequency_sma3nz", "F1bandwidth_sma3nz", "F1amplitudeLogRelF0_sma3nz",
        "F2frequency_sma3nz", "F2bandwidth_sma3nz", "F2amplitudeLogRelF0_sma3nz", "F3frequency_sma3nz",
        "F3bandwidth_sma3nz", "F3amplitudeLogRelF0_sma3nz",
    )  # fmt: skip

    def timed(self, wave: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(S,) float samples at the recipe's rate -> (T, 25) float32 and (T,) seconds; (0, 25) for no sound."""
        if len(wave) < _LEAST_SECONDS * self.cfg.sample_rate or not np.any(wave):
            return self.nothing()
        package = _opensmile()
        smile = package.Smile(
            feature_set=package.FeatureSet.eGeMAPSv02, feature_level=package.FeatureLevel.LowLevelDescriptors
        )
        table = smile.process_signal(wave.astype(np.float32), self.cfg.sample_rate)
        begin, end = (table.index.get_level_values(name).total_seconds().to_numpy() for name in ("start", "end"))
        return table[list(self.channels)].to_numpy(np.float32), (begin + end) / 2

    def need_packages(self) -> None:
        """Raise MissingExtra without openSMILE."""
        _opensmile()


def _opensmile() -> Any:
    try:
        import opensmile
    except ImportError as error:
        if importlib.util.find_spec("opensmile") is None:
            raise MissingExtra("opensmile", "opensmile") from error
        raise MoodalError(
            f"opensmile is installed and cannot be loaded ({error}); install the version named there of what it needs."
        ) from error
    return opensmile
