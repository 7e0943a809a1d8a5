"""Sinusoidal positions: the table of the crossmodal transformers, and which of its rows a step gets.

Row p is [sin(p w_0), .., sin(p w_h-1), cos(p w_0), .., cos(p w_h-1)], w_j = exp(-j ln(10000) / (h - 1)), h = D // 2; an odd
width ends in a zero column. Row 0 is zero and belongs to padding; the first real step has row 1.
Source: Tsai et al., ACL 2019 (arXiv 1906.00295), section 3.3 and appendix; layout as in the authors' code.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def sinusoids(steps: int, width: int, *, like: Tensor) -> Tensor:
    """(1 + steps, width) float32 where ``like`` is: row 0 zero, row p for position p, sines before cosines."""
    half = width // 2
    rate = torch.arange(half, device=like.device) * (-math.log(10000.0) / max(half - 1, 1))
    angles = torch.arange(1, steps + 1, dtype=torch.float32, device=like.device)[:, None] * rate.exp()
    table = torch.zeros(steps + 1, width, device=like.device)
    table[1:, :half], table[1:, half : 2 * half] = angles.sin(), angles.cos()
    return table


def places(mask: Tensor) -> Tensor:
    """(N, T) mask -> (N, T) rows of the table: 1 at the first real step, counting on over gaps; 0 where not real."""
    steps = torch.arange(1, mask.shape[1] + 1, device=mask.device)
    return (steps - first_step(mask)[:, None]) * mask


def places_by_channel(values: Tensor) -> Tensor:
    """(N, T, D) values -> (N, T) rows of the table: t + 1, but 0 where channel 0 is exactly 0. The published form."""
    steps = torch.arange(1, values.shape[1] + 1, device=values.device)
    return steps * (values[..., 0] != 0)


def first_step(mask: Tensor) -> Tensor:
    """(N, T) mask -> (N,) index of the first real step; 0 where there is none."""
    return mask.int().argmax(dim=1)


def span(mask: Tensor) -> Tensor:
    """(N, T) mask -> (N,) steps from the first to the last real one, gaps included; 0 where there is none."""
    return places(mask).amax(dim=1)
