"""What a corpus offers (``DataSpec``) and what a method asks for (``Needs``)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from moodal.core.errors import MoodalError

Modality = Literal["text", "audio", "vision"]
MODALITIES: tuple[Modality, ...] = ("text", "audio", "vision")

#: Explanations by role: about the voice, about the face, and the overall comment joined to the transcript.
Role = Literal["audio", "vision", "comment"]
ROLES: tuple[Role, ...] = ("audio", "vision", "comment")


@dataclass(frozen=True)
class Regression:
    """A number in [low, high] per clip, e.g. sentiment intensity."""

    low: float
    high: float

    @property
    def outputs(self) -> int:
        return 1


@dataclass(frozen=True)
class Classification:
    """One class of ``classes`` per clip."""

    classes: tuple[str, ...]

    @property
    def outputs(self) -> int:
        return len(self.classes)


@dataclass(frozen=True)
class Identification:
    """Who is in the picture: rows are ranked by the distance of their embeddings, queries against a gallery.

    The ``identities`` of the training split are classes while training; those of the other splits are other people.
    """

    identities: int

    @property
    def outputs(self) -> int:
        return self.identities


Task = Regression | Classification | Identification


@dataclass(frozen=True)
class StreamSpec:
    """One input stream as the method will see it.

    ``kind`` is ``"features"`` for (N, T, width) floats, ``"tokens"`` for (N, T) ids of the vocabulary of ``encoder``
    (``width`` is then the width of that encoder's states), or ``"pictures"`` for (N, T, width, H, W) bytes, ``width``
    being the colours. ``config`` is the encoder's configuration where its weights will come from a checkpoint, so that
    it is built without its pretrained weights.
    """

    kind: Literal["features", "tokens", "pictures"]
    width: int
    encoder: str | None = None
    config: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class DataSpec:
    """What the data know: streams, tasks and sizes. A method is built from its settings and this alone."""

    streams: Mapping[Modality, StreamSpec]
    task: Task
    explanations: Mapping[Role, StreamSpec] = field(default_factory=dict)
    size: Mapping[str, int] = field(default_factory=dict)

    @property
    def modalities(self) -> tuple[Modality, ...]:
        """The modalities present, in the order text, audio, vision."""
        return tuple(m for m in MODALITIES if m in self.streams)


@dataclass(frozen=True, kw_only=True)
class Needs:
    """What a method reads; only this is loaded.

    ``modalities``: streams used where the corpus has them; ``required``: those without which it cannot run;
    ``explanations``: roles encoded as streams of their own; ``comment``: join the overall comment to the transcript;
    ``text``: the text kinds accepted; ``tasks``: the task kinds accepted; ``degraded``: in training a second view of
    the same rows, with what is missing taken out (``Batch.degraded``).
    """

    modalities: tuple[Modality, ...] = MODALITIES
    required: tuple[Modality, ...] = ()
    explanations: tuple[Role, ...] = ()
    comment: bool = False
    text: tuple[Literal["features", "tokens"], ...] = ("features", "tokens")
    tasks: tuple[type, ...] = (Regression, Classification)
    degraded: bool = False

    def verify(self, method: str, spec: DataSpec) -> None:
        """Raise ``MoodalError`` with a sentence if ``spec`` does not offer what is needed."""
        for modality in self.required:
            if modality not in spec.streams:
                have = ", ".join(spec.modalities) or "none"
                raise MoodalError(f"{method} needs {modality}, which this corpus does not have (it has {have}).")
        if not any(m in spec.streams for m in self.modalities):
            wanted, have = ", ".join(self.modalities), ", ".join(spec.modalities) or "none"
            raise MoodalError(f"{method} reads {wanted}, and this corpus has none of them (it has {have}).")
        text = spec.streams.get("text")
        if text is not None and text.kind not in self.text:
            accepted = " or ".join(self.text)
            raise MoodalError(
                f"{method} accepts text as {accepted}, and this corpus gives {text.kind}; set data.text.mode."
            )
        if not isinstance(spec.task, self.tasks):
            known = " or ".join(t.__name__ for t in self.tasks)
            raise MoodalError(f"{method} does {known}, and this corpus asks for {type(spec.task).__name__}.")
