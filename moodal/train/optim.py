"""Groups and settings become optimisers; the learning rate is a function of the step number alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch

from moodal.core.errors import MoodalError, did_you_mean
from moodal.core.method import Group, Stage
from moodal.core.settings import GroupConfig, TrainConfig


def build_optimiser(groups: Sequence[Group], cfg: TrainConfig) -> torch.optim.Optimizer:
    """One optimiser over ``groups``, each with its own rate and decay where the settings name it."""
    parts = []
    for group in groups:
        own = cfg.groups.get(group.name, GroupConfig())
        rate = cfg.rate if own.rate is None else own.rate
        decay = cfg.decay if own.decay is None else own.decay
        if group.still:
            rate = decay = 0.0
        parameters = [p for p in group.parameters() if p.requires_grad]
        parts.append({"params": parameters, "lr": rate, "base_rate": rate, "weight_decay": decay, "name": group.name})
    if cfg.optimiser == "sgd":
        return torch.optim.SGD(parts, lr=cfg.rate, momentum=0.9)
    family = torch.optim.AdamW if cfg.optimiser == "adamw" else torch.optim.Adam
    return family(parts, lr=cfg.rate, fused=True)


def rate_factor(step: int, total: int, cfg: TrainConfig) -> float:
    """Factor of the base rates at ``step`` of ``total``: linear warm-up (``cfg.warmup``), then the schedule."""
    warm = int(cfg.warmup * total)
    if step < warm:
        return (step + 1) / warm
    rest = (step - warm) / max(1, total - warm)
    if cfg.schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * min(1.0, rest)))
    if cfg.schedule == "step":
        return 0.1 ** sum(step >= share * total for share in cfg.drops)
    return max(0.0, 1 - rest) if cfg.schedule == "linear" else 1.0


def verify_names(method: str, stages: Sequence[Stage], cfg: TrainConfig) -> None:
    """Every group and stage named in the settings must exist in the method."""
    groups = (group for stage in stages for part in stage.passes for group in part.all_groups())
    _verify("group", method, cfg.groups, sorted({group.name for group in groups if not group.still}))
    _verify("stage", method, cfg.stages, [stage.name for stage in stages])


def _verify(kind: str, method: str, given: Mapping[str, object], known: Sequence[str]) -> None:
    for name in given:
        if name not in known:
            raise MoodalError(
                f"train.{kind}s.{name}: {method} has no such {kind} under these settings; "
                f"it has {', '.join(known)}{did_you_mean(name, known)}"
            )
