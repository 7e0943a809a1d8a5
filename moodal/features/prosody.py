"""How something is said: 25 descriptors of the voice a step, in the manner of the eGeMAPS set, in code of our own.

The choice of what to measure is that of Eyben et al., IEEE Trans. Affective Computing 7(2), 2016; numbers differ from
those of other programs, so a model trained on theirs does not fit. With P the power spectrum of 25 ms, in dB where it
says so, and "voiced" for what is 0 where the voice does not sound:

===================  =========================================================================================
log_f0               voiced: octaves above ``pitch_low`` (at least 0.01), as in librosa_33
loudness             sum over 26 mel bands of (w(f) P)^(1/3), w the equal-loudness curve of Hermansky, JASA 87(4), 1990
jitter, shimmer      voiced: how neighbouring periods differ in length (share), and in height (dB), in 60 ms
hnr                  voiced: 10 log10(r / (1 - r)) dB, r the autocorrelation at one period
h1_h2, h1_a3         voiced: dB by which the first harmonic is above the second, and above the highest one at F3
alpha_ratio          dB of P from 1 to 5 kHz over P from 50 Hz to 1 kHz: higher is brighter
hammarberg           dB of the highest peak of P below 2 kHz over that from 2 to 5 kHz
slope_0_500          dB per kHz: the straight line through P in dB from 0 to 500 Hz
slope_500_1500       the same from 500 to 1500 Hz
spectral_flux        sum over mel bands of how much loudness changed since the last step
mfcc_1 ... mfcc_4    cosine transform of the logarithm of the mel bands
f1 ... f3            voiced: formants, each ``_frequency`` and ``_bandwidth`` in Hz, ``_level`` in dB (``features.formants``)
===================  =========================================================================================
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from moodal.core.errors import check
from moodal.features.audio_base import LOWEST_VOICED, AudioExtractor
from moodal.features.formants import FORMANTS, find_formants
from moodal.features.pitch import find_periods, frames_of, track_pitch, unsteadiness

BANDS = 26
#: The periodicity of a perfect voice, 40 dB, which no finite ratio can exceed.
PERFECT = 0.9999
#: Power below which nothing is told from silence.
FLOOR = 1e-10


@dataclass(frozen=True, kw_only=True)
class ProsodySettings:
    """Settings of ``prosody_25``. ``hop``, ``window`` (spectrum), ``long_window`` (pitch, periods, formants): samples.

    ``pitch_low``, ``pitch_high``: range of the voice in Hz. ``formant_limit``: Hz below which five formants are
    expected: 5500 suits most adults, 8000 small children.
    """

    sample_rate: int = 16000
    hop: int = 160
    window: int = 400
    long_window: int = 960
    pitch_low: float = 65.0
    pitch_high: float = 500.0
    formant_limit: float = 5500.0

    def __post_init__(self) -> None:
        check(self.sample_rate >= 11000, f"sample_rate is {self.sample_rate}; the bands measured need 11000 or more.")
        check(1 <= self.hop <= self.window, f"hop is {self.hop}; it must lie between 1 and the window {self.window}.")
        check(
            0 < self.pitch_low < self.pitch_high <= self.sample_rate / 8,
            f"pitch_low is {self.pitch_low} and pitch_high {self.pitch_high}; give 0 < low < high <= sample_rate / 8.",
        )
        check(
            self.long_window * self.pitch_low >= 3 * self.sample_rate,
            f"long_window is {self.long_window} samples, shorter than three periods of {self.pitch_low} Hz; "
            f"give {int(3 * self.sample_rate / self.pitch_low) + 1} or more.",
        )
        check(self.window <= self.long_window, f"window is {self.window}; it must not exceed {self.long_window}.")
        check(self.formant_limit >= 4000, f"formant_limit is {self.formant_limit}; give 4000 Hz or more.")


class Prosody25(AudioExtractor):
    """Mono sound -> (T, 25), one step per hop; what is not defined where the voice does not sound is 0 there."""

    name: ClassVar[str] = "prosody_25"
    version: ClassVar[str] = "1"
    Config: ClassVar[type[Any]] = ProsodySettings
    channels: ClassVar[tuple[str, ...]] = (
        "log_f0", "loudness", "jitter", "shimmer", "hnr", "h1_h2", "h1_a3", "alpha_ratio", "hammarberg", "slope_0_500",
        "slope_500_1500", "spectral_flux", *(f"mfcc_{i}" for i in range(1, 5)),
        *(f"f{i}_{what}" for i in range(1, FORMANTS + 1) for what in ("frequency", "bandwidth", "level")),
    )  # fmt: skip

    def timed(self, wave: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(S,) float samples at the recipe's rate -> (T, 25) float32 and (T,) seconds; (0, 25) for no sound."""
        if not len(wave) or not np.any(wave):
            return self.nothing()
        wave = wave.astype(np.float64)
        found = self._spectrum(wave) | self._voice(wave)
        values = np.stack([found[name] for name in self.channels], axis=1).astype(np.float32)
        return values, self.cfg.hop / self.cfg.sample_rate * np.arange(len(values))

    def _spectrum(self, wave: np.ndarray) -> dict[str, np.ndarray]:
        """Channel -> (T,): what is measured of every step."""
        from scipy import fft

        cfg = self.cfg
        taper = np.hanning(cfg.window + 2)[1:-1]
        size = 2 ** int(np.ceil(np.log2(cfg.window)))
        frames = frames_of(wave.astype(np.float32), cfg.window, cfg.hop)
        power = (np.abs(fft.rfft(frames * taper.astype(np.float32), size)) * float(2 / taper.sum())) ** 2
        hertz = np.arange(power.shape[1]) * cfg.sample_rate / size
        level = 10 * np.log10(power + FLOOR)
        edges = _mel_edges(cfg.sample_rate)
        bands = power @ _triangles(hertz, edges).T
        loud = np.cbrt(bands * _equal_loudness(edges[1:-1]))
        cepstrum = fft.dct(np.log(bands + FLOOR), axis=1, norm="ortho")
        change = np.abs(np.diff(loud, axis=0, prepend=loud[:1])).sum(axis=1)
        low, high, middle = hertz < 2000, (hertz >= 2000) & (hertz <= 5000), (hertz >= 50) & (hertz < 1000)
        bright = (hertz >= 1000) & (hertz <= 5000)
        return {
            "loudness": loud.sum(axis=1),
            "alpha_ratio": 10 * np.log10((_sum(power, bright) + FLOOR) / (_sum(power, middle) + FLOOR)),
            "hammarberg": level[:, low].max(axis=1) - level[:, high].max(axis=1),
            "slope_0_500": _slope(level, hertz, 0, 500),
            "slope_500_1500": _slope(level, hertz, 500, 1500),
            "spectral_flux": change,
            **{f"mfcc_{i}": cepstrum[:, i] for i in range(1, 5)},
        }

    def _voice(self, wave: np.ndarray) -> dict[str, np.ndarray]:
        """Channel -> (T,): what is measured where the voice sounds, 0 elsewhere."""
        cfg = self.cfg
        rate, long = cfg.sample_rate, cfg.long_window
        pitch = track_pitch(wave, rate, window=long, hop=cfg.hop, low=cfg.pitch_low, high=cfg.pitch_high)
        voiced = pitch.hertz > 0
        periods = find_periods(wave, pitch.hertz, rate, cfg.hop)
        jitter, shimmer = unsteadiness(periods, cfg.hop, len(voiced), long)
        formants = find_formants(wave, rate, pitch.hertz, window=long, hop=cfg.hop, limit=cfg.formant_limit)
        r = np.clip(pitch.periodicity, 1 - PERFECT, PERFECT)
        octaves = np.log2(np.where(voiced, pitch.hertz, cfg.pitch_low) / cfg.pitch_low)
        first, second, third = self._harmonics(wave, pitch.hertz, formants.frequency[:, 2])
        found = {
            "log_f0": np.maximum(octaves, LOWEST_VOICED), "jitter": jitter, "shimmer": shimmer,
            "hnr": 10 * np.log10(r / (1 - r)), "h1_h2": first - second,
            "h1_a3": np.where(formants.frequency[:, 2] > 0, first - third, 0.0),
        }  # fmt: skip
        for i in range(FORMANTS):
            for what, part in zip(("frequency", "bandwidth", "level"),
                                  (formants.frequency, formants.bandwidth, formants.level), strict=True):  # fmt: skip
                found[f"f{i + 1}_{what}"] = part[:, i]
        return {name: np.where(voiced, values, 0.0) for name, values in found.items()}

    def _harmonics(self, wave: np.ndarray, hertz: np.ndarray, third: np.ndarray) -> np.ndarray:
        """(3, T) dB: the first and second harmonic, and the highest one around the third formant."""
        from scipy import fft

        voiced = np.flatnonzero(hertz)
        window = self.cfg.long_window
        size = 4 * 2 ** int(np.ceil(np.log2(window)))
        taper = np.hanning(window + 2)[1:-1].astype(np.float32)
        frames = frames_of(wave.astype(np.float32), window, self.cfg.hop)
        found = np.zeros((3, len(hertz)))
        for start in range(0, len(voiced), 512):  # so that memory does not grow with the length
            part = voiced[start : start + 512]
            level = 20 * np.log10(np.abs(fft.rfft(frames[part] * taper, size)) + FLOOR)
            bins, pitch = size / self.cfg.sample_rate, hertz[part]
            found[0, part] = _highest(level, bins * pitch, 0.25 * bins * pitch)
            found[1, part] = _highest(level, 2 * bins * pitch, 0.25 * bins * pitch)
            found[2, part] = _highest(level, bins * third[part], 0.6 * bins * pitch)
        return found


def _sum(power: np.ndarray, band: np.ndarray) -> np.ndarray:
    return power[:, band].sum(axis=1)


def _slope(level: np.ndarray, hertz: np.ndarray, low: float, high: float) -> np.ndarray:
    """(T,) dB per kHz of the straight line through ``level`` (T, F) from ``low`` to ``high`` Hz, by least squares."""
    band = (hertz >= low) & (hertz <= high)
    across = (hertz[band] - hertz[band].mean()) / 1000
    return level[:, band] @ across / np.sum(across**2)


def _highest(level: np.ndarray, middle: np.ndarray, reach: np.ndarray) -> np.ndarray:
    """(V,) the highest of ``level`` (V, F) within ``reach`` (V,) bins around ``middle`` (V,)."""
    offsets = np.arange(-int(reach.max()) - 1, int(reach.max()) + 2)
    at = np.round(middle).astype(np.int64)[:, None] + offsets
    inside = (np.abs(at - middle[:, None]) <= np.maximum(reach, 1)[:, None]) & (at >= 0) & (at < level.shape[1])
    return np.where(inside, np.take_along_axis(level, np.clip(at, 0, level.shape[1] - 1), axis=1), -np.inf).max(axis=1)


def _mel_edges(rate: int) -> np.ndarray:
    """(28,) Hz from 20 to half the rate at equal distances in mel, 2595 log10(1 + f / 700): where the 26 bands meet."""
    low, high = 2595 * np.log10(1 + np.array([20.0, rate / 2]) / 700)
    mel = np.linspace(float(low), float(high), BANDS + 2)
    return 700 * (10 ** (mel / 2595) - 1)


def _triangles(hertz: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """(26, F) weights of the bands: 1 in the middle of each, 0 from the middles of its neighbours on."""
    low, middle, high = (edges[start : start + BANDS, None] for start in range(3))
    return np.maximum(0.0, np.minimum((hertz - low) / (middle - low), (high - hertz) / (high - middle)))


def _equal_loudness(hertz: np.ndarray) -> np.ndarray:
    """How loud each frequency is for the ear, Hermansky's curve, 1 at its highest of those given."""
    squared = (2 * np.pi * hertz) ** 2
    curve = (squared + 56.8e6) * squared**2 / ((squared + 6.3e6) ** 2 * (squared + 0.38e9))
    return curve / curve.max()
