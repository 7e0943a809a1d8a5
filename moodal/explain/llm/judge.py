"""The zero-shot baseline: the model itself gives the score of a clip, without any training on the corpus.

As TEXT (Rao et al., AAAI 2026) compares with: only the score is asked for, the first number of the answer counts; where
none can be had, the transcript alone is shown; where that fails too, the score is 0 (the middle of a scale without 0).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from moodal.core.errors import DataError, MoodalError
from moodal.core.spec import Classification, Regression, Task
from moodal.data.corpus import RawCorpus
from moodal.data.store import read_manifest, task_from_json
from moodal.explain.llm import prompts
from moodal.explain.llm.asking import Asked, Asker, Progress, Report, ask_about, plan_of
from moodal.explain.llm.join import read_answers
from moodal.explain.llm.material import ClipMaterial, quoted, show, store_clips
from moodal.explain.llm.question import Backend, Question, Unanswered
from moodal.explain.llm.records import Plan, Record, short_hash
from moodal.explain.llm.schema import ParseFault, without_thought
from moodal.explain.llm.settings import JudgeSettings, LLMSettings

#: Splits that are scored.
SPLITS = ("valid", "test")
#: Where a prediction comes from.
CLIP, TRANSCRIPT, DEFAULT = "clip", "transcript", "default"
_NUMBER = re.compile(r"[-+]?(?:\d+(?:\.\d+)?|\.\d+)")


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """Rows of a split in the corpus's order. ``prediction``: (N,) numbers, or (N,) class numbers; ``source`` of each."""

    ids: tuple[str, ...]
    prediction: np.ndarray
    source: tuple[str, ...]


def judge_store(
    store: Path,
    *,
    settings: JudgeSettings,
    media: Path | None,
    out: Path,
    splits: Sequence[str] = SPLITS,
    progress: Progress | None = None,
) -> Report:
    """Have a model score the clips of ``splits``; answers are appended to ``out`` as explanations are.

    Raises what ``explain_store`` raises, and ``MoodalError`` for a corpus whose task cannot be asked about.
    """
    scale = scale_of(task_from_json(read_manifest(store)["facts"]["task"]))
    judge = _Judge(settings.judge, scale, settings.asked or scale.asked)
    return ask_about(
        store_clips(store, media, splits), judge, models=[settings.judge], plans=judge.plans, settings=settings.ask,
        out=out, expects_media=media is not None, progress=progress,
    )  # fmt: skip


@dataclass(frozen=True)
class Scale:
    """How a score is asked for and read: ``stage`` of the prompts, ``values`` to fill in, ``default`` where all fails."""

    stage: str
    asked: str
    values: Mapping[str, str]
    parse: Callable[[str], float]
    default: float


def scale_of(task: Task) -> Scale:
    """The scale of a task. Raises ``MoodalError`` for tasks that a model cannot be asked about."""
    if isinstance(task, Regression):
        low, high = task.low, task.high
        default = 0.0 if low <= 0 <= high else (low + high) / 2
        return Scale(
            "score",
            "sentiment",
            {"low": f"{low:g}", "high": f"{high:g}"},
            lambda text: first_number(text, low, high),
            default,
        )
    if isinstance(task, Classification):
        names = task.classes
        default = names.index("neutral") if "neutral" in names else 0
        return Scale(
            "class",
            "emotion",
            {"classes": ", ".join(names)},
            lambda text: float(first_class(text, names)),
            float(default),
        )
    raise MoodalError("Who is in a picture cannot be asked of a language model; give a corpus of numbers or classes.")


def first_number(text: str, low: float, high: float) -> float:
    """The first number in ``text``. Raises ``ParseFault`` if there is none, or if it lies off the scale."""
    found = _NUMBER.search(without_thought(text).replace("\u2212", "-").replace(",", "."))
    if found is None:
        raise ParseFault("there is no number in it")
    value = float(found[0])
    if not low <= value <= high:
        raise ParseFault(f"{value:g} does not lie between {low:g} and {high:g}")
    return value


def first_class(text: str, names: Sequence[str]) -> int:
    """The number of the class that ``text`` names first. Raises ``ParseFault`` if it names none."""
    said = without_thought(text).lower()
    places = {}
    for number, name in enumerate(names):
        found = re.search(rf"(?<!\w){re.escape(name.lower())}(?!\w)", said)
        if found is not None:
            places[number] = (found.start(), -len(name))  # of "happy" and "happy surprise" at one place, the longer
    if not places:
        raise ParseFault("it names none of the classes")
    return min(places, key=lambda number: places[number])


class _Judge:
    """One clip to one score: shown whole, then by its words."""

    def __init__(self, settings: LLMSettings, scale: Scale, asked: str) -> None:
        self.settings, self.scale = settings, scale
        self.values = {**scale.values, "asked": asked}
        first = plan_of(scale.stage, settings, filled=self.values)
        self.plans: list[Plan] = [
            first,
            plan_of(f"{scale.stage}-text", settings, filled=self.values, after=first, whole=False),
        ]

    async def __call__(self, asker: Asker, backends: Sequence[Backend], clip: ClipMaterial) -> str:
        """ "" or why the clip has no score of the model's own."""
        fault = ""
        for plan in self.plans:
            try:
                made, fault = await asker.settle(backends[0], plan, clip, partial(self._question, plan, clip))
            except Unanswered:  # too much to show, or no answer now: the words may do, and a later run asks again
                if plan is self.plans[-1]:
                    raise
                continue
            if made is not None:
                return ""
        return fault

    def _question(self, plan: Plan, clip: ClipMaterial) -> Asked:
        whole = plan is self.plans[0]
        shown = show(clip, self.settings) if whole else None
        values = {**self.values, "text": quoted(clip.text)} | ({} if shown is None else {"shown": shown.told})
        system, user = prompts.load(plan.stage).fill(**values)
        return Asked(
            question=Question(system=system, parts=(*(() if shown is None else shown.parts), user)),
            parse=lambda text: {"score": self.scale.parse(text)},
            shown={} if shown is None else shown.facts,
            notes=() if shown is None else shown.notes,
        )


def judgements(raw: RawCorpus, answers: Path, *, splits: Sequence[str] = SPLITS) -> dict[str, Judgement]:
    """Predictions by split from the stored answers. Raises ``DataError`` where they are of several configurations or none."""
    scale = scale_of(raw.facts.task)
    plans, records = read_answers(answers)
    stages = [plan for plan in plans.values() if plan.stage == scale.stage]
    if len(stages) != 1:
        raise DataError(
            f"{answers} holds scores of {len(stages)} configurations and one was expected; give a file of their own to each."
        )
    after = next((plan.name for plan in plans.values() if plan.after == stages[0].name), "")
    whole, words = _scores(records, stages[0].name), _scores(records, after)
    found = {}
    for split in splits:
        clips = [raw.clips[row] for row in raw.positions(split)]
        keys = [(clip.id, short_hash(clip.text)) for clip in clips]
        source = tuple(CLIP if key in whole else TRANSCRIPT if key in words else DEFAULT for key in keys)
        values = [whole.get(key, words.get(key, scale.default)) for key in keys]
        found[split] = Judgement(ids=tuple(clip.id for clip in clips), prediction=np.array(values), source=source)
    if all(source == DEFAULT for made in found.values() for source in made.source):
        raise DataError(f"{answers} holds no score of any clip of this corpus; ask for them first.")
    return found


def model_of(answers: Path) -> Plan:
    """The plan of the first question in a file of scores: model, prompt and settings. Raises ``DataError`` if there is none."""
    plans, _ = read_answers(answers)
    first = next((plan for plan in plans.values() if plan.stage in ("score", "class")), None)
    if first is None:
        raise DataError(f"{answers} holds no scores; ask for them first.")
    return first


def _scores(records: Sequence[Record], plan: str) -> dict[tuple[str, str], float]:
    """(clip, hash of its transcript) -> the last usable score."""
    return {
        (record.clip, record.text): float(record.parsed["score"])
        for record in records
        if record.plan == plan and record.parsed is not None
    }


def sources(found: Mapping[str, Judgement]) -> dict[str, dict[str, int]]:
    """Split -> how many predictions come from the clip, from the transcript alone, and from the default."""
    return {split: dict(Counter(made.source)) for split, made in found.items()}
