"""CMGA: pairs of modalities attend to each other, and a forget gate decides how much of what is heard enters.

Paper   Ming Jiang, Shaoxiong Ji. Cross-Modality Gated Attention Fusion for Multimodal Sentiment Analysis.
        arXiv 2208.11893, August 2022. Only the abstract was read: this is "after Jiang and Ji", not a reproduction.
Code    none known by the authors. The gate's equations are those on which two independent implementations and the
        ancestor of the gate (Liu et al., EMNLP 2020, forkarinda/MFN) agree.
Shapes  N rows, T steps, D width, P pairs

Inferred
  1. The residual of the gated block: the implementations disagree (query or source modality); ``residual`` chooses.
  2. One direction per pair, text as the query where it takes part; ``pairs=all`` has all directions.
  3. Encoders: one linear map for text, a bidirectional LSTM for audio and vision.
  4. The fusion layer: self-attention over all pairs' sequences, then a mean per pair and the modalities' own means.
  5. Loss (mean absolute error) and training settings.
With one modality there is no pair, and its own mean is all there is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from moodal.core.batch import Batch, Stream
from moodal.core.errors import check
from moodal.core.method import Losses, Method, MethodConfig, Output
from moodal.core.spec import DataSpec, Modality
from moodal.layers.dropout import Dropout
from moodal.layers.gated_attention import ForgetGateAttention, Residual
from moodal.layers.heads import Perceptron
from moodal.layers.inputs import StreamInputs
from moodal.layers.masks import additive, masked_mean
from moodal.layers.recurrent import LSTM
from moodal.losses.task import RegressionLoss, task_loss


@dataclass(frozen=True, kw_only=True)
class CmgaConfig(MethodConfig):
    """Settings of CMGA; all defaults but the equations are inferred."""

    width: int = 128
    heads: int = 1  # of the gated attention; both implementations have one
    residual: Residual = "query"
    pairs: Literal["one", "all"] = "one"  # directions per pair of modalities
    fusion_heads: int = 8
    residual_norm: bool = False  # residual and LayerNorm around the fusion layer's attention
    own_means: bool = True  # the modalities' own means beside those of the pairs
    dropout: float = 0.2
    loss: RegressionLoss = "l1"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("heads", "fusion_heads"):
            count = self.__dict__[name]
            check(count >= 1 and self.width % count == 0, f"{name} is {count}; it must divide width ({self.width}).")
        check(0 <= self.dropout < 1, f"dropout is {self.dropout}; it lies from 0 up to 1.")


class CMGA(Method):
    """Cross-modality gated attention with a forget gate."""

    Config = CmgaConfig
    title = "CMGA: cross-modality attention with a forget gate"
    paper = "after Jiang and Ji, arXiv 2208.11893"
    status = "after"
    ablations: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "full": {},
        "all directions": {"model.pairs": "all"},
        "without the modalities' own means": {"model.own_means": False},
        "ancestor's gate": {"model.residual": "mfn"},
    }

    def __init__(self, cfg: CmgaConfig, spec: DataSpec) -> None:
        super().__init__(cfg, spec)
        self.inputs = StreamInputs(spec, cfg.modalities)
        self.encoders = nn.ModuleDict({m: _Encoder(m, width, cfg.width) for m, width in self.inputs.widths.items()})
        self.pairs = _pairs(self.inputs.modalities, both=cfg.pairs == "all")
        self.gated = nn.ModuleDict(
            {_name(pair): ForgetGateAttention(cfg.width, heads=cfg.heads, residual=cfg.residual) for pair in self.pairs}
        )
        self.fusion = FusionAttention(cfg.width, heads=cfg.fusion_heads, dropout=cfg.dropout, norm=cfg.residual_norm)
        means = len(self.pairs) + (len(self.encoders) if cfg.own_means or not self.pairs else 0)
        self.head = Perceptron(means * cfg.width, cfg.width, spec.task, dropout=cfg.dropout)

    def backbone(self) -> nn.Module | None:
        """The text encoder, where it is part of the model."""
        return self.inputs.encoder

    def forward(self, batch: Batch) -> Output:
        """Scores (N,) or logits (N, C); how open each pair's gate is, (N, P), for inspection."""
        states = {m: self.encoders[m](stream) for m, stream in self.inputs(batch).items()}
        blocks, gates = self.pair_blocks(states)
        means = self._pair_means(blocks)
        if self.cfg.own_means or not blocks:
            means += [masked_mean(state.data, state.mask) for state in states.values()]
        fused = torch.cat(means, dim=-1)
        features = {f"{_name(pair)}_gated": block.data for pair, block in blocks.items()} | {"fused": fused}
        return Output(self.head(fused), features, {"gates": gates} if self.pairs else {})

    def loss(self, batch: Batch) -> Losses:
        """Mean absolute error, or cross-entropy."""
        output = self(batch)
        task, rows = task_loss(output.prediction, batch.labels, task=self.spec.task, kind=self.cfg.loss)
        return Losses(task, output, rows=rows, task=task)

    def pair_blocks(self, states: Mapping[Modality, Stream]) -> tuple[dict["Pair", Stream], Tensor]:
        """Every pair's sequence over the steps of its query, and the mean of its gate over them, (N, P)."""
        blocks: dict[Pair, Stream] = {}
        openness = []
        for pair in self.pairs:
            source, query = pair
            gated = self.gated[_name(pair)](states[query], states[source])
            blocks[pair] = Stream(gated.values, states[query].mask)
            openness.append(masked_mean(gated.gate.detach().mean(dim=-1, keepdim=True), states[query].mask))
        return blocks, torch.cat(openness, dim=-1) if openness else next(iter(states.values())).data.new_zeros(0)

    def _pair_means(self, blocks: Mapping["Pair", Stream]) -> list[Tensor]:
        """The mean of each pair's steps after all pairs have attended to each other."""
        if not blocks:
            return []
        parts = list(blocks.values())
        mixed = self.fusion(torch.cat([p.data for p in parts], dim=1), torch.cat([p.mask for p in parts], dim=1))
        steps = [part.mask.shape[1] for part in parts]
        return [masked_mean(values, part.mask) for values, part in zip(mixed.split(steps, dim=1), parts)]


#: (source, query)
Pair = tuple[Modality, Modality]


def _pairs(present: tuple[Modality, ...], *, both: bool) -> tuple[Pair, ...]:
    """Each pair once, the earlier of text, audio, vision being the query; or in both directions."""
    once: list[Pair] = [(second, first) for first, second in combinations(present, 2)]
    return tuple(once + [(query, source) for source, query in once] if both else once)


def _name(pair: Pair) -> str:
    source, query = pair
    return f"{source}_to_{query}"


class _Encoder(nn.Module):
    """(N, T, W) -> (N, T, D): one linear map for text, a bidirectional LSTM in front of it for audio and vision."""

    def __init__(self, modality: Modality, width: int, out: int) -> None:
        super().__init__()
        self.recurrent = None if modality == "text" else LSTM(width, out // 2)
        self.project = nn.Linear(width if self.recurrent is None else self.recurrent.out, out)

    def forward(self, stream: Stream) -> Stream:
        """The stream's encoding beside its mask."""
        states = stream.data if self.recurrent is None else self.recurrent(stream.data, stream.mask)[0]
        return Stream(self.project(states) * stream.mask[..., None], stream.mask)


class FusionAttention(nn.Module):
    """Multi-head self-attention over the sequences of all pairs, with a residual and LayerNorm if ``norm``."""

    def __init__(self, width: int, *, heads: int, dropout: float, norm: bool) -> None:
        super().__init__()
        self.heads = heads
        self.maps = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.dropout = Dropout(dropout)
        self.norm = nn.LayerNorm(width) if norm else None

    def forward(self, values: Tensor, mask: Tensor) -> Tensor:
        """(N, T, D), (N, T) -> (N, T, D). A row without real steps gives finite numbers that no mean reads."""
        maps = self.maps(values).unflatten(-1, (3, self.heads, -1))
        query, key, value = (part.transpose(1, 2) for part in maps.unbind(2))
        empty = ~mask.any(dim=1, keepdim=True)
        hidden = additive(mask | empty, query.dtype).unsqueeze(1)
        mixed = nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=hidden)
        mixed = self.dropout(self.out(mixed.transpose(1, 2).flatten(2)))
        return mixed if self.norm is None else self.norm(values + mixed)
