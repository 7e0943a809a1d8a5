"""MCMulT-style: two modalities build their hierarchies together, each reading all levels that the other has so far.

Paper   Lianyang Ma, Yu Yao, Tao Liang, Tongliang Liu. Multi-scale Cooperative Multimodal Transformers for Multimodal
        Sentiment Analysis in Videos. arXiv 2206.07981, 2022
Code    none by the authors is known. Reconstructed from the abstract on top of MulT, with which it shares everything but
        the encoders of a pair
Shapes  N rows, T and S steps of the two modalities of a pair, D width, J levels read

Known from the abstract: the source has features on several levels, all take part in the interaction; the target builds a hierarchy
of its own out of them; both directions of a pair do so step by step, each with what the other is building.

Differences from MulT
  1. For a pair {a, b}: A0 and B0 are the sequences as they enter; block i takes A(i-1) and B(i-1) and gives both new levels
     from the old ones, A(i) = Block(A(i-1); B0 .. B(i-1)) and the same with a and b exchanged.
  2. In a block every level has an attention of its own behind one LayerNorm for all; their results are weighed by the
     softmax of learnt numbers, which begin equal.
  3. What enters a tower is dropped once, not once as key and once as value.
With one block, or with ``levels=lowest``, it is MulT, number for number.

Inferred: all of it, beyond the abstract; hence the settings. A tag that tells keys of one level from another is the bias of each
level's own key map. A number that weighs a single level would be without effect and is not there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moodal.core.errors import check
from moodal.core.spec import MODALITIES, Modality
from moodal.layers.crossmodal import (
    CrossmodalDropout,
    CrossmodalLayer,
    PackedAttention,
    ReluFeedForward,
    Sight,
    enter,
    sight,
)
from moodal.layers.dropout import Dropout
from moodal.layers.transformer import Sequence
from moodal.methods.mult import MulT, MultConfig, pair

Levels = Literal["all", "lowest", "same", "lowest+same"]
Combine = Literal["softmax", "mean", "sum", "gate", "concat"]


@dataclass(frozen=True, kw_only=True)
class McmultConfig(MultConfig):
    """Settings of MCMulT, those of MulT included; ``targets`` are all modalities."""

    levels: Levels = "all"  # of the source that block i reads: 0 to i - 1, only 0, only i - 1, 0 and i - 1
    source: Literal["cooperative", "self"] = (
        "cooperative"  # levels of the other tower, or of a self-attention of its own
    )
    combine: Combine = "softmax"  # "gate": a sigmoid per channel; "concat": one attention over the steps of all levels
    projections: Literal["own", "shared"] = "own"  # of each level; or shared, except the key's

    def __post_init__(self) -> None:
        super().__post_init__()
        check(
            set(self.targets) == set(MODALITIES),
            f"targets is {list(self.targets)}; in MCMulT both sides of a pair are targets: leave it out.",
        )

    def chosen(self, block: int) -> list[int]:
        """The levels that block ``block``, counted from 0, reads."""
        found = {"all": range(block + 1), "lowest": [0], "same": [block], "lowest+same": [0, block]}
        return sorted(set(found[self.levels]))


class MCMulT(MulT):
    """Multi-scale cooperative multimodal transformer."""

    Config = McmultConfig
    title = "MCMulT: multi-scale cooperative multimodal transformer"
    paper = "after Ma, Yao, Liang, Liu. arXiv 2206.07981, 2022"
    status = "after"
    ablations: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "full": {},
        "lowest level (MulT)": {"model.levels": "lowest"},
        "same level": {"model.levels": "same"},
        "lowest and same level": {"model.levels": "lowest+same"},
        "source: self-attention": {"model.source": "self"},
        "combine: mean": {"model.combine": "mean"},
        "combine: sum": {"model.combine": "sum"},
        "combine: gate": {"model.combine": "gate"},
        "combine: concat": {"model.combine": "concat"},
        "shared projections": {"model.projections": "shared"},
    }

    @property
    def pairs(self) -> list[tuple[Modality, Modality]]:
        """The pairs of modalities in use, each once."""
        present = self.inputs.modalities
        return [(a, b) for i, a in enumerate(present) for b in present[i + 1 :]]

    def readers(self) -> nn.ModuleDict:
        """Two towers for each pair."""
        return nn.ModuleDict({f"{a}_{b}": Towers(self.cfg, a, b) for a, b in self.pairs})

    def read(self, sequences: Mapping[Modality, Sequence]) -> dict[str, Tensor]:
        """What each target takes from each source, (N, T, D) by "<target>_from_<source>"."""
        found = {}
        for a, b in self.pairs:
            found[pair(a, b)], found[pair(b, a)] = self.crossmodal[f"{a}_{b}"](sequences[a], sequences[b])
        return found


class Towers(nn.Module):
    """The hierarchies of two modalities, built level by level out of each other."""

    def __init__(self, cfg: McmultConfig, first: Modality, second: Modality) -> None:
        super().__init__()
        self.cfg, self.dropout = cfg, Dropout(cfg.embedding_dropout)
        self.first, self.second = _blocks(cfg, second), _blocks(cfg, first)
        self.first_norm, self.second_norm = nn.LayerNorm(cfg.width), nn.LayerNorm(cfg.width)
        own = cfg.source == "self"
        self.first_source, self.second_source = (_hierarchy(cfg) if own else None for _ in range(2))

    def forward(self, first: Sequence, second: Sequence) -> tuple[Tensor, Tensor]:
        """(N, T, D) and (N, S, D) -> the top of each tower."""
        a, b = [self._enter(first)], [self._enter(second)]
        from_b = b if self.second_source is None else self._climb(self.second_source, second, b[0])
        from_a = a if self.first_source is None else self._climb(self.first_source, first, a[0])
        see_b, see_a = self._sight(first, second), self._sight(second, first)
        for i, (up_a, up_b) in enumerate(zip(self.first, self.second, strict=True)):
            chosen = self.cfg.chosen(i)
            # Both from the old levels: neither direction goes first.
            new_a = up_a(a[-1], [from_b[j] for j in chosen], see_b)
            new_b = up_b(b[-1], [from_a[j] for j in chosen], see_a)
            a.append(new_a)
            b.append(new_b)
        return self.first_norm(a[-1]), self.second_norm(b[-1])

    def _enter(self, sequence: Sequence) -> Tensor:
        entered: Tensor = self.dropout(enter(sequence, positions=self.cfg.positions, reference=self.cfg.reference))
        return entered

    def _climb(self, layers: nn.ModuleList, sequence: Sequence, lowest: Tensor) -> list[Tensor]:
        """All levels of a sequence that reads itself."""
        levels, seen = [lowest], self._sight(sequence, sequence)
        for layer in layers:
            levels.append(layer(levels[-1], None, seen))
        return levels

    def _sight(self, target: Sequence, source: Sequence) -> Sight:
        return sight(target, source, causal=self.cfg.causal, reference=self.cfg.reference)


class LevelLayer(nn.Module):
    """One block: what the target sees on several levels is added to it, then the feed-forward."""

    def __init__(self, cfg: McmultConfig, levels: int, dropout: CrossmodalDropout) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(cfg.width)
        self.attention = LevelAttention(cfg, levels, dropout.attention)
        self.dropout = Dropout(dropout.residual)
        self.feed_forward = ReluFeedForward(cfg.width, 4 * cfg.width, dropout=dropout)

    def forward(self, target: Tensor, levels: list[Tensor], sight: Sight) -> Tensor:
        """(N, T, D) reads J levels of (N, S, D) -> (N, T, D)."""
        normed = [self.norm(level) for level in levels]
        target = target + self.dropout(self.attention(self.norm(target), normed, sight))
        return target + self.feed_forward(target)


class LevelAttention(nn.Module):
    """Attention over one or more levels of a source. With one it is ``PackedAttention``."""

    def __init__(self, cfg: McmultConfig, levels: int, dropout: float) -> None:
        super().__init__()
        width, own = cfg.width, cfg.projections == "own"
        self.combine, self.own, self.joined = cfg.combine, own, cfg.combine == "concat"
        self.lowest = PackedAttention(width, heads=cfg.heads, dropout=dropout)
        self.further = nn.ModuleList(
            PackedAttention(width, heads=cfg.heads, dropout=dropout)
            if own and not self.joined
            else _map(width, 2 if own else 1, bias=self.joined)
            for _ in range(levels - 1)
        )
        shapes = {"softmax": (levels,), "gate": (levels, width)}
        shape = shapes.get(cfg.combine) if levels > 1 else None
        self.weights = None if shape is None else nn.Parameter(torch.zeros(shape))

    def forward(self, query: Tensor, levels: list[Tensor], sight: Sight) -> Tensor:
        """(N, T, D) reads J levels of (N, S, D) -> (N, T, D)."""
        first, *others = levels
        if not others:
            return self.lowest(query, first, first, sight)
        if self.own and not self.joined:
            found = [part(query, level, level, sight) for part, level in zip((self.lowest, *self.further), levels)]
            return self._combined(found)
        q, key, value = self.lowest.maps(query, first, first)
        keys, values = [key], [value]
        for part, level in zip(self.further, others):
            key, value = self._key_and_value(part(level), level)
            keys.append(key)
            values.append(value)
        if not self.joined:
            return self._combined([self.lowest.look(q, k, v, sight) for k, v in zip(keys, values)])
        mask = None if sight.mask is None else torch.cat([sight.mask] * len(levels), dim=-1)
        return self.lowest.look(q, torch.cat(keys, dim=1), torch.cat(values, dim=1), Sight(mask, sight.present))

    def _key_and_value(self, mapped: Tensor, level: Tensor) -> tuple[Tensor, Tensor]:
        if self.own:
            key, value = mapped.chunk(2, dim=-1)
            return key, value
        width = level.shape[-1]
        return mapped, F.linear(level, self.lowest.weight[2 * width :], self.lowest.bias[2 * width :])

    def _combined(self, found: list[Tensor]) -> Tensor:
        """J results (N, T, D) as one."""
        stacked = torch.stack(found)
        if self.weights is None:
            return stacked.mean(dim=0) if self.combine == "mean" else stacked.sum(dim=0)
        weights = self.weights.softmax(dim=0)[:, None] if self.combine == "softmax" else self.weights.sigmoid()
        return (weights[:, None, None] * stacked).sum(dim=0)


def _blocks(cfg: McmultConfig, source: Modality) -> nn.ModuleList:
    shares = cfg.shares(source)
    return nn.ModuleList(LevelLayer(cfg, len(cfg.chosen(i)), shares) for i in range(cfg.layers))


def _hierarchy(cfg: McmultConfig) -> nn.ModuleList:
    """Self-attention that makes the levels above the lowest, as many as are read."""
    count = max(cfg.chosen(cfg.layers - 1))
    return nn.ModuleList(
        CrossmodalLayer(cfg.width, heads=cfg.heads, hidden=4 * cfg.width, dropout=cfg.shares()) for _ in range(count)
    )


def _map(width: int, parts: int, *, bias: bool) -> nn.Linear:
    linear = nn.Linear(width, parts * width, bias=bias)
    nn.init.xavier_uniform_(linear.weight)
    if bias:
        nn.init.zeros_(linear.bias)
    return linear
