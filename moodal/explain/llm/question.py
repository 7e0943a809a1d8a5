"""A question to a model, its answer, and what can go wrong between them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal, Protocol

from moodal.core.errors import MoodalError

#: Tokens that a picture is taken to cost, where a budget must be kept before the server has counted.
PICTURE_TOKENS = 500


@dataclass(frozen=True)
class Medium:
    """A picture, clip or sound: ``data`` is a whole file of the type ``mime``."""

    kind: Literal["image", "video", "audio"]
    mime: str
    data: bytes


@dataclass(frozen=True, kw_only=True)
class Question:
    """What is sent. ``parts``: text and media in their order; ``schema``: JSON schema of the answer, None for free text.

    ``earlier``: (answer, what was wrong with it) of the attempts before, oldest first.
    """

    system: str
    parts: tuple[str | Medium, ...]
    schema: Mapping[str, Any] | None = None
    earlier: tuple[tuple[str, str], ...] = ()
    max_tokens: int | None = None  # None: what the settings say

    def digest(self) -> str:
        """SHA-256 over everything that is sent."""
        found = hashlib.sha256(self.system.encode())
        for part in self.parts:
            found.update(part.encode() if isinstance(part, str) else part.mime.encode() + part.data)
            found.update(b"\0")
        found.update(repr(self.earlier).encode())
        return found.hexdigest()

    def tokens(self) -> int:
        """A guess at its length in tokens: a quarter of its characters, and some for each medium."""
        text = sum(len(part) for part in self.parts if isinstance(part, str)) + len(self.system)
        text += sum(len(answer) + len(fault) for answer, fault in self.earlier)
        return text // 4 + PICTURE_TOKENS * sum(isinstance(part, Medium) for part in self.parts)


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What came back. ``finish``: why it ended ("stop", "length", ...); ``tries``: requests it took; ``seconds``: in all.

    Token counts are the server's; ``counted`` says whether it gave any, else they are guesses.
    """

    text: str
    reasoning: str = ""
    finish: str = ""
    asked_tokens: int = 0
    answer_tokens: int = 0
    counted: bool = True
    tries: int = 1
    seconds: float = 0.0


class Unanswered(MoodalError):
    """This question got no answer; others may."""


class Unreachable(MoodalError):
    """No question will get an answer: wrong address, key or model."""


class BudgetSpent(MoodalError):
    """What the run may spend is spent."""


class Backend(Protocol):
    """A model that answers. Used as an asynchronous context: it is opened and closed once a run."""

    async def __aenter__(self) -> "Backend": ...

    async def __aexit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    async def ask(self, question: Question) -> Answer:
        """Raises ``Unanswered``, ``Unreachable`` or ``BudgetSpent``."""
        ...
