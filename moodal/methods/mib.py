"""MIB: codes that keep what tells the target and drop the rest of each modality, of their fusion, or of both.

Paper   Sijie Mai, Ying Zeng, Haifeng Hu. Multimodal Information Bottleneck: Learning Minimal Sufficient Unimodal and
        Multimodal Representations. IEEE Transactions on Multimedia, 2022. DOI 10.1109/TMM.2022.3171679
Code    TmacMai/Multimodal-Information-Bottleneck @ f6d006bdf0ebb64975352cf62abbce790d540b64 (emib.py, lmib.py, cmib.py)
Shapes  N rows, T steps, M modalities (text, audio, vision: those present), D width of summaries and codes

A modality becomes one vector: text by a convolution at its last step, audio and vision by a convolution and a
transformer, at the last step. A bottleneck turns a vector into a Gaussian code; its price is beta times the divergence
of that Gaussian from N(0, I). Early form (E-MIB): fuse, then one bottleneck. Late (L-MIB): a bottleneck and a head per
modality, then fuse the codes. Complete (C-MIB): late, and a bottleneck on what was fused.

Differences from the official code
  1. Codes are drawn in training only; in evaluation a code is its mean. Official: drawn in evaluation too.
  2. Padding is masked in convolution, positions and attention, and the last step is the last real one. Official: no
     mask, streams padded to 50, the last padded step; a frame is padding where channel 0 is exactly 0 after the convolution.
  3. The loss of the final prediction counts once, as in the paper. Official: twice, added in two places.
  4. A modality that a row lacks does not enter the fusion, the losses or the divergences. Official: read like zeros.
  5. The last layer of each transformer and the text's convolution are evaluated at the last step only: the same numbers.
  6. Classification (no code was released for it): cross-entropy over the classes in place of the absolute error.
  7. Modules that nothing reads (bottlenecks of modalities in E-MIB, a second text convolution, a batch norm) do not exist.
``reference`` computes what is published (1 to 5 undone, streams padded to ``max_steps``), for official checkpoints.
The divergence is a mean over the D dimensions as in the code; the paper's sum is ``kl_reduction: sum``.

Inferred: the square root that makes a deviation of the variance of the product of experts (late form, ``fusion: poe``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moodal.core.batch import Batch, Stream, Target
from moodal.core.errors import check
from moodal.core.method import Group, Losses, Method, MethodConfig, Output, Pass, Stage
from moodal.core.spec import DataSpec, Modality
from moodal.layers.bottleneck import Gaussian, GaussianBottleneck, product_of_experts
from moodal.layers.crossmodal import CrossmodalDropout, CrossmodalEncoder
from moodal.layers.fusion_operators import Operator, fusion_operator
from moodal.layers.heads import LinearHead
from moodal.layers.inputs import StreamInputs
from moodal.layers.masks import check_steps, last_step, pad_steps, zero_padding
from moodal.layers.transformer import Sequence
from moodal.losses.gaussian import KLReduction, standard_kl
from moodal.losses.task import RegressionLoss, task_loss

#: The name of the code behind the fusion; the others have the names of their modalities.
FUSED = "fused"
#: Deviation from which the weights of linear maps are drawn (official code).
SPREAD = 0.02


@dataclass(frozen=True, kw_only=True)
class MIBConfig(MethodConfig):
    """Settings of MIB; the defaults are the paper's (C-MIB with concatenation), its dropouts those of the code."""

    form: Literal["early", "late", "complete"] = "complete"  # E-MIB, L-MIB, C-MIB
    fusion: Operator | Literal["poe"] = "concatenation"  # poe: product of experts, late form only
    beta: float = 1e-3  # price of a code: beta times its divergence from N(0, I)
    kl_reduction: KLReduction = "mean"  # over the dimensions; beta 1e-3 of the mean is 2e-5 of the sum at width 50
    noise: bool = True  # draw codes in training; false: the mean, a bottleneck by the divergence alone
    width: int = 50
    hidden: int = 1024  # of a bottleneck
    heads: int = 5
    layers: int = 3  # of the transformers of audio and vision
    embedding_dropout: float = 0.2  # on what enters a transformer
    attention_dropout: float = 0.5
    dropout: float = 0.3  # inside the feed-forward and on both residuals
    loss: RegressionLoss = "l1"  # for regression; classification has cross-entropy
    label_smoothing: float = 0.0
    max_steps: int = 50  # with `reference`: what streams are padded to
    reference: bool = False  # codes drawn in evaluation, no masks, final loss twice: the published computation

    @property
    def longest(self) -> int | None:
        """Steps of a sequence that there are positions for."""
        return self.max_steps if self.reference else None

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("width", "hidden", "heads", "layers", "max_steps"):
            check(self.__dict__[name] >= 1, f"{name} is {self.__dict__[name]}; it must be 1 or more.")
        check(self.width % self.heads == 0, f"width is {self.width}; it must be a multiple of heads ({self.heads}).")
        for name in ("embedding_dropout", "attention_dropout", "dropout", "label_smoothing"):
            check(0 <= self.__dict__[name] < 1, f"{name} is {self.__dict__[name]}; it lies from 0 up to 1.")
        check(self.beta >= 0, f"beta is {self.beta}; it cannot be negative.")
        check(
            self.fusion != "poe" or self.form == "late",
            f"fusion is poe and form is {self.form}; a product of experts needs the codes of single modalities and "
            "gives one itself, so set form to late.",
        )


class MIB(Method):
    """Multimodal information bottleneck: E-MIB, L-MIB or C-MIB."""

    Config = MIBConfig
    title = "MIB: multimodal information bottleneck"
    paper = "Mai, Zeng, Hu. IEEE Transactions on Multimedia 2022"
    status = "parity"
    ablations: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "full": {},
        "E-MIB": {"model.form": "early"},
        "L-MIB": {"model.form": "late"},
        "without divergence (beta 0)": {"model.beta": 0.0},
        "fusion: addition": {"model.fusion": "addition"},
        "fusion: multiplication": {"model.fusion": "multiplication"},
        "fusion: tensor": {"model.fusion": "tensor"},
        "fusion: low rank": {"model.fusion": "low_rank"},
        "fusion: graph": {"model.fusion": "graph"},
        "L-MIB, product of experts": {"model.form": "late", "model.fusion": "poe"},
    }

    def __init__(self, cfg: MIBConfig, spec: DataSpec) -> None:
        super().__init__(cfg, spec)
        self.inputs = StreamInputs(spec, cfg.modalities)
        names = self.inputs.modalities
        single = () if cfg.form == "early" else names
        self.sequences = nn.ModuleDict(
            {m: _Words(w, cfg.width) if m == "text" else _Frames(w, cfg) for m, w in self.inputs.widths.items()}
        )
        self.bottlenecks = nn.ModuleDict({m: GaussianBottleneck(cfg.width, cfg.hidden) for m in single})
        self.heads = nn.ModuleDict({m: LinearHead(cfg.width, spec.task) for m in single})
        activation: Literal["tanh", "relu"] = "tanh" if cfg.form == "complete" else "relu"  # of the tensor operator
        self.fusion = (
            None if cfg.fusion == "poe" else fusion_operator(cfg.fusion, cfg.width, len(names), activation=activation)
        )
        if cfg.form != "late":
            self.bottlenecks[FUSED] = GaussianBottleneck(cfg.width, cfg.hidden)
        self.head = LinearHead(cfg.width, spec.task)
        for part in self.children():
            if part is not self.inputs:
                part.apply(_draw)

    def backbone(self) -> nn.Module | None:
        """The text encoder, where it is part of the model."""
        return self.inputs.encoder

    def stages(self) -> tuple[Stage, ...]:
        """One stage; the text's convolution is a group of its own, which the authors train at the encoder's rate."""
        own = {} if self.inputs.encoder is None else {"backbone": self.inputs.encoder}
        if "text" in self.sequences:
            own["text_projection"] = self.sequences["text"]
        groups = [*(Group(name, part) for name, part in own.items()), Group("main", self, without=tuple(own.values()))]
        return (Stage("train", passes=(Pass(self.step, groups),)),)

    def forward(self, batch: Batch) -> Output:
        """Scores (N,) or logits (N, C); for inspection the nats each code carries (N, codes), in the order of ``codes``."""
        return self.run(batch)

    @property
    def codes(self) -> tuple[str, ...]:
        """The names of the codes that have a price: of modalities, then of their fusion."""
        return tuple(self.bottlenecks)

    def run(self, batch: Batch, noise: Mapping[str, Tensor] | None = None) -> Output:
        """The forward pass. ``noise``: (N, D) by name of code, in place of what is drawn; with zeros a code is its mean.

        Features: "<modality>_summary"; "<code>_mean", "<code>_deviation" and "<code>_code"; "fused", what leaves the
        fusion; all (N, D). "<modality>_prediction", shaped like the prediction. "present" (N, M).
        """
        summaries, present = self.summaries(batch)
        features = {f"{m}_summary": vector for m, vector in summaries.items()} | {"present": present}
        gaussians = {m: self.bottlenecks[m](vector) for m, vector in summaries.items() if m in self.bottlenecks}
        drawn = {m: self._drawn(m, gaussian, noise) for m, gaussian in gaussians.items()}
        features |= {f"{m}_prediction": head(drawn[m]) for m, head in self.heads.items()}
        fused, gaussian = self._fuse(drawn or summaries, gaussians, present)
        final = features["fused"] = fused
        if gaussian is not None:
            final = drawn[FUSED] = self._drawn(FUSED, gaussian, noise)
            gaussians[FUSED] = gaussian
        for name, (mean, deviation) in gaussians.items():
            features |= {f"{name}_mean": mean, f"{name}_deviation": deviation, f"{name}_code": drawn[name]}
        nats = self._nats(gaussians, present)
        return Output(self.head(final), features=features, inspection={"nats": nats})

    def loss(self, batch: Batch) -> Losses:
        """The task's loss of the final and of every single prediction, plus beta times the divergences of the codes."""
        return self.objective(self.run(batch), batch.labels)

    def objective(self, output: Output, target: Target) -> Losses:
        """``loss`` of what ``run`` gave: a mean over labelled rows, to which a modality adds in the rows that have it."""
        found, cfg = output.features, self.cfg
        task, rows = self._task(output.prediction, target)
        count = rows.clamp(min=1)
        there = dict(zip(self.inputs.modalities, found["present"].unbind(dim=1)))
        total, parts = (2.0 if cfg.reference else 1.0) * task, {}
        for name in self.codes:
            valid = target.valid & there[name] if name in there else target.valid
            each = standard_kl(found[f"{name}_mean"], found[f"{name}_deviation"], reduction=cfg.kl_reduction)
            divergence = parts[f"{name}_divergence"] = (each * valid).sum() / count
            total = total + cfg.beta * divergence
            if name in self.heads:
                mean, own = self._task(found[f"{name}_prediction"], replace(target, valid=valid))
                part = parts[f"{name}_task"] = mean * own / count
                total = total + part
        return Losses(total, output, rows=rows, task=task, **parts)

    def summaries(self, batch: Batch) -> tuple[dict[str, Tensor], Tensor]:
        """One vector (N, D) per modality, and which of the M modalities each row has (N, M)."""
        found: dict[str, Tensor] = {}
        there: list[Tensor] = []
        for m, (values, mask) in self._streams(batch).items():
            found[m] = self.sequences[m](values, mask)
            there.append(torch.ones_like(batch.index, dtype=torch.bool) if mask is None else mask.any(dim=1))
        return found, torch.stack(there, dim=1)

    def _streams(self, batch: Batch) -> dict[Modality, Sequence]:
        """Values and mask of each modality; in reference mode padded, and all steps taken for real."""
        if not self.cfg.reference:
            return {m: (stream.data, stream.mask) for m, stream in self.inputs(batch).items()}
        given = {m: stream for m, stream in batch.streams.items() if m in self.inputs.modalities}
        whole = replace(batch, streams={m: _padded(m, stream, self.cfg.max_steps) for m, stream in given.items()})
        return {m: (stream.data, None) for m, stream in self.inputs(whole).items()}

    def _drawn(self, name: str, gaussian: Gaussian, noise: Mapping[str, Tensor] | None) -> Tensor:
        """The code: drawn in training (as published: always), else the mean; or with the given noise."""
        if noise is not None:
            return gaussian.sample(noise[name])
        drawing = self.cfg.noise and (self.training or self.cfg.reference)
        return gaussian.sample() if drawing else gaussian.mean

    def _fuse(
        self, vectors: Mapping[str, Tensor], gaussians: Mapping[str, Gaussian], present: Tensor
    ) -> tuple[Tensor, Gaussian | None]:
        """What leaves the fusion (N, D), and the Gaussian of the final code where there is one."""
        if self.fusion is None:
            product = product_of_experts(list(gaussians.values()), present)
            return product.mean, product
        fused = self.fusion(torch.stack(list(vectors.values()), dim=1), present)
        return fused, self.bottlenecks[FUSED](fused) if FUSED in self.bottlenecks else None

    def _nats(self, gaussians: Mapping[str, Gaussian], present: Tensor) -> Tensor:
        """(N, codes) what each code carries, 0 where its modality is absent."""
        there = dict(zip(self.inputs.modalities, present.unbind(dim=1)))
        found = {name: standard_kl(*(part.detach() for part in gaussians[name])) for name in self.codes}
        return torch.stack([nats * there[name] if name in there else nats for name, nats in found.items()], dim=1)

    def _task(self, prediction: Tensor, target: Target) -> tuple[Tensor, Tensor]:
        cfg = self.cfg
        return task_loss(prediction, target, task=self.spec.task, kind=cfg.loss, label_smoothing=cfg.label_smoothing)


class _Convolution(nn.Module):
    """Convolution along time, kernel 3, as many steps as before, no bias; what is not real counts as zero."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(nn.Conv1d(inputs, width, 3, bias=False).weight.data)  # (D, I, 3): its own start

    def forward(self, values: Tensor, mask: Tensor | None) -> Tensor:
        """(N, T, I) -> (N, T, D)."""
        return F.conv1d(zero_padding(values, mask).transpose(1, 2), self.weight, padding=1).transpose(1, 2)

    def last(self, values: Tensor, mask: Tensor | None) -> Tensor:
        """(N, T, I) -> (N, D): ``forward`` at the last real step; zeros where there is none."""
        steps = values.shape[1]
        if mask is None:
            return self(values, None)[:, -1]
        window = torch.arange(-1, 2, device=values.device) + last_step(mask)[:, None]
        inside = window.clamp(0, steps - 1)
        real = (window == inside) & mask.take_along_dim(inside, dim=1)
        chosen = values.take_along_dim(inside.unsqueeze(-1), dim=1) * real.unsqueeze(-1)
        return F.linear(chosen.flatten(1), self.weight.transpose(1, 2).flatten(1))


class _Words(nn.Module):
    """The states of a text as one vector: the convolution at the last step."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.convolution = _Convolution(inputs, width)

    def forward(self, values: Tensor, mask: Tensor | None) -> Tensor:
        """(N, T, I) -> (N, D)."""
        return self.convolution.last(values, mask)


class _Frames(nn.Module):
    """The frames of audio or vision as one vector: a transformer behind the convolution, at the last step."""

    def __init__(self, inputs: int, cfg: MIBConfig) -> None:
        super().__init__()
        shares = CrossmodalDropout(
            embedding=cfg.embedding_dropout, attention=cfg.attention_dropout, relu=cfg.dropout, residual=cfg.dropout
        )
        self.convolution = _Convolution(inputs, cfg.width)
        self.encoder = CrossmodalEncoder(
            cfg.width, heads=cfg.heads, layers=cfg.layers, causal=False, reference=cfg.reference, dropout=shares
        )

    def forward(self, values: Tensor, mask: Tensor | None) -> Tensor:
        """(N, T, I) -> (N, D)."""
        return self.encoder((self.convolution(values, mask), mask), last=True)


def _padded(modality: str, stream: Stream, steps: int) -> Stream:
    check_steps(modality, stream.mask.shape[1], steps, "model.max_steps")
    data, mask = pad_steps(stream.data, stream.mask, steps)
    return replace(stream, data=data, mask=stream.mask if mask is None else mask)


def _draw(module: nn.Module) -> None:
    """Weights and biases of a linear map as the official code starts them."""
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=SPREAD)
        nn.init.zeros_(module.bias)
