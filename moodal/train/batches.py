"""Which rows make which batch: order, buckets of similar length, shares of processes, and training-time changes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from moodal.core.batch import Batch, Stream
from moodal.core.settings import AugmentConfig
from moodal.core.spec import Modality


def bucketed(order: Tensor, cost: np.ndarray, size: int, chunk: int) -> list[Tensor]:
    """Cut ``order`` ((n,) positions) into batches of ``size`` rows of similar cost.

    Rows are sorted by cost within windows of ``chunk`` batches only, so with a shuffled order the batches stay
    random; chunk 1 keeps the order.
    """
    if chunk <= 1:
        return list(order.split(size))
    batches: list[Tensor] = []
    for window in order.split(size * chunk):
        parts = window[torch.from_numpy(np.argsort(cost[window.numpy()], kind="stable"))].split(size)
        # The place of a batch follows the rank of its first row in the shuffled window: no extra random numbers.
        rank = {int(row): place for place, row in enumerate(window)}
        batches += sorted(parts, key=lambda part: rank[int(part[0])])
    return batches


def share(rows: Tensor, rank: int, world: int, parts: int) -> list[tuple[Tensor, int]]:
    """The parts of a global batch that process ``rank`` works on, each with the rows it counts for.

    A process without rows of its own takes one row that counts for none, so that all processes do the same steps.
    """
    chunks = rows.tensor_split(world * min(parts, max(1, -(-len(rows) // world))))
    mine = chunks[rank::world]
    return [(chunk, len(chunk)) if len(chunk) else (rows[:1], 0) for chunk in mine]


def augmented(batch: Batch, cfg: AugmentConfig) -> Batch:
    """``batch`` with the changes of ``cfg`` to audio and vision, drawn from torch's global generator.

    A degraded view of the rows gets the same changes, but for the steps that are missing in it.
    """
    features: list[Modality] = ["audio", "vision"]
    names = [m for m in features if m in batch.streams and batch.streams[m].data.dim() == 3]  # pictures stay
    streams = {name: batch.streams[name] for name in names}
    if cfg.noise > 0:
        streams = {name: _noisy(stream, cfg.noise) for name, stream in streams.items()}
    if cfg.time_mask > 0:
        streams = {name: _time_masked(stream, cfg.time_mask) for name, stream in streams.items()}
    if cfg.drop_modality > 0 and len(names) == 2:
        streams = _without_one(streams, cfg.drop_modality)
    degraded = batch.degraded
    if degraded is not None:
        follow = {m: _followed(degraded[m], batch.streams[m], after) for m, after in streams.items() if m in degraded}
        degraded = {**degraded, **follow}
    return replace(batch, streams={**batch.streams, **streams}, degraded=degraded)


def _followed(view: Stream, before: Stream, after: Stream) -> Stream:
    """The degraded ``view`` of ``before`` with what was done to the complete one."""
    change = after.data - before.data
    if view.observed is not None:
        steps = change.shape[-1] - view.whole
        missing = ~view.observed[..., None]
        change = torch.cat([change[..., :steps].masked_fill(missing, 0.0), change[..., steps:]], dim=-1)
    mask = view.mask & after.mask
    return replace(view, data=(view.data + change) * mask[..., None], mask=mask)


def _noisy(stream: Stream, deviation: float) -> Stream:
    noise = torch.randn_like(stream.data)
    if stream.whole:
        noise[..., -stream.whole :] = noise[:, :1, -stream.whole :].clone()
    return replace(stream, data=stream.data + deviation * noise * stream.mask[..., None])


def _time_masked(stream: Stream, part: float) -> Stream:
    """Hide one block of up to ``part`` of a row's real steps; rows of one step are left alone."""
    length = stream.mask.sum(dim=1, keepdim=True)
    width = torch.rand(len(stream), 1, device=length.device) * part * length
    width = width.floor() * (length > 1)
    start = (torch.rand(len(stream), 1, device=length.device) * (length - width)).floor()
    steps = torch.arange(stream.mask.shape[1], device=length.device)[None, :]
    mask = stream.mask & ~((steps >= start) & (steps < start + width))
    return replace(stream, data=stream.data * mask[..., None], mask=mask)


def _without_one(streams: dict[Modality, Stream], chance: float) -> dict[Modality, Stream]:
    """Hide audio or vision, never both, of a share ``chance`` of the rows."""
    first = next(iter(streams.values()))
    draw = torch.rand(len(first), 1, device=first.mask.device)
    out: dict[Modality, Stream] = {}
    for place, (name, stream) in enumerate(streams.items()):
        hidden = (draw >= place * chance / 2) & (draw < (place + 1) * chance / 2)
        mask = stream.mask & ~hidden
        out[name] = replace(stream, data=stream.data * mask[..., None], mask=mask)
    return out
