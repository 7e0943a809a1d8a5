"""One clip to what a method reads of it: words, voice and face, each with its times, or one sentence why it is absent."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from moodal.core.errors import MoodalError, check
from moodal.core.files import plain
from moodal.core.spec import MODALITIES, Modality
from moodal.data.corpus import Clip, CorpusFacts, FeatureRecipe, RawCorpus
from moodal.data.extractors import EXTRACTORS
from moodal.data.ragged import Ragged
from moodal.features.gathered import Gathered
from moodal.features.media import Frame, Limits, MediaError, MediaFacts, Sound, probe, read_frames, read_sound
from moodal.features.words import Transcript, Word, WordSettings, transcribe

#: The name of an extractor that makes nothing: its modality is left out.
NONE = "none"
#: Samples a second that the recognisers of words hear.
WORD_RATE = 16000


@dataclass(frozen=True, kw_only=True)
class ClipSettings:
    """Which extractors (names of ``EXTRACTORS``, or "none") with which settings, and how words are found.

    ``frame_rate``: pictures a second that the vision extractor sees; ``limits``: what is refused.
    """

    audio: str = "librosa_33"
    vision: str = "face_mesh"
    audio_settings: Mapping[str, Any] = field(default_factory=dict)
    vision_settings: Mapping[str, Any] = field(default_factory=dict)
    words: WordSettings = field(default_factory=WordSettings)
    frame_rate: float = 10.0
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        check(
            0 < self.frame_rate <= 240, f"frame_rate is {self.frame_rate}; give pictures a second from above 0 to 240."
        )


@dataclass(frozen=True, kw_only=True)
class ExtractedClip:
    """What one clip holds. ``streams``: (T, D) float32 by modality ("audio", "vision"), an absent key is a masked one;
    ``times``: (T,) seconds of each step from the start of the clip; ``confidence``: (T,) of the vision steps.

    ``absent``: modality ("text" too) -> one sentence why; ``notes``: what else the user should know; ``spent``: seconds by
    stage (decode, words, audio, vision).
    """

    id: str
    path: str
    seconds: float
    text: str = ""
    words: tuple[Word, ...] = ()
    text_source: str = ""
    text_timing: str = ""
    streams: Mapping[Modality, np.ndarray] = field(default_factory=dict)
    times: Mapping[Modality, np.ndarray] = field(default_factory=dict)
    absent: Mapping[Modality, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    spent: Mapping[str, float] = field(default_factory=dict)
    confidence: np.ndarray | None = None


class SoundExtractor(Protocol):
    """(S,) float32 samples at the ``sample_rate`` of its recipe -> (T, D) float32 steps and the (T,) seconds of each."""

    def recipe(self) -> FeatureRecipe: ...

    def timed(self, wave: np.ndarray) -> tuple[np.ndarray, np.ndarray]: ...


class Track(Protocol):
    """What a vision extractor gives: T steps, of which :meth:`stream` leaves out those without a face."""

    @property
    def note(self) -> str: ...

    @property
    def confidence(self) -> np.ndarray: ...

    def stream(self) -> tuple[np.ndarray, np.ndarray]: ...


class FrameExtractor(Protocol):
    """Frames at the rate ``1 / hop`` of its recipe -> a track."""

    def recipe(self) -> FeatureRecipe: ...

    def __call__(self, frames: Iterable[Frame]) -> Track: ...


@runtime_checkable
class TableExtractor(Protocol):
    """The table that another program wrote beside a clip -> a track of the part from ``start`` to ``end`` seconds."""

    def recipe(self) -> FeatureRecipe: ...

    def beside(self, path: Path, start: float, end: float) -> Track: ...


@dataclass(frozen=True)
class Readers:
    """The four functions that touch a file."""

    probe: Callable[..., MediaFacts] = probe
    sound: Callable[..., Sound] = read_sound
    frames: Callable[..., Iterator[Frame]] = read_frames
    words: Callable[..., Transcript] = transcribe


class ClipExtractor:
    """From a file to an :class:`ExtractedClip`; holds the models, so one is made for many clips.

    ``recipes``: what it makes by modality; ``unmade``: modality -> why it cannot make it (:func:`from_recipes`).
    ``audio``, ``vision``: extractors to use in place of those that the settings name.
    """

    def __init__(
        self,
        settings: ClipSettings | None = None,
        *,
        audio: SoundExtractor | None = None,
        vision: FrameExtractor | TableExtractor | None = None,
        readers: Readers | None = None,
        unmade: Mapping[Modality, str] | None = None,
    ) -> None:
        self.settings = ClipSettings() if settings is None else settings
        self.audio = audio or _built("audio", self.settings.audio, self.settings.audio_settings)
        self.vision = vision or _built("vision", self.settings.vision, _vision_settings(self.settings))
        self.readers = readers or Readers()
        self.unmade: Mapping[Modality, str] = dict(unmade or {})
        made: dict[Modality, Any] = {"audio": self.audio, "vision": self.vision}
        self.recipes: Mapping[Modality, FeatureRecipe] = {m: e.recipe() for m, e in made.items() if e is not None}

    def __call__(
        self,
        path: Path,
        *,
        id: str | None = None,
        text: str | None = None,
        start: float = 0.0,
        end: float | None = None,
        language: str | None = None,
        modalities: Sequence[Modality] = MODALITIES,
    ) -> ExtractedClip:
        """The clip in ``path`` from ``start`` to ``end`` seconds; ``text``: its transcript, where it is known.

        ``language``: of the speech, where it is not that of the settings. Raises ``MediaError`` only when nothing at all
        can be read of the file, and ``MoodalError`` where a model or package is missing.
        """
        path, work = Path(path), Gathered(Path(path))
        span = {"start": start, "end": end}
        with work.timed("decode"):
            facts = self.readers.probe(path, limits=self.settings.limits, **span)
        said = None
        work.absent.update({m: why for m, why in self.unmade.items() if m in modalities})
        sound = self._sound(path, facts, span, modalities, work)
        if "text" in modalities:
            said = self._words(path, facts, sound, span, work, given=text, language=language)
        if "audio" in modalities and self.audio is not None and sound is not None:
            self._voice(sound, work)
        if "vision" in modalities and self.vision is not None:
            self._face(path, facts, span, work)
        if not work.streams and (said is None or not said.text):
            raise MediaError(f"{path.name} holds nothing to read: {' '.join(work.absent.values())}".strip())
        return ExtractedClip(
            id=path.stem if id is None else id, path=str(path),
            seconds=min(facts.seconds, facts.seconds if end is None else end) - start,
            text="" if said is None else said.text, words=() if said is None else tuple(said.words),
            text_source="" if said is None else said.source, text_timing="" if said is None else said.timing,
            streams=work.streams, times=work.times, absent=work.absent, notes=tuple(work.notes), spent=work.spent,
            confidence=work.confidence,
        )  # fmt: skip

    def warm(self) -> None:
        """Load the models and compile what is compiled on its first use, so that the first clip takes no longer than others."""
        hum = np.sin(np.arange(WORD_RATE, dtype=np.float32) * (2 * np.pi * 150 / WORD_RATE))
        for given in (None, "one"):  # to recognise words, and to align them
            self.readers.words(Path("hum"), Sound(hum, WORD_RATE, 0.0), settings=self.settings.words, given=given)
        if self.audio is not None:
            self.audio.timed(hum)
        if self.vision is not None and not isinstance(self.vision, TableExtractor):
            self.vision(iter([Frame(0.0, np.zeros((64, 64, 3), np.uint8))]))

    def _sound(
        self, path: Path, facts: MediaFacts, span: Mapping[str, Any], modalities: Sequence[Modality], work: Gathered
    ) -> Sound | None:
        """The wave at the audio extractor's rate; None where there is none, with the reason kept."""
        wanted = "audio" in modalities and self.audio is not None
        if not wanted and "text" not in modalities:
            return None
        if facts.audio is None:
            if wanted:
                work.absent["audio"] = facts.absent.get("audio", f"{path.name} has no sound.")
            return None
        rate = int(self.recipes["audio"].settings["sample_rate"]) if wanted else WORD_RATE
        sound = None
        with work.guarded("audio" if wanted else None), work.timed("decode"):
            sound = self.readers.sound(path, rate=rate, limits=self.settings.limits, **span)
        if sound is None or np.any(sound.wave):
            return sound
        if wanted:
            work.absent["audio"] = _silent(sound)
        return None

    def _words(
        self, path: Path, facts: MediaFacts, sound: Sound | None, span: Mapping[str, Any], work: Gathered,
        *, given: str | None, language: str | None,
    ) -> Transcript | None:  # fmt: skip
        settings = self.settings.words if language is None else replace(self.settings.words, language=language)
        said = None
        with work.guarded("text"), work.timed("words"):
            if sound is not None and sound.rate != WORD_RATE:
                sound = self.readers.sound(path, rate=WORD_RATE, limits=self.settings.limits, **span)
            said = self.readers.words(path, sound, settings=settings, given=given, **span)
        if said is None:
            return None
        if not said.text:
            why = "no words were found" if facts.audio is not None else "there is no sound to hear words in"
            work.absent["text"] = work.sentence(said.note) or f"There is no transcript, and {why}."
        elif said.note:
            work.notes.append(work.sentence(said.note))
        return said

    def _voice(self, sound: Sound, work: Gathered) -> None:
        assert self.audio is not None
        with work.guarded("audio"), work.timed("audio"):
            values, times = self.audio.timed(sound.wave)
            work.keep("audio", values, times, "No step of the sound could be measured.")

    def _face(self, path: Path, facts: MediaFacts, span: Mapping[str, Any], work: Gathered) -> None:
        if not isinstance(self.vision, TableExtractor) and facts.video is None:
            work.absent["vision"] = facts.absent.get("vision", f"{path.name} has no pictures.")
            return
        with work.guarded("vision"), work.timed("vision"):
            track = self._tracked(path, facts, span, work)
            values, times = track.stream()
            work.confidence = track.confidence[track.confidence > 0] if len(values) else None
            work.keep("vision", values, times, work.sentence(track.note) or "No frame of the video could be measured.")
            if track.note and len(values):
                work.notes.append(work.sentence(track.note))

    def _tracked(self, path: Path, facts: MediaFacts, span: Mapping[str, Any], work: Gathered) -> Track:
        assert self.vision is not None
        if isinstance(self.vision, TableExtractor):
            end = facts.seconds if span["end"] is None else min(facts.seconds, span["end"])
            return self.vision.beside(path, span["start"], end)
        rate = 1.0 / float(self.recipes["vision"].settings["hop"])
        frames = self.readers.frames(path, rate=rate, limits=self.settings.limits, **span)
        return self.vision(work.decoding(frames, during="vision"))


def _silent(sound: Sound) -> str:
    if not len(sound.wave):
        return "There is no sound in this span of the file."
    return f"The sound is silent: all of its {len(sound.wave) / sound.rate:.1f} s are zero."


def _built(modality: Modality, name: str, settings: Mapping[str, Any]) -> Any:
    """The extractor ``name`` for ``modality``, None for "none"; a sentence for a wrong name, modality or setting."""
    if name == NONE:
        return None
    cls = EXTRACTORS[name]
    check(cls.modality == modality, f"extractor {name} is for {cls.modality} and was given for {modality}.")
    known = [item.name for item in fields(cls.Config)]
    unknown = sorted(set(settings) - set(known))
    check(not unknown, f"extractor {name} has no setting {', '.join(unknown)}; it has {', '.join(known)}.")
    return cls(cls.Config(**settings))


def _vision_settings(settings: ClipSettings) -> dict[str, Any]:
    """The settings of the vision extractor, whose step is that of the frames."""
    return {} if settings.vision == NONE else {"hop": 1.0 / settings.frame_rate, **settings.vision_settings}


def from_recipes(
    recipes: Mapping[Modality, FeatureRecipe], *, words: WordSettings | None = None, limits: Limits | None = None
) -> ClipExtractor:
    """The extractor that makes exactly the features of ``recipes``, such as those that a run was trained on.

    What nothing here makes (features that came with a corpus, or of another version) is in its ``unmade``, and every
    clip it reads says so in ``absent``.
    """
    named: dict[Modality, str] = {"audio": NONE, "vision": NONE}
    settings: dict[Modality, Mapping[str, Any]] = {"audio": {}, "vision": {}}
    unmade: dict[Modality, str] = {}
    for modality, recipe in recipes.items():
        why = _why_unmade(modality, recipe)
        if why:
            unmade[modality] = why
        elif modality in named:
            named[modality], settings[modality] = recipe.name, recipe.settings
    return ClipExtractor(
        ClipSettings(
            audio=named["audio"], vision=named["vision"],
            audio_settings=settings["audio"], vision_settings=settings["vision"],
            words=words or WordSettings(), limits=limits or Limits(),
        ),
        unmade=unmade,
    )  # fmt: skip


def _why_unmade(modality: Modality, recipe: FeatureRecipe) -> str:
    """Why no extractor here makes ``recipe``; empty where one does. Text is read and encoded, not extracted."""
    if modality == "text":
        return ""
    if recipe.name not in EXTRACTORS:
        return f"No extractor here makes {recipe.name}, on which {modality} was trained; it came with its corpus."
    try:
        made = _built(modality, recipe.name, recipe.settings).recipe()
    except (MoodalError, TypeError) as fault:
        return f"{recipe.name} cannot be made as it was for training: {fault}"
    if made.version != recipe.version:
        return f"{modality} was trained on {recipe.name} version {recipe.version}, and this is version {made.version}."
    same = plain(asdict(made)) == plain(asdict(recipe))
    return "" if same else f"{recipe.name} here differs from what {modality} was trained on; its settings are others."


def to_corpus(
    clips: Sequence[ExtractedClip],
    facts: CorpusFacts,
    recipes: Mapping[Modality, FeatureRecipe],
    *,
    splits: Sequence[str],
    labels: Sequence[float | None],
    groups: Sequence[str] | None = None,
    notes: Sequence[Mapping[str, str]] | None = None,
    source: Mapping[str, Any] | None = None,
) -> RawCorpus:
    """Extracted clips as a corpus, row by row; a modality that no clip has is left out.

    The notes of a clip tell where its words came from and why a modality is absent, after those given.
    """
    rows = tuple(
        Clip(
            id=clip.id, split=split, text=clip.text, label=label, words=clip.words,
            group="" if groups is None else groups[row], notes={**({} if notes is None else notes[row]), **_told(clip)},
        )
        for row, (clip, split, label) in enumerate(zip(clips, splits, labels, strict=True))
    )  # fmt: skip
    streams: dict[Modality, Ragged] = {}
    for modality, recipe in recipes.items():
        if any(modality in clip.streams for clip in clips):
            nothing = np.zeros((0, recipe.width), np.float32)
            streams[modality] = Ragged.from_rows([clip.streams.get(modality, nothing) for clip in clips])
    return RawCorpus(
        facts=facts, clips=rows, streams=streams, recipes={m: recipes[m] for m in streams}, source=dict(source or {})
    )


def _told(clip: ExtractedClip) -> dict[str, str]:
    told = {f"no_{modality}": why for modality, why in clip.absent.items()}
    return {"text_source": clip.text_source, **told} if clip.text else told
