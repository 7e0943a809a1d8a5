"""MulT: every modality reads the two others, step by step, before it reads itself; the streams need no alignment.

Paper   Yao-Hung Hubert Tsai, Shaojie Bai, Paul Pu Liang, J. Zico Kolter, Louis-Philippe Morency, Ruslan Salakhutdinov.
        Multimodal Transformer for Unaligned Multimodal Language Sequences. ACL 2019. arXiv 1906.00295
Code    yaohungt/Multimodal-Transformer @ a670936824ee722c8494fd98d204977a1d663c7a; port: thuiar/MMSA
        @ a94e65d07fa1ae0d44e552390074b29b0898edfd (read as references, nothing taken from them)
Shapes  N rows, T steps of a modality, D width, S sources of a target (the other modalities), W = S D the width of its memory

Differences from the official code
  1. Padding is known by its mask: it gets no position, is nobody's key, and the last step is the last real one. Official: a
     step is padding where channel 0 is exactly 0, all steps are keys, the last padded step is read.
  2. The causal mask lets step i of a target of length T see its source of length S up to i + |S - T|, with the real
     lengths of each row; official: with the padded lengths of the batch.
  3. A convolution over K steps gives the T - K + 1 steps that it can, in a shorter row one; official: an error there.
  4. The last block of a memory is evaluated at the step that is read: the same numbers for less work.
  5. One or two modalities are enough. A target without sources has its self-attention alone, of width D.
  6. Classification has one softmax over the classes. Official: two logits for each of four emotions.
  7. A convolution that is not used (a stream already D wide) has no weights here.
``reference`` undoes 1, 2 and 4. ``positions=false`` is the port in MMSA, whose encoders leave them out.

Inferred: the residual form (the code's; the paper's equations add after normalising). The defaults are the paper's settings for
MOSEI as its readers quote them, with the code's own dropouts of feed-forward and residuals.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moodal.core.batch import Batch, Stream
from moodal.core.errors import check
from moodal.core.method import Losses, Method, MethodConfig, Output
from moodal.core.spec import MODALITIES, Classification, DataSpec, Modality, Task
from moodal.layers.crossmodal import CrossmodalDropout, CrossmodalEncoder
from moodal.layers.dropout import Dropout
from moodal.layers.inputs import StreamInputs
from moodal.layers.masks import pad_steps, whole_windows, zero_padding
from moodal.layers.transformer import Sequence
from moodal.losses.task import RegressionLoss, task_loss


@dataclass(frozen=True, kw_only=True)
class MultConfig(MethodConfig):
    """Settings of MulT; the defaults are the paper's for MOSEI."""

    targets: tuple[Modality, ...] = MODALITIES  # the modalities that read the others
    width: int = 40
    heads: int = 8  # the paper: 10 for smaller corpora
    layers: int = 4  # blocks that read another modality
    memory_layers: int | None = None  # blocks of self-attention of each target; null: as many, but at least 3
    kernels: tuple[int, int, int] = (1, 3, 3)  # steps of the convolution over text, audio, vision
    causal: bool = True
    positions: bool = True
    embedding_dropout: float = 0.3  # of the text's features, and of every sequence that enters an encoder
    attention_dropout: float = 0.1  # of weights: text as source, memories
    audio_attention_dropout: float = 0.0  # audio as source
    vision_attention_dropout: float = 0.0  # vision as source
    relu_dropout: float = 0.1
    residual_dropout: float = 0.1
    head_dropout: float = 0.1
    loss: RegressionLoss = "l1"  # for regression; classification has cross-entropy
    label_smoothing: float = 0.0
    reference: bool = False  # positions, masks and last step as published: see the header

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("width", "heads", "layers"):
            check(self.__dict__[name] >= 1, f"{name} is {self.__dict__[name]}; it must be 1 or more.")
        check(
            self.width % self.heads == 0,
            f"width is {self.width} and heads {self.heads}; the width must be a multiple of the heads.",
        )
        check(
            self.memory_layers is None or self.memory_layers >= 1,
            f"memory_layers is {self.memory_layers}; it must be 1 or more, or null.",
        )
        check(min(self.kernels) >= 1, f"kernels is {list(self.kernels)}; each must be 1 or more.")
        known = all(m in MODALITIES for m in self.targets) and len(set(self.targets)) == len(self.targets)
        check(
            bool(self.targets) and known,
            f"targets is {list(self.targets)}; give one or more of {', '.join(MODALITIES)}, each once.",
        )
        for name in (name for name in self.__dict__ if name.endswith("dropout") or name == "label_smoothing"):
            check(0 <= self.__dict__[name] < 1, f"{name} is {self.__dict__[name]}; it lies from 0 up to 1.")

    @property
    def memory_depth(self) -> int:
        """Blocks of self-attention of each target."""
        return max(self.layers, 3) if self.memory_layers is None else self.memory_layers

    def shares(self, source: Modality | None = None) -> CrossmodalDropout:
        """What an encoder drops that reads ``source``, or itself."""
        attention = {"audio": self.audio_attention_dropout, "vision": self.vision_attention_dropout}
        return CrossmodalDropout(
            embedding=self.embedding_dropout,
            attention=attention.get(source or "text", self.attention_dropout),
            relu=self.relu_dropout,
            residual=self.residual_dropout,
        )


class MulT(Method):
    """Multimodal transformer for unaligned sequences."""

    Config = MultConfig
    title = "MulT: multimodal transformer for unaligned multimodal language sequences"
    paper = "Tsai et al. ACL 2019; arXiv 1906.00295"
    status = "parity"
    ablations: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "full": {},
        "text only": {"model.modalities": ["text"]},
        "audio only": {"model.modalities": ["audio"]},
        "vision only": {"model.modalities": ["vision"]},
        "only text reads": {"model.targets": ["text"]},
        "only audio reads": {"model.targets": ["audio"]},
        "only vision reads": {"model.targets": ["vision"]},
        "without positions": {"model.positions": False},
        "without causal mask": {"model.causal": False},
    }

    def __init__(self, cfg: MultConfig, spec: DataSpec) -> None:
        super().__init__(cfg, spec)
        self.inputs = StreamInputs(spec, cfg.modalities)
        present = self.inputs.modalities
        self.targets = tuple(m for m in present if m in cfg.targets)
        check(
            bool(self.targets),
            f"None of the targets {', '.join(cfg.targets)} is in use here; set model.targets to some of {', '.join(present)}.",
        )
        self.sources = {target: tuple(m for m in present if m != target) for target in self.targets}
        kernels = dict(zip(MODALITIES, cfg.kernels))
        self.dropout = Dropout(cfg.embedding_dropout)
        self.entrances = nn.ModuleDict(
            {m: _Entrance(width, cfg.width, kernels[m], whole=cfg.reference) for m, width in self.inputs.widths.items()}
        )
        self.crossmodal = self.readers()
        widths = {target: cfg.width * max(len(sources), 1) for target, sources in self.sources.items()}
        self.memories = nn.ModuleDict({target: self._memory(width) for target, width in widths.items()})
        self.head = ResidualHead(sum(widths.values()), spec.task, dropout=cfg.head_dropout)

    def backbone(self) -> nn.Module | None:
        """The text encoder, where it is part of the model."""
        return self.inputs.encoder

    def forward(self, batch: Batch) -> Output:
        """Scores (N,) or logits (N, C).

        Features: "<target>_from_<source>" (N, T, D), "<target>_summary" (N, W) and "fused", these side by side.
        """
        sequences = self.enter(batch)
        found = self.read(sequences)
        mixed = self.mixed(sequences, found)
        ends = {f"{target}_summary": self.memories[target](mixed[target], last=True) for target in mixed}
        fused = torch.cat(list(ends.values()), dim=-1)
        return Output(self.head(fused), features={**found, **ends, "fused": fused})

    def loss(self, batch: Batch) -> Losses:
        """Mean absolute error, or cross-entropy."""
        cfg, output = self.cfg, self(batch)
        task, rows = task_loss(
            output.prediction, batch.labels, task=self.spec.task, kind=cfg.loss, label_smoothing=cfg.label_smoothing
        )
        return Losses(task, output, rows=rows, task=task)

    def enter(self, batch: Batch) -> dict[Modality, Sequence]:
        """Every modality at width D: (N, T, D) and its mask."""
        streams = self.inputs(batch)
        if "text" in streams:
            words = streams["text"]
            streams["text"] = Stream(self.dropout(words.data), words.mask)
        return {m: self.entrances[m](stream) for m, stream in streams.items()}

    def readers(self) -> nn.ModuleDict:
        """One encoder for each target and source, by "<target>_from_<source>"."""
        return nn.ModuleDict({pair(t, s): self._encoder(s) for t, sources in self.sources.items() for s in sources})

    def read(self, sequences: Mapping[Modality, Sequence]) -> dict[str, Tensor]:
        """What each target takes from each source, (N, T, D) by "<target>_from_<source>"."""
        return {
            pair(t, s): self.crossmodal[pair(t, s)](sequences[t], sequences[s])
            for t, sources in self.sources.items()
            for s in sources
        }

    def mixed(self, sequences: Mapping[Modality, Sequence], found: Mapping[str, Tensor]) -> dict[Modality, Sequence]:
        """What enters the memory of each target: (N, T, W), its sources side by side, or itself if it has none."""
        mixed: dict[Modality, Sequence] = {}
        for target, sources in self.sources.items():
            own, mask = sequences[target]
            mixed[target] = (torch.cat([found[pair(target, s)] for s in sources], dim=-1) if sources else own, mask)
        return mixed

    def _encoder(self, source: Modality) -> CrossmodalEncoder:
        cfg = self.cfg
        return CrossmodalEncoder(cfg.width, layers=cfg.layers, dropout=cfg.shares(source), **self._shared())

    def _memory(self, width: int) -> CrossmodalEncoder:
        cfg = self.cfg
        return CrossmodalEncoder(width, layers=cfg.memory_depth, dropout=cfg.shares(), **self._shared())

    def _shared(self) -> dict[str, Any]:
        cfg = self.cfg
        return {"heads": cfg.heads, "causal": cfg.causal, "positions": cfg.positions, "reference": cfg.reference}


def pair(target: Modality, source: Modality) -> str:
    """The name of what ``target`` takes from ``source``."""
    return f"{target}_from_{source}"


class ResidualHead(nn.Module):
    """W_o (h + W_2 Drop(ReLU(W_1 h + b_1)) + b_2) + b_o."""

    def __init__(self, width: int, task: Task, *, dropout: float) -> None:
        super().__init__()
        self.single = not isinstance(task, Classification)
        self.first, self.second = nn.Linear(width, width), nn.Linear(width, width)
        self.dropout = Dropout(dropout)
        self.out = nn.Linear(width, task.outputs)

    def forward(self, vector: Tensor) -> Tensor:
        """(N, W) -> (N,) for regression, (N, C) logits for classification."""
        outputs = self.out(vector + self.second(self.dropout(F.relu(self.first(vector)))))
        return outputs[:, 0] if self.single else outputs


class _Entrance(nn.Module):
    """A convolution over whole windows of ``kernel`` steps, no bias; nothing where the stream is already that wide.

    ``whole``: T - K + 1 steps, all of them real, as published. Otherwise T steps, of which those are real whose window is.
    """

    def __init__(self, inputs: int, width: int, kernel: int, *, whole: bool) -> None:
        super().__init__()
        self.kernel, self.whole = kernel, whole
        self.weight = (
            None if inputs == width else nn.Parameter(nn.Conv1d(inputs, width, kernel, bias=False).weight.data)
        )

    def forward(self, stream: Stream) -> Sequence:
        """(N, T, I) -> (N, T', D) and its mask."""
        values = zero_padding(stream.data, stream.mask)
        if self.weight is None:
            return values, stream.mask
        steps = stream.mask.shape[1]
        steps = max(steps, self.kernel) if self.whole else steps + self.kernel - 1
        values, given = pad_steps(values, stream.mask, steps)
        mapped = F.conv1d(values.transpose(1, 2), self.weight).transpose(1, 2)
        return mapped, whole_windows(stream.mask if given is None else given, self.kernel)
