"""Answers back into a corpus, by clip id: ``Clip.explanations`` and who made each in ``Clip.explained_by``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from moodal.core.errors import DataError, did_you_mean
from moodal.core.files import sha256
from moodal.core.spec import ROLES, Role
from moodal.data.corpus import Clip, RawCorpus
from moodal.data.store import open_store, read_manifest, save_store
from moodal.explain.llm.records import UNANSWERED, Plan, Record, read_lines, short_hash
from moodal.explain.llm.schema import Explanation

#: ``explained_by`` of these texts starts with this.
PREFIX = "llm:"


@dataclass(frozen=True, kw_only=True)
class Joined:
    """What was put into a corpus. ``by``: as in ``explained_by``; ``texts``: clips that got one, by role.

    ``without``: clips with no usable answer, and why; ``stale``: clips whose transcript is not the one that was sent;
    ``unknown``: clips of the answers that the corpus does not have. ``unusable``: answers kept with a fault, by reason.
    """

    by: str
    plan: str
    texts: Mapping[str, int]
    without: Mapping[str, str] = field(default_factory=dict)
    stale: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()
    unusable: Mapping[str, int] = field(default_factory=dict)

    def lines(self) -> list[str]:
        """For people."""
        told = ", ".join(f"{role} {count}" for role, count in self.texts.items())
        lines = [f"Texts by {self.by}: {told}."]
        if self.without:
            clip, why = next(iter(self.without.items()))
            lines.append(
                f"{len(self.without)} clips got none, such as {clip} ({why}); training fills them by measuring."
            )
        if self.stale:
            lines.append(
                f"{len(self.stale)} clips have another transcript now, such as {self.stale[0]}; ask about them again."
            )
        if self.unknown:
            lines.append(f"{len(self.unknown)} clips of the answers are not in this corpus, such as {self.unknown[0]}.")
        return lines


def join_explanations(
    raw: RawCorpus, answers: Path, *, plan: str | None = None, keep: bool = False
) -> tuple[RawCorpus, Joined]:
    """``raw`` with the texts in the file ``answers``.

    ``plan``: whose answers, by the name of a plan; without it the file must hold the last stage of one configuration only.
    ``keep``: texts that clips bring stay (else they are replaced). The clues that a model went through are kept as the
    note "reason". Raises ``DataError`` for a file that cannot be read or in which ``plan`` is not clear.
    """
    plans, records = read_answers(answers)
    chosen = _chosen(plans, plan, answers)
    by = explained_by(chosen, plans)
    found, without, stale = _results(raw, chosen.name, records)
    clips = tuple(_told(clip, found.get(clip.id), by, keep=keep) for clip in raw.clips)
    known = {clip.id for clip in raw.clips}
    asked = {record.clip for record in records if record.plan == chosen.name}
    joined = Joined(
        by=by,
        plan=chosen.name,
        texts={role: sum(clip.explained_by.get(role) == by for clip in clips) for role in ROLES},
        without=without,
        stale=stale,
        unknown=tuple(sorted(asked - known)),
        unusable=dict(Counter(record.fault for record in records if record.plan == chosen.name and record.fault)),
    )
    return replace(raw, clips=clips), joined


def join_store(
    store: Path, answers: Path, *, out: Path | None = None, plan: str | None = None, keep: bool = False
) -> Joined:
    """The same for a store on disk: written to ``out``, or in place of ``store``. The manifest names the file of answers."""
    joined_corpus, joined = join_explanations(open_store(store), answers, plan=plan, keep=keep)
    told = {
        "file": answers.name, "sha256": sha256(answers), "by": joined.by, "plan": joined.plan, "texts": dict(joined.texts),
        "without": len(joined.without), "unusable": dict(joined.unusable),
    }  # fmt: skip
    raw = replace(joined_corpus, source={**joined_corpus.source, "explanations": told})
    save_store(raw, store if out is None else out, overwrite=out is None, report=read_manifest(store)["report"])
    return joined


def read_answers(path: Path) -> tuple[dict[str, Plan], list[Record]]:
    """The plans by name and the answers of a file, in order."""
    plans: dict[str, Plan] = {}
    records: list[Record] = []
    for line in read_lines(path):
        if isinstance(line, Plan):
            plans[line.name] = line
        else:
            records.append(line)
    return plans, records


def explained_by(plan: Plan, plans: Mapping[str, Plan]) -> str:
    """As ``Clip.explained_by`` has it: "llm:<model>:<prompt>", both stages joined by "+" where there were two."""
    stages = [plan]
    while stages[0].after in plans:
        stages.insert(0, plans[stages[0].after])
    models = "+".join(dict.fromkeys(stage.model for stage in stages))
    return f"{PREFIX}{models}:{'+'.join(stage.prompt for stage in stages)}"


def _chosen(plans: Mapping[str, Plan], wanted: str | None, path: Path) -> Plan:
    """The plan that is meant: the named one, or the only one that no other plan checks."""
    stages = {name: plan for name, plan in plans.items() if plan.stage in ("describe", "refine")}
    if wanted is not None:
        if wanted not in stages:
            raise DataError(
                f"{path} has no plan '{wanted}'; it has {_listed(stages.values(), plans)}{did_you_mean(wanted, stages)}"
            )
        return stages[wanted]
    checked = {plan.after for plan in stages.values()}
    last = [plan for name, plan in stages.items() if name not in checked]
    if not last:
        raise DataError(f"{path} holds no explanations; make some first (moodal explain).")
    if len(last) > 1:
        raise DataError(
            f"{path} holds answers of several configurations: {_listed(last, plans)}; name one of them as the plan."
        )
    return last[0]


def _listed(plans: Iterable[Plan], all_plans: Mapping[str, Plan]) -> str:
    return ", ".join(f"{plan.name} ({explained_by(plan, all_plans)})" for plan in plans)


def _results(
    raw: RawCorpus, plan: str, records: Iterable[Record]
) -> tuple[dict[str, Explanation], dict[str, str], tuple[str, ...]]:
    """(explanation by clip, clip -> why there is none, clips asked about with another transcript)."""
    by_clip: dict[str, list[Record]] = {}
    for record in records:
        if record.plan == plan:
            by_clip.setdefault(record.clip, []).append(record)
    found: dict[str, Explanation] = {}
    without: dict[str, str] = {}
    stale = []
    for clip in raw.clips:
        asked = by_clip.get(clip.id, [])
        same = [record for record in asked if record.text == short_hash(clip.text)]
        usable = [record for record in same if record.parsed is not None]
        if usable:
            found[clip.id] = Explanation(**usable[-1].parsed or {})
        elif asked and not same:
            stale.append(clip.id)
        elif asked:
            without[clip.id] = same[-1].fault or UNANSWERED
        else:
            without[clip.id] = "it was not asked about"
    return found, without, tuple(stale)


def _told(clip: Clip, explanation: Explanation | None, by: str, *, keep: bool) -> Clip:
    if explanation is None:
        return clip
    texts: dict[Role, str] = {
        role: text
        for role, text in explanation.texts().items()
        if not (keep and clip.explanations.get(role, "").strip())
    }
    notes = dict(clip.notes)
    if explanation.reason and texts and not (keep and notes.get("reason")):
        notes["reason"] = explanation.reason
    return replace(
        clip,
        explanations={**clip.explanations, **texts},
        explained_by={**clip.explained_by, **dict.fromkeys(texts, by)},
        notes=notes,
    )
