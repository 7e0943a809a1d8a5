"""The contract between a method and the loop.

A method says what to minimise (``loss``), optionally how a step goes (``step``) and in which stages and passes it is
trained (``stages``). Only the updater moves parameters; only the loop knows epochs. Everything a method remembers
is a parameter or a buffer, so a run resumes exactly.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import numpy as np
from torch import Tensor, nn

from moodal.core.batch import Batch, Target
from moodal.core.errors import check
from moodal.core.spec import MODALITIES, DataSpec, Modality, Needs


@dataclass(frozen=True, kw_only=True)
class MethodConfig:
    """Base of every method's settings: frozen, typed, with the paper's main setting as defaults.

    ``modalities``: the streams a method uses, of those the corpus has. Raises ``MoodalError`` for an empty or unknown set.
    """

    modalities: tuple[Modality, ...] = MODALITIES

    def __post_init__(self) -> None:
        known = all(m in MODALITIES for m in self.modalities) and len(set(self.modalities)) == len(self.modalities)
        check(
            bool(self.modalities) and known,
            f"modalities is {list(self.modalities)}; give one or more of {', '.join(MODALITIES)}, each once.",
        )

    @property
    def longest(self) -> int | None:
        """Steps of a sequence that there are positions for; None: any number."""
        return None


@dataclass(frozen=True)
class Output:
    """What a forward pass gives.

    ``prediction`` is (N,) for regression, (N, C) logits for classification, (N, D) embeddings for identification.
    """

    prediction: Tensor
    features: Mapping[str, Tensor] = field(default_factory=dict)  # intermediate results by name, for losses
    inspection: Mapping[str, Tensor] = field(default_factory=dict)  # (N, ...) per-row facts to look at: gates, routing


class Losses:
    """A total, written out as the paper writes it, and its parts, for the log only.

    ``rows`` is the number of rows the total is a mean over; None stands for all rows of the batch.
    """

    def __init__(
        self, total: Tensor, output: Output | None = None, *, rows: Tensor | int | None = None, **parts: Tensor
    ) -> None:
        self.total, self.output, self.rows = total, output, rows
        self.parts = {name: part.detach() for name, part in parts.items()}


class Group:
    """Parameters that share a learning rate, named by the method and given numbers by the recipe.

    ``modules`` may be modules or single parameters; those of ``without`` are left out. ``still``: the gradients count
    in the norm that is clipped, and the parameters stay where they are (some published code clips so).
    """

    def __init__(
        self,
        name: str,
        *modules: nn.Module | nn.Parameter,
        without: Sequence[nn.Module | nn.Parameter] = (),
        still: bool = False,
    ) -> None:
        self.name, self.still, self._modules, self._without = name, still, modules, tuple(without)

    def parameters(self) -> list[nn.Parameter]:
        """The parameters, each once, in registration order."""
        left_out = {id(p) for p in _flatten(self._without)}
        seen: dict[int, nn.Parameter] = {id(p): p for p in _flatten(self._modules) if id(p) not in left_out}
        return list(seen.values())


def _flatten(items: Sequence[nn.Module | nn.Parameter]) -> Iterator[nn.Parameter]:
    for item in items:
        if isinstance(item, nn.Module):
            yield from item.parameters()
        else:
            yield item


@dataclass(frozen=True)
class Progress:
    """Where training stands: epoch and step count from 0 within the stage."""

    stage: str
    epoch: int
    step: int
    epochs: int


class Update(Protocol):
    """The only way to move parameters. Calls backward, averages over processes, clips, steps, zeroes."""

    progress: Progress

    def __call__(
        self, losses: Losses, optimiser: str = "main", *, adjust: Callable[[Sequence[nn.Parameter]], None] | None = None
    ) -> None: ...


Step = Callable[[Batch, Update], Losses]
#: epoch -> positions of the training split in the order to visit (a permutation, a subset or repeats).
Order = Callable[[int], Tensor]
#: positions (N,) -> positions (N,) of companion rows.
Companions = Callable[[Tensor, int], Tensor]


class Pass:
    """One walk over the training split. ``groups``: a list (one optimiser, "main") or {optimiser name: list}."""

    def __init__(self, step: Step, groups: Sequence[Group] | Mapping[str, Sequence[Group]]) -> None:
        self.step = step
        self.groups: dict[str, list[Group]] = (
            {name: list(part) for name, part in groups.items()}
            if isinstance(groups, Mapping)
            else {"main": list(groups)}
        )

    def all_groups(self) -> list[Group]:
        return [group for part in self.groups.values() for group in part]


@dataclass(frozen=True)
class Stage:
    """A named span of epochs; the recipe gives it epochs, patience and the selection metric."""

    name: str
    passes: tuple[Pass, ...]
    order: Order | None = None
    companions: Companions | None = None


class Split(Protocol):
    """What the loop, and a method in ``on_stage_start``, may see of a split."""

    @property
    def ids(self) -> tuple[str, ...]: ...

    @property
    def target(self) -> Target | None: ...

    @property
    def columns(self) -> Mapping[str, Tensor]: ...

    def __len__(self) -> int: ...

    def rows(self, index: Tensor) -> Batch: ...

    def batches(self, size: int) -> Iterator[Batch]: ...

    @property
    def cost(self) -> np.ndarray: ...


class Method(nn.Module):
    """Base of every method. Subclasses define ``Config``, ``forward`` and ``loss``; most define nothing else.

    ``exceptions`` declares contract properties that the published form breaks: {property: reason}; the contract
    tests then assert exactly that. Known properties: padding, rows, missing, gradients.
    """

    Config: ClassVar[type[MethodConfig]] = MethodConfig
    exceptions: ClassVar[Mapping[str, str]] = {}
    #: full name, source and status for tables and docs: "parity", "faithful" or "after".
    title: ClassVar[str] = ""
    paper: ClassVar[str] = ""
    status: ClassVar[str] = "after"
    #: settings that make the paper's ablation table: {row name: {dotted key: value}}.
    ablations: ClassVar[Mapping[str, Mapping[str, Any]]] = {}

    def __init__(self, cfg: Any, spec: DataSpec) -> None:
        super().__init__()
        self.cfg, self.spec = cfg, spec

    @classmethod
    def needs(cls, cfg: Any) -> Needs:
        """What this method reads under these settings; by default the streams in ``cfg.modalities``, all optional."""
        return Needs(modalities=tuple(cfg.modalities))

    def forward(self, batch: Batch) -> Output:
        """Predict. Never reads ``batch.target``."""
        raise NotImplementedError

    def loss(self, batch: Batch) -> Losses:
        """The paper's objective on one batch."""
        raise NotImplementedError

    def step(self, batch: Batch, update: Update) -> Losses:
        """One training step; by default the loss and one update."""
        losses = self.loss(batch)
        update(losses)
        return losses

    def backbone(self) -> nn.Module | None:
        """The pretrained part that wants a learning rate of its own, if there is one."""
        return None

    def stages(self) -> tuple[Stage, ...]:
        """By default one stage "train" of one pass, over the groups "backbone" (if any) and "main"."""
        backbone = self.backbone()
        if backbone is None:
            groups = [Group("main", self)]
        else:
            groups = [Group("backbone", backbone), Group("main", self, without=(backbone,))]
        return (Stage("train", passes=(Pass(self.step, groups),)),)

    def on_stage_start(self, stage: str, train: Split) -> None:
        """Fill (never create) buffers at the start of a stage; not called again on resume."""
