"""EffMulti: three views of a clip (joined, shared, individual), weighed in two small steps.

Paper   Feng Qiu, Chengyang Xie, Yu Ding, Wanzeng Kong. EffMulti: Efficiently Modeling Complex Multimodal Interactions for
        Emotion Analysis. arXiv 2212.08661, December 2022. Only the abstract was read: this is a reconstruction after
        Qiu et al. that has what it names, and no reproduction.
Code    none known
Shapes  N rows, D width, M modalities, V views

From the abstract: one representation that integrates all modalities, one that they share, one of each modality alone; a
hierarchical fusion, of modalities first, of meanings then; few parameters.
Inferred: everything else, so all layers, sizes, losses and training settings.
A modality that a row lacks enters the joined view as zeros, has no part in the shared one and no weight among the
individual ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moodal.core.batch import Batch, Stream
from moodal.core.errors import check
from moodal.core.method import Losses, Method, MethodConfig, Output
from moodal.core.spec import DataSpec, Modality
from moodal.layers.fusion import weighted_sum
from moodal.layers.heads import Perceptron
from moodal.layers.inputs import StreamInputs
from moodal.layers.masks import masked_mean, masked_softmax
from moodal.layers.recurrent import GRU
from moodal.layers.summaries import FirstStep
from moodal.losses.task import RegressionLoss, labelled_mean, task_loss

View = Literal["joined", "shared", "individual"]
VIEWS: tuple[View, ...] = ("joined", "shared", "individual")


@dataclass(frozen=True, kw_only=True)
class EffMultiConfig(MethodConfig):
    """Settings of EffMulti; all numbers are inferred."""

    width: int = 64
    views: tuple[View, ...] = VIEWS
    product: bool = True  # the product of all views beside their weighted sum
    similarity: float = 0.1  # weight of what draws the shared vectors together
    difference: float = 0.1  # weight of what keeps a modality's own vector apart from its shared one
    dropout: float = 0.2
    loss: RegressionLoss = "l1"  # for regression; classification has cross-entropy

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.width >= 1, f"width is {self.width}; it must be 1 or more.")
        check(bool(self.views), f"views is empty; give some of {', '.join(VIEWS)}.")
        check(len(set(self.views)) == len(self.views), f"views names one twice: {', '.join(self.views)}.")
        check(0 <= self.dropout < 1, f"dropout is {self.dropout}; it lies from 0 up to 1.")
        for name in ("similarity", "difference"):
            check(self.__dict__[name] >= 0, f"{name} is {self.__dict__[name]}; it cannot be negative.")


class EffMulti(Method):
    """Views of all modalities, of what they share and of each alone, fused in two steps."""

    Config = EffMultiConfig
    title = "EffMulti: joined, shared and individual views in a modality-semantic hierarchy"
    paper = "after Qiu et al., arXiv 2212.08661"
    status = "after"
    ablations: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "full": {},
        "without the joined view": {"model.views": ["shared", "individual"]},
        "without the shared view": {"model.views": ["joined", "individual"]},
        "without the individual views": {"model.views": ["joined", "shared"]},
        "without the product": {"model.product": False},
    }

    def __init__(self, cfg: EffMultiConfig, spec: DataSpec) -> None:
        super().__init__(cfg, spec)
        self.inputs = StreamInputs(spec, cfg.modalities)
        self.encoders = nn.ModuleDict({m: _Encoder(m, width, cfg.width) for m, width in self.inputs.widths.items()})
        self.fusion = HierarchicalFusion(cfg.width, len(self.encoders), cfg.views, product=cfg.product)
        self.head = Perceptron(cfg.width, cfg.width, spec.task, dropout=cfg.dropout)

    def backbone(self) -> nn.Module | None:
        """The text encoder, where it is part of the model."""
        return self.inputs.encoder

    def forward(self, batch: Batch) -> Output:
        """Scores (N,) or logits (N, C); weights of the modalities (N, M) and of the views (N, V) for inspection."""
        output, _ = self._run(batch)
        return output

    def loss(self, batch: Batch) -> Losses:
        """The task's loss, similarity of the shared vectors, difference between a modality's shared and own vector."""
        cfg = self.cfg
        output, fused = self._run(batch)
        total, rows = task_loss(output.prediction, batch.labels, task=self.spec.task, kind=cfg.loss)
        parts = {"task": total}
        if fused.shared is not None:
            parts["similarity"] = labelled_mean(similarity(fused.shared, fused.present), batch.labels)
            total = total + cfg.similarity * parts["similarity"]
        if fused.shared is not None and fused.own is not None:
            parts["difference"] = labelled_mean(difference(fused.shared, fused.own, fused.present), batch.labels)
            total = total + cfg.difference * parts["difference"]
        return Losses(total, output, rows=rows, **parts)

    def _run(self, batch: Batch) -> tuple[Output, "Fused"]:
        streams = self.inputs(batch)
        vectors = torch.stack([self.encoders[m](stream) for m, stream in streams.items()], dim=1)
        present = torch.stack([stream.mask.any(dim=1) for stream in streams.values()], dim=1)
        fused = self.fusion(vectors, present)
        weights = {"views": fused.views.detach()}
        if fused.modalities is not None:
            weights["gates"] = fused.modalities.detach()
        return Output(self.head(fused.vector), {"modalities": vectors, "fused": fused.vector}, weights), fused


class _Encoder(nn.Module):
    """(N, T, W) -> (N, D): a linear map of the text's first state, the last state of a GRU for the others; LayerNorm."""

    def __init__(self, modality: Modality, width: int, out: int) -> None:
        super().__init__()
        self.read = nn.Linear(width, out) if modality == "text" else GRU(width, out, bidirectional=False)
        self.first = FirstStep()
        self.norm = nn.LayerNorm(out)

    def forward(self, stream: Stream) -> Tensor:
        """Zeros for a row without real steps."""
        if isinstance(self.read, GRU):
            _, vector = self.read(stream.data, stream.mask)
        else:
            vector = self.read(self.first(stream).vector)
        return self.norm(vector) * stream.mask.any(dim=1, keepdim=True)


@dataclass(frozen=True)
class Fused:
    """One vector (N, D) of each row and how it came about; None where no view in use needs it."""

    vector: Tensor
    present: Tensor  # (N, M)
    shared: Tensor | None  # (N, M, D) through the map that all modalities share
    own: Tensor | None  # (N, M, D) scaled and shifted by the modality itself
    modalities: Tensor | None  # (N, M) weights within the individual view
    views: Tensor  # (N, V) weights of the views


class HierarchicalFusion(nn.Module):
    """Individual vectors weighed against each other first, views of a clip then. Reconstructed, as is every equation.

    joined I = ReLU(W_I [u_1; ...; u_M] + b); shared s_m = W_S u_m + b, S their mean; own p_m = k_m * u_m + c_m and
    P = sum of softmax_m(w^T tanh(W_e p_m)) p_m. Then C = LN(sum of softmax_j(w'^T tanh(W_f V_j + b_j)) V_j + I * S * P).
    """

    def __init__(self, width: int, modalities: int, views: tuple[View, ...], *, product: bool) -> None:
        super().__init__()
        self.views, self.product = tuple(view for view in VIEWS if view in views), product
        self.joined = nn.Linear(modalities * width, width) if "joined" in views else None
        self.shared = nn.Linear(width, width) if "shared" in views else None
        if "individual" in views:
            self.scale = nn.Parameter(torch.ones(modalities, width))
            self.shift = nn.Parameter(torch.zeros(modalities, width))
            self.modality_scores = _Scores(width)
        self.view_scores = _Scores(width, shifts=len(self.views))
        self.norm = nn.LayerNorm(width)

    def forward(self, vectors: Tensor, present: Tensor) -> Fused:
        """(N, M, D), zeros where a row lacks the modality, and which it has (N, M)."""
        seen: dict[View, Tensor] = {}
        shared = own = weights = None
        if self.joined is not None:
            seen["joined"] = F.relu(self.joined(vectors.flatten(1)))
        if self.shared is not None:
            shared = self.shared(vectors)
            seen["shared"] = masked_mean(shared, present)
        if "individual" in self.views:
            own = vectors * self.scale + self.shift
            weights = masked_softmax(self.modality_scores(own), present)
            seen["individual"] = weighted_sum(weights, own)
        views = torch.stack([seen[view] for view in self.views], dim=1)
        shares = self.view_scores(views).softmax(dim=-1)
        vector = weighted_sum(shares, views)
        if self.product and len(self.views) > 1:
            vector = vector + views.prod(dim=1)
        return Fused(self.norm(vector), present, shared, own, weights, shares)


class _Scores(nn.Module):
    """w^T tanh(W x + b_k) of K vectors side by side; without ``shifts`` there is no b."""

    def __init__(self, width: int, *, shifts: int = 0) -> None:
        super().__init__()
        self.map = nn.Linear(width, width, bias=False)
        self.weight = nn.Linear(width, 1, bias=False)
        self.shifts = nn.Parameter(torch.zeros(shifts, width)) if shifts else None

    def forward(self, vectors: Tensor) -> Tensor:
        """(N, K, D) -> (N, K)."""
        inside = self.map(vectors)
        inside = inside if self.shifts is None else inside + self.shifts
        found: Tensor = self.weight(torch.tanh(inside))
        return found.squeeze(-1)


def similarity(shared: Tensor, present: Tensor) -> Tensor:
    """(N,) mean over the pairs of modalities present of |s_m - s_n|^2 / D; 0 where there is no pair."""
    pairs = list(combinations(range(shared.shape[1]), 2))
    if not pairs:
        return shared.new_zeros(len(shared))
    first, second = (list(side) for side in zip(*pairs))
    apart = (shared[:, first] - shared[:, second]).square().mean(dim=-1)
    return masked_mean(apart.unsqueeze(-1), present[:, first] & present[:, second]).squeeze(-1)


def difference(shared: Tensor, own: Tensor, present: Tensor) -> Tensor:
    """(N,) mean over the modalities present of cos(s_m, p_m)^2, between 0 and 1."""
    alike = F.cosine_similarity(shared, own, dim=-1).square()
    return masked_mean(alike.unsqueeze(-1), present).squeeze(-1)
