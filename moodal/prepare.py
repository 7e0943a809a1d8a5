"""From a corpus as read to splits that a method can train on: explanations, text, pooling, standardisation."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from moodal.core.batch import Target
from moodal.core.errors import DataError
from moodal.core.files import plain
from moodal.core.settings import RunConfig, StreamData
from moodal.core.spec import ROLES, Classification, DataSpec, Modality, Needs, Role, StreamSpec, Task
from moodal.data import CORPORA
from moodal.data.corpus import SPLITS, Clip, CorpusFacts, RawCorpus
from moodal.data.ragged import Ragged
from moodal.data.split import Split
from moodal.data.transforms import Transform, clip_statistics, fit, pooled, rooted, verify_width

#: Between the transcript and the overall comment (text.md: "text residual").
JOIN = " | "

#: Called with (done, to do) while something slow is made.
Progress = Callable[[int, int], None]


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
    for name, stream in [*raw.streams.items(), *raw.tokens.items()]:
        if len(stream) != len(raw.clips):
            raise DataError(
                f"{raw.facts.name}: {name} has {len(stream)} rows for {len(raw.clips)} clips; import it again."
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

    ``stored``: the data.json of a run whose statistics are used instead of new ones, and whose feature recipe the
    data must match (``DataError`` naming the difference otherwise).
    """
    raw = _explained(raw, cfg, needs)
    text, explanations, text_facts = _text_streams(raw, cfg, needs, cache or cache_folder(), progress, stored)
    raw_streams: dict[Modality, Ragged] = {}
    if text is not None:
        raw_streams["text"] = text
    settings: dict[Modality, StreamData] = {"audio": cfg.data.audio, "vision": cfg.data.vision}
    for name, setting in settings.items():
        if name in needs.modalities and name in raw.streams:
            stream = rooted(raw.streams[name]) if setting.root else raw.streams[name]
            raw_streams[name] = pooled(stream, setting.pool).truncated(setting.limit)
    described = _describe(raw, cfg, tuple(raw_streams), text_facts)
    if stored is not None:
        verify_same_recipe(stored, described)
    statistics = _statistics(raw, raw_streams, settings)
    transforms = _transforms(raw, raw_streams, settings, statistics, stored)
    description = {**described, "transforms": {name: t.state() for name, t in transforms.items()}}
    splits = {name: _split(raw, name, raw_streams, explanations, transforms, statistics) for name in SPLITS}
    spec = _spec(raw, cfg, raw_streams, explanations, transforms, text_facts)
    clips = {name: tuple(raw.clips[i] for i in raw.positions(name)) for name in SPLITS}
    return Prepared(facts=raw.facts, spec=spec, splits=splits, clips=clips, description=description)


def _explained(raw: RawCorpus, cfg: RunConfig, needs: Needs) -> RawCorpus:
    """Fill absent explanations with measured ones, if the method reads any."""
    if cfg.data.explainer == "stored" or not (needs.explanations or needs.comment):
        return raw
    from moodal.explain.measured import explain_corpus

    return explain_corpus(raw)


def _text_streams(
    raw: RawCorpus,
    cfg: RunConfig,
    needs: Needs,
    cache: Path,
    progress: Progress | None,
    stored: Mapping[str, Any] | None,
) -> tuple[Ragged | None, dict[Role, Ragged], dict[str, Any]]:
    """The text stream, the explanation streams, and what to remember of how they were made."""
    mode, encoder, limit = cfg.data.text.mode, cfg.data.text.encoder, cfg.data.text.max_tokens
    reads_text = "text" in needs.modalities
    texts = _texts(raw, needs) if reads_text else None
    said: dict[Role, list[str]] = {
        role: [clip.explanations.get(role, "") for clip in raw.clips] for role in needs.explanations
    }
    said = {role: lines for role, lines in said.items() if any(lines)}
    if mode == "tokens":
        return _stored_tokens(raw, cfg, needs, stored)
    from moodal.features.text import encode_frozen, tokenise

    def make(lines: Sequence[str]) -> Ragged:
        if mode == "finetune":
            return tokenise(lines, encoder, limit)
        return encode_frozen(lines, encoder, limit, cache / "text", progress)

    facts: dict[str, Any] = {"mode": mode, "max_tokens": limit, "comment": needs.comment}
    text: Ragged | None = None
    if reads_text and mode == "features":
        if "text" not in raw.streams:
            raise DataError(
                f"{raw.facts.name} stores no text features; set data.text.mode to frozen or finetune, which encode its raw text."
            )
        text = raw.streams["text"].truncated(limit)
        facts["features"] = asdict(raw.recipes["text"])
    elif texts is not None and any(texts):
        text = make(texts)
    explanations = {role: make(lines) for role, lines in said.items()}
    if explanations or (text is not None and mode != "features"):
        facts |= _encoder_facts(encoder)
    return text, explanations, facts


def _encoder_facts(encoder: str) -> dict[str, Any]:
    from moodal.layers.pretrained import resolve

    found = resolve(encoder)
    return {
        "encoder": found.name, "revision": found.revision, "tokenizer": found.tokenizer, "width": found.width,
        "config": dict(found.config),
    }  # fmt: skip


def _texts(raw: RawCorpus, needs: Needs) -> list[str]:
    """Transcripts, each followed by its overall comment where the method reads one."""
    if not needs.comment:
        return [clip.text for clip in raw.clips]
    return [JOIN.join(part for part in (clip.text, clip.explanations.get("comment", "")) if part) for clip in raw.clips]


def _stored_tokens(
    raw: RawCorpus, cfg: RunConfig, needs: Needs, stored: Mapping[str, Any] | None
) -> tuple[Ragged | None, dict[Role, Ragged], dict[str, Any]]:
    """Token ids that came with the corpus; the encoder must know all of them.

    A run holds its encoder, so a stored run needs none to be found.
    """
    limit = cfg.data.text.max_tokens
    if "text" not in raw.tokens:
        raise DataError(
            f"{raw.facts.name} stores no token ids; set data.text.mode to finetune, which tokenises its raw text."
        )
    encoder = _encoder_facts(cfg.data.text.encoder) if stored is None else dict(stored["text"])
    facts = {**encoder, "mode": "tokens", "max_tokens": limit, "comment": False}
    vocabulary = int(facts["config"].get("vocab_size", 0))
    largest = max(int(ids.values.max(initial=0)) for ids in raw.tokens.values())
    if vocabulary and largest >= vocabulary:
        raise DataError(
            f"text was tokenised with ids up to {largest} and {cfg.data.text.encoder} knows {vocabulary}; "
            "set data.text.encoder to the encoder it was made for."
        )
    roles: dict[Role, Ragged] = {
        role: raw.tokens[role].truncated(limit) for role in needs.explanations if role in raw.tokens
    }
    text = raw.tokens["text"].truncated(limit) if "text" in needs.modalities else None
    return text, roles, facts


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


def _statistics(
    raw: RawCorpus, streams: Mapping[Modality, Ragged], settings: Mapping[Modality, StreamData]
) -> dict[Modality, np.ndarray]:
    """Clip statistics (N, K) of the streams that want them.

    Those of the voice include what the explainer measures of it (pitch, its movement, pauses, ...), 0 where it cannot.
    """
    found: dict[Modality, np.ndarray] = {}
    for name, setting in settings.items():
        if name in streams and setting.statistics:
            found[name] = clip_statistics(raw.streams[name], streams[name], raw.recipes[name].channels)
    if "audio" in found:
        from moodal.explain.voice import measure

        measured = [np.nan_to_num(values).astype(np.float32) for values in measure(raw).values()]
        found["audio"] = np.column_stack([found["audio"], *measured])
    return found


def _transforms(
    raw: RawCorpus,
    streams: Mapping[Modality, Ragged],
    settings: Mapping[Modality, StreamData],
    statistics: Mapping[Modality, np.ndarray],
    stored: Mapping[str, Any] | None,
) -> dict[Modality, Transform]:
    """What is done to audio and vision: fitted on the training split, or as a run remembers it."""
    train, transforms = raw.positions("train"), {}
    for name, setting in settings.items():
        if name not in streams:
            continue
        state = None if stored is None else stored["transforms"].get(name)
        if state is not None:
            transforms[name] = Transform.from_state(state)
            verify_width(transforms[name], name, streams[name].width)
        elif stored is None:
            numbers = statistics[name][train] if name in statistics else None
            transforms[name] = fit(streams[name].select(train), setting, numbers)
    return transforms


def _split(
    raw: RawCorpus,
    name: str,
    streams: Mapping[Modality, Ragged],
    explanations: Mapping[Role, Ragged],
    transforms: Mapping[Modality, Transform],
    statistics: Mapping[Modality, np.ndarray],
) -> Split:
    where = raw.positions(name)
    clips = [raw.clips[i] for i in where]
    return Split(
        ids=tuple(clip.id for clip in clips),
        streams={m: stream.select(where) for m, stream in streams.items()},
        explanations={role: stream.select(where) for role, stream in explanations.items()},
        target=_target(clips, raw.facts.task),
        words=tuple(clip.text for clip in clips),
        transforms=transforms,
        statistics={m: torch.from_numpy(numbers[where]) for m, numbers in statistics.items()},
    )


def _target(clips: Sequence[Clip], task: Task) -> Target:
    valid = np.array([clip.label is not None for clip in clips])
    values = np.array([0.0 if clip.label is None else clip.label for clip in clips])
    kind = np.int64 if isinstance(task, Classification) else np.float32
    return Target(torch.from_numpy(values.astype(kind)), torch.from_numpy(valid))


def _spec(
    raw: RawCorpus,
    cfg: RunConfig,
    streams: Mapping[Modality, Ragged],
    explanations: Mapping[Role, Ragged],
    transforms: Mapping[Modality, Transform],
    text: Mapping[str, Any],
) -> DataSpec:
    tokens = cfg.data.text.mode in ("finetune", "tokens")

    def written(stream: Ragged) -> StreamSpec:
        if tokens:
            return StreamSpec("tokens", int(text["width"]), str(text["encoder"]))
        return StreamSpec("features", stream.width)

    specs: dict[Modality, StreamSpec] = {}
    for name, stream in streams.items():
        if name == "text":
            specs[name] = written(stream)
        else:
            specs[name] = StreamSpec("features", transforms[name].out if name in transforms else stream.width)
    return DataSpec(
        streams=specs,
        task=raw.facts.task,
        explanations={role: written(stream) for role, stream in explanations.items()},
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
