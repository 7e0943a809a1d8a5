"""The 25 descriptors on made vowels whose pitch, formants, jitter, shimmer and noise are known."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import pytest

from moodal.core.errors import MoodalError
from moodal.core.spec import MODALITIES
from moodal.data.extractors import EXTRACTORS
from moodal.explain import voice
from moodal.features.prosody import Prosody25, ProsodySettings

RATE, FINER = 16000, 8
VOWELS = {"a": (700, 1200, 2600), "i": (300, 2300, 3000), "u": (330, 850, 2400)}
WIDTHS = (80, 100, 150)


@lru_cache(maxsize=64)
def vowel(hertz=120.0, seconds=0.6, formants=VOWELS["a"], jitter=0.0, shimmer=0.0, noise=0.0, tilt=0.95, seed=0):
    """(wave, jitter as a share, shimmer in dB): pulses between the samples, through a tilt and one resonance a formant."""
    from scipy.signal import lfilter, resample_poly

    generator = np.random.default_rng(seed)
    count = int(seconds * hertz * 1.2)
    lengths = (1 + jitter * generator.standard_normal(count)) / hertz
    heights = 10 ** (shimmer * generator.standard_normal(count) / 20)
    at = np.round(np.cumsum(lengths) * RATE * FINER).astype(int)
    pulses = np.zeros(int(seconds * RATE * FINER))
    inside = at < len(pulses)
    pulses[at[inside]] = heights[inside]
    wave = lfilter([1], [1, -tilt], resample_poly(pulses, 1, FINER) * FINER)
    for middle, width in zip(formants, WIDTHS, strict=True):
        r = np.exp(-np.pi * width / RATE)
        wave = lfilter([1], [1, -2 * r * np.cos(2 * np.pi * middle / RATE), r * r], wave)
    wave = 0.3 * wave / np.abs(wave).max() + noise * generator.standard_normal(len(wave))
    lengths, heights = lengths[inside], heights[inside]
    return (
        wave.astype(np.float32),
        float(np.abs(np.diff(lengths)).mean() / lengths.mean()),
        float(np.abs(20 * np.diff(np.log10(heights))).mean()),
    )


@pytest.fixture(scope="module")
def extractor():
    return Prosody25()


def voiced(extractor, wave) -> dict[str, np.ndarray]:
    """Channel -> its values at voiced steps away from the ends."""
    values, _ = extractor.timed(wave)
    middle = values[6:-6]
    return dict(zip(extractor.channels, middle[middle[:, 0] > 0].T, strict=True))


@pytest.mark.parametrize("hertz", [80.0, 120.0, 215.0, 330.0, 450.0])
def test_pitch_is_in_octaves_above_the_lowest(extractor, hertz):
    found = voiced(extractor, vowel(hertz)[0])
    assert len(found["log_f0"]) >= 48
    np.testing.assert_allclose(65 * 2 ** found["log_f0"], hertz, rtol=0.01)


def test_pitch_follows_a_glide(extractor):
    time = np.arange(RATE) / RATE
    phase = 2 * np.pi * (120 * time + 60 * time**2)
    wave = sum(np.sin(k * phase) / k for k in range(1, 8)).astype(np.float32)
    values, times = extractor.timed(wave)
    inside = slice(6, -6)
    np.testing.assert_allclose(65 * 2 ** values[inside, 0], 120 + 120 * times[inside], rtol=0.03)


@pytest.mark.parametrize("name", VOWELS)
@pytest.mark.parametrize("hertz", [90.0, 125.0])
def test_formants_are_found(extractor, name, hertz):
    found = voiced(extractor, vowel(hertz, formants=VOWELS[name])[0])
    for number, expected in enumerate(VOWELS[name], start=1):
        # A formant is known no better than the harmonics lie apart.
        assert np.median(found[f"f{number}_frequency"]) == pytest.approx(
            expected, abs=max(0.4 * hertz, 0.05 * expected)
        )
        assert 20 < np.median(found[f"f{number}_bandwidth"]) < 400


def test_formant_levels_tell_where_the_sound_is(extractor):
    closed, open_ = (voiced(extractor, vowel(110.0, formants=VOWELS[name])[0]) for name in ("u", "a"))
    assert np.median(open_["f2_level"]) > np.median(closed["f2_level"]) + 6
    assert np.median(open_["f1_level"]) > 0 > np.median(closed["f3_level"])


@pytest.mark.parametrize("jitter", [0.005, 0.01, 0.02])
def test_jitter_is_what_the_pulses_have(extractor, jitter):
    wave, share, _ = vowel(seconds=2.0, jitter=jitter)
    assert voiced(extractor, wave)["jitter"].mean() == pytest.approx(share, rel=0.25)


@pytest.mark.parametrize("shimmer", [0.3, 0.8, 1.5])
def test_shimmer_is_what_the_pulses_have(extractor, shimmer):
    wave, _, decibels = vowel(seconds=2.0, shimmer=shimmer)
    assert voiced(extractor, wave)["shimmer"].mean() == pytest.approx(decibels, rel=0.2)


def test_a_steady_voice_has_neither(extractor):
    found = voiced(extractor, vowel()[0])
    assert found["jitter"].mean() < 0.002 and found["shimmer"].mean() < 0.1 and found["hnr"].mean() > 30


@pytest.mark.parametrize("noise", [0.003, 0.01, 0.03])
def test_harmonics_to_noise_ratio_is_that_of_the_mixture(extractor, noise):
    clean = vowel()[0]
    expected = 10 * np.log10(np.mean(clean**2) / noise**2)
    assert np.median(voiced(extractor, vowel(noise=noise)[0])["hnr"]) == pytest.approx(expected, abs=1.5)


def test_harmonics_of_two_sines_are_measured(extractor):
    time = np.arange(RATE) / RATE
    wave = sum(a * np.sin(2 * np.pi * 150 * k * time) for k, a in ((1, 0.2), (2, 0.05), (3, 0.02))).astype(np.float32)
    assert np.median(voiced(extractor, wave)["h1_h2"]) == pytest.approx(20 * np.log10(4), abs=0.3)


def test_spectral_balance_follows_the_tilt(extractor):
    soft, sharp = (voiced(extractor, vowel(tilt=tilt)[0]) for tilt in (0.98, 0.5))
    assert sharp["alpha_ratio"].mean() > soft["alpha_ratio"].mean() + 3
    assert sharp["hammarberg"].mean() < soft["hammarberg"].mean() - 3
    assert sharp["slope_0_500"].mean() > soft["slope_0_500"].mean() + 5
    assert sharp["h1_a3"].mean() < soft["h1_a3"].mean() - 8


def test_slopes_of_a_sound_with_a_known_slope():
    """White noise through a filter that falls by 12 dB per kHz."""
    from numpy.fft import irfft, rfft

    noise = np.random.default_rng(0).normal(0, 0.3, 4 * RATE)
    spectrum = rfft(noise)
    kilohertz = np.arange(len(spectrum)) * RATE / len(noise) / 1000
    wave = irfft(spectrum * 10 ** (-12 * kilohertz / 20)).astype(np.float32)
    values = dict(zip(Prosody25.channels, Prosody25()(wave)[5:-5].T, strict=True))
    assert values["slope_0_500"].mean() == pytest.approx(-12, abs=3)
    assert values["slope_500_1500"].mean() == pytest.approx(-12, abs=1)


def test_louder_is_louder_and_nothing_else(extractor):
    quiet, loud = (voiced(extractor, scale * vowel()[0]) for scale in (0.1, 1.0))
    assert loud["loudness"].mean() == pytest.approx(100 ** (1 / 3) * quiet["loudness"].mean(), rel=0.01)
    for name in extractor.channels:
        if name not in ("loudness", "spectral_flux") and not name.startswith("mfcc"):
            np.testing.assert_allclose(quiet[name], loud[name], rtol=0.02, atol=0.2, err_msg=name)


def test_flux_is_where_the_sound_changes(extractor):
    wave = np.concatenate([vowel()[0], vowel(formants=VOWELS["i"], seed=1)[0]])
    flux = extractor(wave)[:, extractor.channels.index("spectral_flux")]
    assert 58 <= np.argmax(flux[5:-5]) + 5 <= 63


def test_noise_and_silence_have_no_voice(extractor):
    noise = np.random.default_rng(0).normal(0, 0.1, RATE).astype(np.float32)
    values = dict(zip(extractor.channels, extractor(noise).T, strict=True))
    unvoiced = values["log_f0"] == 0
    assert unvoiced.mean() > 0.9
    for name in ("jitter", "shimmer", "hnr", "h1_h2", "h1_a3", "f1_frequency", "f3_level"):
        assert not values[name][unvoiced].any()
    for wave in (np.zeros(RATE, np.float32), np.zeros(0, np.float32)):
        assert extractor(wave).shape == (0, 25) and extractor.timed(wave)[1].shape == (0,)


def test_a_pause_is_unvoiced_and_times_stay(extractor):
    pause = np.zeros(RATE // 2, np.float32)
    values, times = extractor.timed(np.concatenate([pause, vowel()[0], pause]))
    sounding = times[values[:, 0] > 0]
    assert sounding.min() == pytest.approx(0.5, abs=0.05) and sounding.max() == pytest.approx(1.1, abs=0.05)
    assert len(values) == len(times) == 161 and times[1] == pytest.approx(0.01)


@pytest.mark.parametrize("samples", [1, 50, 400, 961, 3000])
def test_short_and_odd_sounds_have_finite_steps(extractor, samples):
    generator = np.random.default_rng(samples)
    for wave in (generator.normal(0, 1, samples), np.ones(samples), np.sign(generator.normal(0, 1, samples)) * 1e-6):
        values, times = extractor.timed(wave.astype(np.float32))
        assert values.shape == (1 + samples // 160, 25) == (len(times), 25) and np.isfinite(values).all()


def test_long_sound_is_what_its_parts_are(extractor):
    """Blocks of frames leave no seam."""
    wave = np.tile(vowel(100.0, 0.6)[0], 7)
    values = extractor(wave)
    np.testing.assert_allclose(values[70:110, :2], values[190:230, :2], atol=0.02)
    assert len(values) > 400


def test_recipe_names_the_channels_and_makes_the_extractor_again(extractor):
    recipe = extractor.recipe()
    assert len(set(recipe.channels)) == recipe.width == 25 == extractor(vowel()[0]).shape[1]
    assert Prosody25(Prosody25.Config(**recipe.settings)).recipe() == recipe
    assert voice.step_seconds(recipe) == pytest.approx(0.01) and EXTRACTORS["prosody_25"] is Prosody25


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"sample_rate": 8000}, "sample_rate is 8000"),
        ({"hop": 0}, "hop is 0"),
        ({"pitch_low": 600.0}, "pitch_low is 600"),
        ({"long_window": 500}, "shorter than three periods"),
        ({"formant_limit": 100.0}, "formant_limit is 100"),
        ({"window": 1200, "hop": 10}, "window is 1200"),
    ],
)
def test_impossible_settings_are_sentences(settings, sentence):
    with pytest.raises(MoodalError, match=sentence):
        ProsodySettings(**settings)


def test_every_extractor_of_the_table_is_what_it_should_be():
    for name in EXTRACTORS:
        cls = EXTRACTORS[name]
        assert cls.name == name and cls.version and cls.modality in MODALITIES and cls.Config.__doc__


def test_opensmile_measures_the_same_pitch(extractor):
    from moodal.features.opensmile import OpenSmileEgemaps, OpenSmileSettings

    with pytest.raises(MoodalError, match="openSMILE steps by 10 ms"):
        OpenSmileSettings(hop=256)
    theirs = OpenSmileEgemaps()
    try:
        theirs.need_packages()
    except MoodalError as absent:
        pytest.skip(str(absent))
    values, times = theirs.timed(vowel(seconds=1.0)[0])
    assert values.shape == (len(times), 25) == (len(times), theirs.recipe().width)
    semitones = values[10:-10, theirs.channels.index("F0semitoneFrom27.5Hz_sma3nz")]
    assert np.median(27.5 * 2 ** (semitones / 12)) == pytest.approx(120, rel=0.03)
    assert theirs(np.zeros(RATE, np.float32)).shape == (0, 25)
