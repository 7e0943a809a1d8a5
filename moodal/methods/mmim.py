"""MMIM: a late fusion that is made to keep what modalities have in common, and what each of them has to say.

Paper   Wei Han, Hui Chen, Soujanya Poria. Improving Multimodal Fusion with Hierarchical Mutual Information Maximization
        for Multimodal Sentiment Analysis. EMNLP 2021, 9180-9192. arXiv 2109.00412
Code    declare-lab/Multimodal-Infomax @ cd0774c5a712ca5f1a5497dbf27dde11cade7434; port: thuiar/MMSA @
        a94e65d07fa1ae0d44e552390074b29b0898edfd (bidirectional by default; otherwise the same computation)
Shapes  N rows, T steps, D width of a stream, H width of a modality's summary, K = H / 4 width of what is remembered

Differences from the official code
  1. The likelihood is a whole Gaussian log-density; official: without its log-variance term, so that a larger variance
     is always better (``likelihood="published"``). Log-variances are kept within ``log_variance_limit`` by the tanh that
     the official code configures and does not apply: the whole density of summaries that shrink would have no upper bound.
  2. The projections whose entropy is taken are fixed random maps. Official: parameters that no pass moves (under a
     current torch; under an old one weight decay shrinks them).
  3. Covariances get ``jitter``, and a set of too few rows (K or fewer in batch and memory together) is left out; official:
     infinite or not a number. Rows without the modality are in no set.
  4. The first pass does not reach the encoders, and each pass clips the gradients of what it moves; official: the norm
     that is clipped counts all parameters, also those that the pass leaves alone.
  5. A row without a modality has the summary 0 and takes no part in the terms of that modality; official: fails, or
     reads one step of zeros.
  6. ``first_pass`` 0.5 takes every second batch in the first pass; official (one corpus only): the first half of them.
  7. The epoch is chosen on the validation split; official: where the test error improves too. The official schedule
     halves the rate after 20 epochs without improvement and training stops after 10: the rate is constant.
``reference`` undoes 1 to 4 (in 3 the jitter).

On several processes, and on parts of an accumulated batch, contrast and entropy see the rows of their own part (the entropy
also the batch before, whole); all else is a mean over rows, and equal to that of the whole batch.

Ours: for classification the sets of the entropy are the classes; without text the pair is vision and audio; with
one modality there is no pair and no first pass; ``text`` can be averaged over its steps.

Inferred: that the paper contrasts the summaries for a fixed fused vector (``cpc_anchor="fused"``; the code, and the
default here, contrasts the predictions from all fused vectors for a fixed summary).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, cast

import torch
from torch import Tensor, nn

from moodal.core.batch import Batch, Target
from moodal.core.errors import check
from moodal.core.method import Group, Losses, Method, MethodConfig, Output, Pass, Stage, Update
from moodal.core.spec import Classification, DataSpec, Modality, Regression
from moodal.layers.dropout import Dropout
from moodal.layers.inputs import StreamInputs
from moodal.layers.memory import Remembered, StepMemory
from moodal.layers.summaries import FirstStep, LastState, MeanStep, Summary
from moodal.losses.bounds import GaussianConditional, gaussian_log_density
from moodal.losses.contrastive import contrastive_loss
from moodal.losses.entropy import mixture_entropy
from moodal.losses.task import RegressionLoss, task_loss

#: The entropy counts from this batch of an epoch on. Official: from the second one on it would have a memory.
ENTROPY_FROM = 2


@dataclass(frozen=True, kw_only=True)
class MmimConfig(MethodConfig):
    """Settings of MMIM; the defaults are those of the official code, except where the header says otherwise."""

    text: Literal["first", "mean"] = "first"  # the summary of the text: its first step ([CLS]), or the mean of all
    audio_hidden: int = 16
    vision_hidden: int = 16
    audio_width: int = 16
    vision_width: int = 16
    bidirectional: bool = False  # the port: true
    fusion: int = 128
    dropout: float = 0.1  # of the summaries before the fusion
    alpha: float = 0.1  # weight of the contrast between summaries and fused vector; 0: none
    beta: float = 0.1  # weight of the bounds between summaries; 0: none, and no first pass
    entropy: bool = True  # the entropy in the bounds
    pair_vision_audio: bool = False  # a bound between vision and audio too
    likelihood: Literal["full", "published"] = "full"  # "published": without the log-variance term
    log_variance_limit: float | None = 1.0  # log-variances lie in plus or minus this; null: anywhere
    jitter: float = 1e-4  # on the diagonal of the covariances
    cpc_layers: int = 1
    cpc_anchor: Literal["summary", "fused"] = "summary"
    first_pass: float = 1.0  # share of the batches that the first pass takes
    loss: RegressionLoss = "l1"  # for regression; classification has cross-entropy
    label_smoothing: float = 0.0
    reference: bool = False  # the published computation

    def __post_init__(self) -> None:
        super().__post_init__()
        sizes = ("audio_hidden", "vision_hidden", "audio_width", "vision_width", "fusion", "cpc_layers")
        for name in sizes:
            check(self.__dict__[name] >= 1, f"{name} is {self.__dict__[name]}; it must be 1 or more.")
        for name in ("dropout", "label_smoothing"):
            check(0 <= self.__dict__[name] < 1, f"{name} is {self.__dict__[name]}; it lies from 0 up to 1.")
        for name in ("alpha", "beta", "jitter"):
            check(self.__dict__[name] >= 0, f"{name} is {self.__dict__[name]}; it cannot be negative.")
        limit = self.log_variance_limit
        check(limit is None or limit > 0, f"log_variance_limit is {limit}; it must be positive, or null.")
        check(0 < self.first_pass <= 1, f"first_pass is {self.first_pass}; it is a share above 0, at most 1.")


class MMIM(Method):
    """Hierarchical mutual information maximisation: between modalities, and between each of them and their fusion."""

    Config = MmimConfig
    title = "MMIM: multimodal fusion by hierarchical mutual information maximisation"
    paper = "Han, Chen, Poria. EMNLP 2021, 9180-9192"
    status = "parity"
    ablations: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "full": {},
        "without contrast": {"model.alpha": 0.0},
        "without bounds": {"model.beta": 0.0},
        "without entropy": {"model.entropy": False},
        "without both": {"model.alpha": 0.0, "model.beta": 0.0},
        "with the pair of vision and audio": {"model.pair_vision_audio": True},
        "published likelihood": {"model.likelihood": "published", "model.log_variance_limit": None},
    }

    def __init__(self, cfg: MmimConfig, spec: DataSpec) -> None:
        super().__init__(cfg, spec)
        self.inputs = StreamInputs(spec, cfg.modalities)
        self.encoders = nn.ModuleDict({m: _encoder(m, width, cfg) for m, width in self.inputs.widths.items()})
        widths = {m: _width(m, width, cfg) for m, width in self.inputs.widths.items()}
        self.pairs = {f"{x}_to_{y}": (x, y) for x, y in _pairs(self.inputs.modalities, cfg)} if cfg.beta else {}
        rows = spec.size.get("train", 0)
        self.bounds = nn.ModuleDict(
            {name: PairBound(widths[x], widths[y], cfg, rows=rows) for name, (x, y) in self.pairs.items()}
        )
        self.contrast = nn.ModuleDict({m: _prediction(cfg, width) for m, width in widths.items() if cfg.alpha})
        self.fusion = Fusion(sum(widths.values()), cfg.fusion, dropout=cfg.dropout)
        self.score = nn.Linear(cfg.fusion, spec.task.outputs)
        for name, parameter in self.named_parameters():
            if parameter.dim() > 1 and not name.startswith("inputs."):
                nn.init.xavier_normal_(parameter)

    def backbone(self) -> nn.Module | None:
        """The text encoder, where it is part of the model."""
        return self.inputs.encoder

    def stages(self) -> tuple[Stage, ...]:
        """One stage; where there are bounds, every epoch first fits their likelihoods (group "bound"), then the rest."""
        if not self.bounds:
            return super().stages()
        backbone, estimators = self.backbone(), [bound.conditional for bound in self._pair_bounds.values()]
        first = [Group("bound", *estimators)]
        main = [Group("main", self, without=(self.bounds, *(() if backbone is None else (backbone,))))]
        if backbone is not None:
            main.insert(0, Group("backbone", backbone))
        if self.cfg.reference:
            first.append(Group("still", self, without=estimators, still=True))
            main.append(Group("still", self.bounds, still=True))
        return (Stage("train", passes=(Pass(self.bound_step, first), Pass(self.step, main))),)

    def bound_step(self, batch: Batch, update: Update) -> Losses:
        """First pass: only the likelihoods learn, from summaries as they are. What it returns is not in the log."""
        step, share = update.progress.step, self.cfg.first_pass
        if math.ceil((step + 1) * share) == math.ceil(step * share):
            return Losses(self.score.weight.new_zeros(()), rows=0)
        with torch.set_grad_enabled(self.cfg.reference):
            summaries = self.encode(batch)
        losses = Losses(-_sum(self.likelihoods(summaries)))
        update(losses)
        return Losses(losses.total.detach(), rows=0)

    def step(self, batch: Batch, update: Update) -> Losses:
        """Second pass: everything else, with the entropy from the third batch of an epoch on; then the memory."""
        place, summaries, target = update.progress, self.encode(batch), batch.labels
        now = self.projections(summaries, target)
        # An epoch has at most as many steps as rows, so its first step follows no other: it finds nothing.
        moment = place.epoch * (self.spec.size["train"] + 1) + place.step + 1
        earlier = {name: self._pair_bounds[name].memory.at(moment - 1) for name in now}
        losses = self.objective(summaries, target, now, earlier, counted=place.step >= ENTROPY_FROM)
        update(losses)
        for name, projected in now.items():
            self._pair_bounds[name].memory.write(batch.index, moment, projected)
        return losses

    def forward(self, batch: Batch) -> Output:
        """Scores (N,) or logits (N, C); the summaries (N, H) and the fused vector as features."""
        return self._predict(self.encode(batch))

    def loss(self, batch: Batch) -> Losses:
        """task + alpha Σ contrast - beta Σ likelihood: the objective of the first batches of an epoch, without memory."""
        summaries, target = self.encode(batch), batch.labels
        return self.objective(summaries, target, self.projections(summaries, target), {}, counted=False)

    def encode(self, batch: Batch) -> dict[Modality, Summary]:
        """The summary of each modality in use."""
        return {m: self.encoders[m](stream) for m, stream in self.inputs(batch).items()}

    def objective(
        self,
        summaries: Mapping[Modality, Summary],
        target: Target,
        now: Mapping[str, Remembered],
        earlier: Mapping[str, Remembered],
        *,
        counted: bool,
    ) -> Losses:
        """The second pass's objective; - beta Σ entropy of ``now`` and ``earlier`` is in it if ``counted``, else shown only."""
        cfg, output = self.cfg, self._predict(summaries)
        total, rows = task_loss(
            output.prediction, target, task=self.spec.task, kind=cfg.loss, label_smoothing=cfg.label_smoothing
        )
        parts = {"task": total}
        if self.contrast:
            parts["contrast"] = _sum(self.contrasts(summaries, output.features["fused"]))
            total = total + cfg.alpha * parts["contrast"]
        if self.bounds:
            parts["likelihood"] = _sum(self.likelihoods(summaries))
            total = total - cfg.beta * parts["likelihood"]
        if now:
            parts["entropy"] = _sum(self.entropies(now, earlier))
            total = total - cfg.beta * parts["entropy"] if counted else total
        return Losses(total, output, rows=rows, **parts)

    def likelihoods(self, summaries: Mapping[Modality, Summary]) -> dict[str, Tensor]:
        """() of each pair: the mean over rows of one summary's log-likelihood given the other; 0 for a row without both."""
        found = {}
        for name, (x, y) in self.pairs.items():
            values = self._pair_bounds[name].log_likelihood(summaries[x].vector, summaries[y].vector)
            both = summaries[x].present & summaries[y].present
            found[name] = values.where(both, 0.0).mean()
        return found

    def projections(self, summaries: Mapping[Modality, Summary], target: Target) -> dict[str, Remembered]:
        """Of each pair: the projected second summaries and their sets (sign of the label, or its class)."""
        if not self.cfg.entropy:
            return {}
        groups, found = self._groups(target), {}
        for name, (_, y) in self.pairs.items():
            vectors = self._pair_bounds[name].projection(summaries[y].vector)
            found[name] = Remembered(vectors, groups.where(summaries[y].present, -1))
        return found

    def entropies(self, now: Mapping[str, Remembered], earlier: Mapping[str, Remembered]) -> dict[str, Tensor]:
        """() of each pair: the entropy of its projections, those of the batch and the remembered ones together."""
        count = self.spec.task.outputs if isinstance(self.spec.task, Classification) else 2
        jitter = 0.0 if self.cfg.reference else self.cfg.jitter
        found = {}
        for name, (vectors, groups) in now.items():
            if name in earlier:
                before = earlier[name]
                vectors = torch.cat([before.vectors.to(vectors.dtype), vectors])
                groups = torch.cat([before.groups, groups])
            found[name] = mixture_entropy(vectors, groups, count=count, jitter=jitter)
        return found

    def contrasts(self, summaries: Mapping[Modality, Summary], fused: Tensor) -> dict[str, Tensor]:
        """() of each modality: how hard its summaries and what the fused vectors predict of them are to match."""
        found = {}
        for m, prediction in self.contrast.items():
            vector, present = summaries[m]  # type: ignore[index]
            pair = (vector, prediction(fused))
            first, second = pair if self.cfg.cpc_anchor == "summary" else pair[::-1]
            found[m] = contrastive_loss(first, second, valid=present)
        return found

    @property
    def _pair_bounds(self) -> Mapping[str, PairBound]:
        return cast("Mapping[str, PairBound]", self.bounds)

    def _predict(self, summaries: Mapping[Modality, Summary]) -> Output:
        fused = self.fusion(torch.cat([summary.vector for summary in summaries.values()], dim=-1))
        score = self.score(fused)
        features = {f"{m}_summary": summary.vector for m, summary in summaries.items()} | {"fused": fused}
        return Output(score[:, 0] if isinstance(self.spec.task, Regression) else score, features=features)

    def _groups(self, target: Target) -> Tensor:
        """(N,) the set of each row: its class, or 1 for a positive and 0 for a negative label; -1: none."""
        if isinstance(self.spec.task, Classification):
            return target.value.where(target.valid, -1).long()
        return (target.value > 0).long().where(target.valid & (target.value != 0), -1)


class Fusion(nn.Module):
    """tanh(W2 tanh(W1 x + b1) + b2) of the summaries side by side, with dropout before it."""

    def __init__(self, width: int, out: int, *, dropout: float) -> None:
        super().__init__()
        self.dropout = Dropout(dropout)
        self.first, self.second = nn.Linear(width, out), nn.Linear(out, out)

    def forward(self, summaries: Tensor) -> Tensor:
        """(N, sum of H) -> (N, F)."""
        return torch.tanh(self.second(torch.tanh(self.first(self.dropout(summaries)))))


class PairBound(nn.Module):
    """The Barber-Agakov bound of what summary x tells of summary y: E ln q(y|x) + H(y), the entropy of a projection of y."""

    def __init__(self, x_width: int, y_width: int, cfg: MmimConfig, *, rows: int) -> None:
        super().__init__()
        self.conditional = GaussianConditional(x_width, y_width, hidden=y_width)
        self.published = cfg.reference or cfg.likelihood == "published"
        self.limit = None if cfg.reference else cfg.log_variance_limit
        width = max(1, y_width // 4)
        self.projection = Projection(y_width, width, fixed=not cfg.reference)
        self.memory = StepMemory(rows, width)

    def log_likelihood(self, x: Tensor, y: Tensor) -> Tensor:
        """(N, H_x), (N, H_y) -> (N,) ln q(y|x); published: without log-variance term and constant."""
        mean, log_variance = self.conditional.mean(x).float(), self.conditional.log_variance(x).float()
        if self.limit is not None:
            log_variance = self.limit * torch.tanh(log_variance / self.limit)
        if self.published:
            return -0.5 * ((mean - y).square() * (-log_variance).exp()).sum(dim=-1)
        return gaussian_log_density(y.float(), mean, log_variance)


class Projection(nn.Module):
    """tanh of a linear map. ``fixed``: drawn once, kept in buffers; otherwise parameters (that no pass moves)."""

    weight: Tensor
    bias: Tensor

    def __init__(self, width: int, out: int, *, fixed: bool) -> None:
        super().__init__()
        drawn = nn.Linear(width, out)
        nn.init.xavier_normal_(drawn.weight)
        for name, value in drawn.named_parameters():
            if fixed:
                self.register_buffer(name, value.detach())
            else:
                self.register_parameter(name, value)

    def forward(self, summaries: Tensor) -> Tensor:
        """(N, H) -> (N, K)."""
        return torch.tanh(nn.functional.linear(summaries, self.weight, self.bias))


def _encoder(modality: Modality, width: int, cfg: MmimConfig) -> nn.Module:
    if modality == "text":
        return FirstStep() if cfg.text == "first" else MeanStep()
    hidden = cfg.audio_hidden if modality == "audio" else cfg.vision_hidden
    return LastState(width, hidden, _width(modality, width, cfg), bidirectional=cfg.bidirectional)


def _width(modality: Modality, width: int, cfg: MmimConfig) -> int:
    """H of a modality whose stream is ``width`` wide."""
    return {"text": width, "audio": cfg.audio_width, "vision": cfg.vision_width}[modality]


def _pairs(modalities: tuple[Modality, ...], cfg: MmimConfig) -> list[tuple[Modality, Modality]]:
    """(x, y) of each bound: from text to the others; between vision and audio if asked for, or without text."""
    found: list[tuple[Modality, Modality]] = []
    if "text" in modalities:
        found += [("text", m) for m in ("vision", "audio") if m in modalities]  # type: ignore[misc]
    if {"vision", "audio"} <= set(modalities) and (cfg.pair_vision_audio or "text" not in modalities):
        found.append(("vision", "audio"))
    return found


def _prediction(cfg: MmimConfig, width: int) -> nn.Sequential:
    """From the fused vector to a summary: one linear map; more of them with one tanh, after the first."""
    deeper = [nn.Linear(width, width) for _ in range(cfg.cpc_layers - 1)]
    return nn.Sequential(nn.Linear(cfg.fusion, width), *([nn.Tanh(), *deeper] if deeper else []))


def _sum(parts: Mapping[str, Tensor]) -> Tensor:
    return torch.stack(list(parts.values())).sum()
