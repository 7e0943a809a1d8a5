"""Any method on two processes of this machine, for tests of what several processes must agree on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from toys import READER, job, prepared, toy_config

from moodal.methods import METHODS


def train(fabric: Fabric, folder: Path, name: str, model: Mapping[str, Any], rows: int, **settings: Any) -> None:
    """Train the method called ``name`` on ``rows`` toy rows; the run stays in ``folder``."""
    torch.set_num_threads(1)
    cfg = toy_config(method=name, model=METHODS[name].Config(**model), reader=replace(READER, train=rows), **settings)
    job(METHODS[name], cfg, prepared(cfg), folder, fabric=fabric).run()


def two_processes(folder: str, name: str, model: Mapping[str, Any], rows: int, settings: Mapping[str, Any]) -> None:
    """:func:`train` with two processes."""
    fabric = Fabric(accelerator="cpu", devices=2, strategy="ddp_fork")
    fabric.launch(_train, Path(folder), name, model, rows, dict(settings))


def _train(fabric: Fabric, folder: Path, name: str, model: Mapping[str, Any], rows: int, settings: Any) -> None:
    train(fabric, folder, name, model, rows, **settings)
