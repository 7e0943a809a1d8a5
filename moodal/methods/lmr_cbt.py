"""LMR-CBT: voice and face, one vector each, shift the words channel by channel; three encoders and a small head.

Paper   Ziwang Fu, Feng Liu, Hanyang Wang, Siyuan Shen, Jiahao Zhang, Jiayin Qi, Xiangling Fu, Aimin Zhou. LMR-CBT: Learning
        Modality-fused Representations with CB-Transformer for Multimodal Emotion Recognition from Unaligned Multimodal
        Sequences. arXiv 2112.01697; Frontiers of Computer Science 18(4), 2024. Its text was not read, its code was.
Code    skeletonNN/LMR-CBT @ c9c6cc8a013eb2f222255aeba31cb114801f9012 (read as a reference, nothing taken from it)
Shapes  N rows, T steps, D width

Differences from the official code
  1. The text's LSTM runs along time; official: across the clips of a batch, so that a clip's score depends on its
     batch mates. Its published numbers were made so.
  2. Padding is masked: in the LSTM, in batch normalisation, in attention, and the last real step is taken; official:
     none of it, and the last step whether real or not.
  3. The two cross-modal blocks lack the 41 parameters each that the official ones hold and never use.
  4. A clip of fewer steps than the convolution's kernel is one window filled up with zeros; official: an error.
  5. Modalities may be absent: their part of the head's input is left out, and without text there is nothing to shift.
``reference`` computes what is published (1 and 2 undone), for parity only.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from moodal.core.batch import Batch, Stream
from moodal.core.errors import check
from moodal.core.method import Losses, Method, MethodConfig, Output
from moodal.core.spec import DataSpec
from moodal.layers.crossmodal import CrossmodalDropout, CrossmodalEncoder
from moodal.layers.dropout import Dropout
from moodal.layers.heads import LinearHead
from moodal.layers.inputs import StreamInputs
from moodal.layers.masks import pad_steps, whole_windows
from moodal.layers.normalisation import StepBatchNorm
from moodal.layers.recurrent import LSTM
from moodal.layers.transformer import Sequence
from moodal.losses.task import RegressionLoss, task_loss


@dataclass(frozen=True, kw_only=True)
class LmrCbtConfig(MethodConfig):
    """Settings of LMR-CBT; the defaults are those of the official code for MOSEI."""

    width: int = 40
    heads: int = 8
    layers: int = 5  # blocks of each of the three encoders
    kernel: int = 3  # steps of the convolution over audio and vision
    text_dropout: float = 0.3
    recurrent_dropout: float = 0.5  # between the two layers of the text's LSTM
    embedding_dropout: float = 0.3
    attention_dropout: float = 0.1
    relu_dropout: float = 0.1
    residual_dropout: float = 0.2
    head_dropout: float = 0.1
    loss: RegressionLoss = "l1"
    reference: bool = False  # the LSTM across the batch, no masks: the published computation

    def __post_init__(self) -> None:
        super().__post_init__()
        check(
            self.width % 2 == 0 and self.width % self.heads == 0,
            f"width is {self.width}; it must be even and a multiple of heads ({self.heads}).",
        )
        for name in ("layers", "kernel"):
            check(self.__dict__[name] >= 1, f"{name} is {self.__dict__[name]}; it must be 1 or more.")
        for name in (name for name in self.__dict__ if name.endswith("dropout")):
            check(0 <= self.__dict__[name] < 1, f"{name} is {self.__dict__[name]}; it lies from 0 up to 1.")


class LMRCBT(Method):
    """Modality-fused representations: the words, shifted by what voice and face say of each channel."""

    Config = LmrCbtConfig
    title = "LMR-CBT: modality-fused representations with the CB-transformer"
    paper = "Fu et al. Frontiers of Computer Science 18(4), 2024; arXiv 2112.01697"
    status = "parity"

    def __init__(self, cfg: LmrCbtConfig, spec: DataSpec) -> None:
        super().__init__(cfg, spec)
        self.inputs = StreamInputs(spec, cfg.modalities)
        widths = self.inputs.widths
        self.text = _Text(widths["text"], cfg) if "text" in widths else None
        others = [m for m in ("audio", "vision") if m in widths]
        self.local = nn.ModuleDict({m: _Local(widths[m], cfg) for m in others})
        self.encoders = nn.ModuleDict({m: _encoder(cfg) for m in widths})
        # Vision comes first: the audio block reads what the vision block has made.
        shifting = [m for m in ("vision", "audio") if m in widths and "text" in widths]
        self.blocks = nn.ModuleDict({m: ChannelBlock(cfg.width) for m in shifting})
        inner = len(widths) * cfg.width
        self.hidden = nn.Sequential(
            nn.Linear(inner, inner), nn.ReLU(), Dropout(cfg.head_dropout), nn.Linear(inner, inner)
        )
        self.out = LinearHead(inner, spec.task)

    def backbone(self) -> nn.Module | None:
        """The text encoder, where it is part of the model."""
        return self.inputs.encoder

    def forward(self, batch: Batch) -> Output:
        """Scores (N,) or logits (N, C)."""
        features: dict[str, Tensor] = {}
        streams = self.inputs(batch)
        local: dict[str, Sequence] = {m: block(streams[m]) for m, block in self.local.items()}
        vectors = {m: self.encoders[m](local[m], last=True) for m in local}
        found = [vectors[m] for m in local]
        if self.text is not None:
            words = self.text(streams["text"])
            shift, mask = words[0], words[1]
            for modality, block in self.blocks.items():
                shift = block(shift, vectors[modality])
                features[f"{modality}_shift"] = shift
            fused = (words[0] + shift if len(self.blocks) else words[0], mask)
            features |= {"text_local": words[0], "fused_sequence": fused[0]}
            found = [self.encoders["text"](fused, last=True), *found]
        features |= {f"{m}_local": values for m, (values, _) in local.items()}
        features["fused"] = torch.cat(found, dim=-1)
        return Output(self.out(self.hidden(features["fused"])), features)

    def loss(self, batch: Batch) -> Losses:
        """Mean absolute error, or cross-entropy."""
        output = self(batch)
        task, rows = task_loss(output.prediction, batch.labels, task=self.spec.task, kind=self.cfg.loss)
        return Losses(task, output, rows=rows, task=task)


class ChannelBlock(nn.Module):
    """softmax over the D channels of tanh(W_x x_t + b_x + W_f f), for every step t: how much of each channel to add."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.steps = nn.Linear(width, width)
        self.vector = nn.Linear(width, width, bias=False)

    def forward(self, steps: Tensor, vector: Tensor) -> Tensor:
        """(N, T, D) and (N, D) -> (N, T, D), each step summing to 1."""
        return torch.tanh(self.steps(steps) + self.vector(vector).unsqueeze(1)).softmax(dim=-1)


class _Text(nn.Module):
    """Dropout, a bidirectional LSTM of two layers, LayerNorm."""

    def __init__(self, width: int, cfg: LmrCbtConfig) -> None:
        super().__init__()
        self.across, self.dropout = cfg.reference, Dropout(cfg.text_dropout)
        self.recurrent = LSTM(width, cfg.width // 2, layers=2, dropout=cfg.recurrent_dropout)
        self.norm = nn.LayerNorm(cfg.width)

    def forward(self, stream: Stream) -> Sequence:
        """(N, T, W) -> (N, T, D) and its mask; None where padding counts as real."""
        values = self.dropout(stream.data)
        if self.across:
            turned = values.transpose(0, 1)
            states, _ = self.recurrent(turned, torch.ones_like(stream.mask).T)
            return self.norm(states.transpose(0, 1)), None
        return self.norm(self.recurrent(values, stream.mask)[0]), stream.mask


class _Local(nn.Module):
    """A convolution over time without padding and bias, then batch normalisation over real steps."""

    def __init__(self, width: int, cfg: LmrCbtConfig) -> None:
        super().__init__()
        self.reference, self.kernel = cfg.reference, cfg.kernel
        self.convolution = nn.Conv1d(width, cfg.width, cfg.kernel, bias=False)
        self.norm = StepBatchNorm(cfg.width)

    def forward(self, stream: Stream) -> Sequence:
        """(N, T, W) -> (N, T - kernel + 1, D) and its mask; None where padding counts as real."""
        values, given = pad_steps(stream.data, stream.mask, max(self.kernel, stream.mask.shape[1]))
        real = stream.mask if given is None else given
        mapped = self.convolution((values * real[..., None]).transpose(1, 2)).transpose(1, 2)
        if self.reference:
            return self.norm(mapped), None
        mask = whole_windows(real, self.kernel)
        return self.norm(mapped, mask), mask


def _encoder(cfg: LmrCbtConfig) -> CrossmodalEncoder:
    dropout = CrossmodalDropout(
        embedding=cfg.embedding_dropout,
        attention=cfg.attention_dropout,
        relu=cfg.relu_dropout,
        residual=cfg.residual_dropout,
    )
    return CrossmodalEncoder(cfg.width, heads=cfg.heads, layers=cfg.layers, reference=cfg.reference, dropout=dropout)
