"""A folder of clips and a table of labels become a store: in parallel, resumable, faulty clips listed and left out."""

from __future__ import annotations

import csv
import hashlib
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from moodal.core.errors import DataError, Interrupted, check
from moodal.core.files import aside, sha256, write_json
from moodal.core.spec import Modality
from moodal.data.corpus import SPLITS, FeatureRecipe, RawCorpus
from moodal.data.store import is_store, save_store
from moodal.features.clip import ClipExtractor, ClipSettings, ExtractedClip, to_corpus
from moodal.features.work_folder import WorkFolder
from moodal.features.workers import Crew, Job, Outcome, Plan
from moodal.features.worklist import Item, LabelSettings, WorkList, read_worklist

Engine = Literal["processes", "ray"]
#: Called with (clips done, clips to do).
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Fault:
    """A clip that gave nothing, or (``modality``) one without a modality, and the sentence that says why."""

    line: int
    id: str
    file: str
    modality: str
    sentence: str


@dataclass(frozen=True, kw_only=True)
class ExtractReport:
    """What an extraction did. ``clips``: rows of the table; ``again``: of these, those that an earlier run had done.

    ``faults``: clips left out; ``masked``: modalities absent from clips that are in; ``sizes``: clips in the store by
    split; ``media``: seconds of sound and video in the store, ``spent``: seconds that took by stage, over all processes
    (earlier runs included); ``seconds``: of this run; ``report``: the CSV file that lists faults and masked modalities.
    """

    store: Path
    work: Path
    report: Path
    clips: int
    again: int
    faults: tuple[Fault, ...] = ()
    masked: tuple[Fault, ...] = ()
    sizes: Mapping[str, int] = field(default_factory=dict)
    media: float = 0.0
    spent: Mapping[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    notes: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """The report in a few lines, for a person."""
        stored = self.clips - len(self.faults)
        sizes = ", ".join(f"{name} {count}" for name, count in self.sizes.items())
        told = [f"{stored} of {self.clips} clips are in {self.store} ({sizes})."]
        if self.again:
            told.append(f"{self.again} of them were done before and not read again.")
        for modality, count in Counter(fault.modality for fault in self.masked).items():
            told.append(f"{modality} is absent from {count} of them.")
        if self.faults:
            first = self.faults[0]
            told.append(f"{len(self.faults)} were left out; the first, line {first.line}: {first.sentence}")
        if self.faults or self.masked:
            told.append(f"All reasons are in {self.report}.")
        if self.spent:
            stages = ", ".join(f"{stage} {seconds:.0f}" for stage, seconds in self.spent.items())
            told.append(f"{self.media:.0f} s of media; seconds by stage, over all processes: {stages}.")
        return [*told, *self.notes]

    def as_json(self) -> dict[str, Any]:
        """Plain values, paths as text."""
        return {**asdict(self), **{name: str(value) for name, value in vars(self).items() if isinstance(value, Path)}}


def extract_folder(
    folder: Path,
    labels: Path,
    out: Path,
    *,
    settings: ClipSettings | None = None,
    label_settings: LabelSettings | None = None,
    workers: int = 0,
    engine: Engine = "processes",
    limit: float = 120.0,
    overwrite: bool = False,
    retry: bool = False,
    progress: Progress | None = None,
    make: Callable[[ClipSettings], ClipExtractor] = ClipExtractor,
    cluster: str | None = None,
) -> ExtractReport:
    """Extract every clip that ``labels`` names in ``folder`` and write the store ``out`` (corpus "folder").

    ``workers``: processes (0: one per core); ``limit``: seconds that one clip may take; ``retry``: try clips again that
    were faulty before; ``cluster``: address of a Ray cluster (None: this machine). Results are kept one by one in the
    folder ``<out>.work``, with ``report.csv`` and ``summary.json``; a run after a kill or Ctrl-C goes on from there, and
    its store is the same to the byte. Raises ``ConfigError`` for faults of the table, ``DataError`` where ``out`` is taken or
    no clip could be read, ``MissingExtra`` for packages, ``Interrupted`` on Ctrl-C.
    """
    started = time.monotonic()
    settings = settings or ClipSettings()
    _check(out, workers=workers, limit=limit, overwrite=overwrite)
    listed = read_worklist(folder, labels, settings=label_settings)
    work = WorkFolder(out.with_name(f"{out.name}.work"))
    recipes = make(settings).recipes
    plan = Plan(folder=folder.resolve(), work=work.path.resolve(), settings=settings, limit=limit, make=make)
    with work.opened():
        if retry:
            work.forget_faults()
        outcomes = _all_done(plan, listed, workers or len(os.sched_getaffinity(0)), engine, progress, cluster)
        gathered = _Gathered(listed, outcomes, work)
        report = gathered.report(out, work.path, seconds=time.monotonic() - started)
        _write_report(report)
        if not gathered.clips:
            raise DataError(f"none of {report.clips} clips could be read; all reasons are in {report.report}.")
        raw = gathered.corpus(recipes, labels, settings)
        save_store(raw, out, overwrite=overwrite, report=gathered.told())
    return report


def _check(out: Path, *, workers: int, limit: float, overwrite: bool) -> None:
    check(limit > 0, f"the limit is {limit} s for one clip; give seconds above 0.")
    check(workers >= 0, f"workers is {workers}; give 0 for one per core, or a number of processes.")
    if is_store(out) and not overwrite:
        raise DataError(f"{out} already holds a store; choose another folder, or overwrite it.")


def _all_done(
    plan: Plan, listed: WorkList, workers: int, engine: Engine, progress: Progress | None, cluster: str | None
) -> list[Outcome]:
    """The outcomes in the order of the table. Raises ``Interrupted`` on Ctrl-C."""
    jobs = [Job(place, item) for place, item in enumerate(listed.items)]
    outcomes: dict[int, Outcome] = {}
    try:
        with ExitStack() as stack:
            for outcome in _running(plan, jobs, min(workers, len(jobs)), engine, cluster, stack):
                outcomes[outcome.place] = outcome
                if progress is not None:
                    progress(len(outcomes), len(jobs))
    except KeyboardInterrupt:
        raise Interrupted(f"the same command; {len(outcomes)} of {len(jobs)} clips are done and kept.") from None
    return [outcomes[job.place] for job in jobs]


def _running(
    plan: Plan, jobs: Sequence[Job], workers: int, engine: Engine, cluster: str | None, stack: ExitStack
) -> Iterator[Outcome]:
    if engine == "ray":
        from moodal.features.ray_engine import run_on_ray

        return run_on_ray(plan, jobs, workers, address=cluster)
    check(cluster is None, "cluster is the address of a Ray cluster; give the engine ray with it.")
    return stack.enter_context(Crew(plan, workers)).run(jobs)


class _Gathered:
    """The clips of a finished work list in its order, and what is to be told of the others."""

    def __init__(self, listed: WorkList, outcomes: Sequence[Outcome], work: WorkFolder) -> None:
        self.listed, self.again = listed, sum(outcome.again for outcome in outcomes)
        self.clips: list[ExtractedClip] = []
        self.rows: list[tuple[Item, str]] = []  # and the SHA-256 of its file
        self.faults: list[Fault] = []
        for item, outcome in zip(listed.items, outcomes, strict=True):
            clip = None
            if not outcome.fault and outcome.key is not None:
                clip = work.load(outcome.key, id=item.id, path=item.file)
            if clip is None or outcome.key is None:
                sentence = outcome.fault or f"the result of {item.file} was damaged and is removed; run once more."
                self.faults.append(Fault(item.line, item.id, item.file, "", sentence))
            else:
                self.clips.append(clip)
                self.rows.append((item, outcome.key.content))

    def corpus(self, recipes: Mapping[Modality, FeatureRecipe], labels: Path, settings: ClipSettings) -> RawCorpus:
        content = "".join(f"{sha}  {item.file}\n" for item, sha in self.rows)
        return to_corpus(
            self.clips,
            self.listed.facts,
            recipes,
            splits=[item.split for item, _ in self.rows],
            labels=[item.label for item, _ in self.rows],
            groups=[item.group for item, _ in self.rows],
            notes=[{"file": item.file, "sha256": sha} for item, sha in self.rows],
            source={
                "files": {labels.name: sha256(labels)},
                "clips": hashlib.sha256(content.encode()).hexdigest(),
                "words": asdict(settings.words),
            },
        )

    def masked(self) -> list[Fault]:
        return [
            Fault(item.line, item.id, item.file, modality, sentence)
            for clip, (item, _) in zip(self.clips, self.rows, strict=True)
            for modality, sentence in clip.absent.items()
        ]

    def told(self) -> dict[str, Any]:
        """What the store itself remembers: nothing that depends on the day or on the machine."""
        return {
            "clips": len(self.listed.items),
            "faulty": [asdict(fault) for fault in self.faults],
            "masked": dict(Counter(fault.modality for fault in self.masked())),
            "notes": list(self.listed.notes),
        }

    def report(self, out: Path, work: Path, *, seconds: float) -> ExtractReport:
        spent: Counter[str] = Counter()
        for clip in self.clips:
            spent.update(clip.spent)
        sizes = {split: sum(item.split == split for item, _ in self.rows) for split in SPLITS}
        empty = [split for split, count in sizes.items() if not count]
        lacking = f"The split {' and '.join(empty)} is empty, so nothing can be trained on the store yet."
        return ExtractReport(
            store=out, work=work, report=work / "report.csv", clips=len(self.listed.items), again=self.again,
            faults=tuple(self.faults), masked=tuple(self.masked()), sizes=sizes,
            media=sum(clip.seconds for clip in self.clips), spent=dict(sorted(spent.items())), seconds=seconds,
            notes=(*self.listed.notes, *([lacking] if empty else [])),
        )  # fmt: skip


def _write_report(report: ExtractReport) -> None:
    """``report.csv``: faulty clips, then masked modalities; ``summary.json``: the numbers."""
    with aside(report.report) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["status", "line", "id", "file", "modality", "sentence"])
        for status, faults in (("left out", report.faults), ("masked", report.masked)):
            for fault in faults:
                writer.writerow([status, fault.line, fault.id, fault.file, fault.modality, fault.sentence])
    numbers = {**report.as_json(), "faults": len(report.faults), "masked": len(report.masked)}
    write_json(report.work / "summary.json", numbers)
