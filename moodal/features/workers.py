"""Processes that extract clips: each clip has a time limit, and a process that hangs or dies is replaced.

A hostile file costs its own clip and nothing else: what runs over the limit is killed, and what ends its process (a fault
in a decoder, memory) is reported as the fault of the clip it was at.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import resource
import shutil
import signal
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Literal

from moodal.core.errors import MoodalError
from moodal.core.processes import end_with_parent
from moodal.features.clip import ClipExtractor, ClipSettings
from moodal.features.media import MediaError
from moodal.features.work_folder import KeptFault, Key, WorkFolder, described
from moodal.features.worklist import Item

log = logging.getLogger(__name__)
#: Seconds that loading the models and compiling may take at most.
START_LIMIT = 600.0
#: Longest sentence of an unexpected fault.
LONGEST = 300


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What every process needs. ``folder``: of the clips; ``work``: of the results; ``limit``: seconds for one clip;
    ``make``: the extractor from its settings (a function of a module, for it travels to other processes)."""

    folder: Path
    work: Path
    settings: ClipSettings
    limit: float
    make: Callable[[ClipSettings], ClipExtractor] = ClipExtractor


@dataclass(frozen=True)
class Job:
    """A place in the work list and its row."""

    place: int
    item: Item


@dataclass(frozen=True)
class Outcome:
    """What became of a job. ``fault``: "" where the result is in the work folder; ``again``: it was there before."""

    place: int
    key: Key | None = None
    fault: str = ""
    again: bool = False


@dataclass(frozen=True)
class _Told:
    """A message of a process: it is ready, at work on ``key``, done with ``outcome``, or it cannot work at all."""

    kind: Literal["ready", "key", "done", "stop"]
    key: Key | None = None
    outcome: Outcome | None = None
    sentence: str = ""


class Crew:
    """Up to ``size`` processes; a context manager, on leaving which all of them are ended."""

    def __init__(self, plan: Plan, size: int) -> None:
        self.plan, self.size, self.work = plan, size, WorkFolder(plan.work)
        self.members: list[_Member] = []

    def __enter__(self) -> "Crew":
        return self

    def __exit__(self, *_: object) -> None:
        for member in self.members:
            member.end()

    def run(self, jobs: Iterable[Job]) -> Iterator[Outcome]:
        """The outcome of each job, in the order in which they are done.

        Raises ``MoodalError`` where extraction cannot work at all: a package or model is missing, the disk is full.
        """
        waiting = deque(jobs)
        while waiting or any(member.job is not None for member in self.members):
            idle = sum(member.job is None for member in self.members)
            for _ in range(min(self.size - len(self.members), len(waiting) - idle)):
                self.members.append(_Member(self.plan))
            for member in self.members:
                if member.ready and member.job is None and waiting:
                    member.give(waiting.popleft())
            yield from self._await()

    def _await(self) -> Iterator[Outcome]:
        """Wait until a process tells something, dies, or is over its limit."""
        until = min(member.deadline for member in self.members)
        open_ends = {member.connection: member for member in self.members}
        for told in wait(list(open_ends), max(0.0, min(until - time.monotonic(), 60.0))):
            outcome = self._heard(open_ends[told])  # type: ignore[index]
            if outcome is not None:
                yield outcome
        now = time.monotonic()
        for member in list(self.members):
            if member.deadline <= now and not member.connection.poll():
                yield self._overdue(member)

    def _heard(self, member: "_Member") -> Outcome | None:
        try:
            told: _Told = member.connection.recv()
        except (EOFError, OSError):
            return self._died(member)
        if told.kind == "stop":
            raise MoodalError(told.sentence)
        if told.kind == "key":
            member.key = told.key
            return None
        member.free()
        return told.outcome

    def _overdue(self, member: "_Member") -> Outcome:
        if member.job is None:
            raise MoodalError(
                f"an extracting process was not ready after {START_LIMIT:g} s; is the machine overloaded?"
            )
        sentence = f"{member.job.item.file} took longer than the limit of {self.plan.limit:g} s and was given up."
        return self._given_up(member, KeptFault("limit", sentence, self.plan.limit), keep=True)

    def _died(self, member: "_Member") -> Outcome | None:
        member.process.join(5)
        how = _ending(member.process.exitcode)
        if member.job is None and member.ready:
            self._dismiss(member)
            return None
        if member.job is None:
            raise MoodalError(
                f"an extracting process ended while it started ({how}); a script that extracts needs the guard "
                "if __name__ == '__main__', else see the lines above."
            )
        sentence = f"{member.job.item.file} ended the process that read it ({how}); the file is damaged or too large."
        # Not kept: memory may have been short for a reason of the day.
        return self._given_up(member, KeptFault("ended", sentence), keep=False)

    def _given_up(self, member: "_Member", fault: KeptFault, *, keep: bool) -> Outcome:
        assert member.job is not None
        if member.key is not None and keep:
            self.work.save_fault(member.key, fault)
        self._dismiss(member)
        return Outcome(member.job.place, member.key, fault.sentence)

    def _dismiss(self, member: "_Member") -> None:
        """End a process; another takes its place if there is work left for it."""
        member.end()
        if member.key is not None:
            self.work.drop_halves(member.key)
        self.members.remove(member)


@dataclass(eq=False)
class _Member:
    """One process as its parent sees it."""

    plan: Plan
    connection: Connection = field(init=False)
    process: multiprocessing.process.BaseProcess = field(init=False)
    scratch: Path = field(init=False)
    ready: bool = False
    job: Job | None = None
    key: Key | None = None
    deadline: float = field(default_factory=lambda: time.monotonic() + START_LIMIT)

    def __post_init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        within = WorkFolder(self.plan.work).scratch
        within.mkdir(parents=True, exist_ok=True)
        self.scratch = Path(tempfile.mkdtemp(dir=within))
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, self.plan, self.scratch), daemon=True)
        self.process.start()
        theirs.close()

    def give(self, job: Job) -> None:
        self.job, self.key = job, None
        self.deadline = time.monotonic() + self.plan.limit
        try:
            self.connection.send(job)
        except OSError:  # it has died: the next wait finds that out
            log.debug("a process ended before it was given a clip")

    def free(self) -> None:
        self.ready, self.job, self.key = True, None, None
        self.deadline = float("inf")

    def end(self) -> None:
        self.process.kill()
        self.process.join()
        self.connection.close()
        shutil.rmtree(self.scratch, ignore_errors=True)


def _ending(code: int | None) -> str:
    if code is not None and code < 0:
        return signal.Signals(-code).name
    return f"exit code {code}"


# ---- in the process


def _serve(connection: Connection, plan: Plan, scratch: Path) -> None:
    """Extract what comes through ``connection`` until its other end is closed."""
    _settle(scratch)
    try:
        extractor = plan.make(plan.settings)
        extractor.warm()
        connection.send(_Told("ready"))
        made = described(plan.settings, extractor.recipes)
        while True:
            connection.send(_Told("done", outcome=_extract(connection.recv(), plan, extractor, made, connection)))
    except MoodalError as fault:
        connection.send(_Told("stop", sentence=str(fault)))
    except (EOFError, BrokenPipeError):
        return
    except Exception as fault:  # else it would die silently, and its sentence would blame the clip or the machine
        connection.send(_Told("stop", sentence=f"extraction cannot work here ({type(fault).__name__}: {fault})."))


def _settle(scratch: Path) -> None:
    """Ctrl-C is for the parent, temporary files go where they are removed, libraries are quiet and use one thread."""
    import threadpoolctl
    import torch

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.environ["TMPDIR"], tempfile.tempdir = str(scratch), str(scratch)
    for stream in (1, 2):  # decoders write there from C
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
    threadpoolctl.threadpool_limits(1)
    torch.set_num_threads(1)
    end_with_parent()


def _extract(job: Job, plan: Plan, extractor: ClipExtractor, made: str, connection: Connection) -> Outcome:
    item, work, path = job.item, WorkFolder(plan.work), plan.folder / job.item.file
    try:
        key = work.key(path, item, made)
    except OSError as fault:
        how = "is not there" if isinstance(fault, FileNotFoundError) else f"cannot be read ({fault.strerror})"
        return Outcome(job.place, fault=f"{item.file} {how}; check the folder and the column file.")
    connection.send(_Told("key", key=key))
    if work.load(key, id=item.id, path=item.file) is not None:
        return Outcome(job.place, key, again=True)
    known = work.fault(key, limit=plan.limit)
    if known is not None:
        return Outcome(job.place, key, known.sentence, again=True)
    found = _faulty(path, item, extractor, work, key)
    if found is None:
        return Outcome(job.place, key)
    work.save_fault(key, found)
    return Outcome(job.place, key, found.sentence)


def _faulty(path: Path, item: Item, extractor: ClipExtractor, work: WorkFolder, key: Key) -> KeptFault | None:
    """Extract one clip and save it; its fault where there is one. Other faults of the user end the run."""
    try:
        clip = extractor(
            path, id=item.id, text=item.text, start=item.start, end=item.end, language=item.language or None
        )
    except MediaError as fault:
        return KeptFault("file", _one_line(str(fault), path, item))
    except MoodalError:
        raise
    except Exception as fault:  # whatever a library makes of a damaged file is the fault of that file
        found = f"{item.file} could not be read ({type(fault).__name__}: {fault})"
        return KeptFault("unexpected", f"{_one_line(found, path, item)}.")
    work.save(key, clip)
    return None


def _one_line(sentence: str, path: Path, item: Item) -> str:
    """Without the places of this machine, so that stores made elsewhere are the same."""
    line = " ".join(sentence.replace(str(path), item.file).split())
    return line if len(line) <= LONGEST else f"{line[:LONGEST]} …"
