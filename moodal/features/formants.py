"""Resonances of the vocal tract: formants by linear prediction."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from moodal.features.pitch import BLOCK, frames_of

FORMANTS = 3
#: Numbers of the all-pole model: two for each of the five formants below the limit of about 5.5 kHz.
ORDER = 10
#: 1 - EMPHASIS z^-1 lifts high frequencies before the model is fitted.
EMPHASIS = 0.97
#: Hz: a formant lies above, its distance from the upper limit is more, and it is no wider.
LOWEST, MARGIN, WIDEST = 90.0, 50.0, 700.0


@dataclass(frozen=True)
class Formants:
    """(T, 3) each, in order of frequency, 0 where there is none: Hz, width at -3 dB in Hz, and the model's level there in dB
    over its level at the pitch."""

    frequency: np.ndarray
    bandwidth: np.ndarray
    level: np.ndarray


def find_formants(wave: np.ndarray, rate: int, hertz: np.ndarray, *, window: int, hop: int, limit: float) -> Formants:
    """Formants of the voiced frames of (S,) samples, one frame each ``hop``; ``hertz``: (T,) pitch, 0 where unvoiced.

    Poles of an all-pole model of order 10 (autocorrelation method, Makhoul, Proc. IEEE 63(4), 1975) of the sound
    below ``limit`` Hz: frequency = angle, bandwidth = -ln |pole| rate / pi.
    """
    from scipy.signal import resample_poly

    voiced = np.flatnonzero(hertz)
    lower = int(min(2 * limit, rate))
    share = Fraction(lower, rate)
    slow = resample_poly(wave, share.numerator, share.denominator) if share != 1 else wave
    slow = np.append(slow[:1], slow[1:] - EMPHASIS * slow[:-1])
    size = int(window * share)
    middles = np.round(voiced * hop * float(share)).astype(np.int64)
    frames, taper = frames_of(slow, size, 1), np.hanning(size + 2)[1:-1]
    middles = np.minimum(middles, len(slow))
    blocks = [_poles(frames[middles[at : at + BLOCK]] * taper) for at in range(0, max(1, len(middles)), BLOCK)]
    poles, predictor = (np.concatenate(part) for part in zip(*blocks, strict=True))
    frequency = np.angle(poles) * lower / (2 * np.pi)
    with np.errstate(divide="ignore"):
        bandwidth = -np.log(np.abs(poles)) * lower / np.pi
    real = (frequency > LOWEST) & (frequency < lower / 2 - MARGIN) & (bandwidth < WIDEST)
    order = np.argsort(np.where(real, frequency, np.inf), axis=1)[:, :FORMANTS]
    frequency, bandwidth, real = (np.take_along_axis(part, order, axis=1) for part in (frequency, bandwidth, real))
    level = _envelope(predictor, frequency, lower) - _envelope(predictor, hertz[voiced][:, None], lower)
    found = [np.zeros((len(hertz), FORMANTS)) for _ in range(3)]
    for full, part in zip(found, (frequency, bandwidth, level), strict=True):
        full[voiced] = np.where(real, part, 0.0)
    return Formants(*found)


def _poles(frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(V, W) tapered frames -> (V, 10) poles and (V, 11) numbers of the predictor 1 + a1 z^-1 + ..."""
    from scipy import fft

    size = fft.next_fast_len(2 * frames.shape[1])
    correlation = fft.irfft(np.abs(fft.rfft(frames, size)) ** 2, size)[:, : ORDER + 1]
    correlation[:, 0] = correlation[:, 0] * (1 + 1e-9) + 1e-12  # so that silence has a model too
    predictor = _levinson(correlation)
    companion = np.zeros((len(frames), ORDER, ORDER))
    companion[:, np.arange(1, ORDER), np.arange(ORDER - 1)] = 1.0
    companion[:, 0] = -predictor[:, 1:]
    return np.linalg.eigvals(companion), predictor


def _levinson(correlation: np.ndarray) -> np.ndarray:
    """Levinson's recursion for all rows at once."""
    predictor = np.zeros_like(correlation)
    predictor[:, 0] = 1.0
    error = correlation[:, 0].copy()
    for step in range(1, correlation.shape[1]):
        reflection = -np.sum(predictor[:, :step] * correlation[:, step:0:-1], axis=1) / error
        predictor[:, 1 : step + 1] += reflection[:, None] * predictor[:, step - 1 :: -1][:, :step]
        error = error * (1 - reflection**2)
    return predictor


def _envelope(predictor: np.ndarray, hertz: np.ndarray, rate: int) -> np.ndarray:
    """Level of the all-pole model in dB at (V, K) Hz, without the emphasis that was given to the sound."""
    turn = np.exp(-2j * np.pi * hertz / rate)
    answer = np.zeros_like(turn)
    for number in predictor.T[::-1]:
        answer = answer * turn + number[:, None]
    power = np.abs(answer) ** 2 * np.abs(1 - EMPHASIS * turn) ** 2
    return -10 * np.log10(np.maximum(power, 1e-12))
