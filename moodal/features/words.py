"""What is said in a clip and when: given text, a file beside it, a subtitle stream, or a recogniser, in this order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from moodal.core.errors import check
from moodal.features.align import Word, align, split_words, spread
from moodal.features.container import MediaError
from moodal.features.recognise import by_pocketsphinx, by_whisper
from moodal.features.sound import Sound
from moodal.features.speech import Span, joined, speech_spans
from moodal.features.subtitles import Cue, read_cues, read_subtitles, read_text

__all__ = ["Transcript", "Word", "WordSettings", "speech_spans", "transcribe"]

#: What a transcript of pocketsphinx is called wherever it is shown.
FLOOR = "pocketsphinx (a floor: expect errors)"
#: Times that cues may cover a clip until the rest of them is only spread: some files have thousands that last to the end.
OVERLAP = 2.0
#: Seconds that speech may reach beyond what was heard as speech.
HAIR = 0.1


@dataclass(frozen=True, kw_only=True)
class WordSettings:
    """``recogniser``: "pocketsphinx" (English), "none", or "whisper:" and the name or folder of a faster-whisper model.

    ``language``: of speech and text, as a code such as "en". ``align``: look for the words of a known text in the sound
    (English); otherwise they are spread over the speech.
    """

    recogniser: str = "pocketsphinx"
    language: str = "en"
    align: bool = True

    def __post_init__(self) -> None:
        kind, _, model = self.recogniser.partition(":")
        known = self.recogniser in ("pocketsphinx", "none") or (kind == "whisper" and bool(model))
        check(
            known,
            f"the recogniser is {self.recogniser!r}; give pocketsphinx, none, or whisper: with a model, "
            "such as whisper:small.",
        )

    @property
    def english(self) -> bool:
        """Whether the models of pocketsphinx know the language."""
        return self.language.lower().partition("-")[0] in ("en", "english")


@dataclass(frozen=True)
class Transcript:
    """``words``: with start and end in seconds of the clip; none where times are unknown.

    ``source``: "given", the name of the file beside the clip, "subtitle stream", the recogniser, or "none".
    ``timing``: "stated" (by the cues; words are spread within each), "recognised", "aligned", "spread", or "" where there
    are no words. ``note``: why there is no text, or what to know of the times.
    """

    text: str
    words: tuple[Word, ...]
    source: str
    timing: str
    note: str = ""


def transcribe(
    path: Path,
    sound: Sound | None,
    *,
    settings: WordSettings = WordSettings(),
    given: str | None = None,
    start: float = 0.0,
    end: float | None = None,
) -> Transcript:
    """The words of the part of ``path`` from ``start`` to ``end`` seconds, whose sound is ``sound`` (None: it has none).

    Raises MoodalError where the recogniser named in ``settings`` is not to be had; that a clip has no words, or a file
    beside it is damaged, is said in the note.
    """
    notes: list[str] = []
    if given is not None and given.strip():
        found = Transcript(given.strip(), (), "given", "")
        return _timed(found, sound, settings, _length(sound, start, end))
    for look in (_beside, _inside):
        cues, source, fault = look(path, start, end)
        notes += [fault] if fault else []
        if cues:
            text = " ".join(cue.text for cue in cues)
            found = Transcript(text, (), source, "", " ".join(notes))
            if any(cue.end > cue.start for cue in cues):
                return _timed_by_cues(found, cues, sound, settings)
            return _timed(found, sound, settings, _length(sound, start, end))
    heard = _recognised(sound, settings)
    return _noted(replace(heard, note=" ".join(notes)), heard.note)


def _length(sound: Sound | None, start: float, end: float | None) -> float | None:
    """Seconds of the clip, where they are known."""
    if sound is not None and sound.seconds:
        return sound.seconds
    return None if end is None else end - start


def _beside(path: Path, start: float, end: float | None) -> tuple[list[Cue], str, str]:
    """Cues of the part from the first usable of .srt, .vtt and .txt beside the clip, its name, and what was not usable.

    A .txt has one cue of no length.
    """
    faults: list[str] = []
    for suffix in (".srt", ".vtt", ".txt"):
        beside = path.with_suffix(suffix)
        if beside == path or not beside.is_file():
            continue
        try:
            cues = _text_beside(beside, start, end) if suffix == ".txt" else _within(read_cues(beside), start, end)
        except MediaError as fault:
            faults.append(f"{beside.name} was not used: {fault}")
            continue
        if cues:
            return cues, beside.name, " ".join(faults)
    return [], "", " ".join(faults)


def _text_beside(beside: Path, start: float, end: float | None) -> list[Cue]:
    """A text file as one cue of no length. Raises MediaError for a part, since nobody knows which words are in it."""
    if start > 0 or end is not None:
        raise MediaError(
            "it holds the text of the whole file, and this is a part; give the part's text or a .srt file."
        )
    text = " ".join(read_text(beside).split())
    return [Cue(0.0, 0.0, text)] if text else []


def _inside(path: Path, start: float, end: float | None) -> tuple[list[Cue], str, str]:
    """The cues of the part from a subtitle stream; that a clip has none, or cannot be opened, is not noted here."""
    try:
        return _within(read_subtitles(path), start, end), "subtitle stream", ""
    except MediaError:
        return [], "", ""


def _within(cues: Sequence[Cue], start: float, end: float | None) -> list[Cue]:
    """Those whose middle lies in the part, in seconds of the part."""
    return [
        Cue(max(cue.start - start, 0.0), (cue.end if end is None else min(cue.end, end)) - start, cue.text)
        for cue in cues
        if (cue.start + cue.end) / 2 >= start and (end is None or (cue.start + cue.end) / 2 < end)
    ]


def _timed(found: Transcript, sound: Sound | None, settings: WordSettings, seconds: float | None) -> Transcript:
    """Times for a text of which only the words are known."""
    words = split_words(found.text)
    if not words:
        return found
    if not seconds or seconds < 0:
        return _noted(found, "Word times are unknown: there is no sound.")
    spans = speech_spans(sound) if sound is not None else []
    if sound is not None and spans and settings.align and settings.english:
        whole = joined(spans, seconds=seconds, pad=0.3, gap=seconds)[0]
        aligned = align(words, sound, whole)
        if aligned is not None:
            placed = _within_speech(aligned.words, spans)
            return _noted(replace(found, words=placed, timing="aligned"), _unknown_note(aligned.unknown, len(words)))
    missing = "there is no sound" if sound is None else "no speech was heard"
    over = "the speech" if spans else f"the whole clip: {missing}"
    placed = spread(words, spans or [(0.0, seconds)])
    return _noted(replace(found, words=placed, timing="spread"), f"Word times are spread over {over}.")


def _within_speech(words: Sequence[Word], spans: Sequence[Span]) -> tuple[Word, ...]:
    """The first and the last word without the pause before and behind, which an alignment may count to them."""
    placed = list(words)
    first, start, end = placed[0]
    placed[0] = first, max(start, min(spans[0][0] - HAIR, end - HAIR)), end
    last, start, end = placed[-1]
    placed[-1] = last, start, min(end, max(spans[-1][1] + HAIR, start + HAIR))
    return tuple(placed)


def _noted(found: Transcript, note: str) -> Transcript:
    """With one more note, and times in milliseconds."""
    words = tuple((word, round(start, 3), round(end, 3)) for word, start, end in found.words)
    return replace(found, words=words, note=" ".join([found.note, note]).strip())


def _timed_by_cues(found: Transcript, cues: Sequence[Cue], sound: Sound | None, settings: WordSettings) -> Transcript:
    """Times for words whose cues have times: aligned within each cue, or spread over it."""
    placed: list[Word] = []
    unknown, aligned_cues = 0, 0
    left = OVERLAP * sound.seconds if sound is not None and settings.align and settings.english else 0.0
    for cue in cues:
        words, span = split_words(cue.text), (cue.start, max(cue.end, cue.start))
        aligned = None
        if sound is not None and span[0] < sound.seconds and left > 0:
            aligned = align(words, sound, (span[0], min(span[1], sound.seconds)))
            left -= min(span[1], sound.seconds) - span[0]
        placed += spread(words, [span]) if aligned is None else aligned.words
        unknown += 0 if aligned is None else aligned.unknown
        aligned_cues += aligned is not None
    if not placed:
        return found
    note = _unknown_note(unknown, len(placed)) if aligned_cues else "Word times are spread over each cue."
    timing = "aligned" if aligned_cues else "stated"
    return _noted(replace(found, words=tuple(placed), timing=timing), note)


def _unknown_note(unknown: int, words: int) -> str:
    if not unknown:
        return ""
    return f"{unknown} of {words} words are in no dictionary here; their times lie between those of their neighbours."


def _recognised(sound: Sound | None, settings: WordSettings) -> Transcript:
    """What the recogniser hears."""
    nothing = Transcript("", (), "none", "")
    if settings.recogniser == "none":
        return replace(nothing, note="No text was given and none was recognised: the recogniser is none.")
    if sound is None or not len(sound.wave):
        return replace(nothing, note="There is no text and no sound to recognise it in.")
    spans: list[Span] = speech_spans(sound)
    if not spans:
        return replace(nothing, note="No speech was heard.")
    if settings.recogniser == "pocketsphinx":
        if not settings.english:
            return replace(
                nothing,
                note=f"pocketsphinx knows English only, and the language is {settings.language}: give the text, "
                "a .srt file beside the clip, or recogniser whisper:small.",
            )
        words, source = by_pocketsphinx(sound, spans), FLOOR
    else:
        model = settings.recogniser.partition(":")[2]
        words, source = by_whisper(sound, model, settings.language), f"faster-whisper {Path(model).name}"
    if not words:
        return replace(nothing, source=source, note="Speech was heard, but no word was recognised.")
    return Transcript(" ".join(word for word, _, _ in words), words, source, "recognised")
