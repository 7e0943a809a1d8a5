"""A corpus as read: a table of clips, ragged streams, and the facts needed to check and reproduce them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np

from moodal.core.spec import Modality, Role, Task
from moodal.data.ragged import Ragged

SPLITS = ("train", "valid", "test")


@dataclass(frozen=True, kw_only=True)
class CorpusFacts:
    """What is published about a corpus; ``size`` is checked on import, ``protocol`` names its metrics."""

    name: str
    title: str
    language: str
    task: Task
    protocol: str
    source: str
    licence: str
    size: Mapping[str, int] = field(default_factory=dict)  # clips by split; empty: not fixed
    widths: Mapping[Modality, int] = field(default_factory=dict)  # usual widths, reported when they differ


@dataclass(frozen=True, kw_only=True)
class FeatureRecipe:
    """How a stream was made. Two recipes are the same features exactly if they are equal."""

    name: str
    version: str
    width: int
    channels: tuple[str, ...] = ()  # names of the D columns where they mean something
    settings: Mapping[str, Any] = field(default_factory=dict)  # hop, sample rate, ...: plain JSON values


@dataclass(frozen=True, kw_only=True)
class Clip:
    """One row of a corpus. ``label``: a number, or the index of a class; None where unlabelled."""

    id: str
    split: str
    text: str
    label: float | None
    labels: Mapping[str, float] = field(default_factory=dict)  # unimodal labels by modality, where they exist
    explanations: Mapping[Role, str] = field(default_factory=dict)
    explained_by: Mapping[Role, str] = field(default_factory=dict)  # which explainer made each
    words: tuple[tuple[str, float, float], ...] = ()  # (word, start, end) in seconds, where known
    group: str = ""  # speaker, actor or video: splits must not share one where that is promised
    notes: Mapping[str, str] = field(default_factory=dict)  # other texts of the source file ("reason", ...)


@dataclass(frozen=True, kw_only=True)
class RawCorpus:
    """Everything a reader gives. Row i of every stream belongs to ``clips[i]``; an empty row is a missing modality."""

    facts: CorpusFacts
    clips: tuple[Clip, ...]
    streams: Mapping[Modality, Ragged] = field(default_factory=dict)
    recipes: Mapping[Modality, FeatureRecipe] = field(default_factory=dict)
    #: token ids given by the source ("text" and explanation roles), and the recipe that names their vocabulary.
    tokens: Mapping[str, Ragged] = field(default_factory=dict)
    token_recipe: FeatureRecipe | None = None
    columns: Mapping[str, np.ndarray] = field(default_factory=dict)  # (clips, ...) whole numbers: camera, trials, ...
    source: Mapping[str, Any] = field(default_factory=dict)  # file names and SHA-256 checksums

    def positions(self, split: str) -> np.ndarray:
        """(n,) rows of ``split`` in file order."""
        return np.flatnonzero([clip.split == split for clip in self.clips])


@dataclass(frozen=True, kw_only=True)
class ReaderConfig:
    """Base of every reader's settings, typed like a method's."""


class Reader(Protocol):
    """An entry of ``CORPORA``: facts, settings and a function that reads.

    ``read`` gets the folder or file named by ``data.root`` (None: not given), the reader's settings and a folder for
    whatever is expensive to make again. It raises ``DataError`` saying what is missing, where to get it and where to
    put it.
    """

    Config: ClassVar[type[ReaderConfig]]
    facts: ClassVar[CorpusFacts]

    @staticmethod
    def read(root: Path | None, cfg: Any, cache: Path) -> RawCorpus: ...
