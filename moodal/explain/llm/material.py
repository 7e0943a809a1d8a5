"""What a model is shown of a clip: pictures spread over it, its sound, its words, and what was measured."""

from __future__ import annotations

import io
import json
import math
import wave
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from moodal.core.errors import DataError, MissingExtra
from moodal.core.spec import Role
from moodal.data.corpus import Clip, RawCorpus
from moodal.data.store import open_store
from moodal.explain.llm.question import Medium
from moodal.explain.llm.settings import LLMSettings
from moodal.explain.measured import MeasuredExplainer
from moodal.explain.voice import measure
from moodal.features.media import MediaError, MediaFacts, probe, read_frames, read_sound

#: Sound is sent at this rate, which speech models work with.
SOUND_RATE = 16000
#: Quality of JPEG pictures: faces stay clear, a picture of 448 pixels takes some 30 KB.
_QUALITY = 88
#: Bytes of a clip that is sent whole; data URIs are a third longer, and servers refuse longer requests.
_LONGEST_VIDEO = 40 * 2**20
#: Types by which a container is sent.
_VIDEO_TYPES = {".mp4": "video/mp4", ".m4v": "video/mp4", ".mov": "video/quicktime", ".webm": "video/webm", ".mkv": "video/x-matroska",
                ".avi": "video/x-msvideo", ".mpg": "video/mpeg", ".mpeg": "video/mpeg"}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class ClipMaterial:
    """One clip to ask about. ``media``: its file, of which it is the part from ``start`` to ``end`` seconds.

    ``measured``: what the measured explainer says of voice and face.
    """

    id: str
    text: str = ""
    measured: Mapping[Role, str] = field(default_factory=dict)
    media: Path | None = None
    start: float = 0.0
    end: float | None = None


@dataclass(frozen=True)
class Shown:
    """Media in the order in which they are sent, with their captions; ``told``: the sentence that introduces them.

    ``audio``, ``vision``: whether anything of the sound or the picture is known to the model, so that it may speak of it.
    ``facts``: what to record of this; ``notes``: why something could not be shown.
    """

    parts: tuple[str | Medium, ...] = ()
    told: str = "You are shown no picture and hear no sound."
    audio: bool = False
    vision: bool = False
    facts: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def show(clip: ClipMaterial, settings: LLMSettings) -> Shown:
    """What the settings send of the clip's file; what cannot be read is left out, with a note.

    Raises ``MissingExtra`` where a package for reading is absent.
    """
    notes: list[str] = []
    facts = None if clip.media is None else _facts(clip, notes)
    if facts is None:
        return Shown(audio="audio" in clip.measured, vision="vision" in clip.measured, notes=tuple(notes))
    seconds = (facts.seconds if clip.end is None else min(clip.end, facts.seconds)) - clip.start
    frames = _pictures(clip, settings, seconds, notes) if facts.video is not None and settings.frames else []
    video = _whole(clip, notes) if settings.video and facts.video is not None else None
    sound = _sound(clip, notes) if settings.sound and facts.audio is not None else None
    parts: list[str | Medium] = [] if video is None else [video]
    for time, picture in frames:
        parts += [f"Picture at {time:.1f} s:", picture]
    parts += [] if sound is None else ["The sound of the clip:", sound]
    return Shown(
        parts=tuple(parts),
        told=_told(len(frames), seconds, video=video is not None, sound=sound is not None),
        audio=sound is not None or "audio" in clip.measured,
        vision=bool(frames) or video is not None or "vision" in clip.measured,
        facts={"pictures": len(frames), "video": video is not None, "sound": sound is not None},
        notes=tuple(notes),
    )


def _facts(clip: ClipMaterial, notes: list[str]) -> MediaFacts | None:
    assert clip.media is not None
    try:
        return probe(clip.media, start=clip.start, end=clip.end)
    except MediaError as fault:
        notes.append(str(fault))
        return None


def _pictures(
    clip: ClipMaterial, settings: LLMSettings, seconds: float, notes: list[str]
) -> list[tuple[float, Medium]]:
    """(seconds of the clip, picture): the middles of equal parts of it, so that one of each part is seen."""
    assert clip.media is not None
    part = max(seconds, 1e-3) / settings.frames
    first = clip.start + part / 2
    try:
        found = read_frames(clip.media, rate=1 / part, start=first, end=clip.start + seconds, longest=settings.longest)
        shown = [(frame.time + part / 2, frame.picture) for frame, _ in zip(found, range(settings.frames))]
    except MediaError as fault:
        notes.append(str(fault))
        return []
    return [(time, packed(picture, settings.picture)) for time, picture in shown]


def packed(picture: np.ndarray, form: str = "jpeg") -> Medium:
    """(H, W, 3) uint8 as a file of the format ``form`` (jpeg or png)."""
    try:
        from PIL import Image
    except ImportError:
        raise MissingExtra("pillow", "llm") from None
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, form.upper(), **({"quality": _QUALITY} if form == "jpeg" else {}))
    return Medium("image", f"image/{form}", buffer.getvalue())


def _whole(clip: ClipMaterial, notes: list[str]) -> Medium | None:
    """The file as it is; not where the clip is a part of it, or where it is too long to send."""
    assert clip.media is not None
    kind, size = _VIDEO_TYPES.get(clip.media.suffix.lower()), clip.media.stat().st_size
    if clip.start > 0 or clip.end is not None:
        notes.append(f"{clip.media.name} holds more than the clip, so it was not sent whole.")
    elif kind is None:
        notes.append(f"{clip.media.name} is of no type that servers take, so it was not sent whole.")
    elif size > _LONGEST_VIDEO:
        notes.append(f"{clip.media.name} has {size} bytes, too many to be sent whole.")
    else:
        return Medium("video", kind, clip.media.read_bytes())
    return None


def _sound(clip: ClipMaterial, notes: list[str]) -> Medium | None:
    assert clip.media is not None
    try:
        sound = read_sound(clip.media, rate=SOUND_RATE, start=clip.start, end=clip.end)
    except MediaError as fault:
        notes.append(str(fault))
        return None
    if not len(sound.wave):
        return None
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SOUND_RATE)
        file.writeframes((np.clip(sound.wave, -1, 1) * 32767).astype("<i2").tobytes())
    return Medium("audio", "audio/wav", buffer.getvalue())


def _told(pictures: int, seconds: float, *, video: bool, sound: bool) -> str:
    seen = []
    if video:
        seen.append(f"You see the whole clip of {seconds:.1f} seconds.")
    if pictures:
        what = f"{pictures} pictures, in their order," if pictures > 1 else "one picture"
        seen.append(f"You see {what} of a clip of {seconds:.1f} seconds.")
    seen.append("" if seen else "You are shown no picture.")
    seen.append("You hear its sound." if sound else "You do not hear its sound.")
    return " ".join(filter(None, seen))


def quoted(text: str) -> str:
    """A transcript for a prompt: as one JSON string, so that nothing in it can pass for the prompt's own words."""
    return json.dumps(text.strip(), ensure_ascii=False) if text.strip() else "(not known)"


# ---- clips of a corpus


class MediaFolder:
    """Finds the file of a clip: named by its note ``file``, or by its id below the folder, whatever the ending.

    Ids of the form ``video$_$clip`` are also looked for as ``video/clip``.
    """

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise DataError(f"{folder} is not a folder; give the folder that holds the clips' video or sound files.")
        self.folder = folder
        files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
        self._by_name: dict[str, Path] = {}
        for path in files:
            inside = path.relative_to(folder)
            for name in (inside.as_posix(), inside.with_suffix("").as_posix()):
                held = self._by_name.get(name)
                if held is None or _rank(path) < _rank(held):
                    self._by_name[name] = path

    def find(self, clip: Clip) -> Path | None:
        """The file of ``clip``, or None."""
        names = [clip.notes["file"]] if "file" in clip.notes else []
        names += [clip.id, clip.id.replace("$_$", "/")]
        return next((self._by_name[name] for name in names if name in self._by_name), None)


#: Of several files with one name: video before sound before everything else (subtitles, labels).
_SOUNDS = (".wav", ".flac", ".mp3", ".m4a", ".ogg", ".opus", ".aac")


def _rank(path: Path) -> int:
    suffix = path.suffix.lower()
    return 0 if suffix in _VIDEO_TYPES else 1 if suffix in _SOUNDS else 2


def store_clips(store: Path, media: Path | None, splits: Sequence[str] = ()) -> list[ClipMaterial]:
    """The clips of the given splits (none: all) of the store at ``store``, with their files in the folder ``media``.

    Raises ``DataError`` for a store or folder that cannot be read, without clips there, or without a file of any clip.
    """
    raw = open_store(store)
    rows = [row for row, clip in enumerate(raw.clips) if not splits or clip.split in splits]
    if not rows:
        raise DataError(f"{store} has no clips in {', '.join(splits) or 'any split'}; give splits that it has.")
    clips = materials(raw, None if media is None else MediaFolder(media), rows=rows)
    if media is not None and not any(clip.media for clip in clips):
        raise DataError(
            f"{media} holds no file of any of the {len(clips)} clips, such as {clips[0].id}; give the folder whose files are "
            "named by the clips' ids, or leave it out to send words alone."
        )
    return clips


def materials(raw: RawCorpus, media: MediaFolder | None, *, rows: Sequence[int] | None = None) -> list[ClipMaterial]:
    """The clips of a corpus (or the given rows) as material, with what can be measured of them."""
    measured = measured_texts(raw)
    made = []
    for row in range(len(raw.clips)) if rows is None else rows:
        clip = raw.clips[row]
        file = None if media is None else media.find(clip)
        if file is not None and _rank(file) == 2:  # a transcript beside nothing
            file = None
        end = clip.notes.get("end")
        start, stop = float(clip.notes.get("start") or 0.0), float(end) if end else None
        found = ClipMaterial(id=clip.id, text=clip.text, measured=measured[row], media=file, start=start, end=stop)
        made.append(found)
    return made


def measured_texts(raw: RawCorpus) -> list[dict[Role, str]]:
    """What was measured of each clip's voice and face, in words (relative to the training clips) and, of the voice, numbers."""
    words = MeasuredExplainer.fit(raw).explain(raw) if len(raw.positions("train")) else [{} for _ in raw.clips]
    numbers = _numbers(raw)
    found: list[dict[Role, str]] = []
    for told, counted in zip(words, numbers, strict=True):
        relative: dict[Role, str] = {role: f"{told[role]} (relative)" for role in ("audio", "vision") if role in told}
        if counted:
            relative["audio"] = "; ".join(filter(None, (relative.get("audio", ""), counted)))
        found.append(relative)
    return found


def _numbers(raw: RawCorpus) -> list[str]:
    """Pitch in Hz, its range in semitones, words a second and the share of pauses, as far as the channels' units are known."""
    measures = measure(raw)
    recipe = raw.recipes.get("audio")
    low = None if recipe is None else recipe.settings.get("pitch_low")  # log_f0 then counts octaves above it
    count = len(raw.clips)

    def values(name: str) -> Sequence[float]:
        return measures[name].tolist() if name in measures else [math.nan] * count

    lines = []
    for pitch, movement, rate, pauses in zip(values("pitch"), values("movement"), values("rate"), values("pauses")):
        told = []
        if low is not None and math.isfinite(pitch):
            told.append(f"median pitch {float(low) * 2**pitch:.0f} Hz, moving over {12 * movement:.0f} semitones")
        if math.isfinite(rate):
            told.append(f"{rate:.1f} words per second")
        if math.isfinite(pauses):
            told.append(f"{100 * pauses:.0f} % of the time in pauses")
        lines.append(", ".join(told))
    return lines
