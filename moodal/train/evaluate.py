"""A method and a split become a table of predictions. The same function serves validation, test and every command."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric

from moodal.core.method import Method, Split
from moodal.core.spec import Classification


@dataclass(frozen=True)
class Predictions:
    """N rows in the order of the split. ``target``: (N,).

    ``prediction``: (N,) numbers, (N, C) probabilities or (N, D) embeddings, as the task has them. ``columns``: what the
    split knows of its rows.
    """

    ids: tuple[str, ...]
    prediction: np.ndarray
    target: np.ndarray
    valid: np.ndarray
    inspection: Mapping[str, np.ndarray] = field(default_factory=dict)
    columns: Mapping[str, np.ndarray] = field(default_factory=dict)


def evaluate(method: Method, split: Split, *, size: int, fabric: Fabric) -> Predictions:
    """Predict every row of ``split``. Rows of similar length share a batch; the result is in the split's order.

    With several processes each predicts its share and all get the whole.
    """
    order = torch.from_numpy(np.argsort(split.cost, kind="stable"))
    mine = list(order.split(size))[fabric.global_rank :: fabric.world_size]
    was_training = method.training
    method.eval()
    found: dict[str, list[np.ndarray]] = {}
    with torch.inference_mode(), fabric.autocast():
        for rows in mine:
            for name, value in _predict(method, split.rows(rows).to(fabric.device)).items():
                found.setdefault(name, []).append(value)
    method.train(was_training)
    position = np.concatenate([rows.numpy() for rows in mine]) if mine else np.zeros(0, np.int64)
    table = {name: np.concatenate(parts) for name, parts in found.items()}
    position, table = _gathered(position, table, fabric)
    back = np.argsort(position)
    table = {name: value[back] for name, value in table.items()}
    target, valid = np.full(len(split), np.nan), np.zeros(len(split), bool)
    if split.target is not None:
        target, valid = split.target.value.numpy().astype(np.float64), split.target.valid.numpy()
    columns = {name: column.numpy() for name, column in split.columns.items()}
    return Predictions(split.ids, table.pop("prediction"), target, valid, table, columns)


def _predict(method: Method, batch: Any) -> dict[str, np.ndarray]:
    out = method(batch)
    prediction = out.prediction.float()
    if isinstance(method.spec.task, Classification):
        prediction = prediction.softmax(dim=1)
    return {"prediction": prediction.cpu().numpy()} | {n: v.float().cpu().numpy() for n, v in out.inspection.items()}


def _gathered(
    position: np.ndarray, table: dict[str, np.ndarray], fabric: Fabric
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """The shares of all processes end to end."""
    if fabric.world_size == 1:
        return position, table
    shares: list[Any] = [None] * fabric.world_size
    torch.distributed.all_gather_object(shares, (position, table))
    shares = [item for item in shares if len(item[0])]
    whole = {name: np.concatenate([part[name] for _, part in shares]) for name in shares[0][1]}
    return np.concatenate([part for part, _ in shares]), whole
