"""COLD Fusion: each modality says how sure it is, and the surer one counts more; being sure is learnt from being right.

Paper   Mani Kumar Tellamekala, Shahin Amiriparian, Björn W. Schuller, Elisabeth André, Timo Giesbrecht, Michel Valstar.
        COLD Fusion: Calibrated and Ordinal Latent Distribution Fusion for Uncertainty-Aware Multimodal Emotion
        Recognition. TPAMI 46(2), 805-822, 2024. arXiv 2206.05833. Its abstract was read, and what a paper that adopts it
        and two independent implementations agree on: this is "after Tellamekala et al.", not a reproduction.
Code    none known by the authors
Shapes  N rows, T steps, D width of a latent vector, M modalities

On which the sources agree: a Gaussian with independent coordinates per modality; the norm of its variance as the score
of uncertainty; weights by inverse norms; softmax matching of errors and scores within and across modalities; a
divergence from the standard normal distribution.
Inferred
  1. One distribution per clip, from the mean of its real steps: clips have one label, and streams no common clock. The
     paper's is one per frame, for labels per frame.
  2. The set over which errors and scores are compared: the labelled clips of a batch that have the modality.
  3. Encoders, sizes, and the losses of the single modalities, without which their errors mean nothing
     (``unimodal=0``: the strict form).
The loss of a clip depends on its batch mates, as the method has it; its score does not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from moodal.core.batch import Batch, Stream
from moodal.core.errors import check
from moodal.core.method import Losses, Method, MethodConfig, Output
from moodal.core.spec import DataSpec
from moodal.layers.dropout import Dropout
from moodal.layers.fusion import weighted_sum
from moodal.layers.heads import LinearHead
from moodal.layers.inputs import StreamInputs
from moodal.layers.masks import masked_mean, masked_softmax
from moodal.layers.recurrent import GRU
from moodal.losses.gaussian import standard_kl
from moodal.losses.task import RegressionLoss, row_losses, task_loss

#: how wrong a modality is where numbers are predicted: the squared error, whatever the task's loss.
ERROR: RegressionLoss = "mse"
#: logarithms of variances lie between minus this and this.
LARGEST = 10.0


@dataclass(frozen=True, kw_only=True)
class ColdFusionConfig(MethodConfig):
    """Settings of COLD Fusion; the three weights of its own losses are those of one implementation."""

    width: int = 128
    hidden: int = 64  # of one direction of the GRU
    layers: int = 1
    calibration: float = 1e-3  # errors and scores within a modality
    ordinality: float = 1e-3  # errors and scores across modalities
    prior: float = 1e-4  # divergence from the standard normal distribution
    unimodal: float = 1.0  # the task's loss of each modality alone
    temperature: float = 1.0  # of the softmax over errors and scores
    detach_errors: bool = False  # scores follow errors, and errors do not follow scores
    dropout: float = 0.3
    loss: RegressionLoss = "mse"  # for regression; classification has cross-entropy

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("width", "hidden", "layers"):
            check(self.__dict__[name] >= 1, f"{name} is {self.__dict__[name]}; it must be 1 or more.")
        for name in ("calibration", "ordinality", "prior", "unimodal"):
            check(self.__dict__[name] >= 0, f"{name} is {self.__dict__[name]}; it cannot be negative.")
        check(self.temperature > 0, f"temperature is {self.temperature}; it must be positive.")
        check(0 <= self.dropout < 1, f"dropout is {self.dropout}; it lies from 0 up to 1.")


class COLDFusion(Method):
    """Latent distributions weighed by calibrated and ordinal variances."""

    Config = ColdFusionConfig
    title = "COLD Fusion: calibrated and ordinal latent distributions"
    paper = "after Tellamekala et al., TPAMI 46(2), 2024"
    status = "after"
    ablations: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "full": {},
        "without ordinality": {"model.ordinality": 0.0},
        "without ordinality and calibration": {"model.ordinality": 0.0, "model.calibration": 0.0},
        "without the prior": {"model.prior": 0.0},
        "without single modalities' losses": {"model.unimodal": 0.0},
    }

    def __init__(self, cfg: ColdFusionConfig, spec: DataSpec) -> None:
        super().__init__(cfg, spec)
        self.inputs = StreamInputs(spec, cfg.modalities)
        self.encoders = nn.ModuleDict({m: LatentEncoder(width, cfg) for m, width in self.inputs.widths.items()})
        self.alone = nn.ModuleDict({m: LinearHead(cfg.width, spec.task) for m in self.inputs.modalities})
        self.head = LinearHead(cfg.width, spec.task)

    def backbone(self) -> nn.Module | None:
        """The text encoder, where it is part of the model."""
        return self.inputs.encoder

    def forward(self, batch: Batch) -> Output:
        """Scores (N,) or logits (N, C); weights and uncertainties of the modalities, (N, M) each, for inspection."""
        output, _ = self._run(batch)
        return output

    def loss(self, batch: Batch) -> Losses:
        """The task's loss, fused and of each modality; calibration, ordinality and the prior."""
        cfg, target = self.cfg, batch.labels
        output, latent = self._run(batch)
        task, rows = task_loss(output.prediction, target, task=self.spec.task, kind=cfg.loss)
        alone = [head(latent.mean[:, place]) for place, head in enumerate(self.alone.values())]
        there = latent.present & target.valid[:, None]
        own, errors = (
            torch.stack([row_losses(told, target, task=self.spec.task, kind=kind) for told in alone], dim=1)
            for kind in (cfg.loss, ERROR)
        )
        errors = (errors.detach() if cfg.detach_errors else errors) / cfg.temperature
        scores = latent.score / cfg.temperature
        parts = {
            "unimodal": (own * there).sum() / rows.clamp(min=1),
            "calibration": matching(errors, scores, there).sum(),
            "ordinality": matching(errors.flatten(), scores.flatten(), there.flatten()),
            "prior": (standard_kl(latent.mean, latent.deviation) * there).sum() / rows.clamp(min=1),
        }
        weights = (cfg.unimodal, cfg.calibration, cfg.ordinality, cfg.prior)
        total = task + sum(weight * part for weight, part in zip(weights, parts.values()))
        return Losses(total, output, rows=rows, task=task, **parts)

    def _run(self, batch: Batch) -> tuple[Output, "Latent"]:
        streams = self.inputs(batch)
        parts = [self.encoders[m](stream) for m, stream in streams.items()]
        mean, deviation = (torch.stack(side, dim=1) for side in zip(*parts))
        present = torch.stack([stream.mask.any(dim=1) for stream in streams.values()], dim=1)
        latent = Latent(mean, deviation, uncertainty(deviation), present)
        weights = fusion_weights(latent.score, present)
        fused = weighted_sum(weights, mean)
        inspection = {"gates": weights.detach(), "uncertainty": latent.score.detach()}
        return Output(self.head(fused), {"means": mean, "fused": fused}, inspection), latent


class Latent(NamedTuple):
    """The modalities' distributions."""

    mean: Tensor  # (N, M, D)
    deviation: Tensor  # (N, M, D) standard deviations
    score: Tensor  # (N, M)
    present: Tensor  # (N, M) whether the row has the modality


class LatentEncoder(nn.Module):
    """(N, T, W) -> mean and standard deviation (N, D): two linear maps of the mean state of a bidirectional GRU."""

    def __init__(self, width: int, cfg: ColdFusionConfig) -> None:
        super().__init__()
        self.read = GRU(width, cfg.hidden, layers=cfg.layers, dropout=cfg.dropout)
        self.dropout = Dropout(cfg.dropout)
        self.mean = nn.Linear(self.read.out, cfg.width)
        self.logarithm = nn.Linear(self.read.out, cfg.width)
        # All modalities start equally sure, near the prior.
        nn.init.normal_(self.logarithm.weight, std=1e-3)
        nn.init.zeros_(self.logarithm.bias)

    def forward(self, stream: Stream) -> tuple[Tensor, Tensor]:
        """A row without real steps gets the maps' biases, which nothing reads."""
        states, _ = self.read(stream.data, stream.mask)
        context = self.dropout(masked_mean(states, stream.mask))
        return self.mean(context), (0.5 * self.logarithm(context).clamp(-LARGEST, LARGEST)).exp()


def uncertainty(deviation: Tensor) -> Tensor:
    """(..., D) standard deviations -> (...) the norm of the variances: how little a modality knows."""
    return deviation.square().norm(dim=-1)


def fusion_weights(score: Tensor, present: Tensor) -> Tensor:
    """(N, M) uncertainties -> (N, M) inverse shares (1 / s_m) / Σ 1 / s_n of the modalities that are present."""
    return masked_softmax(-score.log(), present)


def matching(errors: Tensor, scores: Tensor, there: Tensor) -> Tensor:
    """KL(p || q) + KL(q || p) along the first axis, p = softmax(-errors), q = softmax(-scores), over what is ``there``.

    (K, ...) each -> (...). 0 iff scores are errors plus a constant, and where fewer than two are there.
    """
    p, q = (_log_softmax(-values, there) for values in (errors, scores))
    return ((p.exp() - q.exp()) * (p - q) * there).sum(dim=0)


def _log_softmax(values: Tensor, there: Tensor) -> Tensor:
    """Along the first axis over what is ``there``; finite everywhere."""
    lowest = torch.finfo(values.dtype).min / 4
    return values.masked_fill(~there, lowest).log_softmax(dim=0).masked_fill(~there, 0.0)
