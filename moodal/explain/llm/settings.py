"""Whom to ask and how: what changes an answer is told apart from what only changes how it is got."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from moodal.core.errors import check


@dataclass(frozen=True, kw_only=True)
class LLMSettings:
    """A model behind an OpenAI-compatible server, or one run in this process; with an empty ``model``, none.

    These change the answer: ``model``: its name at the server, or a hub name or folder where ``base_url`` is empty,
    which is a model in this process. ``max_tokens``: of an answer. ``temperature``, ``seed``. ``frames``: pictures
    shown, spread evenly over the clip. ``longest``: pixels of their longer side. ``picture``: how they are packed.
    ``video``, ``sound``: send the whole clip, or its sound as WAV, to servers that take them. ``schema``: ask the
    server to hold the answer to the schema; "auto" tries and does without where it is refused. ``extra``: further
    fields of the request, as the server calls them.

    These do not: ``base_url``, such as http://localhost:8000/v1. ``key``: the *name* of the environment variable that
    holds the key; empty: none is sent. ``timeout``: seconds for a whole answer. ``retries`` after faults that pass,
    ``backoff``: seconds before the first, doubled each time up to ``longest_wait`` (what the server asks for goes
    first). ``per_minute``: most requests in a minute. ``device``, ``dtype``: of a model in this process.
    """

    model: str = ""
    max_tokens: int = 1024
    temperature: float = 0.0
    seed: int | None = 0
    frames: int = 8
    longest: int = 448
    picture: Literal["jpeg", "png"] = "jpeg"
    video: bool = False
    sound: bool = False
    schema: Literal["auto", "schema", "none"] = "auto"
    extra: Mapping[str, Any] = field(default_factory=dict)
    base_url: str = ""
    key: str = ""
    timeout: float = 120.0
    retries: int = 4
    backoff: float = 1.0
    longest_wait: float = 60.0
    per_minute: float | None = None
    device: str = "auto"
    dtype: str = "auto"

    def __post_init__(self) -> None:
        web = not self.base_url or self.base_url.startswith(("http://", "https://"))
        check(
            web, f"base_url is '{self.base_url}'; it starts with http:// or https://, as in http://localhost:8000/v1."
        )
        check(self.max_tokens >= 1, f"max_tokens is {self.max_tokens}; it must be 1 or more.")
        check(0 <= self.temperature <= 2, f"temperature is {self.temperature}; it lies between 0 and 2.")
        check(0 <= self.frames <= 256, f"frames is {self.frames}; it lies between 0 and 256.")
        check(16 <= self.longest <= 4096, f"longest is {self.longest}; it lies between 16 and 4096 pixels.")
        check(self.timeout > 0, f"timeout is {self.timeout}; it must be positive.")
        check(self.retries >= 0, f"retries is {self.retries}; it cannot be negative.")
        check(self.backoff >= 0 and self.longest_wait >= 0, "backoff and longest_wait cannot be negative.")
        check(self.per_minute is None or self.per_minute > 0, f"per_minute is {self.per_minute}; it must be positive.")
        whole = self.base_url or not (self.video or self.sound)
        check(bool(whole), "video and sound go to a server only; a model in this process gets frames.")

    @property
    def label(self) -> str:
        """The model's name for tables and records: of a folder only its last part, so that no place is told."""
        return (
            Path(self.model).name if self.model.startswith((".", "/", "~")) or Path(self.model).is_dir() else self.model
        )

    def facts(self, *, shows: bool = True) -> dict[str, Any]:
        """What changes an answer, as plain values; without what is shown of a clip where none is (``shows``)."""
        facts = {
            "where": "server" if self.base_url else "process", "max_tokens": self.max_tokens,
            "temperature": self.temperature, "seed": self.seed, "schema": self.schema, "extra": dict(self.extra),
        }  # fmt: skip
        if shows:
            facts |= {
                "frames": self.frames,
                "longest": self.longest,
                "picture": self.picture,
                "video": self.video,
                "sound": self.sound,
            }
        return facts


@dataclass(frozen=True, kw_only=True)
class AskSettings:
    """How a whole corpus is asked about.

    ``attempts``: times a model is asked before its unusable answers are left as they are, recorded; ``concurrency``:
    clips in flight; ``most_requests``, ``most_tokens``: what one run may spend (None: no limit); ``language``: of the
    texts; ``again``: ask anew about clips whose attempts are used up.
    """

    attempts: int = 3
    concurrency: int = 4
    most_requests: int | None = None
    most_tokens: int | None = None
    language: str = "English"
    again: bool = False

    def __post_init__(self) -> None:
        check(1 <= self.attempts <= 10, f"attempts is {self.attempts}; it lies between 1 and 10.")
        check(1 <= self.concurrency <= 256, f"concurrency is {self.concurrency}; it lies between 1 and 256.")
        for name, most in (("most_requests", self.most_requests), ("most_tokens", self.most_tokens)):
            check(most is None or most >= 0, f"{name} is {most}; it cannot be negative.")


@dataclass(frozen=True, kw_only=True)
class ExplainSettings:
    """The two stages: ``describe`` sees the clip; ``refine`` checks what it said (left out where it names no model)."""

    describe: LLMSettings = field(default_factory=LLMSettings)
    refine: LLMSettings = field(default_factory=LLMSettings)
    ask: AskSettings = field(default_factory=AskSettings)

    def __post_init__(self) -> None:
        _check_model("describe", self.describe)


@dataclass(frozen=True, kw_only=True)
class JudgeSettings:
    """The model that gives the score. ``asked``: what is scored, in words ("": sentiment for numbers, emotion for classes)."""

    judge: LLMSettings = field(default_factory=LLMSettings)
    asked: str = ""
    ask: AskSettings = field(default_factory=AskSettings)

    def __post_init__(self) -> None:
        _check_model("judge", self.judge)


def _check_model(name: str, settings: LLMSettings) -> None:
    given = bool(settings.model.strip())
    check(
        given, f"{name}.model is not given; name the model as its server knows it, and the server by {name}.base_url."
    )
