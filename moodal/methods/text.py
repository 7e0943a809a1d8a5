"""TEXT: explanations aligned with sound and face, gated temporal alignment, experts routed by the text.

Paper   Dongning Rao, Yunbiao Zeng, Zhihua Jiang, Jujian Lv. A Text-Routed Sparse Mixture-of-Experts Model with
        Explanation and Temporal Alignment for Multi-Modal Sentiment Analysis. AAAI 2026, 32799-32807. arXiv 2512.22741
Code    fip-lab/TEXT @ 96be55c10883b789729ee62778eb3025cdcdfca0 (no licence: read as a reference, nothing taken from it)
Shapes  N rows, T steps, D width, M segments (text, audio, vision: those present), E experts, k chosen, L mixture layers

Differences from the official code
  1. Routing noise is drawn in training only; official: in evaluation too, so two evaluations differ.
  2. Expert capacity is off by default, and in evaluation it only exists with ``reference``; official: rows beyond it are
     dropped by their place in an unstable sort. Here an expert keeps its first rows in batch order.
  3. Padding is masked in attention, in the routing mean and in the convolution; official: read like real steps. A
     missing stream is its summary token alone.
  4. Sequence lengths are free up to ``max_steps``; official: exactly 50. Each segment of the mixture has position rows
     of its own (the official rows, cut into three).
  5. The last mixture layer is evaluated at the summary tokens only, and the three norms before query, key and value are
     folded into one projection: the same numbers, less work.
  6. Load-balancing loss, router z-loss and distillation towards the text (VSD and VCD of Tian et al., CVPR 2021, on the
     summaries of the streams before they meet) are options, off by default; official: none.
``reference`` computes what is published (3 undone, streams padded to ``max_steps``), for official checkpoints.

Inferred, because the paper's ablation names them only: "linear" alignment is one linear map of explanation and modality
side by side; "mamba" is one selective state-space block per stream; "cross_attention" lets audio and vision attend to
each other; the mixture's "transformer" has one feed-forward of the expert's size; without gates the summaries are averaged.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from moodal.core.batch import Batch, Stream, Target
from moodal.core.errors import check
from moodal.core.method import Losses, Method, MethodConfig, Output
from moodal.core.spec import MODALITIES, DataSpec, Needs, Role, StreamSpec
from moodal.layers.distillation import ViewHeads
from moodal.layers.experts import Routing, balance_loss, router_z_loss
from moodal.layers.fusion import GatedFusion, MeanFusion
from moodal.layers.heads import Head
from moodal.layers.inputs import text_encoder
from moodal.layers.masks import check_steps, masked_mean, pad_steps
from moodal.layers.routed import MixtureTransformer, PlainLayer, RoutedLayer
from moodal.layers.temporal import AttentionAlignment, GatedAlignment, MambaAlignment, NoAlignment
from moodal.layers.transformer import CrossAlignment, LinearAlignment, Sequence, SequenceEncoder
from moodal.losses.distillation import pairs_taught_by, view_losses
from moodal.losses.task import RegressionLoss, task_loss


@dataclass(frozen=True, kw_only=True)
class TextConfig(MethodConfig):
    """Settings of TEXT; the defaults are the paper's for MOSI, except ``max_steps`` (there 50) and ``capacity`` (1.0)."""

    explanations: bool = True  # encode the explanations of voice and face; with text alone they stand in for the others
    comment: bool = True  # join the overall comment to the transcript (with explanations only)
    max_steps: int = 128  # positions per segment
    width: int = 128
    heads: int = 8
    head_width: int = 64
    feed_forward: int = 128
    layers: int = 3  # mixture layers; MOSEI 2, CH-SIMS 3, CH-SIMS v2 1
    alignment: Literal["cross", "linear"] = "cross"
    temporal: Literal["gated", "concatenation", "mamba", "cross_attention"] = "gated"
    temporal_inner: int = 256
    kernel: int = 4
    mixture: Literal["experts", "transformer"] = "experts"
    experts: int = 5
    top_k: int = 3
    expert_hidden: int = 128
    noise: bool = True  # routing noise in training
    capacity: float | None = None  # rows per expert: share * N k / E; null: no limit
    fusion: Literal["gates", "mean"] = "gates"
    dropout: float = 0.0
    head_dropout: float = 0.1
    loss: RegressionLoss = "mse"  # for regression; classification has cross-entropy
    label_smoothing: float = 0.0
    balance: float = 0.0  # weight of the load-balancing loss
    router_z: float = 0.0  # weight of the router z-loss
    distillation: float = 0.0  # weight of what single streams tell, audio and vision taught by the text
    reference: bool = False  # no masks after the text encoder, streams padded to max_steps: the published computation

    @property
    def longest(self) -> int | None:
        """Steps of a sequence that there are positions for."""
        return self.max_steps

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in (
            "max_steps",
            "heads",
            "head_width",
            "feed_forward",
            "layers",
            "temporal_inner",
            "kernel",
            "expert_hidden",
        ):
            check(self.__dict__[name] >= 1, f"{name} is {self.__dict__[name]}; it must be 1 or more.")
        check(self.width >= 2, f"width is {self.width}; it must be 2 or more.")
        check(
            1 <= self.top_k <= self.experts, f"top_k is {self.top_k}; it lies between 1 and experts ({self.experts})."
        )
        check(self.capacity is None or self.capacity > 0, f"capacity is {self.capacity}; it must be positive, or null.")
        for name in ("dropout", "head_dropout", "label_smoothing"):
            check(0 <= self.__dict__[name] < 1, f"{name} is {self.__dict__[name]}; it lies from 0 up to 1.")
        for name in ("balance", "router_z", "distillation"):
            check(self.__dict__[name] >= 0, f"{name} is {self.__dict__[name]}; it cannot be negative.")

    @property
    def roles(self) -> tuple[Role, ...]:
        """Explanations encoded as sequences: of the modalities in use, or of both others if text is used alone."""
        if not self.explanations:
            return ()
        alone = tuple(self.modalities) == ("text",)
        roles: tuple[Role, ...] = ("audio", "vision")
        return tuple(role for role in roles if alone or role in self.modalities)


class TEXT(Method):
    """Text-routed sparse mixture of experts with explanation and temporal alignment."""

    Config = TextConfig
    title = "TEXT: text-routed sparse mixture of experts with explanation and temporal alignment"
    paper = "Rao, Zeng, Jiang, Lv. AAAI 2026, 32799-32807"
    status = "parity"
    ablations: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "full": {},
        "without explanations": {"model.explanations": False},
        "text only, with explanations": {"model.modalities": ["text"]},
        "explanation alignment: linear": {"model.alignment": "linear"},
        "temporal alignment: concatenation": {"model.temporal": "concatenation"},
        "temporal alignment: Mamba": {"model.temporal": "mamba"},
        "temporal alignment: cross-attention": {"model.temporal": "cross_attention"},
        "mixture: transformer": {"model.mixture": "transformer"},
        "without gate fusion": {"model.fusion": "mean"},
    }

    def __init__(self, cfg: TextConfig, spec: DataSpec, *, encoder: nn.Module | None = None) -> None:
        # `encoder`: a text encoder already built (its weights come with a checkpoint); otherwise the one `spec` names.
        super().__init__(cfg, spec)
        inputs = _inputs(cfg, spec)
        check(
            bool(inputs),
            f"None of {', '.join(cfg.modalities)} is in this corpus, which has {', '.join(spec.modalities)}.",
        )
        self.kinds = {name: stream.kind for name, stream in inputs.items()}
        self.widths = {name: stream.width for name, stream in inputs.items()}
        self.encoder = text_encoder(inputs.values()) if encoder is None else encoder
        self.projections = nn.ModuleDict({name: nn.Linear(stream.width, cfg.width) for name, stream in inputs.items()})
        self.sequences = nn.ModuleDict(
            {name: SequenceEncoder(cfg.width, steps=cfg.max_steps, **_layer(cfg)) for name in inputs}
        )
        both = [m for m in ("audio", "vision") if m in inputs and explanation(m) in inputs]
        self.alignments = nn.ModuleDict({m: _alignment(cfg) for m in both})
        self.segments = tuple(m for m in MODALITIES if m in inputs or explanation(m) in inputs)
        self.temporal = _temporal(cfg) if {"audio", "vision"} <= set(self.segments) else None
        mixture = [_mixture_layer(cfg) for _ in range(cfg.layers)]
        self.mixture = MixtureTransformer(
            mixture, width=cfg.width, segments=len(self.segments), steps=cfg.max_steps + 1, dropout=cfg.dropout
        )
        self.fusion = GatedFusion(cfg.width, len(self.segments)) if cfg.fusion == "gates" else MeanFusion()
        self.head = Head(cfg.width, spec.task, dropout=cfg.head_dropout)
        streams: dict[str, int] = {m: cfg.width for m in MODALITIES if m in inputs}
        self.views = ViewHeads(streams, spec.task) if cfg.distillation and streams else None
        self.teaching: Tensor
        self.register_buffer("teaching", pairs_taught_by(("text",), tuple(streams)), persistent=False)

    @classmethod
    def needs(cls, cfg: TextConfig) -> Needs:
        """The modalities in use, their explanations, and the overall comment beside the text."""
        comment = cfg.comment and cfg.explanations and "text" in cfg.modalities
        return Needs(modalities=tuple(cfg.modalities), explanations=cfg.roles, comment=comment)

    def backbone(self) -> nn.Module | None:
        """The text encoder, where it is part of the model (``data.text.mode=finetune`` or ``tokens``)."""
        return self.encoder

    def forward(self, batch: Batch) -> Output:
        """Scores (N,) or logits (N, C); gates (N, M) and routing (N, L, E) for inspection."""
        output, _ = self._run(batch)
        return output

    def loss(self, batch: Batch) -> Losses:
        """The task's loss, plus the router's two regularisers and the distillation if their weights are not 0."""
        output, decisions = self._run(batch)
        cfg = self.cfg
        task, rows = task_loss(
            output.prediction, batch.labels, task=self.spec.task, kind=cfg.loss, label_smoothing=cfg.label_smoothing
        )
        total, parts = task, {"task": task}
        if decisions:
            parts["balance"] = torch.stack([balance_loss(routing) for routing in decisions]).mean()
            parts["router_z"] = torch.stack([router_z_loss(routing) for routing in decisions]).mean()
            if cfg.balance or cfg.router_z:
                total = total + cfg.balance * parts["balance"] + cfg.router_z * parts["router_z"]
        if self.views is not None:
            parts["distillation"] = self._distillation(self.views, batch, output, batch.labels)
            total = total + cfg.distillation * parts["distillation"]
        return Losses(total, output, rows=rows, **parts)

    def _distillation(self, heads: ViewHeads, batch: Batch, output: Output, target: Target) -> Tensor:
        """Task losses, sufficiency and consistency of the streams' summaries, which have seen no other stream."""
        views = heads({m: output.features[f"{m}_sequence"][:, 0] for m in heads.names})
        masks = (self._stream(batch, m).mask for m in heads.names)
        losses = view_losses(
            views.observations,
            views.codes,
            target,
            task=self.spec.task,
            present=torch.stack([mask.any(dim=1) for mask in masks]),
            pairs=self.teaching,
            kind=self.cfg.loss,
            label_smoothing=self.cfg.label_smoothing,
        )
        return losses.task + losses.sufficiency + losses.consistency

    def encode(self, batch: Batch) -> dict[str, Sequence]:
        """Every stream and explanation as a sequence with its summary token in front: name -> (N, 1 + T, D), mask."""
        states = self._text_states({name: self._stream(batch, name) for name in self.kinds})
        return {name: self.sequences[name](self.projections[name](x), mask) for name, (x, mask) in states.items()}

    def align(self, sequences: Mapping[str, Sequence]) -> dict[str, Sequence]:
        """Explanation alignment: the sequence of each segment, a stream led by its explanation where it has one."""
        aligned: dict[str, Sequence] = {}
        for segment in self.segments:
            told = explanation(segment)
            if segment in self.alignments:
                aligned[segment] = self.alignments[segment](sequences[told], sequences[segment])
            else:
                aligned[segment] = sequences[segment if segment in sequences else told]
        return aligned

    def _run(self, batch: Batch) -> tuple[Output, tuple[Routing, ...]]:
        cfg = self.cfg
        sequences = self.encode(batch)
        aligned = self.align(sequences)
        parts = dict(aligned)
        if self.temporal is not None:
            parts["audio"], parts["vision"] = self.temporal(aligned["audio"], aligned["vision"])
        capacity = cfg.capacity if self.training or cfg.reference else None
        condition = self._condition(parts, batch)
        summaries, decisions = self.mixture([parts[s] for s in self.segments], condition, capacity=capacity)
        fused, gates = self.fusion(summaries)
        features = {f"{name}_sequence": x for name, (x, _) in sequences.items()}
        features |= {f"{name}_aligned": x for name, (x, _) in aligned.items()}
        features |= {f"{name}_temporal": x for name, (x, _) in parts.items()}
        features |= {"summaries": summaries, "fused": fused}
        inspection = {"gates": gates.detach()}
        if decisions:
            inspection["routing"] = torch.stack([d.gates.detach() for d in decisions], dim=1)
            features["experts"] = torch.stack([d.experts for d in decisions], dim=1)
            features["kept"] = torch.stack([d.kept for d in decisions], dim=1)
        return Output(self.head(fused), features=features, inspection=inspection), decisions

    def _condition(self, parts: Mapping[str, Sequence], batch: Batch) -> Tensor:
        """(N, D) what the routers see: the mean of the text sequence; zeros (the same experts for all) without text."""
        if "text" not in parts:
            return self.head.first.weight.new_zeros(len(batch.index), self.cfg.width)
        return masked_mean(*parts["text"])

    def _stream(self, batch: Batch, name: str) -> Stream:
        """The named stream; one unreal step where the batch has none; padded to ``max_steps`` in reference mode."""
        modality = name.removesuffix("_explanation")
        found: Mapping[Any, Stream] = batch.streams if modality == name else batch.explanations
        stream = found[modality] if modality in found else self._missing(name, batch)
        steps = stream.data.shape[1]
        check_steps(name.replace("_", " "), steps, self.cfg.max_steps, "model.max_steps")
        return _padded(stream, self.cfg.max_steps) if self.cfg.reference else stream

    def _missing(self, name: str, batch: Batch) -> Stream:
        rows, device = len(batch.index), batch.index.device
        mask = torch.zeros(rows, 1, dtype=torch.bool, device=device)
        if self.kinds[name] == "tokens":
            return Stream(torch.zeros(rows, 1, dtype=torch.int64, device=device), mask)
        return Stream(torch.zeros(rows, 1, self.widths[name], device=device), mask)

    def _text_states(self, streams: Mapping[str, Stream]) -> dict[str, Sequence]:
        """Streams as (N, T, W) values: features as they are, all token streams through the encoder in one call."""
        states = {name: (s.data, None if self.cfg.reference else _padding(s.mask)) for name, s in streams.items()}
        names = [name for name in streams if self.kinds[name] == "tokens"]
        if not names or self.encoder is None:
            return states
        steps = max(streams[name].data.shape[1] for name in names)
        padded = [_padded(streams[name], steps) for name in names]
        ids, mask = torch.cat([part.data for part in padded]), torch.cat([part.mask for part in padded])
        encoded = self.encoder(ids, mask)
        for name, part in zip(names, encoded.split(len(streams[names[0]].data))):
            states[name] = (part[:, : streams[name].data.shape[1]], states[name][1])
        return states


def _padding(mask: Tensor) -> Tensor | None:
    """The mask (N, T), or None for one whole clip on a CPU: there masks cost 7 to 8 % of the time."""
    whole = len(mask) == 1 and mask.device.type == "cpu" and not torch.compiler.is_compiling() and bool(mask.all())
    return None if whole else mask


def explanation(modality: str) -> str:
    """The name of the explanation sequence of ``modality``."""
    return f"{modality}_explanation"


def _padded(stream: Stream, steps: int) -> Stream:
    data, mask = pad_steps(stream.data, stream.mask, steps)
    return Stream(data, stream.mask if mask is None else mask)


def _inputs(cfg: TextConfig, spec: DataSpec) -> dict[str, StreamSpec]:
    """The streams that enter, by name, in the order text, audio, vision, then explanations."""
    streams: dict[str, StreamSpec] = {
        m: spec.streams[m] for m in MODALITIES if m in cfg.modalities and m in spec.streams
    }
    told = {explanation(role): spec.explanations[role] for role in cfg.roles if role in spec.explanations}
    return {**streams, **told}


def _layer(cfg: TextConfig) -> dict[str, Any]:
    return {
        "heads": cfg.heads,
        "head_width": cfg.head_width,
        "feed_forward": cfg.feed_forward,
        "dropout": cfg.dropout,
    }


def _alignment(cfg: TextConfig) -> nn.Module:
    if cfg.alignment == "linear":
        return LinearAlignment(cfg.width)
    steps = cfg.max_steps + 1
    return CrossAlignment(cfg.width, source_steps=steps, target_steps=steps, **_layer(cfg))


def _temporal(cfg: TextConfig) -> nn.Module:
    if cfg.temporal == "gated":
        return GatedAlignment(cfg.width, inner=cfg.temporal_inner, kernel=cfg.kernel)
    if cfg.temporal == "mamba":
        return MambaAlignment(cfg.width, inner=cfg.temporal_inner, kernel=cfg.kernel)
    if cfg.temporal == "cross_attention":
        return AttentionAlignment(cfg.width, **_layer(cfg))
    return NoAlignment()


def _mixture_layer(cfg: TextConfig) -> RoutedLayer | PlainLayer:
    shared: dict[str, Any] = {
        "heads": cfg.heads,
        "head_width": cfg.head_width,
        "hidden": cfg.expert_hidden,
        "dropout": cfg.dropout,
    }
    if cfg.mixture == "transformer":
        return PlainLayer(cfg.width, **shared)
    return RoutedLayer(cfg.width, experts=cfg.experts, top_k=cfg.top_k, noise=cfg.noise, **shared)
