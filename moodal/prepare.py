"""From a corpus as read to splits that a method can train on: explanations, text, pooling, standardisation."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence, Sized
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from moodal.core.batch import Target
from moodal.core.errors import DataError
from moodal.core.files import plain
from moodal.core.settings import RunConfig
from moodal.core.spec import (
    ROLES,
    Classification,
    DataSpec,
    Identification,
    Modality,
    Needs,
    Regression,
    StreamSpec,
    Task,
)
from moodal.data import CORPORA
from moodal.data.corpus import SPLITS, Clip, CorpusFacts, RawCorpus
from moodal.data.ragged import Ragged
from moodal.data.split import Split
from moodal.data.transforms import Transform, fit, verify_width
from moodal.derive import Derivation, Derived, Progress, explained, settings_of
from moodal.explain.measured import MeasuredExplainer
from moodal.explain.voice import measure


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A corpus as a method sees it, and what a run must remember of it (``description``, the content of data.json)."""

    facts: CorpusFacts
    spec: DataSpec
    splits: Mapping[str, Split]
    clips: Mapping[str, tuple[Clip, ...]]
    description: Mapping[str, Any]


def cache_folder() -> Path:
    """Where states and features that are expensive to make are kept: ``$MOODAL_CACHE`` or ~/.cache/moodal."""
    return Path(os.environ.get("MOODAL_CACHE") or Path.home() / ".cache" / "moodal")


def read_corpus(cfg: RunConfig, *, cache: Path | None = None) -> RawCorpus:
    """The corpus named by ``cfg`` as its reader gives it."""
    root = None if cfg.data.root is None else Path(cfg.data.root).expanduser()
    raw: RawCorpus = CORPORA[cfg.corpus].read(root, cfg.reader, cache or cache_folder())
    _verify(raw)
    return raw


def _verify(raw: RawCorpus) -> None:
    """Every split has clips; every stream has a row for each clip."""
    for split in SPLITS:
        if not len(raw.positions(split)):
            raise DataError(
                f"{raw.facts.name}: the {split} split is empty; training needs clips in train, valid and test."
            )
    by_row: list[tuple[str, Sized]] = [*raw.streams.items(), *raw.tokens.items(), *raw.columns.items()]
    for name, rows in by_row:
        if len(rows) != len(raw.clips):
            raise DataError(
                f"{raw.facts.name}: {name} has {len(rows)} rows for {len(raw.clips)} clips; import it again."
            )


def prepare(
    raw: RawCorpus,
    cfg: RunConfig,
    needs: Needs,
    *,
    stored: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
    cache: Path | None = None,
) -> Prepared:
    """Make splits of what ``needs`` asks for.

    ``stored``: the data.json of a run whose statistics, explainer and measures are used instead of new ones, and whose
    feature recipe the data must match (``DataError`` naming the difference otherwise).
    """
    explainer = _explainer(raw, cfg, stored)
    raw = explained(raw, cfg, needs, explainer)
    measures = _measures(raw, cfg, stored)
    derivation = Derivation(cfg=cfg, needs=needs, cache=cache or cache_folder(), stored=stored, progress=progress)
    derived = derivation(raw, measures=measures)
    described = _describe(raw, cfg, tuple(derived.streams), derived.facts)
    if stored is not None:
        verify_same_recipe(stored, described)
    transforms = _transforms(raw, derived, cfg, stored)
    description = {
        **described,
        "reads": {"streams": list(derived.streams), "explanations": list(derived.explanations)},
        "measured": None if explainer is None else explainer.state(),
        "measures": None if measures is None else list(measures),
        "transforms": {name: t.state() for name, t in transforms.items()},
    }
    splits = {name: make_split(raw, name, derived, transforms) for name in SPLITS}
    spec = _spec(raw, cfg, derived, transforms)
    clips = {name: tuple(raw.clips[i] for i in raw.positions(name)) for name in SPLITS}
    return Prepared(facts=raw.facts, spec=spec, splits=splits, clips=clips, description=description)


def _explainer(raw: RawCorpus, cfg: RunConfig, stored: Mapping[str, Any] | None) -> MeasuredExplainer | None:
    """The explainer of the run, or one fitted on ``raw``; None where nothing is to be measured.

    A method that reads no explanation has one too: whoever predicts with the run wants to be told why.
    """
    if cfg.data.explainer != "measured":
        return None
    state = None if stored is None else stored.get("measured")  # runs of earlier versions have none
    return MeasuredExplainer.fit(raw) if state is None else MeasuredExplainer.from_state(state)


def _measures(raw: RawCorpus, cfg: RunConfig, stored: Mapping[str, Any] | None) -> tuple[str, ...] | None:
    """Names of the measures of the voice among the clip statistics, in their order; None where these are not used."""
    if not cfg.data.audio.statistics:
        return None
    known = None if stored is None else stored.get("measures")
    return tuple(measure(raw)) if known is None else tuple(known)


def _describe(
    raw: RawCorpus, cfg: RunConfig, modalities: Sequence[Modality], text: Mapping[str, Any]
) -> dict[str, Any]:
    """The content of data.json: what a number measured on these data depends on."""
    features = {}
    for name in ("audio", "vision"):
        if name in modalities:
            features[name] = asdict(raw.recipes[name]) | {
                "processing": asdict(cfg.data.audio if name == "audio" else cfg.data.vision)
            }
    by = {role: sorted({clip.explained_by[role] for clip in raw.clips if role in clip.explained_by}) for role in ROLES}
    return plain(
        {
            "corpus": raw.facts.name, "title": raw.facts.title, "language": raw.facts.language,
            "task": task_facts(raw.facts.task),
            "protocol": raw.facts.protocol, "sizes": {name: len(raw.positions(name)) for name in SPLITS},
            "features": features, "text": dict(text), "explainer": {role: ", ".join(names) for role, names in by.items() if names},
            "source": dict(raw.source),
        }
    )  # fmt: skip


def task_facts(task: Task) -> dict[str, Any]:
    """A task as plain values."""
    if isinstance(task, Classification):
        return {"kind": "classification", "classes": list(task.classes)}
    if isinstance(task, Identification):
        return {"kind": "identification", "identities": task.identities}
    return {"kind": "regression", "low": task.low, "high": task.high}


def verify_same_recipe(stored: Mapping[str, Any], given: Mapping[str, Any], *, also: Sequence[str] = ()) -> None:
    """Raise ``DataError`` naming every difference between the features of a run and those given now.

    ``also``: further parts of the description that must agree, such as "source" (checksums) for a run to go on.
    """
    differences: list[str] = []
    for part in ("corpus", "task", "features", "text", *also):
        differences += _differences(part, stored.get(part), given.get(part))
    if differences:
        raise DataError(
            f"the run was made with other data: {'; '.join(differences)}. "
            "Give data of the run's own recipe, or train a new run."
        )


def _differences(path: str, ours: Any, theirs: Any) -> list[str]:
    """What a run recorded and these data do not match; of features, also modalities the run did not have."""
    if isinstance(ours, Mapping) and isinstance(theirs, Mapping):
        known = {**ours, **theirs} if path == "features" else ours
        keys = [key for key in known if key not in ("config", "channels")]
        return [line for key in keys for line in _differences(f"{path}.{key}", ours.get(key), theirs.get(key))]
    return [] if ours == theirs else [f"{path} was {ours!r} and is {theirs!r}"]


def _transforms(
    raw: RawCorpus, derived: Derived, cfg: RunConfig, stored: Mapping[str, Any] | None
) -> dict[Modality, Transform]:
    """What is done to audio and vision: fitted on the training split, or as a run remembers it."""
    train, transforms = raw.positions("train"), {}
    for name, setting in settings_of(cfg.data).items():
        stream = derived.streams.get(name)
        if stream is None or stream.pictures:
            continue
        state = None if stored is None else stored["transforms"].get(name)
        if state is not None:
            transforms[name] = Transform.from_state(state)
            verify_width(transforms[name], name, stream.width)
        elif stored is None:
            numbers = derived.statistics[name][train] if name in derived.statistics else None
            transforms[name] = fit(stream.select(train), setting, numbers)
    return transforms


def make_split(raw: RawCorpus, name: str, derived: Derived, transforms: Mapping[Modality, Transform]) -> Split:
    """The split ``name`` of what was derived from ``raw``."""
    where = raw.positions(name)
    clips = [raw.clips[i] for i in where]
    return Split(
        ids=tuple(clip.id for clip in clips),
        streams={m: stream.select(where) for m, stream in derived.streams.items()},
        explanations={role: stream.select(where) for role, stream in derived.explanations.items()},
        target=_target(clips, raw.facts.task),
        words=tuple(clip.text for clip in clips),
        transforms=transforms,
        statistics={m: torch.from_numpy(numbers[where]) for m, numbers in derived.statistics.items()},
        columns={name: torch.from_numpy(column[where]) for name, column in raw.columns.items()},
    )


def _target(clips: Sequence[Clip], task: Task) -> Target:
    valid = np.array([clip.label is not None for clip in clips])
    values = np.array([0.0 if clip.label is None else clip.label for clip in clips])
    kind = np.float32 if isinstance(task, Regression) else np.int64
    return Target(torch.from_numpy(values.astype(kind)), torch.from_numpy(valid))


def _spec(raw: RawCorpus, cfg: RunConfig, derived: Derived, transforms: Mapping[Modality, Transform]) -> DataSpec:
    tokens, text = cfg.data.text.mode in ("finetune", "tokens"), derived.facts

    def written(stream: Ragged) -> StreamSpec:
        if tokens:
            return StreamSpec("tokens", int(text["width"]), str(text["encoder"]))
        return StreamSpec("features", stream.width)

    specs: dict[Modality, StreamSpec] = {}
    for name, stream in derived.streams.items():
        if name == "text":
            specs[name] = written(stream)
        elif stream.pictures:
            specs[name] = StreamSpec("pictures", stream.width)
        else:
            specs[name] = StreamSpec("features", transforms[name].out if name in transforms else stream.width)
    return DataSpec(
        streams=specs,
        task=raw.facts.task,
        explanations={role: written(stream) for role, stream in derived.explanations.items()},
        size={name: len(raw.positions(name)) for name in SPLITS},
    )


def from_checkpoint(spec: DataSpec, description: Mapping[str, Any]) -> DataSpec:
    """``spec`` with the encoder's configuration, so that it is built without pretrained weights."""
    config = description["text"].get("config")

    def built(stream: StreamSpec) -> StreamSpec:
        return replace(stream, config=config) if stream.kind == "tokens" else stream

    return replace(
        spec,
        streams={name: built(stream) for name, stream in spec.streams.items()},
        explanations={role: built(stream) for role, stream in spec.explanations.items()},
    )
