"""Opening media whatever they hold: what is refused, packets past damage, times past lies.

FFmpeg runs here on files from anywhere. So only containers of clips are opened (no playlists, which name other files, no
devices, no network), every fault of PyAV becomes a sentence or a skipped packet, and no number of a header is believed
where it would decide how long or how much is decoded.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from moodal.core.errors import DataError, MissingExtra

#: FFmpeg's names of the containers that are read.
CONTAINERS = (
    "mov,mp4,m4a,3gp,matroska,webm,avi,mpeg,mpegvideo,m4v,mpegts,flv,asf,mxf,dv,rm,ivf,h264,hevc,"
    "wav,w64,flac,mp3,ogg,aac,aiff,au,caf,amr,ac3,eac3"
)
#: Seconds of waiting for the disk, not of decoding, after which a file is given up.
PATIENCE = 30.0
#: Reads that may fail in a row before the rest of a file is given up.
FAILED_READS = 20
#: Seconds beyond the stated end up to which a time stamp is believed.
SLACK = 1.0
#: Containers whose index leads to the right place, and seconds up to which decoding from the beginning is as quick.
INDEXED = ("mov", "matroska")
NEAR = 2.0
#: How files begin that are often taken for clips.
KNOWN_HEADS: tuple[tuple[bytes, str], ...] = (
    (b"\x89PNG", "a PNG picture"),
    (b"\xff\xd8\xff", "a JPEG picture"),
    (b"GIF8", "a GIF picture"),
    (b"PK\x03\x04", "a ZIP archive"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"%PDF", "a PDF document"),
    (b"#EXTM3U", "a playlist, which is not followed"),
    (b"version https://git-lfs", "a Git LFS pointer: the file itself was not fetched"),
    (b"<", "an HTML or XML page"),
    (b"{", "JSON"),
)


class MediaError(DataError):
    """A media file as a whole cannot be used; the text is one sentence."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What is refused: ``seconds`` of the clip (or of the part asked for), ``pixels`` of a picture, ``bytes`` of the file.

    ``rate``: pictures a second at most on average; what comes beyond is not decoded.
    """

    seconds: float = 600.0
    pixels: int = 8192 * 4320
    bytes: int = 2 * 2**30
    rate: float = 240.0


#: What holds unless something else is asked for.
LIMITS = Limits()


@contextmanager
def opened(path: Path, limits: Limits) -> Iterator[Any]:
    """The PyAV container of a file. Raises MediaError with a sentence where it is none or over the limit of bytes."""
    av = _av()
    _check_file(path, limits)
    options = {
        "format_whitelist": CONTAINERS,
        "protocol_whitelist": "file",
        "max_pixels": str(limits.pixels),
        "max_streams": "64",
        "threads": "1",
    }
    try:
        # An absolute name: FFmpeg would read one such as "pipe:0" as an address.
        container = av.open(str(path.resolve()), options=options, metadata_errors="ignore", timeout=PATIENCE)
    except Exception as fault:  # FFmpeg's errors have many bases, and hostile files reach those of PyAV itself
        raise MediaError(_not_media(path, fault)) from fault
    try:
        yield container
    finally:
        container.close()


def _av() -> Any:
    try:
        import av
    except ImportError as error:
        raise MissingExtra("av", "media") from error
    return av


def _check_file(path: Path, limits: Limits) -> None:
    try:
        there, regular = path.exists(), path.is_file()
        size = path.stat().st_size if there else 0
    except (OSError, ValueError) as fault:  # a name with a null byte is a ValueError
        raise MediaError(f"{str(path)!r} cannot be read ({fault}); check the name and its permissions.") from fault
    if not there:
        raise MediaError(f"{path} does not exist; expected a video or sound file there.")
    if not regular:
        raise MediaError(f"{path} is not a file; give a video or sound file.")
    if size == 0:
        raise MediaError(f"{path} is empty (0 bytes); copy or record it again.")
    if size > limits.bytes:
        raise MediaError(f"{path} has {size} bytes, and at most {limits.bytes} are read; cut or compress it.")


def _not_media(path: Path, fault: Exception) -> str:
    try:
        with path.open("rb") as file:
            head = file.read(64).lstrip(b"\xef\xbb\xbf \r\n\t")
    except OSError as unread:
        return f"{path} cannot be read ({unread.strerror}); check its permissions."
    for start, name in KNOWN_HEADS:
        if head.startswith(start):
            return f"{path} is {name}, not a video or sound file; give the clip itself."
    return (
        f"{path} cannot be opened as video or sound ({reason(fault)}); "
        "it is cut short, damaged or something else: make it anew, for example as .mp4 or .wav."
    )


def reason(fault: Exception) -> str:
    """What FFmpeg or PyAV said, in a few words, without the file's name."""
    said = getattr(fault, "strerror", None) or str(fault) or type(fault).__name__
    return str(said).split(":")[0].splitlines()[0][:100].rstrip(".").lower()


def stream_of(container: Any, kind: Literal["audio", "video"]) -> Any | None:
    """The stream of sound or of pictures: the one marked as default, else the first. Covers in sound files do not count."""
    disposition = _av().stream.Disposition
    found = [s for s in container.streams if s.type == kind and not s.disposition & disposition.attached_pic]
    return next((s for s in found if s.disposition & disposition.default), found[0] if found else None)


def origin(container: Any) -> float:
    """The time stamp that counts as 0 s, in seconds: where the earliest stream starts."""
    return (container.start_time or 0) / 1_000_000


def stated(container: Any) -> float | None:
    """The duration that the header claims, in seconds."""
    return container.duration / 1_000_000 if container.duration and container.duration > 0 else None


def packets(container: Any, streams: Sequence[Any]) -> Iterator[Any]:
    """The packets of ``streams``, going on behind damage; one empty packet for each stream at the end."""
    failed = 0
    while failed < FAILED_READS:
        try:
            for packet in container.demux(*streams):
                failed = 0
                yield packet
            return
        except GeneratorExit:
            raise
        except Exception:  # reading goes on behind the damage, where the container allows it
            failed += 1


def decoded(container: Any, stream: Any, limits: Limits, *, start: float = 0.0) -> Iterator[Any]:
    """The frames of ``stream`` in the order of presentation, from ``start`` seconds or before; what is damaged is left out.

    Where the container has an index, decoding begins at the key frame before ``start``, else at the beginning.
    """
    if start >= NEAR and container.format.name.split(",")[0] in INDEXED and _seek(container, stream, start):
        frames = _frames(container, stream, limits)
        first = next(frames, None)
        if first is not None and first.time is not None and first.time - origin(container) <= start + SLACK:
            yield first
            yield from frames
            return
        with opened(Path(container.name), limits) as anew:  # the index misled, and may go on to: from the beginning
            yield from _frames(anew, anew.streams[stream.index], limits)
        return
    yield from _frames(container, stream, limits)


def _frames(container: Any, stream: Any, limits: Limits) -> Iterator[Any]:
    context = stream.codec_context
    if context is None:
        return
    context.thread_count = 1  # clips are many and processes too; and the same bits on every machine
    context.options = {"max_pixels": str(limits.pixels)}
    for packet in packets(container, [stream]):
        try:
            frames = packet.decode()
        except Exception:  # a damaged packet costs its own frames, not the clip
            continue
        yield from frames


def _seek(container: Any, stream: Any, time: float) -> bool:
    try:
        container.seek(int((time + origin(container)) / stream.time_base), stream=stream)
    except Exception:  # of a damaged index
        return False
    return True


class Clock:
    """Seconds from the beginning of the file for one frame after another, never backwards.

    A time stamp is believed unless it goes back or lies ``SLACK`` behind the stated end; then the frame follows the one
    before. ``step``: seconds that a frame lasts where it does not say so.
    """

    def __init__(self, container: Any, *, step: float, longest: float) -> None:
        self.origin = origin(container)
        self.latest = min(stated(container) or longest, longest) + SLACK
        self.step = step
        self.last = -SLACK
        self.next = 0.0

    def __call__(self, frame: Any, seconds: float | None = None) -> float:
        """When ``frame`` starts. ``seconds``: how long it lasts."""
        time = self.next
        if frame.pts is not None and frame.time_base is not None:
            claimed = float(frame.pts * frame.time_base) - self.origin
            if claimed < self.last - SLACK:
                self.origin += claimed - self.next  # the stamps started anew: count on from here
            elif claimed <= self.latest:
                time = max(claimed, self.last)
        self.last, self.next = time, time + (self.step if seconds is None else seconds)
        return time
