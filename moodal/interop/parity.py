"""Parity: our numbers beside those of the authors' own code, stored in fixture files.

A case is ``<case>.safetensors`` (weights ``state.*``, ``input.*``, ``output.*``, ``noise.*``) and ``<case>.json`` (sizes, losses,
gradient norms, tolerances). One line of ``CHECKS`` per method says which function compares.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from moodal.core.errors import DataError, MoodalError
from moodal.core.registry import Table

#: method -> function of the path of a case's json that gives (name, difference, tolerance, ok) per quantity.
CHECKS = Table(
    "method with parity checks",
    {
        "text": "moodal.interop.parity_text:check_case",
        "lmr_cbt": "moodal.interop.parity_lmr_cbt:check_case",
        "mv2d": "moodal.interop.parity_mv2d:check_case",
        "vsd": "moodal.interop.parity_vsd:check_case",
        "mib": "moodal.interop.parity_mib:check_case",
        "emt_dlfr": "moodal.interop.parity_emt_dlfr:check_case",
        "mult": "moodal.interop.parity_mult:check_case",
        "mmim": "moodal.interop.parity_mmim:check_case",
        "metrics": "moodal.metrics.parity:check_case",
    },
)


class Quantity(NamedTuple):
    """One comparison: the largest absolute difference and what is allowed."""

    name: str
    difference: float
    tolerance: float
    ok: bool


@dataclass(frozen=True)
class CaseResult:
    """One case. ``worst``: the quantity nearest to, or furthest beyond, its tolerance."""

    method: str
    case: str
    quantities: tuple[Quantity, ...]

    @property
    def worst(self) -> Quantity:
        return max(self.quantities, key=share)

    @property
    def difference(self) -> float:
        """The worst quantity's absolute difference."""
        return self.worst.difference

    @property
    def tolerance(self) -> float:
        """What the worst quantity was allowed."""
        return self.worst.tolerance

    @property
    def ok(self) -> bool:
        return all(quantity.ok for quantity in self.quantities)

    def to_json(self) -> dict[str, Any]:
        """Plain values: the worst quantity, and the difference of each."""
        worst = self.worst
        return {
            "worst": worst.difference,
            "quantity": worst.name,
            "tolerance": worst.tolerance,
            "ok": self.ok,
            "differences": {quantity.name: quantity.difference for quantity in self.quantities},
        }


def share(quantity: Quantity) -> float:
    """Difference in units of the tolerance: above 1 is a failure. With tolerance 0: 0 if equal, else infinite."""
    if quantity.tolerance > 0:
        return quantity.difference / quantity.tolerance
    return 0.0 if quantity.ok else float("inf")


@dataclass(frozen=True)
class Case:
    """The content of one case; floating tensors in float32 unless they are float64."""

    path: Path
    facts: Mapping[str, Any]
    state: Mapping[str, Tensor]
    inputs: Mapping[str, Tensor]
    outputs: Mapping[str, Tensor]
    noise: Mapping[str, Tensor] = field(default_factory=dict)  # draws of the official code, by its names


def check_files(paths: Iterable[str | Path]) -> list[CaseResult]:
    """Compare every case among ``paths`` (.json or .safetensors, either names the pair), each once.

    Raises ``DataError`` for a file that is no case, ``MoodalError`` for a method without checks.
    """
    files = dict.fromkeys(_json(Path(path)) for path in paths)
    return [check_file(file) for file in files]


def check_file(path: str | Path) -> CaseResult:
    """Compare one case."""
    file = _json(Path(path))
    facts = _facts(file)
    method, case = str(facts.get("method")), str(facts.get("case", file.stem))
    try:
        found = CHECKS[method](file)
    except MoodalError:
        raise
    except (KeyError, IndexError, TypeError, ValueError, RuntimeError, OSError, SafetensorError) as error:
        # Whatever is wrong inside a fixture shows as one of these; a user gets a sentence, not a traceback.
        raise DataError(f"{file.name} is not a complete case of {method}: {type(error).__name__}: {error}.") from error
    if not found:
        raise DataError(f"{file.name} compares nothing; a case holds at least one output.")
    return CaseResult(method, case, tuple(Quantity(*quantity) for quantity in found))


def read_case(path: Path) -> Case:
    """Read a case, its weights from the case named by ``state_from`` if it has none of its own."""
    facts = _facts(path)
    tensors = _tensors(path.with_suffix(".safetensors"))
    source = facts.get("state_from")
    weights = tensors if source is None else _tensors(path.with_name(f"{source}.safetensors"))
    parts = (_part(tensors, prefix) for prefix in ("input.", "output.", "noise."))
    return Case(path, facts, _part(weights, "state."), *parts)


def compare(name: str, ours: Tensor, theirs: Tensor, tolerance: Mapping[str, float]) -> Quantity:
    """|difference| against ``outputs`` + ``outputs_relative`` * largest value; integers and masks must be equal."""
    if ours.shape != theirs.shape:
        raise DataError(f"{name} has shape {tuple(ours.shape)} here and {tuple(theirs.shape)} in the case.")
    if not theirs.is_floating_point():
        wrong = float((ours != theirs).sum())
        return Quantity(name, wrong, 0.0, wrong == 0)
    worst = float((ours.detach().double() - theirs.double()).abs().max()) if theirs.numel() else 0.0
    allowed = tolerance["outputs"] + tolerance.get("outputs_relative", 0.0) * float(theirs.abs().max())
    return Quantity(name, worst, allowed, worst <= allowed)


def compare_number(name: str, ours: float, theirs: float, *, absolute: float, relative: float) -> Quantity:
    """|difference| against ``absolute`` + ``relative`` * |theirs|."""
    worst, allowed = abs(ours - theirs), absolute + relative * abs(theirs)
    return Quantity(name, worst, allowed, worst <= allowed)


def gradients(loss: Tensor, module: nn.Module) -> dict[str, Tensor]:
    """The gradient of ``loss`` for every parameter of ``module`` by name; zeros where none arrives."""
    named = dict(module.named_parameters())
    found = torch.autograd.grad(loss, list(named.values()), retain_graph=True, allow_unused=True)
    return {n: torch.zeros_like(p) if g is None else g for (n, p), g in zip(named.items(), found, strict=True)}


def compare_norms(
    norms: Mapping[str, float],
    stored: Mapping[str, float | None],
    allowed: Mapping[str, float],
    prefix: str = "gradient",
) -> list[Quantity]:
    """Gradient norms under official names; None in the case means that no gradient arrives, which counts as 0."""
    limits = {"absolute": allowed["grad_norm_absolute"], "relative": allowed["grad_norm_relative"]}
    return [compare_number(f"{prefix}.{name}", norms[name], stored[name] or 0.0, **limits) for name in stored]


def compare_losses(
    losses: Mapping[str, float], stored: Mapping[str, float], allowed: Mapping[str, float]
) -> list[Quantity]:
    """Losses by the names of the case; every one that the case holds is compared."""
    limits = {"absolute": allowed["loss"], "relative": allowed["loss_relative"]}
    return [compare_number(f"loss.{name}", losses[name], stored[name], **limits) for name in stored]


def _json(path: Path) -> Path:
    """The json of the pair that ``path`` belongs to."""
    if path.suffix not in (".json", ".safetensors"):
        raise DataError(f"{path.name} is no parity case; give its .safetensors or .json file.")
    return path.with_suffix(".json")


def _facts(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise DataError(f"{path} is not there; a case is a .safetensors file with a .json of the same name beside it.")
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path.name} is not valid JSON ({error}); fetch the case again.") from error
    if not isinstance(facts, dict) or not isinstance(facts.get("method"), str):
        raise DataError(f"{path.name} names no method; a case's json holds 'method', 'config', 'tolerance' and more.")
    return facts


def _tensors(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise DataError(f"{path} is not there; a case is a .safetensors file with a .json of the same name beside it.")
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise DataError(f"{path.name} is not a readable safetensors file ({error}); fetch the case again.") from error


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    found = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    # Stored small, run in float32: every float16 value is exact in it.
    return {name: t.float() if t.dtype in (torch.float16, torch.bfloat16) else t for name, t in found.items()}
