"""The streams of a batch as sequences of values: features as they are, tokens through the text encoder.

Shapes: N rows, T steps, D width of the stream.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import nn

from moodal.core.batch import Batch, Stream
from moodal.core.errors import check
from moodal.core.spec import MODALITIES, DataSpec, Modality, StreamSpec


class StreamInputs(nn.Module):
    """The streams of ``spec`` among ``modalities``, in the order text, audio, vision; at least one.

    ``encoder`` is the text encoder where the text comes as token ids (train it at a rate of its own: return it from
    ``Method.backbone``), else None. A stream that a batch lacks is one step that is not real.
    Raises ``MoodalError`` if the corpus has none of ``modalities``.
    """

    def __init__(self, spec: DataSpec, modalities: Sequence[Modality] = MODALITIES) -> None:
        super().__init__()
        self.specs: Mapping[Modality, StreamSpec] = {m: spec.streams[m] for m in spec.modalities if m in modalities}
        check(
            bool(self.specs),
            f"None of {', '.join(modalities)} is in this corpus, which has {', '.join(spec.modalities) or 'none'}.",
        )
        self.encoder = text_encoder(self.specs.values())

    @property
    def modalities(self) -> tuple[Modality, ...]:
        """The modalities in use, in order."""
        return tuple(self.specs)

    @property
    def widths(self) -> dict[Modality, int]:
        """D of each modality in use."""
        return {m: spec.width for m, spec in self.specs.items()}

    def forward(self, batch: Batch, *, degraded: bool = False) -> dict[Modality, Stream]:
        """Each modality as values (N, T, D) beside its mask (N, T). ``degraded``: of the second view of the batch."""
        given = batch.degraded if degraded and batch.degraded is not None else batch.streams
        return {m: self._values(m, given, len(batch.index), batch.device) for m in self.specs}

    def _values(self, modality: Modality, given: Mapping[Modality, Stream], rows: int, device: torch.device) -> Stream:
        spec = self.specs[modality]
        if modality not in given:
            mask = torch.zeros(rows, 1, dtype=torch.bool, device=device)
            return Stream(torch.zeros(rows, 1, spec.width, device=device), mask)
        stream = given[modality]
        if spec.kind == "features" or self.encoder is None:
            return stream
        return Stream(self.encoder(stream.data, stream.mask), stream.mask)


def text_encoder(streams: Iterable[StreamSpec]) -> nn.Module | None:
    """The one encoder for all token streams among ``streams``; None if there are none."""
    streams = [stream for stream in streams if stream.kind == "tokens"]
    names = {stream.encoder for stream in streams}
    if not names:
        return None
    check(
        len(names) == 1,
        f"The text streams were tokenised for different encoders ({sorted(map(str, names))}); one is needed.",
    )
    from moodal.layers.pretrained import TextEncoder  # transformers is optional

    config = streams[0].config  # known where the weights will come from a checkpoint
    return TextEncoder(str(names.pop())) if config is None else TextEncoder.from_facts(config)
