"""MV2D: several views of one clip, each with a bottleneck that keeps what the target needs and all views support.

Paper   Xudong Tian, Zhizhong Zhang, Cong Wang, Wensheng Zhang, Yanyun Qu, Lizhuang Ma, Zongze Wu, Yuan Xie, Dacheng Tao.
        Variational Distillation for Multi-View Learning. IEEE TPAMI 46(7), 4551-4566, 2024. arXiv 2206.09548
Code    FutabaSakuraXD/Multi-View-Variational-Distillation @ 4d587b510e25ea1b34287be0bf417761b794855d
Shapes  N rows, T steps, n views (text, audio, vision: those present), D width of an observation, K of a code, C outputs

The released code has two applications of two views each, LiDAR-camera segmentation and person re-identification, and
no n-view form. This is the n-view form for clips, after Tian et al.:

    v_i = LN(summary of a transformer over view i)            P_vi from v_i by a linear map
    z_i = LN(W2 ReLU(LN(W1 v_i)))                             P_zi from z_i by a linear map
    v, z: the same over [v_1; ...; v_n], and the prediction is P_z
    total = Σ ½ (task(P_v) + task(P_z)) + a Σ KL(P_v ‖ P_z)   both sums over the views and the joint one
            + b consistency + c agreement                     over the views (moodal/losses/distillation.py)

Inferred: the sums over n views, their weights, the encoders, the joint bottleneck as predictor, the regression form of
the divergence. For two views the sums are VSD, VCD and VML of the paper before it; for one view VSD is left.

Differences from the official code (its segmentation losses, bottleneck and fusion are checked against it, not this form)
  1. KL(teacher ‖ student), which the theory asks for; official: the student first (``measure.direction``), and in
     re-identification probabilities where their logarithm belongs.
  2. Consistency takes part; official: commented out in segmentation.
  3. Layer norm in the bottleneck; official: batch norm, by which a clip depends on its batch mates (``norm``).
  4. A view that a row lacks counts in no sum, and is 0 in the joint observation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from moodal.core.batch import Batch, Stream
from moodal.core.errors import check
from moodal.core.method import Losses, Method, MethodConfig, Output
from moodal.core.spec import MODALITIES, DataSpec, Modality
from moodal.layers.distillation import Norm, ViewHeads, Views
from moodal.layers.inputs import StreamInputs
from moodal.layers.transformer import SequenceEncoder
from moodal.losses.distillation import Measure, ViewLosses, barycentre, pairs_taught_by, view_losses
from moodal.losses.task import RegressionLoss

JOINT = "joint"


@dataclass(frozen=True, kw_only=True)
class MV2DConfig(MethodConfig):
    """Settings of MV2D; bottleneck widths are those of the released LiDAR-camera code, the rest is this project's."""

    max_steps: int = 512  # positions per view
    width: int = 64  # D
    heads: int = 4
    head_width: int = 16
    feed_forward: int = 128
    layers: int = 1
    dropout: float = 0.1
    hidden: int = 48  # inside the bottleneck
    code: int = 32  # K
    norm: Norm = "layer"  # in the bottleneck
    joint: bool = True  # a bottleneck over all observations, which predicts; without it the mean over the views does
    predict: Literal["code", "observation"] = "code"  # from z or from v
    loss: RegressionLoss = "mse"  # for regression; classification has cross-entropy
    label_smoothing: float = 0.0
    sufficiency: float = 1.0
    consistency: float = 1.0
    agreement: float = 1.0
    measure: Measure = field(default_factory=Measure)
    teachers: tuple[Modality, ...] = MODALITIES  # whose observations teach other views; "text": distilled towards text
    #: weights other than 1, of a view ("text") in sufficiency and agreement, of a pair ("text_to_audio") in consistency
    priority: Mapping[str, float] = field(default_factory=dict)

    @property
    def longest(self) -> int | None:
        """Steps of a sequence that there are positions for."""
        return self.max_steps

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("max_steps", "width", "heads", "head_width", "feed_forward", "layers", "hidden", "code"):
            check(self.__dict__[name] >= 1, f"{name} is {self.__dict__[name]}; it must be 1 or more.")
        for name in ("dropout", "label_smoothing"):
            check(0 <= self.__dict__[name] < 1, f"{name} is {self.__dict__[name]}; it lies from 0 up to 1.")
        for name in ("sufficiency", "consistency", "agreement"):
            check(self.__dict__[name] >= 0, f"{name} is {self.__dict__[name]}; it cannot be negative.")
        known = set(self.teachers) <= set(MODALITIES)
        check(known, f"teachers is {list(self.teachers)}; known are {', '.join(MODALITIES)}.")
        names = {*MODALITIES, *(f"{j}_to_{i}" for j in MODALITIES for i in MODALITIES if i != j)}
        for name, weight in self.priority.items():
            check(name in names, f"priority names '{name}'; known are {', '.join(sorted(names))}.")
            check(weight >= 0, f"priority.{name} is {weight}; it cannot be negative.")


class MV2D(Method):
    """Multi-view variational distillation over the modalities present."""

    Config = MV2DConfig
    title = "MV2D: multi-view variational distillation"
    paper = "Tian et al. IEEE TPAMI 46(7), 4551-4566, 2024"
    status = "after"
    ablations: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "full": {},
        "without sufficiency": {"model.sufficiency": 0.0},
        "without consistency": {"model.consistency": 0.0},
        "without agreement": {"model.agreement": 0.0},
        "without distillation": {"model.sufficiency": 0.0, "model.consistency": 0.0, "model.agreement": 0.0},
        "distilled towards text": {"model.teachers": ["text"]},
        "student first": {"model.measure.direction": "student_first"},
        "without joint bottleneck": {"model.joint": False},
        "predicted from the observation": {"model.predict": "observation"},
    }

    def __init__(self, cfg: MV2DConfig, spec: DataSpec) -> None:
        super().__init__(cfg, spec)
        self.inputs = StreamInputs(spec, cfg.modalities)
        self.encoders = nn.ModuleDict({m: _Encoder(width, cfg) for m, width in self.inputs.widths.items()})
        views = self.inputs.modalities
        sizes: dict[str, Any] = {"hidden": cfg.hidden, "code": cfg.code, "norm": cfg.norm}
        self.views = ViewHeads(dict.fromkeys(views, cfg.width), spec.task, **sizes)
        joint = cfg.joint and len(views) > 1
        self.joint = ViewHeads({JOINT: cfg.width * len(views)}, spec.task, **sizes) if joint else None
        self.priority: Tensor
        self.register_buffer("priority", _priority(cfg, views), persistent=False)
        self.pairs: Tensor
        self.register_buffer("pairs", _pairs(cfg, views), persistent=False)

    def backbone(self) -> nn.Module | None:
        """The text encoder, where it is part of the model."""
        return self.inputs.encoder

    def forward(self, batch: Batch) -> Output:
        """Scores (N,) or logits (N, C); ``views`` for inspection: what each view predicts by itself, (N, n[, C])."""
        return self._run(batch)[0]

    def loss(self, batch: Batch) -> Losses:
        """Task losses of every prediction, and the three sums over views."""
        output, views, joint, present = self._run(batch)
        cfg, shared = self.cfg, {"kind": self.cfg.loss, "label_smoothing": self.cfg.label_smoothing}
        shared |= {"task": self.spec.task, "measure": cfg.measure}
        parts = view_losses(
            views.observations,
            views.codes,
            batch.labels,
            present=present,
            priority=self.priority,
            pairs=self.pairs,
            **shared,
        )
        if joint is not None:
            whole = torch.ones_like(present[:1])
            own = view_losses(joint.observations, joint.codes, batch.labels, present=whole, **shared)
            parts = ViewLosses(*(a + b for a, b in zip(parts, own)))
        total = (
            parts.task
            + cfg.sufficiency * parts.sufficiency
            + cfg.consistency * parts.consistency
            + cfg.agreement * parts.agreement
        )
        return Losses(total, output, rows=batch.labels.valid.sum(), **parts._asdict())

    def _run(self, batch: Batch) -> tuple[Output, Views, Views | None, Tensor]:
        """The output, the views' and the joint predictions, and which views each row has, (n, N)."""
        streams = self.inputs(batch)
        seen = {m: encoder(streams[m]) for m, encoder in self.encoders.items()}
        present = torch.stack([streams[m].mask.any(dim=1) for m in seen])
        # A row without any view is what the encoders say of nothing: all its views count, so that it has a prediction.
        present = present | ~present.any(dim=0)
        views, joint = self.views(seen), None
        if self.joint is not None:
            parts = [v * there.unsqueeze(-1) for v, there in zip(seen.values(), present)]
            joint = self.joint({JOINT: torch.cat(parts, dim=-1)})
        source = views if joint is None else joint
        told = source.codes if self.cfg.predict == "code" else source.observations
        prediction = told[0] if joint is not None else barycentre(told, present.to(told.dtype), task=self.spec.task)
        features = {f"{m}_observation": v for m, v in seen.items()}
        features |= {f"{m}_code": z for m, z in zip(seen, views.vectors)}
        inspection = {"views": views.codes.detach().transpose(0, 1)}
        return Output(prediction, features=features, inspection=inspection), views, joint, present


class _Encoder(nn.Module):
    """A stream as one vector: its summary token after a transformer, normalised."""

    def __init__(self, width: int, cfg: MV2DConfig) -> None:
        super().__init__()
        self.enter = nn.Linear(width, cfg.width)
        self.sequence = SequenceEncoder(
            cfg.width,
            steps=cfg.max_steps,
            heads=cfg.heads,
            head_width=cfg.head_width,
            feed_forward=cfg.feed_forward,
            layers=cfg.layers,
            dropout=cfg.dropout,
        )
        self.norm = nn.LayerNorm(cfg.width)

    def forward(self, stream: Stream) -> Tensor:
        """(N, T, W) -> (N, D)."""
        values, _ = self.sequence(self.enter(stream.data), stream.mask)
        return self.norm(values[:, 0])


def _priority(cfg: MV2DConfig, views: tuple[Modality, ...]) -> Tensor:
    """(n,) weights of the views."""
    return torch.tensor([cfg.priority.get(m, 1.0) for m in views])


def _pairs(cfg: MV2DConfig, views: tuple[Modality, ...]) -> Tensor:
    """(n, n) weights of the pairs, [teacher, student]."""
    return pairs_taught_by(cfg.teachers, views) * torch.tensor(
        [[cfg.priority.get(f"{j}_to_{i}", 1.0) for i in views] for j in views]
    )
