"""Masks: (N, T) bool, True on real steps. A row without any real step gives zeros everywhere, never NaN."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from moodal.core.errors import MoodalError


def lengths_to_mask(lengths: Tensor, steps: int) -> Tensor:
    """(N,) lengths -> (N, steps) mask, True on the first ``lengths[n]`` steps."""
    return torch.arange(steps, device=lengths.device) < lengths[:, None]


def masked_mean(values: Tensor, mask: Tensor | None) -> Tensor:
    """(N, T, D) values -> (N, D) mean over real steps; zeros where there are none. ``None``: all steps are real."""
    if mask is None:
        return values.mean(dim=1)
    weights = mask.to(values.dtype)
    weights = weights / weights.sum(dim=1, keepdim=True).clamp(min=1.0)
    return torch.bmm(weights.unsqueeze(1), values).squeeze(1)


def masked_softmax(scores: Tensor, mask: Tensor) -> Tensor:
    """Softmax of (..., T) scores over the last axis where ``mask`` (broadcastable) holds; zeros where it never does."""
    hidden = scores.masked_fill(~mask, float("-inf"))
    # A row without real steps is filled with 0 before the softmax and emptied after it, so no NaN is ever made.
    hidden = hidden.masked_fill(~mask.any(dim=-1, keepdim=True), 0.0)
    return hidden.softmax(dim=-1).masked_fill(~mask, 0.0)


def additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """(N, T) -> (N, 1, T): 0 on real steps and minus infinity elsewhere, which kernels add faster than they select."""
    zeros = torch.zeros(mask.shape, dtype=dtype, device=mask.device)
    return zeros.masked_fill(~mask, float("-inf")).unsqueeze(1)


def last_step(mask: Tensor) -> Tensor:
    """(N, T) -> (N,) index of the last real step; 0 where there is none."""
    return (torch.arange(1, mask.shape[1] + 1, device=mask.device) * mask).argmax(dim=1)


def masked_last(values: Tensor, mask: Tensor) -> Tensor:
    """(N, T, D) values -> (N, D) at the last real step; zeros where there is none."""
    place = last_step(mask)
    found = values.take_along_dim(place[:, None, None].expand(-1, 1, values.shape[2]), dim=1).squeeze(1)
    return found * mask.any(dim=1, keepdim=True)


def whole_windows(mask: Tensor, kernel: int) -> Tensor:
    """(N, T) -> (N, T - kernel + 1): which windows of ``kernel`` steps are real throughout.

    A row too short for one has the window that begins at its first real step, if that is among the windows.
    """
    whole = mask.unfold(1, kernel, 1).all(dim=-1)
    first = mask & (mask.cumsum(dim=1) == 1)
    return whole | (first[:, : whole.shape[1]] & ~whole.any(dim=1, keepdim=True))


def with_first(mask: Tensor | None) -> Tensor | None:
    """(N, T) -> (N, 1 + T): the mask of a sequence with one more, always real, step in front."""
    return None if mask is None else F.pad(mask, (1, 0), value=True)


def zero_padding(values: Tensor, mask: Tensor | None) -> Tensor:
    """(N, T, D) values with zeros on the steps that are not real."""
    return values if mask is None else values * mask.unsqueeze(-1)


def pad_steps(values: Tensor, mask: Tensor | None, steps: int) -> tuple[Tensor, Tensor | None]:
    """Lengthen (N, T, ...) and its mask to ``steps`` steps with zeros that are not real.

    ``mask`` None means that all steps are real; it stays None if nothing has to be added.
    """
    missing = steps - values.shape[1]
    if missing == 0:
        return values, mask
    if mask is None:
        mask = torch.ones(values.shape[:2], dtype=torch.bool, device=values.device)
    tail = [0, 0] * (values.dim() - 2)
    return F.pad(values, [*tail, 0, missing]), F.pad(mask, (0, missing))


def joined(masks: Sequence[Tensor | None], values: Sequence[Tensor]) -> Tensor | None:
    """The mask of ``values`` ((N, T_i, D) each) put one after the other; None if no part has a mask."""
    if all(mask is None for mask in masks):
        return None
    whole = [
        torch.ones(part.shape[:2], dtype=torch.bool, device=part.device) if mask is None else mask
        for mask, part in zip(masks, values)
    ]
    return torch.cat(whole, dim=1)


def check_steps(name: str, steps: int, limit: int, setting: str) -> None:
    """Raise ``MoodalError`` if a sequence of ``steps`` steps exceeds the ``limit`` given by ``setting``."""
    if steps > limit:
        raise MoodalError(
            f"{name} has {steps} steps and {setting} allows {limit}; raise {setting}, or shorten it "
            "(data.text.max_tokens, data.audio.limit, data.vision.limit)."
        )
