"""One vector for a whole sequence. Shapes: N rows, T steps, D width, H width of the summary."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn

from moodal.core.batch import Stream
from moodal.layers.masks import masked_mean
from moodal.layers.recurrent import LSTM


class Summary(NamedTuple):
    """A vector per row (N, H), zeros where the row has no real step, and whether it has one (N,)."""

    vector: Tensor
    present: Tensor


class FirstStep(nn.Module):
    """The first real step: of an encoder of the BERT family the one that stands for the whole ([CLS])."""

    def forward(self, stream: Stream) -> Summary:
        """(N, T, D) -> (N, D)."""
        present = stream.mask.any(dim=1)
        place = stream.mask.long().argmax(dim=1)[:, None, None]
        return Summary(stream.data.take_along_dim(place, dim=1).squeeze(1) * present[:, None], present)


class MeanStep(nn.Module):
    """The mean over the real steps."""

    def forward(self, stream: Stream) -> Summary:
        """(N, T, D) -> (N, D)."""
        return Summary(masked_mean(stream.data, stream.mask), stream.mask.any(dim=1))


class LastState(nn.Module):
    """A linear map of the last state of an LSTM: of both directions, if it has two."""

    def __init__(self, width: int, hidden: int, out: int, *, bidirectional: bool = False) -> None:
        super().__init__()
        self.lstm = LSTM(width, hidden, bidirectional=bidirectional)
        self.out = nn.Linear(self.lstm.out, out)

    def forward(self, stream: Stream) -> Summary:
        """(N, T, D) -> (N, H)."""
        _, last = self.lstm(stream.data, stream.mask)
        present = stream.mask.any(dim=1)
        return Summary(self.out(last) * present[:, None], present)
