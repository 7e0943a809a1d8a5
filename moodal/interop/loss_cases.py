"""Cases of losses alone: their values, the norms of their gradients for every input, and some of those gradients."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from moodal.core.errors import DataError, did_you_mean
from moodal.interop.parity import Case, Quantity, compare, compare_number


def leaves(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The floating ``inputs`` as tensors that gradients are taken for."""
    return {name: nn.Parameter(tensor.clone()) for name, tensor in inputs.items() if tensor.is_floating_point()}


def compare_loss_case(case: Case, losses: Mapping[str, Tensor], inputs: Mapping[str, Tensor]) -> list[Quantity]:
    """Every loss, gradient norm (``grad_norm[loss][input]``) and gradient (output ``grad.<loss>.<input>``) of the case.

    Raises ``DataError`` for a loss or an output that is not computed here.
    """
    allowed = case.facts["tolerance"]
    limits = {"absolute": allowed["gradients"], "relative": 0.0}
    found = []
    for name, theirs in case.facts["losses"].items():
        ours = float(_known(losses, name).detach())
        found.append(compare_number(f"loss.{name}", ours, theirs, absolute=allowed["loss"], relative=0.0))
    for name, norms in case.facts["grad_norm"].items():
        slopes = _gradients(_known(losses, name), inputs)
        for place, theirs in norms.items():
            found.append(
                compare_number(f"gradient.{name}.{place}", float(slopes[place].norm()), theirs or 0.0, **limits)
            )
    for name, stored in case.outputs.items():
        loss, _, place = name.removeprefix("grad.").partition(".")
        slope = _gradients(_known(losses, loss), inputs)[place]
        found.append(compare(name, slope, stored, {"outputs": allowed["gradients"]}))
    return found


def _known(losses: Mapping[str, Tensor], name: str) -> Tensor:
    if name not in losses:
        raise DataError(f"The case stores '{name}', which is not compared{did_you_mean(name, losses)}.")
    return losses[name]


def _gradients(loss: Tensor, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The gradient of ``loss`` for each input; zeros where none arrives."""
    if not loss.requires_grad:
        return {name: torch.zeros_like(tensor) for name, tensor in inputs.items()}
    found = torch.autograd.grad(loss, list(inputs.values()), retain_graph=True, allow_unused=True)
    return {n: torch.zeros_like(x) if g is None else g for (n, x), g in zip(inputs.items(), found, strict=True)}
