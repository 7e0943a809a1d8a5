"""Fusion operators: one vector per modality becomes one vector, (N, M, D) -> (N, D), for M = 1, 2 or 3 modalities.

With one modality addition, multiplication and graph have nothing to combine, and every operator is a map of that one
vector; with two the tensor is a matrix and the graph stops at its bimodal level. A modality that a row lacks enters as
the operator's neutral value, so that it neither adds nor multiplies anything.
Sources: tensor Zadeh et al., EMNLP 2017; low rank Liu et al., ACL 2018; graph Mai et al., AAAI 2020; all as Mai et al.,
IEEE Trans. Multimedia 2022, section III and official code, use them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moodal.layers.dropout import Dropout

Operator = Literal["addition", "concatenation", "multiplication", "tensor", "low_rank", "graph"]
#: Activations after the three layers of the tensor operator: as for C-MIB, or as for E-MIB and L-MIB.
TensorActivation = Literal["tanh", "relu"]


class FusionOperator(nn.Module):
    """Base: subclasses define ``fuse`` and, where zero is not it, the ``neutral`` value of an absent modality."""

    neutral: ClassVar[float] = 0.0

    def forward(self, vectors: Tensor, present: Tensor | None = None) -> Tensor:
        """(N, M, D) -> (N, D). ``present``: (N, M), False where a row lacks a modality; None: all are there."""
        if present is not None:
            vectors = vectors.where(present.unsqueeze(-1), self.neutral)
        return self.fuse(vectors)

    def fuse(self, vectors: Tensor) -> Tensor:
        """(N, M, D) -> (N, D), every modality being there."""
        raise NotImplementedError


class Addition(FusionOperator):
    """The sum. No parameters."""

    def fuse(self, vectors: Tensor) -> Tensor:
        """(N, M, D) -> (N, D)."""
        return vectors.sum(dim=1)


class Multiplication(FusionOperator):
    """The product, coordinate by coordinate. No parameters."""

    neutral = 1.0

    def fuse(self, vectors: Tensor) -> Tensor:
        """(N, M, D) -> (N, D)."""
        return vectors.prod(dim=1)


class Concatenation(FusionOperator):
    """ReLU(W [x_1; ...; x_M] + b)."""

    def __init__(self, width: int, inputs: int) -> None:
        super().__init__()
        self.join = nn.Linear(inputs * width, width)

    def fuse(self, vectors: Tensor) -> Tensor:
        """(N, M, D) -> (N, D)."""
        return F.relu(self.join(vectors.flatten(1)))


class TensorProduct(FusionOperator):
    """Three linear layers over all products of one entry of each [1; x_m]: (D + 1)^M of them.

    ``activation``: "tanh" after every layer; "relu": none, tanh, ReLU (the two forms of the official code).
    """

    def __init__(
        self,
        width: int,
        inputs: int,
        *,
        hidden: int | None = None,
        dropout: float = 0.5,
        activation: TensorActivation = "tanh",
    ) -> None:
        super().__init__()
        hidden = width if hidden is None else hidden
        self.activation = activation
        self.dropout = Dropout(dropout)
        self.first = nn.Linear((width + 1) ** inputs, hidden)
        self.second = nn.Linear(hidden, hidden)
        self.third = nn.Linear(hidden, width)

    def fuse(self, vectors: Tensor) -> Tensor:
        """(N, M, D) -> (N, D)."""
        # The index of the first modality runs fastest: the order of the official weights.
        products, *others = F.pad(vectors, (1, 0), value=1.0).roll(-1, dims=1).unbind(dim=1)
        for factor in others:
            products = (products.unsqueeze(2) * factor.unsqueeze(1)).flatten(1)
        values = self.first(self.dropout(products))
        if self.activation == "relu":
            return F.relu(self.third(self.second(values).tanh()))
        return self.third(self.second(values.tanh()).tanh()).tanh()


class LowRank(FusionOperator):
    """The same products through a weight tensor of rank R: Σ_r w_r Π_m (F_mr [1; x_m]) + b."""

    def __init__(self, width: int, inputs: int, *, out: int | None = None, rank: int = 5) -> None:
        super().__init__()
        out = width if out is None else out
        self.factors = nn.Parameter(torch.empty(inputs, rank, width + 1, out))
        self.weights = nn.Parameter(torch.empty(1, rank))
        self.bias = nn.Parameter(torch.zeros(1, out))
        for tensor in (*self.factors.data, self.weights.data):
            nn.init.xavier_normal_(tensor)

    def fuse(self, vectors: Tensor) -> Tensor:
        """(N, M, D) -> (N, D)."""
        extended = F.pad(vectors, (1, 0), value=1.0).transpose(0, 1).unsqueeze(1)  # (M, 1, N, D + 1)
        ranks = (extended @ self.factors).prod(dim=0)  # (R, N, D)
        return torch.einsum("r,rnd->nd", self.weights[0], ranks) + self.bias


class _Level(NamedTuple):
    """G vertices of the graph."""

    values: Tensor  # (N, G, D)
    signatures: Tensor  # (N, G, D), distributions over the features: alike vertices have alike signatures
    strengths: Tensor  # (N, G)


#: Who is joined with whom, as places in the level below (0 text, 1 audio, 2 vision of three), in the official order.
_PAIRS = {1: (), 2: ((1, 0),), 3: ((1, 2), (1, 0), (2, 0))}
#: Two pairs, or a pair and the modality it lacks: 0 to 2 are the pairs above, 3 to 5 the modalities.
_TRIPLES = ((0, 2), (0, 1), (2, 1), (0, 3), (1, 5), (2, 4))


class GraphFusion(FusionOperator):
    """Modalities, their pairs and their triples as levels of a graph; the levels' sums then enter three tanh layers."""

    def __init__(self, width: int, inputs: int, *, hidden: int | None = None, inner: int = 64) -> None:
        super().__init__()
        hidden = width if hidden is None else hidden
        self.attention = nn.Linear(width, 1)
        self.pairs = _PAIRS[inputs]
        self.pair = _Joint(width, inner) if inputs > 1 else None
        self.triple = _Joint(width, inner) if inputs > 2 else None
        self.first = nn.Linear(inputs * width, hidden)
        self.second = nn.Linear(hidden, hidden)
        self.third = nn.Linear(hidden, width)

    def fuse(self, vectors: Tensor) -> Tensor:
        """(N, M, D) -> (N, D)."""
        single = _Level(vectors, vectors.softmax(dim=-1), self.attention(vectors).tanh().squeeze(-1))
        sums = [torch.einsum("ng,ngd->nd", single.strengths, vectors) / vectors.shape[1]]
        if self.pair is not None:
            double = self.pair(single, self.pairs)
            sums.append(double.values.sum(dim=1))
            if self.triple is not None:
                below = _Level(*(torch.cat(parts, dim=1) for parts in zip(double, single)))
                sums.append(self.triple(below, _TRIPLES).values.sum(dim=1))
        values = self.first(torch.cat(sums, dim=-1)).tanh()
        return self.third(self.second(values).tanh()).tanh()


class _Joint(nn.Module):
    """The vertices that join two each of the level below: tanh(w * g([x_i; x_j])).

    The weights w are a softmax over the new level of (s_i + s_j) / (<i, j> + 0.5): more for strong vertices that differ.
    """

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.first = nn.Linear(2 * width, inner)
        self.second = nn.Linear(inner, width)

    def forward(self, below: _Level, joined: Sequence[tuple[int, int]]) -> _Level:
        """``joined``: which two vertices of the level ``below`` make each new one."""
        one, other = (_Level(*(part[:, list(places)] for part in below)) for places in zip(*joined))
        likeness = (one.signatures * other.signatures).sum(dim=-1)
        strengths = (one.strengths + other.strengths) / (likeness + 0.5)
        both = torch.cat([one.values, other.values], dim=-1)
        raw = self.second(F.leaky_relu(self.first(both), 0.2)).tanh()
        return _Level((strengths.softmax(dim=-1).unsqueeze(-1) * raw).tanh(), raw.softmax(dim=-1), strengths)


def fusion_operator(
    name: Operator, width: int, inputs: int, *, activation: TensorActivation = "tanh"
) -> FusionOperator:
    """The operator called ``name`` for ``inputs`` modalities of ``width``; ``activation`` is that of the tensor."""
    if name == "tensor":
        return TensorProduct(width, inputs, activation=activation)
    if name == "addition":
        return Addition()
    if name == "multiplication":
        return Multiplication()
    return {"concatenation": Concatenation, "low_rank": LowRank, "graph": GraphFusion}[name](width, inputs)
