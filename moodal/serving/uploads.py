"""A multipart request written to a folder as it arrives, with its limits watched on the way.

The file gets a name of ours: what the client calls it is never part of a path.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from python_multipart.exceptions import MultipartParseError
from python_multipart.multipart import MultipartParser, parse_options_header

from moodal.core.errors import did_you_mean
from moodal.serving.refusal import Refusal, too_large, unusable
from moodal.serving.settings import MIB, ServeSettings

#: The file field of the form, and the others.
FILE = "clip"
FIELDS = ("text", "start", "end", "evidence")
#: What an uploaded file is called on disk: sentences about files name them.
NAME = "the clip"
_BLOCK = MIB
#: Seconds for which the rest of a refused request is read.
_DRAIN = 2.0


@dataclass
class Upload:
    """What arrived: the file, how many bytes it has, and the other fields as text."""

    path: Path
    size: int = 0
    fields: dict[str, str] = field(default_factory=dict)

    def number(self, name: str) -> float | None:
        """A field in seconds, None where it was not given. Raises Refusal (422)."""
        given = self.fields.get(name, "").strip()
        if not given:
            return None
        try:
            value = float(given)
        except ValueError:
            value = -1.0
        if not 0 <= value < 1e9:
            raise unusable(f"{name} is {given[:40]!r}, and seconds from 0 up were expected.")
        return value

    def flag(self, name: str) -> bool:
        """A field that is true unless it says no. Raises Refusal (422)."""
        given = self.fields.get(name, "true").strip().lower()
        if given not in ("true", "1", "yes", "false", "0", "no"):
            raise unusable(f"{name} is {given[:40]!r}, and true or false was expected.")
        return given in ("true", "1", "yes")


async def receive(content_type: str, stream: AsyncIterator[bytes], folder: Path, settings: ServeSettings) -> Upload:
    """Write the file of a multipart body to ``folder``. Raises Refusal (400, 408, 413, 422)."""
    path = folder / NAME
    form = _Form(settings)
    parser = _parser(content_type, form)
    try:
        async with _in_time(settings):
            with path.open("wb") as file:
                async for chunk in stream:
                    parser.write(chunk)
                    await form.flush(file, least=_BLOCK)
                parser.finalize()
                await form.flush(file, least=0)
    except MultipartParseError:
        raise Refusal(400, "malformed", "The form is damaged or was cut off; send it again.") from None
    if not form.ended or not form.found:
        raise unusable(f"The form has no file in a field called {FILE!r}; send the clip there.")
    if not form.size:
        raise unusable("The uploaded file is empty.")
    return Upload(path, form.size, {name: _text(value) for name, value in form.fields.items()})


async def whole(stream: AsyncIterator[bytes], settings: ServeSettings) -> bytes:
    """A JSON body. Raises Refusal (408, 413)."""
    body = bytearray()
    async with _in_time(settings):
        async for chunk in stream:
            body += chunk
            if len(body) > settings.json_bytes:
                raise long_json(settings)
    return bytes(body)


@asynccontextmanager
async def _in_time(settings: ServeSettings) -> AsyncIterator[None]:
    """Refuse with 408 what takes longer to arrive than ``upload_seconds``."""
    try:
        async with asyncio.timeout(settings.upload_seconds):
            yield
    except TimeoutError:
        sentence = f"The request did not arrive within {settings.upload_seconds:.0f} s; send a smaller one."
        raise Refusal(408, "arrived_too_slowly", sentence) from None


async def drain(stream: AsyncIterator[bytes]) -> None:
    """Read and drop what a refused client still sends, for a moment, so that it comes to read the answer."""
    with suppress(Exception):  # the client is gone, slow, or sent all it had: nothing more is owed to it
        async with asyncio.timeout(_DRAIN):
            async for _ in stream:
                pass


def _parser(content_type: str, form: "_Form") -> MultipartParser:
    boundary = parse_options_header(content_type)[1].get(b"boundary", b"")
    if not 1 <= len(boundary) <= 70:
        raise Refusal(400, "malformed", "The form's Content-Type names no boundary; send a multipart form.")
    return MultipartParser(boundary, form.callbacks())


def _text(value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        raise unusable("A field of the form is not UTF-8 text; encode it so.") from None


class _Form:
    """The parser's callbacks: they keep parts and bytes, and refuse what is too much."""

    def __init__(self, settings: ServeSettings) -> None:
        self._settings = settings
        self._header, self._value = bytearray(), bytearray()
        self._name = ""
        self._pending: list[bytes] = []
        self._held = self.size = 0
        self.fields: dict[str, bytes] = {}
        self.found = self.ended = False

    def callbacks(self) -> Any:
        """By the parser's names."""
        return {
            "on_part_begin": self._begin,
            "on_header_field": lambda data, start, end: self._header.extend(data[start:end]),
            "on_header_value": lambda data, start, end: self._value.extend(data[start:end]),
            "on_header_end": self._end_of_header,
            "on_headers_finished": self._named,
            "on_part_data": self._data,
            "on_end": self._end,
        }

    async def flush(self, file: BinaryIO, *, least: int) -> None:
        """Write what is held, if it is ``least`` bytes or more, without stopping the server meanwhile."""
        if self._held and self._held >= least:
            blocks, self._pending, self._held = self._pending, [], 0
            await asyncio.to_thread(file.writelines, blocks)

    def _begin(self) -> None:
        self._name = ""
        self._header.clear()
        self._value.clear()

    def _end_of_header(self) -> None:
        if self._header.lower() == b"content-disposition":
            self._name = parse_options_header(bytes(self._value))[1].get(b"name", b"").decode(errors="replace")
        self._header.clear()
        self._value.clear()

    def _named(self) -> None:
        known = (FILE, *FIELDS)
        if self._name not in known:
            near = did_you_mean(self._name, known)
            raise unusable(f"The form has no field {self._name[:40]!r}{near}; it has {', '.join(known)}.")
        if self._name in self.fields or (self._name == FILE and self.found):
            raise unusable(f"The form has {self._name} twice; send one clip at a time.")
        if self._name == FILE:
            self.found = True
        else:
            self.fields[self._name] = b""

    def _data(self, data: bytes, start: int, end: int) -> None:
        if self._name == FILE:
            self.size += end - start
            if self.size > self._settings.upload_bytes:
                raise oversized(self._settings)
            self._pending.append(data[start:end])
            self._held += end - start
            return
        self.fields[self._name] += data[start:end]
        if len(self.fields[self._name]) > 4 * self._settings.characters:  # bytes of a UTF-8 character, at most
            raise too_large(f"{self._name} is longer than {self._settings.characters} characters; send less.")

    def _end(self) -> None:
        self.ended = True


def long_json(settings: ServeSettings) -> Refusal:
    """413 for a JSON body."""
    return too_large(f"The request is larger than {settings.json_bytes} bytes; send fewer steps or a clip.")


def oversized(settings: ServeSettings) -> Refusal:
    """413 for a clip."""
    return too_large(f"The clip is larger than {settings.upload_bytes / MIB:.0f} MiB; send a shorter or smaller one.")
