"""Sound to frame features: pitch, cepstrum and pitch classes by librosa, 33 numbers a step."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from moodal.data.extractors import LibrosaSettings
from moodal.features.audio_base import LOWEST_VOICED, AudioExtractor, librosa

PITCH_CLASSES = ("c", "c_sharp", "d", "d_sharp", "e", "f", "f_sharp", "g", "g_sharp", "a", "a_sharp", "b")


class Librosa33(AudioExtractor):
    """16 kHz mono sound -> (T, 33): log-F0 by pYIN, 20 MFCC, 12 chroma.

    ``log_f0`` is in octaves above ``pitch_low`` and 0 where unvoiced. pYIN: Mauch and Dixon, ICASSP 2014.
    """

    name: ClassVar[str] = "librosa_33"
    version: ClassVar[str] = "1"
    Config: ClassVar[type[Any]] = LibrosaSettings
    channels: ClassVar[tuple[str, ...]] = (
        "log_f0",
        *(f"mfcc_{i}" for i in range(20)),
        *(f"chroma_{name}" for name in PITCH_CLASSES),
    )

    def timed(self, wave: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(S,) float samples at the recipe's rate -> (T, 33) float32, one step per hop, and the (T,) seconds of their
        middles, counted from the start of ``wave`` whatever was cut from it; (0, 33) for no sound."""
        package, cfg, start = librosa(), self.cfg, 0
        if cfg.trim_db is not None and len(wave):
            wave, (start, _) = package.effects.trim(
                wave, top_db=cfg.trim_db, frame_length=cfg.window, hop_length=cfg.hop
            )
        if not len(wave) or not np.any(wave):
            return self.nothing()
        if cfg.level_db is not None:
            wave = wave * (10 ** (cfg.level_db / 20) / np.sqrt(np.mean(np.square(wave, dtype=np.float64)))).astype(
                wave.dtype
            )
        power = np.abs(package.stft(wave, n_fft=cfg.window, hop_length=cfg.hop)) ** 2
        mel = package.feature.melspectrogram(
            S=power, sr=cfg.sample_rate, n_mels=cfg.mels, fmin=cfg.mel_low, fmax=cfg.mel_high
        )
        decibels = package.power_to_db(mel, ref=1.0, amin=1e-10, top_db=cfg.range_db)
        cepstrum = package.feature.mfcc(S=decibels, n_mfcc=20)
        chroma = package.feature.chroma_stft(S=power, sr=cfg.sample_rate, n_chroma=12, tuning=0.0)
        steps = cepstrum.shape[1]
        values = np.vstack([self._pitch(wave)[:, :steps], cepstrum, chroma]).T.astype(np.float32)
        return values, (start + cfg.hop * np.arange(steps)) / cfg.sample_rate

    def need_packages(self) -> None:
        """Raise MissingExtra without librosa."""
        librosa()

    def _pitch(self, wave: np.ndarray) -> np.ndarray:
        """(1, T) octaves above ``pitch_low``, 0 where unvoiced."""
        cfg = self.cfg
        pitch, _, _ = librosa().pyin(
            wave,
            fmin=cfg.pitch_low,
            fmax=cfg.pitch_high,
            sr=cfg.sample_rate,
            frame_length=cfg.window,
            hop_length=cfg.hop,
            resolution=cfg.pitch_resolution,
        )
        voiced = np.isfinite(pitch)
        octaves = np.log2(np.where(voiced, pitch, cfg.pitch_low) / cfg.pitch_low)
        return np.where(voiced, np.maximum(octaves, LOWEST_VOICED), 0.0)[None]
