"""ScaleVLAD: steps of all modalities, at several time scales, described by their distance to the same few vectors.

Paper   Huaishao Luo, Lei Ji, Yanyong Huang, Bin Wang, Shenggong Ji, Tianrui Li. ScaleVLAD: Improving Multimodal Sentiment
        Analysis via Multi-Scale Fusion of Locally Descriptors. arXiv 2112.01368, December 2021. Only the abstract was
        read: this is "after Luo et al.", not a reproduction.
Code    attributed to ArrowLuo/ScaleVLAD; not read
Shapes  N rows, T steps, D width, K shared vectors, M modalities, S scales, P prototypes

Of the abstract: three transformer encoders, vectors shared by the modalities, several scales from token to utterance,
a transformer and one linear map behind them, and the self-supervised shifted clustering loss.
Inferred
  1. The aggregation is NetVLAD's, with softmax over the vectors; "mean" so that long sequences do not drown text.
  2. Scales are non-overlapping windows of 1, 2, 5, 10 steps and the whole sequence, averaged over real steps.
  3. Modalities and scales are added with one learnt weight each, or stand side by side as tokens (``fusion=tokens``).
  4. The utterance vectors in front of the tokens, type embeddings, two layers, the mean over tokens.
  5. The clustering algorithm (losses/clustering.py), all sizes, weights and training settings.
Clustering reads training clips only; nothing of it is used when predicting.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from moodal.core.batch import Batch, Stream
from moodal.core.errors import check
from moodal.core.method import Losses, Method, MethodConfig, Output, Update
from moodal.core.spec import DataSpec, Modality
from moodal.layers.heads import LinearHead
from moodal.layers.inputs import StreamInputs
from moodal.layers.masks import masked_mean
from moodal.layers.positions import places, sinusoids
from moodal.layers.transformer import Layer
from moodal.layers.vlad import Aggregation, Assignment, SharedVlad, windows
from moodal.losses.clustering import ShiftedClustering
from moodal.losses.task import RegressionLoss, task_loss

#: A window over the whole sequence.
WHOLE = 0


@dataclass(frozen=True, kw_only=True)
class ScaleVladConfig(MethodConfig):
    """Settings of ScaleVLAD; all of them are inferred."""

    width: int = 128
    heads: int = 8
    layers: int = 3  # of the audio and vision encoders
    centres: int = 8  # vectors shared by all modalities and scales
    scales: tuple[int, ...] = (1, 2, 5, 10, WHOLE)  # steps per window; 0: the whole sequence
    text_scales: tuple[int, ...] | None = None  # null: as ``scales``
    assignment: Assignment = "free"
    sharpness: float = 1.0  # of tied assignment
    aggregation: Aggregation = "mean"
    unit: bool = False  # each aggregated vector to length 1 before its LayerNorm
    fusion: Literal["sum", "tokens"] = "sum"
    utterance: bool = True  # the mean of each modality's steps as tokens of their own
    head_layers: int = 2
    dropout: float = 0.1
    clustering: float = 0.1  # weight of the clustering loss; 0: none
    prototypes: int = 10
    shift: float = 0.5
    temperature: float = 0.1
    clustering_from: int = 1  # first epoch with the clustering loss, from 0
    loss: RegressionLoss = "l1"

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.width % self.heads == 0, f"heads is {self.heads}; it must divide width ({self.width}).")
        for name in ("scales", "text_scales"):
            found = self.__dict__[name]
            fits = found is None or (len(found) > 0 and min(found) >= 0 and len(set(found)) == len(found))
            check(fits, f"{name} is {found}; give window lengths, each once, 0 for the whole sequence.")
        check(self.clustering >= 0, f"clustering is {self.clustering}; it cannot be negative.")
        check(self.clustering_from >= 1, f"clustering_from is {self.clustering_from}; the bank is full from 1 on.")
        check(0 <= self.dropout < 1, f"dropout is {self.dropout}; it lies from 0 up to 1.")

    def windows(self, modality: Modality) -> tuple[int, ...]:
        """The scales of ``modality``."""
        return self.text_scales if modality == "text" and self.text_scales is not None else self.scales


class ScaleVLAD(Method):
    """Multi-scale fusion with shared vectors of locally aggregated descriptors."""

    Config = ScaleVladConfig
    title = "ScaleVLAD: shared vectors over modalities and time scales"
    paper = "after Luo et al., arXiv 2112.01368"
    status = "after"
    ablations: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "full": {},
        "one scale": {"model.scales": [1]},
        "without clustering": {"model.clustering": 0.0},
        "scales as tokens": {"model.fusion": "tokens"},
    }

    def __init__(self, cfg: ScaleVladConfig, spec: DataSpec) -> None:
        super().__init__(cfg, spec)
        self.inputs = StreamInputs(spec, cfg.modalities)
        self.encoders = nn.ModuleDict({m: _encoder(m, width, cfg) for m, width in self.inputs.widths.items()})
        self.vlad = SharedVlad(
            cfg.width, cfg.centres, assignment=cfg.assignment, aggregation=cfg.aggregation, sharpness=cfg.sharpness
        )
        blocks = sum(len(cfg.windows(m)) for m in self.inputs.modalities)
        self.norm = nn.LayerNorm(cfg.width)
        self.weights = nn.Parameter(torch.ones(blocks)) if cfg.fusion == "sum" else None
        tokens = cfg.centres * (1 if cfg.fusion == "sum" else blocks) + len(self.encoders) * cfg.utterance
        self.types = nn.Parameter(torch.randn(tokens, cfg.width) * 0.02)
        self.mixer = _layers(cfg, cfg.head_layers)
        self.head = LinearHead(cfg.width, spec.task)
        rows = spec.size.get("train", 0)
        self.clusters = (
            ShiftedClustering(rows, cfg.width, prototypes=cfg.prototypes, shift=cfg.shift, temperature=cfg.temperature)
            if cfg.clustering and rows
            else None
        )

    def backbone(self) -> nn.Module | None:
        """The text encoder, where it is part of the model."""
        return self.inputs.encoder

    def forward(self, batch: Batch) -> Output:
        """Scores (N,) or logits (N, C); for inspection how much each modality takes of each vector, (N, M, K)."""
        streams = {m: self.encoders[m](stream) for m, stream in self.inputs(batch).items()}
        tokens, real = self._tokens(streams)
        for layer in self.mixer:
            tokens = layer(tokens, mask=real)
        fused = masked_mean(tokens, real)
        shares = [masked_mean(self.vlad.weights(s.data.detach()), s.mask) for s in streams.values()]
        return Output(self.head(fused), {"fused": fused}, {"vectors": torch.stack(shares, dim=1).detach()})

    def loss(self, batch: Batch) -> Losses:
        """The task's loss, and the clustering loss once there are pseudo-labels."""
        output = self(batch)
        task, rows = task_loss(output.prediction, batch.labels, task=self.spec.task, kind=self.cfg.loss)
        if self.clusters is None or int(self.clusters.clustered) < 0:
            return Losses(task, output, rows=rows, task=task)
        clustering = self.clusters(output.features["fused"], batch.index)
        return Losses(task + self.cfg.clustering * clustering, output, rows=rows, task=task, clustering=clustering)

    def step(self, batch: Batch, update: Update) -> Losses:
        """Cluster the bank when an epoch begins, take a step, put the new features into the bank."""
        if self.clusters is not None and update.progress.epoch >= self.cfg.clustering_from:
            self.clusters.cluster(update.progress.epoch)
        losses = super().step(batch, update)
        if self.clusters is not None and losses.output is not None:
            self.clusters.remember(losses.output.features["fused"], batch.index)
        return losses

    def aggregate(self, streams: Mapping[Modality, Stream]) -> list[tuple[Tensor, Tensor]]:
        """(N, K, D) and whether it speaks of any step, (N,), for every modality and scale, in order."""
        found = []
        for modality, stream in streams.items():
            for size in self.cfg.windows(modality):
                values, mask = windows(stream.data, stream.mask, size if size != WHOLE else None)
                vectors = self.vlad(values, mask)
                vectors = nn.functional.normalize(vectors, dim=-1) if self.cfg.unit else vectors
                there = mask.any(dim=1)
                found.append((self.norm(vectors) * there[:, None, None], there))
        return found

    def _tokens(self, streams: Mapping[Modality, Stream]) -> tuple[Tensor, Tensor]:
        """The head's input (N, tokens, D) and which tokens are real; the first is where no modality is there."""
        blocks = self.aggregate(streams)
        means = [masked_mean(s.data, s.mask) for s in streams.values()] if self.cfg.utterance else []
        there = [s.mask.any(dim=1) for s in streams.values()] if self.cfg.utterance else []
        if self.weights is not None:
            vectors = torch.stack([block for block, _ in blocks], dim=1)
            bodies = torch.einsum("nbkd,b->nkd", vectors, self.weights)
            shown = torch.stack([own for _, own in blocks], dim=1).any(dim=1, keepdim=True)
            shown = shown.expand(-1, self.cfg.centres)
        else:
            bodies = torch.cat([block for block, _ in blocks], dim=1)
            shown = torch.stack([own for _, own in blocks], dim=1).repeat_interleave(self.cfg.centres, dim=1)
        real = torch.cat([torch.stack(there, dim=1), shown], dim=1) if there else shown
        tokens = torch.cat([torch.stack(means, dim=1), bodies], dim=1) if means else bodies
        empty = ~real.any(dim=1)
        real = torch.cat([(real[:, 0] | empty)[:, None], real[:, 1:]], dim=1)
        return tokens + self.types, real


class _Encoder(nn.Module):
    """(N, T, W) -> (N, T, D): a linear map and LayerNorm, then for audio and vision positions and transformer layers."""

    def __init__(self, width: int, out: int, layers: nn.ModuleList) -> None:
        super().__init__()
        self.project, self.norm, self.layers = nn.Linear(width, out), nn.LayerNorm(out), layers

    def forward(self, stream: Stream) -> Stream:
        """The stream's encoding beside its mask; zeros on padding."""
        values, mask = self.norm(self.project(stream.data)), stream.mask
        if len(self.layers):
            values = values + sinusoids(mask.shape[1], values.shape[-1], like=values)[places(mask)]
        attended = mask | ~mask.any(dim=1, keepdim=True)  # attention wants a real step in every row
        for layer in self.layers:
            values = layer(values, mask=attended)
        return Stream(values * mask[..., None], mask)


def _encoder(modality: Modality, width: int, cfg: ScaleVladConfig) -> _Encoder:
    """Text was encoded already: it is mapped only."""
    return _Encoder(width, cfg.width, _layers(cfg, 0 if modality == "text" else cfg.layers))


def _layers(cfg: ScaleVladConfig, count: int) -> nn.ModuleList:
    return nn.ModuleList(
        Layer(
            cfg.width,
            heads=cfg.heads,
            head_width=cfg.width // cfg.heads,
            feed_forward=4 * cfg.width,
            dropout=cfg.dropout,
        )
        for _ in range(count)
    )
