"""Texts with times beside a clip or inside it: .srt and .vtt files, and subtitle streams."""

from __future__ import annotations

import html
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moodal.features.container import LIMITS, MediaError, opened, origin, packets

#: Codecs of subtitles that are text (others are pictures), and of those the ones with fields before the text.
TEXT_CODECS = ("subrip", "srt", "text", "webvtt", "mov_text", "ass", "ssa")
ASS_CODECS = ("ass", "ssa")
#: Bytes and cues above which a text file is no transcript of a clip.
MOST_BYTES = 4 * 2**20
MOST_CUES = 100_000
_TIMES = re.compile(r"(?:(\d+):)?(\d{1,2}):(\d{1,2})[.,](\d{1,3})\s*-->\s*(?:(\d+):)?(\d{1,2}):(\d{1,2})[.,](\d{1,3})")
_MARKS = re.compile(r"<[^<>]{0,200}>|\{\\[^{}]{0,200}\}")


@dataclass(frozen=True)
class Cue:
    """What is said or shown from ``start`` to ``end``, in seconds of the file."""

    start: float
    end: float
    text: str


def read_subtitles(path: Path) -> list[Cue]:
    """The cues of the first text subtitle stream, by time; none where there is no such stream.

    Raises MediaError when the file cannot be opened.
    """
    with opened(path, LIMITS) as container:
        streams = text_streams(container)
        if not streams:
            return []
        zero, form = origin(container), streams[0].codec_context.name
        cues: list[Cue] = []
        left = MOST_BYTES
        for packet in packets(container, streams[:1]):
            left -= packet.size
            if left < 0 or len(cues) >= MOST_CUES:
                break
            cue = _packet_cue(packet, form, zero)
            if cue is not None:
                cues.append(cue)
    return sorted(cues, key=lambda cue: (cue.start, cue.end))


def text_streams(container: Any) -> list[Any]:
    """The subtitle streams that hold text."""
    return [
        stream
        for stream in container.streams
        if stream.type == "subtitle" and stream.codec_context is not None and stream.codec_context.name in TEXT_CODECS
    ]


def _packet_cue(packet: Any, form: str, zero: float) -> Cue | None:
    """The text of a packet, as containers hold it, with its time."""
    if packet.pts is None or not packet.size:
        return None
    content = bytes(packet)
    if form == "mov_text":  # two bytes of length before the text, style boxes behind it
        content = content[2 : 2 + int.from_bytes(content[:2], "big")]
    text = content.decode("utf-8", errors="replace")
    if form in ASS_CODECS:
        text = text.split(",", 8)[-1].replace(r"\N", "\n").replace(r"\n", "\n").replace(r"\h", " ")
    text = plain_text(text)
    start = max(float(packet.pts * packet.time_base) - zero, 0.0)
    return Cue(start, start + float((packet.duration or 0) * packet.time_base), text) if text else None


def plain_text(text: str) -> str:
    """One line without marks of style, entities resolved."""
    return " ".join(html.unescape(_MARKS.sub("", text)).split())


def read_cues(path: Path) -> list[Cue]:
    """The cues of an .srt or .vtt file, by time. Raises MediaError when it cannot be read or holds none."""
    cues: list[Cue] = []
    for block in re.split(r"\n[ \t]*\n", read_text(path)):
        lines = block.strip().splitlines()
        found = next(((k, match) for k, line in enumerate(lines) if (match := _TIMES.search(line))), None)
        if found is None:
            continue  # a header, a note, a style
        place, match = found
        text = plain_text("\n".join(lines[place + 1 :]))
        start, end = _seconds(match.groups()[:4]), _seconds(match.groups()[4:])
        if text and end > start and len(cues) < MOST_CUES:
            cues.append(Cue(start, end, text))
    if not cues:
        raise MediaError(
            f"{path} holds no cue such as '00:00:01,000 --> 00:00:02,500' with a text; correct or remove it."
        )
    return sorted(cues, key=lambda cue: (cue.start, cue.end))


def _seconds(parts: tuple[str | None, ...]) -> float:
    hours, minutes, seconds, fraction = parts
    return int(hours or 0) * 3600 + int(minutes or 0) * 60 + int(seconds or 0) + float(f"0.{fraction}")


def read_text(path: Path) -> str:
    """A text file in UTF-8, UTF-16 (with its mark) or else Windows-1252, line ends made one.

    Raises MediaError when it cannot be read, is too large or is no text.
    """
    try:
        with path.open("rb") as file:
            content = file.read(MOST_BYTES + 1)
    except OSError as fault:
        raise MediaError(f"{path} cannot be read ({fault.strerror}); check its permissions.") from fault
    if len(content) > MOST_BYTES:
        raise MediaError(f"{path} has more than {MOST_BYTES} bytes, which is no transcript of a clip; remove it.")
    wide = content.startswith((b"\xff\xfe", b"\xfe\xff"))
    for encoding in ("utf-16",) if wide else ("utf-8-sig", "cp1252"):
        try:
            text = content.decode(encoding)
        except UnicodeDecodeError:
            continue
        if "\0" not in text:
            return text.replace("\r\n", "\n").replace("\r", "\n")
    raise MediaError(f"{path} is not text in UTF-8, UTF-16 or Windows-1252; save it as UTF-8.")
