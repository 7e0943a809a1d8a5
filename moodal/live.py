"""Clips of the moment as a stored run reads them: the way of ``prepare``, with all that is fitted taken from the run.

Nothing is written to disk, and the text encoder stays in memory between calls.

Shapes: N clips, T steps or tokens, D width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from moodal.core.errors import DataError, check
from moodal.core.spec import MODALITIES, ROLES, Modality, Role
from moodal.core.stopwatch import Stopwatch
from moodal.data import CORPORA
from moodal.data.corpus import FeatureRecipe, RawCorpus
from moodal.data.ragged import Ragged
from moodal.data.split import Split
from moodal.data.store import task_from_json
from moodal.data.transforms import Transform, verify_width
from moodal.derive import Derived, about, reads_measured, settings_of, signals, statistics, transcripts
from moodal.explain.measured import MeasuredExplainer, explain_corpus
from moodal.explain.voice import step_seconds
from moodal.features.clip import ExtractedClip, to_corpus
from moodal.features.text import tokenise
from moodal.layers.pretrained import EncoderFacts, TextEncoder, resolve
from moodal.methods import METHODS
from moodal.prepare import make_split
from moodal.pretrained import SavedRun

#: Texts that go through the frozen encoder at once.
_TEXTS = 64


@dataclass(frozen=True, kw_only=True)
class Live:
    """N clips as rows: ``present``: modality -> (N,) bool, whether the clip has it; ``explanations`` and ``notes`` of
    each."""

    split: Split
    present: Mapping[Modality, np.ndarray]
    explanations: Sequence[Mapping[Role, str]]
    notes: Sequence[tuple[str, ...]]

    def versions(self, wanted: Sequence[tuple[int, Modality | None]]) -> Split:
        """A row for each of ``wanted``: the clip at that place, without that modality and what was said about it."""
        split, rows = self.split, np.array([row for row, _ in wanted], dtype=np.int64)
        words = split.words or ("",) * len(split)

        def left(stream: Ragged, modality: Modality) -> Ragged:
            return _emptied(stream.select(rows), np.array([gone == modality for _, gone in wanted]))

        return Split(
            ids=tuple(split.ids[row] for row in rows),
            streams={m: left(stream, m) for m, stream in split.streams.items()},
            explanations={role: left(stream, about(role)) for role, stream in split.explanations.items()},
            words=tuple("" if gone == "text" else words[row] for row, gone in wanted),
            transforms=split.transforms,
            statistics={m: numbers[torch.from_numpy(rows)] for m, numbers in split.statistics.items()},
        )


class LiveData:
    """What turns clips into rows of ``run``. ``encoder``: where its text encoder is, if not where it was in training."""

    def __init__(self, run: SavedRun, *, encoder: str | None, device: torch.device) -> None:
        self.run, data = run, run.data
        self.needs = METHODS[run.cfg.method].needs(run.cfg.model)
        self.streams: tuple[Modality, ...] = tuple(data["reads"]["streams"])
        self.roles: tuple[Role, ...] = tuple(data["reads"]["explanations"])
        told = {about(role) for role in self.roles}
        self.modalities: tuple[Modality, ...] = tuple(m for m in MODALITIES if m in self.streams or m in told)
        self.recipes = _recipes(data)
        self.transforms: dict[Modality, Transform] = {
            name: Transform.from_state(state) for name, state in data["transforms"].items()
        }
        for name, transform in self.transforms.items():
            verify_width(transform, name, self.recipes[name].width)
        self.measures_told = reads_measured(run.cfg, self.needs)
        state = data.get("measured")
        self.explainer = None if state is None else MeasuredExplainer.from_state(state)
        self.facts = replace(
            CORPORA[run.cfg.corpus].facts, task=task_from_json(data["task"]), title=data["title"], language=data["language"]
        )  # fmt: skip
        self.encoded = bool(self.roles) or ("text" in self.streams and "text" not in self.recipes)
        self.texts = Texts(run, encoder=encoder, device=device) if self.encoded else None

    @property
    def wanted(self) -> tuple[Modality, ...]:
        """What must be made of a file: what the run reads, and the words where explanations tell of them."""
        words = "text" in self.modalities or bool(self.roles)
        return tuple(m for m in MODALITIES if m in self.recipes or (m == "text" and words))

    def __call__(
        self, clips: Sequence[ExtractedClip], told: Sequence[Mapping[Role, str]], watch: Stopwatch
    ) -> Live:  # fmt: skip
        """``clips`` as rows; ``told``: explanations given with each, by role. Time by stage is added to ``watch``."""
        for clip, given in zip(clips, told, strict=True):
            self._verify(clip)
            unknown = sorted(set(given) - set(ROLES))
            check(not unknown, f"{clip.id}: {', '.join(unknown)} is no explanation; they are {', '.join(ROLES)}.")
        raw = self._corpus(clips, told)
        with watch.timed("explain"):
            shown = raw if self.explainer is None else explain_corpus(raw, self.explainer)
        read = shown if self.measures_told else raw
        derived = self._derived(read, watch)
        split = make_split(read, "test", derived, self.transforms)
        return Live(
            split=split,
            present={m: self._present(m, derived) for m in self.modalities},
            explanations=[clip.explanations for clip in shown.clips],
            notes=[self._notes(clip, row, derived) for row, clip in enumerate(clips)],
        )

    def _verify(self, clip: ExtractedClip) -> None:
        """Raise ``DataError`` unless the clip's streams are (T, D) finite numbers, D as the run was trained on."""
        for modality, recipe in self.recipes.items():
            stream = clip.streams.get(modality)
            if stream is None:
                continue
            if stream.ndim != 2 or stream.shape[1] != recipe.width:
                raise DataError(
                    f"{clip.id}: {modality} has the shape {tuple(stream.shape)} and the run reads steps of {recipe.width} "
                    f"numbers ({recipe.name}); give features of the run's own recipe."
                )
            if not np.isfinite(stream).all():
                raise DataError(f"{clip.id}: {modality} holds numbers that are not finite; leave those steps out.")

    def _corpus(self, clips: Sequence[ExtractedClip], told: Sequence[Mapping[Role, str]]) -> RawCorpus:
        """The clips as a test split; what the run reads and none of them has is there as empty rows."""
        raw = to_corpus(clips, self.facts, self.recipes, splits=["test"] * len(clips), labels=[None] * len(clips))
        nothing = np.zeros(len(clips) + 1, np.int64)
        streams = {
            m: raw.streams.get(m, Ragged(np.zeros((0, recipe.width), np.float32), nothing))
            for m, recipe in self.recipes.items()
        }
        rows = tuple(replace(clip, explanations=dict(given)) for clip, given in zip(raw.clips, told, strict=True))
        return replace(raw, clips=rows, streams=streams, recipes=self.recipes)

    def _derived(self, raw: RawCorpus, watch: Stopwatch) -> Derived:
        """What the method reads, as ``derive.Derivation`` makes it, cut to what it has positions for."""
        data, most = self.run.cfg.data, self.run.cfg.model.longest
        streams: dict[Modality, Ragged] = {}
        explanations: dict[Role, Ragged] = {}
        with watch.timed("encode"):
            if "text" in self.recipes:
                streams["text"] = raw.streams["text"].truncated(data.text.max_tokens)
            elif "text" in self.streams and self.texts is not None:
                joined = bool(self.run.data["text"]["comment"])  # stored token ids came without the comment
                streams["text"] = self.texts(transcripts(raw, replace(self.needs, comment=joined)))
            if self.texts is not None:
                explanations = {
                    role: self.texts([clip.explanations.get(role, "") for clip in raw.clips]) for role in self.roles
                }
        streams |= signals(raw, data, self.needs)
        numbers = statistics(raw, streams, data, self.run.data.get("measures"))
        return Derived(
            streams={m: stream.truncated(most) for m, stream in streams.items()},
            explanations={role: stream.truncated(most) for role, stream in explanations.items()},
            statistics=numbers,
        )

    def _present(self, modality: Modality, derived: Derived) -> np.ndarray:
        """(N,) bool: whether there is a step of the modality, or, where the run is only told of it, a token."""
        if modality in derived.streams:
            return derived.streams[modality].lengths > 0
        told = [stream.lengths > 0 for role, stream in derived.explanations.items() if about(role) == modality]
        return np.any(told, axis=0)

    def _notes(self, clip: ExtractedClip, row: int, derived: Derived) -> tuple[str, ...]:
        """What of the clip was cut off, and what is as it was not in training."""
        notes = list(self.run.notes)
        for modality, setting in settings_of(self.run.cfg.data).items():
            if modality not in self.streams or modality not in clip.streams:
                continue
            steps, read = -(-len(clip.streams[modality]) // setting.pool), int(derived.streams[modality].lengths[row])
            if read < steps:
                second = step_seconds(self.recipes[modality])
                unit, size = ("steps", 1.0) if second is None else ("s", second * setting.pool)
                notes.append(
                    f"The run reads no more than {read * size:.1f} {unit} of the {modality}, and here are "
                    f"{steps * size:.1f}: the rest was left out; give a part of the clip."
                )
        most = self.run.cfg.data.text.max_tokens
        if "text" in self.streams and int(derived.streams["text"].lengths[row]) >= most:
            notes.append(f"The text fills all {most} tokens that the run reads; what may follow was left out.")
        told = [role for role in self.roles if int(derived.explanations[role].lengths[row])]
        if self.roles and not told and not self.measures_told:
            by = ", ".join(sorted(set(self.run.data.get("explainer", {}).values()))) or "its corpus"
            notes.append(f"The run was trained with explanations by {by}, and this clip has none; give them.")
        return tuple(notes)


class Texts:
    """Texts to what the method reads of them: token ids where its encoder is part of it, else states of a frozen one.

    Raises ``MoodalError`` where the encoder is not on this machine or is not the run's.
    """

    def __init__(self, run: SavedRun, *, encoder: str | None, device: torch.device) -> None:
        text = run.data["text"]
        name = encoder or str(text["encoder"])
        self.facts: EncoderFacts = resolve(name) if run.vocabulary is None else run.vocabulary
        self.device, self.max_tokens = device, int(text["max_tokens"])
        frozen = text["mode"] not in ("finetune", "tokens")
        same = self.facts.tokenizer == text["tokenizer"] and (not frozen or self.facts.revision == text["revision"])
        check(
            same,
            f"the run was trained with the text encoder {text['encoder']} ({text['revision']}), and {name} here is another "
            f"({self.facts.revision}); name a folder or hub repository that holds the run's own.",
        )
        self.model = TextEncoder(name).to(device).eval() if frozen else None

    def __call__(self, lines: Sequence[str]) -> Ragged:
        """One row a line, empty for an empty one: (T,) ids, or (T, D) float32 states."""
        ids = tokenise(lines, self.facts, self.max_tokens)
        return ids if self.model is None else self._states(ids, self.model)

    @torch.inference_mode()
    def _states(self, ids: Ragged, model: TextEncoder) -> Ragged:
        states = Ragged(np.zeros((len(ids.values), model.width), np.float32), ids.offsets)
        order = np.argsort(ids.lengths, kind="stable")
        order = order[ids.lengths[order] > 0]
        for start in range(0, len(order), _TEXTS):
            rows = order[start : start + _TEXTS]
            stream = ids.pad(rows)
            found = model(stream.data.to(self.device), stream.mask.to(self.device)).float().cpu().numpy()
            for place, row in enumerate(rows):
                states[row][:] = found[place, : ids.lengths[row]]
        return states


def _recipes(data: Mapping[str, Any]) -> dict[Modality, FeatureRecipe]:
    """How each stream of features that a run reads was made."""
    found: dict[Modality, FeatureRecipe] = {}
    for name in data["reads"]["streams"]:
        facts = data["text"].get("features") if name == "text" else data["features"][name]
        if facts is not None:
            found[name] = FeatureRecipe(
                name=facts["name"], version=facts["version"], width=int(facts["width"]),
                channels=tuple(facts["channels"]), settings=dict(facts["settings"]),
            )  # fmt: skip
    return found


def _emptied(stream: Ragged, gone: np.ndarray) -> Ragged:
    """``stream`` without the steps of the rows where ``gone`` ((N,) bool) holds."""
    kept = np.repeat(~gone, stream.lengths)
    offsets = np.concatenate([[0], np.cumsum(np.where(gone, 0, stream.lengths))]).astype(np.int64)
    return Ragged(stream.values[kept], offsets)
