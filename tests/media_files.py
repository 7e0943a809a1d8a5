"""Small media for tests, made with PyAV: every container and fault that the readers must take.

``write_clip`` is the one to use; what it draws tells its time (:func:`shade` reads it back) and which way is up: the
top left quarter is red.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from scipy.signal import lfilter

Draw = Callable[[float], np.ndarray]
#: suffix -> video codec, audio codec, subtitle codec of that container.
CODECS: dict[str, tuple[str | None, str | None, str | None]] = {
    ".mp4": ("libx264", "aac", "mov_text"),
    ".mov": ("libx264", "aac", "mov_text"),
    ".mkv": ("libx264", "aac", "subrip"),
    ".webm": ("libvpx", "libopus", None),
    ".avi": ("mpeg4", "libmp3lame", None),
    ".mpg": ("mpeg1video", "mp2", None),
    ".ts": ("libx264", "aac", None),
    ".wav": (None, "pcm_s16le", None),
    ".flac": (None, "flac", None),
    ".mp3": (None, "libmp3lame", None),
    ".ogg": (None, "libopus", None),
}
#: Resonances in Hz of the vowels in "father", "see", "too" and "bed".
VOWELS = ((730, 1090, 2440), (270, 2290, 3010), (300, 870, 2240), (530, 1840, 2480))
LAYOUTS = {1: "mono", 2: "stereo", 6: "5.1"}


def voice(seconds: float = 2.0, rate: int = 48000, *, pitch: float = 140.0) -> np.ndarray:
    """(S,) float32: harmonics of ``pitch`` Hz that swell and fade four times a second, like syllables."""
    time = np.arange(round(seconds * rate)) / rate
    tone = sum(np.sin(2 * np.pi * pitch * k * time) / k for k in range(1, 9))
    return (0.25 * tone * (0.6 - 0.4 * np.cos(2 * np.pi * 4 * time))).astype(np.float32)


def speech(seconds: float = 1.5, rate: int = 16000, *, seed: int = 0) -> np.ndarray:
    """(S,) float32: pulses through the resonances of four vowels, a syllable every 180 ms; heard as speech by silero-vad."""
    generator = np.random.default_rng(seed)
    time = np.arange(round(seconds * rate)) / rate
    pulses = np.diff(np.floor(np.cumsum(120 * (1 + 0.1 * np.sin(2 * np.pi * 0.7 * time))) / rate), prepend=0)
    spoken, length = np.zeros_like(time), round(0.18 * rate)
    for start in range(0, len(time), length):
        part = pulses[start : start + length]
        for centre, width in zip(VOWELS[generator.integers(len(VOWELS))], (80, 100, 120), strict=True):
            radius = np.exp(-np.pi * width / rate)
            turn = -2 * radius * np.cos(2 * np.pi * centre / rate)
            part = lfilter([1 - radius], [1, turn, radius**2], part)
        spoken[start : start + length] = part * np.hanning(len(part))
    return (0.5 * spoken / np.abs(spoken).max()).astype(np.float32)


def picture(time: float, size: tuple[int, int] = (320, 240)) -> np.ndarray:
    """(H, W, 3) uint8: grey, brighter by 40 a second, the top left quarter red. ``size``: width, height."""
    width, height = size
    drawn = np.full((height, width, 3), min(20 + round(40 * time), 235), np.uint8)
    drawn[: height // 2, : width // 2] = (200, 20, 20)
    return drawn


def shade(drawn: np.ndarray) -> float:
    """The time that :func:`picture` wrote into a picture, in seconds (from its bottom right part)."""
    height, width = drawn.shape[:2]
    return float((drawn[height * 5 // 8 : height * 7 // 8, width * 5 // 8 : width * 7 // 8].mean() - 20) / 40)


def write_clip(
    path: Path,
    seconds: float = 2.0,
    *,
    rate: int = 25,
    size: tuple[int, int] = (320, 240),
    audio: bool = True,
    video: bool = True,
    wave: np.ndarray | None = None,
    sample_rate: int = 48000,
    channels: int = 1,
    draw: Draw | None = None,
    times: Sequence[float] | None = None,
    rotation: int = 0,
    subtitles: Sequence[tuple[float, float, str]] = (),
    codecs: tuple[str | None, str | None] | None = None,
) -> Path:
    """Write a clip and return its path; the suffix chooses container and codecs (``CODECS``).

    ``wave``: (S,) or (channels, S) float samples (:func:`voice`, where not given); ``draw``: time -> (H, W, 3) uint8;
    ``times``: the frames' times where the rate varies; ``rotation``: degrees clockwise that a player must turn the
    stored picture (mp4 and mov); ``codecs``: video and audio codec where not the suffix's own.
    """
    video_codec, audio_codec = codecs or CODECS[path.suffix][:2]
    with av.open(str(path), "w") as container:
        pictures = _add_video(container, video_codec, rate, size) if video and video_codec else None
        sound = _add_audio(container, audio_codec, sample_rate, channels) if audio and audio_codec else None
        spoken = container.add_mux_stream(CODECS[path.suffix][2], time_base=Fraction(1, 1000)) if subtitles else None
        container.start_encoding()  # so that a clip of no frames is a file too
        if pictures is not None:
            shown = [k / rate for k in range(max(round(seconds * rate), 1))] if times is None else times
            _write_frames(container, pictures, shown, draw or (lambda time: picture(time, size)))
        if sound is not None:
            made = voice(seconds, sample_rate) if wave is None else wave
            _write_samples(container, sound, np.broadcast_to(made, (channels, made.shape[-1])))
        if spoken is not None:
            _write_cues(container, spoken, subtitles)
    if rotation:
        _rotate(path, rotation)
    return path


def silent(seconds: float = 2.0, rate: int = 48000) -> np.ndarray:
    """(S,) zeros."""
    return np.zeros(round(seconds * rate), np.float32)


def truncate(path: Path, part: float) -> Path:
    """Keep only the first ``part`` (0 to 1) of a file's bytes."""
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * part)])
    return path


def mutate(path: Path, seed: int, *, flips: int = 40, keep: int = 0) -> Path:
    """Change ``flips`` random bytes of a file, none of the first ``keep``."""
    content = bytearray(path.read_bytes())
    generator = np.random.default_rng(seed)
    for place in generator.integers(keep, len(content), flips):
        content[place] = int(generator.integers(256))
    path.write_bytes(bytes(content))
    return path


def state_duration(path: Path, seconds: float) -> Path:
    """Make an mp4 or mov claim another duration, in its header and in each track."""
    content = bytearray(path.read_bytes())
    scale = struct.unpack_from(">I", content, content.index(b"mvhd") + 16)[0]
    for name, offset in ((b"mvhd", 20), (b"tkhd", 24)):
        for place in _places(content, name):
            struct.pack_into(">I", content, place + offset, round(seconds * scale))
    for place in _places(content, b"mdhd"):
        struct.pack_into(">I", content, place + 20, round(seconds * struct.unpack_from(">I", content, place + 16)[0]))
    path.write_bytes(bytes(content))
    return path


def _add_video(container: Any, codec: str, rate: int, size: tuple[int, int]) -> Any:
    stream = container.add_stream(codec, rate=rate)
    stream.width, stream.height = size
    stream.pix_fmt = {"mjpeg": "yuvj420p", "ffv1": "yuv420p"}.get(codec, "yuv420p")
    stream.codec_context.thread_count = 1
    if codec == "libx264":
        stream.options = {"preset": "ultrafast", "crf": "12"}
    elif codec not in ("mpeg1video", "mpeg4"):
        stream.codec_context.time_base = Fraction(1, 1000)
    if codec in ("mpeg1video", "mpeg4", "libvpx"):
        stream.bit_rate = 1_000_000
    return stream


def _add_audio(container: Any, codec: str, rate: int, channels: int) -> Any:
    stream = container.add_stream(codec, rate=rate)
    stream.layout = LAYOUTS[channels]
    return stream


def _write_frames(container: Any, stream: Any, times: Sequence[float], draw: Draw) -> None:
    # mpeg codecs want the frame rate as time base; the others take milliseconds, which variable rates need.
    fine = stream.codec_context.name not in ("mpeg1video", "mpeg4")
    base = Fraction(1, 1000) if fine else 1 / Fraction(stream.codec_context.framerate)
    stream.codec_context.time_base = base
    for time in times:
        frame = av.VideoFrame.from_ndarray(draw(time), format="rgb24")
        frame.pts, frame.time_base = round(time / base), base
        container.mux(stream.encode(frame))
    container.mux(stream.encode(None))


def _write_samples(container: Any, stream: Any, wave: np.ndarray) -> None:
    """``wave``: (channels, S); in pieces of the codec's own size."""
    resampler = av.AudioResampler(format=stream.format.name, layout=stream.layout.name, rate=stream.rate)
    piece = stream.codec_context.frame_size or 1024
    for start in range(0, wave.shape[1], piece):
        part = np.ascontiguousarray(wave[:, start : start + piece], np.float32)
        frame = av.AudioFrame.from_ndarray(part, format="fltp", layout=stream.layout.name)
        frame.sample_rate, frame.pts, frame.time_base = stream.rate, start, Fraction(1, stream.rate)
        for ready in resampler.resample(frame):
            container.mux(stream.encode(ready))
    container.mux(stream.encode(None))


def _write_cues(container: Any, stream: Any, cues: Sequence[tuple[float, float, str]]) -> None:
    """Text packets as the containers hold them: mp4 puts two bytes of length before the text."""
    for start, end, text in cues:
        content = text.encode()
        if container.format.name in ("mp4", "mov"):
            content = struct.pack(">H", len(content)) + content
        packet = av.Packet(content)
        packet.stream, packet.time_base = stream, Fraction(1, 1000)
        packet.pts = packet.dts = round(start * 1000)
        packet.duration = round((end - start) * 1000)
        container.mux(packet)


def _rotate(path: Path, degrees: int) -> None:
    """Write a matrix into the video track's header of an mp4 or mov: PyAV has no way to."""
    content = bytearray(path.read_bytes())
    one = 1 << 16
    cosine, sine = {90: (0, one), 180: (-one, 0), 270: (0, -one)}[degrees]
    for place in _places(content, b"tkhd"):
        if struct.unpack_from(">I", content, place + 80)[0]:  # a width: the video track
            struct.pack_into(">9i", content, place + 44, cosine, sine, 0, -sine, cosine, 0, 0, 0, 1 << 30)
    path.write_bytes(bytes(content))


def _places(content: bytearray, name: bytes) -> list[int]:
    """Where boxes of this name are, of the 32-bit form."""
    return [k for k in range(len(content) - 4) if content[k : k + 4] == name and content[k + 4] == 0]
