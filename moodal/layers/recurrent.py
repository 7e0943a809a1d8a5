"""Recurrent encoders that know no padding: real steps are moved to the front, read, and moved back.

Shapes: N rows, T steps, D width, H hidden width of one direction.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from moodal.layers.dropout import Dropout
from moodal.layers.masks import zero_padding


class _Recurrent(nn.Module):
    """Layers of ``cell`` over the real steps, in one direction or both.

    Not a packed sequence, whose length is frozen in an exported graph; the numbers are the same.
    """

    cell: ClassVar[type[nn.LSTM] | type[nn.GRU]]

    def __init__(
        self, width: int, hidden: int, *, layers: int = 1, bidirectional: bool = True, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.hidden, self.out = hidden, hidden * (2 if bidirectional else 1)
        widths = [width] + [self.out] * (layers - 1)
        self.ahead = nn.ModuleList(self.cell(size, hidden, batch_first=True) for size in widths)
        self.back = nn.ModuleList(self.cell(size, hidden, batch_first=True) for size in widths if bidirectional)
        self.dropout = Dropout(dropout)  # between layers

    def forward(self, values: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """(N, T, D), (N, T) -> states (N, T, out), zeros on padding, and the last state (N, out) of each direction.

        The last state of a direction is the one after it has read all real steps; zeros for a row without any.
        """
        order = (~mask).to(torch.uint8).argsort(dim=1, stable=True)  # real steps first, in their order
        lengths = mask.sum(dim=1)
        states = values.take_along_dim(order[..., None], dim=1)
        backward = _reversed(lengths, mask.shape[1])
        for number, ahead in enumerate(self.ahead):
            states = self.dropout(states) if number else states
            read = [ahead(states)[0]]
            if len(self.back):
                turned, _ = self.back[number](states.take_along_dim(backward, dim=1))
                read.append(turned.take_along_dim(backward, dim=1))
            states = torch.cat(read, dim=-1)
        last = self._last(states, lengths)
        place = order.argsort(dim=1)
        return zero_padding(states.take_along_dim(place[..., None], dim=1), mask), last

    def _last(self, states: Tensor, lengths: Tensor) -> Tensor:
        """(N, out): ahead at the last real step, back at the first."""
        hidden = self.hidden
        end = (lengths - 1).clamp(min=0)[:, None, None].expand(-1, 1, hidden)
        last = states[..., :hidden].gather(1, end).squeeze(1)
        if len(self.back):
            last = torch.cat([last, states[:, 0, hidden:]], dim=-1)
        return last * (lengths > 0)[:, None]


class LSTM(_Recurrent):
    """Long short-term memory."""

    cell = nn.LSTM


class GRU(_Recurrent):
    """Gated recurrent units."""

    cell = nn.GRU


def _reversed(lengths: Tensor, steps: int) -> Tensor:
    """(N, T, 1) places that turn the first ``lengths[n]`` steps around and leave the rest; its own inverse."""
    places = torch.arange(steps, device=lengths.device)[None, :].expand(len(lengths), -1)
    turned = lengths[:, None] - 1 - places
    return turned.where(turned >= 0, places).unsqueeze(-1)
