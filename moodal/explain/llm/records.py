"""The file of answers: one JSON object a line, appended and synced as each answer comes, read back to go on.

A line is either a *plan* (who was asked how, under a short name) or an *answer* to one question of one plan. A run that is
killed loses the line it was writing, at most; the next run cuts that piece off and asks again.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from moodal.core.errors import DataError, MoodalError
from moodal.core.files import lock, plain

#: What an answer that never came is called; such questions are asked again, whatever the attempts.
UNANSWERED = "unanswered"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Who is asked how: everything but the clip that an answer depends on. ``after``: the plan whose answers are checked."""

    stage: str
    model: str
    prompt: str
    prompt_sha256: str
    settings: Mapping[str, Any]
    after: str = ""

    @property
    def name(self) -> str:
        """A short name, the same wherever the same is asked the same way."""
        text = json.dumps(plain(asdict(self)), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]


@dataclass(frozen=True, kw_only=True)
class Record:
    """One attempt. ``answer``: as it came; ``parsed``: what was made of it, None with the reason in ``fault``.

    ``text``: short hash of the transcript, so that a changed one is asked about again; ``question``: SHA-256 of all that
    was sent; ``shown``: how many pictures and so on; ``tokens``: (question, answer), ``counted`` by the server or guessed.
    """

    plan: str
    stage: str
    clip: str
    attempt: int
    text: str
    question: str
    answer: str = ""
    parsed: Mapping[str, Any] | None = None
    fault: str = ""
    kind: str = ""  # of the fault: "unusable" or UNANSWERED
    reasoning: str = ""
    finish: str = ""
    shown: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    tokens: tuple[int, int] = (0, 0)
    counted: bool = True
    tries: int = 1
    seconds: float = 0.0
    when: str = ""


def short_hash(text: str) -> str:
    """Twelve hexadecimal digits that stand for ``text``."""
    return hashlib.sha256(text.encode()).hexdigest()[:12]


class AnswerFile:
    """Answers by (plan, clip), open for appending. One process at a time: a second one is refused."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.plans: dict[str, Plan] = {}
        self.records: dict[tuple[str, str], list[Record]] = {}
        self._file: IO[bytes] | None = None

    def __enter__(self) -> "AnswerFile":
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("a+b")
        except OSError as fault:
            raise MoodalError(
                f"{self.path} cannot be written ({fault.strerror or fault}); choose another file for the answers."
            ) from fault
        try:
            lock(self._file, f"{self.path} is being written by another run; wait for it, or choose another file.")
            self._cut_unfinished_line()
            self._read()
        except BaseException:
            self._file.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._file is not None
        if not self.plans and not self.records:  # nothing was asked: leave nothing behind
            self.path.unlink(missing_ok=True)
        self._file.close()

    def _cut_unfinished_line(self) -> None:
        assert self._file is not None
        size = self._file.seek(0, os.SEEK_END)
        end = size
        while end > 0:  # a piece at a time, from the back
            start = max(end - 65536, 0)
            self._file.seek(start)
            place = self._file.read(end - start).rfind(b"\n")
            if place >= 0:
                end = start + place + 1
                break
            end = start
        if end < size:
            self._file.truncate(end)

    def _read(self) -> None:
        for line in read_lines(self.path):
            self._keep(line)

    def _keep(self, line: Plan | Record) -> None:
        if isinstance(line, Plan):
            self.plans[line.name] = line
        else:
            self.records.setdefault((line.plan, line.clip), []).append(line)

    def add(self, line: Plan | Record) -> None:
        """Append a line and see it safely on the disk; a plan that is there already is not written twice."""
        assert self._file is not None
        if isinstance(line, Plan) and line.name in self.plans:
            return
        row = {"kind": "plan", "name": line.name, **asdict(line)} if isinstance(line, Plan) else asdict(line)
        try:
            self._file.write(json.dumps(plain(row), ensure_ascii=False).encode("utf-8") + b"\n")
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as fault:
            raise MoodalError(
                f"{self.path} could not be written ({fault.strerror or fault}); free some space, and run again to go on."
            ) from fault
        self._keep(line)

    def attempts(self, plan: str, clip: str, text: str) -> list[Record]:
        """The attempts so far at one question, oldest first; those at an older transcript do not count."""
        return [record for record in self.records.get((plan, clip), []) if record.text == text]


def read_lines(path: Path) -> Iterator[Plan | Record]:
    """Plans and answers of a file, in order; an unfinished last line is passed over. Raises ``DataError`` for a damaged one."""
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if line.endswith(b"\n"):
                    yield _line(line, path, number)
    except FileNotFoundError:
        raise DataError(
            f"{path} does not exist; expected a file of answers there (moodal explain makes one)."
        ) from None


def _line(line: bytes, path: Path, number: int) -> Plan | Record:
    try:
        row = json.loads(line)
        if row.get("kind") == "plan":
            del row["kind"], row["name"]
            return Plan(**row)
        return Record(**{**row, "tokens": tuple(row["tokens"]), "notes": tuple(row["notes"])})
    except (ValueError, TypeError, KeyError, AttributeError) as fault:
        raise DataError(
            f"{path} line {number} is no answer ({fault}); the file is damaged, restore it or move it away and ask anew."
        ) from fault
