"""A prepared corpus with something missing: its stored steps are degraded, and all that a method reads is derived again.

So a statistic of a clip, or a sentence measured from it, knows no more than what is left of the clip. How values are
standardised stays as the clean training split has it.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np

from moodal.core.errors import DataError
from moodal.core.files import plain
from moodal.core.settings import MissingData, RunConfig, StreamData
from moodal.core.spec import MODALITIES, Modality, Needs
from moodal.data.corpus import SPLITS, RawCorpus
from moodal.data.degrade import KINDS, Damaged, Degradation, Rows
from moodal.data.ragged import Ragged
from moodal.data.split import Split
from moodal.data.transforms import Standardise, Transform, pooled
from moodal.derive import Derivation, Derived, Progress, explained, reads_measured, settings_of
from moodal.explain.measured import MeasuredExplainer
from moodal.explain.voice import measure
from moodal.prepare import Prepared, cache_folder, make_split


def with_missing(
    raw: RawCorpus, cfg: RunConfig, needs: Needs, data: Prepared, progress: Progress | None = None
) -> Prepared:
    """``data``, prepared from ``raw``, as ``cfg.data.missing`` leaves it: the very same at rate 0.

    Training, validation and test are degraded alike. A method that needs the degraded view beside the complete one
    keeps its training split whole and gets the other as ``Batch.degraded``.
    """
    missing = cfg.data.missing
    if missing.rate == 0:
        return data
    degrader = Degrader(raw, cfg, needs, data, progress=progress)
    splits = {name: degrader(name, missing) for name in SPLITS}
    if needs.degraded:
        splits["train"] = replace(data.splits["train"], second=splits["train"])
    return replace(data, splits=splits, description={**data.description, "missing": plain(asdict(missing))})


class Degrader:
    """Makes degraded splits of a corpus, again and again at little cost.

    ``raw`` and ``data``: the corpus as read, and as prepared from it under ``cfg`` for a method with ``needs``.
    """

    def __init__(
        self,
        raw: RawCorpus,
        cfg: RunConfig,
        needs: Needs,
        data: Prepared,
        *,
        cache: Path | None = None,
        progress: Progress | None = None,
    ) -> None:
        self.raw, self.cfg, self.needs, self.data = raw, cfg, needs, data
        self.cache, self.progress = cache or cache_folder(), progress
        self.explainer = MeasuredExplainer.fit(raw) if reads_measured(cfg, needs) else None
        self.measures = tuple(measure(raw)) if cfg.data.audio.statistics else None
        self._units: dict[Modality, Standardise] = {}

    def __call__(self, split: str, missing: MissingData) -> Split:
        """The rows of ``split`` as ``missing`` leaves them; at rate 0 the very split that was prepared.

        Raises ``DataError`` where the corpus has nothing that could be degraded so.
        """
        if missing.rate == 0:
            return self.data.splits[split]
        part = _part(self.raw, split)
        damage = _Damage(self, missing, tuple(clip.id for clip in part.clips), split)
        streams = {name: damage.values(name, stream) for name, stream in part.streams.items()}
        left = explained(replace(part, streams=streams), self.cfg, self.needs, self.explainer)
        derivation = Derivation(
            cfg=self.cfg, needs=self.needs, cache=self.cache, stored=self.data.description, progress=self.progress,
            change=damage.tokens,
        )  # fmt: skip
        derived = derivation(left, measures=self.measures)
        clean = self.data.splits[split]
        made = make_split(left, split, derived, clean.transforms)
        nothing = {role: _emptied(stream) for role, stream in clean.explanations.items()}  # where none is left to tell
        words = None if "text" in damage.chosen else made.words
        return replace(
            made, words=words, explanations={**nothing, **made.explanations}, observed=damage.observed(derived)
        )

    def unit(self, name: Modality) -> Standardise:
        """How the stored values of a stream vary over the training split, whatever a method does to them."""
        if name not in self._units:
            self._units[name] = Standardise.fit(self.raw.streams[name].select(self.raw.positions("train")).values)
        return self._units[name]


@dataclass
class _Damage:
    """One degradation of the clips ``ids``, and which of their steps it left as they were."""

    maker: Degrader
    missing: MissingData
    ids: tuple[str, ...]
    split: str
    left: dict[Modality, Ragged] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.kind: Degradation = KINDS[self.missing.kind]
        self.chosen = chosen_streams(self.maker.raw, self.maker.cfg, self.missing)

    def values(self, name: Modality, stream: Ragged) -> Ragged:
        """What is left of the vectors of a stream."""
        maker = self.maker
        if name not in self.chosen or (name == "text" and _has_tokens(maker.cfg)):
            return stream
        unit = maker.unit(name) if self.kind.scaled else None
        rows = Rows(
            modality=name, split=self.split, ids=self.ids, steps=int(maker.raw.streams[name].lengths.max()),
            blank=self._blank(name), mean=None if unit is None else unit.mean.numpy(),
            deviation=None if unit is None else unit.deviation.numpy(),
        )  # fmt: skip
        return self._noted(name, self._apply(stream, rows))

    def tokens(self, name: Modality, ids: Ragged) -> Ragged:
        """What is left of the tokens of the text, or of the explanation about ``name``."""
        if name not in self.chosen or not self.kind.tokens:
            return ids
        from moodal.features.text import unknown_id  # transformers is optional

        text, config = self.maker.cfg.data.text, self.maker.data.description["text"].get("config")
        unknown = unknown_id(text.encoder, config)
        damaged = self._apply(
            ids, Rows(modality=name, split=self.split, ids=self.ids, steps=text.max_tokens, blank=unknown)
        )
        return self._noted(name, damaged) if name == "text" else damaged.stream

    def observed(self, derived: Derived) -> dict[Modality, Ragged]:
        """Of each stream the method reads one bool a step: False where any frame that it is made of was touched."""
        data, found = self.maker.cfg.data, {}
        for name, stream in derived.streams.items():
            if name not in self.left:
                found[name] = Ragged(np.ones(len(stream.values), dtype=bool), stream.offsets)
            elif name == "text":
                found[name] = self.left[name].truncated(data.text.max_tokens)
            else:
                found[name] = _untouched(self.left[name], settings_of(data)[name])
        return found

    def _blank(self, name: Modality) -> np.ndarray:
        """The stored vector that a method sees as zeros; for streams it does not read, the mean."""
        if name == "text":
            return np.zeros(self.maker.raw.streams[name].width)
        transform = self.maker.data.splits[self.split].transforms.get(name)
        if transform is None:
            return self.maker.unit(name).mean.numpy()
        return _zero(transform, settings_of(self.maker.cfg.data)[name])

    def _apply(self, stream: Ragged, rows: Rows) -> Damaged:
        return self.kind(stream, rows, rate=self.missing.rate, seed=self.missing.seed)

    def _noted(self, name: Modality, damaged: Damaged) -> Ragged:
        self.left[name] = Ragged(damaged.observed, damaged.stream.offsets)
        return damaged.stream


def chosen_streams(raw: RawCorpus, cfg: RunConfig, missing: MissingData) -> tuple[Modality, ...]:
    """The streams that ``missing`` happens to. Raises ``DataError`` where one cannot be degraded so, or none is there."""
    kind, name = KINDS[missing.kind], raw.facts.name
    there = [m for m in MODALITIES if _is_there(raw, cfg, m)]
    absent = [m for m in missing.modalities if m not in there]
    if absent:
        raise DataError(
            f"{name} has no {' and no '.join(absent)}, so {kind.name} cannot happen to it; it has {', '.join(there)}."
        )
    asked = missing.modalities or tuple(m for m in kind.modalities if m in there)
    if not asked:
        raise DataError(
            f"{kind.name} is meant for {' and '.join(kind.modalities)}, which {name} does not have; "
            f"name another of its streams ({', '.join(there)}) in modalities, or choose another kind."
        )
    if "text" in asked and _has_tokens(cfg) and not kind.tokens:
        raise DataError(
            f"{kind.name} changes values, and the text of {name} is made of tokens here; "
            "name audio or vision in modalities, or choose frames, modality or block."
        )
    if kind.needs_steps and all(int(raw.streams[m].lengths.max(initial=0)) <= 1 for m in asked):
        raise DataError(
            f"{' and '.join(asked)} of {name} is one step a clip, so {kind.name} changes nothing in it; "
            "choose frames, modality or noise."
        )
    return asked


def _is_there(raw: RawCorpus, cfg: RunConfig, name: Modality) -> bool:
    """Whether the corpus has a stream of that name that can be degraded; pictures cannot."""
    if name == "text" and cfg.data.text.mode in ("frozen", "finetune"):
        return any(clip.text.strip() for clip in raw.clips)
    if name == "text" and cfg.data.text.mode == "tokens":
        return "text" in raw.tokens
    return name in raw.streams and not raw.streams[name].pictures


def _has_tokens(cfg: RunConfig) -> bool:
    return cfg.data.text.mode != "features"


def _part(raw: RawCorpus, split: str) -> RawCorpus:
    """The clips of one split alone."""
    where = raw.positions(split)
    return replace(
        raw,
        clips=tuple(raw.clips[row] for row in where),
        streams={name: stream.select(where) for name, stream in raw.streams.items()},
        tokens={name: stream.select(where) for name, stream in raw.tokens.items()},
        columns={name: column[where] for name, column in raw.columns.items()},
    )


def _emptied(stream: Ragged) -> Ragged:
    """As many rows, without a step."""
    return Ragged(stream.values[:0], np.zeros(len(stream) + 1, dtype=np.int64))


def _zero(transform: Transform, setting: StreamData) -> np.ndarray:
    """The stored vector that rooting and standardisation turn into zeros."""
    if transform.steps is None:
        return np.zeros(transform.width)
    mean = transform.steps.mean.numpy()
    return np.sign(mean) * mean**2 if setting.root else mean


def _untouched(frames: Ragged, setting: StreamData) -> Ragged:
    """Frames that are as they were -> steps all of whose frames are."""
    shares = pooled(Ragged(frames.values[:, None].astype(np.float32), frames.offsets), setting.pool)
    return Ragged(shares.values[:, 0] == 1.0, shares.offsets).truncated(setting.limit)
