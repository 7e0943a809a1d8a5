"""What a media file holds, measured rather than believed; the door to its sound, pictures and subtitles.

A file as a whole is refused with one sentence (:class:`MediaError`). Where only its sound or only its pictures fail, the
facts lack that stream and say why, so that the caller goes on without it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from moodal.core.spec import Modality
from moodal.features.container import (
    LIMITS,
    SLACK,
    Limits,
    MediaError,
    decoded,
    opened,
    origin,
    packets,
    stated,
    stream_of,
)
from moodal.features.frames import Frame, degrees, pixel_shape, read_frames, turning, usual_rate
from moodal.features.sound import RATES, Sound, read_sound, resampled
from moodal.features.subtitles import Cue, read_subtitles, text_streams

__all__ = [
    "AudioFacts",
    "Cue",
    "Frame",
    "Limits",
    "MediaError",
    "MediaFacts",
    "Sound",
    "VideoFacts",
    "probe",
    "read_frames",
    "read_sound",
    "read_subtitles",
    "resampled",
]


@dataclass(frozen=True)
class AudioFacts:
    """The stream of sound; ``seconds``: when it ends, from the beginning of the file."""

    rate: int
    channels: int
    codec: str
    seconds: float


@dataclass(frozen=True)
class VideoFacts:
    """The stream of pictures. ``width``, ``height``: as shown; ``rotation``: degrees clockwise from stored to shown.

    ``rate``: pictures a second on average; ``frames``: how many; ``seconds``: when the last one ends.
    """

    width: int
    height: int
    rotation: int
    rate: float
    codec: str
    seconds: float
    frames: int


@dataclass(frozen=True)
class MediaFacts:
    """A file that can be used. ``absent``: of "audio" and "vision" those that it lacks, each with a sentence why.

    ``subtitles``: streams of text subtitles.
    """

    path: Path
    seconds: float
    container: str
    audio: AudioFacts | None
    video: VideoFacts | None
    subtitles: int
    absent: Mapping[Modality, str] = field(default_factory=dict)


def probe(path: Path, *, start: float = 0.0, end: float | None = None, limits: Limits = LIMITS) -> MediaFacts:
    """Measure a file: every packet is counted, and a frame of each stream decoded, whatever its header claims.

    ``start``, ``end``: the part that will be read, in seconds; ``limits.seconds`` holds for that part.
    Raises MediaError with one sentence where the file is empty, no media, without sound and pictures, cut or damaged
    beyond use, of no length, over a limit, or over before ``start``.
    """
    with opened(path, limits) as container:
        sound, pictures = stream_of(container, "audio"), stream_of(container, "video")
        subtitles, name = len(text_streams(container)), container.format.name.split(",")[0]
        if sound is None and pictures is None:
            raise MediaError(f"{path} ({name}) has neither sound nor pictures; give a video or sound file.")
        lengths = _lengths(container, [stream for stream in (sound, pictures) if stream is not None])
        ends = {index: length.seconds for index, length in lengths.items()}
        _check_length(path, max(ends.values()), start, end, limits)
    absent: dict[Modality, str] = {}
    audio = _audio_facts(path, lengths, limits, absent)
    video = _video_facts(path, lengths, limits, absent)
    seconds = max(facts.seconds for facts in (audio, video) if facts is not None) if audio or video else 0.0
    if not seconds:
        raise MediaError(f"{path} ({name}) is damaged beyond use: {' '.join(absent.values())} Make it anew.")
    return MediaFacts(path, seconds, name, audio, video, subtitles, absent)


@dataclass
class _Length:
    """Of one stream: when its last packet ends, the packets that hold something, and the sum of their durations."""

    seconds: float = 0.0
    packets: int = 0
    total: float = 0.0


def _lengths(container: Any, streams: list[Any]) -> dict[int, _Length]:
    """By stream index. Time stamps far behind the stated end do not count, unless there is as much to show for them."""
    found = {stream.index: _Length() for stream in streams}
    zero, latest = origin(container), (stated(container) or math.inf) + SLACK
    for packet in packets(container, streams):
        if not packet.size:
            continue
        length = found[packet.stream_index]
        length.packets += 1
        lasts = float((packet.duration or 0) * packet.time_base)
        length.total += lasts if 0 < lasts <= 60 else 0.0
        if packet.pts is not None:
            ends = float(packet.pts * packet.time_base) - zero + lasts
            length.seconds = max(length.seconds, ends) if ends <= latest else length.seconds
    for length in found.values():
        length.seconds = length.total if length.total > latest or not length.seconds else length.seconds
    return found


def _check_length(path: Path, seconds: float, start: float, end: float | None, limits: Limits) -> None:
    if seconds <= 0:
        raise MediaError(f"{path} has a length of zero: it holds no sound and no picture; record or copy it again.")
    if start >= seconds:
        raise MediaError(f"{path} lasts {seconds:.2f} s, and the part asked for starts at {start:.2f} s; correct it.")
    part = min(end if end is not None else seconds, seconds) - start
    if part > limits.seconds:
        raise MediaError(
            f"{path} lasts {part:.0f} s, and at most {limits.seconds:.0f} s are read; give a shorter part."
        )


def _audio_facts(
    path: Path, lengths: Mapping[int, _Length], limits: Limits, absent: dict[Modality, str]
) -> AudioFacts | None:
    with opened(path, limits) as container:
        stream = stream_of(container, "audio")
        if stream is None:
            absent["audio"] = f"{path.name} has no sound."
            return None
        codec, frame = codec_name(stream), next(decoded(container, stream, limits), None)
        if frame is None:
            absent["audio"] = f"The sound of {path.name} ({codec}) cannot be decoded."
        elif not RATES[0] <= frame.sample_rate <= RATES[1]:
            absent["audio"] = f"The sound of {path.name} claims {frame.sample_rate} samples a second."
        else:
            seconds = lengths[stream.index].seconds or frame.samples / frame.sample_rate
            return AudioFacts(frame.sample_rate, frame.layout.nb_channels, codec, seconds)
    return None


def _video_facts(
    path: Path, lengths: Mapping[int, _Length], limits: Limits, absent: dict[Modality, str]
) -> VideoFacts | None:
    with opened(path, limits) as container:
        stream = stream_of(container, "video")
        if stream is None:
            absent["vision"] = f"{path.name} has no pictures."
            return None
        codec, context = codec_name(stream), stream.codec_context
        size = context.width * context.height if context is not None else 0
        if size > limits.pixels:
            absent["vision"] = f"The pictures of {path.name} have {size} pixels, and at most {limits.pixels} are read."
            return None
        frame = next(decoded(container, stream, limits), None)
        if frame is None:
            absent["vision"] = f"The pictures of {path.name} ({codec}) cannot be decoded."
            return None
        length, turned, shape = lengths[stream.index], turning(frame), pixel_shape(stream)
        shown = round(frame.width * max(shape, 1.0)), round(frame.height * max(1 / shape, 1.0))
        width, height = shown if turned[0] else shown[::-1]
        seconds = length.seconds or 1 / usual_rate(stream)
        rate = length.packets / seconds if length.packets > 1 else usual_rate(stream)
        return VideoFacts(width, height, degrees(turned), rate, codec, seconds, length.packets)


def codec_name(stream: Any) -> str:
    """The name of a stream's codec."""
    return str(stream.codec_context.name) if stream.codec_context is not None else "an unknown codec"
