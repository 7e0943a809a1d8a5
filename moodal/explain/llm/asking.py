"""Questions about many clips, several in flight: answers are read back, asked for, checked, asked for again, recorded."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from moodal.explain.llm import prompts
from moodal.explain.llm.limits import Budget, Pace
from moodal.explain.llm.local import LocalBackend
from moodal.explain.llm.material import ClipMaterial
from moodal.explain.llm.question import Answer, Backend, BudgetSpent, Question, Unanswered, Unreachable
from moodal.explain.llm.records import UNANSWERED, AnswerFile, Plan, Record, short_hash
from moodal.explain.llm.schema import ParseFault
from moodal.explain.llm.server import ServerBackend
from moodal.explain.llm.settings import AskSettings, LLMSettings

T = TypeVar("T")
#: Called with (clips done, clips to do).
Progress = Callable[[int, int], None]
#: An answer that was cut off is asked for again with twice the room, up to so many times that of the settings.
_MOST_ROOM = 4
#: Characters of an unusable answer that are shown to the model again.
_SHOWN_AGAIN = 4000


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A question with what it shows. ``parse``: from an answer's text to plain values to keep; raises ``ParseFault``.

    ``shown`` and ``notes`` are recorded: how many pictures, and why something could not be shown.
    """

    question: Question
    parse: Callable[[str], Mapping[str, Any]]
    shown: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass
class Report:
    """What one run did. ``failed``: clip -> why it has no result; ``without_media``: clips that have no file.

    ``asked``: answers got in this run; ``kept``: results read back; ``unusable``: answers that could not be used;
    ``notes``: clip -> what of it could not be shown; ``stopped``: why the run ended early, or "".
    """

    out: Path
    clips: int = 0
    done: int = 0
    asked: int = 0
    kept: int = 0
    unusable: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    without_media: list[str] = field(default_factory=list)
    notes: dict[str, str] = field(default_factory=dict)
    requests: int = 0
    tokens: int = 0
    seconds: float = 0.0
    stopped: str = ""

    @property
    def left(self) -> int:
        """Clips that were not reached."""
        return self.clips - self.done - len(self.failed)

    def lines(self) -> list[str]:
        """For people: what was done, and what was not and why."""
        told = [
            f"{self.done} of {self.clips} clips have a result ({self.asked} answers in this run, {self.kept} read back), "
            f"{self.requests} requests, {self.tokens} tokens, {self.seconds:.0f} s; answers in {self.out}"
        ]
        if self.unusable:
            told.append(f"{self.unusable} answers could not be used; they are kept with the reason.")
        if self.without_media:
            told.append(
                f"{len(self.without_media)} clips have no file, such as {self.without_media[0]}; words alone were sent."
            )
        told += _some(self.notes, "more of which not all could be shown.")
        told += _some(self.failed, "more without a result.")
        return [*told, self.stopped] if self.stopped else told


def _some(faults: Mapping[str, str], rest: str, most: int = 10) -> list[str]:
    """The first faults as lines, and how many there are besides."""
    lines = [f"{clip}: {why}" for clip, why in list(faults.items())[:most]]
    return lines + ([f"... and {len(faults) - most} {rest}"] if len(faults) > most else [])


@dataclass
class Asker:
    """Settles questions of one run against a file of answers."""

    answers: AnswerFile
    settings: AskSettings
    report: Report

    async def settle(
        self, backend: Backend, plan: Plan, clip: ClipMaterial, make: Callable[[], Asked]
    ) -> tuple[Mapping[str, Any] | None, str]:
        """(what was made of the answer, "") or (None, why there is none). A recorded result is not asked for again.

        ``make`` is called only where it must be asked, in a thread: decoding a clip is dear. Raises ``Unanswered`` (which
        is recorded), ``Unreachable`` and ``BudgetSpent`` as the backend does.
        """
        text = short_hash(clip.text)
        before = self.answers.attempts(plan.name, clip.id, text)
        for record in before:
            if record.parsed is not None:
                self.report.kept += 1
                return record.parsed, ""
        unusable = [] if self.settings.again else [record for record in before if record.kind != UNANSWERED]
        if len(unusable) >= self.settings.attempts:
            return None, unusable[-1].fault
        asked = await asyncio.to_thread(make)
        if asked.notes:
            self.report.notes[clip.id] = " ".join(asked.notes)
        question = asked.question
        for record in unusable:
            question = _again(question, record.answer, record.fault, finish=record.finish, most=_most(plan))
        blank = Record(
            plan=plan.name, stage=plan.stage, clip=clip.id, attempt=0, text=text, question="", shown=asked.shown, notes=asked.notes
        )  # fmt: skip
        fault = ""
        for attempt in range(len(unusable) + 1, self.settings.attempts + 1):
            record = await self._attempt(backend, question, replace(blank, attempt=attempt), asked)
            if record.parsed is not None:
                return record.parsed, ""
            fault = record.fault
            question = _again(question, record.answer, fault, finish=record.finish, most=_most(plan))
        return None, fault

    async def _attempt(self, backend: Backend, question: Question, blank: Record, asked: Asked) -> Record:
        """Ask once and record what came."""
        record = replace(blank, question=question.digest(), when=time.strftime("%Y-%m-%dT%H:%M:%S%z"))
        try:
            answer = await backend.ask(question)
        except Unanswered as fault:
            self.answers.add(replace(record, fault=str(fault), kind=UNANSWERED))
            raise
        self.report.asked += 1
        record = _filled(record, answer, asked)
        self.report.unusable += record.parsed is None
        self.answers.add(record)
        return record


def _filled(record: Record, answer: Answer, asked: Asked) -> Record:
    """``record`` with the answer and what was made of it, or why nothing could be."""
    record = replace(
        record, answer=answer.text, reasoning=answer.reasoning, finish=answer.finish, counted=answer.counted,
        tokens=(answer.asked_tokens, answer.answer_tokens), tries=answer.tries, seconds=answer.seconds,
    )  # fmt: skip
    try:
        return replace(record, parsed=dict(asked.parse(answer.text)))
    except ParseFault as fault:
        cut = f"it was cut off after {answer.answer_tokens} tokens, so that " if answer.finish == "length" else ""
        return replace(record, fault=f"{cut}{fault}", kind="unusable")


def _most(plan: Plan) -> int:
    return int(plan.settings["max_tokens"])


def _again(question: Question, answer: str, fault: str, *, finish: str, most: int) -> Question:
    """The question with the last unusable answer and what was wrong with it; with more room where it was cut off."""
    _, words = prompts.load("again").fill(fault=fault)
    room = question.max_tokens
    if finish == "length":
        room = min(2 * (room or most), _MOST_ROOM * most)
    return replace(question, earlier=((answer[:_SHOWN_AGAIN], words),), max_tokens=room)


def plan_of(
    stage: str, settings: LLMSettings, *, filled: Mapping[str, str], after: Plan | None = None, whole: bool = True
) -> Plan:
    """The plan of a stage with the prompt in use. ``filled``: what is the same for all clips in it (language, scale, ...).

    ``whole``: the model is shown the clip; else what is shown of one does not belong to the settings.
    """
    prompt = prompts.load(stage)
    return Plan(
        stage=stage, model=settings.label, prompt=prompt.tag, prompt_sha256=prompt.sha256,
        settings={**settings.facts(shows=whole), **filled}, after="" if after is None else after.name,
    )  # fmt: skip


def make_backends(settings: Sequence[LLMSettings], budget: Budget) -> list[Backend]:
    """A backend for each, all spending one budget; those of one server keep one pace, equal ones are one."""
    made: dict[int, Backend] = {}
    paces: dict[tuple[str, float | None], Pace] = {}
    for place, wanted in enumerate(settings):
        same = next((made[i] for i in range(place) if settings[i] == wanted), None)
        if same is not None:
            made[place] = same
        elif wanted.base_url:
            pace = paces.setdefault((wanted.base_url, wanted.per_minute), Pace(wanted.per_minute))
            made[place] = ServerBackend(wanted, budget=budget, pace=pace)
        else:
            made[place] = LocalBackend(wanted, budget=budget)
    return [made[place] for place in range(len(settings))]


#: Settles one clip with the backends, in the order of their settings: "" or why it has no result.
Settle = Callable[[Asker, Sequence[Backend], ClipMaterial], Awaitable[str]]


def ask_about(
    clips: Sequence[ClipMaterial],
    settle: Settle,
    *,
    models: Sequence[LLMSettings],
    plans: Sequence[Plan],
    settings: AskSettings,
    out: Path,
    expects_media: bool = False,
    progress: Progress | None = None,
) -> Report:
    """One run: open the backends, settle every clip against the file of answers ``out``, and say what was done.

    ``expects_media``: report clips without a file. Raises ``Unreachable`` where a backend cannot be opened.
    """
    report, started = Report(out, clips=len(clips)), time.monotonic()
    if expects_media:
        report.without_media = [clip.id for clip in clips if clip.media is None]
    budget = Budget(settings.most_requests, settings.most_tokens)
    backends = make_backends(models, budget)

    async def work() -> None:
        async with AsyncExitStack() as stack:
            for backend in {id(backend): backend for backend in backends}.values():
                await stack.enter_async_context(backend)
            for plan in plans:
                answers.add(plan)
            await over_clips(
                clips, partial(settle, asker, backends), report, at_once=settings.concurrency, progress=progress
            )

    with AnswerFile(out) as answers:
        asker = Asker(answers, settings, report)
        try:
            run_now(work)
        finally:
            report.requests, report.tokens = budget.requests, budget.tokens
            report.seconds = round(time.monotonic() - started, 2)
    return report


async def over_clips(
    clips: Sequence[ClipMaterial],
    settle: Callable[[ClipMaterial], Awaitable[str]],
    report: Report,
    *,
    at_once: int,
    progress: Progress | None = None,
) -> None:
    """Settle every clip, ``at_once`` in flight. ``settle`` gives "" or why there is no result.

    A spent budget, an unreachable server, and as many unanswered clips in a row as are in flight (at least three) stop
    the run with ``report.stopped``; clips in flight are finished first.
    """
    waiting, row = iter(clips), 0

    async def worker() -> None:
        nonlocal row
        for clip in waiting:
            if report.stopped:
                return
            try:
                fault = await settle(clip)
                row = 0
            except Unanswered as found:
                fault, row = str(found), row + 1
                if row >= max(3, at_once):
                    report.stopped = (
                        f"Stopped after {row} clips in a row without an answer ({fault}); run again to go on from here."
                    )
            except (BudgetSpent, Unreachable) as found:
                report.stopped = report.stopped or str(found)
                return
            if fault:
                report.failed[clip.id] = fault
            else:
                report.done += 1
            if progress is not None:
                progress(report.done + len(report.failed), report.clips)

    async with asyncio.TaskGroup() as group:
        for _ in range(min(at_once, max(len(clips), 1))):
            group.create_task(worker())


def run_now(work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run a coroutine to its end, from a place that may itself lie inside an event loop."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return _run(work)
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(_run, work).result()


def _run(work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    try:
        return asyncio.run(work())
    except BaseExceptionGroup as group:  # of a TaskGroup: the first fault says what happened
        first: BaseException = group
        while isinstance(first, BaseExceptionGroup):
            first = first.exceptions[0]
        raise first from None
