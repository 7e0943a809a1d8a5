"""BIMHA: products of every two modalities as three tokens, which attend to each other and say which pair counts.

Paper   Ting Wu, Junjie Peng, Wenqiang Zhang, Huiran Zhang, Chuanshuai Ma, Yansong Huang. Video Sentiment Analysis with
        Bimodal Information-augmented Multi-Head Attention. Knowledge-Based Systems 235, 107676, 2022. arXiv 2103.02362.
        Its figure and its equations as others restate them were read, not its text: this is "after Wu et al.".
Code    none known
Shapes  N rows, T steps, D width of a pair, P pairs (3 with three modalities), H heads

Inferred
  1. The three pairs are a sequence of three tokens; query and output maps are shared by the pairs, as key and value are.
     Read as one long vector the softmax would have one entry, and the attention would be a linear map.
  2. All sizes; the last state of the LSTM; audio and vision as means over their real steps; loss and training.
  3. No batch normalisation of audio and vision: the corpora standardise them.
A pair is only there where both its modalities are: for a row that lacks one, the pair is zeros and nobody attends to
it. A row without any pair is told by the head's biases. With one modality its own vector is all there is.
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
from moodal.core.spec import DataSpec, Modality
from moodal.layers.dropout import Dropout
from moodal.layers.heads import Perceptron
from moodal.layers.inputs import StreamInputs
from moodal.layers.masks import masked_softmax
from moodal.layers.summaries import LastState, MeanStep, Summary
from moodal.losses.task import RegressionLoss, task_loss

Pair = tuple[Modality, Modality]
#: The order of the tokens, and of the factors of a product: the second one's entries run fastest.
PAIRS: tuple[Pair, ...] = (("audio", "vision"), ("audio", "text"), ("vision", "text"))


@dataclass(frozen=True, kw_only=True)
class BimhaConfig(MethodConfig):
    """Settings of BIMHA; all numbers are inferred."""

    width: int = 64  # of a pair's vector
    heads: int = 4
    text_width: int = 128  # of the text's vector, and of its LSTM
    audio_width: int = 16  # the private maps of the pairs have width * (product of two of these) weights
    vision_width: int = 32
    shared: bool = True  # the linear layer that all pairs go through
    attention: bool = True
    residual: bool = True  # the pairs themselves beside what they attend to
    dropout: float = 0.3
    loss: RegressionLoss = "l1"  # for regression; classification has cross-entropy

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("width", "heads", "text_width", "audio_width", "vision_width"):
            check(self.__dict__[name] >= 1, f"{name} is {self.__dict__[name]}; it must be 1 or more.")
        check(self.width % self.heads == 0, f"heads is {self.heads}; it must divide width ({self.width}).")
        check(0 <= self.dropout < 1, f"dropout is {self.dropout}; it lies from 0 up to 1.")

    @property
    def widths(self) -> dict[Modality, int]:
        """Of each modality's vector."""
        return {"text": self.text_width, "audio": self.audio_width, "vision": self.vision_width}


class BIMHA(Method):
    """Bimodal information-augmented multi-head attention."""

    Config = BimhaConfig
    title = "BIMHA: bimodal information-augmented multi-head attention"
    paper = "after Wu et al., Knowledge-Based Systems 235, 2022"
    status = "after"
    ablations: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "full": {},
        "without the residual": {"model.residual": False},
        "without attention": {"model.attention": False},
        "without the shared layer": {"model.shared": False},
    }

    def __init__(self, cfg: BimhaConfig, spec: DataSpec) -> None:
        super().__init__(cfg, spec)
        self.inputs = StreamInputs(spec, cfg.modalities)
        self.encoders = nn.ModuleDict(
            {m: _encoder(m, width, cfg.widths[m], cfg.dropout) for m, width in self.inputs.widths.items()}
        )
        present = self.inputs.modalities
        self.pairs = tuple(pair for pair in PAIRS if set(pair) <= set(present))
        self.products = PairProducts(self.pairs, cfg.widths, cfg.width, shared=cfg.shared)
        self.attention = PairAttention(cfg.width, heads=cfg.heads) if cfg.attention and self.pairs else None
        entering = len(self.pairs) * cfg.width if self.pairs else cfg.widths[present[0]]
        last = Perceptron(cfg.width, cfg.width, spec.task, dropout=cfg.dropout)
        self.head = nn.Sequential(nn.Linear(entering, cfg.width), nn.ReLU(), Dropout(cfg.dropout), last)

    def backbone(self) -> nn.Module | None:
        """The text encoder, where it is part of the model."""
        return self.inputs.encoder

    def forward(self, batch: Batch) -> Output:
        """Scores (N,) or logits (N, C); whom each pair attends to, (N, P, P), rows asking, for inspection."""
        summaries = {m: self.encoders[m](stream) for m, stream in self.inputs(batch).items()}
        if not self.pairs:
            (own,) = summaries.values()
            return Output(self.head(own.vector), {"fused": own.vector})
        tokens, there = self.products(summaries)
        joined, inspection = tokens, {}
        if self.attention is not None:
            mixed, weights = self.attention(tokens, there)
            joined = mixed + tokens if self.cfg.residual else mixed
            inspection["attention"] = weights.detach().mean(dim=1)
        fused = joined.flatten(1)
        return Output(self.head(fused), {"pairs": tokens, "fused": fused}, inspection)

    def loss(self, batch: Batch) -> Losses:
        """Mean absolute error, or cross-entropy."""
        output = self(batch)
        task, rows = task_loss(output.prediction, batch.labels, task=self.spec.task, kind=self.cfg.loss)
        return Losses(task, output, rows=rows, task=task)


class PairProducts(nn.Module):
    """H_s = shared(ReLU(W_s vec(x_m x_n^T) + b_s)): a vector for each pair of modalities. Wu et al., figure (IMI).

    No 1 is appended to the vectors: a modality reaches the score only through its products.
    """

    def __init__(self, pairs: tuple[Pair, ...], widths: Mapping[Modality, int], out: int, *, shared: bool) -> None:
        super().__init__()
        self.pairs = pairs
        self.private = nn.ModuleDict({_name(p): nn.Linear(widths[p[0]] * widths[p[1]], out) for p in pairs})
        self.shared = nn.Linear(out, out) if shared and pairs else nn.Identity()

    def forward(self, summaries: Mapping[Modality, Summary]) -> tuple[Tensor, Tensor]:
        """Vectors (N, D_m) by modality -> (N, P, D), zeros where a row lacks the pair, and whether it has it (N, P)."""
        private = []
        for pair in self.pairs:
            first, second = (summaries[m].vector for m in pair)
            product = (first.unsqueeze(2) * second.unsqueeze(1)).flatten(1)
            private.append(F.relu(self.private[_name(pair)](product)))
        there = torch.stack([summaries[m].present & summaries[n].present for m, n in self.pairs], dim=1)
        return self.shared(torch.stack(private, dim=1)) * there.unsqueeze(-1), there


class PairAttention(nn.Module):
    """[softmax(H_s W_Q (D W_X)^T / sqrt(d)) D W_Y of each head] W_O for every pair s, D being all pairs (IBI).

    Query, key and value maps have no bias, the output map has one.
    """

    def __init__(self, width: int, *, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value = (nn.Linear(width, width, bias=False) for _ in range(3))
        self.out = nn.Linear(width, width)

    def forward(self, tokens: Tensor, there: Tensor) -> tuple[Tensor, Tensor]:
        """(N, P, D), (N, P) -> (N, P, D), zeros where a row lacks the pair, and the weights (N, H, P, P)."""
        maps = (self.query, self.key, self.value)
        query, key, value = (own(tokens).unflatten(-1, (self.heads, -1)).transpose(1, 2) for own in maps)
        scores = query @ key.mT * query.shape[-1] ** -0.5
        weights = masked_softmax(scores, there[:, None, None, :])
        mixed = (weights @ value).transpose(1, 2).flatten(2)
        return self.out(mixed) * there.unsqueeze(-1), weights


class _Pooled(nn.Module):
    """Three layers with ReLU over the mean of the real steps: audio and vision."""

    def __init__(self, width: int, out: int, dropout: float) -> None:
        super().__init__()
        self.mean = MeanStep()
        maps = [part for size in (width, out, out) for part in (nn.Linear(size, out), nn.ReLU())]
        self.layers = nn.Sequential(Dropout(dropout), *maps)

    def forward(self, stream: Stream) -> Summary:
        """(N, T, W) -> (N, D), zeros where the row has no real step."""
        mean, present = self.mean(stream)
        return Summary(self.layers(mean) * present[:, None], present)


def _encoder(modality: Modality, width: int, out: int, dropout: float) -> nn.Module:
    return LastState(width, out, out) if modality == "text" else _Pooled(width, out, dropout)


def _name(pair: Pair) -> str:
    return "_".join(pair)
