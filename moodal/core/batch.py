"""The batch: N rows, one clip or utterance each, every stream beside its mask.

Shapes: N rows, T steps, D width, C classes, B conversations, U turns. Modalities in the order text, audio, vision.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from moodal.core.errors import MoodalError
from moodal.core.spec import Modality, Role

T = TypeVar("T")


def _map(value: Any, function: Any) -> Any:
    """Apply ``function`` to every tensor inside ``value`` (dataclasses and mappings of the batch)."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, Mapping):
        return {key: _map(item, function) for key, item in value.items()}
    if isinstance(value, (Stream, Target, Dialogue, Batch)):
        return replace(value, **{f.name: _map(getattr(value, f.name), function) for f in fields(value)})
    return value


@dataclass(frozen=True)
class Stream:
    """One modality of N rows. A missing modality is a row whose mask is False throughout."""

    data: Tensor  # (N, T, D) features | (N, T) token ids | (N, T, 3, H, W) bytes of pictures
    mask: Tensor  # (N, T) bool: True on real steps
    whole: int = 0  # how many of the last columns describe the whole clip, the same at each step
    observed: Tensor | None = None  # (N, T) bool, of a degraded view: True on the real steps left as they were

    def __len__(self) -> int:
        return self.mask.shape[0]


@dataclass(frozen=True)
class Target:
    """What is to be predicted. Unlabelled rows stay in the batch, out of the loss."""

    value: Tensor  # (N,) float number | (N,) int64 class
    valid: Tensor  # (N,) bool


@dataclass(frozen=True)
class Dialogue:
    """Conversations as an index over rows: which conversation, which turn, which speaker."""

    conversation: Tensor  # (N,) int64
    turn: Tensor  # (N,) int64
    speaker: Tensor  # (N,) int64

    def pad(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """(N, ...) -> (B, U, ...) in turn order and its (B, U) mask. B is by order of conversation number."""
        place, shape = self._places()
        grid = rows.new_zeros((*shape, *rows.shape[1:]))
        grid[place] = rows
        mask = torch.zeros(shape, dtype=torch.bool, device=rows.device)
        mask[place] = True
        return grid, mask

    def unpad(self, grid: Tensor) -> Tensor:
        """(B, U, ...) -> (N, ...): the inverse of :meth:`pad`."""
        place, _ = self._places()
        return grid[place]

    def _places(self) -> tuple[tuple[Tensor, Tensor], tuple[int, int]]:
        _, row = torch.unique(self.conversation, return_inverse=True)
        earlier = (self.turn[None, :] < self.turn[:, None]) & (row[None, :] == row[:, None])
        column = earlier.sum(dim=1)
        return (row, column), (int(row.max()) + 1, int(column.max()) + 1)


@dataclass(frozen=True)
class Batch:
    """N rows. Frozen: nobody can leave something in it for somebody else to find."""

    ids: tuple[str, ...]
    index: Tensor  # (N,) int64, position in the split: the key of memory banks and curricula
    streams: Mapping[Modality, Stream]  # an absent key: the corpus has no such modality
    target: Target | None = None  # None when predicting
    words: tuple[str, ...] | None = None  # transcripts
    explanations: Mapping[Role, Stream] = field(default_factory=dict)  # encoded like text, by role
    degraded: Mapping[Modality, Stream] | None = None  # a second view of the same rows
    companions: "Batch | None" = None  # rows drawn for these rows (positives, negatives)
    dialogue: Dialogue | None = None
    columns: Mapping[str, Tensor] = field(default_factory=dict)  # (N, ...) whole numbers known of a row: its camera

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def device(self) -> torch.device:
        return self.index.device

    @property
    def labels(self) -> Target:
        """The target. Raises ``MoodalError`` if there is none: every loss needs it."""
        if self.target is None:
            raise MoodalError("This batch has no labels, and a loss needs them.")
        return self.target

    def to(self, device: torch.device | str) -> "Batch":
        """The same batch with every tensor on ``device``."""
        return _map(self, lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> "Batch":
        """The same batch in page-locked memory, for faster copies to a GPU."""
        return _map(self, lambda tensor: tensor.pin_memory())

    def rows(self, selection: Tensor) -> "Batch":
        """The rows at ``selection`` ((M,) int64 positions in this batch), in that order."""
        chosen = selection.tolist()
        companions = None if self.companions is None else self.companions.rows(selection)
        moved = _map(replace(self, companions=None), lambda tensor: tensor[selection])
        words = None if self.words is None else tuple(self.words[i] for i in chosen)
        return replace(moved, ids=tuple(self.ids[i] for i in chosen), words=words, companions=companions)
