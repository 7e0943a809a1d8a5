"""librosa_33 on made sounds: the pitch it was given, the channels it names, files of all kinds, and its cache."""

from __future__ import annotations

import io
import logging

import numpy as np
import pytest

from moodal.core.errors import DataError, MoodalError
from moodal.data.extractors import EXTRACTORS, LibrosaSettings, MediaFile
from moodal.features import audio, audio_base

soundfile = pytest.importorskip("soundfile")
pytest.importorskip("librosa")
RATE = 16000
#: Coarser pitch than the default: the same path in a tenth of the time.
QUICK = LibrosaSettings(pitch_resolution=0.5, hop=512)


def tone(hertz: float, seconds: float = 0.5, rate: int = RATE, loud: float = 0.3) -> np.ndarray:
    time = np.arange(int(seconds * rate)) / rate
    overtones = sum(np.sin(2 * np.pi * hertz * k * time) / k for k in (1, 2, 3))
    return (loud * overtones).astype(np.float32)


@pytest.fixture(scope="module")
def extractor():
    return audio.Librosa33(QUICK)


@pytest.fixture
def no_extraction(monkeypatch):
    def forbid():
        monkeypatch.setattr(audio.Librosa33, "__call__", lambda *_: pytest.fail("a file was extracted again"))

    return forbid


@pytest.mark.parametrize("hertz", [110.0, 300.0])
def test_pitch_is_in_octaves_above_the_lowest(extractor, hertz):
    steps = extractor(tone(hertz))
    voiced = steps[steps[:, 0] > 0, 0]
    assert len(voiced) > 0.8 * len(steps)
    assert np.median(voiced) == pytest.approx(np.log2(hertz / 65), abs=0.04)


def test_channels_are_named_and_counted(extractor):
    recipe = extractor.recipe()
    steps = extractor(tone(220))
    assert steps.shape[1] == recipe.width == len(recipe.channels) == 33
    assert steps.dtype == np.float32 and np.isfinite(steps).all()
    assert recipe.settings["hop"] == 512 and recipe.settings["sample_rate"] == RATE
    strongest = recipe.channels[21 + int(steps[:, 21:].mean(axis=0).argmax())]
    assert strongest == "chroma_a"


def test_louder_sound_raises_mfcc_0_only_in_level(extractor):
    quiet, loud = extractor(tone(200, loud=0.05)), extractor(tone(200, loud=0.5))
    assert loud[:, 1].mean() > quiet[:, 1].mean() + 50
    np.testing.assert_allclose(loud[:, 2:21].mean(0), quiet[:, 2:21].mean(0), atol=1.0)


def test_silent_ends_are_cut_and_noise_is_unvoiced(extractor):
    silence = np.zeros(RATE, np.float32)
    assert abs(len(extractor(np.concatenate([silence, tone(200), silence]))) - len(extractor(tone(200)))) <= 4
    noise = np.random.default_rng(0).normal(0, 0.1, RATE).astype(np.float32)
    assert (extractor(noise)[:, 0] == 0).mean() > 0.8


def test_silence_has_no_steps(extractor):
    assert extractor(np.zeros(RATE, np.float32)).shape == (0, 33)
    assert extractor(np.zeros(0, np.float32)).shape == (0, 33)


def test_stereo_and_other_rates_become_mono_at_the_rate(tmp_path):
    wave = tone(200, rate=48000)
    soundfile.write(tmp_path / "stereo.wav", np.stack([wave, wave], axis=1), 48000)
    read = audio_base.read_sound(MediaFile(tmp_path / "stereo.wav"), RATE)
    assert read.ndim == 1 and len(read) == RATE // 2
    np.testing.assert_allclose(read[200:-200], tone(200)[200:-200], atol=0.02)


def test_part_of_an_archive_is_read_like_a_file(tmp_path):
    content = io.BytesIO()
    soundfile.write(content, tone(150), RATE, format="FLAC")
    soundfile.write(tmp_path / "alone.flac", tone(150), RATE)
    (tmp_path / "archive").write_bytes(b"before" + content.getvalue() + b"after")
    part = MediaFile(tmp_path / "archive", 6, len(content.getvalue()))
    np.testing.assert_array_equal(
        audio_base.read_sound(part, RATE), audio_base.read_sound(MediaFile(tmp_path / "alone.flac"), RATE)
    )


def test_what_was_extracted_is_not_extracted_again(tmp_path, extractor, no_extraction):
    for name, hertz in (("a", 150), ("b", 200), ("copy_of_a", 150)):
        soundfile.write(tmp_path / f"{name}.wav", tone(hertz, 0.3), RATE)
    files = [MediaFile(tmp_path / f"{name}.wav") for name in ("a", "b", "copy_of_a")]
    seen = []
    first = extractor.extract(files, tmp_path / "cache", workers=1, progress=lambda *at: seen.append(at))
    assert seen == [(1, 2), (2, 2)]  # equal content is extracted once
    no_extraction()
    (tmp_path / "a.wav").rename(tmp_path / "renamed.wav")
    files[0] = MediaFile(tmp_path / "renamed.wav")
    again = extractor.extract(files[::-1], tmp_path / "cache", workers=1)
    assert all(np.array_equal(again[2 - row], first[row]) for row in range(3))


def test_other_settings_are_another_cache(tmp_path, extractor):
    soundfile.write(tmp_path / "a.wav", tone(150, 0.3), RATE)
    files = [MediaFile(tmp_path / "a.wav")]
    coarse = audio.Librosa33(LibrosaSettings(pitch_resolution=0.5, hop=1024))
    longer = extractor.extract(files, tmp_path / "cache", workers=1)
    assert longer.lengths[0] > coarse.extract(files, tmp_path / "cache", workers=1).lengths[0]


def test_damaged_file_is_missing_and_told(tmp_path, extractor, caplog):
    soundfile.write(tmp_path / "good.wav", tone(150, 0.3), RATE)
    (tmp_path / "bad.wav").write_bytes(b"no sound at all")
    files = [MediaFile(tmp_path / "bad.wav"), MediaFile(tmp_path / "good.wav")]
    with caplog.at_level(logging.WARNING):
        rows = extractor.extract(files, tmp_path / "cache", workers=1)
    assert rows.lengths[0] == 0 < rows.lengths[1]
    assert "bad.wav" in caplog.text and "1 of 2 sound files" in caplog.text


def test_no_readable_file_is_a_sentence(tmp_path, extractor):
    (tmp_path / "bad.wav").write_bytes(b"no sound at all")
    with pytest.raises(DataError, match="none of 1 sound files has sound"):
        extractor.extract([MediaFile(tmp_path / "bad.wav")], tmp_path / "cache", workers=1)


def test_processes_give_what_one_process_gives(tmp_path, extractor):
    files = []
    for number in range(9):
        soundfile.write(tmp_path / f"{number}.wav", tone(100 + 20 * number, 0.2), RATE)
        files.append(MediaFile(tmp_path / f"{number}.wav"))
    alone = extractor.extract(files, tmp_path / "one", workers=1)
    together = extractor.extract(files, tmp_path / "two", workers=2)
    np.testing.assert_array_equal(alone.values, together.values)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"hop": 0}, "hop is 0"),
        ({"pitch_low": 600.0}, "pitch_low is 600"),
        ({"window": 256}, "shorter than two periods"),
        ({"sample_rate": 8000}, "at most 4000.0 is there"),
    ],
)
def test_impossible_settings_are_sentences(settings, sentence):
    with pytest.raises(MoodalError, match=sentence):
        LibrosaSettings(**settings)


def test_the_table_gives_the_extractor():
    assert EXTRACTORS["librosa_33"] is audio.Librosa33
    with pytest.raises(MoodalError, match="did you mean 'librosa_33'"):
        EXTRACTORS["librosa33"]
