"""One split in memory, by column: everything a batch needs, gathered without a loop over clips."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from moodal.core.batch import Batch, Dialogue, Stream, Target
from moodal.core.spec import Modality, Role
from moodal.data.ragged import Ragged, as_rows
from moodal.data.transforms import Transform


@dataclass(frozen=True, kw_only=True)
class Split:
    """N rows by column. ``target.value``: (N,); ``streams`` and ``explanations``: N rows each.

    ``second``: the same rows with something missing, whose streams become ``Batch.degraded``; ``observed``: of such rows,
    one bool a step: whether it is as it was.
    """

    ids: tuple[str, ...]
    streams: Mapping[Modality, Ragged]
    explanations: Mapping[Role, Ragged] = field(default_factory=dict)
    target: Target | None = None
    words: tuple[str, ...] | None = None
    dialogue: Dialogue | None = None
    transforms: Mapping[Modality, Transform] = field(default_factory=dict)
    statistics: Mapping[Modality, Tensor] = field(default_factory=dict)  # (N, K) of each clip, where they are used
    columns: Mapping[str, Tensor] = field(default_factory=dict)  # (N, ...) whole numbers known of each row
    observed: Mapping[Modality, Ragged] = field(default_factory=dict)
    second: "Split | None" = None

    def __len__(self) -> int:
        return len(self.ids)

    def rows(self, index: Tensor | np.ndarray) -> Batch:
        """The batch of the rows at ``index`` ((n,) positions), in that order."""
        where = as_rows(index)
        chosen = torch.from_numpy(where)
        target, dialogue = self.target, self.dialogue
        streams = {m: self._stream(m, where) for m in self.streams}
        return Batch(
            ids=tuple(self.ids[i] for i in where),
            index=chosen,
            streams=streams,
            target=None if target is None else Target(target.value[chosen], target.valid[chosen]),
            words=None if self.words is None else tuple(self.words[i] for i in where),
            explanations={r: stream.pad(where) for r, stream in self.explanations.items()},
            degraded=None if self.second is None else self.second._beside(streams, where),
            dialogue=None
            if dialogue is None
            else Dialogue(dialogue.conversation[chosen], dialogue.turn[chosen], dialogue.speaker[chosen]),
            columns={name: column[chosen] for name, column in self.columns.items()},
        )

    def _beside(self, streams: Mapping[Modality, Stream], where: np.ndarray) -> dict[Modality, Stream]:
        """These rows with as many steps as ``streams``, so that the two views can be compared step by step."""
        return {m: self._stream(m, where, least=stream.mask.shape[1]) for m, stream in streams.items()}

    def _stream(self, modality: Modality, where: np.ndarray, *, least: int = 1) -> Stream:
        stream, transform = self.streams[modality].pad(where, least=least), self.transforms.get(modality)
        if transform is not None:
            statistics = self.statistics.get(modality)
            stream = transform(stream, None if statistics is None else statistics[torch.from_numpy(where)])
        if modality in self.observed:
            stream = replace(stream, observed=self.observed[modality].pad(where, least=least).data)
        return stream

    def batches(self, size: int) -> Iterator[Batch]:
        """All rows once, in file order."""
        for part in torch.arange(len(self)).split(size):
            yield self.rows(part)

    @property
    def cost(self) -> np.ndarray:
        """(N,) steps of a row over all its streams: what bucketing sorts by."""
        columns = [*self.streams.values(), *self.explanations.values()]
        return np.sum([c.lengths for c in columns], axis=0) if columns else np.zeros(len(self), np.int64)
