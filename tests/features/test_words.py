"""Words and their times: which source is taken, what is aligned and what is spread, recognisers, and what is said of faults."""

from __future__ import annotations

import csv
import tarfile
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from media_files import speech, voice, write_clip

from moodal.core.errors import MissingExtra, MoodalError
from moodal.features import align, recognise, words
from moodal.features import speech as speeches
from moodal.features.media import MediaError, Sound, read_sound
from moodal.features.subtitles import read_cues, read_text
from moodal.features.words import FLOOR, WordSettings, speech_spans, transcribe

RATE = 16000
REAL = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "media_open"
SRT = "1\n00:00:00,500 --> 00:00:01,500\n<i>good</i> morning\n\n2\n00:00:02,000 --> 00:00:03,000\n{\\an8}it rains\n"
NOT_ALIGNED = WordSettings(align=False)


@pytest.fixture(scope="module")
def spoken() -> Sound:
    """A second of nothing, 1.5 s of made vowels, a second of nothing, a second of vowels, half a second of nothing."""
    parts = [np.zeros(RATE), speech(1.5), np.zeros(RATE), speech(1.0, seed=1), np.zeros(RATE // 2)]
    return Sound(np.concatenate(parts).astype(np.float32), RATE, 0.0)


@pytest.fixture
def clip(tmp_path) -> Path:
    return write_clip(tmp_path / "clip.wav", wave=voice(0.5))


def in_order(found, seconds: float) -> None:
    """Words follow one another, have a length, and lie in the clip."""
    assert all(0 <= start < end <= seconds + 1e-6 for _, start, end in found)
    assert all(before[2] <= after[1] + 1e-6 for before, after in pairwise(found))


class Heard:
    """Stands for pocketsphinx: knows some words, and gives each of them a third of a second from 1 s on."""

    def __init__(self, *words: str, lost: int = 0) -> None:
        self.words, self.lost = words, lost

    def known(self, word: str) -> tuple[str, ...]:
        return tuple(part for part in word.lower().split("-") if part in self.words)

    def times(self, flat, wave):
        times = [(1.0 + k / 3, 1.0 + (k + 1) / 3) for k in range(len(flat))]
        return times if not self.lost else None


def test_speech_is_found_and_other_sound_is_not(spoken):
    spans = speech_spans(spoken)
    assert spans and all(0.9 < start < end < 4.6 for start, end in spans)
    assert not any(2.6 < start < 3.3 or 2.6 < end < 3.3 for start, end in spans)
    for quiet in (np.zeros(RATE), voice(2.0, RATE), np.zeros(0)):
        assert speech_spans(Sound(quiet.astype(np.float32), RATE, 0.0)) == []
    shifted = Sound(np.repeat(spoken.wave, 3), 3 * RATE, 7.0)  # another rate; times count from the sound's beginning
    assert len(speech_spans(shifted)) and speech_spans(shifted)[0][0] == pytest.approx(spans[0][0], abs=0.1)


def test_finding_speech_leaves_the_number_of_threads_alone(spoken):
    speeches._detector.cache_clear()
    torch.set_num_threads(2)
    try:
        speech_spans(spoken)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)


def test_spans_are_joined():
    spans = [(0.1, 0.5), (0.8, 1.0), (3.0, 3.9)]
    assert speeches.joined(spans, seconds=4.0) == [(0.0, 1.2), (2.8, 4.0)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Don't, please - go!", ["Don't,", "please-", "go!"]),
        ("今天 is fine。", ["今", "天", "is", "fine。"]),
        (" ... ", []),
        ("", []),
    ],
)
def test_words_of_a_text(text, expected):
    assert align.split_words(text) == expected


def test_words_are_spread_by_their_letters_over_the_speech():
    placed = align.spread(["aaa", "b", "aaa", "b"], [(1.0, 2.2), (5.0, 6.2)])
    assert [word for word, _, _ in placed] == ["aaa", "b", "aaa", "b"]
    assert [(start, end) for _, start, end in placed] == [
        pytest.approx(times) for times in ((1.0, 1.8), (1.8, 2.2), (5.0, 5.8), (5.8, 6.2))
    ]
    assert align.spread([], [(0.0, 1.0)]) == align.spread(["a"], []) == ()


def test_a_given_text_comes_first_and_is_aligned_or_spread(clip, spoken, monkeypatch):
    clip.with_suffix(".srt").write_text(SRT)
    monkeypatch.setattr(align, "_aligner", lambda: Heard("oh", "a", "are", "you"))
    aligned = transcribe(clip, spoken, given="Oh a are you there")
    assert (aligned.source, aligned.text, aligned.timing) == ("given", "Oh a are you there", "aligned")
    assert " ".join(word for word, _, _ in aligned.words) == aligned.text and "1 of 5 words" in aligned.note
    in_order(aligned.words, spoken.seconds)
    spread = transcribe(clip, spoken, given="oh a are you there", settings=NOT_ALIGNED)
    assert spread.timing == "spread" and "spread over the speech" in spread.note
    spans = speech_spans(spoken)
    assert all(
        any(since - 1e-3 <= start and end <= until + 1e-3 for since, until in spans) for _, start, end in spread.words
    )


def test_words_in_no_dictionary_lie_between_their_neighbours(monkeypatch, spoken):
    monkeypatch.setattr(align, "_aligner", lambda: Heard("a", "b", "c"))
    found = align.align(["a", "xx", "b-c", "a", "yy", "zz"], spoken, (0.5, 3.3))
    assert found is not None and found.unknown == 3
    in_order(found.words, 3.3)
    starts, ends = [start for _, start, _ in found.words], [end for _, _, end in found.words]
    assert starts[0] == pytest.approx(1.5) and ends[2] == pytest.approx(2.5)  # 0.5 s later than in the part
    assert ends[1] - starts[1] == pytest.approx(0.1)  # taken from both neighbours
    assert (starts[4:], ends[4:]) == (pytest.approx([17 / 6, 46 / 15]), pytest.approx([46 / 15, 3.3]))
    first = align.align(["xx", "a"], spoken, (0.5, 3.0))
    assert first is not None and first.words[0] == ("xx", pytest.approx(0.5), pytest.approx(1.5))


def test_what_cannot_be_aligned_is_not(monkeypatch, spoken):
    monkeypatch.setattr(align, "_aligner", lambda: Heard("a"))
    assert align.align(["a", "xx", "yy"], spoken, (0.0, 4.0)) is None  # most words unknown
    assert align.align(["a"] * 100, spoken, (0.0, 4.0)) is None  # more than anybody speaks
    monkeypatch.setattr(align, "_aligner", lambda: Heard("a", lost=1))
    assert align.align(["a"], spoken, (0.0, 4.0)) is None


def test_the_dictionary(spoken):
    known = align._aligner().known
    assert (
        known("Don\u2019t,") == ("don't",) and known("well-known") == ("well", "known") and known("Café!") == ("cafe",)
    )
    assert known("qzxv") == known("well-qzxv") == known("42") == ()


def test_alignment_does_not_hang_on_the_clips_before(spoken):
    aligner = align._aligner()
    part = spoken.wave[: RATE * 3]
    fresh = aligner.times(["yes"], part)
    assert fresh is not None and 1.0 <= fresh[0][0] < fresh[0][1] <= 2.6
    aligner.times(["hello"], 0.1 * np.random.default_rng(0).standard_normal(RATE).astype(np.float32))
    assert aligner.times(["yes"], part) == fresh
    assert aligner.times(["one", "two", "three"] * 9, part[:1600]) is None  # too short a sound


def test_other_languages_are_spread(clip, spoken):
    for text, language in (("今天天气很好", "zh"), ("hallo du", "de"), ("今天天气很好", "en")):
        found = transcribe(clip, spoken, given=text, settings=WordSettings(language=language))
        assert found.timing == "spread" and len(found.words) == (2 if language == "de" else 6)


def test_text_without_speech_or_sound(clip, spoken):
    silence = Sound(np.zeros(2 * RATE, np.float32), RATE, 0.0)
    found = transcribe(clip, silence, given="a b")
    assert found.words == (("a", 0.0, 1.0), ("b", 1.0, 2.0)) and "no speech was heard" in found.note
    assert transcribe(clip, None, given="a b", start=1.0, end=2.0).words == (("a", 0.0, 0.5), ("b", 0.5, 1.0))
    unknown = transcribe(clip, None, given="a b")
    assert (unknown.text, unknown.words, unknown.timing) == ("a b", (), "") and "no sound" in unknown.note
    assert transcribe(clip, spoken, given="...").words == ()


@pytest.mark.parametrize("suffix", [".srt", ".vtt"])
def test_a_file_of_cues_beside_the_clip(clip, spoken, suffix):
    content = (
        SRT
        if suffix == ".srt"
        else "WEBVTT\n\nNOTE made by hand\n\n" + SRT.replace(",", ".").replace("00:00:0", "00:0")
    )
    clip.with_suffix(suffix).write_text(content)
    found = transcribe(clip, spoken, settings=NOT_ALIGNED)
    assert (found.text, found.source, found.timing) == ("good morning it rains", f"clip{suffix}", "stated")
    assert [word for word, _, _ in found.words] == ["good", "morning", "it", "rains"]
    assert found.words[0][1] == 0.5 and found.words[1][2] == 1.5 and found.words[2][1] == 2.0
    part = transcribe(clip, spoken, settings=NOT_ALIGNED, start=1.8, end=2.8)
    assert part.text == "it rains" and part.words[0][1] == 0.2 and part.words[-1][2] == 1.0
    in_order(transcribe(clip, spoken).words, spoken.seconds)


def test_a_text_beside_the_clip(clip, spoken):
    clip.with_suffix(".txt").write_text("good\nmorning")
    found = transcribe(clip, spoken, settings=NOT_ALIGNED)
    assert (found.text, found.source, found.timing) == ("good morning", "clip.txt", "spread")
    part = transcribe(clip, spoken, settings=WordSettings(recogniser="none"), start=1.0)
    assert (
        part.text == ""
        and part.source == "none"
        and "clip.txt was not used: it holds the text of the whole" in part.note
    )


def test_a_damaged_file_beside_is_passed_over(clip, spoken):
    clip.with_suffix(".srt").write_bytes(b"\0\1\2" * 99)
    clip.with_suffix(".vtt").write_text("WEBVTT\n\nno times here\n")
    clip.with_suffix(".txt").write_text("good morning")
    found = transcribe(clip, spoken, settings=NOT_ALIGNED)
    assert (
        found.source == "clip.txt" and "clip.srt was not used" in found.note and "clip.vtt was not used" in found.note
    )


@pytest.mark.parametrize(
    "content",
    ["grün".encode(), b"\xef\xbb\xbf" + "grün".encode(), "grün".encode("utf-16"), "grün".encode("cp1252")],
    ids=["utf-8", "mark", "utf-16", "cp1252"],
)
def test_encodings(tmp_path, content):
    (tmp_path / "clip.txt").write_bytes(content)
    assert read_text(tmp_path / "clip.txt") == "grün"


def test_no_text_file_at_all(tmp_path, monkeypatch):
    (tmp_path / "clip.srt").write_bytes(b"\x81\x8d\0")
    with pytest.raises(MediaError, match="is not text in UTF-8"):
        read_cues(tmp_path / "clip.srt")
    (tmp_path / "clip.srt").write_text("x" * 5000)
    monkeypatch.setattr("moodal.features.subtitles.MOST_BYTES", 4999)
    with pytest.raises(MediaError, match="more than 4999 bytes"):
        read_cues(tmp_path / "clip.srt")


def test_cues_that_end_before_they_start_are_left_out(tmp_path):
    (tmp_path / "clip.srt").write_text("00:00:02,000 --> 00:00:01,000\nback\n\n1:00:00.5 --> 01:00:01.25\r\nfar\n")
    (cue,) = read_cues(tmp_path / "clip.srt")
    assert (cue.start, cue.end, cue.text) == (3600.5, 3601.25, "far")


def test_a_subtitle_stream(tmp_path, spoken):
    clip = write_clip(tmp_path / "clip.mkv", 2.0, subtitles=[(0.2, 1.0, "good morning"), (1.2, 1.8, "it rains")])
    found = transcribe(clip, spoken, settings=NOT_ALIGNED)
    assert (found.text, found.source, found.timing) == ("good morning it rains", "subtitle stream", "stated")
    assert found.words[2][0] == "it" and found.words[2][1] == pytest.approx(1.2, abs=2e-3)


def test_cues_that_all_last_to_the_end_are_not_aligned_without_end(clip, spoken, monkeypatch):
    aligned = []
    monkeypatch.setattr(words, "align", lambda said, sound, span: aligned.append(span))
    clip.with_suffix(".srt").write_text("".join(f"00:00:00,{k:03} --> 00:10:00,000\nword\n\n" for k in range(1, 100)))
    assert len(transcribe(clip, spoken, end=9999.0).words) == 99 and len(aligned) <= 3


@pytest.mark.parametrize("samples", [1, 10, 600, 5000])
def test_sounds_shorter_than_a_word(clip, samples):
    short = Sound(speech(0.5)[1000 : 1000 + samples], RATE, 0.0)
    found = transcribe(clip, short, given="good morning")
    assert [word for word, _, _ in found.words] == ["good", "morning"] and found.timing == "spread"
    assert transcribe(clip, short).text == ""


def test_pocketsphinx_is_called_a_floor(clip, spoken):
    short = Sound(spoken.wave[: round(RATE * 2.6)], RATE, 0.0)
    found = transcribe(clip, short)
    assert (found.source, found.timing) == (FLOOR, "recognised")
    assert found.words and found.text == " ".join(word for word, _, _ in found.words)
    assert not any(mark in found.text for mark in "<([+")
    in_order(found.words, short.seconds)


@pytest.mark.parametrize(
    ("settings", "sound", "note"),
    [
        (WordSettings(recogniser="none"), "spoken", "the recogniser is none"),
        (WordSettings(language="zh"), "spoken", "knows English only, and the language is zh"),
        (WordSettings(), None, "no sound"),
        (WordSettings(), "silence", "No speech was heard"),
    ],
)
def test_why_there_is_no_text(clip, spoken, settings, sound, note):
    given = {"spoken": spoken, "silence": Sound(np.zeros(RATE, np.float32), RATE, 0.0), None: None}[sound]
    found = transcribe(clip, given, settings=settings)
    assert (found.text, found.words, found.source, found.timing) == ("", (), "none", "") and note in found.note


def test_settings_name_a_recogniser():
    for wrong in ("whisper", "whisper:", "google", ""):
        with pytest.raises(MoodalError, match="give pocketsphinx, none, or whisper"):
            WordSettings(recogniser=wrong)


@pytest.fixture(scope="module")
def tiny_whisper(tmp_path_factory) -> Path:
    """A Whisper of random weights with a vocabulary of bytes, in CTranslate2's form."""
    pytest.importorskip("faster_whisper")
    converters = pytest.importorskip("ctranslate2.converters")
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, WhisperConfig, WhisperForConditionalGeneration

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: k for k, letter in enumerate(letters)}, merges=[]))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    marks = ("endoftext", "startoftranscript", "en", "translate", "transcribe", "startoflm", "startofprev", "nospeech")
    marks = [*marks, "notimestamps", *(f"{k * 0.02:.2f}" for k in range(1501))]
    tokenizer.add_special_tokens([AddedToken(f"<|{mark}|>", special=True) for mark in marks])
    end, begin, english = (tokenizer.token_to_id(f"<|{mark}|>") for mark in ("endoftext", "startoftranscript", "en"))
    widths = {name: 16 for name in ("d_model", "encoder_ffn_dim", "decoder_ffn_dim")} | {
        name: 1 for name in ("encoder_layers", "decoder_layers")
    }
    torch.manual_seed(0)
    model = WhisperForConditionalGeneration(
        WhisperConfig(
            vocab_size=tokenizer.get_vocab_size(), encoder_attention_heads=2, decoder_attention_heads=2,
            decoder_start_token_id=begin, eos_token_id=end, bos_token_id=end, pad_token_id=end,
            suppress_tokens=[], begin_suppress_tokens=[], **widths,
        )
    )  # fmt: skip
    model.generation_config.suppress_tokens = model.generation_config.begin_suppress_tokens = []
    model.generation_config.lang_to_id = {"<|en|>": english}
    model.generation_config.alignment_heads = [[0, 0], [0, 1]]
    with torch.no_grad():  # it says the letter "m" all the time
        model.model.decoder.layer_norm.bias.copy_(50 * model.proj_out.weight[tokenizer.token_to_id("m")])
    folder = tmp_path_factory.mktemp("whisper")
    model.save_pretrained(folder / "torch")
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>").save_pretrained(folder / "torch")
    converter = converters.TransformersConverter(str(folder / "torch"), copy_files=["tokenizer.json"])
    return Path(converter.convert(str(folder / "tiny")))


def test_whisper_of_a_folder(clip, spoken, tiny_whisper):
    found = transcribe(clip, spoken, settings=WordSettings(recogniser=f"whisper:{tiny_whisper}"))
    assert found.source == "faster-whisper tiny"  # the last part of the folder's name
    assert found.timing == "recognised" and set(found.text) <= {"m", " "}
    assert found.words and all(0 <= start <= end <= spoken.seconds for _, start, end in found.words)
    assert transcribe(clip, spoken, settings=WordSettings(recogniser=f"whisper:{tiny_whisper}")) == found


def test_whisper_that_is_not_there(clip, spoken, tmp_path, monkeypatch):
    pytest.importorskip("faster_whisper")
    for name in ("nobody/nothing", "tiny", str(tmp_path)):
        with pytest.raises(MoodalError, match="neither on this machine nor could it be fetched") as fault:
            transcribe(clip, spoken, settings=WordSettings(recogniser=f"whisper:{name}"))
        assert "\n" not in str(fault.value) and name in str(fault.value)
    monkeypatch.setitem(__import__("sys").modules, "faster_whisper", None)
    with pytest.raises(MissingExtra, match=r"moodal\[whisper\]"):
        transcribe(clip, spoken, settings=WordSettings(recogniser="whisper:other"))


@pytest.mark.real
def test_the_words_of_grid_are_found_in_their_clips(tmp_path):
    """Eleven clips of six words: all aligned, in order, within what is heard as speech."""
    if not (REAL / "grid.tar").is_file():
        pytest.skip(f"the open clips are not in {REAL}")
    with tarfile.open(REAL / "grid.tar") as archive:
        archive.extractall(tmp_path, filter="data")
    with (REAL / "clips.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["dataset"] == "grid"]
    assert len(rows) == 11
    for row in rows:
        (clip,) = tmp_path.rglob(row["file"])
        sound = read_sound(clip)
        found = words.transcribe(clip, sound, given=row["text"])
        assert found.timing == "aligned" and len(found.words) == 6, row["id"]
        in_order(found.words, sound.seconds)
        spans = speech_spans(sound)
        assert found.words[0][1] > spans[0][0] - 0.3 and found.words[-1][2] < spans[-1][1] + 0.3


def test_recognised_words_lie_in_their_stretch(monkeypatch, spoken):
    monkeypatch.setattr(recognise, "_listener", lambda: lambda wave: [("so", 0.1, 0.4), ("long", 0.4, 99.0)])
    found = recognise.by_pocketsphinx(spoken, [(1.0, 2.0), (3.5, 4.0)])
    assert [word for word, _, _ in found] == ["so", "long", "so", "long"]
    assert [start for _, start, _ in found] == pytest.approx([0.9, 1.2, 3.4, 3.7])
    assert [end for _, _, end in found][1::2] == pytest.approx([2.2, 4.2])
