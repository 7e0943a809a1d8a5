"""The only place that calls backward and moves parameters.

What it guarantees: a loss that is not finite stops the run before the step; gradients reach the parameters of one
optimiser only, so two optimisers in one step cannot leak into each other; gradients are sums over rows divided by
the rows seen since the last step, over accumulated parts and over processes, so parts and processes of unequal size
equal one big batch (for losses that are means over rows; a pairwise loss sees its own part only); each optimiser is
clipped over all its groups.

Modules are not wrapped for data parallelism: gradients of a group are averaged here, which is what lets a pass with
several optimisers run on several processes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins import MixedPrecision
from torch import Tensor, nn

from moodal.core.errors import MoodalError
from moodal.core.method import Group, Losses, Progress
from moodal.core.settings import TrainConfig
from moodal.train.optim import build_optimiser, rate_factor


class Updater:
    """Moves the parameters of one pass. ``total``: expected optimiser steps, for the schedule."""

    def __init__(self, fabric: Fabric, groups: Mapping[str, Sequence[Group]], cfg: TrainConfig, total: int) -> None:
        self.fabric, self.cfg, self.total = fabric, cfg, total
        self.optimisers = {name: build_optimiser(part, cfg) for name, part in groups.items()}
        self.steps = dict.fromkeys(self.optimisers, 0)
        self.progress = Progress("", 0, 0, 0)
        #: rows the current part counts for (0 on a process that only keeps company) and whether a step is due.
        self.rows = 0
        self.due = True
        #: one for each optimiser: parts of one step must be scaled alike, whatever another optimiser does in between.
        self.scalers = {name: torch.amp.GradScaler(enabled=_needs_scaling(fabric)) for name in groups}
        self._weight: dict[str, Tensor] = {}
        self._fault = ""

    def __call__(
        self, losses: Losses, optimiser: str = "main", *, adjust: Callable[[Sequence[nn.Parameter]], None] | None = None
    ) -> None:
        """Add the gradients of ``losses`` to ``optimiser``'s parameters and step it if a step is due.

        ``adjust`` may change the gradients (gradient surgery) just before clipping.
        """
        finite = self._finite(losses)
        rows = self.rows if losses.rows is None else losses.rows
        weight = torch.as_tensor(rows, dtype=torch.float32, device=losses.total.device) * (self.rows > 0)
        weight = weight if finite else weight * torch.nan  # tells the other processes, which wait at the step
        parameters = self._parameters(optimiser)
        with torch.autocast(self.fabric.device.type, enabled=False):
            self.scalers[optimiser].scale(losses.total.float() * weight).backward(inputs=parameters)
        self._weight[optimiser] = self._weight.get(optimiser, torch.zeros_like(weight)) + weight
        if self.due:
            self._step(optimiser, adjust)

    def _parameters(self, optimiser: str) -> list[nn.Parameter]:
        return [p for group in self.optimisers[optimiser].param_groups for p in group["params"]]

    def _finite(self, losses: Losses) -> bool:
        """Whether the loss is finite; if not, raise, or on several processes note it: all stop together at the step."""
        if bool(torch.isfinite(losses.total)):
            return True
        parts = ", ".join(f"{name} {float(value):.4g}" for name, value in losses.parts.items())
        self._fault = f"the loss is {float(losses.total.detach())} ({parts or 'no parts'})"
        if self.fabric.world_size == 1:
            self._stop(self._fault)
        return False

    def _stop(self, fault: str) -> None:
        place = self.progress
        raise MoodalError(
            f"stage {place.stage}, epoch {place.epoch + 1}, step {place.step + 1}: {fault}. No step was taken; "
            "try a lower train.rate or train.clip, or look for extreme values in the features."
        )

    @torch.no_grad()
    def _step(self, name: str, adjust: Callable[[Sequence[nn.Parameter]], None] | None) -> None:
        optimiser, parameters = self.optimisers[name], self._parameters(name)
        weight = self._weight.pop(name)
        if self.fabric.world_size > 1:
            weight = _sum_over_processes(self.fabric, parameters, weight)
        if not math.isfinite(weight):
            self._stop(self._fault or "the loss of another process is not finite")
        gradients = [p.grad for p in parameters if p.grad is not None]
        if float(weight) == 0 or not gradients:  # nothing labelled in this batch: nothing to learn from it
            optimiser.zero_grad(set_to_none=True)
            return
        scaler = self.scalers[name]
        scaler.unscale_(optimiser)
        torch._foreach_div_(gradients, float(weight))
        if adjust is not None:
            adjust(parameters)
        self._clip(parameters)
        factor = rate_factor(self.steps[name], self.total, self.cfg)
        for group in optimiser.param_groups:
            group["lr"] = group["base_rate"] * factor
        scaler.step(optimiser)
        scaler.update()
        optimiser.zero_grad(set_to_none=True)
        # Autocast keeps low-precision copies of weights; a module used again in this step must see the new ones.
        torch.clear_autocast_cache()
        self.steps[name] += 1

    def _clip(self, parameters: Sequence[nn.Parameter]) -> None:
        """Clip the norm over all gradients; if it is not finite stop the run, unless loss scaling skips the step."""
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        if not bool(torch.isfinite(norm)) and not _needs_scaling(self.fabric):
            self._stop(f"the gradient's norm is {float(norm)} though the loss is finite")
        if self.cfg.clip is not None:
            torch.nn.utils.clip_grads_with_norm_(parameters, self.cfg.clip, norm)

    @property
    def rate(self) -> float:
        """The learning rate of the first group at the last step."""
        return float(next(iter(self.optimisers.values())).param_groups[0]["lr"])

    def state_dict(self) -> dict[str, Any]:
        return {
            "optimisers": {name: optimiser.state_dict() for name, optimiser in self.optimisers.items()},
            "steps": dict(self.steps),
            "scalers": {name: scaler.state_dict() for name, scaler in self.scalers.items()},
            "total": self.total,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for name, optimiser in self.optimisers.items():
            optimiser.load_state_dict(state["optimisers"][name])
            if self.scalers[name].is_enabled():
                self.scalers[name].load_state_dict(state["scalers"][name])
        self.steps, self.total = dict(state["steps"]), int(state["total"])


def _needs_scaling(fabric: Fabric) -> bool:
    plugin = fabric.strategy.precision
    return isinstance(plugin, MixedPrecision) and plugin.precision == "16-mixed"


def _sum_over_processes(fabric: Fabric, parameters: Sequence[nn.Parameter], weight: Tensor) -> Tensor:
    """Sum gradients and row counts over processes in one message. Returns the summed row count.

    A parameter no process reached keeps no gradient, as on one process, so that optimisers leave it alone.
    """
    reached = weight.new_tensor([float(p.grad is not None) for p in parameters])
    flat = [(torch.zeros_like(p) if p.grad is None else p.grad).flatten().to(weight.dtype) for p in parameters]
    message = torch.as_tensor(fabric.all_reduce(torch.cat([weight.reshape(1), reached, *flat]), reduce_op="sum"))
    counts = message[1 : 1 + len(parameters)].tolist()
    parts = message[1 + len(parameters) :].split([p.numel() for p in parameters])
    for parameter, count, part in zip(parameters, counts, parts, strict=True):
        parameter.grad = part.view_as(parameter).to(parameter.dtype) if count else None
    return message[0]
