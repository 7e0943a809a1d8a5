"""The two stages: a video model describes each clip, a reasoning model checks and refines what it said."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from moodal.core.errors import MoodalError
from moodal.core.spec import Regression, Role
from moodal.data.corpus import CorpusFacts
from moodal.explain.llm import prompts
from moodal.explain.llm.asking import Asked, Asker, Progress, Report, ask_about, plan_of
from moodal.explain.llm.material import ClipMaterial, measured_texts, quoted, show, store_clips
from moodal.explain.llm.question import Backend, Question
from moodal.explain.llm.schema import EXPLANATION, Explanation, parse_explanation
from moodal.explain.llm.settings import ExplainSettings
from moodal.features.clip import ClipExtractor, ClipSettings, ExtractedClip, to_corpus

#: Said of what was not measured.
_NOTHING = "(nothing)"


def explain_store(
    store: Path,
    *,
    settings: ExplainSettings,
    media: Path | None,
    out: Path,
    splits: Sequence[str] = (),
    progress: Progress | None = None,
) -> Report:
    """Ask about every clip of a corpus store (or of the given splits); answers are appended to the JSONL file ``out``.

    ``media``: the folder of the clips' files; None, or a clip without one: words and measurements alone are sent. What
    ``out`` already holds is not asked again. Raises ``DataError`` for a store or folder that cannot be read, ``Unreachable``
    for a wrong address, key or model; everything later is in the report.
    """
    clips = store_clips(store, media, splits)
    return explain_clips(clips, settings=settings, out=out, expects_media=media is not None, progress=progress)


def explain_clips(
    clips: Sequence[ClipMaterial],
    *,
    settings: ExplainSettings,
    out: Path,
    expects_media: bool = False,
    progress: Progress | None = None,
    found: dict[str, Explanation] | None = None,
) -> Report:
    """The same for clips of any source. ``expects_media``: report those without a file; ``found``: takes results by id."""
    stages = _Stages(settings, {} if found is None else found)
    return ask_about(
        clips, stages, models=stages.models, plans=stages.plans, settings=settings.ask, out=out,
        expects_media=expects_media, progress=progress,
    )  # fmt: skip


def explain_clip(
    clip: ExtractedClip | Path,
    settings: ExplainSettings,
    *,
    text: str | None = None,
    start: float = 0.0,
    end: float | None = None,
    measured: Mapping[Role, str] | None = None,
) -> dict[Role, str]:
    """The explanations of one clip by role; nothing is kept on disk.

    ``clip``: a file, of which words and voice are extracted first (``text``: its transcript, where it is known), or what
    was extracted of one. ``start``, ``end``: the part of the file. ``measured``: what a run's explainer says of it.
    Raises ``MoodalError`` with the reason where there is no answer.
    """
    if isinstance(clip, Path):
        extractor = ClipExtractor(ClipSettings(vision="none"))
        extracted = extractor(clip, text=text, start=start, end=end, modalities=("text", "audio"))
        measured = _measured(extracted, extractor) if measured is None else measured
    else:
        extracted = clip
    material = ClipMaterial(
        id=extracted.id, text=extracted.text, measured=measured or {}, start=start, end=end,
        media=Path(extracted.path) if extracted.path else None,
    )  # fmt: skip
    found: dict[str, Explanation] = {}
    with TemporaryDirectory(prefix="moodal-") as folder:
        report = explain_clips([material], settings=settings, out=Path(folder) / "answers.jsonl", found=found)
    if material.id not in found:
        raise MoodalError(report.stopped or f"{material.id} could not be explained: {report.failed[material.id]}.")
    return found[material.id].texts()


def _measured(clip: ExtractedClip, extractor: ClipExtractor) -> Mapping[Role, str]:
    """Numbers of the voice alone: there are no training clips to compare with."""
    facts = CorpusFacts(
        name="clip", title="one clip", language="en", task=Regression(-1, 1), protocol="mosi", source="", licence=""
    )
    return measured_texts(to_corpus([clip], facts, extractor.recipes, splits=["test"], labels=[None]))[0]


class _Stages:
    """One clip through both stages; its result also into ``found``."""

    def __init__(self, settings: ExplainSettings, found: dict[str, Explanation]) -> None:
        self.settings, self.found = settings, found
        filled = {"language": settings.ask.language}
        self.models = [settings.describe]
        self.plans = [plan_of("describe", settings.describe, filled=filled)]
        if settings.refine.model:
            self.models.append(settings.refine)
            self.plans.append(plan_of("refine", settings.refine, filled=filled, after=self.plans[0], whole=False))

    async def __call__(self, asker: Asker, backends: Sequence[Backend], clip: ClipMaterial) -> str:
        """ "" or why there is none: a description that could not be checked is no result."""
        said, fault = await asker.settle(backends[0], self.plans[0], clip, partial(self._describe, clip))
        if said is not None and len(self.plans) > 1:
            first = Explanation(**said)
            said, fault = await asker.settle(backends[1], self.plans[1], clip, partial(self._refine, clip, first))
        if said is not None:
            self.found[clip.id] = Explanation(**said)
        return fault

    def _describe(self, clip: ClipMaterial) -> Asked:
        shown = show(clip, self.settings.describe)
        system, user = prompts.load("describe").fill(**self._known(clip), shown=shown.told)
        return Asked(
            question=Question(system=system, parts=(*shown.parts, user), schema=EXPLANATION),
            parse=partial(_parsed, audio=shown.audio, vision=shown.vision),
            shown=shown.facts,
            notes=shown.notes,
        )

    def _refine(self, clip: ClipMaterial, first: Explanation) -> Asked:
        description = json.dumps(first.as_json(), ensure_ascii=False, indent=1)
        system, user = prompts.load("refine").fill(**self._known(clip), description=description)
        return Asked(
            question=Question(system=system, parts=(user,), schema=EXPLANATION),
            parse=partial(_parsed, audio=bool(first.audio), vision=bool(first.vision)),
        )

    def _known(self, clip: ClipMaterial) -> dict[str, str]:
        return {
            "text": quoted(clip.text),
            "audio": clip.measured.get("audio", _NOTHING),
            "vision": clip.measured.get("vision", _NOTHING),
            "language": self.settings.ask.language,
        }


def _parsed(answer: str, *, audio: bool, vision: bool) -> dict[str, str]:
    """The explanation in ``answer``, without what is said of a sound or a picture that the model knew nothing of."""
    found = parse_explanation(answer)
    return replace(found, audio=found.audio if audio else "", vision=found.vision if vision else "").as_json()
