"""EMT-DLFR: a small multimodal context and long sequences promote each other; what is missing is restored at two levels.

Paper   Licai Sun, Zheng Lian, Bin Liu, Jianhua Tao. Efficient Multimodal Transformer with Dual-Level Feature Restoration
        for Robust Multimodal Sentiment Analysis. IEEE Transactions on Affective Computing, 2023. arXiv 2208.07589
Code    sunlicai/EMT-DLFR @ e9f0960237e5d85e65f78007a3f77e3f49ac6ec3 (read as a reference, nothing taken from it)
Shapes  N rows, T steps, d width, M modalities (those present) and as many context tokens, L layers, W width of a summary

In training every row comes twice: complete, and with steps missing (``Batch.degraded``). The prediction that counts is
that of the incomplete view; the complete one gives the targets. In evaluation there is one view, whatever it holds.

Differences from the official code
  1. A text without words ([CLS] and [SEP] alone) gives the attention nothing; official: the mean over its padding, which
     depends on the other rows. ``reference`` computes that.
  2. A row without a stream has the zero vector as its summary and no part in the attraction of that stream; official:
     not possible. A single row in a training batch is normalised by the running statistics; official: an error.
  3. Both views go through recurrent encoders, fusion and head as one batch, and the last layer's sequences are computed
     where something is reconstructed from them only: the same numbers, less work.
  4. The text encoder is one group of parameters; official: without weight decay for its biases and norms.
  5. The rest of an epoch that fills no whole group of accumulated batches is a step too; official: discarded. Gradients
     are averaged over rows where the official code adds batches: with Adam the same at a quarter of the weight decay.
  6. Selection is on the validation metric of the recipe; official: on the total loss, attraction included.

Ours, for other data: classification, 1 to 3 modalities, and ``special_tokens`` off for word vectors that do not begin with
a summary: their mean is the summary then.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moodal.core.batch import Batch, Stream, Target
from moodal.core.errors import check
from moodal.core.method import Group, Losses, Method, MethodConfig, Output, Pass, Stage
from moodal.core.spec import Classification, DataSpec, Modality, Needs, Task
from moodal.layers.dropout import Dropout
from moodal.layers.inputs import StreamInputs
from moodal.layers.masks import masked_mean
from moodal.layers.promotion import MutualPromotion
from moodal.layers.recurrent import LSTM
from moodal.layers.siamese import Projected, Siamese, attraction
from moodal.losses.task import RegressionLoss, task_loss

#: The summary of all modalities together, beside those of the single ones.
CONTEXT = "context"


@dataclass(frozen=True, kw_only=True)
class EMTDLFRConfig(MethodConfig):
    """Settings of EMT-DLFR; the defaults are those of the official configuration for MOSI."""

    width: int = 128
    layers: int = 3  # MOSEI 2, SIMS 4
    heads: int = 4
    share_layers: bool = True  # one unit for all layers, modalities and directions
    share_modalities: bool = True
    share_directions: bool = True
    audio_hidden: int = 32  # of the recurrent encoders; MOSEI and SIMS 16 and 32
    vision_hidden: int = 64
    audio_width: int = 16  # of what leaves them; no map in between where the two agree
    vision_width: int = 32
    head_width: int = 256
    context_bottleneck: int = 128  # of the predictors of the attraction
    text_bottleneck: int = 256
    audio_bottleneck: int = 8
    vision_bottleneck: int = 16
    attention_dropout: float = 0.3
    dropout: float = 0.1  # after the feed-forward
    head_dropout: float = 0.3
    attraction: float = 1.0  # weight of the high level, the complete view's own task loss included
    reconstruction: float = 1.0  # weight of the low level
    loss: RegressionLoss = "l1"  # for regression; classification has cross-entropy
    label_smoothing: float = 0.0
    special_tokens: bool = True  # the text's first step is its summary and its last a separator, as encoders write them
    reference: bool = False  # a text without words attends to its padding: the published computation

    def __post_init__(self) -> None:
        super().__post_init__()
        sizes = (
            "width",
            "layers",
            "heads",
            "audio_hidden",
            "vision_hidden",
            "audio_width",
            "vision_width",
            "head_width",
        )
        for name in (*sizes, *(f"{part}_bottleneck" for part in (CONTEXT, "text", "audio", "vision"))):
            check(self.__dict__[name] >= 1, f"{name} is {self.__dict__[name]}; it must be 1 or more.")
        check(self.width % self.heads == 0, f"width ({self.width}) must be a multiple of heads ({self.heads}).")
        for name in ("attention_dropout", "dropout", "head_dropout", "label_smoothing"):
            check(0 <= self.__dict__[name] < 1, f"{name} is {self.__dict__[name]}; it lies from 0 up to 1.")
        for name in ("attraction", "reconstruction"):
            check(self.__dict__[name] >= 0, f"{name} is {self.__dict__[name]}; it cannot be negative.")


class View(NamedTuple):
    """What the network makes of a view. ``summaries``: (N, W) by modality, and of the fused context (N, M d);
    ``weights`` (N, L, M): how much of the context comes by way of which modality."""

    prediction: Tensor
    summaries: Mapping[str, Tensor]
    weights: Tensor

    def part(self, rows: slice) -> "View":
        """The same for some rows."""
        summaries = {name: vector[rows] for name, vector in self.summaries.items()}
        return View(self.prediction[rows], summaries, self.weights[rows])


class EMTDLFR(Method):
    """Efficient multimodal transformer with dual-level feature restoration."""

    Config = EMTDLFRConfig
    title = "EMT-DLFR: efficient multimodal transformer with dual-level feature restoration"
    paper = "Sun, Lian, Liu, Tao. IEEE Transactions on Affective Computing, 2023"
    status = "parity"
    ablations: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "full": {},
        "without high-level attraction": {"model.attraction": 0.0},
        "without low-level reconstruction": {"model.reconstruction": 0.0},
        "EMT alone": {"model.attraction": 0.0, "model.reconstruction": 0.0},
    }

    def __init__(self, cfg: EMTDLFRConfig, spec: DataSpec) -> None:
        super().__init__(cfg, spec)
        self.inputs = StreamInputs(spec, cfg.modalities)
        self.modalities, given = self.inputs.modalities, self.inputs.widths
        sizes = {"audio": (cfg.audio_hidden, cfg.audio_width), "vision": (cfg.vision_hidden, cfg.vision_width)}
        self.readers = nn.ModuleDict({m: Reader(given[m], *sizes[m]) for m in self.modalities if m in sizes})
        widths: dict[str, int] = {m: sizes[m][1] if m in sizes else given[m] for m in self.modalities}
        self.projections = nn.ModuleDict({m: _map(widths[m], cfg.width, bias=False) for m in self.modalities})
        self.fusion = MutualPromotion(
            cfg.width,
            self.modalities,
            heads=cfg.heads,
            layers=cfg.layers,
            share_layers=cfg.share_layers,
            share_modalities=cfg.share_modalities,
            share_directions=cfg.share_directions,
            attention_dropout=cfg.attention_dropout,
            dropout=cfg.dropout,
            uniform=cfg.reference,
        )
        summaries = {**widths, CONTEXT: len(self.modalities) * cfg.width}
        self.head = FusionHead(sum(summaries.values()), cfg.head_width, spec.task, dropout=cfg.head_dropout)
        self.siamese = nn.ModuleDict(
            {name: Siamese(width, cfg.__dict__[f"{name}_bottleneck"]) for name, width in summaries.items()}
        )
        self.restore = nn.ModuleDict({m: nn.Linear(cfg.width, given[m]) for m in self.modalities})

    @classmethod
    def needs(cls, cfg: EMTDLFRConfig) -> Needs:
        """The modalities in use, and in training a second view of them with steps missing."""
        return Needs(modalities=tuple(cfg.modalities), degraded=True)

    def backbone(self) -> nn.Module | None:
        """The text encoder, where it is part of the model."""
        return self.inputs.encoder

    def stages(self) -> tuple[Stage, ...]:
        """One stage; groups "backbone" (if any), "audio" and "vision" (the recurrent encoders present), "main"."""
        backbone = self.backbone()
        parts = {} if backbone is None else {"backbone": backbone}
        parts |= self.readers.items()
        groups = [Group(name, part) for name, part in parts.items()]
        groups.append(Group("main", self, without=tuple(parts.values())))
        return (Stage("train", passes=(Pass(self.step, groups),)),)

    def forward(self, batch: Batch) -> Output:
        """Scores (N,) or logits (N, C) from the streams as they are; pooling weights (N, L, M) for inspection."""
        view, _ = self._view(self.inputs(batch), rows=slice(0))
        return Output(view.prediction, features=view.summaries, inspection={"pooling": view.weights.detach()})

    def loss(self, batch: Batch) -> Losses:
        """Task loss of the incomplete view, attraction of the two, reconstruction of what is missing."""
        missing = {m: missing_steps(batch, m) for m in self.modalities}
        return self.objective(self.inputs(batch), self.inputs(batch, degraded=True), missing, batch.labels)

    def objective(
        self,
        complete: Mapping[Modality, Stream],
        incomplete: Mapping[Modality, Stream],
        missing: Mapping[Modality, Tensor],
        target: Target,
    ) -> Losses:
        """L = L_task + w_a (L_attraction + L_task of the complete view) + w_r L_reconstruction.

        The two views are of the same rows and steps, as :class:`StreamInputs` gives them; ``missing``: (N, T) by modality.
        """
        count = len(target.value)
        both = {
            m: Stream(torch.cat([one.data, incomplete[m].data]), torch.cat([one.mask, incomplete[m].mask]))
            for m, one in complete.items()
        }
        view, states = self._view(both, rows=slice(count, None))
        views = {"complete": view.part(slice(count)), "incomplete": view.part(slice(count, None))}
        whole, _ = self._task(views["complete"], target)
        task, rows = self._task(views["incomplete"], target)
        present: dict[str, Tensor] = {m: stream.mask.any(dim=1) for m, stream in complete.items()}
        pulls, features = self._attraction(views, present)
        rebuilt = {m: self.restore[m](states[m]) for m in self.modalities}
        # What a text encoder makes of the complete view is a target that stands still; the others are data.
        wanted = {m: one.data.detach() if m == "text" else one.data for m, one in complete.items()}
        gaps = {m: reconstruction(rebuilt[m], wanted[m], missing[m]) for m in self.modalities}
        high = torch.stack([*pulls.values()]).sum() + whole
        low = torch.stack([*gaps.values()]).sum()
        total = task + self.cfg.attraction * high + self.cfg.reconstruction * low
        parts = {f"attraction_{name}": value for name, value in pulls.items()}
        parts |= {f"reconstruction_{m}": value for m, value in gaps.items()}
        for name, one in views.items():
            features |= {f"prediction_{name}": one.prediction, f"context_{name}": one.summaries[CONTEXT]}
        features |= {f"states_{m}_incomplete": value for m, value in states.items()}
        features |= {f"reconstruction_{m}": value for m, value in rebuilt.items()}
        shown = views["incomplete"]
        output = Output(shown.prediction, features, {"pooling": shown.weights.detach()})
        parts |= {"task": task, "task_complete": whole, "attraction": high, "reconstruction": low}
        return Losses(total, output, rows=rows, **parts)

    def _view(self, streams: Mapping[Modality, Stream], *, rows: slice) -> tuple[View, Mapping[Modality, Tensor]]:
        """Encoders, fusion and head; also the last layer's sequences (rows, T, d) of ``rows`` only."""
        summaries: dict[str, Tensor] = {}
        sequences: dict[Modality, Stream] = {}
        for m in self.modalities:
            summaries[m], steps = self._read(m, streams[m])
            sequences[m] = Stream(self.projections[m](steps.data), steps.mask)
        context = torch.stack([self.projections[m](summaries[m]) for m in self.modalities], dim=1)
        promoted = self.fusion(context, sequences, rows=rows)
        summaries[CONTEXT] = promoted.context.flatten(1)
        prediction = self.head(torch.cat([*summaries.values()], dim=-1))
        return View(prediction, summaries, promoted.weights), promoted.sequences

    def _task(self, view: View, target: Target) -> tuple[Tensor, Tensor]:
        cfg = self.cfg
        return task_loss(
            view.prediction, target, task=self.spec.task, kind=cfg.loss, label_smoothing=cfg.label_smoothing
        )

    def _read(self, modality: Modality, stream: Stream) -> tuple[Tensor, Stream]:
        """The summary (N, W) of a stream, zeros where it has no real step, and its states (N, T, W)."""
        if modality in self.readers:
            return self.readers[modality](stream)
        steps = self._words(stream)
        if not self.cfg.special_tokens:
            return masked_mean(stream.data, stream.mask), steps
        return stream.data[:, 0] * stream.mask[:, :1], steps

    def _words(self, text: Stream) -> Stream:
        """The text between its first step and its last real one; a text of one step has no word."""
        if not self.cfg.special_tokens:
            return text
        first = min(1, text.mask.shape[1] - 1)
        followed = text.mask.cumsum(dim=1) < text.mask.sum(dim=1, keepdim=True)
        return Stream(text.data[:, first:], (text.mask & followed)[:, first:])

    def _attraction(
        self, views: Mapping[str, View], present: Mapping[str, Tensor]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The attraction of each summary, a mean over the rows that have the stream, and all vectors it is made of."""
        found = {**present, CONTEXT: torch.stack([*present.values()]).any(dim=0)}
        pulls: dict[str, Tensor] = {}
        features: dict[str, Tensor] = {}
        for name, rows in found.items():
            pair: dict[str, Projected] = {view: self.siamese[name](one.summaries[name]) for view, one in views.items()}
            pulls[name] = (attraction(pair["complete"], pair["incomplete"]) * rows).sum() / rows.sum().clamp(min=1)
            for view, one in pair.items():
                features |= {f"projected_{name}_{view}": one.projected, f"predicted_{name}_{view}": one.predicted}
        return pulls, features


class Reader(nn.Module):
    """A recurrent encoder, and one linear map of its last state and of all of them; none where the widths agree."""

    def __init__(self, width: int, hidden: int, out: int) -> None:
        super().__init__()
        self.lstm = LSTM(width, hidden, bidirectional=False)
        self.out = _map(hidden, out)

    def forward(self, stream: Stream) -> tuple[Tensor, Stream]:
        """(N, T, D) -> (N, W), zeros for a row without a real step, and (N, T, W)."""
        states, last = self.lstm(stream.data, stream.mask)
        return self.out(last) * stream.mask.any(dim=1, keepdim=True), Stream(self.out(states), stream.mask)


class FusionHead(nn.Module):
    """Dropout, three linear maps with ReLU between them, to the task's outputs."""

    def __init__(self, width: int, hidden: int, task: Task, *, dropout: float) -> None:
        super().__init__()
        self.single = not isinstance(task, Classification)
        self.dropout = Dropout(dropout)
        self.first, self.second = nn.Linear(width, hidden), nn.Linear(hidden, hidden)
        self.third = nn.Linear(hidden, task.outputs)

    def forward(self, vector: Tensor) -> Tensor:
        """(N, D) -> (N,) for regression, (N, C) logits for classification."""
        outputs = self.third(F.relu(self.second(F.relu(self.first(self.dropout(vector))))))
        return outputs[:, 0] if self.single else outputs


def missing_steps(batch: Batch, modality: Modality) -> Tensor:
    """(N, T) True on the real steps that the degraded view of ``modality`` lacks or changes; none without such a view.

    As the view itself says (``observed``); of a view that does not say, the steps that differ.
    """
    whole = batch.streams.get(modality)
    if whole is None or batch.degraded is None:
        shape = (len(batch.index), 1) if whole is None else whole.mask.shape
        return torch.zeros(shape, dtype=torch.bool, device=batch.device)
    view = batch.degraded[modality]
    if view.observed is not None:
        return whole.mask & ~view.observed
    same = whole.data == view.data
    return whole.mask & ~(view.mask & (same.all(dim=-1) if same.dim() == 3 else same))


def reconstruction(rebuilt: Tensor, complete: Tensor, missing: Tensor) -> Tensor:
    """The mean smooth L1 distance of (N, T, D) to ``complete`` over the steps ``missing`` (N, T) of the batch, a number.

    Where there are more steps than were rebuilt, the first ones (a summary) are left out. 0 where nothing is missing.
    """
    steps, width = rebuilt.shape[1:]
    places = missing[:, -steps:].unsqueeze(-1)
    distance = F.smooth_l1_loss(rebuilt * places, complete[:, -steps:] * places, reduction="sum")
    return distance / (places.sum() * width + 1e-6)


def _map(width: int, out: int, *, bias: bool = True) -> nn.Module:
    return nn.Identity() if width == out else nn.Linear(width, out, bias=bias)
