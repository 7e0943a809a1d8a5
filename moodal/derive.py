"""From what a corpus stores to what a method reads: explanations, text, pooling, statistics of clips. No labels, no splits."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from moodal.core.errors import DataError
from moodal.core.settings import DataConfig, RunConfig, StreamData
from moodal.core.spec import Modality, Needs, Role
from moodal.data.corpus import RawCorpus
from moodal.data.ragged import Ragged
from moodal.data.transforms import clip_statistics, pooled, rooted
from moodal.explain.measured import MeasuredExplainer, explain_corpus
from moodal.explain.voice import measure

#: Between the transcript and the overall comment (text.md: "text residual").
JOIN = " | "

#: Called with (done, to do) while something slow is made.
Progress = Callable[[int, int], None]
#: (modality, its tokens, or those of the explanation about it) -> the tokens to use in their place.
ChangeTokens = Callable[[Modality, Ragged], Ragged]


@dataclass(frozen=True, kw_only=True)
class Derived:
    """What a method reads of the N clips of a corpus, before it is standardised; ``facts``: how the text was made."""

    streams: Mapping[Modality, Ragged]
    explanations: Mapping[Role, Ragged] = field(default_factory=dict)
    statistics: Mapping[Modality, np.ndarray] = field(default_factory=dict)  # (N, K) of each clip, where they are used
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Derivation:
    """How that is made: the run's settings, what its method needs, and the folder of what is slow to make.

    ``stored``: the data.json of a run, which knows its encoder; ``change``: of tokens, before they are encoded.
    """

    cfg: RunConfig
    needs: Needs
    cache: Path
    stored: Mapping[str, Any] | None = None
    progress: Progress | None = None
    change: ChangeTokens | None = None

    def __call__(self, raw: RawCorpus, *, measures: Sequence[str] | None = None) -> Derived:
        """What the method reads of the clips of ``raw``, which is explained already. ``measures``: see :func:`statistics`."""
        text, explanations, facts = self._text(raw)
        streams: dict[Modality, Ragged] = {} if text is None else {"text": text}
        streams |= signals(raw, self.cfg.data, self.needs)
        return Derived(
            streams=streams,
            explanations=explanations,
            statistics=statistics(raw, streams, self.cfg.data, measures),
            facts=facts,
        )

    def _text(self, raw: RawCorpus) -> tuple[Ragged | None, dict[Role, Ragged], dict[str, Any]]:
        """The text stream, the explanation streams, and what to remember of how they were made."""
        data, needs = self.cfg.data.text, self.needs
        reads_text = "text" in needs.modalities
        if data.mode == "tokens":
            return self._stored_tokens(raw)
        said: dict[Role, list[str]] = {
            role: [clip.explanations.get(role, "") for clip in raw.clips] for role in needs.explanations
        }
        said = {role: lines for role, lines in said.items() if any(lines)}
        facts: dict[str, Any] = {"mode": data.mode, "max_tokens": data.max_tokens, "comment": needs.comment}
        text: Ragged | None = None
        if reads_text and data.mode == "features":
            if "text" not in raw.streams:
                raise DataError(
                    f"{raw.facts.name} stores no text features; set data.text.mode to frozen or finetune, which encode its raw text."
                )
            text = raw.streams["text"].truncated(data.max_tokens)
            facts["features"] = asdict(raw.recipes["text"])
        elif reads_text and any(texts := transcripts(raw, needs)):
            text = self._encoded("text", texts)
        explanations = {role: self._encoded(about(role), lines) for role, lines in said.items()}
        if explanations or (text is not None and data.mode != "features"):
            facts |= _encoder_facts(data.encoder)
        return text, explanations, facts

    def _encoded(self, modality: Modality, lines: Sequence[str]) -> Ragged:
        """Token ids, or states of the frozen encoder, of one line a clip."""
        from moodal.features.text import encode_frozen, encode_tokens, tokenise  # transformers is optional

        data, cache = self.cfg.data.text, self.cache / "text"
        if data.mode == "finetune":
            return self._changed(modality, tokenise(lines, data.encoder, data.max_tokens))
        if self.change is not None:
            ids = tokenise(lines, data.encoder, data.max_tokens)
            changed = self.change(modality, ids)
            if changed is not ids:
                return encode_tokens(changed, data.encoder, cache, self.progress)
        return encode_frozen(lines, data.encoder, data.max_tokens, cache, self.progress)

    def _changed(self, modality: Modality, ids: Ragged) -> Ragged:
        return ids if self.change is None else self.change(modality, ids)

    def _stored_tokens(self, raw: RawCorpus) -> tuple[Ragged | None, dict[Role, Ragged], dict[str, Any]]:
        """Token ids that came with the corpus; the encoder must know all of them.

        A run holds its encoder, so a stored run needs none to be found.
        """
        data = self.cfg.data.text
        if "text" not in raw.tokens:
            raise DataError(
                f"{raw.facts.name} stores no token ids; set data.text.mode to finetune, which tokenises its raw text."
            )
        encoder = _encoder_facts(data.encoder) if self.stored is None else dict(self.stored["text"])
        facts = {**encoder, "mode": "tokens", "max_tokens": data.max_tokens, "comment": False}
        vocabulary = int(facts["config"].get("vocab_size", 0))
        largest = max(int(ids.values.max(initial=0)) for ids in raw.tokens.values())
        if vocabulary and largest >= vocabulary:
            raise DataError(
                f"text was tokenised with ids up to {largest} and {data.encoder} knows {vocabulary}; "
                "set data.text.encoder to the encoder it was made for."
            )
        roles: dict[Role, Ragged] = {
            role: self._changed(about(role), raw.tokens[role].truncated(data.max_tokens))
            for role in self.needs.explanations
            if role in raw.tokens
        }
        text = None
        if "text" in self.needs.modalities:
            text = self._changed("text", raw.tokens["text"].truncated(data.max_tokens))
        return text, roles, facts


def about(role: Role) -> Modality:
    """The modality that an explanation tells of; the overall comment is part of the text."""
    return "text" if role == "comment" else role


def explained(raw: RawCorpus, cfg: RunConfig, needs: Needs, explainer: MeasuredExplainer | None = None) -> RawCorpus:
    """Fill absent explanations with measured ones, if the method reads any. ``explainer``: one fitted before."""
    return explain_corpus(raw, explainer) if reads_measured(cfg, needs) else raw


def reads_measured(cfg: RunConfig, needs: Needs) -> bool:
    """Whether the method reads explanations and measured ones stand in for absent ones."""
    return cfg.data.explainer == "measured" and bool(needs.explanations or needs.comment)


def transcripts(raw: RawCorpus, needs: Needs) -> list[str]:
    """Transcripts, each followed by its overall comment where the method reads one."""
    if not needs.comment:
        return [clip.text for clip in raw.clips]
    return [JOIN.join(part for part in (clip.text, clip.explanations.get("comment", "")) if part) for clip in raw.clips]


def settings_of(data: DataConfig) -> dict[Modality, StreamData]:
    """The settings of audio and vision by name."""
    return {"audio": data.audio, "vision": data.vision}


def signals(raw: RawCorpus, data: DataConfig, needs: Needs) -> dict[Modality, Ragged]:
    """The audio and vision that the method reads and the corpus has: rooted, pooled, cut to their limits."""
    found: dict[Modality, Ragged] = {}
    for name, setting in settings_of(data).items():
        if name in needs.modalities and name in raw.streams:
            found[name] = processed(name, raw.streams[name], setting)
    return found


def processed(name: Modality, stream: Ragged, setting: StreamData) -> Ragged:
    """The steps of a stream as the settings want them; pictures stay as they are."""
    if not stream.pictures:
        return pooled(rooted(stream) if setting.root else stream, setting.pool).truncated(setting.limit)
    if setting.root or setting.statistics or setting.pool != 1:
        raise DataError(f"{name} is pictures here; leave data.{name}.root, pool and statistics as they are by default.")
    return stream.truncated(setting.limit)


def statistics(
    raw: RawCorpus, streams: Mapping[Modality, Ragged], data: DataConfig, measures: Sequence[str] | None = None
) -> dict[Modality, np.ndarray]:
    """Clip statistics (N, K) of the streams that want them.

    Those of the voice include what the explainer measures of it (pitch, its movement, pauses, ...), 0 where it cannot:
    all that ``raw`` shows, or ``measures`` in this order.
    """
    found: dict[Modality, np.ndarray] = {}
    for name, setting in settings_of(data).items():
        if name in streams and setting.statistics:
            found[name] = clip_statistics(raw.streams[name], streams[name], raw.recipes[name].channels)
    if "audio" in found:
        shown = measure(raw)
        unknown = np.full(len(raw.clips), np.nan)
        chosen = [shown.get(name, unknown) for name in (shown if measures is None else measures)]
        measured = [np.nan_to_num(values).astype(np.float32) for values in chosen]
        found["audio"] = np.column_stack([found["audio"], *measured])
    return found


def _encoder_facts(encoder: str) -> dict[str, Any]:
    from moodal.layers.pretrained import resolve

    found = resolve(encoder)
    return {
        "encoder": found.name, "revision": found.revision, "tokenizer": found.tokenizer, "width": found.width,
        "config": dict(found.config),
    }  # fmt: skip
