"""MMMIE: shared information between modalities up, information about each input down, and an identity for every step.

Paper   Jiahao Zheng, Sen Zhang, Xiaoping Wang, Zhigang Zeng. Multimodal Representations Learning Based on Mutual
        Information Maximization and Minimization and Identity Embedding for Multimodal Sentiment Analysis.
        arXiv 2201.03969 (2022)
Code    none is known. After the abstract, not a reproduction: what is maximised, what is minimised and what the identity
        embedding is for are the paper's; everything else is this project's
Shapes  N rows, T steps, D width of a stream, d width of the codes, w turns of context on each side

Differences from the official code: there is none to differ from.

Inferred, so not the paper's
  1. Encoders, Gaussian codes, the network over all steps with a summary token in front, and all numbers.
  2. The bounds: InfoNCE between the pooled codes of two modalities; for input and code the divergence of the code from
     N(0, I). Alternatives in ``maximiser`` and ``minimiser``. What is made of densities is divided by the d dimensions,
     so that one weight serves all of them.
  3. "barber_agakov": ln q(z_n | z_m) in both directions, z_n held fixed, which makes its entropy a constant.
     "leave_one_out": needs no estimator, because p(z | x) of the pooled code is the Gaussian that the method draws from.
  4. Who a step is: its modality, the summary, or a turn before or after (``context``). A turn of the context is one
     vector, its pooled code; alone, a row is predicted by the same weights as without context.
  5. Codes are drawn in training only, and only if something is minimised; otherwise and in evaluation they are means.
  6. Rows that lack a modality take no part in its bounds; turns of one conversation are no negatives of each other.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moodal.core.batch import Batch, Dialogue, Stream
from moodal.core.errors import MoodalError, check
from moodal.core.method import Group, Losses, Method, MethodConfig, Output, Pass, Stage, Update
from moodal.core.spec import DataSpec, Modality
from moodal.layers.attention import EPSILON
from moodal.layers.bottleneck import START, Gaussian
from moodal.layers.heads import Head
from moodal.layers.inputs import StreamInputs
from moodal.layers.masks import joined, masked_mean, with_first
from moodal.layers.positions import sinusoids
from moodal.layers.transformer import Layer, Sequence
from moodal.losses.bounds import Critic
from moodal.losses.information import ClubBound, Code, Codes, CriticBound, DensityBound, LeaveOneOutBound, PriorBound
from moodal.losses.task import RegressionLoss, task_loss


@dataclass(frozen=True, kw_only=True)
class MmmieConfig(MethodConfig):
    """Settings of MMMIE; all defaults are this project's proposals, as the abstract gives no numbers."""

    width: int = 128
    heads: int = 4
    layers: int = 2  # of the encoders of audio and vision
    fusion_layers: int = 2
    dropout: float = 0.1
    positions: bool = True
    identity: bool = True  # tell every step who it is
    context: int = 0  # turns before and after that are seen too; needs a corpus of conversations
    maximise: float = 0.1  # weight of the information between modalities
    maximiser: Critic | Literal["barber_agakov"] = "infonce"
    temperature: float = 0.1  # of the critic, the cosine of two projected codes
    minimise: float = 1e-3  # weight of the information between an input and its code
    minimiser: Literal["prior", "club", "leave_one_out"] = "prior"
    warm_epochs: int = 5  # epochs in which ``minimise`` grows to its value
    estimator_hidden: int = 128  # of q(y|x): "barber_agakov" and "club"
    loss: RegressionLoss = "l1"  # for regression; classification has cross-entropy
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("width", "heads", "layers", "fusion_layers", "warm_epochs", "estimator_hidden"):
            check(self.__dict__[name] >= 1, f"{name} is {self.__dict__[name]}; it must be 1 or more.")
        check(
            self.width >= 2 and self.width % self.heads == 0,
            f"width is {self.width}; it must be 2 or more and a multiple of heads ({self.heads}).",
        )
        for name in ("dropout", "label_smoothing"):
            check(0 <= self.__dict__[name] < 1, f"{name} is {self.__dict__[name]}; it lies from 0 up to 1.")
        for name in ("context", "maximise", "minimise"):
            check(self.__dict__[name] >= 0, f"{name} is {self.__dict__[name]}; it cannot be negative.")
        check(self.temperature > 0, f"temperature is {self.temperature}; it must be positive.")


#: deviation of the identities and of the summary token at the start.
IDENTITY_SCALE = 0.02


class MMMIE(Method):
    """Mutual information maximisation and minimisation with identity embedding."""

    Config = MmmieConfig
    title = "MMMIE: mutual information maximised and minimised, with identity embedding"
    paper = "Zheng, Zhang, Wang, Zeng. arXiv 2201.03969 (2022)"
    status = "after"
    ablations: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "full": {},
        "without maximisation": {"model.maximise": 0.0},
        "without minimisation": {"model.minimise": 0.0},
        "without identity": {"model.identity": False},
    }

    def __init__(self, cfg: MmmieConfig, spec: DataSpec) -> None:
        super().__init__(cfg, spec)
        self.inputs = StreamInputs(spec, cfg.modalities)
        widths, names = self.inputs.widths, self.inputs.modalities
        self.encoders = nn.ModuleDict({m: StreamEncoder(m, widths[m], cfg) for m in names})
        self.means = nn.ModuleDict({m: nn.Linear(cfg.width, cfg.width) for m in names})
        coded = names if cfg.minimise else ()
        self.deviations = nn.ModuleDict({m: nn.Linear(cfg.width, cfg.width) for m in coded})
        self.shared = _shared(names, cfg) if cfg.maximise and len(names) > 1 else None
        self.kept = _kept(widths, cfg) if cfg.minimise else None
        self.network = IdentityNetwork(names, cfg)
        self.head = Head(cfg.width, spec.task, dropout=cfg.dropout)

    def backbone(self) -> nn.Module | None:
        """The text encoder, where it is part of the model."""
        return self.inputs.encoder

    def stages(self) -> tuple[Stage, ...]:
        """One stage; where densities are estimated, optimiser "estimator" steps before "main" in every batch."""
        fitted = self._fitted()
        if not fitted:
            return super().stages()
        backbone = [] if self.inputs.encoder is None else [self.inputs.encoder]
        main = [Group("backbone", encoder) for encoder in backbone]
        main.append(Group("main", self, without=(*backbone, *fitted)))
        return (Stage("train", passes=(Pass(self.step, {"estimator": [Group("estimator", *fitted)], "main": main}),)),)

    def step(self, batch: Batch, update: Update) -> Losses:
        """The estimators, the codes held fixed; then everything else, the estimators held fixed."""
        codes = self.encode(batch)
        fitted = self._fitted()
        if fitted:
            likelihood = torch.stack([term.likelihood(codes) for term in fitted]).sum()
            update(Losses(-likelihood, likelihood=likelihood), "estimator")
        losses = self._objective(batch, codes, min(1.0, (update.progress.epoch + 1) / self.cfg.warm_epochs))
        update(losses)
        return losses

    def forward(self, batch: Batch) -> Output:
        """Scores (N,) or logits (N, C); the pooled codes (N, d) as features."""
        return self._predict(batch, self.encode(batch))

    def loss(self, batch: Batch) -> Losses:
        """task - maximise * Σ I(z_m; z_n) + minimise * Σ I(x_m; z_m), with bounds for I and ``minimise`` fully grown."""
        return self._objective(batch, self.encode(batch), 1.0)

    def encode(self, batch: Batch) -> dict[Modality, Code]:
        """The codes of all modalities in use: drawn in training if something is minimised, means otherwise."""
        return {m: self._code(m, stream) for m, stream in self.inputs(batch).items()}

    def _code(self, modality: Modality, stream: Stream) -> Code:
        hidden = self.encoders[modality](stream)
        mean = steps = self.means[modality](hidden).float()  # information is measured in 32 bits
        deviation = None
        if modality in self.deviations:
            deviation = F.softplus(self.deviations[modality](hidden).float() + START)
            steps = Gaussian(mean, deviation).sample() if self.training else mean
        source = masked_mean(stream.data, stream.mask).detach()
        return Code(steps, masked_mean(steps, stream.mask), mean, deviation, stream.mask, source)

    def _predict(self, batch: Batch, codes: Codes) -> Output:
        parts = {m: [(code.steps, code.mask)] for m, code in codes.items()}
        if self.cfg.context:
            if batch.dialogue is None:
                raise MoodalError(
                    f"model.context is {self.cfg.context} and this corpus has no conversations; set model.context=0."
                )
            place, found = neighbours(batch.dialogue, self.cfg.context)
            for m, code in codes.items():
                parts[m].append((code.pooled[place], found & code.present[place]))
        features = {f"{m}_code": code.pooled for m, code in codes.items()}
        return Output(self.head(self.network(parts)), features=features)

    def _objective(self, batch: Batch, codes: Codes, warmth: float) -> Losses:
        cfg, output = self.cfg, self._predict(batch, codes)
        task, rows = task_loss(
            output.prediction, batch.labels, task=self.spec.task, kind=cfg.loss, label_smoothing=cfg.label_smoothing
        )
        total, parts = task, {"task": task}
        if self.shared is not None:
            parts["shared"] = self.shared(codes, batch.dialogue)
            total = total - cfg.maximise * parts["shared"]
        if self.kept is not None:
            parts["kept"] = self.kept(codes)
            total = total + warmth * cfg.minimise * parts["kept"]
        return Losses(total, output, rows=rows, **parts)

    def _fitted(self) -> list[DensityBound | ClubBound]:
        """The terms that estimate a density; all their parameters are the estimators'."""
        return [term for term in (self.shared, self.kept) if isinstance(term, (DensityBound, ClubBound))]


class StreamEncoder(nn.Module):
    """Linear D -> d, positions and pre-norm layers over the real steps, LayerNorm. Text, encoded already, has no layers."""

    def __init__(self, modality: Modality, entering: int, cfg: MmmieConfig) -> None:
        super().__init__()
        layers = 0 if modality == "text" else cfg.layers
        self.positions = cfg.positions and layers > 0
        self.enter = nn.Linear(entering, cfg.width)
        self.layers = nn.ModuleList(_layer(cfg) for _ in range(layers))
        self.norm = nn.LayerNorm(cfg.width, eps=EPSILON)

    def forward(self, stream: Stream) -> Tensor:
        """(N, T, D) -> (N, T, d); what stands on steps that are not real means nothing."""
        x = self.enter(stream.data)
        if self.positions:
            x = x + sinusoids(x.shape[1], x.shape[2], like=x)[1:]
        # A row without real steps attends to all of them, so that nothing is ever divided by zero; nobody reads it.
        mask = stream.mask | ~stream.mask.any(dim=1, keepdim=True)
        for layer in self.layers:
            x = layer(x, mask=mask)
        return self.norm(x)


class IdentityNetwork(nn.Module):
    """A summary token and the steps of all modalities, each told who it is, in one transformer: the summary's state."""

    def __init__(self, names: Iterable[Modality], cfg: MmmieConfig) -> None:
        super().__init__()
        self.names, self.reach, self.positions = tuple(names), cfg.context, cfg.positions
        self.summary = nn.Parameter(torch.randn(cfg.width) * IDENTITY_SCALE)
        roles = (*self.names, *(("past", "future") if cfg.context else ()), "summary") if cfg.identity else ()
        self.identity = nn.ParameterDict({role: torch.randn(cfg.width) * IDENTITY_SCALE for role in roles})
        self.layers = nn.ModuleList(_layer(cfg) for _ in range(cfg.fusion_layers))
        self.norm = nn.LayerNorm(cfg.width, eps=EPSILON)

    def forward(self, parts: Mapping[Modality, list[Sequence]]) -> Tensor:
        """Per modality its own steps (N, T, d) and, if there is context, 2w turns around it (N, 2w, d) -> (N, d)."""
        sequences = []
        for name in self.names:
            own, *around = parts[name]
            sequences.append((self._placed(own[0]) + self._who(name), own[1]))
            sequences += [(self._turned(x) + self._who(name), mask) for x, mask in around]
        values = [x for x, _ in sequences]
        summary = (self.summary + self._who("summary")).expand(len(values[0]), 1, -1)
        x, mask = torch.cat([summary, *values], dim=1), with_first(joined([mask for _, mask in sequences], values))
        for layer in self.layers[:-1]:
            x = layer(x, mask=mask)
        return self.norm(self.layers[-1](x[:, :1], x, mask=mask)[:, 0])  # only the summary's state is read

    def _who(self, role: str) -> Tensor | float:
        return self.identity[role] if self.identity else 0.0

    def _placed(self, steps: Tensor) -> Tensor:
        return steps + sinusoids(steps.shape[1], steps.shape[2], like=steps)[1:] if self.positions else steps

    def _turned(self, turns: Tensor) -> Tensor:
        """(N, 2w, d), w before and w after: the position says how far away a turn is, the identity on which side."""
        before, after = turns.split(self.reach, dim=1)
        if self.positions:
            table = sinusoids(self.reach, turns.shape[2], like=turns)[1:]
            before, after = before + table.flip(0), after + table
        return torch.cat([before + self._who("past"), after + self._who("future")], dim=1)


def neighbours(dialogue: Dialogue, reach: int) -> tuple[Tensor, Tensor]:
    """Where in the batch the ``reach`` turns before and after each row are: rows (N, 2 reach), and whether they are there.

    In the order of the turns; a turn outside the conversation, or not in this batch, is not there.
    """
    steps = torch.arange(1, reach + 1, device=dialogue.turn.device)
    wanted = dialogue.turn[:, None] + torch.cat([-steps.flip(0), steps])
    same = dialogue.conversation[:, None] == dialogue.conversation[None, :]
    match = same[:, None, :] & (wanted[:, :, None] == dialogue.turn)
    return match.int().argmax(dim=-1), match.any(dim=-1)


def _layer(cfg: MmmieConfig) -> Layer:
    return Layer(
        cfg.width,
        heads=cfg.heads,
        head_width=cfg.width // cfg.heads,
        feed_forward=4 * cfg.width,
        dropout=cfg.dropout,
    )


def _shared(names: tuple[Modality, ...], cfg: MmmieConfig) -> CriticBound | DensityBound:
    if cfg.maximiser == "barber_agakov":
        return DensityBound(names, width=cfg.width, hidden=cfg.estimator_hidden)
    return CriticBound(names, width=cfg.width, kind=cfg.maximiser, temperature=cfg.temperature)


def _kept(widths: Mapping[Modality, int], cfg: MmmieConfig) -> PriorBound | ClubBound | LeaveOneOutBound:
    if cfg.minimiser == "club":
        return ClubBound(widths, width=cfg.width, hidden=cfg.estimator_hidden)
    return PriorBound() if cfg.minimiser == "prior" else LeaveOneOutBound()
