"""VSD: variational distillation for RGB-infrared person re-identification, three branches over visible and grey pictures.

Paper   Xudong Tian, Zhizhong Zhang, Shaohui Lin, Yanyun Qu, Yuan Xie, Lizhuang Ma. Farewell to Mutual Information:
        Variational Distillation for Cross-Modal Person Re-Identification. CVPR 2021, 1522-1531. arXiv 2104.02862
Code    FutabaSakuraXD/Farewell-to-Mutual-Information-Variational-Distiilation-for-Cross-Modal-Person-Re-identification
        @ ae7c0187d2ed36e6ed5109c2e0476e7f17bc8ce2 (reid/, utlis.py, extract_feature.py; read as a reference)
Shapes  N pictures of H x W, D width of an observation v, K width of a representation z, C persons of the training split

Differences from the official code
  1. VSD and VCD are divergences: KL(P_v || P_z) of log-probabilities, means over rows. Official: probabilities where the
     library expects logarithms, the other direction, divided by C as well, so that the terms mostly flatten P_z.
  2. The transport term adds nothing inside its logarithms; official: 1e-6.
  3. VML is there (``agreement``), off by default: the code has the transport term in its place, whose author says that
     VCD does VML's work.
  4. The neck has no shift at all; official: one that is never trained. The same function.
  5. A person with fewer pictures than a batch wants has them repeated evenly; official: drawn with replacement. The last,
     smaller batch of an epoch is kept; official: dropped.
  6. The epoch is chosen on validation people; official: on the test pictures.
  7. The rate warms up by steps; official: by epochs, and each factor one epoch early (its 0.01 is never used).
  8. Channel attention leaves out a maximum that its softmax does not see, and its fused kernel never forms the weights
     where a map has fewer pixels than channels: the same numbers for less work.
``reference`` undoes 1, 2 and 8.

Inferred: nothing in the network, the losses or the sampler; the paper's own training settings may differ from the code's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moodal.core.batch import Batch, Target
from moodal.core.errors import MoodalError, check
from moodal.core.method import Group, Losses, Method, MethodConfig, Output, Pass, Split, Stage
from moodal.core.random import generator
from moodal.core.spec import Classification, DataSpec, Identification, Modality, Needs
from moodal.layers.reid import Compression, Observer, Pictures, balanced_order, grey
from moodal.layers.resnet import RESNET50, ResNet, read_weights
from moodal.losses.distillation import Direction, Measure, agreement, divergence
from moodal.losses.task import task_loss
from moodal.losses.triplet import hard_triplet_loss, ranking_loss, transport_distance

#: branches, each with the share of its classification and ranking losses. The shared one looks at either picture.
SHARES: Mapping[str, float] = {"infrared": 0.5, "shared_infrared": 0.25, "visible": 0.5, "shared_visible": 0.25}
#: inside the logarithms of the released transport term.
RELEASED_FLOOR = 1e-6


class View(NamedTuple):
    """What one branch makes of the pictures: logits (N, C) on v, v (N, D), logits (N, C) on z, z (N, K)."""

    observation_logits: Tensor
    observation: Tensor
    representation_logits: Tensor
    representation: Tensor


class Objective(NamedTuple):
    """The parts of the loss before they are weighted, each a mean over rows."""

    classification: Tensor
    ranking: Tensor
    transport: Tensor
    sufficiency: Tensor
    consistency: Tensor
    agreement: Tensor

    def total(self, cfg: VSDConfig) -> Tensor:
        """The weighted sum; parts of weight 0 are left out."""
        weights = {name: cfg.__dict__[name] for name in self._fields}
        return torch.stack([weights[name] * part for name, part in self._asdict().items() if weights[name]]).sum()


@dataclass(frozen=True, kw_only=True)
class VSDConfig(MethodConfig):
    """Settings of VSD; the defaults are the released code's for SYSU-MM01 and RegDB, without its ImageNet weights."""

    modalities: tuple[Modality, ...] = ("vision",)
    blocks: tuple[int, ...] = RESNET50  # residual blocks by stage
    width: int = 64  # channels of the stem; with four stages an observation is 32 times as wide
    weights: str | None = None  # ImageNet weights by hub name or file, for the three networks; null: random
    hidden: tuple[int, ...] = (1000, 500)  # between an observation and its representation
    code: int = 512  # width of a representation
    dropout: float = 0.5  # in the classifier of the representation
    mirror: float = 0.5  # chance that a training picture is mirrored
    instances: int = 4  # pictures of a person and modality in a batch: train.batch is a multiple of twice this
    label_smoothing: float = 0.1
    triplet: Literal["ranked", "hard"] = "ranked"  # the released ranking loss, or batch-hard triplets
    margins: tuple[float, float] = (0.9, 1.0)  # of the ranking loss: own modality, other modality; hard: the first
    limits: tuple[float, float] = (2.2, 2.0)  # distances beyond which negatives are left alone, likewise
    classification: float = 1.0  # weights of the parts
    ranking: float = 1.0
    transport: float = 8.0  # between the predictions of the two one-sided branches ("CML")
    sufficiency: float = 2.0  # VSD
    consistency: float = 2.0  # VCD
    agreement: float = 0.0  # VML
    direction: Direction = "teacher_first"  # of the divergences; the theory asks for the teacher first
    temperature: float = 1.0  # divides the logits of VSD
    #: what pictures are ranked by: those of all branches, or the shared branch's representation of the colours.
    embedding: Literal["observations", "representations", "both", "shared"] = "observations"
    reference: bool = False  # the released computation of VSD, VCD and transport

    def __post_init__(self) -> None:
        super().__post_init__()
        check(
            "vision" in self.modalities, f"modalities is {list(self.modalities)}; VSD looks at pictures, give vision."
        )
        check(len(self.blocks) >= 2 and min(self.blocks) >= 1, f"blocks is {self.blocks}; give two stages or more.")
        sizes = {"width": self.width, "code": self.code, "instances": self.instances}
        for name, least in (("width", 1), ("code", 2), ("instances", 1)):
            check(sizes[name] >= least, f"{name} is {sizes[name]}; it must be {least} or more.")
        check(all(size >= 1 for size in self.hidden), f"hidden is {self.hidden}; each width must be 1 or more.")
        for name in ("dropout", "label_smoothing"):
            check(0 <= self.__dict__[name] < 1, f"{name} is {self.__dict__[name]}; it lies from 0 up to 1.")
        check(0 <= self.mirror <= 1, f"mirror is {self.mirror}; it is a chance from 0 to 1.")
        check(self.temperature > 0, f"temperature is {self.temperature}; it must be positive.")
        for name in Objective._fields:
            check(self.__dict__[name] >= 0, f"{name} is {self.__dict__[name]}; it cannot be negative.")
        some = any(self.__dict__[name] > 0 for name in Objective._fields)
        check(some, f"{', '.join(Objective._fields)} are all 0; nothing would be learnt, give one a weight.")
        for name in ("margins", "limits"):
            check(len(self.__dict__[name]) == 2, f"{name} is {self.__dict__[name]}; give two: own and other modality.")


class Branch(nn.Module):
    """A network of its own: pictures to observations, observations to representations."""

    def __init__(self, cfg: VSDConfig, persons: int) -> None:
        super().__init__()
        self.observer = Observer(persons, blocks=cfg.blocks, width=cfg.width, reference=cfg.reference)
        self.compression = Compression(
            self.observer.width, persons, hidden=cfg.hidden, code=cfg.code, dropout=cfg.dropout
        )

    def forward(self, pixels: Tensor) -> View:
        """(N, 3, H, W) -> logits and vectors."""
        logits, observation = self.observer(pixels)
        return View(logits, observation, *self.compression(observation))


class VSD(Method):
    """Variational self-, cross- and mutual distillation over a visible, an infrared and a shared branch."""

    Config = VSDConfig
    title = "VSD: variational distillation for RGB-infrared person re-identification"
    paper = "Tian, Zhang, Lin, Qu, Xie, Ma. CVPR 2021, 1522-1531"
    status = "parity"
    #: ours: the paper's table is not at hand.
    ablations: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "full": {},
        "classification and ranking alone": {
            "model.sufficiency": 0.0, "model.consistency": 0.0, "model.transport": 0.0,
        },
        "without VSD": {"model.sufficiency": 0.0},
        "without VCD": {"model.consistency": 0.0},
        "VML in place of transport": {"model.transport": 0.0, "model.agreement": 2.0},
        "as released, no divergences": {"model.reference": True},
    }  # fmt: skip

    train_identity: Tensor
    train_infrared: Tensor
    order_seed: Tensor

    def __init__(self, cfg: VSDConfig, spec: DataSpec) -> None:
        super().__init__(cfg, spec)
        self.persons = Classification(tuple(str(number) for number in range(spec.task.outputs)))
        self.pictures = Pictures(mirror=cfg.mirror)
        self.branches = nn.ModuleDict(
            {name: Branch(cfg, spec.task.outputs) for name in ("visible", "infrared", "shared")}
        )
        rows = spec.size.get("train", 0)
        self.register_buffer("train_identity", torch.zeros(rows, dtype=torch.int64))
        self.register_buffer("train_infrared", torch.zeros(rows, dtype=torch.int64))
        self.register_buffer("order_seed", torch.zeros((), dtype=torch.int64))

    @classmethod
    def needs(cls, cfg: VSDConfig) -> Needs:  # noqa: ARG003
        """Pictures of people, visible and infrared."""
        return Needs(modalities=("vision",), required=("vision",), tasks=(Identification,))

    def stages(self) -> tuple[Stage, ...]:
        """One stage over all parameters, batches balanced by person and modality."""
        return (Stage("train", passes=(Pass(self.step, [Group("main", self)]),), order=self.order),)

    @torch.no_grad()
    def on_stage_start(self, stage: str, train: Split) -> None:  # noqa: ARG002
        """Note who is on which training picture, draw the seed of the order, and take the ImageNet weights."""
        if train.target is None or "infrared" not in train.columns:
            raise MoodalError(
                "The training split does not say who is on a picture and which are infrared; VSD needs both."
            )
        self.train_identity.copy_(train.target.value)
        self.train_infrared.copy_(train.columns["infrared"])
        self.order_seed.copy_(torch.randint(2**62, ()))
        if self.cfg.weights is not None:
            state = read_weights(self.cfg.weights)
            for network in (module for module in self.modules() if isinstance(module, ResNet)):
                network.load_published(state, self.cfg.weights)

    def order(self, epoch: int) -> Tensor:
        """Training rows of an epoch: each person once, ``instances`` visible and infrared pictures taking turns."""
        draw = generator(int(self.order_seed), "order", epoch)
        return balanced_order(
            self.train_identity.cpu(), self.train_infrared.cpu(), each=self.cfg.instances, generator=draw
        )

    def views(self, batch: Batch) -> dict[str, View]:
        """Every branch on all pictures: the infrared one on grey, the visible one on colours, the shared one on both."""
        colours = self.pictures(batch.streams["vision"])
        bright = grey(colours).expand_as(colours)
        return {
            "infrared": self.branches["infrared"](bright),
            "shared_infrared": self.branches["shared"](bright),
            "visible": self.branches["visible"](colours),
            "shared_visible": self.branches["shared"](colours),
        }

    def forward(self, batch: Batch) -> Output:
        """Embeddings of length one, (N, 4 D) of the observations."""
        return Output(self._embedding(self.views(batch)))

    def loss(self, batch: Batch) -> Losses:
        """Classification, ranking and transport, and what is distilled."""
        views = self.views(batch)
        parts = objective(views, batch.labels, batch.columns["infrared"], cfg=self.cfg, persons=self.persons)
        return Losses(parts.total(self.cfg), Output(self._embedding(views)), **parts._asdict())

    def _embedding(self, views: Mapping[str, View]) -> Tensor:
        kind = self.cfg.embedding
        if kind == "shared":
            return F.normalize(views["shared_visible"].representation, dim=1)
        vectors = [view.observation for view in views.values()] if kind != "representations" else []
        vectors += [view.representation for view in views.values()] if kind != "observations" else []
        return F.normalize(torch.cat(vectors, dim=1), dim=1)


def objective(
    views: Mapping[str, View], target: Target, infrared: Tensor, *, cfg: VSDConfig, persons: Classification
) -> Objective:
    """The parts of the loss of one batch. ``views`` by the names of ``SHARES``; ``infrared`` (N,) 1 for infrared pictures.

    Classification and ranking are sums over branches and over v and z. Transport: Sinkhorn distance between the
    predictions of the batch from the infrared and from the visible branch. Sufficiency (VSD): KL(P_v || P_z) of both.
    Consistency (VCD): half of KL(P_v || P_z) from the shared branch's view of either picture to its code of the other.
    Agreement (VML): Jensen-Shannon divergence of the shared branch's two P_z.
    """
    who = target.value
    classes, ranks = [], []
    for name, share in SHARES.items():
        view = views[name]
        for logits, vector in (
            (view.observation_logits, view.observation),
            (view.representation_logits, view.representation),
        ):
            entropy, _ = task_loss(logits, target, task=persons, label_smoothing=cfg.label_smoothing)
            classes.append(share * entropy)
            ranks.append(share * _ranking(vector, who, infrared, cfg))
    first, second = (views[name].observation_logits.softmax(dim=1) for name in ("infrared", "visible"))
    transport = transport_distance(first, second, floor=RELEASED_FLOOR if cfg.reference else 0.0)
    grey_view, colour_view = views["shared_infrared"], views["shared_visible"]
    sufficiency = sum(
        _taught(views[name], views[name], cfg, persons, cfg.temperature) for name in ("infrared", "visible")
    )
    consistency = _taught(colour_view, grey_view, cfg, persons) + _taught(grey_view, colour_view, cfg, persons)
    codes = torch.stack([grey_view.representation_logits, colour_view.representation_logits])
    return Objective(
        classification=torch.stack(classes).sum(),
        ranking=torch.stack(ranks).sum(),
        transport=transport,
        sufficiency=torch.as_tensor(sufficiency),
        consistency=0.5 * consistency,
        agreement=agreement(codes, task=persons).mean(),
    )


def _taught(teacher: View, student: View, cfg: VSDConfig, persons: Classification, temperature: float = 1.0) -> Tensor:
    """How far the representation of ``student`` is from what the observation of ``teacher`` predicts."""
    measure = Measure(direction=cfg.direction, temperature=temperature)
    if cfg.reference:
        measure = Measure(direction="student_first", form="published", temperature=temperature)
    return divergence(
        teacher.observation_logits,
        student.representation_logits,
        task=persons,
        measure=measure,
        reduction="elements" if cfg.reference else "rows",
    )


def _ranking(vector: Tensor, who: Tensor, infrared: Tensor, cfg: VSDConfig) -> Tensor:
    if cfg.triplet == "hard":
        return hard_triplet_loss(vector, who, margin=cfg.margins[0])
    return ranking_loss(vector, who, infrared, margins=cfg.margins, limits=cfg.limits)
